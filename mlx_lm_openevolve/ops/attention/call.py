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
UNSEEN = (None, ())  # no route yet: the call's rest is read to make one

_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")
_shape_and_dtype = operator.attrgetter("shape", "dtype")


def wrap(original: Callable[..., Any], router: Router) -> Callable[..., Any]:
    """A function with mlx-lm's signature that serves what a kernel may serve, and hands every other
    call to `original` untouched."""
    off, routes, on_cpu = router.off, router.routes, router.on_cpu
    transient, plain = _transient_cache(), mx.array
    scales = _Scales()
    # The last call's key, with what `routes` has for it: a model's layers ask alike, and to compare
    # costs half of a look-up. One tuple, so that a thread finds what belongs together.
    last: tuple[Any, Any, Any] = (None, *UNSEEN)

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
        nonlocal last
        # Training passes no cache, or one that lives for a call: custom kernels have no gradient.
        if cache is None or cache.__class__ is transient or off or unknown:
            if not off:
                no_cache = cache is None or cache.__class__ is transient
                argument = "" if no_cache else f"unknown argument {min(unknown)!r}"
                router.refuse(argument or "no cache, as in training")
            return original(queries, keys, values, cache, scale, mask, sinks, **unknown)
        # The key is what tells workloads apart, the rest what else a kernel must be sure of: where
        # none serves, it is not read. A shape or dtype takes 0.1 us to read and compare, a size of
        # elements half: so float16 and bfloat16 share a key, as do a mask and sinks of any dtype.
        try:
            shown = mask if mask is None or mask.__class__ is str else mask.itemsize
            packed = keys.__class__ is not plain  # a quantised cache's words, scales and biases
            key: tuple[Any, ...]
            if packed:  # the original reads bits and group off the cache
                words = keys[0].shape
                key = (words, queries.shape, queries.itemsize, shown, cache.bits, cache.group_size)
            else:
                key = (keys.shape, queries.shape, queries.itemsize, shown)
            known, route, expected = last
            if key != known:
                route, expected = routes.get(key) or _longer(router, key, queries)
                if route is not None:
                    last = (key, route, expected)
            if expected is not None:
                rest: tuple[Any, ...]
                if packed:
                    rest = _rest_packed(queries, (*keys, *values), mask, sinks)
                else:
                    rest = (
                        queries.dtype,
                        keys.dtype,
                        values.dtype,
                        None if shown is mask else _shape_and_dtype(mask),
                        None if sinks is None else _shape_and_dtype(sinks),
                        None if keys is values else values.shape,
                    )
                if route is not None and rest != expected:
                    route = routes.get((key, rest))
        except (AttributeError, IndexError, TypeError, ValueError):
            router.refuse("keys or values are neither arrays nor a quantised cache's tuples")
            return original(queries, keys, values, cache, scale, mask, sinks)
        if expected is None:  # the original's, whatever the rest
            route.fallbacks += 1
            return original(queries, keys, values, cache, scale, mask, sinks)
        if route is None or route.call is not None or route.substitute is not None:
            if on_cpu():
                router.refuse(ON_CPU)
                return original(queries, keys, values, cache, scale, mask, sinks)
            if route is None:
                route = _new(router, key, rest, (queries, keys, values, cache, scale, mask, sinks))
        call = route.call
        if call is not None:
            try:
                scale_array = scales.get(scale) if scale.__class__ is float else None
                if scale_array is None:
                    scale_array = scales.make(scale)
                out = call(queries, keys, values, scale_array, mask, sinks)
                route.hits += 1
                return out
            except (BackendError, ValueError):  # tracing, or a scale that is no number
                pass
        route.fallbacks += 1
        if route.substitute is not None:
            return route.substitute(queries, keys, values, scale, mask)
        return original(queries, keys, values, cache, scale, mask, sinks)

    return scaled_dot_product_attention


def _rest_packed(queries: Any, parts: tuple[Any, ...], mask: Any, sinks: Any) -> tuple[Any, ...]:
    """What a call over a quantised cache must share with another of its key to be served as that
    is, in the order of a plain one's."""
    return (
        queries.dtype,
        len(parts),
        tuple(map(_dtype, parts)),
        None if mask is None or mask.__class__ is str else _shape_and_dtype(mask),
        None if sinks is None else _shape_and_dtype(sinks),
        *map(_shape, parts[1:]),
    )


def _new(
    router: Router, key: tuple[Any, ...], rest: tuple[Any, ...], call: tuple[Any, ...]
) -> Route:
    """The route of a call that is new. `routes` has the first one of a key under that: (route,
    rest), or (route, None) where the original serves a workload, and so whatever else has this key;
    every other one under (key, rest)."""
    routes = router.routes
    described = _described(*call)
    route = router.route((key, rest), described, call[:3])
    if (key, rest) not in routes or key in routes:  # under tracing, or not the first
        return route
    refused = isinstance(described, str)
    originals = route.call is None and route.substitute is None and not refused
    expected = None if originals else rest
    router.keep(key, (route, expected))
    like = None if refused else _apart_from_length(key, call[0])
    if like:
        router.keep(like, (route, expected, key[0][2]))
    return route


def _longer(
    router: Router, key: tuple[Any, ...], queries: Any
) -> tuple[Route | None, tuple[Any, ...] | None]:
    """What `routes` is to have for a key that differs from a known one in the number of keys alone:
    every token makes a cache longer."""
    known = router.routes.get(_apart_from_length(key, queries))
    if known is None:
        return UNSEEN
    route, expected, before = known
    if expected is not None:
        count = key[0][2]
        mask = expected[3]
        if mask is not None and mask[0][-1] == before:  # else one column, for all keys
            mask = ((*mask[0][:-1], count), mask[1])
        shapes = (s if s is None else (*s[:2], count, s[3]) for s in expected[5:])
        expected = (*expected[:3], mask, expected[4], *shapes)
    router.keep(key, (route, expected))
    return route, expected


def _apart_from_length(key: tuple[Any, ...], queries: Any) -> tuple[Any, ...] | None:
    """A call's key with the bucket of its number of keys in that number's place, and its dtype:
    calls that are alike in this, and in the rest, have one route. None where the number itself
    matters."""
    try:
        batch, heads, count, width = key[0]
        if count < 8 or count < key[1][2]:
            return None
        return (batch, heads, 1 << (count - 1).bit_length(), width, *key[1:], queries.dtype)
    except (IndexError, TypeError, ValueError):
        return None


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
