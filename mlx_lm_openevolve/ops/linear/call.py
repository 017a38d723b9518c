"""The product of a quantised layer, replaced: what a call is, and the fast way to its route.

layer, x -> the layer's weights, as at its last call -> shape of x -> Route -> kernel | original
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx.nn.layers import quantized as nn

from ...errors import BackendError, WorkloadError
from ..base import ON_CPU, Call, Route, Router, with_derivatives_of
from .workload import MODES, MOST_EXPERT_ROWS, MOST_ROWS, Workload

__all__ = [
    *("MAX_SHAPES", "SORTED", "Weights", "arguments", "describe", "differentiable", "in_float32"),
    *("kernel_of", "new_route", "stock", "trial", "wrap"),
]

MAX_SHAPES = 256  # of x, that a layer's routes are kept for
SORTED = 64  # rows from which on mlx-lm sorts them by expert
_LAYERS = (nn.QuantizedLinear, nn.QuantizedEmbedding)
_TYPES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float32"}


class Weights:
    """What a layer held when its routes were decided, and these by shape of x (with experts, of x
    and of indices): (bytes of an element of x, its dtype, route), nought or None where any will do.
    """

    __slots__ = (
        *("_alive", "_contiguous", "biases", "bits", "group", "mode", "originals", "routes"),
        *("scales", "sizes", "weight"),
    )

    def __init__(self, layer: Any, died: Callable[[Any], None]) -> None:
        # Not `weakref.finalize`: that would hold what is held here beyond the patch.
        self._alive = weakref.ref(layer, died)
        self.weight, self.scales, self.biases = (
            layer["weight"],
            layer["scales"],
            layer.get("biases"),
        )
        self.bits, self.group, self.mode = layer.bits, layer.group_size, layer.mode
        self.sizes = self.scales.nbytes, 0 if self.biases is None else self.biases.nbytes
        self.routes: dict[Any, tuple[int, mx.Dtype | None, Route]] = {}
        self.originals: dict[int, Route] = {}  # where any will do, by the size of x
        self._contiguous: bool | None = None

    def of(self, layer: Any) -> bool:
        """Whether the layer holds this still."""
        return (
            self.weight is layer["weight"]
            and self.scales is layer["scales"]
            and self.unchanged(layer)
        )

    def unchanged(self, layer: Any) -> bool:
        """Whether a layer that holds the same weight and scales is as it was. `scales *= x` changes
        an array in place, into another dtype: its size in bytes tells."""
        biases = self.biases
        scales, shifts = self.sizes
        return (
            biases is layer.get("biases")
            and self.scales.nbytes == scales
            and (biases is None or biases.nbytes == shifts)
            and self.bits is layer.bits
            and self.group is layer.group_size
            and self.mode is layer.mode
        )

    def contiguous(self) -> bool:
        """Whether the arrays lie row by row; what is not computed yet is computed."""
        if self._contiguous is None:
            arrays = (self.weight, self.scales, self.biases)
            self._contiguous = all(_contiguous(x) for x in arrays if x is not None)
        return self._contiguous


def wrap(original: Callable[..., Any], router: Router) -> Callable[..., Any]:
    """A method that takes what QuantizedLinear.__call__ or QuantizedEmbedding.as_linear takes,
    serves what a kernel may serve and hands every other call to `original` untouched.

    A model calls it some 200 times a token. So a call that falls back is asked for its weights and
    the size of x alone, and one that a kernel serves for all that a route depends on."""
    off, on_cpu = router.off, router.on_cpu
    # By its id, while it lives: a layer that may be served is of one of _LAYERS, exactly.
    layers: dict[int, Weights] = {}

    def product(self: Any, x: Any) -> Any:
        known: Weights | None
        route: Route | None = None
        by_size: Route | None
        shape: Any = None
        try:
            known = layers[id(self)]
            if known.weight is not self["weight"]:
                raise KeyError
            by_size = known.originals.get(x.size)
            if by_size is None:
                shape = x.shape
                if known.scales is not self["scales"] or self._training:
                    raise KeyError
                size, dtype, route = known.routes[shape]
                if (size and size != x.itemsize) or (dtype is not None and not dtype == x.dtype):
                    raise KeyError
        except (AttributeError, KeyError, TypeError):
            route = by_size = None
        if by_size is not None:
            by_size.fallbacks += 1
            return original(self, x)
        if off:
            return original(self, x)
        if route is None:
            if self.__class__ not in _LAYERS or getattr(self, "_training", False):
                return original(self, x)
            shape = getattr(x, "shape", None)
            known, route = new_route(router, layers, shape, self, x)
        elif route.call is not None and known is not None and not known.unchanged(self):
            known, route = new_route(router, layers, shape, self, x)
        call = route.call
        if call is None or known is None:
            route.fallbacks += 1
            return original(self, x)
        if on_cpu():
            router.refuse(ON_CPU)
            return original(self, x)
        try:
            if len(shape) == 3:
                out = call(x, known.weight, known.scales, known.biases)
            else:
                given = x.reshape(1, -1, shape[-1])
                out = call(given, known.weight, known.scales, known.biases)
                out = out.reshape(*shape[:-1], out.shape[-1])
        except (BackendError, ValueError):  # tracing
            route.fallbacks += 1
            return original(self, x)
        route.hits += 1
        # `as_linear` adds none.
        biased = "bias" in self and self.__class__ is nn.QuantizedLinear
        return out + self["bias"] if biased else out

    def served(layer: Any, x: mx.array) -> Callable[..., mx.array] | None:
        """For a layer's call with this x that a kernel serves by now: the layer's product, of any
        layer whose weights are as these, traced or not. None where the original serves it."""
        call = kernel_of(router, layers, x.shape, layer, x)
        return None if call is None else functools.partial(_product, call)

    vars(product).update(served=served)
    return product


def kernel_of(
    router: Router, layers: Mapping[int, Weights], key: Any, layer: Any, x: mx.array
) -> Call | None:
    """What serves a layer's call under `key` by now; None where that is the original."""
    known = layers.get(id(layer))
    if known is None or router.off or not known.of(layer) or router.on_cpu():
        return None
    _, dtype, route = known.routes.get(key, (0, None, None))
    return route.call if route is not None and dtype is not None and dtype == x.dtype else None


