"""What of a layer one launch makes together, found while the layer is traced.

What a layer calls is watched, not what it is: sums, norms, views and rotations, as they come. The
first of two keeps its own result until the second shows that a kernel (fused.py) makes both, which
then takes its place; who read it before that has read the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from .fused import LEAST, STOCK, Heads, Rope, add_norm, norm_rope
from .known import CHANGES, Known
from .launches import TYPES
from .routing import Routing

__all__ = ["Fusing"]

_SWAPPED = ((0, 2, 1, 3), ((0, 2, 1, 3),), ([0, 2, 1, 3],))  # axes, as transpose takes them


class _Sum(NamedTuple):
    x: mx.array
    y: mx.array


class Fusing:
    """What one trace has called so far. `places`: what to put over what while it goes on, each a
    holder, a name and a function that is called with the original before its arguments."""

    def __init__(self) -> None:
        # Sums, and what heads are made of, first of all the place of a product's part in a whole.
        self._known = Known()
        self._turned: tuple[mx.array, Heads, Rope] | None = None
        self.routing = Routing()
        self.places: list[tuple[Any, str, Callable[..., Any]]] = [
            (mx.array, "__add__", self._add),
            (mx.array, "reshape", self._reshape),
            (mx.array, "transpose", self._transpose),
            (mx.array, "swapaxes", self._swapaxes),
            (mx.fast, "rms_norm", self._norm),
            (mx.fast, "rope", self._rope),
            *((mx.array, name, self._changed) for name in CHANGES),
            *self.routing.places,
        ]

    def part(self, part: mx.array, whole: mx.array, first: int) -> None:
        """Say that a product [B, 1, n] stands in the rows of a whole from a number on."""
        if part.ndim == 3 and part.shape[1] == 1 and part.dtype in TYPES:
            self._known.note(part, Heads(whole, first, 1, part.shape[2]))

    def _changed(self, original: Any, x: mx.array, *given: Any) -> Any:
        self._known.clear()
        self._turned = None
        return original(x, *given)

    def _add(self, original: Any, x: mx.array, y: Any) -> Any:
        out = original(x, y)
        if isinstance(y, mx.array) and x.shape == y.shape == out.shape and x.dtype == y.dtype:
            self._known.note(out, _Sum(x, y))
        return out

    def _reshape(self, original: Any, x: mx.array, *shape: Any, **named: Any) -> Any:
        out, heads = original(x, *shape, **named), self._known.of(x, Heads)
        if heads is not None and x.ndim == 3 and out.ndim == 4 and out.shape[:2] == x.shape[:2]:
            self._known.note(out, heads._replace(heads=out.shape[2], size=out.shape[3]))
        return out

    def _transpose(self, original: Any, x: mx.array, *axes: Any, **named: Any) -> Any:
        return self._view(original(x, *axes, **named), x, axes in _SWAPPED and not named)

    def _swapaxes(self, original: Any, x: mx.array, *axes: Any, **named: Any) -> Any:
        return self._view(original(x, *axes, **named), x, sorted(axes) == [1, 2] and not named)

    def _view(self, out: mx.array, x: mx.array, swapped: bool) -> mx.array:
        """Axes 1 and 2 of heads, of which one is 1 long: their numbers stay in their order."""
        heads = self._known.of(x, Heads)
        if heads is not None and swapped and x.ndim == 4:
            self._known.note(out, heads)
        return out

    def _norm(self, original: Any, *args: Any, **named: Any) -> Any:
        if named or len(args) != 3 or not _fits(*args):
            return original(*args, **named)
        x, weight, eps = args
        known = self._known.of(x, _Sum)
        if known is not None and x.ndim == 3 and x.shape[1] == 1:
            self._known.drop(x)
            both, normed = add_norm(*known, weight, eps)
            STOCK.put(x, ..., both)
            return normed
        out, heads = original(x, weight, eps), self._known.of(x, Heads)
        if heads is not None and heads.norm is None and x.ndim == 4:
            self._known.note(out, heads._replace(norm=(weight, eps)))
        return out

    def _rope(self, original: Any, a: mx.array, dims: int, **named: Any) -> Any:
        out, heads = original(a, dims, **named), self._known.of(a, Heads)
        first, self._turned = self._turned, None
        offset = named.get("offset")
        if named.keys() - {*Rope._fields} or not isinstance(offset, mx.array) or heads is None:
            return out
        base, freqs = named.get("base"), named.get("freqs")
        rope = Rope(dims, named["traditional"], base, named["scale"], offset, freqs)
        if not _turns(a, rope):
            return out
        if first is None or not (first[2].like(rope) and _beside(first[1], heads)):
            self._turned = out, heads, rope
            return out
        q, k = norm_rope(first[1], heads, rope)
        STOCK.put(first[0], ..., q)
        return k


def _fits(x: Any, weight: Any, eps: Any) -> bool:
    if not (isinstance(x, mx.array) and isinstance(weight, mx.array) and type(eps) is float):
        return False
    return x.dtype in TYPES and x.dtype == weight.dtype and weight.size >= LEAST


def _turns(x: mx.array, rope: Rope) -> bool:
    if x.ndim != 4 or x.shape[2] != 1 or x.dtype not in TYPES or x.shape[3] < LEAST:
        return False
    numbers = type(rope.scale) in (int, float) and type(rope.base) in (int, float, type(None))
    offsets = rope.offset.shape in ((), (x.shape[0],))
    freqs = rope.freqs is None or rope.freqs.shape == (rope.dims // 2,)
    return numbers and offsets and freqs and rope.dims % 2 == 0 < rope.dims <= x.shape[3]


def _beside(q: Heads, k: Heads) -> bool:
    alike = (q.norm is None) == (k.norm is None)
    return alike and q.whole is k.whole and q.size == k.size
