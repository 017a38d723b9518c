"""The product of a quantised layer, replaced: what a call is, and the fast way to its route.

layer, x -> the layer's weights, as at its last call -> shape of x -> Route -> kernel | original
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from ...errors import BackendError, WorkloadError
from ..base import ON_CPU, Call, Route, Router, with_derivatives_of
from .workload import MOST_ROWS, Workload

__all__ = ["arguments", "describe", "differentiable", "stock", "trial", "wrap"]

MAX_SHAPES = 256  # of x, that a layer's routes are kept for
_TYPES = {mx.float16: "float16", mx.bfloat16: "bfloat16", mx.float32: "float32"}


class Weights(NamedTuple):
    """A layer's packed matrix, as it was when its routes were decided, and these by (shape, dtype)
    of x; None where the original serves."""

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    routes: dict[Any, Route | None]


def wrap(original: Callable[..., Any], router: Router) -> Callable[..., Any]:
    """A method that takes what QuantizedLinear.__call__ or QuantizedEmbedding.as_linear takes,
    serves what a kernel may serve and hands every other call to `original` untouched."""
    off, on_cpu = router.off, router.on_cpu
    layers: dict[int, Weights] = {}  # by the layer's id, while it lives

    def product(layer: Any, x: Any) -> Any:
        if off:
            return original(layer, x)
        try:
            known = layers.get(id(layer))
            if (
                known is None
                or known.weight is not layer["weight"]
                or known.scales is not layer["scales"]
                or known.biases is not layer.get("biases")
            ):
                known = _remember(layers, layer)
            route = known.routes[x.shape, x.dtype]
        except (AttributeError, KeyError, TypeError):
            route = _new(router, layers.get(id(layer)), layer, x)
        if route is None:
            return original(layer, x)
        if on_cpu():
            router.refuse(ON_CPU)
            return original(layer, x)
        assert known is not None
        assert route.call is not None
        try:
            if x.ndim == 3:
                out = route.call(x, known.weight, known.scales, known.biases)
            else:
                given = x.reshape(1, -1, x.shape[-1])
                out = route.call(given, known.weight, known.scales, known.biases)
                out = out.reshape(*x.shape[:-1], out.shape[-1])
        except (BackendError, ValueError):  # tracing
            route.fallbacks += 1
            return original(layer, x)
        route.hits += 1
        return out + layer["bias"] if "bias" in layer else out

    return product


def _remember(layers: dict[int, Weights], layer: Any) -> Weights:
    """What a layer holds now; forgotten when it dies, so that its weights may be freed."""
    key = id(layer)
    if key not in layers:
        weakref.finalize(layer, layers.pop, key, None)
    layers[key] = Weights(layer["weight"], layer["scales"], layer.get("biases"), {})
    return layers[key]


def _new(router: Router, known: Weights | None, layer: Any, x: Any) -> Route | None:
    """The route of a shape of x that is new to a layer; None where the original serves."""
    described = _described(layer, x)
    if isinstance(described, str) or known is None:
        router.refuse(described if isinstance(described, str) else "no quantised layer")
        return None
    given = arguments(layer, x)
    route = router.route(described, described, given)
    if described in router.routes:  # not while tracing
        if len(known.routes) >= MAX_SHAPES:
            known.routes.clear()
        known.routes[x.shape, x.dtype] = None if route.call is None else route
    if route.call is None:
        route.fallbacks += 1
        return None
    return route


def _described(layer: Any, x: Any) -> Workload | str:
    """`describe`, whatever a call holds: what the original makes of it is the caller's to see."""
    try:
        return describe(layer, x)
    except Exception as error:  # arguments may be of any kind: the original is called with them
        return f"{type(error).__name__} where the call is read"


def arguments(layer: Mapping[str, Any], x: mx.array) -> tuple[Any, ...]:
    """What a Call takes, of a layer and its input."""
    whole = x if x.ndim == 3 else x.reshape(1, -1, x.shape[-1])
    return whole, layer["weight"], layer["scales"], layer.get("biases")


