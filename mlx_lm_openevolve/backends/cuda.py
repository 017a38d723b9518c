"""Metal bodies on NVIDIA GPUs, through mx.fast.cuda_kernel.

    body --minify, translate--> CUDA text behind metal_on_cuda.cuh --NVRTC, by MLX--> launches

A launch may also be written in CUDA (`language: cuda`). What metal_to_cuda refuses makes the kernel
not eligible on this backend. Read off mlx 0.32.4, mlx/backend/cuda/custom_kernel.cpp.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import ops
from ..cache import store
from ..directives import directives
from ..errors import BackendError, MachineError
from ..kernels.kernel import Kernel, Launch
from ..ops import Workload
from ..ops.base import Call
from . import Run, chain, cuda_modules, dtype_of
from .metal_to_cuda import UnsupportedOnCuda, minify, translate

__all__ = ["UnsupportedOnCuda", "build", "minify", "single", "sources", "translate", "unavailable"]

_HEADER_FILE = Path(__file__).with_name("metal_on_cuda.cuh")
_MIN_ARCH = 80
_MAX_SCALES = 16
_TEXT_BYTES = 32 << 20  # of some thousand kernels; each new one looks through all
_TYPES = {
    "bool_": "bool",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
}

_ABSENT = "__device__ __align__(16) const unsigned long long absent_input[8] = {};"

# The strides of a mask's view as [B, Hq, L, N], from its own axes, the last ones of these.
_BROADCAST = """Strides mask_axes = {};
#pragma unroll
for (int to = 0; to < 4; ++to) {
#pragma unroll
  for (int from = 0; from < 4; ++from) {
    if (to + mask_ndim == from + 4 && mask_shape[from] != 1) mask_axes[to] = mask_strides[from];
  }
}
const Strides& mask_steps = mask_axes;
"""


def unavailable() -> str:
    """ "" where MLX has an NVIDIA GPU that this backend can use, else the reason in one line."""
    if not hasattr(mx, "cuda") or not hasattr(mx.fast, "cuda_kernel"):
        return "this mlx knows no CUDA kernels"
    if not mx.cuda.is_available():
        return "MLX is built without CUDA, or sees no NVIDIA GPU on this machine"
    try:
        info = mx.device_info(mx.gpu)
    except Exception as error:  # the driver's own words: too old, or out of reach
        return f"the NVIDIA driver does not answer: {str(error).splitlines()[0]}"
    arch = re.search(r"\d+", str(info.get("architecture", "")))
    if arch and int(arch.group()) < _MIN_ARCH:
        return f"the GPU is sm_{arch.group()}; this backend needs sm_{_MIN_ARCH} or later"
    return ""


def build(kernel: Kernel, params: Mapping[str, int], workload: Workload) -> Call:
    """The kernel as a callable for one exact workload; NVRTC compiles it at its first evaluation
    and names the body's file and line in its errors. Raises BackendError.
    """
    reason = unavailable()
    if reason:
        raise BackendError(reason)
    absent = {name: _TYPES[x.dtype] for name, x in ops.of(workload).absent(workload).items()}
    # An operation more costs the host as much as a launch: the launches broadcast by themselves,
    # unless one asks for the mask's full shape.
    launches = kernel.launches(workload, params)
    whole = any(re.search(r"\bmask_(shape|ndim)\b", launch.spec.source) for launch in launches)
    scales: dict[int, tuple[mx.array, mx.array]] = {}
    last: tuple[Any, Any] = (None, None)

    def on_device(scale: mx.array) -> mx.array:
        nonlocal last
        known = last
        if known[0] is not scale:
            found = scales.get(id(scale))
            if found is None:
                if len(scales) >= _MAX_SCALES:
                    scales.clear()
                found = scales[id(scale)] = (scale, _on_device(scale))
            known = last = found
        copy: mx.array = known[1]
        return copy

    def make(launch: Launch, name: str, inputs: list[str]) -> Run:
        return _make(launch, name, inputs, absent, ops.of(workload).row_contiguous)

    return chain(
        kernel,
        params,
        workload,
        ("metal", "cuda"),
        make,
        passes_absent=False,
        broadcast=whole,
        held=on_device,
    )


def single(launch: Launch, name: str, inputs: list[str]) -> Run:
    """One launch of our own, of row-contiguous inputs by name, under a name for its kernel."""
    return _make(launch, name, inputs, {}, True)


def sources(launch: Launch, absent: Mapping[str, str]) -> tuple[str, str]:
    """(header, source) of a launch as CUDA text, template arguments written into the source.

    Inputs in `absent`, name by CUDA type, are not passed: the source declares them, as the 8 zeros
    that a launch may count on. A mask that is passed may have fewer axes than four, and axes of 1:
    the source makes the strides of its broadcast view. Raises UnsupportedOnCuda.

    No launch may set a cluster size: MLX (0.32.4) updates a cached CUDA graph in place as if any
    two kernels were alike, and a kernel that inherits another's cluster size computes rubbish.
    """
    spec = launch.spec
    try:
        source, header = _as_cuda(spec.source, spec.header, spec.language, tuple(spec.inputs))
    except UnsupportedOnCuda as error:
        raise UnsupportedOnCuda(f"{spec.file}: {error}") from None
    head, body = "", ""
    if spec.language == "metal":
        head = _header()
    if header:
        head += f'namespace mlx::core::cu {{\n#line 1 "header of {spec.file}"\n{header}\n}}\n'
    for name, value in launch.template:
        if isinstance(value, str):
            body += f"using {name} = {_TYPES[value]};\n"
        else:
            kind = "bool" if isinstance(value, bool) else "int"
            body += f"constexpr {kind} {name} = {str(value).lower()};\n"
    for name, kind in absent.items():
        if name in spec.inputs:
            body += (
                f"const {kind}* const {name} = reinterpret_cast<const {kind}*>(absent_input);\n"
                f"[[maybe_unused]] const Shape {name}_shape = {{8, 1, 1, 1}};\n"
                f"[[maybe_unused]] const Strides {name}_strides = {{1, 1, 1, 1}};\n"
            )
    strides = ""
    if "mask" in spec.inputs and "mask" not in absent and "mask_strides" in source:
        body += _BROADCAST
        strides = "#define mask_strides mask_steps\n"
    if absent:
        head += f"namespace mlx::core::cu {{\n{_ABSENT}\n}}\n"
    return head, f'{body}{strides}#line 1 "{spec.file}"\n{source}\n'


@functools.lru_cache(64)  # the gate builds a kernel for some ten lengths: 60 ms each
def _as_cuda(source: str, header: str, language: str, inputs: tuple[str, ...]) -> tuple[str, str]:
    """A launch's source and header as CUDA text. Raises UnsupportedOnCuda."""
    for text in (source, header):
        if reason := _foreign(text):
            raise UnsupportedOnCuda(reason)
    if language != "metal":
        return source, header
    return translate(minify(source), inputs), translate(minify(header))


