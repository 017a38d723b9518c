"""mlx-lm's attention function, replaced: what a call is, and the fast way to its route.

call -> key -> Route without a kernel -> original                  (hot: one dict lookup)
            -> Route with one, the call's rest as expected -> kernel
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from ...errors import BackendError, WorkloadError
from ..base import ON_CPU, Call, Route, Router, with_derivatives_of
from . import quantized
from .signature import Operand
from .workload import Workload

__all__ = ["arguments", "describe", "differentiable", "substitute", "trial", "wrap"]

MAX_SCALES = 256
LARGEST = 3.4e38  # of a float32: beyond it a scale is the original's
UNSEEN = (None, None)  # neither a route nor what it expects

_shape_and_dtype = operator.attrgetter("shape", "dtype")


def wrap(original: Callable[..., Any], router: Router) -> Callable[..., Any]:
    """A function with mlx-lm's signature that serves what a kernel may serve, and hands every other
    call to `original` untouched."""
    off, routes, on_cpu = router.off, router.routes, router.on_cpu
    transient = _transient_cache()
    scales = _Scales()
    packed = _wrap_quantised(original, router, scales)

    def scaled_dot_product_attention(
        queries: Any,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: Any = None,
        **unknown: Any,
    ) -> Any:
        # Training passes no cache, or one that lives for a call: custom kernels have no gradient.
        if cache is None or cache.__class__ is transient or off:
            if not off:
                router.refuse("no cache, as in training")
            if unknown:
                return original(queries, keys, values, cache, scale, mask, sinks, **unknown)
            return original(queries, keys, values, cache, scale, mask, sinks)
        if unknown:
            router.refuse(f"unknown argument {min(unknown)!r}")
            return original(queries, keys, values, cache, scale, mask, sinks, **unknown)
        if keys.__class__ is tuple:  # a quantised cache's arrays
            return packed(queries, keys, values, cache, scale, mask, sinks)
        # The key is what tells workloads apart, the rest what else a kernel must be sure of: where
        # none serves, it is not read. To read an attribute of an array and hash it takes 0.1 us.
        array = mask is not None and mask.__class__ is not str
        try:
            key = (queries.shape, keys.shape, queries.dtype, mask.dtype if array else mask)
            route, expected = routes.get(key, UNSEEN)
            if route is None or expected is not None:
                rest = _rest(keys, values, mask if array else None, sinks)
                if rest != expected:
                    route = routes.get((key, rest))
        except AttributeError:  # no arrays
            return packed(queries, keys, values, cache, scale, mask, sinks)
        if route is None or route.call is not None:
            if on_cpu():
                router.refuse(ON_CPU)
                return original(queries, keys, values, cache, scale, mask, sinks)
            if route is None:
                route = _new(router, key, rest, (queries, keys, values, cache, scale, mask, sinks))
        call = route.call
        if call is None:
            route.fallbacks += 1
            return original(queries, keys, values, cache, scale, mask, sinks)
        try:
            scale_array = scales.get(scale) if scale.__class__ is float else None
            if scale_array is None:
                scale_array = scales.make(scale)
            out = call(queries, keys, values, scale_array, mask, sinks)
        except (BackendError, ValueError):  # tracing, or a scale that is no number
            route.fallbacks += 1
            return original(queries, keys, values, cache, scale, mask, sinks)
        route.hits += 1
        return out

    return scaled_dot_product_attention


def _rest(keys: Any, values: Any, mask: Any, sinks: Any) -> tuple[Any, ...]:
    """What a call must share with another of its key, beside the key, to be served as that is."""
    return (
        keys.dtype,
        values.dtype,
        None if keys is values else values.shape,
        None if mask is None else mask.shape,
        None if sinks is None else _shape_and_dtype(sinks),
    )


def _new(router: Router, key: Any, rest: Any, call: tuple[Any, ...]) -> Route:
    """The route of a call that is new. `routes` has it under (key, rest), and the first one of a
    key also under that: (route, rest), or (route, None) where the original serves a workload, and
    so whatever else has this key."""
    like = _apart_from_length(*call)
    route: Route | None = router.routes.get(like) if like else None
    if route is not None:  # every token makes a cache longer
        router.keep((key, rest), route)
        described: Workload | str | None = None
    else:
        described = _described(*call)
        route = router.route((key, rest), described, call[:3])
    if (key, rest) in router.routes:  # not while tracing
        refused = isinstance(described, str)
        originals = route.call is None and route.substitute is None
        router.routes.setdefault(key, (route, None if originals and not refused else rest))
        if like and isinstance(described, Workload):
            router.keep(like, route)
    return route


def _apart_from_length(
    queries: Any, keys: Any, values: Any, cache: Any, scale: Any, mask: Any, sinks: Any
) -> tuple[Any, ...] | None:
    """What `describe` reads of a call but the number of keys, of which only the bucket: calls that
    are alike in it have one route. None where the number itself matters."""
    try:
        parts = (*keys, *values) if keys.__class__ is tuple else (keys, values)
        count = parts[0].shape[2]
        bucket = 1 << (count - 1).bit_length()
        if count < 8 or count - queries.shape[2] < 0:
            return None
        arrays = []
        for part in parts:
            batch, heads, length, width = part.shape
            if length != count:
                return None
            arrays.append((batch, heads, width, part.dtype))
        if mask is not None and mask.__class__ is not str:
            *rows, columns = mask.shape
            if columns not in (1, count):
                return None
            mask = (*rows, columns == 1, mask.dtype)
        layout = (cache.group_size, cache.bits) if len(parts) > 2 else keys is values
        held = None if sinks is None else _shape_and_dtype(sinks)
        return (queries.shape, queries.dtype, bucket, layout, mask, held, *arrays)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _wrap_quantised(
    original: Callable[..., Any], router: Router, scales: _Scales
) -> Callable[..., Any]:
    """The part of `wrap` for a quantised cache, whose keys and values are tuples."""
    routes = router.routes

    def attention(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any
    ) -> Any:
        array = mask is not None and not isinstance(mask, str)
        try:
            parts = (*keys, *values)
            words, groups = parts[0].shape, parts[1].shape
            shown = mask.dtype if array else mask
            layout = cache.group_size, cache.bits  # the original reads both off the cache
            key = (queries.shape, words, groups, queries.dtype, shown, layout)
            route, expected = routes.get(key, UNSEEN)
            if route is None or expected is not None:
                rest = _rest_quantised(parts, mask if array else None, sinks)
                if rest != expected:
                    route = routes.get((key, rest))
        except (AttributeError, IndexError, TypeError):
            router.refuse("keys or values are neither arrays nor a quantised cache's tuples")
            return original(queries, keys, values, cache, scale, mask, sinks)
        if route is None or route.call is not None or route.substitute is not None:
            if router.on_cpu():
                router.refuse(ON_CPU)
                return original(queries, keys, values, cache, scale, mask, sinks)
            if route is None:
                route = _new(router, key, rest, (queries, keys, values, cache, scale, mask, sinks))
        try:
            if route.call is not None:
                out = route.call(queries, keys, values, scales.make(scale), mask, sinks)
                route.hits += 1
                return out
        except (BackendError, ValueError):
            pass
        route.fallbacks += 1
        if route.substitute is not None:
            return route.substitute(queries, keys, values, scale, mask)
        return original(queries, keys, values, cache, scale, mask, sinks)

    return attention


def _rest_quantised(parts: tuple[Any, ...], mask: Any, sinks: Any) -> tuple[Any, ...]:
    """`_rest` for the arrays of a quantised cache."""
    return (
        *map(_shape_and_dtype, parts),
        None if mask is None else mask.shape,
        sinks is None,
    )


class _Scales(dict[float, mx.array]):
    """Scales as kernels take them, made once for each number."""

    def make(self, scale: Any) -> mx.array:
        """Raises ValueError where a scale is no Python number: an array may change in place, and
        what other types mean to MLX is the original's to say."""
        if not isinstance(scale, int | float) or not abs(scale) <= LARGEST:
            raise ValueError(f"the scale is {type(scale).__name__}")
        scale = float(scale)
        found = self.get(scale)
        if found is None:
            if len(self) >= MAX_SCALES:  # a model may scale by the position
                self.clear()
            found = self[scale] = _scale(scale)
        return found


