"""GPU time of PyTorch's SDPA backends on attention workloads, by CUDA graph.

    python benchmarks/torch_reference.py [--out FILE] [SLUG ...]

Needs PyTorch with CUDA; neither mlx nor this library. A graph holds one call for each of several
caches, together larger than the L2 cache, so that every call reads device memory, as in a model.
Prints microseconds a call (median of the replays) and writes every sample as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
SLUG = re.compile(
    r"attention-b(\d+)-hq(\d+)-hkv(\d+)-lq(\d+)-lk(\d+)-d(\d+)-v(\d+)-(\w+16|float32)-(none|causal|bool)"
)
DEFAULT = [
    *(
        f"attention-b1-hq16-hkv8-lq1-lk{n}-d128-v128-bfloat16-none"
        for n in (256, 1024, 4096, 16384, 65536)
    ),
    *(f"attention-b1-hq32-hkv8-lq1-lk{n}-d128-v128-bfloat16-none" for n in (1024, 4096, 16384)),
    *(
        f"attention-b{b}-hq32-hkv8-lq1-lk{n}-d128-v128-bfloat16-{m}"
        for b, n in ((8, 1024), (8, 4096), (32, 2048))
        for m in ("none", "bool")
    ),
    *(f"attention-b1-hq16-hkv8-lq1-lk{n}-d256-v256-bfloat16-none" for n in (1024, 4096, 16384)),
]
CACHE_BYTES = 200e6
REPLAYS = 15


def graph_microseconds(calls: list[Callable[[], Any]]) -> list[float]:
    """Microseconds a call of each replay of one graph that holds all `calls`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        kept = [call() for call in calls]
    graph.replay()
    samples = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / len(calls))
    del kept
    return samples


def copy_bandwidth() -> float:
    """Bytes read and written by a large device-to-device copy, a second."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    samples = graph_microseconds([lambda: target.copy_(source)] * 4)
    return 2 * source.numel() / statistics.median(samples) * 1e6


def measure(slug: str) -> list[dict[str, Any]]:
    """One record for each backend; `error` where a backend does not take the workload."""
    match = SLUG.fullmatch(slug)
    if match is None:
        raise SystemExit(f"not a workload that PyTorch's SDPA takes: {slug!r}")
    b, hq, hkv, lq, lk, d, dv = (int(match[i]) for i in range(1, 8))
    dtype = getattr(torch, match[8])
    size = b * hkv * lk * (d + dv) * dtype.itemsize
    arguments = []
    for _ in range(max(2, min(100, math.ceil(CACHE_BYTES / size)))):
        queries = torch.randn(b, hq, lq, d, device="cuda", dtype=dtype)
        # a cache as models keep it: slices of longer buffers
        keys = torch.randn(b, hkv, lk + 256, d, device="cuda", dtype=dtype)[:, :, :lk]
        values = torch.randn(b, hkv, lk + 256, dv, device="cuda", dtype=dtype)[:, :, :lk]
        arguments.append((queries, keys, values))
    mask = None
    if match[9] == "bool":
        mask = torch.ones(b, 1, lq, lk, dtype=torch.bool, device="cuda")
    records = []
    for name, backend in BACKENDS.items():
        record: dict[str, Any] = {"workload": slug, "backend": name}

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=match[9] == "causal", enable_gqa=hq != hkv
            )

        try:
            with sdpa_kernel(backend):
                calls = [lambda a=a: call(*a) for a in arguments]  # type: ignore[misc]
                record["samples_us"] = graph_microseconds(calls)
                record["us"] = statistics.median(record["samples_us"])
        except RuntimeError as error:
            record["error"] = str(error).splitlines()[0][:200]
            torch.cuda.synchronize()
        records.append(record)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=DEFAULT, metavar="SLUG")
    parser.add_argument("--out", help="JSON file with every sample")
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "copy_bytes_per_second": bandwidth,
        "points": [],
    }
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s", file=sys.stderr)
    for slug in args.workloads:
        records = measure(slug)
        report["points"] += records
        cells = [
            f"{r['backend']} {r['us']:.1f}" if "us" in r else f"{r['backend']} -" for r in records
        ]
        print(f"{slug:76s} {'  '.join(cells)}", flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