_INCLUDES = re.compile(
    r'[<"](?:cuda_(?:bf16|fp16|fp8|pipeline|pipeline_primitives)\.h|mma\.h|metal_\w+'
    r"|cooperative_groups\.h|(?:cooperative_groups|cuda|cub|cute|cutlass)/[\w/]+(?:\.h|\.hpp|\.cuh)?"
    r'|mlx/backend/cuda/device/\w+\.cuh)[>"]'
)


# What compilers read differently, as blanks or as the end of a line: a directive or a declaration
# could hide behind it.
_AMBIGUOUS = re.compile(r"[^\t\n\r -~]|\r(?!\n)|\\[ \t]+\r?$", re.MULTILINE)


def _foreign(text: str) -> str:
    """What a text would have NVRTC read beside the headers of MLX and CUDA, "" for nothing."""
    if unclear := _AMBIGUOUS.search(text):
        return f"{unclear[0]!r} is not available"
    text = re.sub(r"\\[ \t]*\r?\n", "", text)  # a backslash joins two lines, and a word in two
    for word, operand, _ in directives(text):
        if word.startswith(("include", "import", "embed")) and not _INCLUDES.fullmatch(operand):
            return f"#{word} {operand[:80]} is not available"
    hit = re.search(r"\b__has_(?:include|embed)\w*", text)
    return f"{hit[0]} is not available" if hit else ""