def _scale(scale: float) -> mx.array:
    array = mx.array([scale], mx.float32)
    mx.eval(array)  # a lazy array belongs to the thread that made it
    return array


def _transient_cache() -> type | None:
    """The cache that a model makes for one call where it was given none (afm7, in training)."""
    from mlx_lm.models import cache

    found: type | None = getattr(cache, "ConcatenateKVCache", None)
    return found


def arguments(
    queries: Any,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: Any = None,
) -> tuple[Any, ...]:
    """What a Call takes, of what mlx-lm's function takes."""
    return queries, keys, values, _scale(scale), mask, sinks


def _described(*call: Any) -> Workload | str:
    """`describe`, whatever a call holds: what the original makes of it is the caller's to see."""
    try:
        return describe(*call)
    except Exception as error:  # arguments may be of any kind: the original is called with them
        return f"{type(error).__name__} where the call is read"


class _Floats(NamedTuple):
    """What a quantised array stands for."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


def describe(
    queries: Any,
    keys: Any,
    values: Any,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: Any = None,
) -> Workload | str:
    """The exact workload of a call of mlx-lm's function, or why it has none."""
    if mask is None:
        kind = "none"
    elif isinstance(mask, str):
        kind = mask
    else:
        kind = "bool" if mask.dtype == mx.bool_ else "additive"
    if queries.ndim != 4:
        return "queries have not four axes"
    bits, group, latent = 0, 0, False
    if not isinstance(keys, mx.array):
        layout = quantized.layout(queries.shape[3], keys, values)
        if isinstance(layout, str):
            return layout
        if sinks is not None:
            return "sinks with a quantised cache"
        bits, group, v_head_dim = layout
        if (cache.bits, cache.group_size) != (bits, group):
            return "keys and values are quantised otherwise than the cache says"
        # What follows asks the shapes and the dtype of the floats that the words stand for.
        keys, values = (
            _Floats((*packed[0].shape[:3], width), packed[1].dtype)
            for packed, width in ((keys, queries.shape[3]), (values, v_head_dim))
        )
    elif keys is values and keys.shape[1] == 1:  # multi-head latent attention
        latent = True
    if not queries.dtype == keys.dtype == values.dtype:
        return "queries, keys and values differ in dtype"
    if sinks is not None and (sinks.dtype != queries.dtype or sinks.shape != queries.shape[1:2]):
        return "sinks differ from the queries in dtype or heads"
    batch, q_heads, q_len, head_dim = queries.shape
    if keys.shape[:3] != values.shape[:3] or keys.shape[0] != batch or keys.shape[3] != head_dim:
        return "keys, values and queries differ in shape"
    if q_len > keys.shape[2]:
        return "more queries than keys"
    if kind in ("bool", "additive"):
        # A kernel walks the mask by strides: one that does not fit must not reach it.
        scores = (batch, q_heads, q_len, keys.shape[2])
        fits = all(m in (1, n) for m, n in zip(mask.shape[::-1], scores[::-1], strict=False))
        if not 0 < mask.ndim <= 4 or not fits:
            return "the mask does not broadcast to the scores"
        if bits and _by_head(mask):
            return "a mask of several heads over a quantised cache"  # mlx-lm refuses most of them
        if kind == "additive" and not _adds(mask.dtype, queries.dtype):
            return f"the mask is {mask.dtype}"
    try:
        return Workload(
            batch=batch,
            q_heads=q_heads,
            kv_heads=keys.shape[1],
            q_len=q_len,
            kv_len=keys.shape[2],
            head_dim=head_dim,
            v_head_dim=values.shape[3],
            dtype=str(queries.dtype).removeprefix("mlx.core."),
            mask="none" if kind == "causal" and q_len == 1 else kind,
            sinks=sinks is not None,
            kv_bits=bits,
            kv_group=group,
            latent=latent,
        )
    except WorkloadError as error:
        return str(error)


