"""Stages: one search on two machines, one that checks (a clang) and one that measures (a GPU).

evolve --stage check --out RUN BATCH      proposes, checks on the host, writes BATCH
evolve --stage measure BATCH              needs neither clang nor network; BATCH/events.jsonl
evolve --resume RUN --merge EVENTS        takes the results in and goes on

BATCH/batch.json       config, and the candidates that passed with what the host said
BATCH/v1/kernels/      their kernels
BATCH/events.jsonl     baselines and fates, appended as they become known
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.files import write_atomic
from mlx_lm_openevolve.kernels.registry import Registry

from .archive import Archive
from .candidate import Candidate, Done
from .config import Config
from .evaluator import Lab
from .loop import propose, refused
from .ncu import Profiler
from .propose import Proposer

__all__ = ["check_stage", "measure_stage", "merge"]


def check_stage(
    archive: Archive, proposer: Proposer, lab: Lab, batch: Path, watch: Callable[[Archive], None]
) -> int:
    """Propose and check until the budget's candidates are there; write those that passed into
    `batch`. Returns how many. Raises UsageError where `batch` holds something already."""
    if (batch / "batch.json").exists():
        raise UsageError(f"{batch} already holds a batch")
    passed: list[dict[str, Any]] = []
    registry = Registry(batch)
    todo = archive.pending()
    limit = archive.config.budget.candidates or 32
    while True:
        if not todo:
            if len(archive.candidates) >= limit:
                break
            todo = propose(archive, proposer)
        if not todo:
            break
        for gone in refused(archive, todo):
            todo.remove(gone)
        for candidate, checks in lab.check(archive, todo):
            bad = {slug: c for slug, c in checks.items() if c["cause"]}
            if bad or not checks:
                # What fails on the host is done; its time is not asked for.
                archive.add(
                    "done",
                    number=candidate.number,
                    done=lab.measure(archive, candidate, bad).to_json(),
                )
            else:
                registry.add(archive.load(candidate.kernel))
                passed.append({"candidate": candidate.to_json(), "checks": checks})
            watch(archive)
        todo = []
    data = {"format": 1, "config": archive.config.to_json(), "candidates": passed}
    try:
        batch.mkdir(parents=True, exist_ok=True)
        write_atomic(batch / "batch.json", json.dumps(data, indent=1).encode())
    except OSError as error:
        raise OpenEvolveError(f"{batch / 'batch.json'}: {error.strerror or error}") from None
    archive.add("batch", path=str(batch), numbers=[p["candidate"]["number"] for p in passed])
    return len(passed)


def measure_stage(batch: Path, say: Callable[[str], None], backend: str | None = None) -> int:
    """Measure a batch's candidates here, those that have no fate yet; returns how many there are.
    Raises UsageError where there is no batch, or no backend to measure on."""
    try:
        data = json.loads((batch / "batch.json").read_text())
        config = Config.from_json(data["config"])
        entries = [(Candidate.from_json(e["candidate"]), e["checks"]) for e in data["candidates"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{batch} holds no batch: {error}") from None
    from mlx_lm_openevolve import backends

    name = backend or config.backend
    reason = backends.get(name).unavailable()
    if reason:
        raise UsageError(f"backend {name!r}: {reason}")
    config = replace(config, backend=name)
    device = detect(name)
    path = batch / "events.jsonl"
    # The batch's folder is a run of its own, so that a kill here loses one candidate as well.
    known = path.exists()
    archive = Archive.open(batch) if known else Archive.create(batch, config, vars(device))
    try:
        with Lab(archive, host=False) as lab:
            for slug, found in lab.baselines(archive):
                archive.add("baseline", workload=slug, **found)
                say(
                    f"{slug}: SDPA {found['seconds'] * 1e6:.1f} us, "
                    f"floor {found['floor'] * 1e6:.1f}"
                )
            for candidate, checks in entries:
                if candidate.number in archive.done:
                    continue
                if candidate.number not in archive.candidates:
                    archive.add("proposed", candidate=candidate.to_json())
                done = lab.measure(archive, candidate, checks)
                archive.add("done", number=candidate.number, done=done.to_json())
                fate = done.cause or " ".join(f"{r.ratio:.3f}x" for r in done.results.values())
                say(f"#{candidate.number} {candidate.note[:60]}: {fate}")
        if config.profile and name == "cuda":
            Profiler(say)(archive)
        return len(archive.done)
    finally:
        archive.close()


def merge(archive: Archive, events: Path) -> int:
    """Take the fates that another machine found into a run; returns how many were new. Raises
    UsageError where a fate is for a candidate that the run does not have."""
    try:
        lines = events.read_text().split("\n")[:-1]
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UsageError(f"{events}: {error}") from None
    taken = 0
    for record in records:
        kind = record.get("event")
        if kind == "baseline" and record["workload"] not in archive.baseline:
            fields = {k: v for k, v in record.items() if k not in ("event", "t")}
            archive.add("baseline", **fields)
        elif kind == "start":
            theirs = record["config"]["backend"]
            if theirs != archive.config.backend:
                ours = archive.config.backend
                raise UsageError(f"{events}: measured on {theirs!r}, this run is about {ours!r}")
            archive.add("device", device=record["device"])
        elif kind == "poison":
            archive.add("poison", key=record["key"], reason=record["reason"])
        elif kind == "proposed":
            candidate = Candidate.from_json(record["candidate"])
            known = archive.candidates.get(candidate.number)
            if known is None or known.kernel != candidate.kernel:
                raise UsageError(f"{events}: candidate #{candidate.number} is not of this run")
        elif kind == "done" and record["number"] not in archive.done:
            Done.from_json(record["done"])
            archive.add("done", number=record["number"], done=record["done"])
            taken += 1
        elif kind == "profile":
            mine = archive.kernel_best.get(record["kernel"], {}).get(record["workload"])
            if mine is not None and not mine.profile and dict(mine.params) == record["params"]:
                archive.add(
                    "profile", **{k: v for k, v in record.items() if k not in ("event", "t")}
                )
    return taken