def _on_device(scale: mx.array) -> mx.array:
    """A copy of `scale` that lies in device memory. MLX keeps arrays of up to 8 bytes in managed
    memory on the host's side: every warp would fetch it over the bus, 10 to 20 us a call. Not by
    a copy of a broadcast: MLX would load the kernels of all strided copies, which takes 0.1 s."""
    try:
        copy = mx.full((16,), scale)
        mx.eval(copy)
    except ValueError:  # under a trace: right, if slower
        return scale
    return copy


def _make(
    launch: Launch, name: str, inputs: list[str], absent: Mapping[str, str], contiguous: bool
) -> Run:
    spec = launch.spec
    # Metal cuts the last threadgroup short, CUDA does not.
    if any(n % t for n, t in zip(launch.grid, launch.threadgroup, strict=True)):
        raise UnsupportedOnCuda(
            f"{spec.file}: grid {launch.grid} is not whole threadgroups of {launch.threadgroup}"
        )
    head, body = sources(launch, absent)
    # MLX copies and hashes header and source at every call, 1 us for some 2 KB, and looks in the
    # source for the names of shapes and strides: it gets no more than these and two includes.
    extents = sorted(
        f"{array}_{suffix}"
        for array in inputs
        for suffix in ("shape", "strides", "ndim")
        if re.search(rf"\b{array}_{suffix}\b", body)
    )
    try:
        folder = _included(head, body)
        header = f'#include "{folder}/head.cuh"\n'
        source = f'// {" ".join(extents)}\n#include "{folder}/body.cuh"\n'
    except (OSError, MachineError):  # nowhere to write: the long way works too
        header, source = head, body
    function: Any = mx.fast.cuda_kernel(
        name=name,
        input_names=inputs,
        output_names=[output for output, _, _ in launch.outputs],
        source=source,
        header=header,
        ensure_row_contiguous=contiguous,
    )
    grid, threadgroup = launch.grid, launch.threadgroup
    shapes = [shape for _, shape, _ in launch.outputs]
    dtypes = [dtype_of(dtype) for _, _, dtype in launch.outputs]
    outputs = [(output, dtype_of(dtype)) for output, _, dtype in launch.outputs]
    compiled = False

    def run(arrays: Sequence[mx.array]) -> Sequence[mx.array]:
        nonlocal compiled
        if not compiled:
            given = [(name, array.dtype) for name, array in zip(inputs, arrays, strict=True)]
            cuda_modules.keep(name, header, source, given, outputs)
            compiled = True
        made: Sequence[mx.array] = function(  # a dictionary of arguments takes 0.2 us
            inputs=arrays,
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=shapes,
            output_dtypes=dtypes,
        )
        return made

    return run


def _included(head: str, body: str) -> str:
    """A folder with the two texts, named by their content and by what compiles them: it is part of
    the text that MLX gets, which names the compiled module. Raises OSError, MachineError."""

    def write(folder: Path) -> None:
        (folder / "head.cuh").write_text(head, "ascii")
        (folder / "body.cuh").write_text(body, "ascii")

    text = "\0".join((head, body, cuda_modules.compiler()))
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    return store("cuda", _TEXT_BYTES).get(key, write).as_posix()


@functools.cache
def _header() -> str:
    return minify(_HEADER_FILE.read_text("ascii")) + "\n"