def _by_head(mask: mx.array) -> bool:
    return mask.ndim > 2 and mask.shape[-3] != 1


def _adds(mask: mx.Dtype, dtype: mx.Dtype) -> bool:
    """Whether an additive mask leaves the scores' dtype as it is: another one MLX refuses, and
    mlx-lm's quantised attention answers in."""
    return mx.issubdtype(mask, mx.floating) and mx.result_type(mask, dtype) == dtype


def substitute(workload: Workload) -> Call | None:
    """Dequantise + SDPA where mlx-lm's own attention over a quantised cache cannot run here."""
    if not workload.kv_bits or quantized.stock_runs(workload):
        return None

    def attention(queries: mx.array, keys: Any, values: Any, scale: float, mask: Any) -> mx.array:
        bits, group = workload.kv_bits, workload.kv_group
        return quantized.dequantised(queries, keys, values, scale, mask, bits, group)

    return attention


def trial(workload: Workload) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
    """Equal values must average to themselves."""
    w = workload
    dtype: mx.Dtype = getattr(mx, w.dtype)
    mask = None
    if w.mask == "bool":
        mask = mx.ones((1, 1, 1, w.kv_len), mx.bool_)
    elif w.mask == "additive":
        mask = mx.zeros((1, 1, 1, w.kv_len), dtype)

    def ones(width: int) -> Operand:
        # Broadcast, so that no memory of a cache's size is taken; the last axis stays contiguous.
        rows, plain = (w.batch, w.kv_heads, w.kv_len), mx.ones((width,), dtype)
        if not w.kv_bits:
            return mx.broadcast_to(plain, (*rows, width))
        parts = mx.quantize(plain[None], group_size=w.kv_group, bits=w.kv_bits)
        return tuple(mx.broadcast_to(part[0], (*rows, part.shape[1])) for part in parts)

    keys = ones(w.head_dim)
    given = (
        mx.zeros((w.batch, w.q_heads, w.q_len, w.head_dim), dtype),
        keys,
        keys if w.latent else ones(w.v_head_dim),
        mx.array([1.0], mx.float32),
        mask,
        mx.full((w.q_heads,), -1e4, dtype) if w.sinks else None,
    )
    shape = (w.batch, w.q_heads, w.q_len, w.v_head_dim)

    def wrong(out: mx.array) -> str:
        if out.shape != shape or out.dtype != dtype:
            return f"it returned {out.dtype} {out.shape}, expected {dtype} {shape}"
        if not mx.all(mx.abs(out - 1) < 0.02).item():
            return "the average of equal values is not that value"
        return ""

    return given, wrong


