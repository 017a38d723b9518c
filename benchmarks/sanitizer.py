"""The kernels of tuned/ under NVIDIA's compute-sanitizer, on this GPU.

    python benchmarks/sanitizer.py [--tool memcheck racecheck] [--kernel FOLDER ...] [--output FILE]

Each kernel runs on a few small workloads: enough of them that every launch that CUDA carries runs
over each kind of cache and under each kind of mask below, or over each packing and number of rows,
and its results are compared with float64. They are launched by torch_launch.py, without MLX, whose
own memory the sanitizer cannot follow; each array is an allocation of its own. racecheck follows
shared memory, memcheck all of it. A kernel that races and one that reads beyond its keys go along,
without which silence would prove nothing.

Prints what was found for each, writes it as JSON, and exits with 1 where a kernel is found guilty,
answers wrongly, or a tool lets its culprit go.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch_launch
from cuda_texts import Planned

from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import parse
from mlx_lm_openevolve.ops.attention.workload import Workload

TOOLS = ("memcheck", "racecheck")
PROCESSES = 8
WORKLOADS = [
    *(
        f"attention-b2-hq8-hkv2-lq{q}-lk201-d{d}-v{d}-bfloat16-{rest}"
        for q, d in ((1, 128), (1, 256), (1, 512), (8, 128), (8, 512), (64, 64), (64, 256))
        for rest in ("none", "causal", "bool-sinks", "additive")
        if q > 1 or rest != "causal"
    ),
    *(
        f"attention-b2-hq8-hkv2-lq{q}-lk201-d128-v128-bfloat16-{mask}-kv{bits}g64"
        for q in (1, 8, 64)
        for bits in (4, 8)
        for mask in ("none", "bool", "additive")
    ),
    *(
        f"attention-b1-hq{heads}-hkv1-lq1-lk201-d512-v512-bfloat16-{mask}-latent"
        for heads in (16, 128)
        for mask in ("additive", "bool")
    ),
    "linear-m1-n200-k1024-bfloat16-q4g64",
    *(
        f"linear-m{rows}-n200-k512-bfloat16-{packing}"
        for rows in (1, 4, 8, 20, 32)
        for packing in ("q4g64", "q8g32", "mxfp4")
    ),
    *(
        f"linear-m{rows}-e8-n200-k512-bfloat16-{packing}"
        for rows in (8, 64)
        for packing in ("q4g64", "mxfp4")
    ),
]
# What each tool must find: (kernel name, file, text, what it becomes).
CULPRITS = {
    "racecheck": ("wide_shared_mma", "columns_mma.cu", "__syncthreads();", ";"),
    "memcheck": (
        "wide_shared_mma",
        "columns_mma.cu",
        "keys + min(tile * KEYS + 8 * n + g, kv_len - 1) * k_step",
        "keys + (tile * KEYS + 8 * n + g + 8 * kv_len) * k_step",
    ),
}
_FOUND = re.compile(
    r"^=+ +(?:Error: |Warning: )?((?:Invalid|Race|Address|Misaligned|Program)[^\n]*)"
)


@dataclass
class Row:
    """What became of a job: whether it was through, why its answer is wrong, what was found."""

    answered: bool = False
    wrong: str = ""
    found: list[str] = field(default_factory=list)


def jobs(kernel: Kernel) -> list[Planned]:
    """Workloads and params that run every launch over every kind of cache, under every mask and
    with every way to combine, or over every packing and number of rows; nothing for a kernel that
    the CUDA backend does not carry."""
    chosen: list[Planned] = []
    seen: set[tuple[str, str, Any]] = set()
    values = {param.name: param.values for param in kernel.params}
    for w in map(parse, WORKLOADS):
        if not kernel.applies_to(w):
            continue
        for splits, fused in itertools.product((None, 1, 3), (None, 0, 1, 2)):
            wanted = {"splits": splits, "fused": fused}
            changes = {n: v for n, v in wanted.items() if v is not None}
            if any(v not in values.get(n, ()) for n, v in changes.items()):
                continue
            params = {**kernel.default_params(w), **changes}
            files = {launch.spec.file for launch in kernel.launches(w, params)}
            hows = (w.mask, fused) if isinstance(w, Workload) else ((w.bits, w.rows),)
            new = {(file, w.variant, how) for file in files for how in hows}
            if not new <= seen and torch_launch.carried(kernel, params, w):
                seen |= new
                chosen.append((kernel, params, w))
    return chosen


def culprit(tool: str) -> Planned:
    """A shipped kernel, broken so that the tool must find it."""
    name, file, text, becomes = CULPRITS[tool]
    whole = next(kernel for kernel in torch_launch.shipped() if kernel.name == name)
    broken = {**whole.sources, file: whole.sources[file].replace(text, becomes, 1)}
    _, params, w = jobs(whole)[0]
    return Kernel.from_parts(whole.meta, broken), {**params, "splits": 3}, w


def work(path: Path) -> None:
    """Run each job of a file, saying what comes of it."""
    listed, cubins = pickle.loads(path.read_bytes())
    for number, (kernel, params, w) in enumerate(listed):
        print(f"JOB {number}", flush=True)
        torch.manual_seed(number)
        arrays = torch_launch.inputs(w, 1)[0]
        out = torch_launch.Call(kernel, params, w, cubins).bind(arrays)().double()
        torch.cuda.synchronize()
        expected = torch_launch.reference(w, arrays)
        error = float((out - expected).norm() / expected.norm())
        right = error < torch_launch.TOLERANCE[w.dtype]
        print(f"DONE {number} {'' if right else f'wrong by {error}'}", flush=True)


def run(
    tool: str, listed: list[Planned], cubins: dict[str, bytes | None], folder: Path
) -> list[Row]:
    """What became of each job: several processes side by side, a share of them each."""
    size = -(-len(listed) // PROCESSES)
    with ThreadPoolExecutor(PROCESSES) as pool:
        rows = pool.map(
            lambda i: share(tool, listed[i : i + size], cubins, folder / f"{tool}-{i}"),
            range(0, len(listed), size),
        )
        return list(itertools.chain(*rows))


def share(
    tool: str, listed: list[Planned], cubins: dict[str, bytes | None], path: Path
) -> list[Row]:
    """The same in one process, whose jobs and output are kept under `path`."""
    path.with_suffix(".pickle").write_bytes(pickle.dumps((listed, cubins)))
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    command = [program, "--tool", tool, "--kernel-name", "kne=kernel"]
    command += ["--print-limit", "100", sys.executable, __file__]
    done = subprocess.run(
        [*command, "--work", str(path.with_suffix(".pickle"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    path.with_suffix(".log").write_text(done.stdout)
    rows = [Row() for _ in listed]
    at = None
    for line in done.stdout.splitlines():
        if line.startswith("JOB "):
            at = rows[int(line.split()[1])]
        elif line.startswith("DONE ") and at:
            at.answered, at.wrong = True, line.split(" ", 2)[2]
        elif at and (found := _FOUND.match(line)):
            at.found.append(found[1])
    return rows


def say(
    tool: str, kernels: list[Kernel], pairs: list[tuple[Planned, Row]], caught: Row
) -> tuple[dict[str, Any], bool]:
    """Print what a tool found; (its part of the report, whether all is well)."""
    for kernel in kernels:
        own = [row for job, row in pairs if job[0] == kernel]
        found = sum(len(row.found) for row in own)
        wrong = sum(not row.answered or bool(row.wrong) for row in own)
        says = f"{len(own):2d} runs, {found} findings, {wrong} wrong answers"
        print(f"{tool:9s} {kernel.name:20s} {kernel.id}  {says if own else 'is for Metal alone'}")
    print(f"{tool:9s} culprit: {caught.found[0] if caught.found else 'not found'}", flush=True)
    report = {
        "culprit": caught.found[:3],
        "jobs": [
            {"kernel": kernel.id, "workload": w.slug, "params": params}
            | {"answered": row.answered, "wrong": row.wrong, "found": sorted(set(row.found))}
            for (kernel, params, w), row in pairs
        ],
    }
    innocent = all(row.answered and not row.wrong and not row.found for _, row in pairs)
    return report, innocent and bool(caught.found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--kernel", nargs="+", default=[], metavar="FOLDER", help="only these")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--folder", type=Path, default=Path("build/sanitizer"), help="for logs")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    kernels = [Kernel.load(folder) for folder in args.kernel] or torch_launch.shipped()
    listed = [job for kernel in kernels for job in jobs(kernel)]
    culprits = {tool: culprit(tool) for tool in args.tool}
    cubins = torch_launch.cubins_of([*listed, *culprits.values()])
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "tools": {}}
    good = True
    for tool in args.tool:
        # The culprit last: a wild read ends the process.
        *rows, caught = run(tool, [*listed, culprits[tool]], cubins, args.folder)
        pairs = list(zip(listed, rows, strict=True))
        report["tools"][tool], well = say(tool, kernels, pairs, caught)
        good = good and well
        if args.output:
            args.output.write_text(json.dumps(report) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
