"""Counters of a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Counters"]


@dataclass(frozen=True)
class Counters:
    """What one launch did."""

    barriers: int = 0

    @classmethod
    def parse(cls, report: str, arguments: Mapping[int, Any]) -> Counters:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
