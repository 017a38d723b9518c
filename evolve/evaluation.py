"""What is asked of a worker and what it answers, and what both come to: an evaluation.

    Request -> HostCheck, Measurement -> WorkloadResult -> Evaluation

Times are seconds of one call. A ratio is the time of MLX's own attention ("SDPA") over the
kernel's, low and high the ends of its interval; all are 0 without a GPU, where nothing is timed. A
cause is "" where all is well, else one word for the statistics; finding is the exact text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm_openevolve.kernels.kernel import Kernel

from .record import Record

MACHINE = "machine"  # the cause of what is no candidate's fault: the run ends, and can go on later
TIMEOUT = "timeout"  # the GPU ended it for its time: asked once more, then it is "hang"


@dataclass(frozen=True)
class Request(Record):
    """What a worker is asked; op is "check", "measure", "baseline" or "gate", workload a slug.

    A kernel travels with its whole content; params None: its defaults. best: the least seconds
    known, and sdpa_seconds: SDPA's when the run began, 0 where they are not known. seconds: to be
    spent on timing.
    """

    op: str
    workload: str
    seed: int
    kernel: Kernel | None = None
    params: Mapping[str, int] | None = None
    backend: str = ""
    best: float = 0.0
    seconds: float = 0.0
    sdpa_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = super().to_json()
        if self.kernel is not None:
            data["kernel"] = {"meta": dict(self.kernel.meta), "sources": dict(self.kernel.sources)}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """What `to_json` wrote. Raises KernelError."""
        content = data.get("kernel")
        kernel = Kernel.from_parts(content["meta"], content["sources"]) if content else None
        return super().from_json({**data, "kernel": kernel})


@dataclass(frozen=True)
class HostCheck(Record):
    """What the host said of a candidate for one workload.

    host: why there was no check, "" where there was one. seconds: what it took. margin: the share
    of the tolerance that is left; error: the largest one. counters: of the longest call, all
    launches together (see check).
    """

    cause: str = ""
    finding: str = ""
    host: str = ""
    seconds: float = 0.0
    params: Mapping[str, int] = field(default_factory=dict)
    margin: float = 1.0
    error: float = 0.0
    counters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement(Record):
    """What a candidate did on one workload, where cause is "": spread is its samples' standard
    deviation over their mean, trials their number; aborted: timed no longer than must be."""

    cause: str = ""
    finding: str = ""
    params: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    spread: float = 0.0
    margin: float = 1.0
    error: float = 0.0
    trials: int = 0
    aborted: bool = False


@dataclass(frozen=True)
class WorkloadResult(Record):
    """What is kept of a candidate's measurement on one workload; counters: those of the host check;
    profile: that of the GPU (see ncu)."""

    params: Mapping[str, int]
    seconds: float = 0.0
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    spread: float = 0.0
    margin: float = 1.0
    error: float = 0.0
    counters: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkloadResult:
        """What `to_json` wrote. Raises ValueError or TypeError where there is nothing to rank it
        by: neither a time and a speed-up nor bytes."""
        result = super().from_json({"params": {}, **data})
        times = (result.seconds, result.ratio, result.low, result.high)
        if any(times) and not min(times) > 0:
            raise ValueError("a result is timed in part")
        if not any(times) and not result.counted:
            raise ValueError("a result has neither a time nor the bytes that were moved")
        return result

    @property
    def counted(self) -> bool:
        """Whether its bytes are known: those moved, and the least."""
        return all(self.counters.get(name, 0) > 0 for name in ("moved_bytes", "least_bytes"))

    @property
    def cost(self) -> float:
        """What a search wants less of: seconds, or where nothing was timed bytes moved."""
        return self.seconds or float(self.counters["moved_bytes"])

    @property
    def score(self) -> float:
        """What results are ranked by, more is better: the speed-up, or where nothing was timed the
        least bytes that any kernel must move over those that this one moves."""
        return self.ratio or self.counters["least_bytes"] / self.counters["moved_bytes"]

    def __str__(self) -> str:
        return f"{self.ratio:.3f}x" if self.ratio else f"{1 / self.score:.2f}x the least bytes"


@dataclass(frozen=True)
class Evaluation(Record):
    """What came of a candidate: results by workload; check and measure are seconds spent; host: why
    it was not checked on the host, "" where it was; elsewhere: what other chips of a fleet say of
    it, by the chip's slug."""

    cause: str = ""
    finding: str = ""
    results: Mapping[str, WorkloadResult] = field(default_factory=dict)
    check: float = 0.0
    measure: float = 0.0
    host: str = ""
    elsewhere: Mapping[str, Evaluation] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """What `to_json` wrote."""
        rows = data.get("results", {}).items()
        results = {slug: WorkloadResult.from_json(row) for slug, row in rows}
        chips = data.get("elsewhere", {}).items()
        elsewhere = {chip: Evaluation.from_json(done) for chip, done in chips}
        return super().from_json({**data, "results": results, "elsewhere": elsewhere})

    def __str__(self) -> str:
        if self.cause:
            return f"failed: {self.cause}"
        rows = [str(result) for result in self.results.values()]
        return " ".join([*rows[:4], *(["..."] if rows[4:] else [])])


def geomean(
    results: Sequence[WorkloadResult | None], weights: Sequence[float]
) -> tuple[float, float, float]:
    """(score, low, high): the weighted geometric mean with its interval; None is SDPA itself (1.0
    exactly). The intervals are taken as independent on the log scale; bytes have none."""
    total = sum(weights) or 1.0
    mean = variance = 0.0
    for result, weight in zip(results, weights, strict=True):
        if result is not None:
            share = weight / total
            mean += share * math.log(result.score)
            if result.ratio:
                half = (math.log(result.high) - math.log(result.low)) / 2
                variance += (share * half) ** 2
    half = math.sqrt(variance)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
