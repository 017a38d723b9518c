"""`mlx-lm-openevolve bench`: whole models, stock against patched, and never slower.

    preset -> processes stock, patched, patched, stock (a block) x blocks -> ratio and interval
           -> one more process for the logits -> parity
           -> slower than 0.99x: the verdicts that served are withdrawn

Here is what is printed; options.py has the options, cases.py measures. With --kernel one kernel is
measured on its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..device import detect, fingerprint
from ..errors import BackendError, UsageError
from ..files import write_atomic
from ..hub import check_model
from ..kernels.verdict import gate_versions
from ..runtime import families
from ..runtime.session import summary, totals
from ..switches import switched_off
from . import cases
from .options import PRESETS, SHAPES

__all__ = ["run", "run_case", "run_cases", "tasks", "write"]

# Options, where to print and what keeps the rows so far -> whether all is well.
BenchKernel = Callable[[argparse.Namespace, Console, Callable[[list[dict[str, Any]]], None]], bool]


def run(
    options: argparse.Namespace, out: Console, bench_kernel: BenchKernel
) -> tuple[int, dict[str, Any]]:
    """The command; `bench_kernel` is what --kernel asks for. Exit code 0 where nothing is slower
    than the floor, every case was served by kernels, and the results agree; else 1. With --output
    the file holds all that is known after each process, the samples of a case that is not through
    under `unfinished`."""
    check_measured("--output", options.output)
    device = detect(options.backend)
    families.named(wanted(options))
    result: dict[str, Any] = {
        "machine": fingerprint(device, gate_versions()),
        "date": time.strftime("%Y-%m-%d"),
        "ok": False,
    }

    def keep(**more: Any) -> None:
        result.update(more)
        if options.output:
            write(options.output, result)

    if options.kernel:
        keep(ok=bench_kernel(options, out, lambda rows: keep(verdicts=rows)))
    else:
        asked = tasks(options)
        if device.backend == "host" and not options.any_correct:
            raise BackendError(
                "MLX has no GPU here, and on the CPU no kernel is faster; to compare the results"
                " alone: --backend host --any-correct, with a small model"
            )
        for option in ("model", "draft"):
            name = getattr(options, option)
            if name and name not in SHAPES:
                check_model(f"--{option}", name)
        run_cases(asked, options, out, result, keep)
        keep(ok=all(case["ok"] for case in result["cases"]))
    return (0 if result["ok"] else 1), result


def check_measured(option: str, path: Path | None) -> None:
    """Raise UsageError where what is measured would be lost, or is switched off."""
    if off := switched_off():
        raise UsageError(f"{off} switches off what is to be measured")
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise UsageError(f"{option} {path}: no file can be written there")


def write(path: Path, result: Mapping[str, Any]) -> None:
    """The whole file, or the one before: a full disk takes nothing away. Raises UsageError."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
            path.write_text(json.dumps(result) + "\n")
            return
        write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def wanted(options: argparse.Namespace) -> tuple[str, ...] | None:
    """The families that --ops names; None without it. Raises UsageError."""
    if options.bits and not options.shape:
        raise UsageError("--bits packs the weights of a --shape: a --model has its own")
    return tuple(name.strip() for name in options.ops.split(",")) if options.ops else None


