"""Attention kernels against MLX's SDPA on this GPU, both arms in one run.

    python benchmarks/attention_grid.py [--kernel FOLDER|ID] [--params K=V,...] [--out FILE] [SLUG]

For each workload: the kernel named, or the first of tuned/ (native ones first) that applies, with
its default params unless given, after its result was compared with SDPA's. A sample is the wall
time of one call in a chain of 64, results being handed to the GPU while the next calls are built,
over caches that together exceed the last-level cache; samples come in blocks A B B A. Prints
microseconds a call, the ratio with its 99% interval, and the share of the copy bandwidth measured
in the same run. Writes every sample as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import OpenEvolveError
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.reference import mask, sdpa
from mlx_lm_openevolve.ops.attention.workload import Workload

TUNED = Path(__file__).resolve().parent.parent / "tuned" / "v1" / "kernels"
SPAN = 3  # caches cycled through, in last-level caches
BLOCKS = 12


def slugs(
    batch: int, heads: tuple[int, int], lengths: tuple[int, ...], dim: int, rest: str = "none"
) -> list[str]:
    return [
        f"attention-b{batch}-hq{heads[0]}-hkv{heads[1]}-lq1-lk{n}-d{dim}-v{dim}-bfloat16-{rest}"
        for n in lengths
    ]


DEFAULT = [
    *slugs(8, (32, 8), (1024, 4096), 128, "bool"),
    *slugs(32, (32, 8), (2048,), 128, "bool"),
    *slugs(1, (16, 8), (256, 1024, 4096, 16384, 65536), 128),
    *slugs(1, (32, 8), (256, 1024, 4096, 16384, 65536), 128),
    *slugs(1, (8, 4), (1024, 4096, 16384), 256),
    *slugs(1, (16, 8), (1024, 4096, 16384), 256),
    *slugs(1, (32, 32), (1024, 4096, 16384), 80),
    *slugs(1, (64, 8), (256, 1024, 4096), 64, "bool"),
    *slugs(1, (64, 8), (256, 1024, 4096), 64, "none-sinks"),
    *slugs(1, (64, 8), (256, 1024, 4096), 64, "bool-sinks"),
    *slugs(8, (32, 8), (65536,), 128, "bool"),
]


def kernels(chosen: str | None) -> list[Kernel]:
    if chosen:
        path = Path(chosen) if Path(chosen).is_dir() else TUNED / chosen
        return [Kernel.load(path)]
    found = [Kernel.load(path.parent) for path in sorted(TUNED.glob("*/kernel.json"))]
    return sorted(found, key=lambda k: not k.native)


def measure(
    workload: Workload,
    candidates: list[Kernel],
    given: dict[str, int],
    backend: str,
    bandwidth: float,
) -> dict[str, Any]:
    """One record: what ran, how far from SDPA, both arms' samples. `reason` where nothing ran."""
    record: dict[str, Any] = {"workload": workload.slug}
    device = detect(backend)
    memory = (device.memory or 8 << 30) // 2
    kernel = next((k for k in candidates if k.applies_to(workload)), None)
    if kernel is None:
        return {**record, "reason": "no kernel applies"}
    try:
        params = kernel.check_params({**kernel.default_params(workload), **given})
        build = backends.get(backend).build(kernel, params, workload)
        bench = timing.Bench(workload, mask(workload, 0), SPAN * device.cache, memory, 0)
        inputs = (bench.queries, *bench.caches[0], bench.scale, bench.mask, bench.sinks)
        stock = sdpa(workload, workload.head_dim**-0.5)
        ours, theirs = build(*inputs), stock(*inputs)
        difference = mx.abs(ours.astype(mx.float32) - theirs.astype(mx.float32)).max().item()
    except (OpenEvolveError, MemoryError, RuntimeError) as error:
        return {**record, "reason": str(error).splitlines()[0]}
    arms = bench.arm(stock), bench.arm(build)
    for arm in arms * 2:
        arm.seconds(timing.CHAIN)
    # as many calls and blocks as stated, whatever they take
    found = timing.paired(
        *arms, timing.SAMPLE_SECONDS / timing.CHAIN, 4.1 * timing.SAMPLE_SECONDS * BLOCKS, 0
    )
    assert found is not None
    times = found.to_json()
    best = sorted(found.b)[len(found.b) // 2]
    return {
        **record,
        "kernel": kernel.id,
        "name": kernel.name,
        "params": params,
        "max_difference_to_sdpa": difference,
        "mlx_us": sorted(found.a)[len(found.a) // 2] * 1e6,
        "ours_us": best * 1e6,
        "bandwidth_share": bench.bytes / best / bandwidth,
        **times,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="SLUG")
    parser.add_argument("--kernel", help="kernel folder, or id in tuned/")
    parser.add_argument("--params", default="", help="K=V,... instead of the kernel's defaults")
    parser.add_argument("--out", help="JSON file with every sample")
    args = parser.parse_args()
    backend = next((b for b in ("metal", "cuda") if not backends.get(b).unavailable()), None)
    if backend is None:
        print("no GPU: " + backends.get("cuda").unavailable(), file=sys.stderr)
        return 2
    given = {k: int(v) for k, v in (p.split("=") for p in args.params.split(",") if p)}
    device = detect(backend)
    bandwidth = timing.bandwidth(max(device.cache, 256 << 20))
    report: dict[str, Any] = {
        "device": device.slug,
        "name": device.name,
        "mlx": mx.__version__,
        "platform": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
        "copy_bytes_per_second": bandwidth,
        "points": [],
    }
    candidates = kernels(args.kernel)
    print(f"{device.name}, copy bandwidth {bandwidth / 1e12:.2f} TB/s", file=sys.stderr)
    print(f"{'workload':66s} {'MLX us':>8s} {'ours us':>8s} {'ratio':>6s} {'interval':>13s}  share")
    for slug in args.workloads or DEFAULT:
        workload = Workload.parse(slug)
        point = measure(workload, candidates, given, backend, bandwidth)
        report["points"].append(point)
        name = slug.removeprefix("attention-")
        if "ratio" in point:
            print(
                f"{name:66s} {point['mlx_us']:8.1f} {point['ours_us']:8.1f} {point['ratio']:6.2f} "
                f"[{point['low']:5.2f},{point['high']:5.2f}]  {point['bandwidth_share']:.0%}",
                flush=True,
            )
        else:
            print(f"{name:66s} SDPA: {point['reason']}", flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(report) + "\n")
        mx.clear_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