def _product(call: Call, layer: Any, x: mx.array) -> mx.array:
    given = x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1])
    out = call(given, layer["weight"], layer["scales"], layer.get("biases"))
    out = out if x.ndim == 3 else out.reshape(*x.shape[:-1], out.shape[-1])
    return out + layer["bias"] if "bias" in layer else out


def new_route(
    router: Router, layers: dict[int, Weights], key: Any, layer: Any, x: Any, *routing: Any
) -> tuple[Weights | None, Route]:
    """What a layer holds now, and its route for shapes of x, and of the routing, that are new to it
    under `key`."""
    described = _described(layer, x, *routing)
    try:
        known = layers.get(id(layer))
        again = known is not None and known.of(layer)
        if known is None or not again:
            known = _remember(layers, layer)
        if router.met is not None:
            router.met(id(layer), _layout(described, layer, x, *routing), again)
    except (AttributeError, KeyError, TypeError):  # none of mlx.nn's
        return None, router.route("no quantised layer", "no quantised layer", ())
    if router.computes and not isinstance(described, str) and not known.contiguous():
        described = "weights are a view"
    given = () if isinstance(described, str) else arguments(layer, x, *routing)
    route = router.route(described, described, given)
    if described in router.routes and isinstance(x, mx.array):  # not while tracing
        if len(known.routes) >= MAX_SHAPES:
            known.routes.clear()
            known.originals.clear()
        # Where the original serves x of the dtype of affine weights, it serves every other too; of
        # other weights, where it serves float16 or bfloat16, the other one of these.
        if route.call is None and not isinstance(described, str):
            known.routes[key] = 0 if layer.mode == "affine" else x.itemsize, None, route
            if layer.mode == "affine":
                known.originals[x.size] = route
        else:
            known.routes[key] = 0, x.dtype, route
    return known, route


def _remember(layers: dict[int, Weights], layer: Any) -> Weights:
    """What a layer holds now; forgotten when it dies, so that its weights may be freed."""
    key = id(layer)

    def died(_: Any) -> None:
        layers.pop(key, None)

    known = layers[key] = Weights(layer, died)
    return known


def _described(*call: Any) -> Workload | str:
    """`describe`, whatever a call holds: what the original makes of it is the caller's to see."""
    try:
        return describe(*call)
    except Exception as error:  # arguments may be of any kind: the original is called with them
        return f"{type(error).__name__} where the call is read"


def _layout(described: Workload | str, layer: Any, x: mx.array, *routing: Any) -> str:
    """What a layer's workloads have in common, "" where it has none."""
    if isinstance(described, str):  # too many rows: of one
        axes = (1, 1, 1, x.shape[-1]) if routing else (1, 1, x.shape[-1])
        indices = (mx.zeros((1, 1), mx.uint32),) if routing else ()
        described = _described(layer, mx.zeros(axes, x.dtype), *indices)
    return "" if isinstance(described, str) else described.bucket().layout


def arguments(
    layer: Mapping[str, Any], x: mx.array, indices: Any = None, sorted_indices: Any = False
) -> tuple[Any, ...]:
    """What a Call takes, of a layer and its input; of experts, with their indices."""
    weights = layer["weight"], layer["scales"], layer.get("biases")
    if indices is not None:
        return x, indices, *weights
    return x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1]), *weights


