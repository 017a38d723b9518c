"""A stand-in for what decides which kernel serves a call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__all__ = ["Routes"]


class Routes:
    """A router that has one kernel for all."""

    def __init__(self, call: Any) -> None:
        self.routes, self.off, self.computes, self.call = dict[Any, Any](), [], True, call
        self.met = None

    def on_cpu(self) -> bool:
        return False

    def route(self, key: Any, described: Any, arrays: Any) -> Any:
        return self.routes.setdefault(
            key, SimpleNamespace(call=self.call, substitute=None, hits=0, fallbacks=0)
        )
