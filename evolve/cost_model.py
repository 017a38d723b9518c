"""The cost model: seconds a kernel would take on a nominal GPU, from what metalhost counted.

The counters rank memory behaviour; they do not predict time. A modelled time steers a search on a
machine without a GPU, is labelled modelled wherever it appears, and is never published to a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import Bucket, Workload
from mlx_lm_openevolve.ops.base import NominalChip

from .evaluation import Point

__all__ = [
    "NOMINAL",
    "bound",
    "floor",
    "kernel_seconds",
    "launch_seconds",
    "stock_seconds",
    "traffic",
]


# Of the size of a laptop's larger GPU; only ratios of modelled times are ever used.
NOMINAL = NominalChip(400e9, 1600e9, 14e12, 1.3e9, 4e-6, 40, 1024)


def floor(w: Workload, bandwidth: float, peak: float, launch: float) -> tuple[float, str]:
    """(seconds below which no implementation goes, what bounds it: memory, compute or launch)."""
    bounds = {"memory": w.moved_bytes() / bandwidth, "compute": w.flops() / peak, "launch": launch}
    return max(bounds.values()), bound(bounds)


def bound(bounds: Mapping[str, float]) -> str:
    """The name of the largest bound."""
    return max(bounds, key=lambda name: bounds[name])


def _seconds(lines: float, moved: float, work: float, threads: int, chip: NominalChip) -> float:
    # A core that lacks threads to hide latency runs at a share of its rates.
    filled = min(1.0, threads / (chip.cores * chip.threads))
    share = 0.1 + 0.9 * filled
    return max(moved / chip.bandwidth, lines / chip.cache, work / chip.flops) / share


def launch_seconds(seen: Mapping[str, float], threads: int, chip: NominalChip = NOMINAL) -> float:
    """Modelled seconds of one launch of so many threads, from its `traffic`."""
    seconds = _seconds(seen["lines"], seen["compulsory"], seen["flops"], threads, chip)
    # Barriers and bank conflicts stall a threadgroup; the cores take threadgroups side by side.
    stalled = (seen["barriers"] * 40 + seen["threadgroup_cycles"]) / (chip.cores * chip.clock)
    return chip.launch + seconds + stalled


def kernel_seconds(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Bucket,
    points: Sequence[Point],
    chip: NominalChip = NOMINAL,
) -> float:
    """Modelled seconds of one call at a bucket's upper end, from counters of small workloads, which
    grow as the family says (SearchSpace.growth)."""
    total = 0.0
    for i, launch in enumerate(kernel.launches(workload, params)):
        threads = launch.grid[0] * launch.grid[1] * launch.grid[2]
        rows = [(ops.parse(point.on), traffic(point.counters[i])) for point in points]
        seen = _extrapolated(workload, rows)
        total += launch_seconds(seen, threads, chip)
    return total


def _extrapolated(
    workload: Workload, points: Sequence[tuple[Workload, Mapping[str, float]]]
) -> dict[str, float]:
    """Counters of a workload: each grows with the rows, and by a straight line through two points
    with the length."""
    growth = ops.of(workload).search.growth
    (short, first), (long, last) = points[0], points[-1]
    (rows, length), (short_rows, start), (long_rows, end) = map(growth, (workload, short, long))
    grown = {}
    for name in first:
        a, b = first[name] / short_rows, last[name] / long_rows
        slope = max(0.0, (b - a) / (end - start)) if end != start else 0.0
        grown[name] = rows * (a + slope * (length - start))
    return grown


def traffic(counters: Mapping[str, Any]) -> dict[str, float]:
    """The counters that are modelled: bytes of the lines touched, bytes that had to move, flops,
    barriers and cycles of threadgroup memory."""
    lines = counters.get("read_lines", 0) + counters.get("write_lines", 0)
    moved = counters.get("compulsory_read_bytes", 0) + counters.get("compulsory_write_bytes", 0)
    return {
        "lines": 128.0 * lines,
        "compulsory": float(moved),
        "flops": float(counters.get("flops", 0)),
        "barriers": float(counters.get("barriers", 0)),
        "threadgroup_cycles": float(counters.get("threadgroup_cycles", 0)),
    }


def stock_seconds(bucket: Bucket, chip: NominalChip = NOMINAL) -> float:
    """Modelled seconds of the original."""
    launches, requested, moved, threads = ops.of(bucket).search.stock_traffic(bucket)
    return launches * chip.launch + _seconds(requested, moved, bucket.flops(), threads, chip)
