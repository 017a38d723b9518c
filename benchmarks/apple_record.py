"""metalhost held against a public record of a real Apple GPU.

    git clone https://github.com/vicgalle/metal-sci-kernels FOLDER
    python benchmarks/apple_record.py --corpus FOLDER [--tasks NAME ...] [--jobs N] [-o FILE]

The record holds Metal kernels that language models wrote for twelve tasks, each with the verdict of
Apple's compiler, whether its result was right, and GPU seconds at three sizes on an M1 Pro. Its own
tasks run here unchanged, on metalhost in place of PyObjC's Metal.

compile: sources that Apple's compiler took and metalhost refuses, and the other way round. No rule
    of a compiler is new to who wrote metalhost's: these counts are no test on unseen kernels.
run: whether what was right on the chip is right here, without an error finding: the smallest size
    over FIRST_STEPS steps, the larger ones over one, with their longest side cut down. kept_apart:
    the counts of the tasks that nobody looked at before.
modelled_time: Spearman's correlation of modelled with measured seconds within each task and size,
    and the share of pairs more than 10% apart that are ordered alike, ties half. Counters of what
    was cut down are scaled to the size in full; grids and threadgroups are the harness's own.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import hashlib
import importlib
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import apple_attention
import apple_model
import metal_stand_in
import numpy as np
from rich.console import Console
from rich.progress import track

from mlx_lm_openevolve.errors import OpenEvolveError
from mlx_lm_openevolve.metalhost import Counters, Finding, compiler_available
from mlx_lm_openevolve.metalhost.findings import unique

# Split before anything was looked at: these to work with, the others for one evaluation at the end.
OPEN = ("fft3d", "gradshaf", "heat2d", "ising", "lbm", "nbody", "saxpy", "wave3d")
APART = ("adi3d", "hmc", "lj", "morton")

STEPS = {"n_steps", "n_sweeps", "k"}  # names of a size's number of steps
FIRST_STEPS = 4  # of the smallest size; the others take one
# The side of a problem along which all that a kernel does grows in proportion.
SIDES = {"saxpy": "n", "wave3d": "nz", "heat2d": "ny", "ising": "ny", "lbm": "ny",
         "gradshaf": "nz", "adi3d": "NZ", "hmc": "K"}  # fmt: skip
# It is halved until no launch has more threads. Where a result is judged by its statistics, so many
# are enough for the task's tolerance.
MAX_THREADS = {"hmc": 1024}
DEFAULT_THREADS = 1 << 18
REFERENCE, KEPT = "_cpu_reference", 8  # a task's function for it; results that are kept
# Of a launch's counters, those that grow with its size.
SCALED = {f.name for f in fields(Counters)} - {"threadgroup_memory", "truncated"}


@dataclass(frozen=True)
class Candidate:
    """One kernel of the record, by its path in the corpus without the extension."""

    corpus: Path
    task: str
    path: str
    kernels: tuple[str, ...]
    source: str
    result: dict[str, Any]

    @property
    def compiled(self) -> bool:
        """True where Apple's compiler took it, its kernels included."""
        reason = self.result["fail_reason"] or ""
        return bool(self.result["compile_ok"]) and not reason.startswith("pipeline error")


def candidates(corpus: Path, tasks: Sequence[str]) -> Iterator[Candidate]:
    """The kernels of these tasks that have a result."""
    specs = load_tasks(corpus)
    for result in sorted(corpus.glob("results/**/[0-9]*_result.json")):
        task = result.parent.name.split("_")[0]
        source = result.with_name(result.name.replace("_result.json", "_candidate.metal"))
        if task in tasks and source.exists():
            path = str(source.relative_to(corpus / "results").with_suffix(""))
            names = tuple(specs.get_task(task).spec.kernel_names)
            yield Candidate(corpus, task, path, names, source.read_text("utf-8"),
                            json.loads(result.read_text("utf-8")))  # fmt: skip


