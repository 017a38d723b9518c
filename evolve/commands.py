"""The commands `evolve` and `report`: what they do. The command line wires them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import registries
from mlx_lm_openevolve.kernels.registry import Registry, user_root
from mlx_lm_openevolve.units import seconds_of

from . import events, heuristic, loop, two_machines
from .archive import Archive
from .config import Config
from .evaluator import LocalEvaluator
from .ncu import Profiler
from .options import HEURISTIC, check_numbers, check_same, new_config, profiles
from .progress import ProgressDisplay
from .propose import Proposer
from .propose.llm import LlmProposer, connect
from .propose.mailbox import Mailbox
from .propose.params import ParamsProposer, headroom
from .propose.structural import WithParams, fitting, no_profile
from .publish import publish

__all__ = ["evolve", "report"]


def report(options: argparse.Namespace, out: Console) -> tuple[int, dict[str, Any]]:
    """Write a run's report: a run's folder, or a packed run."""
    from . import packed
    from . import report as reports

    with contextlib.ExitStack() as stack:
        if packed.is_packed(options.run):
            folder = stack.enter_context(packed.unpacked(options.run))
            named, beside = options.run, options.run.with_name(packed.name_of(options.run))
        else:
            folder = named = beside = _run_folder(options.run)
        archive = Archive.open(folder, write=False)
        files = reports.write(archive, options.out or beside)
    for line in reports.summary(archive):
        out.print(line, markup=False)
    out.print(f"wrote {', '.join(str(f) for f in files)}", markup=False)
    if len(files) == 1:
        out.print("no pictures: pip install 'mlx-lm-openevolve[report]'", markup=False)
    return 0, {**_result(archive), "run": str(named), "files": [str(f) for f in files]}


def evolve(options: argparse.Namespace, out: Console) -> tuple[int, dict[str, Any]]:
    """Search, or one stage of a search on two machines."""
    if options.proposer == HEURISTIC:
        folder = options.out or _new_name(runs_root(), HEURISTIC)
        return heuristic.run(options, out, folder)
    if options.points:
        raise UsageError("--points is for --proposer heuristic, which runs nothing")
    if options.stage == "measure":
        if options.batch is None:
            raise UsageError("--stage measure needs the BATCH that --stage check wrote")
        done = two_machines.measure_stage(
            options.batch, lambda text: out.print(text), options.backend
        )
        events = options.batch / "events.jsonl"
        out.print(f"{done} measured; go on: evolve --resume RUN --merge {events}", markup=False)
        return 0, {"run": str(options.batch), "candidates": done, "events": str(events)}
    if options.merge and not options.resume:
        raise UsageError("--merge needs --resume RUN")
    archive = _resume(options) if options.resume else _start(options, out)
    try:
        if options.merge:
            taken = two_machines.merge(archive, options.merge)
            out.print(f"{taken} results merged")
        missing = [slug for slug in archive.slugs if slug not in archive.baseline]
        absent = backends.get(archive.config.backend).unavailable()
        if absent and options.stage is None and (archive.pending() or missing):
            raise UsageError(f"backend {archive.config.backend!r}: {absent}; --merge its results")
        return _search(archive, options, out)
    finally:
        archive.close()


def _search(
    archive: Archive, options: argparse.Namespace, out: Console
) -> tuple[int, dict[str, Any]]:
    seeds = _seeds(archive.config, options)
    with ProgressDisplay(out) as display, LocalEvaluator(archive) as evaluator:
        profiler = _profiler(archive, options, display)
        proposer = _proposer(archive, options, seeds, display, profiler)
        if options.stage == "check":
            if options.batch is None:
                raise UsageError("--stage check needs the BATCH to write")
            passed = two_machines.check_stage(archive, proposer, evaluator, options.batch, display)
            out.print(
                f"{passed} candidates passed; measure: evolve --stage measure {options.batch}"
            )
            return 0, {**_result(archive), "batch": str(options.batch), "passed": passed}
        reason = loop.evolve(archive, proposer, evaluator, display)
        if profiler is not None:
            profiler(archive)
    out.print(f"stopped: {reason}", markup=False)
    for slug in archive.slugs:
        if headroom(archive, slug) <= archive.config.search.saturated:
            out.print(f"saturated, left alone: {slug}", markup=False)
    absent = backends.get(archive.config.backend).unavailable()
    if not archive.timed:  # the gate would take as long again, to say no
        absent = "nothing is timed without a GPU"
    if absent and not options.no_publish:
        out.print(f"nothing is published here ({absent}): resume the run where it can be measured")
    if not absent and not options.no_publish:
        registries = [Registry(user_root())]
        if options.export:
            registries.append(Registry(options.export))
        for event in publish(archive, registries):
            kind = "published" if event.accepted else "not published"
            out.print(f"{kind}: {event.workload}: {event.reason}", markup=False)
    result = _result(archive)
    summary = f"{result['candidates']} candidates, {archive.standing()}"
    out.print(f"{archive.folder}: {summary}", markup=False)
    good = result["low"] > 1 if archive.timed else bool(archive.best)
    return (0 if good else 1), result


def _result(archive: Archive) -> dict[str, Any]:
    ratio, low, high = archive.fitness() if archive.timed else (None, None, None)
    return {
        "run": str(archive.folder),
        "candidates": len(archive.done),
        "best": {
            slug: {
                "kernel": kernel,
                "params": dict(r.params),
                "ratio": r.ratio or None,
                "low": r.low or None,
                "moved_bytes": r.counters.get("moved_bytes"),
                "least_bytes": r.counters.get("least_bytes"),
            }
            for slug, (kernel, r, _) in archive.best.items()
        },
        "ratio": ratio,
        "low": low,
        "high": high,
        "valid": archive.valid_share(),
        "failures": archive.failures(),
        "spent": archive.spent(),
        "stopped": archive.ended,
        "published": [
            {**e.to_json(), "params": dict(e.params)} for e in archive.published if e.accepted
        ],
    }


# Runs


def runs_root() -> Path:
    """Where runs are kept that were given no folder."""
    return user_root() / "runs"


def _run_folder(run: Path) -> Path:
    """A run by its folder, or by its name under `runs_root`."""
    return run if (run / "events.jsonl").exists() else runs_root() / run


def _start(options: argparse.Namespace, out: Console) -> Archive:
    config = new_config(options)
    # What would end the run at once is told before there is one.
    _seeds(config, options)
    if config.proposer == "llm":
        connect(config.llm)
    folder = options.out or _new_name(runs_root(), config.backend)
    archive = Archive.create(folder, config, vars(detect(config.backend)))
    out.print(f"run {folder}", markup=False)
    return archive


def _new_name(root: Path, backend: str) -> Path:
    """A folder for a run that begins now; another may have begun in the same second."""
    stem = root / time.strftime(f"%Y%m%d-%H%M%S-{backend}")
    later = (stem.with_name(f"{stem.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([stem], later) if not path.exists())


def _resume(options: argparse.Namespace) -> Archive:
    check_numbers(options)
    archive = Archive.open(_run_folder(options.resume))
    try:
        check_same(options, archive.config)
    except UsageError:
        archive.close()
        raise
    budget = archive.config.budget
    if options.candidates:  # more than before: a run that ended may go on
        budget = replace(budget, candidates=options.candidates)
    if options.budget:
        budget = replace(budget, seconds=archive.elapsed + seconds_of(options.budget))
    budget = replace(
        budget, tokens=options.tokens or budget.tokens, money=options.money or budget.money
    )
    profile = profiles(options.profile, archive.config.backend, archive.config.profile)
    archive.config = replace(archive.config, budget=budget, profile=profile)
    # What was in flight: batches are run in order, and what another machine has was not.
    pending = [c.number for c in archive.pending() if c.number not in archive.batched]
    archive.add(events.Resumed(tuple(pending[: archive.config.search.batch])))
    return archive


def _seeds(config: Config, options: argparse.Namespace) -> list[Kernel]:
    """The kernels to begin with: those named, else all known ones that apply. Raises UsageError."""
    if options.kernels:
        kernels = [Kernel.load(folder) for folder in options.kernels]
    else:
        known = [kernel for registry in registries() for kernel in registry.kernels()]
        known += [Kernel.load(path) for path in sorted((Path(__file__).parent / "seeds").iterdir())]
        kernels = list({kernel.id: kernel for kernel in known}.values())
    cuda = config.backend == "cuda"
    kept = [k for k in kernels if (cuda or not k.native) and fitting(config.workloads, k)]
    if not kept:
        raise UsageError(
            "no kernel to begin with applies to these workloads; name one with --kernels FOLDER"
        )
    return kept


def _profiler(
    archive: Archive, options: argparse.Namespace, display: ProgressDisplay
) -> Profiler | None:
    """What looks at kernels before they are written about; None where nothing is to be profiled,
    or where this is not the machine that measures."""
    here = archive.config.backend == "cuda" and options.stage is None
    return Profiler(display.say) if archive.config.profile and here else None


def _proposer(
    archive: Archive,
    options: argparse.Namespace,
    seeds: list[Kernel],
    display: ProgressDisplay,
    profiler: Profiler | None,
) -> Proposer:
    profile = profiler or no_profile
    if archive.config.proposer == "params":
        return ParamsProposer(seeds)
    if archive.config.proposer == "mailbox":
        return WithParams(Mailbox(seeds, seconds_of(options.wait), display.say, profile), seeds)
    return WithParams(LlmProposer(seeds, profile, say=display.say), seeds)