def describe(layer: Any, x: mx.array) -> Workload | str:
    """The exact workload of a call, or why it has none."""
    weight, scales, biases = layer["weight"], layer["scales"], layer.get("biases")
    mode, bits, group = layer.mode, layer.bits, layer.group_size
    if x.ndim < 2 or not x.size:
        return "x has fewer than two axes"
    k = x.shape[-1]
    rows = x.size // k
    if rows > MOST_ROWS:
        return f"more than {MOST_ROWS} rows"
    if x.dtype not in _TYPES:
        return f"x is {x.dtype}"
    if mode not in ("affine", "mxfp4"):
        return f"weights are packed as {mode}"
    if weight.dtype != mx.uint32 or weight.ndim != 2 or weight.shape[1] * 32 != k * bits:
        return "weights are no packed matrix for x"
    if mode == "affine":
        shared = [scales, biases]
        if biases is None or any(part.dtype != x.dtype for part in shared):
            return "scales or biases differ from x in dtype"
    else:
        shared = [scales]
        if biases is not None or scales.dtype != mx.uint8:
            return "mxfp4 scales are no bytes"
    if any(part.shape != (weight.shape[0], k // group) for part in shared):
        return "scales or biases differ from the weights in shape"
    if not all(_contiguous(part) for part in (weight, *shared)):
        return "weights are a view"
    batch, length = x.shape[:2] if x.ndim == 3 else (1, rows)
    try:
        return Workload(
            *(batch, length, weight.shape[0], k, _TYPES[x.dtype]), bits, group, variant=mode
        )
    except WorkloadError as error:
        return str(error)


def _contiguous(array: mx.array) -> bool:
    """Whether a matrix lies row by row; what is not computed yet is computed."""
    mx.eval(array)
    words = array if array.dtype in (mx.uint32, mx.uint8) else array.view(
        mx.uint32 if array.itemsize == 4 else mx.uint16
    )  # fmt: skip
    return memoryview(words).c_contiguous  # type: ignore[arg-type]


def stock(w: Workload, x: mx.array, weight: mx.array, scales: mx.array, biases: Any) -> mx.array:
    """The original's product."""
    return mx.quantized_matmul(
        x, weight, scales, biases, True, group_size=w.group, bits=w.bits, mode=w.variant
    )


def trial(
    workload: Workload, given: tuple[Any, ...]
) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
    """The call's own arguments, or some of the workload's shapes: the original says what is right.
    That takes no memory of the weights' size."""
    w = workload
    dtype: mx.Dtype = getattr(mx, w.dtype)
    if not given:
        shared = (w.n, w.k // w.group)
        given = (
            mx.ones((w.batch, w.length, w.k), dtype),
            mx.full((w.n, w.k * w.bits // 32), 0x12345678, mx.uint32),
            mx.full(shared, 127, mx.uint8) if w.variant == "mxfp4" else mx.full(shared, 0.5, dtype),
            None if w.variant == "mxfp4" else mx.full(shared, -0.25, dtype),
        )

    def wrong(out: mx.array) -> str:
        want = stock(w, *given)
        if out.shape != want.shape or out.dtype != want.dtype:
            return f"it returned {out.dtype} {out.shape}, expected {want.dtype} {want.shape}"
        want = want.astype(mx.float32)
        off = mx.abs(out.astype(mx.float32) - want)
        if not mx.all(off <= 0.05 * mx.max(mx.abs(want)) + 1e-6).item():
            return f"it differs from {type(want).__name__}'s product"
        return ""

    return given, wrong


def differentiable(workload: Workload, call: Call) -> Call:
    """`call` with the derivatives of the original, by x, scales and biases."""
    return with_derivatives_of(lambda *given: stock(workload, *given), call)
