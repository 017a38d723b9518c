"""GPU time of kernels on NVIDIA by CUDA graph, with PyTorch's attention backends beside.

    python benchmarks/gpu_time.py [--sweep [NAME=VALUE,... ...]] [--no-torch] [--output FILE]
                                  [--workloads SLUG ...] [--kernel FOLDER ...] [--seconds N]

The kernels of tuned/ are checked against float64 and launched from a graph that holds one call for
each of several caches or matrices, together larger than the L2 cache, so that every call reads
device memory, as in a model; PyTorch's SDPA the same, on the same arrays. Prints microseconds a
call (median of the replays). --sweep tries many params of each kernel. --seconds: no workload is
begun after so many, and they are taken in a drawn order, always the same one, so that what is left
out is no one kind. Needs what torch_launch.py needs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_launch import TOLERANCE, Call, carried, cubins_of, inputs, reference, shipped

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.ops.linear.workload import Workload as Product

DEFAULT = [
    *(
        f"attention-b1-hq{h}-hkv8-lq1-lk{n}-d128-v128-bfloat16-none"
        for h in (16, 32)
        for n in (256, 1024, 4096, 16384, 65536)
    ),
    *(
        f"attention-b{b}-hq32-hkv8-lq1-lk{n}-d128-v128-bfloat16-bool"
        for b, n in ((8, 1024), (8, 4096), (32, 2048))
    ),
    *(f"attention-b1-hq16-hkv8-lq1-lk{n}-d256-v256-bfloat16-none" for n in (1024, 4096, 16384)),
    *(f"attention-b1-hq32-hkv32-lq1-lk{n}-d80-v80-bfloat16-none" for n in (1024, 4096, 16384)),
    *(f"attention-b1-hq64-hkv8-lq1-lk{n}-d64-v64-bfloat16-bool-sinks" for n in (256, 1024, 4096)),
]
SWEEP = {
    "splits": (1, 2, 3, 4, 6, 8, 16, 32, 64),
    "warps": (2, 4, 8, 16),
    "fused": (0, 1),
    "simdgroups": (4, 8),
    "unroll": (2, 4),
    "tiles": (1, 2, 4),
    "ahead": (2, 4),
    "chunk": (64, 128),
}
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
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


def facts() -> dict[str, Any]:
    """What the defaults of a kernel's params see of this GPU, as on MLX."""
    memory = torch.cuda.get_device_properties(0).total_memory
    return replace(detect("cuda"), name=torch.cuda.get_device_name(), memory=memory).facts()