def differentiable(workload: Workload, call: Call) -> Call:
    """`call` with the derivatives of the original: of every order, by every operand."""
    mask_kind, bits, group = workload.mask, workload.kv_bits, workload.kv_group

    def stock(
        queries: mx.array,
        keys: Any,
        values: Any,
        scale: mx.array,
        mask: mx.array | None,
        sinks: mx.array | None,
        length: mx.array | None = None,
    ) -> mx.array:
        number: Any = scale.item()
        if length is not None:
            keys, values = _first(keys, length), _first(values, length)
        chosen = "causal" if mask_kind == "causal" else mask
        if bits and isinstance(mask, mx.array) and _by_head(mask):  # mlx-lm's refuses it
            return quantized.dequantised(queries, keys, values, number, chosen, bits, group)
        if bits:
            return quantized.stock(queries, keys, values, number, chosen, bits, group)
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=number, mask=chosen, sinks=sinks
        )

    derived = with_derivatives_of(stock, call)

    def attention(*given: Any, length: mx.array | None = None) -> mx.array:
        result: mx.array = derived(*given) if length is None else derived(*given, length)
        return result

    return attention


def _first(operand: Operand, length: mx.array) -> Operand:
    """The keys or values of a whole buffer that count."""
    count: Any = length.item()
    if isinstance(operand, mx.array):
        return operand[:, :, :count]
    return tuple(part[:, :, :count] for part in operand)