def describe(
    layer: Any, x: mx.array, indices: Any = None, sorted_indices: Any = False
) -> Workload | str:
    """The exact workload of a call, or why it has none."""
    weight, scales, biases = layer["weight"], layer["scales"], layer.get("biases")
    mode, bits, group = layer.mode, layer.bits, layer.group_size
    if x.ndim < 2 or not x.size:
        return "x has fewer than two axes"
    k = x.shape[-1]
    rows = x.size // k if indices is None else indices.size
    most = MOST_ROWS if indices is None else MOST_EXPERT_ROWS
    if rows > most:
        return f"more than {most} rows" + ("" if indices is None else " of experts")
    if x.dtype not in _TYPES:
        return f"x is {x.dtype}"
    if mode not in MODES:
        return f"weights are packed as {mode}"
    *experts, n, words = weight.shape
    if weight.dtype != mx.uint32 or len(experts) != (indices is not None) or words * 32 != k * bits:
        return "weights are no packed matrix for x"
    if mode == "affine":
        shared = [scales, biases]
        if biases is None or any(part.dtype != x.dtype for part in shared):
            return "scales or biases differ from x in dtype"
    else:
        shared = [scales]
        if biases is not None or scales.dtype != mx.uint8:
            return "mxfp4 scales are no bytes"
    if any(part.shape != (*experts, n, k // group) for part in shared):
        return "scales or biases differ from the weights in shape"
    if indices is None:
        batch, length = x.shape[:2] if x.ndim == 3 else (1, rows)
    else:
        # One row of x for all experts of a token, or for each its own.
        length = 1 if x.shape[:-2] == indices.shape else indices.shape[-1] if indices.ndim else 0
        if x.shape[:-1] not in ((*indices.shape, 1), (*indices.shape[:-1], 1, 1)):
            return "x and the indices of its experts differ in shape"
        if indices.dtype != mx.uint32 or getattr(layer, "global_scale", None) is not None:
            return f"indices are {indices.dtype}, or there is a global scale"
        batch, mode = rows // length, f"{mode}_experts"
    try:
        return Workload(*(batch, length, n, k, _TYPES[x.dtype]), bits, group, mode, *experts)
    except WorkloadError as error:
        return str(error)


def _contiguous(array: mx.array) -> bool:
    """Whether a matrix lies row by row; what is not computed yet is computed."""
    mx.eval(array)
    words = array if array.dtype in (mx.uint32, mx.uint8) else array.view(
        mx.uint32 if array.itemsize == 4 else mx.uint16
    )  # fmt: skip
    return memoryview(words).c_contiguous  # type: ignore[arg-type]


def stock(w: Workload, *given: Any) -> mx.array:
    """The original's product, as a layer calls it."""
    kind: Any = {"group_size": w.group, "bits": w.bits, "mode": w.mode}
    if not w.experts:
        x, weight, scales, biases = given
        return mx.quantized_matmul(x, weight, scales, biases, True, **kind)
    x, indices, weight, scales, biases = given
    kind |= {"rhs_indices": indices, "transpose": True, "sorted_indices": w.rows >= SORTED}
    return mx.gather_qmm(x, weight, scales, biases, **kind)


def in_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    """The original with dequantised weights, products and sums in float32."""

    def product(layer: Any, x: mx.array, *routing: Any, **named: Any) -> Any:
        if layer.mode not in MODES or getattr(layer, "global_scale", None) is not None:
            return original(layer, x, *routing, **named)
        scales, biases = layer["scales"], layer.get("biases")
        if biases is not None:
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        kind = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        weight = mx.dequantize(layer["weight"], scales, biases, **kind, dtype=mx.float32)
        weight, given = weight.swapaxes(-1, -2), x.astype(mx.float32)
        if weight.ndim == 2:
            out = given @ weight
            return (out + layer["bias"] if "bias" in layer else out).astype(x.dtype)
        indices = routing[0] if routing else named["indices"]
        out = mx.gather_mm(given, weight, rhs_indices=indices)
        if "bias" in layer:
            out = out + mx.expand_dims(layer["bias"][indices], -2)
        return out.astype(x.dtype)

    return product


def trial(
    workload: Workload, given: tuple[Any, ...]
) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
    """The call's own arguments, or some of the workload's shapes: the original says what is right.
    That takes no memory of the weights' size."""
    w = workload
    dtype: mx.Dtype = getattr(mx, w.dtype)
    if not given:
        experts = [w.experts] if w.experts else []
        shared = (*experts, w.n, w.k // w.group)
        plain = w.mode == "affine"
        given = (
            mx.ones((w.batch, 1, 1, w.k) if w.experts else (w.batch, w.length, w.k), dtype),
            *[mx.arange(w.rows, dtype=mx.uint32).reshape(w.batch, -1) % n for n in experts],
            mx.full((*experts, w.n, w.k * w.bits // 32), 0x12345678, mx.uint32),
            mx.full(shared, 0.5, dtype) if plain else mx.full(shared, 127, mx.uint8),
            mx.full(shared, -0.25, dtype) if plain else None,
        )

    def wrong(out: mx.array) -> str:
        want = stock(w, *given)
        if out.shape != w.shape or out.dtype != want.dtype:
            return f"it returned {out.dtype} {out.shape}, expected {want.dtype} {w.shape}"
        want = want.reshape(w.shape).astype(mx.float32)
        off = mx.abs(out.astype(mx.float32) - want)
        if not mx.all(off <= 0.05 * mx.max(mx.abs(want)) + 1e-6).item():
            return f"it differs from {type(want).__name__}'s product"
        return ""

    return given, wrong


def differentiable(workload: Workload, call: Call) -> Call:
    """`call` with the derivatives of the original, by x, scales and biases."""
    w = workload
    return with_derivatives_of(lambda *given: stock(w, *given).reshape(w.shape), call)
