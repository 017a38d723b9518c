"""The cost model: seconds a kernel would take on a nominal GPU, from what metalhost counted.

The counters rank memory behaviour; they do not predict time. A modelled time steers a search on a
machine without a GPU, is labelled modelled wherever it appears, and is never published to a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.workload import Workload

from .evaluation import Point

__all__ = [
    "NOMINAL",
    "Roof",
    "bound",
    "compulsory",
    "floor",
    "kernel_seconds",
    "sdpa_seconds",
    "traffic",
]


@dataclass(frozen=True)
class Roof:
    """A chip in seven numbers: bytes a second from memory and from its cache, flops and cycles a
    second, seconds of a launch, cores, and threads that fill a core."""

    bandwidth: float
    cache: float
    flops: float
    clock: float
    launch: float
    cores: int
    threads: int


# Of the size of a laptop's larger GPU; only ratios of modelled times are ever used.
NOMINAL = Roof(400e9, 1600e9, 14e12, 1.3e9, 4e-6, 40, 1024)


def compulsory(w: Workload) -> int:
    """Bytes that any implementation must move: keys and values once, queries, result and mask."""
    rows = w.batch * w.q_heads * w.q_len
    mask = w.batch * w.q_len * w.kv_len if w.mask == "bool" else 0
    if w.mask == "additive":
        mask = rows * w.kv_len * w.element_bytes
    return w.kv_bytes() + rows * (w.head_dim + w.v_head_dim) * w.element_bytes + mask


def flops(w: Workload) -> float:
    """Multiplications and additions of attention; half of them where the mask is causal."""
    pairs = w.batch * w.q_heads * w.q_len * w.kv_len
    seen = 0.5 if w.mask == "causal" and w.q_len * 2 > w.kv_len else 1.0
    return 2.0 * pairs * (w.head_dim + w.v_head_dim) * seen


def floor(w: Workload, bandwidth: float, peak: float, launch: float) -> tuple[float, str]:
    """(seconds below which no implementation goes, what bounds it: memory, compute or launch)."""
    bounds = {"memory": compulsory(w) / bandwidth, "compute": flops(w) / peak, "launch": launch}
    return max(bounds.values()), bound(bounds)


def bound(bounds: Mapping[str, float]) -> str:
    """The name of the largest bound."""
    return max(bounds, key=lambda name: bounds[name])


def _seconds(lines: float, moved: float, work: float, threads: int, roof: Roof) -> float:
    # A core that lacks threads to hide latency runs at a share of its rates.
    filled = min(1.0, threads / (roof.cores * roof.threads))
    share = 0.1 + 0.9 * filled
    return max(moved / roof.bandwidth, lines / roof.cache, work / roof.flops) / share


def kernel_seconds(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    points: Sequence[Point],
    roof: Roof = NOMINAL,
) -> float:
    """Modelled seconds of one call at a bucket's upper end, from counters of small workloads: each
    grows with the query rows, and by a straight line through two lengths with the keys."""
    total = 0.0
    for i, launch in enumerate(kernel.launches(workload, params)):
        threads = launch.grid[0] * launch.grid[1] * launch.grid[2]
        rows = [(Workload.parse(point.on), traffic(point.counters[i])) for point in points]
        seen = _extrapolated(workload, rows)
        total += roof.launch
        total += _seconds(seen["lines"], seen["compulsory"], seen["flops"], threads, roof)
        # Barriers and bank conflicts stall a threadgroup; the cores take threadgroups side by side.
        total += (seen["barriers"] * 40 + seen["threadgroup_cycles"]) / (roof.cores * roof.clock)
    return total


def _extrapolated(
    workload: Workload, points: Sequence[tuple[Workload, Mapping[str, float]]]
) -> dict[str, float]:
    def rows(w: Workload) -> int:
        return w.batch * w.q_heads * w.q_len

    (short, first), (long, last) = points[0], points[-1]
    grown = {}
    for name in first:
        a, b = first[name] / rows(short), last[name] / rows(long)
        apart = long.kv_len - short.kv_len
        slope = max(0.0, (b - a) / apart) if apart else 0.0
        grown[name] = rows(workload) * (a + slope * (workload.kv_len - short.kv_len))
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


def sdpa_seconds(w: Workload, roof: Roof = NOMINAL) -> float:
    """Modelled seconds of MLX's own attention: each query head reads its keys and values (those
    it shares come from the cache), one threadgroup for each query row, two launches from 4096 keys
    on; in prefill blocks of 32 rows share a read. Over a quantised cache mlx-lm has three
    operations, product, softmax, product, with the scores in memory between them."""
    rows = w.batch * w.q_heads * w.q_len
    if w.kv_bits:
        scores = 4 * rows * w.kv_len * w.element_bytes  # each written and read twice
        moved = compulsory(w) + scores
        return 3 * roof.launch + _seconds(moved, moved, flops(w), rows * 128, roof)
    again = w.group * w.q_len if w.q_len <= 8 else w.group * max(1, w.q_len // 32)
    split = w.q_len <= 8 and w.kv_len >= 4096
    threads = rows * (1024 if w.q_len <= 8 else 4) * (32 if split else 1)
    launches = 2 if split else 1
    requested = w.kv_bytes() * again
    return launches * roof.launch + _seconds(requested, compulsory(w), flops(w), threads, roof)
