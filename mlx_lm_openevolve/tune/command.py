"""`mlx-lm-openevolve tune`: proven kernels for the models of this machine, on its chip.

    model -> every workload it will meet -> the known kernels on each
          -> its decode steps with compiled layers
          -> params that nobody tried, where time is left -> your registry

Decoding one sequence comes first. Families, and whole steps, take turns: while each has something
to decide, each gets the same time of the budget for what is most valuable of it. Here is what is
printed; the options are in options.py.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .. import ops
from ..bench import worker
from ..bench.command import check_measured, wanted, write
from ..device import Device, detect
from ..errors import BackendError, MachineError, UsageError
from ..gate.judge import judge
from ..gate.worker import judge_in_worker
from ..kernels.lookup import registries
from ..kernels.verdict import STEP, UNTIMED
from ..ops.base import next_pow2
from ..runtime.families import NAMES, ON_GPU, OPS, named
from ..runtime.planner import Judges, Planner
from ..units import seconds_of, tokens_of
from . import decide as deciding
from . import params, report
from .decide import LEFT, REJECTED, SERVED, UNSERVED, Row
from .options import batches_of
from .steps import StepRow, decide_steps
from .workloads import Use, workloads

__all__ = ["in_turns", "run"]

T = TypeVar("T")

# Without --model: the layouts that most downloads of mlx-lm's models have.
USUAL = ("qwen3-0.6b", "qwen3-4b", "llama-3.2-1b")


def run(options: argparse.Namespace, out: Console) -> tuple[int, dict[str, Any]]:
    """The command. Exit code 0: what is not decided when the budget ends is for the next run."""
    context, budget = tokens_of(options.context), seconds_of(options.budget)
    batches = batches_of(options.batch)
    device = detect(options.backend)
    if device.backend == "host" and options.backend is None:
        raise BackendError(
            "MLX has no GPU here, and on the CPU no kernel is faster; to see which are right:"
            " --backend host"
        )
    if options.report:
        check_measured("--report", options.report)
    end = time.monotonic() + budget
    asked_for = named(wanted(options))
    on = NAMES if asked_for is None else asked_for
    if not on:
        raise UsageError(f"no family is named by --ops {options.ops} and {OPS} alike")
    uses = met(options, context, batches, [name for name in on if name != STEP])
    judges = Judges(judge, judge_in_worker)
    planner = Planner(
        device, registries(), judges=lambda: judges, require_faster=device.backend != "host"
    )
    planner.user.publish_all(device.slug, [])  # raises where no verdict could be stored
    rows: dict[Use, Row] = {}
    for use in uses:
        if row := deciding.stored(planner, use):
            rows[use] = row
    undecided = [use for use in uses if use not in rows]
    out.print(
        f"{device.name} ({device.backend}): {len(uses)} workloads up to {context} tokens,"
        f" {len(undecided)} of them to decide",
        markup=False,
    )
    for name in on:
        if name == STEP and device.backend == "host":
            out.print(f"step: {ON_GPU}")
        elif name != STEP and not any(use.bucket.op == name for use in uses):
            out.print(f"{name}: no call that it could serve is made here")
    for line in report.conditions(device):
        out.print(line, markup=False)
    measured = None
    steps: list[StepRow] = []
    try:
        with Progress(console=out, transient=True) as bar:
            timed = batches if device.backend != "host" and STEP in on else []

            def whole(alone: bool) -> Iterator[list[StepRow]]:
                return whole_steps(options, [n for n in timed if (n == 1) is alone], planner, end)

            for made in tuned(planner, undecided, whole, end, bar):
                if isinstance(made, Row):
                    rows[made.use] = made
                else:
                    steps.append(made)
            if options.report:
                measured = _bench(options, device, bar)
    finally:  # whoever stops keeps what there is
        # A row is missing where an interrupt or an error came first.
        known = [rows.get(use, Row(use, LEFT, "not reached")) for use in uses]
        for step in steps:
            out.print(f"{step.slug}: {step.reason}", markup=False)
        out.print(table(known, planner))
        out.print(summary(known, planner, steps), markup=False)
        asked = {"context": context, "batches": batches, "budget": budget, "shape": options.shape}
        asked |= {"bits": options.bits, "steps": [step.to_json() for step in steps]}
        result = report.record(device, known, asked, measured)
        if options.report:
            write(options.report, result)
    return 0, result


def models_of(options: argparse.Namespace) -> list[list[str]]:
    """The models that were named, by path or shape, each with the draft that speculates for it."""
    if options.model or options.shape:
        names = [[options.model or options.shape, *filter(None, [options.draft])]]
    else:
        names = [[name] for name in USUAL]
    return names


def met(
    options: argparse.Namespace, context: int, batches: Sequence[int], on: Sequence[str]
) -> list[Use]:
    """What these models will ask of the families that are on."""
    found: dict[Any, Use] = {}
    for pair in models_of(options):
        models = [load(name, options.bits or "") for name in pair]
        for use in workloads(models, context, batches, options.kv_bits or 0, on):
            known = found.get(use.bucket, Use(use.bucket, 0.0))
            calls, alone = known.calls + use.calls, known.alone or use.alone
            found[use.bucket] = Use(use.bucket, calls, alone)
    return list(found.values())


def whole_steps(
    options: argparse.Namespace, batches: Sequence[int], planner: Planner, end: float
) -> Iterator[list[StepRow]]:
    """Decide whole steps of so many sequences. A model, whose weights are read, is loaded when its
    turn comes and let go before another family's."""
    names = dict.fromkeys(name for pair in models_of(options) for name in pair)
    for batch in sorted({next_pow2(n) for n in batches}):
        for name in names:
            yield decide_steps(load(name, options.bits or ""), batch, planner, end)


