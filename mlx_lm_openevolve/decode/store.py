"""What a token stores in a quantised cache, in three launches where mlx-lm takes eight.

    QuantizedKVCache.update_and_fetch, one token -> quantize.metal: keys and values together
        -> two stores, of words and of numbers -> the cache's keys and values, views of them

mlx-lm quantises keys and values apart and stores six arrays. The bits are the same: the kernel is
tried against mx.quantize on this chip before it stores anything. Several tokens in one call, as
speculative decoding has them between single ones, are quantised by MLX and stored likewise. Whoever
puts other arrays into a cache does as ever, and the next token takes up what is there then; what is
written into the views themselves, `cache.keys[0][...] = x`, lasts until the next token.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..backends import Run
from ..errors import BackendError
from ..runtime.patch import MethodPatch
from . import launches
from .launches import TYPES, OwnKernel

__all__ = ["StorePatch"]

_BITS, _GROUPS = (2, 4, 8), (32, 64, 128)  # a word holds whole numbers, a simdgroup whole groups
_ROOM = 256  # tokens that a cache grows by, as mlx-lm's
_THREADS = 128
Pair = list[mx.array]  # keys and values [B, H, tokens, D]; or words and numbers, as they are stored


@dataclass(slots=True, eq=False)
class _Store:
    """What is stored of one cache, with the heads of keys before those of values: words [B, 2 H, N,
    W], and numbers [B, 4 H, N, G], scales before biases; keys, values: the views that the cache
    got, in a tuple or a list each, as `kinds` says: mx.quantize returns a list, and so it stays one
    where mlx-lm made the cache of a plain one. run: makes of a token's keys and values, of a shape
    and dtype each, what is stored."""

    run: Run
    device: mx.Device
    shape: tuple[int, int, int, int]
    dtype: mx.Dtype
    bits: int
    group: int
    kinds: tuple[type, type]
    words: mx.array
    numbers: mx.array
    keys: tuple[mx.array, ...] = ()
    values: tuple[mx.array, ...] = ()

    def serves(self, cache: Any, keys: mx.array, values: mx.array) -> bool:
        """Whether the cache is as this left it, and such keys and values are stored here."""
        shape = keys.shape
        if shape != self.shape:  # of one token, else of several
            batch, heads, _, size = self.shape
            if shape[:2] != (batch, heads) or shape[3:] != (size,) or not shape[2]:
                return False
        return (
            values.shape == shape
            and keys.dtype == values.dtype == self.dtype
            and _is(cache.keys, self.kinds[0], self.keys)
            and _is(cache.values, self.kinds[1], self.values)
            and cache.bits == self.bits
            and cache.group_size == self.group
            and mx.default_device() == self.device
        )

    def add(self, cache: Any, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Store keys and values; what update_and_fetch returns."""
        at, count = cache.offset, keys.shape[2]
        end = at + count
        words, numbers = (
            self.run([keys, values])
            if count == 1
            else _quantized([keys, values], self.bits, self.group)
        )
        if end > self.words.shape[2]:
            self.words, self.numbers = _longer(self.words, count), _longer(self.numbers, count)
        self.words[:, :, at:end] = words
        self.numbers[:, :, at:end] = numbers
        of_keys, of_values = mx.split(self.words[:, :, :end], 2, axis=1)
        scales, others, biases, rest = mx.split(self.numbers[:, :, :end], 4, axis=1)
        self.keys, self.values = (of_keys, scales, biases), (of_values, others, rest)
        cache.keys, cache.values = self.kinds[0](self.keys), self.kinds[1](self.values)
        cache.offset = end  # at last: an interrupt before stores nothing
        return cache.keys, cache.values


class StorePatch(MethodPatch):
    """QuantizedKVCache.update_and_fetch, replaced: a replacement of runtime/patch.py. What another
    library put in its place before is called for every token."""

    def __init__(self) -> None:
        # Not above: `run` loads this while mlx-lm loads its caches.
        from mlx_lm.models.cache import QuantizedKVCache

        super().__init__(QuantizedKVCache, "update_and_fetch", self._stores, guards=True)
        self._known: weakref.WeakKeyDictionary[Any, _Store] = weakref.WeakKeyDictionary()

    def restore(self) -> None:
        super().restore()
        self._known.clear()  # from now on mlx-lm writes into the views

    def _stores(self, original: Callable[..., Any]) -> Callable[..., Any]:
        stores, patch, cls = self._known, self, self._cls
        home = getattr(original, "__module__", "")
        alone = home == cls.__module__ and not hasattr(original, "__wrapped__")

        def update_and_fetch(self: Any, keys: Any, values: Any) -> Any:
            # Another's wrapper may hold what was restored.
            if not alone or type(self) is not cls or not patch.installed:
                return original(self, keys, values)
            store = stores.get(self)
            if store is None or not store.serves(self, keys, values):
                store = _taken_up(self, keys, values)
                if store is None:
                    stores.pop(self, None)
                    return original(self, keys, values)
                stores[self] = store
            return store.add(self, keys, values)

        return update_and_fetch