def load_tasks(corpus: Path) -> Any:
    """The corpus's task registry, with PyObjC's Metal replaced by metalhost."""
    sys.modules.setdefault("Metal", metal_stand_in.module())
    if str(corpus) not in sys.path:
        sys.path.insert(0, str(corpus))
    importlib.import_module("metal_kernels.tasks")
    for name, task in list(sys.modules.items()):
        if name.startswith("metal_kernels.tasks.") and hasattr(task, REFERENCE):
            setattr(task, REFERENCE, remembered(getattr(task, REFERENCE)))
    return importlib.import_module("metal_kernels.task")


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its last results kept: all kernels of a task share their references."""
    if hasattr(function, "__wrapped__"):
        return function
    kept: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = hashlib.sha256(pickle.dumps((args, kwargs))).hexdigest()
        if key not in kept:
            if len(kept) == KEPT:
                del kept[next(iter(kept))]
            kept[key] = function(*args, **kwargs)
        return kept[key]

    return call


def compile_candidate(candidate: Candidate) -> str:
    """What metalhost says against the source, "" where nothing."""
    return said(metal_stand_in.first_refusal(candidate.source, candidate.kernels))


def said(finding: Finding | None) -> str:
    """A finding in one line, without the text of the source."""
    return f"{finding.line}: {finding.kind}: {finding.message}" if finding else ""


def run_candidate(candidate: Candidate) -> list[dict[str, Any]]:
    """For each size that the chip ran: whether the result is right here, the findings, and what
    each kind of launch did, as if at that size in full."""
    specs = load_tasks(candidate.corpus)
    task = specs.get_task(candidate.task)
    harness = importlib.import_module("metal_kernels.harness").MetalHarness()
    pipelines = {n: metal_stand_in.Pipeline(candidate.source, n) for n in candidate.kernels}
    limits = tuple((n, p.maxTotalThreadsPerThreadgroup()) for n, p in pipelines.items())
    rows = []
    for i, (size, chip) in enumerate(zip(task.spec.sizes, candidate.result["sizes"], strict=False)):
        plan = planned(candidate.corpus, candidate.task, i, limits)
        threads = max(math.prod(launch.grid) for launch in plan)
        reduced, scale = reduce_size(candidate.task, size, threads, FIRST_STEPS if i == 0 else 1)
        harness.device.launches.clear()
        try:
            result = evaluate(task, harness, pipelines, reduced)
            right, why = result.correct, f"{result.error_kind} {result.error_value:.3g}"
        except (RuntimeError, OpenEvolveError) as error:
            right, why = False, str(error).splitlines()[0]
        launches = harness.device.launches
        findings = unique(f for launch in launches for f in launch.findings)
        rows.append({
            "size": size.label, "chip_right": chip["correct"], "chip_seconds": chip["gpu_seconds"],
            "right": bool(right), "why": "" if right else why,
            "errors": [said(f) for f in findings if not getattr(f, "benign", False)],
            "benign": [said(f) for f in findings if getattr(f, "benign", False)],
            "launches": list(summed(plan, launches, scale)),
        })  # fmt: skip
    return rows


def evaluate(task: Any, harness: Any, pipelines: Mapping[str, Any], size: Any) -> Any:
    """One size by the task's own code: no warm-up, nothing timed, one run that is judged."""
    chip = importlib.import_module("metal_kernels.hardware").ChipSpec("Apple M1 Pro", 4500, 200)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # the median of no times
        return task.evaluate_size(harness, pipelines, size, chip, 0, 0)


@dataclass(frozen=True)
class Stub:
    """A pipeline of which a plan needs no more."""

    name: str
    threads: int

    def threadExecutionWidth(self) -> int:
        return metal_stand_in.SIMD_WIDTH

    def maxTotalThreadsPerThreadgroup(self) -> int:
        return self.threads


@functools.lru_cache(maxsize=256)
def planned(
    corpus: Path, name: str, index: int, limits: tuple[tuple[str, int], ...]
) -> tuple[metal_stand_in.Launch, ...]:
    """The launches of one size in full, from the harness's own code, without running them."""
    task = load_tasks(corpus).get_task(name)
    harness = importlib.import_module("metal_kernels.harness").MetalHarness()
    harness.device.plan = True
    pipelines = {kernel: Stub(kernel, threads) for kernel, threads in limits}
    with contextlib.suppress(metal_stand_in.Planned):
        evaluate(task, harness, pipelines, task.spec.sizes[index])
    return tuple(harness.device.launches)


def reduce_size(name: str, size: Any, threads: int, steps: int) -> tuple[Any, float]:
    """A size that metalhost can run: few steps, and the longest side halved until a launch has no
    more than MAX_THREADS; and the factor from its counters to those in full."""
    params = dict(size.params)
    scale = 1.0
    for key in STEPS & params.keys():
        params[key] = min(steps, params[key])
    side = SIDES.get(name)
    while side and threads > MAX_THREADS.get(name, DEFAULT_THREADS):
        half = params[side] - params[side] // 2
        threads, scale = threads * half // params[side], scale * params[side] / half
        params[side] = half
    return replace(size, params=params), scale


def summed(
    plan: Sequence[metal_stand_in.Launch], launches: Sequence[metal_stand_in.Launch], scale: float
) -> Iterator[dict[str, Any]]:
    """For each kernel of the plan: how often it is launched, how, and what one launch does: the
    mean of those that ran, scaled."""
    for name in dict.fromkeys(launch.kernel for launch in plan):
        first = next(launch for launch in plan if launch.kernel == name)
        counters = [x.counters.to_dict() for x in launches if x.kernel == name and x.counters]
        yield {
            "kernel": name,
            "repeats": sum(launch.kernel == name for launch in plan),
            "grid": list(first.grid),
            "threadgroup": list(first.threadgroup),
            "counters": {
                key: sum(c[key] for c in counters) / len(counters) * (scale if key in SCALED else 1)
                for key in (counters[0] if counters else ())
            },
        }


