"""The commands `evolve`, `fleet` and `report`: what they do. The command line wires them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Sequence
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

from . import events, heuristic, loop, openevolve_config
from .archive import Archive
from .asked import check_numbers, check_same, new_config, profiles
from .config import Config
from .evaluator import LocalEvaluator
from .fleet.client import Fleet
from .fleet.link import Link
from .fleet.worker import facts_here, serve
from .ncu import Profiler
from .options import HEURISTIC
from .progress import ProgressDisplay
from .propose import Proposer
from .propose.llm import LlmProposer, connect
from .propose.mailbox import Mailbox
from .propose.params import ParamsProposer, headroom
from .propose.structural import WithParams, fitting, no_profile
from .publish import publish

__all__ = ["evolve", "fleet", "report"]


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
    """Search, with the workers of this machine or with those of a fleet."""
    if options.config:
        out.print(openevolve_config.take(options), markup=False)
    options.seed = options.seed or 0
    if options.proposer == HEURISTIC:
        folder = options.out or _new_name(runs_root(), HEURISTIC)
        return heuristic.run(options, out, folder)
    if options.points:
        raise UsageError("--points is for --proposer heuristic, which runs nothing")
    tls = (options.tls_ca, options.tls_cert, options.tls_key)
    if not options.scheduler and (options.insecure or any(tls)):
        raise UsageError("--tls-... and --insecure are for --scheduler")
    with contextlib.ExitStack() as stack:
        workers = None
        if options.scheduler:
            workers = stack.enter_context(
                Fleet(Link.of(options), lambda text: out.print(text, markup=False))
            )
        archive = _resume(options, workers) if options.resume else _start(options, out, workers)
        stack.callback(archive.close)
        missing = [slug for slug in archive.slugs if slug not in archive.baseline]
        absent = "" if workers else backends.get(archive.config.backend).unavailable()
        if absent and (archive.pending() or missing):
            raise UsageError(f"backend {archive.config.backend!r}: {absent}")
        return _search(archive, options, out, workers)


def fleet(options: argparse.Namespace, out: Console) -> tuple[int, dict[str, Any]]:
    """Answer a fleet's requests, until Ctrl-C."""
    link = Link.of(options)
    facts = facts_here(options.check, options.backend)
    serve(link, facts, lambda text: out.print(text, markup=False))
    return 0, facts.to_json()


def _search(
    archive: Archive, options: argparse.Namespace, out: Console, workers: Fleet | None
) -> tuple[int, dict[str, Any]]:
    begun = [archive.load(id) for id in archive.config.seeds if not options.kernels]
    seeds = begun or _seeds(archive.config, options.kernels)
    with ProgressDisplay(out) as display, LocalEvaluator(archive, workers) as evaluator:
        if workers:
            workers.say = display.say
        profiler = _profiler(archive, workers, display)
        proposer = _proposer(archive, options, seeds, display, profiler)
        reason = loop.evolve(archive, proposer, evaluator, display)
        if profiler is not None:
            profiler(archive)
    out.print(f"stopped: {reason}", markup=False)
    for slug in archive.slugs:
        if headroom(archive, slug) <= archive.config.search.saturated:
            out.print(f"saturated, left alone: {slug}", markup=False)
    absent = "" if workers else backends.get(archive.config.backend).unavailable()
    if not archive.timed:  # the gate would take as long again, to say no
        absent = "nothing is timed without a GPU"
    if absent and not options.no_publish:
        out.print(f"nothing is published here ({absent}): resume the run where it can be measured")
    if not absent and not options.no_publish:
        registries = [Registry(user_root())]
        if options.export:
            registries.append(Registry(options.export))
        for event in publish(archive, registries, workers):
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
        "elsewhere": archive.best_elsewhere(),
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


def _start(options: argparse.Namespace, out: Console, workers: Fleet | None) -> Archive:
    device = workers.lead(options.backend) if workers else {}
    options.backend = device.get("backend", options.backend)
    config = new_config(options)
    # What would end the run at once is told before there is one.
    seeds = _seeds(config, options.kernels)
    if options.kernels:
        config = replace(config, seeds=tuple(kernel.id for kernel in seeds))
    if config.proposer == "llm":
        connect(config.llm)
    folder = options.out or _new_name(runs_root(), config.backend)
    archive = Archive.create(folder, config, device or vars(detect(config.backend)))
    for kernel in seeds if options.kernels else ():
        archive.registry.add(kernel)
    _widen(archive, workers)
    out.print(f"run {folder}", markup=False)
    return archive


def _new_name(root: Path, backend: str) -> Path:
    """A folder for a run that begins now; another may have begun in the same second."""
    stem = root / time.strftime(f"%Y%m%d-%H%M%S-{backend}")
    later = (stem.with_name(f"{stem.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([stem], later) if not path.exists())


def _widen(archive: Archive, workers: Fleet | None) -> None:
    """Batches that keep a fleet busy: at the end of each, who is done waits for the others."""
    if workers:
        search = replace(archive.config.search, batch=4 * max(workers.there().values()))
        archive.config = replace(archive.config, search=search)


def _resume(options: argparse.Namespace, workers: Fleet | None) -> Archive:
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
    # What was in flight here: batches are run in order. A fleet's workers die of their own.
    pending = [c.number for c in archive.pending()] if not workers else []
    archive.add(events.Resumed(tuple(pending[: archive.config.search.batch])))
    if workers:
        device = workers.lead(archive.config.backend, archive.device.get("slug", ""))
        if archive.timed and device != archive.device:
            archive.add(events.MeasuredOn(device))
    _widen(archive, workers)
    return archive


def _seeds(config: Config, named: Sequence[Path] | None) -> list[Kernel]:
    """The kernels to begin with: those named, else all known ones that apply. Raises UsageError."""
    if named:
        kernels = [Kernel.load(folder) for folder in named]
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


def _profiler(archive: Archive, workers: Fleet | None, display: ProgressDisplay) -> Profiler | None:
    """What looks at kernels before they are written about; None where nothing is to be profiled,
    or where this is not the machine that measures."""
    return Profiler(display.say) if archive.config.profile and not workers else None


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
        wait = seconds_of(options.wait)
        return WithParams(Mailbox(seeds, wait, display.say, profile, options.ahead), seeds)
    return WithParams(LlmProposer(seeds, profile, say=display.say), seeds)
