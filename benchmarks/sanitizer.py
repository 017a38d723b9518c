"""The kernels of tuned/ under NVIDIA's compute-sanitizer, on this GPU.

    python benchmarks/sanitizer.py [--tool memcheck racecheck] [--kernel FOLDER ...] [--out FILE]

Each kernel runs on a few small workloads: enough of them that every stage is launched under every
kind of mask that it carries, and its results are compared with float64. They are launched as
gpu_time.py launches them, without MLX, whose own memory the sanitizer cannot follow; each array is
an allocation of its own. racecheck follows shared memory, memcheck all of it. A kernel that races
and one that reads beyond its keys go along, without which silence would prove nothing.

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
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gpu_time
import torch

from mlx_lm_openevolve.backends import cuda
from mlx_lm_openevolve.backends.metal_to_cuda import UnsupportedOnCuda
from mlx_lm_openevolve.kernel import Kernel, Launch
from mlx_lm_openevolve.workload import Workload

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
        f"attention_quantized-b2-hq8-hkv2-lq{q}-lk201-d128-v128-bfloat16-{mask}-kv{bits}g64"
        for q in (1, 8, 64)
        for bits in (4, 8)
        for mask in ("none", "bool", "additive")
    ),
    *(
        f"attention_latent-b1-hq{heads}-hkv1-lq1-lk201-d512-v512-bfloat16-{mask}"
        for heads in (16, 128)
        for mask in ("additive", "bool")
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


Job = tuple[str, str, dict[str, int]]  # a kernel's folder, workload, params


@dataclass
class Row:
    """What became of a job: whether it was through, why its answer is wrong, what was found."""

    answered: bool = False
    wrong: str = ""
    found: list[str] = field(default_factory=list)


def jobs(kernel: Kernel) -> list[tuple[str, dict[str, int]]]:
    """Workloads and params that launch every stage under every mask, and every way to combine;
    nothing for a kernel that the CUDA backend does not carry."""
    chosen: list[tuple[str, dict[str, int]]] = []
    seen: set[tuple[str, str | int | None]] = set()
    for slug in WORKLOADS:
        w = Workload.parse(slug)
        if not kernel.applies_to(w):
            continue
        for splits, fused in itertools.product((None, 1, 3), (None, 0, 1, 2)):
            wanted = {"splits": splits, "fused": fused}
            values = {p.name: p.values for p in kernel.params}
            changes = {n: v for n, v in wanted.items() if v is not None}
            if any(v not in values.get(n, ()) for n, v in changes.items()):
                continue
            params = {**kernel.default_params(w), **changes}
            launches = kernel.launches(w, params)
            files = {x.stage.file for x in launches}
            new = {(file, w.mask) for file in files} | {(file, fused) for file in files}
            if not new <= seen and _carried(launches):
                seen |= new
                chosen.append((slug, params))
    return chosen


def _carried(launches: list[Launch]) -> bool:
    try:
        for launch in launches:
            cuda.sources(launch, {})
    except UnsupportedOnCuda:
        return False
    return True


def work(path: Path) -> None:
    """Run each job of a file, saying what comes of it."""
    listed, cubins = pickle.loads(path.read_bytes())
    for number, (folder, slug, params) in enumerate(listed):
        kernel, w = Kernel.load(folder), Workload.parse(slug)
        print(f"JOB {number}", flush=True)
        torch.manual_seed(number)
        (arrays,) = gpu_time.inputs(w, 1)
        out = gpu_time.Call(kernel, params, w, cubins).bind(arrays)().double()
        torch.cuda.synchronize()
        expected = gpu_time.reference(w, arrays)
        error = float((out - expected).norm() / expected.norm())
        right = error < gpu_time.TOLERANCE[w.dtype]
        print(f"DONE {number} {'' if right else f'wrong by {error}'}", flush=True)


def compiled(listed: list[Job]) -> dict[str, bytes | None]:
    """What gpu_time.Call needs of every job."""
    texts = {
        text
        for folder, slug, params in listed
        for _, text, _ in gpu_time.texts_of(Kernel.load(folder), params, Workload.parse(slug))
    }
    major, minor = torch.cuda.get_device_capability()
    architecture = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    with ProcessPoolExecutor(16) as pool:
        found = pool.map(partial(gpu_time.compiled, architecture), texts)
        return dict(zip(texts, found, strict=True))


def run(tool: str, listed: list[Job], folder: Path) -> list[Row]:
    """What became of each job: several processes side by side, a share of them each."""
    cubins = compiled(listed)
    shares = [list(range(len(listed)))[i::PROCESSES] for i in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        done = pool.map(
            lambda s: share(tool, [listed[i] for i in s], cubins, folder / f"{tool}-{s[0]}"),
            [s for s in shares if s],
        )
        found = dict(zip(itertools.chain(*shares), itertools.chain(*done), strict=True))
    return [found[i] for i in range(len(listed))]


def share(tool: str, listed: list[Job], cubins: dict[str, bytes | None], path: Path) -> list[Row]:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--kernel", nargs="+", default=[], metavar="FOLDER", help="only these")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--folder", type=Path, default=Path("build/sanitizer"), help="for logs")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    shipped = [
        (p.parent, Kernel.load(p.parent)) for p in sorted(gpu_time.TUNED.glob("*/kernel.json"))
    ]
    kernels = [(Path(p), Kernel.load(p)) for p in args.kernel] or shipped
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    report: dict[str, Any] = {"machine": machine, "tools": {}}
    guilty = False
    for tool in args.tool:
        name, file, text, becomes = CULPRITS[tool]
        whole = next(kernel for _, kernel in shipped if kernel.name == name)
        broken = {**whole.sources, file: whole.sources[file].replace(text, becomes, 1)}
        culprit = args.folder / f"{tool}-culprit"
        Kernel.from_parts(whole.meta, broken).save(culprit)
        listed = [
            (str(path), slug, params) for path, kernel in kernels for slug, params in jobs(kernel)
        ]
        slug, params = jobs(whole)[0]
        listed.append((str(culprit), slug, {**params, "splits": 3}))  # a wild read ends the process
        rows = run(tool, listed, args.folder)
        *innocent, caught = rows
        report["tools"][tool] = {
            "culprit": caught.found[:3],
            "jobs": [
                {"kernel": Path(job[0]).name, "workload": job[1], "params": job[2]}
                | {"answered": row.answered, "wrong": row.wrong, "found": sorted(set(row.found))}
                for job, row in zip(listed, innocent, strict=False)
            ],
        }
        for path, kernel in kernels:
            own = [row for job, row in zip(listed, innocent, strict=False) if job[0] == str(path)]
            found = sum(len(row.found) for row in own)
            wrong = sum(not row.answered or bool(row.wrong) for row in own)
            guilty = guilty or bool(found or wrong)
            says = f"{len(own):2d} runs, {found} findings, {wrong} wrong answers"
            print(
                f"{tool:9s} {kernel.name:20s} {kernel.id}  {says if own else 'is for Metal alone'}"
            )
        print(f"{tool:9s} culprit: {caught.found[0] if caught.found else 'not found'}", flush=True)
        guilty = guilty or not caught.found
        if args.out:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(guilty)


if __name__ == "__main__":
    sys.exit(main())
