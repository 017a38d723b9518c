"""Records: what the events of a run hold: candidates, their results and their fates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Candidate", "Done", "Result", "geomean"]


@dataclass(frozen=True)
class Candidate:
    """Something to try: a kernel on workloads, with params or (None) its defaults.

    kernel is an id in the run's registry, "" where a proposal held none: `error` then says why.
    parent is the kernel it was made from. cost: tokens_in, tokens_out, money, model, answer.
    """

    number: int
    proposer: str
    kernel: str
    workloads: tuple[str, ...]
    params: Mapping[str, int] | None = None
    parent: str = ""
    note: str = ""
    cause: str = ""
    error: str = ""
    repairs: int = 0  # number of the candidate that this one repairs, 0 for none
    island: int = 0
    cost: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data without empty fields."""
        data = {**vars(self), "workloads": list(self.workloads)}
        return {key: value for key, value in data.items() if value not in ("", None, {}, [])}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """What `to_json` wrote."""
        fields = {"kernel": "", **data, "workloads": tuple(data.get("workloads", ()))}
        return cls(**fields)


@dataclass(frozen=True)
class Result:
    """What a candidate did on one workload: seconds of one call, SDPA's time over it with the
    interval, spread (std over mean), margin to the tolerance, and whether time was modelled."""

    params: Mapping[str, int]
    seconds: float
    ratio: float
    low: float
    high: float
    spread: float = 0.0
    margin: float = 1.0
    error: float = 0.0
    modelled: bool = False
    counters: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A candidate's fate. cause is "" for a valid one, else one word for the statistics; finding
    is the exact text. check and measure are seconds spent."""

    cause: str = ""
    finding: str = ""
    results: Mapping[str, Result] = field(default_factory=dict)
    check: float = 0.0
    measure: float = 0.0
    host: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data without empty fields."""
        results = {slug: vars(result) for slug, result in self.results.items()}
        data = {**vars(self), "results": results}
        return {key: value for key, value in data.items() if value not in ("", {}, 0.0)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Done:
        """What `to_json` wrote."""
        results = {slug: Result(**result) for slug, result in data.get("results", {}).items()}
        return cls(**{**data, "results": results})


def geomean(
    results: Sequence[Result | None], weights: Sequence[float]
) -> tuple[float, float, float]:
    """Weighted geometric mean of speed-ups with its interval; None is SDPA itself (1.0 exactly).
    The intervals are taken as independent on the log scale."""
    total = sum(weights) or 1.0
    mean = variance = 0.0
    for result, weight in zip(results, weights, strict=True):
        if result is not None:
            share = weight / total
            mean += share * math.log(result.ratio)
            half = (math.log(result.high) - math.log(result.low)) / 2
            variance += (share * half) ** 2
    half = math.sqrt(variance)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
