"""Compiled modules for MLX's CUDA backend, kept between processes.

MLX compiles a custom kernel anew in every process, behind headers that take NVRTC a second by
themselves, but before that it looks for the module in the folder where it keeps its own. So the
same text is compiled here, behind the few declarations that a launch needs, and put there. Nothing
depends on it: whatever is missing or goes wrong, MLX compiles as ever. Read off mlx 0.32.4,
mlx/backend/cuda/custom_kernel.cpp and jit_module.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from ..files import write_atomic

__all__ = [
    "PRELUDE",
    "compiled",
    "compiler",
    "keep",
    "kernel_text",
    "module_name",
    "options",
    "std_hash",
]

log = logging.getLogger("mlx_lm_openevolve")

_TYPES = {
    mx.bool_: "bool",
    mx.int32: "int32_t",
    mx.uint32: "uint32_t",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.float32: "float",
}

# What MLX puts before every custom kernel, and what is enough of it.
_MLX_PRELUDE = """
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

"""
PRELUDE = """
#include "mlx/backend/cuda/device/config.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/cstdint>
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
namespace cooperative_groups {}
namespace mlx::core::cu {
template <typename T> struct Axes {
  T at[MAX_NDIM];
  T& operator[](int i) { return at[i]; }
  const T& operator[](int i) const { return at[i]; }
  T* data() { return at; }
  const T* data() const { return at; }
};
using Shape = Axes<int32_t>;
using Strides = Axes<int64_t>;
}
"""

Named = Sequence[tuple[str, mx.Dtype]]


def keep(name: str, header: str, source: str, inputs: Named, outputs: Named) -> bool:
    """Put the module of a custom kernel where MLX will look for it, unless it is there.

    name, header, source: as mx.fast.cuda_kernel gets them, no template arguments; inputs (each of
    one axis or more) and outputs: (name, dtype). Returns whether MLX will find it.
    """
    try:
        function = f"custom_kernel_{name}"
        text = kernel_text(function, header, source, inputs, outputs)
        path = _folder() / f"{module_name(function, text)}.ptx"
        symbols = path.with_suffix(".txt")
        # Both: what tidies a temporary folder up may take one of them.
        if not (path.exists() and symbols.exists()):
            expression = f"mlx::core::cu::{function}"
            ours = text.replace(_MLX_PRELUDE, PRELUDE, 1)
            code, symbol = compiled(ours, expression, options(_architecture()))
            path.parent.mkdir(parents=True, exist_ok=True)
            # MLX reads the module and then its symbols: those come first.
            write_atomic(symbols, f"{expression}\t{symbol}\n".encode())
            write_atomic(path, code)
    except Exception as error:  # a compiler, a folder, a version that is not as it was
        log.debug("%s is left to MLX to compile: %s", name, error)
        return False
    return True


@functools.cache
def compiler() -> str:
    """What a module depends on beside its text, in a few characters; "" where none is kept."""
    try:
        major, minor = ctypes.c_int(), ctypes.c_int()
        if _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)):
            return ""
        chosen = " ".join(options(_architecture()))
        return f"NVRTC {major.value}.{minor.value} {chosen} {PRELUDE}"
    except Exception:  # no compiler, no headers, an MLX that is not as it was: MLX compiles
        return ""


def kernel_text(function: str, header: str, source: str, inputs: Named, outputs: Named) -> str:
    """The text that MLX makes of a custom kernel, byte for byte: its hash names the module."""
    parameters = []
    for name, dtype in inputs:
        parameters.append(f"const {_TYPES[dtype]}* {name}")
        for suffix, kind in (("shape", "Shape"), ("strides", "Strides"), ("ndim", "int")):
            if f"{name}_{suffix}" in source:
                parameters.append(f"const __grid_constant__ {kind} {name}_{suffix}")
    parameters += [f"{_TYPES[dtype]}* {name}" for name, dtype in outputs]
    listed = ",\n".join(f"    {parameter}" for parameter in parameters)
    return (
        f"{_MLX_PRELUDE}{header}"
        "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n"
        f"__global__ void {function}(\n{listed}) {{\n{source}\n"
        "}\n\n} // namespace mlx::core::cu\n"
    )


def module_name(function: str, text: str) -> str:
    """MLX's name for the module of a custom kernel."""
    return f"{function}_{std_hash(text.encode()):x}"


