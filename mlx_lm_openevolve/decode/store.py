"""What a token stores in a quantised cache, in half the launches that mlx-lm takes.

    QuantizedKVCache.update_and_fetch, one token -> quantize.metal: keys and values together
        -> three stores, of words, scales and biases -> the cache's keys and values, views of them

mlx-lm quantises keys and values apart and stores six arrays. The bits are the same: the kernel is
tried against mx.quantize on this chip before it stores anything. Whoever puts other arrays into a
cache, or stores several tokens, does as ever, and the next token takes up what is there then.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import QuantizedKVCache

from ..backends import Run
from ..errors import BackendError
from ..runtime.patch import MethodPatch
from . import launches
from .launches import TYPES, Source

__all__ = ["StorePatch"]

_BITS, _GROUPS = (2, 4, 8), (32, 64, 128)  # a word holds whole numbers, a simdgroup whole groups
_ROOM = 256  # tokens that a cache grows by, as mlx-lm's
_THREADS = 128

Parts = tuple[mx.array, ...]  # words, scales, biases


class _Whole(NamedTuple):
    """What a cache holds, [B, 2 H, N, ...], the keys' heads first, and the views that it got."""

    parts: Parts
    keys: Parts
    values: Parts


class StorePatch(MethodPatch):
    """QuantizedKVCache.update_and_fetch, replaced: a replacement of runtime/patch.py."""

    def __init__(self) -> None:
        super().__init__(QuantizedKVCache, "update_and_fetch", self._stores, guards=True)
        self._wholes: weakref.WeakKeyDictionary[Any, _Whole] = weakref.WeakKeyDictionary()

    def restore(self) -> None:
        super().restore()
        self._wholes.clear()  # from now on mlx-lm writes into the views

    def _stores(self, original: Callable[..., Any]) -> Callable[..., Any]:
        wholes = self._wholes

        def update_and_fetch(self: Any, keys: Any, values: Any) -> Any:
            made = _quantised(self, keys, values) if type(self) is QuantizedKVCache else None
            if made is not None:
                whole = wholes.get(self)
                if whole is None or whole.keys is not self.keys or whole.values is not self.values:
                    whole = _taken_up(self, made)
                if whole is not None:
                    whole = wholes[self] = _stored(self, whole.parts, made)
                    return whole.keys, whole.values
            wholes.pop(self, None)
            return original(self, keys, values)

        return update_and_fetch


def _quantised(cache: Any, keys: Any, values: Any) -> Parts | None:
    """A token's keys and values as the cache is to hold them, None where that is mlx-lm's to do."""
    backend = launches.backend()
    if not backend or cache.keys is None or not 0 < cache.offset <= cache.keys[0].shape[2]:
        return None
    if keys.shape != values.shape or keys.shape[2:3] != (1,) or keys.dtype != values.dtype:
        return None
    run = _kernel(backend, keys.shape, keys.dtype, cache.bits, cache.group_size)
    return tuple(run([keys, values])) if run is not None else None


def _taken_up(cache: Any, made: Parts) -> _Whole | None:
    """What a cache holds, keys and values together; None where that is no place for `made`."""
    for held in (cache.keys, cache.values):
        for part, new in zip(held, made, strict=True):
            like = part.shape[0], 2 * part.shape[1], part.shape[3], part.dtype
            if like != (*new.shape[:2], new.shape[3], new.dtype):
                return None
    n, pairs = cache.offset, zip(cache.keys, cache.values, strict=True)
    parts = tuple(mx.concatenate([k[:, :, :n], v[:, :, :n]], axis=1) for k, v in pairs)
    return _Whole(parts, cache.keys, cache.values)


def _stored(cache: Any, parts: Parts, made: Parts) -> _Whole:
    at = cache.offset
    if at == parts[0].shape[2]:
        room = (mx.zeros((*p.shape[:2], _ROOM, p.shape[3]), p.dtype) for p in parts)
        parts = tuple(mx.concatenate([*both], axis=2) for both in zip(parts, room, strict=True))
    for part, new in zip(parts, made, strict=True):
        part[:, :, at : at + 1] = new
    cache.offset = at + 1
    held = (mx.split(part[:, :, : at + 1], 2, axis=1) for part in parts)
    cache.keys, cache.values = zip(*held, strict=True)
    return _Whole(parts, cache.keys, cache.values)


@functools.lru_cache(64)
def _kernel(
    backend: str, shape: tuple[int, int, int, int], dtype: mx.Dtype, bits: int, group: int
) -> Run | None:
    """quantize.metal for keys, and values, of a shape [B, H, 1, D]; None where it does not serve,
    or does not make the bits that mx.quantize makes."""
    batch, heads, _, size = shape
    if bits not in _BITS or group not in _GROUPS or size % group or dtype not in TYPES:
        return None
    width, of_both = size * bits // 32, (batch, 2 * heads, 1)
    groups = (*of_both, size // group)
    outputs: dict[str, tuple[int, ...]] = {
        "words": (*of_both, width),
        "scales": groups,
        "biases": groups,
    }
    source = Source("quantize", ("keys", "values"), outputs, words=("words",))
    words = batch * 2 * heads * width
    numbers = {"BITS": bits, "EACH": 32 // bits, "LANES": group * bits // 32}
    numbers |= {"HK": heads, "D": size, "WIDTH": width, "WORDS": words}
    grid = -(-words // _THREADS) * _THREADS, 1
    try:
        run = source.on(backend, dtype, {}, numbers, grid, _THREADS)
        return run if all(_same(run, pair, bits, group) for pair in _trials(shape, dtype)) else None
    except (BackendError, RuntimeError, ValueError):
        return None


def _trials(shape: tuple[int, ...], dtype: mx.Dtype) -> list[list[mx.array]]:
    """Keys and values: of a model's size, tiny, on the edges between two numbers, and none."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(2, *shape)) * by for by in (3.0, 1e-3)]
    whole = rng.integers(-8, 8, (2, *shape)) / 2
    kinds = (*drawn, whole, np.abs(drawn[0]), 0 * whole)
    return [[*mx.array(kind).astype(dtype)] for kind in kinds]


def _same(run: Run, pair: list[mx.array], bits: int, group: int) -> bool:
    both = mx.quantize(mx.concatenate(pair, axis=1), group_size=group, bits=bits)
    return all(mx.array_equal(a, b).item() for a, b in zip(run(pair), both, strict=True))
