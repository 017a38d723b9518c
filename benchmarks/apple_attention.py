"""MLX's own attention kernels at the points that others have reported for named chips.

The counters come from metalhost at LENGTHS keys, as MLX's host code launches the kernels for the
full length on that chip, and are continued to it by a straight line.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import metal_counters
import mlx_attention
from apple_model import Model, NominalChip, modelled, ordered_alike
from metal_counters import Arrays, shape

from mlx_lm_openevolve.ops.attention.workload import Workload

LENGTHS = 1024, 2048
M5_PRO, M5_MAX, M1_ULTRA = "apple-m5-pro-20", "apple-m5-max-40", "apple-m1-ultra-64"
M5_CLOCK = 1.74e9  # of the M5; no public figure for its larger chips


@dataclass(frozen=True)
class Chip:
    """One Apple GPU. bandwidth in bytes a second, rates in operations a second; None: no public
    figure. `sources` says where each figure is from."""

    slug: str
    name: str
    gpu_cores: int
    bandwidth: float
    fp32: float | None
    fp16: float | None
    sources: Mapping[str, str]


@functools.lru_cache(maxsize=1)
def chips() -> dict[str, Chip]:
    """The chips of chips.json, by slug."""
    path = Path(__file__).with_name("chips.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    sources = data["sources"]
    by_slug = {}
    for row in data["chips"]:
        named = {k: sources[v] for k, v in row["sources"].items()}
        by_slug[row["slug"]] = Chip(
            row["slug"], row["name"], row["gpu_cores"], row["bandwidth_gb_s"] * 1e9,
            row["fp32_gflops"] and row["fp32_gflops"] * 1e9,
            row["fp16_gflops"] and row["fp16_gflops"] * 1e9, named,
        )  # fmt: skip
    return by_slug


def keys_at(w: Workload, gigabytes_a_second: float) -> float:
    """Seconds to read all keys and values at a rate."""
    return w.kv_len * w.kv_heads * (w.head_dim + w.v_head_dim) * 2 / (gigabytes_a_second * 1e9)


def points() -> Iterator[tuple[str, Workload, float, str]]:
    """Chip, workload, seconds that were reported, and where."""
    rates = {  # GB/s at 2048, 8192 and 32768 keys, by query heads, heads and width of keys
        (32, 32, 128): (239, 282, 281),
        (32, 8, 128): (234, 263, 264),
        (32, 4, 128): (130, 184, 190),
        (64, 8, 64): (76, 113, 119),
    }
    for (heads, kv, dim), reached in rates.items():
        for keys, rate in zip((2048, 8192, 32768), reached, strict=True):
            w = shape(heads, kv, dim, keys, dtype="float16")
            yield M5_PRO, w, keys_at(w, rate), "ml-explore/mlx#4076"
    for heads, seconds in ((48, 540.6e-6), (64, 675.3e-6)):
        yield M5_PRO, shape(heads, 4, 128, 32768), seconds, "ml-explore/mlx#4380"
    source = "ml-explore/mlx#3837"
    for kv, seconds in ((1, 0.307e-3), (2, 0.326e-3), (4, 0.351e-3), (8, 0.451e-3), (32, 1.148e-3)):
        yield M5_MAX, shape(32, kv, 128, 32768), seconds, source
    wide = shape(32, 4, 256, 100_000)
    yield M1_ULTRA, wide, 2.3e-3, source
    yield M1_ULTRA, replace(wide, q_len=2), 5.39e-3, source
    # With 12 queries an M5 runs a kernel for its matrix units, which metalhost has not.
    w = shape(32, 8, 128, 16384, q_len=8, dtype="float16")
    yield M5_MAX, w, 0.81e-3, "ml-explore/mlx#3826"


def class_of(chip: str) -> str:
    """The class of mlx_attention.CHIPS that a chip of chips.json belongs to."""
    return "Max" if "-max-" in chip else "Ultra" if "-ultra-" in chip else "base, Pro"


def nominal(slug: str) -> NominalChip:
    """A chip of chips.json in the model's seven numbers."""
    chip = chips()[slug]
    clock = 1.296e9 if "-m1-" in slug else M5_CLOCK
    flops = chip.fp32 or chip.gpu_cores * 256 * clock
    return NominalChip(chip.bandwidth, 4 * chip.bandwidth, flops, clock, 4e-6, chip.gpu_cores, 1024)


def route(slug: str, w: Workload) -> mlx_attention.Route:
    """How MLX ran it when the points were reported: before the variant for groups of eight."""
    found = mlx_attention.route(w, mlx_attention.CHIPS[class_of(slug)])
    assert found is not None
    name, blocks, _ = found
    return name.removesuffix("_gqa"), blocks, 0


def launches(slug: str, w: Workload) -> list[dict[str, Any]]:
    """The launches of a workload as MLX ran it on a chip, with their counters."""
    at = [
        next(metal_counters.own(Arrays.of(replace(w, kv_len=length)), route(slug, w)))
        for length in LENGTHS
    ]
    growth = (w.kv_len - LENGTHS[0]) / (LENGTHS[1] - LENGTHS[0])
    found = []
    for short, long in zip(*(row.counters for row in at), strict=True):
        few, many = short.to_dict(), long.to_dict()
        counters = {k: few[k] + growth * (many[k] - few[k]) for k in few}
        threads = counters["threads"] // counters["threadgroups"]
        found.append({
            "kernel": at[0].name, "repeats": 1, "grid": [counters["threads"], 1, 1],
            "threadgroup": [threads, 1, 1], "counters": counters,
        })  # fmt: skip
    return found


def worth(model: Model) -> dict[str, Any]:
    """Each point with its modelled seconds, and how the model orders those of one chip and length
    of keys."""
    rows: list[dict[str, Any]] = []
    same: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for chip, w, seconds, source in points():
        ours = modelled(launches(chip, w), model, nominal(chip))
        rows.append({"chip": chip, "workload": w.slug, "seconds": float(f"{seconds:.4g}"),
                     "source": source, "modelled": float(f"{ours:.4g}"),
                     "ratio": round(ours / seconds, 2)})  # fmt: skip
        same.setdefault((chip, w.kv_len), []).append((seconds, ours))
    counts = [ordered_alike(*zip(*found, strict=True)) for found in same.values()]
    pairs = sum(n for _, n in counts)
    return {"pairs": pairs, "alike": round(sum(a for a, _ in counts) / pairs, 3), "rows": rows}