def std_hash(data: bytes) -> int:
    """std::hash<std::string> of libstdc++ on 64 bits: a MurmurHash64A."""
    mask, factor = (1 << 64) - 1, 0xC6A4A7935BD1E995

    def mixed(x: int) -> int:
        return x ^ (x >> 47)

    hashed = 0xC70F6907 ^ (len(data) * factor & mask)
    whole = len(data) & ~7
    for i in range(0, whole, 8):
        word = int.from_bytes(data[i : i + 8], "little")
        hashed = (hashed ^ (mixed(word * factor & mask) * factor & mask)) * factor & mask
    if rest := data[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * factor & mask
    return mixed(mixed(hashed) * factor & mask)


def _folder() -> Path:
    """Where MLX looks for compiled modules."""
    own = os.environ.get("MLX_PTX_CACHE_DIR")
    return Path(own) if own else Path(tempfile.gettempdir()) / "mlx" / version("mlx") / "ptx"


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """The NVRTC that MLX has loaded. Raises OSError."""
    for major in (13, 12):
        try:
            return ctypes.CDLL(f"libnvrtc.so.{major}")
        except OSError:
            continue
    raise OSError("no libnvrtc.so.13 or libnvrtc.so.12")


@functools.cache
def _architecture() -> str:
    """This GPU's, with what only it can do, as MLX names it to NVRTC."""
    number = str(mx.device_info(mx.gpu)["architecture"]).removeprefix("sm_")
    return f"sm_{number}a" if int(number) >= 90 else f"sm_{number}"


@functools.cache
def options(architecture: str) -> tuple[str, ...]:
    """NVRTC's, as MLX chooses them for an architecture and this installation. Raises OSError."""
    package = Path(mx.__file__).parent
    headers = package / "include"
    folders = [package.parent / "nvidia" / name / "include" for name in ("cu13", "cuda_runtime")]
    roots = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    folders += [Path(root) / "include" for root in roots if root]
    cuda = next((path for path in folders if (path / "cuda_bf16.h").exists()), None)
    if cuda is None or not headers.exists():
        raise OSError("no CUDA headers")
    return (
        "--device-as-default-execution-space",
        f"--gpu-architecture={architecture}",
        *(f"--include-path={path}" for path in (headers, headers / "cccl", cuda)),
    )


def compiled(text: str, expression: str, chosen: Sequence[str]) -> tuple[bytes, str]:
    """(cubin, symbol of the function that `expression` names), by NVRTC with the `chosen` options.
    Raises RuntimeError with the compiler's log, or OSError."""
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()

    def call(name: str, *arguments: object) -> None:
        if code := getattr(nvrtc, name)(*arguments):
            raise RuntimeError(f"{name} returned {code}")

    def sized(name: str) -> bytes:
        size = ctypes.c_size_t()
        call(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(name, program, buffer)
        return buffer.raw

    call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        call("nvrtcAddNameExpression", program, expression.encode())
        given = (ctypes.c_char_p * len(chosen))(*(option.encode() for option in chosen))
        if nvrtc.nvrtcCompileProgram(program, len(chosen), given):
            raise RuntimeError(sized("nvrtcGetProgramLog").decode(errors="replace"))
        symbol = ctypes.c_char_p()
        call("nvrtcGetLoweredName", program, expression.encode(), ctypes.byref(symbol))
        return sized("nvrtcGetCUBIN"), (symbol.value or b"").decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