def rows_of(candidate: Candidate, run: bool) -> dict[str, Any]:
    """All that is measured of a candidate."""
    message = compile_candidate(candidate)
    row: dict[str, Any] = {
        "task": candidate.task, "candidate": candidate.path, "apple": candidate.compiled,
        "right": bool(candidate.result["correct"]), "metalhost": message,
    }  # fmt: skip
    if run and candidate.compiled and not message:
        row["sizes"] = run_candidate(candidate)
    return row


def measure(
    found: Sequence[Candidate], run: bool, jobs: int, kept: Path | None
) -> list[dict[str, Any]]:
    """A row for each candidate; those in the file `kept` are taken from it, others added to it."""
    lines = kept.read_text("utf-8").splitlines() if kept and kept.exists() else []
    rows = {row["candidate"]: row for row in map(json.loads, lines)}
    missing = [c for c in found if c.path not in rows]
    with (
        ProcessPoolExecutor(jobs) as pool,
        (kept or Path(os.devnull)).open("a", encoding="utf-8") as file,
    ):
        done = pool.map(rows_of, missing, itertools.repeat(run))
        for row in track(done, "kernels", len(missing), console=Console(stderr=True)):
            rows[row["candidate"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    return [rows[c.path] for c in found]


def commit(corpus: Path) -> str:
    """The corpus's commit."""
    done = subprocess.run(
        ["git", "-C", str(corpus), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def verdicts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The compilers' verdicts as counts, and each disagreement."""
    refused = [r for r in rows if r["apple"] and r["metalhost"]]
    accepted = [r for r in rows if not r["apple"] and not r["metalhost"]]
    return {
        "compiled_by_apple": sum(r["apple"] for r in rows),
        "refused_by_apple": sum(not r["apple"] for r in rows),
        "false_refusals": [{k: r[k] for k in ("task", "candidate", "metalhost")} for r in refused],
        "false_accepts": [{k: r[k] for k in ("task", "candidate")} for r in accepted],
    }


def results(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the kernels that were right on the chip and of those that were wrong: how many are right
    here without an error finding, and the exceptions."""
    right = [r for r in rows if r["right"]]
    wrong = [r for r in rows if r["apple"] and not r["right"]]
    excepted = [r for r in right if exceptions(r)]
    return {
        "right_on_chip": len(right),
        "right_here": len(right) - len(excepted),
        "exceptions": [{**named(r), "what": exceptions(r)} for r in excepted],
        "wrong_on_chip": len(wrong),
        "right_here_wrong_on_chip": [named(r) for r in wrong if not exceptions(r)],
        "with_benign_findings": sum(any(s["benign"] for s in r.get("sizes", ())) for r in right),
    }


def named(row: Mapping[str, Any]) -> dict[str, str]:
    return {"task": row["task"], "candidate": row["candidate"]}


def exceptions(row: Mapping[str, Any]) -> list[str]:
    """What metalhost says against a kernel: refused, wrong, or an error finding."""
    if row["metalhost"]:
        return ["refused: " + row["metalhost"]]
    found = [f"{s['size']}: wrong: {s['why']}" for s in row["sizes"] if not s["right"]]
    return found + list(dict.fromkeys(error for s in row["sizes"] for error in s["errors"]))


def noise(corpus: Path, tasks: Sequence[str]) -> dict[str, float]:
    """How the chip repeats itself: for each task the standard deviation, over the runs, of the
    logarithm of its seed's score (a geometric mean over the sizes, so single times vary more)."""
    scores: dict[str, list[float]] = {task: [] for task in tasks}
    for path in sorted(corpus.glob("results/**/summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        if summary["task"] in scores:
            scores[summary["task"]].append(math.log(summary["seed_score"]))
    return {t: float(np.std(s, ddof=1)) if len(s) > 1 else 0.0 for t, s in scores.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a checkout of the record")
    parser.add_argument("--tasks", nargs="+", default=OPEN, choices=OPEN + APART)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--compile-only", action="store_true", help="run nothing")
    parser.add_argument(
        "--rows", type=Path, help="keep what is measured of each kernel, go on from it"
    )
    parser.add_argument("--attention", action="store_true", help="MLX's attention kernels too")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    available, description = compiler_available()
    if not available:
        raise SystemExit(description)
    found = list(candidates(options.corpus, options.tasks))
    rows = measure(found, not options.compile_only, options.jobs, options.rows)
    record: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "corpus": commit(options.corpus),
        "tasks": list(options.tasks),
        "compile": verdicts(rows),
    }
    if not options.compile_only:
        record["run"] = results(rows)
        if apart := [row for row in rows if row["task"] in APART]:
            counts = results(apart).items()
            record["run"]["kept_apart"] = {k: n for k, n in counts if isinstance(n, int)}
        between_runs = noise(options.corpus, options.tasks)
        record["modelled_time"] = {
            "noise": {task: round(value, 3) for task, value in between_runs.items()},
            **apple_model.worth(rows, between_runs),
        }
    if options.attention:
        record["attention"] = apple_attention.worth(apple_model.evolve_model)
    text = json.dumps(record, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
