"""Dispatch: which kernel serves a call, decided once for each workload.

    call -> key -> Route -> kernel | original          (hot: one dict lookup)
                     ^
    unseen key -> Workload -> Plan (memory -> user registry -> tuned/ -> gate)

A Plan is kept for each bucket, a Route for each exact shape: it holds the built kernel, which
was compiled and evaluated once before any call may use it. Routing depends on the shape alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import mlx.core as mx

from .. import backends
from ..backends import Call
from ..errors import BackendError, OpenEvolveError, WorkloadError, interrupted
from ..ops.attention import quantized
from ..ops.attention.workload import Workload, next_pow2
from .planner import Plan, Planner

__all__ = ["Dispatcher", "Route"]

log = logging.getLogger("mlx_lm_openevolve")

MAX_ROUTES = 4096


class Route:
    """The plan for one exact shape: `call` is the built kernel, None for SDPA. `exact` is given
    where mlx-lm's own function cannot serve the call on this machine (see quantized.py)."""

    __slots__ = ("call", "exact", "fallbacks", "hits", "plan", "reason")

    def __init__(self, plan: Plan | None, reason: str, call: Call | None = None) -> None:
        self.plan, self.reason, self.call = plan, reason, call
        self.exact: Workload | None = None
        self.hits = self.fallbacks = 0


