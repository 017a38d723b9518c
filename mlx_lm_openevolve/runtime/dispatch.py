"""Dispatch: which kernel serves a call, decided once for each workload.

    call -> the family's key -> Route -> kernel | original          (hot: one dict lookup)
                     ^
    unseen key -> Workload -> Plan (memory -> user registry -> tuned/ -> gate)

A Plan is kept for each bucket, a Route for each exact shape: it holds the built kernel, which
was compiled and evaluated once before any call may use it. Routing depends on the shape alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx

from .. import backends, device, ops
from ..errors import BackendError, OpenEvolveError, interrupted
from ..ops import Op, Workload
from ..ops.base import Call
from .info import WorkloadInfo
from .planner import Plan, Planner

__all__ = ["Dispatcher", "Route", "Router"]

log = logging.getLogger("mlx_lm_openevolve")

MAX_ROUTES = 4096
OFF = "switched off"  # in Planner.off


class Route:
    """The plan for one exact shape: `call` is the built kernel, None for the original. `substitute`
    serves where the original cannot run on this machine."""

    __slots__ = ("call", "fallbacks", "hits", "plan", "reason", "substitute")

    def __init__(self, plan: Plan | None, reason: str, call: Call | None = None) -> None:
        self.plan, self.reason, self.call = plan, reason, call
        self.substitute: Call | None = None
        self.hits = self.fallbacks = 0


class Router:
    """Routes the calls of one family. Thread-safe: routes are made under one lock and only ever
    added. `off` is the planner's: it is read on every call."""

    def __init__(self, op: Op[Any, Any], planner: Planner) -> None:
        self.op, self.planner = op, planner
        self.routes: dict[Any, Route] = {}  # by the exact shapes of a call: short-lived
        self.launches: dict[Workload, Route] = {}  # by what launches see of a workload
        self.refused: dict[str, Route] = {}  # by the reason why no workload describes the call
        self.off = planner.off
        self.computes = True
        self.met: Callable[[int, str, bool], None] | None = None
        on_gpu = planner.device.backend != "host"
        self.on_cpu: Callable[[], bool] = device.on_cpu if on_gpu else lambda: False
        self._lock = threading.RLock()

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in the original's place."""
        return self.op.wrap(original, self)

    def refuse(self, reason: str) -> None:
        """Count a call that is left to the original."""
        route = self.refused.get(reason)
        if route is None:
            route = self.refused.setdefault(reason, Route(None, reason))
        route.fallbacks += 1

    def route(self, key: Any, described: Workload | str, arrays: Sequence[Any]) -> Route:
        """The route of a call whose exact shapes are new: every token of a growing cache. `arrays`
        are evaluated before anything is decided, so that none of the caller's work is timed."""
        self.planner.seen()
        with self._lock:
            if isinstance(described, str):
                route = self.refused.setdefault(described, Route(None, described))
            else:
                launch = described.launch_key()
                known = self.launches.get(launch)
                if known is None:
                    try:
                        mx.eval(*arrays)
                    except ValueError:
                        route = Route(None, "under tracing")
                        route.substitute = self.op.substitute(described)
                        return route
                    plan = self.planner.plan(described.bucket())
                    known = self._build(described, plan, tuple(arrays))
                    known.substitute = self.op.substitute(described)
                    self.launches[launch] = known
                route = known
            self.keep(key, route)
            return route

    def keep(self, key: Any, route: Any) -> None:
        """Calls under `key` take this route."""
        with self._lock:
            if len(self.routes) >= MAX_ROUTES:
                self.routes.clear()
            self.routes[key] = route

    def proven(self, workload: Workload) -> bool:
        """Whether a stored verdict lets a kernel serve such a call."""
        return self.planner.stored(workload.bucket()) is not None

    def _build(self, exact: Workload, plan: Plan, arrays: tuple[Any, ...]) -> Route:
        if plan.kernel is None or plan.verdict is None:
            return Route(plan, plan.reason)
        try:
            call = backends.get(self.planner.device.backend).build(
                plan.kernel, plan.verdict.params, exact
            )
            # MLX is lazy: what fails to compile or to launch would raise at eval, in the user's
            # code, so this very instance is evaluated once.
            given, wrong = self.op.trial(exact, arrays)
            reason = wrong(call(*given))
            if reason:
                raise BackendError(reason)
        except Exception as error:  # whatever a compiler or a driver raises: the original serves
            if interrupted(error):
                raise KeyboardInterrupt from None
            reason = f"kernel {plan.kernel.id} does not run: {_line(error)}"
            log.warning("%s: %s; %s serves it", exact.slug, reason, self.op.stock)
            return Route(plan, reason)
        return Route(plan, plan.reason, call)

    def counts(self) -> list[Route]:
        """The routes that a plan stands behind, with their counts."""
        with self._lock:
            return [route for route in self.launches.values() if route.plan is not None]

    def fallbacks(self) -> dict[str, int]:
        """Calls that no workload describes: reason -> count."""
        with self._lock:
            return {reason: route.fallbacks for reason, route in self.refused.items()}


class Dispatcher:
    """The routers of one enabled session, one for each family that is switched on."""

    def __init__(self, planner: Planner, families: Iterable[str] = ops.FAMILIES) -> None:
        self.planner = planner
        self.routers = [Router(ops.get(name), planner) for name in families]

    def switch(self, on: bool) -> None:
        """Let calls through to kernels, or, where another library holds our replacement, past
        them."""
        if on:
            while OFF in self.planner.off:
                self.planner.off.remove(OFF)
        else:
            self.planner.off.append(OFF)

    def info(self) -> dict[str, WorkloadInfo]:
        """What each workload seen so far runs on: bucket slug -> plan, hits, fallbacks."""
        table: dict[str, WorkloadInfo] = {}
        for plan in list(self.planner.plans.values()):
            kernel, verdict = plan.kernel, plan.verdict
            table[plan.bucket.slug] = {
                "kernel": kernel.id if kernel else None,
                "name": kernel.name if kernel else None,
                "params": dict(verdict.params) if kernel and verdict else {},
                "verdict": verdict.to_json() if verdict else None,
                "reason": plan.reason,
                "hits": 0,
                "fallbacks": 0,
            }
        for router in self.routers:
            for route in router.counts():
                assert route.plan is not None
                row = table[route.plan.bucket.slug]
                row["hits"] += route.hits
                row["fallbacks"] += route.fallbacks
                if route.call is None:
                    row["reason"] = route.reason
        return table

    def fallbacks(self) -> dict[str, int]:
        """Calls that no workload describes: reason -> count."""
        counts: dict[str, int] = {}
        for router in self.routers:
            for reason, count in router.fallbacks().items():
                counts[reason] = counts.get(reason, 0) + count
        return counts


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300] if not isinstance(error, OpenEvolveError) else text[:300]
