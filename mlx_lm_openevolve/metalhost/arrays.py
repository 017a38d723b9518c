"""MLX and NumPy arrays as bytes, without copies where their layout allows it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

__all__ = [
    "FLOATS",
    "METAL_TYPES",
    "as_numpy",
    "dtype_name",
    "filled",
    "metal_type",
    "misalignment",
    "to_mlx",
]

METAL_TYPES = {  # by the names that MLX gives them in Metal source
    "bool": "bool",
    **{f"{u}int{n}": f"{u}int{n}_t" for u in ("u", "") for n in (8, 16, 32, 64)},
    "float16": "float16_t",
    "bfloat16": "bfloat16_t",
    "float32": "float",
}
ALIGNMENT = 16  # bytes: the most that a type of Metal asks for, but for vectors of long
FLOATS = ("float16", "bfloat16", "float32")


def dtype_name(dtype: Any) -> str:
    """`bfloat16` for mx.bfloat16, np.dtype("float16") -> `float16`, and so on."""
    name = str(dtype).split(".")[-1] if "mlx" in type(dtype).__module__ else str(np.dtype(dtype))
    name = "bool" if name == "bool_" else name
    if name not in METAL_TYPES:
        choices = ", ".join(METAL_TYPES)
        raise UsageError(f"metalhost takes no arrays of {name}: use one of {choices}")
    return name


def metal_type(dtype: Any) -> str:
    """The name that MLX gives the type in Metal source."""
    return METAL_TYPES[dtype_name(dtype)]


def as_numpy(a: Any) -> tuple[NDArray[Any], str]:
    """A view of `a` with its strides, and its dtype's name. bfloat16 comes as uint16, a number of
    Python or NumPy as MLX's array of it."""
    if isinstance(a, np.ndarray):
        name = dtype_name(a.dtype)
        return (a.view(np.uint16) if name == "bfloat16" else a), name
    number = isinstance(a, (int, float, complex, np.generic))
    if not number and "mlx" not in type(a).__module__:
        message = f"an input is a {type(a).__name__}, not an mx.array, np.ndarray or number"
        raise UsageError(message)
    import mlx.core as mx

    try:
        a = mx.array(a) if number else a
    except (RuntimeError, ValueError):
        raise UsageError(f"MLX has no number {a}") from None
    name = dtype_name(a.dtype)
    view = a.view(mx.uint16) if name == "bfloat16" else a
    mx.eval(view)
    return np.array(view, copy=False), name


def misalignment(a: NDArray[Any], low: int = 0) -> int:
    """How far behind a 16-byte boundary the byte at `low` from the first element lies on a GPU,
    where every buffer begins on one: a slice keeps its distance from its buffer's beginning."""
    owner: Any = a
    while isinstance(owner, np.ndarray):
        owner = owner.base
    begin = 0 if owner is None else _mlx_begin()  # NumPy's own memory, or MLX's
    return (a.ctypes.data + low - begin) % ALIGNMENT


@functools.cache
def _mlx_begin() -> int:
    """How far behind a 16-byte boundary MLX's buffers begin on this machine. MLX tells no array's
    offset in its buffer; on a CPU it puts a buffer's size, 8 bytes, in front of its elements."""
    import mlx.core as mx

    whole = mx.array([0] * 64)
    mx.eval(whole)
    return int(np.array(whole, copy=False).ctypes.data) % ALIGNMENT


def filled(shape: tuple[int, ...], dtype: str, value: float | None) -> NDArray[Any]:
    """An array of one value (None: of any), as `as_numpy` would give it."""
    if value is None:
        return np.zeros(shape, np.uint16 if dtype == "bfloat16" else dtype)
    if dtype != "bfloat16":
        return np.full(shape, value, dtype)
    import mlx.core as mx

    return as_numpy(mx.full(shape, value, mx.bfloat16))[0]


def to_mlx(data: NDArray[Any], dtype: str) -> Any:
    """An mx.array with a copy of what `as_numpy` gives."""
    import mlx.core as mx

    return mx.array(data).view(mx.bfloat16) if dtype == "bfloat16" else mx.array(data)
