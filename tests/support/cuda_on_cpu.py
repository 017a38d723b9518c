"""The native CUDA stages of a kernel on the CPU, for tests: `build` is a backend's build.

    stage --cuda.sources--> CUDA text --functions with assembly replaced--> C++ --> shared library

cuda_on_cpu.h says what is emulated. Inputs lie against a page that cannot be read, at 16-byte
boundaries. Metal stages of the same kernel run through metalhost.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.backends import cuda, dtype_of, host
from mlx_lm_openevolve.kernels.kernel import Kernel, Launch
from mlx_lm_openevolve.ops import Workload
from mlx_lm_openevolve.ops.base import Call

HERE = Path(__file__).parent
TYPES = {
    "int32": "int32_t",
    "uint32": "uint32_t",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "bool": "bool",
}
# The functions of the stages that hold assembly; cuda_on_cpu.h has others of these names.
ASSEMBLY = (
    *("power2", "multiply", "turn", "load_matrices", "load_turned", "copy_async"),
    *("commit_copies", "wait_copies", "describe", "hold", "begin_products", "end_products"),
    *("publish", "look", "processors", "and_or", "att_mma8"),
    *("load_stream", "load_stream2", "mma_halves"),
)
_FUNCTION = re.compile(
    r"(template\s*<[^<>]*>\s*)?__device__\s+(?:inline|__forceinline__)\s+[\w ]+?\s+"
    rf"({'|'.join(ASSEMBLY)})\s*\("
)
_MACRO = re.compile(r"#define (\w+)\((?:[^\n]*\\\n)+[^\n]*\basm\b.*?#undef \1", re.DOTALL)
_WORD = re.compile(r'asm volatile\("\{\.reg \.b16.*?\);', re.DOTALL)
_READ_WORD = (
    "to[i] = row[(first + 2 * i) * step].bits |"
    " uint32_t(row[(first + 2 * i + 1) * step].bits) << 16;"
)


def unavailable() -> str:
    """ "" where stages can be compiled and run, else the reason."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "the fibers are written for Linux on x86-64"
    return "" if compiler() else "no C++ compiler is at hand"


def compiler() -> str:
    return shutil.which("g++") or shutil.which("clang++") or ""


def build(kernel: Kernel, params: Mapping[str, int], workload: Workload, seed: int = 1) -> Call:
    """The kernel as a callable for one exact workload; `seed` shuffles blocks and warps."""
    op = ops.of(workload)
    absent = {name: TYPES[x.dtype.rstrip("_")] for name, x in op.absent(workload).items()}
    dummies = {
        name: mx.zeros((8, *[1] * (x.axes - 1)), dtype_of(x.dtype))
        for name, x in op.absent(workload).items()
    }
    launches = kernel.launches(workload, params)
    read = frozenset(name for launch in launches for name in launch.spec.inputs)
    given, whole = (op.bind(workload, read, broadcast=broadcast) for broadcast in (False, True))
    inputs = op.inputs(workload.variant)

    def call(*arguments: Any) -> mx.array:
        arrays = dict(zip(inputs, given(*arguments), strict=False))
        full = {**dict(zip(inputs, whole(*arguments), strict=False)), **dummies}
        made: dict[str, mx.array] = {}
        for launch in launches:
            names = launch.spec.inputs
            if launch.spec.language == "metal":
                run = host._make(launch, "combine", list(names), True, None, 0, False, False)
                results = run([{**full, **made}[name] for name in names])
            else:
                passed = {name: {**arrays, **made}[name] for name in names if name not in absent}
                results = _run(launch, passed, absent, seed, op.row_contiguous)
            made |= {out[0]: x for out, x in zip(launch.outputs, results, strict=True)}
        return made["out"]

    return call


