"""Where a case's arrays lie in memory: views into buffers, by axes and by what lies around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ...encoding import Array, Float, decode, download, encode, upload

__all__ = [
    *("DENSE", "KEYS", "NARROW", "Placing", "Packed", "Placed"),
    *("cut", "keys_layout", "mask_layout", "pack", "pack_signs", "query_layout"),
]

Four = tuple[int, int, int, int]

# How keys and values may lie, [B, Hkv, N, D]: as mlx-lm's cache hands them out; a window of it;
# whole; sequence by sequence; the elements of a row apart, column by column or every second one;
# rows or heads with others in between: rows no multiple of 16 bytes apart ("odd"), or multiples
# apart and all as far off one ("off").
KEYS = ("cache", "window", "whole", "sequences", "columns", "apart", "off", "odd", "heads")
NARROW = ("columns", "apart", "odd", "off")


@dataclass(frozen=True)
class Placing:
    """An array of four axes as a view into a buffer: `order` names the axes from the outermost in
    memory, `lead` and `tail` are what the buffer has of each axis before and behind the array,
    of whose last axis it has `step` times as much."""

    order: Four = (0, 1, 2, 3)
    lead: Four = (0, 0, 0, 0)
    tail: Four = (0, 0, 0, 0)
    step: int = 1

    def buffer(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the buffer of an array."""
        sizes = (*shape[:3], shape[3] * self.step)
        return tuple(self.lead[a] + sizes[a] + self.tail[a] for a in self.order)

    def view(self, buffer: Any, shape: tuple[int, ...]) -> Any:
        """The array of that shape in a buffer, of NumPy's or of MLX's."""
        turned = buffer.transpose(*(self.order.index(axis) for axis in range(4)))
        steps = (1, 1, 1, self.step)
        parts = zip(self.lead, shape, steps, strict=True)
        return turned[tuple(slice(first, first + n * step, step) for first, n, step in parts)]


DENSE = Placing()


@dataclass(frozen=True, eq=False)
class Placed:
    """An array of the last `axes` of a shape of four, with its buffer as `encode` stores it."""

    buffer: Array
    layout: Placing
    shape: tuple[int, ...]
    axes: int = 4

    @property
    def view(self) -> Array:
        """The array."""
        found: Array = self._last(self.layout.view(self.buffer, self.shape))
        return found

    def upload(self, dtype: str, held: list[mx.array]) -> mx.array:
        """The array on the device; its buffer is appended to `held`."""
        held.append(upload(self.buffer, dtype))
        found: mx.array = self._last(self.layout.view(held[-1], self.shape))
        return found

    def _last(self, array: Any) -> Any:
        return array[(0,) * (4 - self.axes)] if self.axes < 4 else array


def cut(x: Array, layout: Placing, around: Array, axes: int = 4) -> Placed:
    """An array of four axes laid out; `around`, one element or a buffer's, is what surrounds it."""
    shape = layout.buffer(x.shape)
    buffer = np.empty(shape, x.dtype)
    buffer[...] = around
    layout.view(buffer, x.shape)[...] = x
    return Placed(buffer, layout, x.shape, axes)


@dataclass(frozen=True, eq=False)
class Packed:
    """Quantised keys or values in NumPy: words uint32 [B, Hkv, N, D * bits / 32], scales and
    biases [B, Hkv, N, D / group] as `encode` stores them, all views into longer buffers."""

    placed: tuple[Placed, Placed, Placed]
    bits: int
    dtype: str

    @property
    def words(self) -> Array:
        return self.placed[0].view

    @property
    def scales(self) -> Array:
        return self.placed[1].view

    @property
    def biases(self) -> Array:
        return self.placed[2].view

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


def pack(x: Array, dtype: str, bits: int, group: int, layouts: Sequence[Placing]) -> Packed:
    """The quantisation by MLX of a stored array [B, Hkv, N, D]; words, scales and biases as
    `layouts` say, inside buffers of NaN scales."""
    parts = mx.quantize(upload(np.ascontiguousarray(x), dtype), group_size=group, bits=bits)
    mx.eval(parts)
    return _packed([download(part) for part in parts], dtype, bits, layouts)


