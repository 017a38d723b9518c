"""What a layer with experts does around their products, found while it is traced.

softmax -> argpartition -> the k largest -> take_along_axis -> over their sum: route of fused.py
(what experts returned * scores).sum: mix of fused.py
rows put in the order of their experts, and back: left out, where kernels find them (UNSORTED)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models import switch_layers

from .fused import STOCK, Routed, mix, route
from .known import CHANGES, Known
from .launches import TYPES

__all__ = ["UNSORTED", "Routing"]

_MOST = 1024  # experts: a thread each
Run = Callable[..., Any]


class _Softmax(NamedTuple):
    of: mx.array
    scores: mx.array
    negative: bool = False


class _Parted(NamedTuple):
    """By argpartition; part: where its k largest are."""

    softmax: _Softmax
    k: int
    part: slice


class _Chosen(NamedTuple):
    """Indices of experts."""

    softmax: _Softmax
    routed: Routed


class _Scores(NamedTuple):
    """Of a token's experts; shares: over their sum."""

    shares: mx.array


class _Total(NamedTuple):
    """The scores' sum."""

    scores: mx.array
    shares: mx.array


class _Product(NamedTuple):
    y: mx.array
    scores: mx.array


class Routing:
    """What one trace has called so far. places: as Fusing's."""

    def __init__(self) -> None:
        self._known = Known()
        self.places: list[tuple[Any, str, Run]] = [
            (mx, "softmax", self._softmax),
            (mx, "argpartition", self._argpartition),
            (mx, "stop_gradient", self._stop_gradient),
            (mx, "take_along_axis", self._take_along_axis),
            (mx, "sum", self._sum),
            (mx.array, "sum", self._sum),
            (mx.array, "__neg__", self._negated),
            (mx.array, "__getitem__", self._part),
            (mx.array, "__mul__", self._times),
            (mx.array, "__truediv__", self._over),
            (mx.array, "__itruediv__", self._over_in_place),
            *((mx.array, name, self._changed) for name in CHANGES if name != "__itruediv__"),
        ]

    def _changed(self, original: Run, x: mx.array, *given: Any) -> Any:
        self._known.clear()
        return original(x, *given)

    def _softmax(self, original: Run, x: mx.array, *args: Any, **named: Any) -> Any:
        out = original(x, *args, **named)
        axis, precise = _read(args, named, axis=None, precise=False)
        exact = x.dtype == mx.float32 or (precise is True and x.dtype in TYPES)
        if exact and axis in (-1, x.ndim - 1) and x.shape[-1] <= _MOST:
            self._known.note(out, _Softmax(x, out))
        return out

    def _negated(self, original: Run, x: mx.array) -> Any:
        out, softmax = original(x), self._known.of(x, _Softmax)
        if softmax is not None and not softmax.negative:
            self._known.note(out, softmax._replace(negative=True))
        return out

    def _argpartition(self, original: Run, a: mx.array, *args: Any, **named: Any) -> Any:
        out, softmax = original(a, *args, **named), self._known.of(a, _Softmax)
        kth, axis = _read(args, named, kth=None, axis=-1)
        if softmax is not None and axis in (-1, a.ndim - 1):
            # Of what was negated the largest are the first.
            if softmax.negative and kth >= 0:
                self._known.note(out, _Parted(softmax, kth + 1, slice(kth + 1)))
            elif not softmax.negative and kth < 0:
                self._known.note(out, _Parted(softmax, -kth, slice(kth, None)))
        return out

    def _part(self, original: Run, x: mx.array, key: Any) -> Any:
        parted = self._known.of(x, _Parted)
        if parted is None or type(key) is not tuple or key != (..., parted.part):
            return original(x, key)
        routed = route(parted.softmax.of, parted.k, parted.softmax.negative)
        self._known.note(routed.indices, _Chosen(parted.softmax, routed))
        return routed.indices

    def _stop_gradient(self, original: Run, x: mx.array, *args: Any, **named: Any) -> Any:
        out, chosen = original(x, *args, **named), self._known.of(x, _Chosen)
        if chosen is not None:
            self._known.note(out, chosen)
        return out

    def _take_along_axis(
        self, original: Run, a: mx.array, indices: mx.array, *args: Any, **named: Any
    ) -> Any:
        chosen = self._known.of(indices, _Chosen)
        (axis,) = _read(args, named, axis=None)
        if chosen is None or a is not chosen.softmax.scores or axis not in (-1, a.ndim - 1):
            return original(a, indices, *args, **named)
        scores = _own(chosen.routed.scores)
        self._known.note(scores, _Scores(chosen.routed.shares))
        return scores

    def of_both(self, indices: mx.array, experts: int) -> mx.array | None:
        """Indices [.., k], and then the same plus so many experts, where a launch has made both."""
        chosen = self._known.of(indices, _Chosen)
        known = chosen is not None and chosen.softmax.of.shape[-1] == experts
        return chosen.routed.twice if chosen is not None and known else None

    def _sum(self, original: Run, x: mx.array, *args: Any, **named: Any) -> Any:
        axis, keepdims = _read(args, named, axis=None, keepdims=False)
        product, scores = self._known.of(x, _Product), self._known.of(x, _Scores)
        if product is not None and axis in (-2, x.ndim - 2) and not keepdims:
            return mix(*product)
        out = original(x, *args, **named)
        if scores is not None and axis in (-1, x.ndim - 1) and keepdims:
            self._known.note(out, _Total(x, scores.shares))
        return out

    def _over(self, original: Run, x: mx.array, y: Any) -> Any:
        total = self._known.of(y, _Total)
        if total is None or total.scores is not x:
            return original(x, y)
        return _own(total.shares)

    def _over_in_place(self, original: Run, x: mx.array, y: Any) -> Any:
        total = self._known.of(y, _Total)
        original(x, y)
        if total is None or total.scores is not x:
            self._known.clear()
            return x
        self._known.clear(but=_Chosen)  # indices are not made of scores
        STOCK.put(x, ..., total.shares)
        return x

    def _times(self, original: Run, x: mx.array, y: Any) -> Any:
        out = original(x, y)
        alike = isinstance(y, mx.array) and x.dtype == y.dtype and x.dtype in TYPES
        if alike and x.ndim > 2 and y.shape == (*x.shape[:-1], 1) != x.shape:
            self._known.note(out, _Product(x, y))
        return out


def _own(array: mx.array) -> mx.array:
    """The same for one who may change it in place."""
    own: mx.array = STOCK.stop_gradient(array)
    return own


def _read(args: tuple[Any, ...], named: dict[str, Any], **defaults: Any) -> tuple[Any, ...]:
    """Arguments by position or name."""
    given = dict(zip(defaults, args, strict=False))
    return tuple((defaults | given | named)[name] for name in defaults)


def _as_they_come(_: Run, x: mx.array, indices: mx.array) -> tuple[mx.array, mx.array, None]:
    return x, indices, None


def _nothing_to_undo(original: Run, x: mx.array, order: Any, *shape: Any) -> mx.array:
    return x if order is None else original(x, order, *shape)


# For products that find by themselves which rows have an expert in common.
UNSORTED: list[tuple[Any, str, Run]] = [
    (vars(switch_layers), "_gather_sort", _as_they_come),
    (vars(switch_layers), "_scatter_unsort", _nothing_to_undo),
]
