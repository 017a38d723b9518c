"""The product of a layer of quantised experts, replaced: each row of x times the matrix that its
index names, of mlx-lm's QuantizedSwitchLinear.

layer, x, indices -> the layer's weights, as at its last call -> shapes -> Route
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ...errors import BackendError, WorkloadError
from ..base import ON_CPU, Call, Route, Router
from .call import Weights, describe, kernel_of, new_route
from .workload import Workload

__all__ = ["joined", "wrap"]

_UINT32 = mx.uint32
_LAYER = ("mlx_lm.models.switch_layers", "QuantizedSwitchLinear")


def wrap(original: Callable[..., Any], router: Router) -> Callable[..., Any]:
    """A method that takes what QuantizedSwitchLinear.__call__ takes, serves what a kernel may serve
    and hands every other call to `original` untouched. See call.wrap, whose sister it is."""
    off, on_cpu = router.off, router.on_cpu
    layers: dict[int, Weights] = {}

    def product(self: Any, x: Any, indices: Any, sorted_indices: Any = False) -> Any:
        if off:
            return original(self, x, indices, sorted_indices)
        known: Weights | None
        route: Route | None
        key: Any = None
        try:
            # Indices of another dtype are refused, whatever their shape.
            key = (x.shape, indices.shape) if indices.dtype == _UINT32 else None
            known = layers[id(self)]
            if (
                known.weight is not self["weight"]
                or known.scales is not self["scales"]
                or self._training
            ):
                raise KeyError
            size, dtype, route = known.routes[key]
            if (size and size != x.itemsize) or (dtype is not None and not dtype == x.dtype):
                raise KeyError
        except (AttributeError, KeyError, TypeError):
            route = None
        if route is None or (route.call is not None and known and not known.unchanged(self)):
            cls = self.__class__
            ours = (cls.__module__, cls.__qualname__) == _LAYER
            if not ours or getattr(self, "_training", False):
                return original(self, x, indices, sorted_indices)
            known, route = new_route(router, layers, key, self, x, indices, sorted_indices)
        call = route.call
        if call is None or known is None:
            route.fallbacks += 1
            return original(self, x, indices, sorted_indices)
        if on_cpu():
            router.refuse(ON_CPU)
            return original(self, x, indices, sorted_indices)
        try:
            out = call(x, indices, known.weight, known.scales, known.biases)
            out = mx.reshape(out, (*key[1], 1, out.shape[-1]))  # 1 us less than out.reshape
        except (BackendError, ValueError):  # tracing
            route.fallbacks += 1
            return original(self, x, indices, sorted_indices)
        route.hits += 1
        return out + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else out

    def served(layer: Any, x: mx.array, indices: mx.array) -> Callable[..., mx.array] | None:
        """As call.wrap's."""
        key = (x.shape, indices.shape) if indices.dtype == _UINT32 else None
        call = kernel_of(router, layers, key, layer, x)
        return None if call is None else functools.partial(_product, call)

    def proven(layer: Any, x: mx.array, indices: mx.array, times: int) -> bool:
        """Whether a kernel may serve a layer of so many times as many experts, of which each row of
        x takes so many times as many."""
        described = None if router.off or router.on_cpu() else describe(layer, x, indices)
        wide = joined(described, times) if isinstance(described, Workload) else None
        return wide is not None and router.proven(wide)

    vars(product).update(served=served, proven=proven)
    return product


def joined(w: Workload, times: int) -> Workload | None:
    """The product of so many layers of experts as one; None for too many rows, or no experts."""
    try:
        wide = w.exact(length=times * w.length, experts=times * w.experts)
        return wide if w.experts else None
    except WorkloadError:
        return None


def _product(
    call: Call, layer: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False
) -> mx.array:
    out = call(x, indices, layer["weight"], layer["scales"], layer.get("biases"))
    out = out.reshape(*indices.shape, 1, out.shape[-1])
    return out + mx.expand_dims(layer["bias"][indices], -2) if "bias" in layer else out