def _taken_up(cache: Any, keys: Any, values: Any) -> _Store | None:
    """A store of what a cache holds, for such keys and values; None where mlx-lm stores them."""
    backend, n = launches.backend(), cache.offset
    kinds = type(cache.keys), type(cache.values)
    if not backend or not {*kinds} <= {list, tuple}:
        return None
    if keys.shape != values.shape or keys.shape[2:3] != (1,) or keys.dtype != values.dtype:
        return None
    shape, bits, group = keys.shape, cache.bits, cache.group_size
    batch, heads, _, size = shape
    rows, width, groups = (batch, heads), size * bits // 32, size // group
    for held in (cache.keys, cache.values):
        ends = [(*part.shape[:2], part.shape[3]) for part in held]
        if ends != [(*rows, width), (*rows, groups), (*rows, groups)]:
            return None
        if held[1].dtype != keys.dtype or not 0 < n <= held[0].shape[2]:
            return None
    run = _kernel(backend, shape, keys.dtype, bits, group)
    if run is None:
        return None
    first, *others = zip(cache.keys, cache.values, strict=True)
    parts = first, [part for pair in others for part in pair]
    held = (mx.concatenate([part[:, :, :n] for part in some], axis=1) for some in parts)
    words, numbers = map(_longer, held)
    return _Store(run, mx.default_device(), shape, keys.dtype, bits, group, kinds, words, numbers)


def _is(kept: Any, kind: type, held: tuple[mx.array, ...]) -> bool:
    """Whether what a cache keeps is what it got; of a list items may have been replaced."""
    if kept is held:
        return True
    same = type(kept) is kind is list and len(kept) == len(held)
    return same and all(map(operator.is_, kept, held))


def _longer(array: mx.array, count: int = 1) -> mx.array:
    """With room for tokens to come."""
    room = (*array.shape[:2], -(-count // _ROOM) * _ROOM, array.shape[3])
    return mx.concatenate([array, mx.zeros(room, array.dtype)], axis=2)


def _quantized(pair: Pair, bits: int, group: int) -> Pair:
    """Words and numbers of keys and values, as MLX makes them."""
    words, *parts = mx.quantize(mx.concatenate(pair, axis=1), group_size=group, bits=bits)
    return [words, mx.concatenate(parts, axis=1)]


@functools.lru_cache(64)
def _kernel(
    backend: str, shape: tuple[int, int, int, int], dtype: mx.Dtype, bits: int, group: int
) -> Run | None:
    """quantize.metal for keys, and values, of a shape [B, H, 1, D]; None where it does not serve,
    or does not make the bits that mx.quantize makes."""
    batch, heads, _, size = shape
    if bits not in _BITS or group not in _GROUPS or size % group or dtype not in TYPES:
        return None
    width, groups = size * bits // 32, size // group
    outputs = {"words": (batch, 2 * heads, 1, width), "numbers": (batch, 4 * heads, 1, groups)}
    kernel = OwnKernel("quantize", ("keys", "values"), outputs, words=("words",))
    words = batch * 2 * heads * width
    constants = {"BITS": bits, "EACH": 32 // bits, "LANES": group * bits // 32, "WORDS": words}
    constants |= {"HK": heads, "D": size, "WIDTH": width, "GROUPS": groups}
    grid = -(-words // _THREADS) * _THREADS, 1
    try:
        run = kernel.on(backend, dtype, {}, constants, grid, _THREADS)
        return run if all(_same(run, pair, bits, group) for pair in _trials(shape, dtype)) else None
    except (BackendError, RuntimeError, ValueError):
        return None


def _trials(shape: tuple[int, ...], dtype: mx.Dtype) -> list[Pair]:
    """Keys and values: of a model's size, tiny, on the edges between two numbers, and none."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(2, *shape)) * by for by in (3.0, 1e-3)]
    whole = rng.integers(-8, 8, (2, *shape)) / 2
    kinds = (*drawn, whole, np.abs(drawn[0]), 0 * whole)
    return [[*mx.array(kind).astype(dtype)] for kind in kinds]


def _same(run: Run, pair: Pair, bits: int, group: int) -> bool:
    made, want = run(pair), _quantized(pair, bits, group)
    return all(mx.array_equal(a, b).item() for a, b in zip(made, want, strict=True))
