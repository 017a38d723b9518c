"""Numbers as a cache stores them, in NumPy: floats, bfloat16 as its bits, and quantised words."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

__all__ = [
    *("LEAD", "TAIL", "Array", "Bool", "Float", "Packed"),
    *("decode", "download", "encode", "lowest", "pack", "smallest", "upload"),
]

Array = npt.NDArray[np.generic]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

# A KV cache hands over a slice of a longer buffer: rows before and after it that must not be read.
LEAD, TAIL = 3, 5


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


@dataclass(frozen=True, eq=False)
class Packed:
    """Quantised keys or values in NumPy: words uint32 [B, Hkv, N, D * bits / 32], scales and
    biases [B, Hkv, N, D / group] as `encode` stores them, all views into longer buffers."""

    words: Array
    scales: Array
    biases: Array
    bits: int
    dtype: str

    def decode(self, batch: int, head: int) -> Float:
        """The float64 values [N, D] of one KV head: number * scale + bias. The numbers follow
        each other in the words' little-endian bytes, whatever their bits."""
        words = np.ascontiguousarray(self.words[batch, head])
        bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
        numbers = bits.reshape(len(words), -1, self.bits) @ (1.0 * (1 << np.arange(self.bits)))
        scales, biases = (
            decode(part[batch, head], self.dtype)[:, :, None] for part in (self.scales, self.biases)
        )
        grouped = numbers.reshape(*scales.shape[:2], -1)
        rows: Float = (grouped * scales + biases).reshape(len(words), -1)
        return rows

    def steps(self, batch: int, head: int) -> Float:
        """What one more in a number means, for every element [N, D] of one KV head."""
        scales = np.abs(decode(self.scales[batch, head], self.dtype))
        width = self.words.shape[-1] * 32 // self.bits
        steps: Float = scales.repeat(width // scales.shape[-1], -1)
        return steps


def pack(x: Array, dtype: str, bits: int, group: int, aligned: bool = False) -> Packed:
    """The quantisation by MLX of a stored array [B, Hkv, N, D], inside buffers of NaN scales.

    aligned: every head starts at a multiple of 16 bytes, as in mlx-lm's caches, which the fast
    paths of kernels are for; else at any address."""
    lead, tail = (8, TAIL + -(8 + x.shape[2] + TAIL) % 8) if aligned else (LEAD, TAIL)
    parts = mx.quantize(upload(np.ascontiguousarray(x), dtype), group_size=group, bits=bits)
    mx.eval(parts)
    held = []
    for part in parts:
        plain = np.array(part.view(mx.uint16) if part.dtype == mx.bfloat16 else part)
        shape = (*plain.shape[:2], lead + plain.shape[2] + tail, plain.shape[3])
        void = (
            np.uint32(0xFFFFFFFF)
            if part.dtype == mx.uint32
            else encode(np.array([np.nan]), dtype)[0]
        )
        buffer = np.full(shape, void, plain.dtype)
        buffer[:, :, lead:-tail] = plain
        held.append(buffer[:, :, lead:-tail])
    return Packed(held[0], held[1], held[2], bits, dtype)
