"""One search on two machines, one that checks (it has clang) and one that measures (it has a GPU).

evolve --stage check --out RUN BATCH      proposes, checks on the host, writes BATCH
evolve --stage measure BATCH              needs neither clang nor network; BATCH/events.jsonl
evolve --resume RUN --merge EVENTS        takes the results in and goes on

BATCH/batch.json       config, and the candidates that passed with what the host said
BATCH/v2/kernels/      their kernels
BATCH/events.jsonl     baselines and evaluations, appended as they become known
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.files import write_atomic
from mlx_lm_openevolve.kernels.registry import Registry

from . import events, journal
from .archive import Archive
from .candidate import Candidate
from .config import Config
from .evaluation import HostCheck
from .evaluator import LocalEvaluator
from .loop import propose, refused
from .ncu import Profiler
from .propose import Proposer

__all__ = ["check_stage", "measure_stage", "merge"]


def check_stage(
    archive: Archive,
    proposer: Proposer,
    evaluator: LocalEvaluator,
    batch: Path,
    watch: Callable[[Archive], None],
) -> int:
    """Propose and check until the budget's candidates are there; write those that passed into
    `batch`. Returns how many. Raises UsageError where `batch` holds something already, and
    OpenEvolveError where it cannot be written."""
    path = batch / "batch.json"
    if path.exists():
        raise UsageError(f"{batch} already holds a batch")
    passed: list[dict[str, Any]] = []
    registry = Registry(batch)
    limit = archive.config.budget.candidates or 32
    todo = archive.pending()
    while todo or len(archive.candidates) < limit:
        todo = todo or propose(archive, proposer)
        if not todo:
            break
        for gone in refused(archive, todo):
            todo.remove(gone)
        for candidate, checks in evaluator.check(archive, todo):
            bad = {slug: check for slug, check in checks.items() if check.cause}
            if bad or not checks:
                # What fails on the host is done; its time is not asked for.
                evaluation = evaluator.measure(archive, candidate, bad)
                archive.add(events.Evaluated(candidate.number, evaluation))
            else:
                registry.add(archive.load(candidate.kernel))
                answers = {slug: check.to_json() for slug, check in checks.items()}
                passed.append({"candidate": candidate.to_json(), "checks": answers})
            watch(archive)
        todo = []
    data = {"format": 1, "config": archive.config.to_json(), "candidates": passed}
    try:
        batch.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(data, indent=1).encode())
    except OSError as error:
        raise OpenEvolveError(f"{path}: {error.strerror or error}") from None
    numbers = tuple(entry["candidate"]["number"] for entry in passed)
    archive.add(events.Batched(str(batch), numbers))
    return len(passed)


def measure_stage(batch: Path, say: Callable[[str], None], backend: str | None = None) -> int:
    """Measure a batch's candidates here, those that were not yet; returns how many there are.
    Raises UsageError where there is no batch, or no backend to measure on."""
    try:
        data = json.loads((batch / "batch.json").read_text())
        config = Config.from_json(data["config"])
        entries = [
            (
                Candidate.from_json(entry["candidate"]),
                {slug: HostCheck.from_json(check) for slug, check in entry["checks"].items()},
            )
            for entry in data["candidates"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{batch} holds no batch: {error}") from None
    name = backend or config.backend
    reason = backends.get(name).unavailable()
    if reason:
        raise UsageError(f"backend {name!r}: {reason}")
    config = replace(config, backend=name)
    # The batch's folder is a run of its own, so that a kill here loses one candidate as well.
    if (batch / journal.NAME).exists():
        archive = Archive.open(batch)
    else:
        archive = Archive.create(batch, config, vars(detect(name)))
    try:
        with LocalEvaluator(archive, host=False) as evaluator:
            for base in evaluator.baselines(archive):
                archive.add(base)
                times = f"{archive.stock} {base.seconds * 1e6:.1f} us, floor {base.floor * 1e6:.1f}"
                say(f"{base.workload}: {times}")
            for candidate, checks in entries:
                if candidate.number in archive.done:
                    continue
                if candidate.number not in archive.candidates:
                    archive.add(events.Proposed(candidate))
                evaluation = evaluator.measure(archive, candidate, checks)
                archive.add(events.Evaluated(candidate.number, evaluation))
                say(f"#{candidate.number} {candidate.note[:60]}: {evaluation}")
        if config.profile and name == "cuda":
            Profiler(say)(archive)
        return len(archive.done)
    finally:
        archive.close()


def merge(archive: Archive, path: Path) -> int:
    """Take the evaluations that another machine made into a run; returns how many were new. Raises
    UsageError where one is of a candidate that the run does not have, or of another backend."""
    taken = 0
    for event in list(journal.read(path)):
        match event:
            case events.Baseline() if event.workload not in archive.baseline:
                archive.add(event)
            case events.Started(config=config):
                if config.backend != archive.config.backend:
                    ours = archive.config.backend
                    theirs = f"measured on {config.backend!r}"
                    raise UsageError(f"{path}: {theirs}, this run is about {ours!r}")
                archive.add(events.MeasuredOn(event.device))
            case events.EndedWorker():
                archive.add(event)
            case events.Proposed(candidate=candidate):
                known = archive.candidates.get(candidate.number)
                if known is None or known.kernel != candidate.kernel:
                    raise UsageError(f"{path}: candidate #{candidate.number} is not of this run")
            case events.Evaluated() if event.number not in archive.done:
                if event.number not in archive.candidates:
                    raise UsageError(f"{path}: candidate #{event.number} is not of this run")
                archive.add(event)
                taken += 1
            case events.Profiled():
                mine = archive.kernel_best.get(event.kernel, {}).get(event.workload)
                if mine is not None and not mine.profile and mine.params == event.params:
                    archive.add(event)
    return taken
