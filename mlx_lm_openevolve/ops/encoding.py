"""Numbers as arrays store them, in NumPy: floats, and bfloat16 as its bits."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

__all__ = [
    *("Array", "Bool", "Float"),
    *("decode", "download", "encode", "lowest", "smallest", "upload"),
]

Array = npt.NDArray[np.generic]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def encode(x: Array, dtype: str) -> Array:
    """`x` rounded to a dtype as stored: bfloat16 as its 16 bits (NumPy has no such type)."""
    x = np.ascontiguousarray(x, np.float32)
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(np.float16)
    bits = x.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def decode(x: Array, dtype: str) -> Float:
    """The float64 values of an array as `encode` stores it."""
    if dtype == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def upload(x: Array, dtype: str) -> mx.array:
    array = mx.array(x)
    return array.view(mx.bfloat16) if dtype == "bfloat16" and x.dtype == np.uint16 else array


def download(x: mx.array) -> Array:
    """An array as `encode` stores it."""
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)


def lowest(dtype: str) -> float:
    """The most negative number of a dtype: what mlx-lm's additive masks hold where they mask."""
    return {"float16": -65504.0, "bfloat16": -3.3895313892515355e38}.get(
        dtype, float(np.finfo(np.float32).min)
    )


def smallest(dtype: str) -> float:
    """Below this a dtype's numbers lose precision, and a chip may flush them to zero: errors are
    measured in units of no less."""
    return 16 * float(np.finfo(np.float16 if dtype == "float16" else np.float32).tiny)