def pytorch(w: Workload, sets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each of PyTorch's backends; `error` where it does not take the workload."""
    records = []
    for name, backend in BACKENDS.items():
        record: dict[str, Any] = {"workload": w.slug, "backend": name}

        def call(arrays: dict[str, Any]) -> torch.Tensor:
            return F.scaled_dot_product_attention(
                *(arrays[name] for name in ("queries", "keys", "values")),
                attn_mask=arrays.get("mask"),
                is_causal=w.mask == "causal",
                enable_gqa=w.q_heads != w.kv_heads,
            )

        try:
            with sdpa_kernel(backend):
                samples = graph_microseconds([partial(call, a) for a in sets])
                record["us"] = statistics.median(samples)
        except RuntimeError as error:
            record["error"] = str(error).splitlines()[0][:200]
            torch.cuda.synchronize()
        records.append(record)
    return records


def variants(
    kernel: Kernel, w: Workload | Product, sweep: dict[str, tuple[int, ...]]
) -> Iterator[dict[str, int]]:
    """A kernel's default params, and all that `sweep` has for it."""
    default = kernel.default_params(w)
    with contextlib.suppress(KernelError):
        kernel.launches(w, default)
        yield default
    names = [p.name for p in kernel.params if p.name in sweep]
    for values in itertools.product(*(sweep[name] for name in names)):
        params = {**default, **dict(zip(names, values, strict=True))}
        try:
            kernel.launches(w, params)
        except KernelError:
            continue
        keys = getattr(w, "kv_len", None)  # a product's splits may be any
        too_many = keys is not None and params.get("splits", 0) * 64 > max(64, keys)
        if params != default and not too_many:
            yield params


def written(report: dict[str, Any]) -> str:
    """A report as JSON, one point a line."""
    points = ",\n".join(map(json.dumps, report["points"]))
    head = json.dumps({name: value for name, value in report.items() if name != "points"})
    return f'{head[:-1]}, "points": [\n{points}\n]}}\n'


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=DEFAULT, metavar="SLUG")
    parser.add_argument("--kernel", nargs="+", default=[], metavar="FOLDER", help="only these")
    parser.add_argument(
        "--sweep", nargs="*", metavar="NAME=VALUE,...", help="many params of each kernel, or these"
    )
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch's backends out")
    parser.add_argument("--output", type=Path, help="JSON file with every point")
    parser.add_argument("--seconds", type=float, help="begin nothing after so many")
    args = parser.parse_args()
    named = (text.partition("=")[::2] for text in args.sweep or ())
    sweep = {name: tuple(map(int, values.split(","))) for name, values in named}
    if args.sweep == []:
        sweep = SWEEP
    workloads = [ops.parse(slug) for slug in args.workloads]
    if args.seconds is not None:
        random.Random(0).shuffle(workloads)
    kernels = [Kernel.load(folder) for folder in args.kernel] or shipped()
    plan = [
        (
            w,
            [
                (k, p)
                for k in kernels
                if k.applies_to(w)
                for p in variants(k, w, sweep)
                if carried(k, p, w)
            ],
        )
        for w in workloads
    ]
    cubins = cubins_of((kernel, params, w) for w, tried in plan for kernel, params in tried)
    print(f"{len(cubins)} sources compiled after {time.monotonic() - start:.0f} s", flush=True)
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "facts": facts(),
        "copy_bytes_per_second": bandwidth,
        "points": [],
    }
    for done, (w, tried) in enumerate(plan):
        if args.seconds is not None and time.monotonic() - start > args.seconds:
            print(f"{args.seconds:g} s are over: {done} of {len(plan)} workloads measured")
            break
        sets = inputs(w)
        expected = reference(w, sets[0])
        rows = []
        for kernel, params in tried:
            point: dict[str, Any] = {"workload": w.slug, "kernel": kernel.name, "id": kernel.id}
            point["params"] = params
            try:
                call = Call(kernel, params, w, cubins)
                out = call.bind(sets[0])().double()
                error = float((out - expected).norm() / expected.norm())
                if not error < TOLERANCE[w.dtype]:
                    raise RuntimeError(f"wrong by {error}")
                samples = graph_microseconds([call.bind(arrays) for arrays in sets])
                point["us"] = round(statistics.median(samples), 3)
                point["range_us"] = [round(min(samples), 3), round(max(samples), 3)]
                rows.append(point)
            except (RuntimeError, TypeError) as problem:
                point["reason"] = str(problem).splitlines()[0]
            report["points"].append(point)
        attention = isinstance(w, Workload) and w.variant == "float"
        fits = attention and w.mask != "additive" and not w.sinks
        torch_points = [] if args.no_torch or not fits else pytorch(w, sets)
        report["points"] += torch_points
        floor = w.stored_bytes() / bandwidth * 1e6
        beside = "  ".join(f"{p['backend']} {p['us']:.1f}" for p in torch_points if "us" in p)
        at = f"{time.monotonic() - start:.0f} s"
        print(f"{w.slug}  after {at}  at copy bandwidth {floor:.1f}  {beside}")
        for point in sorted(rows, key=lambda p: float(p["us"]))[:4]:
            print(f"  {point['us']:8.2f} us  {point['kernel']} {point['params']}", flush=True)
        if args.output:
            args.output.write_text(written(report))
        del sets, expected
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