class Dispatcher:
    """Routes the attention calls of one enabled session. `wrap(original)` makes the replacement.

    Thread-safe: routes are made under one lock and only ever added.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.backend: ModuleType = backends.get(planner.device.backend)
        self.routes: dict[Any, Route] = {}  # by the exact shapes of a call: short-lived
        self.launches: dict[Workload, Route] = {}  # by exact workload, kv_len as its bucket
        self.refused: dict[str, Route] = {}  # by the reason why no workload describes the call
        self.off: list[bool] = []  # not empty once switched off; read on every call
        self._scales: dict[float, mx.array] = {}
        self._lock = threading.RLock()

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A function with mlx-lm's signature that serves what a kernel may serve, and hands
        every other call to `original` untouched."""
        off, routes, scales = self.off, self.routes, self._scales
        packed = self._wrap_quantised(original)
        route_for, scale_for, refuse = self._route, self._scale, self._refuse

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
            # Training passes no cache: custom kernels have no gradient.
            if cache is None or off:
                if unknown:
                    return original(queries, keys, values, cache, scale, mask, sinks, **unknown)
                return original(queries, keys, values, cache, scale, mask, sinks)
            if unknown:
                refuse(f"unknown argument {min(unknown)!r}")
                return original(queries, keys, values, cache, scale, mask, sinks, **unknown)
            try:
                key = (
                    queries.shape,
                    keys.shape,
                    None if keys is values else values.shape,
                    queries.dtype,
                    keys.dtype,
                    values.dtype,
                    mask if mask is None or mask.__class__ is str else (mask.shape, mask.dtype),
                    sinks if sinks is None else (sinks.shape, sinks.dtype),
                )
                route = routes[key]
            except KeyError:
                route = route_for(key, queries, keys, values, mask, sinks)
            except AttributeError:  # a quantised cache holds tuples of arrays
                return packed(queries, keys, values, cache, scale, mask, sinks)
            call = route.call
            if call is None:
                route.fallbacks += 1
                return original(queries, keys, values, cache, scale, mask, sinks)
            try:
                scale_array = scales.get(scale)
                if scale_array is None:
                    scale_array = scale_for(scale)
                out = call(queries, keys, values, scale_array, mask, sinks)
            except (BackendError, ValueError):  # tracing, or a mask that does not broadcast
                route.fallbacks += 1
                return original(queries, keys, values, cache, scale, mask, sinks)
            route.hits += 1
            return out

        return scaled_dot_product_attention

    def _wrap_quantised(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The part of `wrap` for a quantised cache, whose keys and values are tuples."""

        def attention(
            queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any
        ) -> Any:
            try:
                key = (
                    queries.shape,
                    tuple(array.shape for array in (*keys, *values)),
                    queries.dtype,
                    tuple(array.dtype for array in (*keys, *values)),
                    mask if mask is None or isinstance(mask, str) else (mask.shape, mask.dtype),
                    sinks is None,
                )
            except (AttributeError, TypeError):
                self._refuse("keys or values are neither arrays nor a quantised cache's tuples")
                return original(queries, keys, values, cache, scale, mask, sinks)
            route = self.routes.get(key)
            if route is None:
                route = self._route(key, queries, keys, values, mask, sinks)
            try:
                if route.call is not None:
                    array = self._scales.get(scale)
                    if array is None:
                        array = self._scale(scale)
                    out = route.call(queries, keys, values, array, mask, sinks)
                    route.hits += 1
                    return out
            except (BackendError, ValueError):
                pass
            route.fallbacks += 1
            if route.exact is not None:
                bits, group = route.exact.kv_bits, route.exact.kv_group
                return quantized.dequantised(queries, keys, values, scale, mask, bits, group)
            return original(queries, keys, values, cache, scale, mask, sinks)

        return attention

    def _refuse(self, reason: str) -> None:
        self.refused.setdefault(reason, Route(None, reason)).fallbacks += 1

    def _scale(self, scale: float) -> mx.array:
        array = mx.array([scale], mx.float32)
        mx.eval(array)  # a lazy array belongs to the thread that made it
        self._scales[scale] = array
        return array

    def _route(
        self, key: Any, queries: Any, keys: Any, values: Any, mask: Any, sinks: Any
    ) -> Route:
        """The route of a call whose exact shapes are new: every token of a growing cache."""
        with self._lock:
            exact = _workload(queries, keys, values, mask, sinks)
            if isinstance(exact, str):
                route = self.refused.setdefault(exact, Route(None, exact))
            else:
                launch = replace(exact, kv_len=next_pow2(exact.kv_len))
                known = self.launches.get(launch)
                if known is None:
                    try:
                        # Waits for the caller's work, so that none of it is timed as ours.
                        mx.eval(queries, keys, values)
                    except ValueError:
                        route = Route(None, "under tracing")
                        route.exact = _unserved(exact)
                        return route
                    known = self._build(exact, self.planner.plan(exact.bucket()))
                    self.launches[launch] = known
                route = known
            if len(self.routes) >= MAX_ROUTES:
                self.routes.clear()
            self.routes[key] = route
            return route

    def _build(self, exact: Workload, plan: Plan) -> Route:
        route = self._built(exact, plan)
        route.exact = _unserved(exact)
        return route

    def _built(self, exact: Workload, plan: Plan) -> Route:
        if plan.kernel is None or plan.verdict is None:
            return Route(plan, plan.reason)
        try:
            call = self.backend.build(plan.kernel, plan.verdict.params, exact)
            _first_run(call, exact)
        except Exception as error:  # whatever a compiler or a driver raises: SDPA serves
            if interrupted(error):
                raise KeyboardInterrupt from None
            reason = f"kernel {plan.kernel.id} does not run: {_line(error)}"
            log.warning("%s: %s; attention runs on SDPA", exact.slug, reason)
            return Route(plan, reason)
        return Route(plan, plan.reason, call)

    def info(self) -> dict[str, dict[str, Any]]:
        """What each workload seen so far runs on: bucket slug -> plan, hits, fallbacks."""
        with self._lock:
            table: dict[str, dict[str, Any]] = {}
            for plan in self.planner.plans.values():
                kernel, verdict = plan.kernel, plan.verdict
                table[plan.workload.slug] = {
                    "kernel": kernel.id if kernel else None,
                    "name": kernel.name if kernel else None,
                    "params": dict(verdict.params) if kernel and verdict else {},
                    "verdict": verdict.to_json() if verdict else None,
                    "reason": plan.reason,
                    "hits": 0,
                    "fallbacks": 0,
                }
            for route in self.launches.values():
                if route.plan is None:
                    continue
                row = table[route.plan.workload.slug]
                row["hits"] += route.hits
                row["fallbacks"] += route.fallbacks
                if route.call is None:
                    row["reason"] = route.reason
            return table

    def fallbacks(self) -> dict[str, int]:
        """Calls with a cache that no workload describes: reason -> count."""
        with self._lock:
            return {reason: route.fallbacks for reason, route in self.refused.items()}


class _Floats(NamedTuple):
    """What a quantised array stands for."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


def _workload(queries: Any, keys: Any, values: Any, mask: Any, sinks: Any) -> Workload | str:
    """The exact workload of a call, or why it has none."""
    if mask is None:
        kind = "none"
    elif isinstance(mask, str):
        kind = mask
    else:
        kind = "bool" if mask.dtype == mx.bool_ else "additive"
    if queries.ndim != 4:
        return "queries have not four axes"
    bits, group, op = 0, 0, "attention"
    if keys is values and keys.shape[1] == 1:  # multi-head latent attention
        op = "attention_latent"
    elif not isinstance(keys, mx.array):
        found = quantized.layout(queries.shape[3], keys, values)
        if isinstance(found, str):
            return found
        if sinks is not None:
            return "sinks with a quantised cache"
        bits, group, v_head_dim = found
        op = "attention_quantized"
        # What follows asks the shapes and the dtype of the floats that the words stand for.
        keys, values = (
            _Floats((*packed[0].shape[:3], width), packed[1].dtype)
            for packed, width in ((keys, queries.shape[3]), (values, v_head_dim))
        )
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
        if kind == "additive" and not mx.issubdtype(mask.dtype, mx.floating):
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
            op=op,
        )
    except WorkloadError as error:
        return str(error)