def load(name: str, bits: str = "") -> Any:
    """A model whose weights stay where they are: only its shapes are asked for."""
    try:
        return worker.load(name, bits, lazy=True)
    except Exception as error:  # whatever mlx-lm and transformers raise over a folder's content
        raise UsageError(f"{name}: {type(error).__name__}: {error}") from None


def tuned(
    planner: Planner,
    undecided: Sequence[Use],
    whole: Callable[[bool], Iterator[list[StepRow]]],
    end: float,
    bar: Progress,
) -> Iterator[Row | StepRow]:
    """Decide what is not: what comes with every step of one sequence, then the rest; of both the
    families in turns, of each the most valuable first. Then, where time is left, look for better
    params in that order. whole: decides the whole steps of one sequence, or those of more. Yields a
    row for each as soon as it is known, and again where it is better."""
    task = bar.add_task("", total=2 * len(undecided))
    decided: list[Row] = []
    for alone in (True, False):
        worth: dict[Use, float] = {}
        half = (time.monotonic() + end) / 2  # of what is left: the rest is for deciding
        for use in filter(lambda use: use.alone is alone, undecided):
            bar.update(task, advance=1, description="measuring what there is to win")
            try:
                if planner.device.backend == "host":  # nothing is timed: calls count alone
                    worth[use] = use.calls
                else:
                    timed = time.monotonic() < half
                    worth[use] = deciding.worth(use, planner.device) if timed else 0.0
            except MachineError as error:
                yield Row(use, LEFT, str(error))
        order = sorted(worth, key=worth.__getitem__, reverse=True)
        queues: dict[str, Iterator[Row | list[StepRow]]] = {
            name: deciding.decide(planner, [use for use in order if use.bucket.op == name], end)
            for name in dict.fromkeys(use.bucket.op for use in order)
        }
        for made in in_turns({**queues, STEP: whole(alone)}):
            if isinstance(made, Row):
                decided.append(made)
                yield made
                bar.update(task, advance=1, description=f"{made.state} {made.bucket.slug}")
            else:
                yield from made
    if planner.device.backend == "host":
        return
    open_ = [row for row in decided if row.new and row.verdict and row.verdict.correct]
    for at, row in enumerate(open_):
        left = end - time.monotonic()
        if left < deciding.LEAST:
            return
        bar.update(task, description=f"params of {row.bucket.slug}")
        better = params.better(planner, row, time.monotonic() + left / (len(open_) - at))
        if better is not None:
            yield better


def in_turns(queues: Mapping[str, Iterator[T]]) -> Iterator[T]:
    """All that the queues give, the next from the one that took the least time so far, the first of
    those alike: none starves another."""
    spent = dict.fromkeys(queues, 0.0)
    while spent:
        name = min(spent, key=spent.__getitem__)
        start = time.monotonic()
        try:
            made = next(queues[name])
        except StopIteration:
            del spent[name]
            continue
        spent[name] += time.monotonic() - start
        yield made


def table(rows: Sequence[Row], planner: Planner) -> Table:
    """What each workload runs on, and why."""
    made = Table(box=None, pad_edge=False)
    for heading in ("workload", "runs on", "ratio", ""):
        made.add_column(heading, overflow="fold")
    for row in rows:
        verdict, kernel, ratio = row.verdict, ops.of(row.bucket).stock, ""
        if verdict and row.state == SERVED:
            known = planner.kernel(verdict.kernel)
            kernel = known.name if known else verdict.kernel
        if verdict and verdict.ratio:
            low, high = (verdict.timing.get(end, math.nan) for end in ("low", "high"))
            ratio = f"{verdict.ratio:.2f} [{low:.2f}, {high:.2f}]"
        made.add_row(row.bucket.slug, kernel, ratio, Text(row.reason))
    return made


def summary(rows: Sequence[Row], planner: Planner, steps: Sequence[StepRow] = ()) -> str:
    """Counts, and how to go on where something is left."""
    counts = Counter(row.state for row in rows)
    served = SERVED if planner.require_faster else "correct"
    text = f"{counts[SERVED]} {served}, "
    text += ", ".join(f"{counts[state]} {state}" for state in (REJECTED, UNSERVED, LEFT))
    if counts[LEFT] or any(step.left for step in steps):
        text += "; the same command goes on with what is left"
    if planner.unstored:
        count, why = len(planner.unstored), planner.unstored[-1]
        text += f"; {count} verdicts could not be stored, and serve nobody: {why}"
    if not planner.require_faster and counts[SERVED]:
        text += f"; {UNTIMED}: `run --backend host --any-correct` serves it"
    return text


def _bench(options: argparse.Namespace, device: Device, bar: Progress) -> dict[str, Any]:
    shape = options.shape or ("" if options.model else USUAL[0])
    task = bar.add_task("tokens a second, stock and tuned", total=4 * report.BLOCKS)

    def step(arm: str) -> None:
        bar.update(task, advance=1)

    weights = {"shape": shape or None, "bits": options.bits or ""}
    return report.measured(options.model or None, weights, wanted(options), device, step)