def tasks(options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """What each case asks of a worker, by its name. Raises UsageError."""
    if not (options.model or options.shape):
        raise UsageError("name a --model PATH or a --shape, or a --kernel FOLDER")
    sizes = (options.prompt_tokens, options.generation_tokens)
    if options.preset and sizes != (None, None):
        raise UsageError("a --preset has its own -p and -g")
    if options.batch > 1 and (options.kv_bits or options.draft):
        raise UsageError("mlx-lm's batches know neither --kv-bits nor --draft")
    lengths = {name: PRESETS[name] for name in options.preset or ["short_context_quick"]}
    if sizes != (None, None):
        p, g = (default if n is None else n for n, default in zip(sizes, (512, 64), strict=True))
        lengths = {f"{p}+{g}": (p, g)}
    if options.batch < 1 or options.trials < 1 or options.blocks < 1:
        raise UsageError("--batch, --trials and --blocks are at least 1")
    if any(p < 2 or g < 4 for p, g in lengths.values()):
        raise UsageError("a case needs two tokens of prompt and four of generation")
    settings: dict[str, Any] = {"backend": options.backend}
    settings |= {"require_faster": not options.any_correct, "ops": wanted(options)}
    asked: dict[str, Any] = {
        name: getattr(options, name) for name in ("model", "shape", "draft", "batch", "trials")
    }
    asked |= {"kv_bits": options.kv_bits or 0, "bits": options.bits or ""}
    return [(name, cases.task_of(p, g, settings, **asked)) for name, (p, g) in lengths.items()]


def run_cases(
    asked: Sequence[tuple[str, dict[str, Any]]],
    options: argparse.Namespace,
    out: Console,
    result: dict[str, Any],
    keep: Callable[[], None],
) -> None:
    """Measure what `tasks` gave, into `result`: `cases`, and while one is at work `unfinished`,
    what there is of it. `keep` is called after every change."""

    def unfinished(case: dict[str, Any]) -> None:
        result["unfinished"] = case
        keep()

    result["cases"] = []
    keep()
    for name, task in asked:
        case = run_case(name, task, options, out, unfinished)
        del result["unfinished"]
        result["cases"].append(case)
        keep()


def run_case(
    name: str,
    task: dict[str, Any],
    options: argparse.Namespace,
    out: Console,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure one case and print what came of it; `keep` gets what there is after each process."""
    lengths = ", ".join(
        f"{key}={task[key]}" for key in ("prompt_tokens", "generation_tokens", "batch")
    )
    lengths += f", bits={task['bits']}" if task["bits"] else ""
    out.print(f"{task['model'] or task['shape']} {name}: timing with {lengths}.", markup=False)
    rows: dict[str, list[dict[str, Any]]] = {"stock": [], "patched": []}
    with Progress(console=out, transient=True) as bar:
        todo = bar.add_task("gating what is new", total=2 + len(cases.BLOCK) * options.blocks)
        cases.settle(task)
        bar.update(todo, advance=1, description="timing")
        for arm, row in cases.processes(task, options.blocks):
            rows[arm].append(row)
            last = row["trials"][-1]
            texts = [f"{key}={last[key]:.3f}" for key in (*cases.KEYS, "total_time")]
            bar.console.print(f"{arm:8s} " + ", ".join(texts), markup=False)
            bar.update(todo, advance=1)
            keep({**task, "name": name, "samples": cases.samples(rows)})
        bar.update(todo, description="comparing logits")
        logits = cases.ask(task, "logits")
    served = totals([{"problem": "", **row["info"]} for row in rows["patched"]])
    case = cases.concluded(name, task, rows, logits, served["hits"])
    for text in report(case):
        out.print(text, markup=False)
    out.print(f"Served: {summary({**served, 'processes': 1})}", markup=False)
    for text in [*(f"withdrawn: {slug}" for slug in case["withdrawn"]), *case["problems"]]:
        out.print(text, markup=False, style="red")
    return case


def report(case: Mapping[str, Any]) -> Iterator[str]:
    """A case's numbers in a few lines for a person."""
    for arm, averages in case["averages"].items():
        yield f"Averages {arm:8s}: " + ", ".join(f"{k}={averages[k]:.3f}" for k in cases.KEYS)
    interval = f"[{case['low']:.3f}, {case['high']:.3f}]"
    yield (
        f"Ratio patched / stock: generation {case['ratio']:.3f}"
        f" {interval if len(case['blocks']) > 1 else '(one block: no interval)'},"
        f" prompt {case['prompt_ratio']:.3f}, peak memory {case['memory_ratio']:.3f}"
    )
    if case["stock_kv_bits"] != case["kv_bits"]:
        yield "Stock mlx-lm cannot run on a quantised cache here: it ran on a plain one (no floor)."
    logits = case["logits"]
    yield (
        f"Parity: first {case['equal_tokens']} of {case['generation_tokens']} greedy tokens equal;"
        f" logits differ by {logits['difference']:.2e}; from float32:"
        f" stock {logits['stock']:.2e}, patched {logits['patched']:.2e}"
    )
    as_near = logits["patched"] <= 1.1 * logits["stock"]
    if case["equal_tokens"] < case["generation_tokens"] and as_near:
        yield "Both are as far off as rounding goes: of tokens that are next to equal another won."