def _run(
    launch: Launch,
    inputs: Mapping[str, mx.array],
    absent: Mapping[str, str],
    seed: int,
    contiguous: bool,
) -> Sequence[mx.array]:
    """One launch. contiguous: as MLX hands over what must lie row by row."""
    header, body = cuda.sources(launch, absent)
    parameters: list[tuple[str, str, Any]] = []  # C++ type, name, what keeps its memory
    for name, array in inputs.items():
        mx.eval(array)
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        view = np.array(bits, copy=False)
        if contiguous and not view.flags.c_contiguous:  # what is so stays where it is
            view = np.ascontiguousarray(view)
        kind = TYPES[str(array.dtype).removeprefix("mlx.core.").rstrip("_")]
        parameters.append((f"const {kind}*", name, Guarded(view)))
        steps = [stride // view.itemsize for stride in view.strides]
        for suffix, kind, content in (
            ("shape", "Shape", (ctypes.c_int32 * 10)(*view.shape)),
            ("strides", "Strides", (ctypes.c_int64 * 10)(*steps)),
            ("ndim", "int", ctypes.c_int(view.ndim)),
        ):
            if re.search(rf"\b{name}_{suffix}\b", body):
                parameters.append((kind, f"{name}_{suffix}", content))
    outputs = []
    for name, shape, dtype in launch.outputs:
        kind = np.dtype(np.float32 if dtype == "float32" else np.uint16)
        # What nobody initialised: NaN, or for some seeds what an earlier launch may have left.
        old = 0 if name != "out" and seed % 4 > 1 else -1
        out = Guarded(np.full(shape, old, np.int32 if kind.itemsize == 4 else np.int16))
        outputs.append((out, shape, dtype, kind))
        parameters.append((f"{TYPES[dtype]}*", name, out))

    declared = ", ".join(f"{kind} {name}" for kind, name, _ in parameters)
    passed = ", ".join(
        f"({kind})a[{i}]" if kind.endswith("*") else f"*(const {kind}*)a[{i}]"
        for i, (kind, _, _) in enumerate(parameters)
    )
    text = (
        f'#include "cuda_on_cpu.h"\n{_without_assembly(header)}\n'
        f"namespace mlx::core::cu {{\nvoid stage({declared}) {{\n{_without_assembly(body)}\n}}\n"
        f'extern "C" void body(void** a) {{ stage({passed}); }}\n}}\n'
    )
    library = _library(text)
    addresses = [
        x.address if isinstance(x, Guarded) else ctypes.addressof(x) for _, _, x in parameters
    ]
    library.run_grid.restype = ctypes.c_char_p
    failure = library.run_grid(
        ctypes.cast(library.body, ctypes.c_void_p),
        (ctypes.c_void_p * len(addresses))(*addresses),
        (ctypes.c_uint * 3)(*launch.grid),
        (ctypes.c_uint * 3)(*launch.threadgroup),
        seed,
    )
    if failure:
        raise RuntimeError(f"{launch.spec.file}: {failure.decode()}")
    results = []
    for out, shape, dtype, kind in outputs:
        array = mx.array(out.read(kind).reshape(shape))
        results.append(array if dtype == "float32" else array.view(dtype_of(dtype)))
    mx.eval(results)
    return results


class Guarded:
    """A copy of a view, strides and all, at a 16-byte boundary and, as far as that allows, against
    a page that cannot be read."""

    def __init__(self, view: Any) -> None:
        steps = zip(view.shape, view.strides, strict=True)
        self.bytes = sum((n - 1) * step for n, step in steps) + view.itemsize
        size = -(-(self.bytes + 16) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + size), mmap.PAGESIZE, 0):
            raise OSError("mprotect")
        self.address = (base + size - self.bytes) // 16 * 16
        ctypes.memset(base, 0xFF, size)
        ctypes.memmove(self.address, view.ctypes.data, self.bytes)

    def read(self, kind: np.dtype[Any]) -> Any:
        return np.frombuffer(ctypes.string_at(self.address, self.bytes), kind)


def _without_assembly(text: str) -> str:
    """`text` without the functions that the header has others for; lines stay lines."""
    text = _MACRO.sub(lambda match: "\n" * match.group().count("\n"), text)
    text = _WORD.sub(_READ_WORD, text)
    parts, at = [], 0
    for match in _FUNCTION.finditer(text):
        depth, end = 0, text.index("{", match.end())
        while True:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                break
        parts += [text[at : match.start()], "\n" * text[match.start() : end].count("\n")]
        at = end
    return "".join([*parts, text[at:]])


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where stages are compiled, beside the fibers, compiled once, and the header, precompiled (g++
    looks for that there first)."""
    folder = tempfile.TemporaryDirectory(prefix="cuda-on-cpu-")
    _compile("-c", HERE / "cuda_on_cpu.cpp", "-o", f"{folder.name}/fibers.o")
    header = f"{folder.name}/cuda_on_cpu.h.gch"
    _compile("-x", "c++-header", HERE / "cuda_on_cpu.h", "-o", header)
    return folder


@functools.cache
def _library(text: str) -> ctypes.CDLL:
    path = Path(_folder().name) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.cpp"
    path.write_text(text, "ascii")
    _compile("-shared", path, f"{_folder().name}/fibers.o", "-o", f"{path}.so")
    return ctypes.CDLL(f"{path}.so")


def _compile(*words: str | Path) -> None:
    command = [compiler(), "-std=c++20", "-O1", "-w", "-mf16c", "-mfma", "-fPIC", f"-I{HERE}"]
    command += ["-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join(x for x in done.stderr.splitlines() if "error" in x)[:2000])