def pack_signs(x: Array, dtype: str, bits: int, group: int, layouts: Sequence[Placing]) -> Packed:
    """The same of an array of +1 and -1, exactly, which MLX's quantisation is not: the numbers 0
    and 1 with a scale of 2 and a bias of -1."""
    numbers = np.zeros((*x.shape, bits), np.uint8)
    numbers[..., 0] = decode(x, dtype) > 0
    flat = numbers.reshape(*x.shape[:-1], -1)
    words = np.packbits(flat, axis=-1, bitorder="little").view(np.uint32)
    pairs = np.ones((*x.shape[:-1], x.shape[-1] // group), np.float32)
    return _packed([words, encode(2 * pairs, dtype), encode(-pairs, dtype)], dtype, bits, layouts)


def _packed(parts: Sequence[Array], dtype: str, bits: int, layouts: Sequence[Placing]) -> Packed:
    nan = encode(np.array([np.nan]), dtype)
    void = (np.array([0xFFFFFFFF], np.uint32), nan, nan)
    words, scales, biases = (
        cut(part, layout, around) for part, layout, around in zip(parts, layouts, void, strict=True)
    )
    return Packed((words, scales, biases), bits, dtype)


def keys_layout(rng: np.random.Generator, name: str) -> Placing:
    """One of KEYS, with what lies around it drawn."""
    lead, tail, few = (int(n) for n in rng.integers([1, 1, 1], [9, 9, 4]))
    if name == "whole":
        return DENSE
    if name == "cache":
        return Placing(tail=(0, 0, 8 * tail, 0))
    if name == "sequences":
        return Placing((0, 2, 1, 3), (0, 0, lead, 0), (0, 0, tail, 0))
    if name == "columns":
        return Placing((0, 1, 3, 2), (0, 0, lead, 0), (0, 0, tail, 0))
    if name == "apart":
        return Placing(lead=(0, 0, lead, 0), tail=(0, 0, tail, 0), step=2)
    if name == "odd":
        return Placing(tail=(0, 0, tail, 2 * few + 1))  # the first row is at a multiple
    if name == "off":
        return Placing(lead=(0, 0, lead, 2 * few + 1), tail=(0, 0, tail, 7 - 2 * few))
    if name == "heads":
        return Placing(lead=(0, few, lead, 0), tail=(0, 1, tail, 0))
    return Placing(lead=(0, 0, lead, 0), tail=(0, 0, tail, 0))


def query_layout(rng: np.random.Generator, name: str) -> Placing:
    """Queries [B, Hq, L, D]: "rows", as models make them, a transposed view of [B, L, Hq, D]; such
    a view into rows that hold more heads ("fused"), into longer sequences ("longer"), off every
    multiple of 16 bytes ("odd"), or of every second element ("apart"); or "whole"."""
    if name == "whole":
        return DENSE
    more, token = (int(n) for n in rng.integers([1, 1], [4, 4]))
    turned = (0, 2, 1, 3)
    if name == "fused":
        return Placing(turned, tail=(0, more, 0, 0))
    if name == "longer":
        return Placing(turned, lead=(0, 0, token, 0), tail=(0, 0, more, 0))
    if name == "odd":
        return Placing(turned, lead=(0, 0, 0, 2 * more + 1), tail=(0, 0, 0, 2))
    return Placing(turned, step=2 if name == "apart" else 1)


def mask_layout(rng: np.random.Generator, name: str) -> Placing:
    """A mask [B, Hq, L, N], each 1 where it is broadcast: "whole", a "slice" of a larger one,
    "turned", its keys apart, or "heads", row by row."""
    rows, lead, tail = (int(n) for n in rng.integers([1, 1, 1], [4, 9, 9]))
    if name == "slice":
        return Placing(lead=(0, 0, rows, lead), tail=(0, 0, 1, tail))
    if name == "turned":
        return Placing((0, 1, 3, 2), (0, 0, rows, 0), (0, 0, 1, 0))
    if name == "heads":
        return Placing((2, 0, 1, 3), (0, 0, 0, 0), (0, 1, 0, tail))
    return DENSE
