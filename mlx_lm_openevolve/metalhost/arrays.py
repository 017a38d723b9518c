"""MLX and NumPy arrays as bytes, without copies where their layout allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

__all__ = ["FLOATS", "METAL_TYPES", "as_numpy", "dtype_name", "from_bytes", "metal_type"]

METAL_TYPES = {
    "bool": "bool",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "float32": "float",
}
FLOATS = ("float16", "bfloat16", "float32")


def dtype_name(dtype: Any) -> str:
    """`bfloat16` for mx.bfloat16, np.dtype("float16") -> `float16`, and so on."""
    name = str(dtype).split(".")[-1] if "mlx" in type(dtype).__module__ else str(np.dtype(dtype))
    if name == "bool_":
        name = "bool"
    if name not in METAL_TYPES:
        raise UsageError(
            f"metalhost takes no arrays of {name}: use one of {', '.join(METAL_TYPES)}"
        )
    return name


def metal_type(dtype: Any) -> str:
    """The name that MLX gives the type in Metal source."""
    return METAL_TYPES[dtype_name(dtype)]


def itemsize(name: str) -> int:
    """Bytes of one element."""
    return {"bool": 1, "bfloat16": 2}.get(name) or np.dtype(name).itemsize


def as_numpy(a: Any) -> tuple[NDArray[Any], str]:
    """A view of `a` with its strides, and its dtype's name. bfloat16 comes as uint16."""
    if isinstance(a, np.ndarray):
        name = dtype_name(a.dtype)
        return (a.view(np.uint16) if name == "bfloat16" else a), name
    if "mlx" not in type(a).__module__:
        raise UsageError(f"an input is a {type(a).__name__}, not an mx.array or np.ndarray")
    import mlx.core as mx

    name = dtype_name(a.dtype)
    view = a.view(mx.uint16) if name == "bfloat16" else a
    mx.eval(view)
    return np.array(view, copy=False), name


def from_bytes(data: NDArray[np.uint8], shape: tuple[int, ...], name: str) -> Any:
    """An mx.array that owns a copy of the bytes."""
    import mlx.core as mx

    if name == "bfloat16":
        return mx.array(data.view(np.uint16).reshape(shape)).view(mx.bfloat16)
    return mx.array(data.view(np.dtype(name)).reshape(shape))