def _unserved(exact: Workload) -> Workload | None:
    """The workload where mlx-lm's own function would raise on this machine, else None."""
    return exact if exact.kv_bits and not quantized.stock_runs(exact) else None


def _first_run(call: Call, exact: Workload) -> None:
    """Compile and evaluate this very instance once: MLX is lazy, and what fails to compile or to
    launch would raise at eval, in the user's code. Equal values must average to themselves."""
    dtype = backends.dtype_of(exact.dtype)
    rows = (exact.batch, exact.kv_heads, exact.kv_len)
    mask = None
    if exact.mask == "bool":
        mask = mx.ones((1, 1, 1, exact.kv_len), mx.bool_)
    elif exact.mask == "additive":
        mask = mx.zeros((1, 1, 1, exact.kv_len), dtype)

    def ones(width: int) -> backends.Operand:
        # Broadcast, so that no memory of a cache's size is taken; the last axis stays contiguous.
        plain = mx.ones((width,), dtype)
        if not exact.kv_bits:
            return mx.broadcast_to(plain, (*rows, width))
        parts = mx.quantize(plain[None], group_size=exact.kv_group, bits=exact.kv_bits)
        return tuple(mx.broadcast_to(part[0], (*rows, part.shape[1])) for part in parts)

    keys = ones(exact.head_dim)
    out = call(
        mx.zeros((exact.batch, exact.q_heads, exact.q_len, exact.head_dim), dtype),
        keys,
        keys if exact.op == "attention_latent" else ones(exact.v_head_dim),
        mx.array([1.0], mx.float32),
        mask,
        mx.full((exact.q_heads,), -1e4, dtype) if exact.sinks else None,
    )
    shape = (exact.batch, exact.q_heads, exact.q_len, exact.v_head_dim)
    if out.shape != shape or out.dtype != dtype:
        raise BackendError(f"it returned {out.dtype} {out.shape}, expected {dtype} {shape}")
    if not mx.all(mx.abs(out - 1) < 0.02).item():
        raise BackendError("the average of equal values is not that value")


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300] if not isinstance(error, OpenEvolveError) else text[:300]
