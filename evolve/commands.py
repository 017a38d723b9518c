"""The commands `evolve` and `report`: arguments, and what they do. The command line wires them."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import BACKENDS, detect
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.hub import check_model
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root, user_root

from . import config as configs
from . import loop, suites
from . import two_machines as stages
from .archive import Archive
from .config import Budget, Config, Llm, Model, Search, Work, seconds_of
from .evaluator import Lab
from .ncu import Profiler
from .progress import View
from .propose import Proposer
from .propose.llm import Llm as AskModels
from .propose.mailbox import Mailbox
from .propose.structural import WithTuning, no_look
from .propose.tune import Tune, headroom
from .publish import publish

__all__ = ["add_evolve_arguments", "add_report_arguments", "evolve", "report"]

Result = tuple[int, dict[str, Any]]
_DEFAULT_BUDGET = "10m"


def add_evolve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evolve`."""
    add = parser.add_argument
    add("batch", nargs="?", type=Path, metavar="BATCH", help="folder of a batch (see --stage)")
    add("--backend", choices=BACKENDS, help="default: the GPU, else host (times are modelled)")
    add("--workloads", nargs="+", metavar="SUITE|SLUG", help=f"default decode; {suites_text()}")
    add("--model", metavar="PATH_OR_ID", help="search for what a generation of this model calls")
    add("--proposer", choices=configs.PROPOSERS, help="default tune, which needs nothing")
    add("--budget", metavar="10m", help=f"time; default {_DEFAULT_BUDGET} where nothing is set")
    add("--candidates", type=int, default=0, metavar="N")
    add("--tokens", type=int, default=0, metavar="N", help="tokens that llm may spend")
    add("--money", type=float, default=0.0, metavar="X", help="money that llm may spend")
    add("--resume", type=Path, metavar="RUN", help="go on with a run")
    add("--merge", type=Path, metavar="EVENTS", help="with --resume: results of another machine")
    add("--explore", type=float, metavar="SHARE", help="of parents outside the elites; adaptive")
    add("--seed", type=int, default=0)
    add("--stage", choices=("check", "measure"), help="one half of a search on two machines")
    add("--kernels", nargs="+", type=Path, metavar="FOLDER", help="seeds; default: all known ones")
    add("--out", type=Path, metavar="RUN", help="folder of a new run")
    add("--export", type=Path, metavar="FOLDER", help="write what was published there as well")
    add("--no-publish", action="store_true", help="leave the user's registry as it is")
    add("--jobs", type=int, default=0, metavar="N", help="host checks side by side")
    add("--llm", action="append", metavar="NAME[,WEIGHT[,PRICE_IN,PRICE_OUT]]", default=[])
    add("--context", type=int, default=32768, metavar="TOKENS", help="what the models take")
    add("--answer", type=int, default=8192, metavar="TOKENS", help="longest answer")
    add("--timeout", type=float, default=300.0, metavar="SECONDS", help="for an answer of llm")
    add("--wait", metavar="10m", default="1h", help="for an answer in the mailbox")
    add("--target", action="append", metavar="SPEEDUP:SHARE", default=[], help="stop at fast_p")
    add(
        "--profile",
        action=argparse.BooleanOptionalAction,
        help="NVIDIA: put profiles of ncu into prompts and report; default with llm and mailbox",
    )
    add("--all", action="store_true", help="search saturated workloads too")


def suites_text() -> str:
    """The suites, for a help text."""
    return "suites: " + ", ".join(suites.SUITES)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder or name, or a packed run (.tar.xz)")
    where = "default: the run's folder, or one of its name beside a packed run"
    add("--out", type=Path, metavar="FOLDER", help=where)


def report(options: argparse.Namespace, out: Console) -> Result:
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


def evolve(options: argparse.Namespace, out: Console) -> Result:
    """Search, or one stage of a search on two machines."""
    if options.stage == "measure":
        if options.batch is None:
            raise UsageError("--stage measure needs the BATCH that --stage check wrote")
        done = stages.measure_stage(options.batch, lambda text: out.print(text), options.backend)
        events = options.batch / "events.jsonl"
        out.print(f"{done} measured; go on: evolve --resume RUN --merge {events}", markup=False)
        return 0, {"run": str(options.batch), "candidates": done, "events": str(events)}
    if options.merge and not options.resume:
        raise UsageError("--merge needs --resume RUN")
    archive = _resume(options) if options.resume else _start(options, out)
    try:
        if options.merge:
            taken = stages.merge(archive, options.merge)
            out.print(f"{taken} results merged")
        missing = [slug for slug in archive.slugs if slug not in archive.baseline]
        absent = backends.get(archive.config.backend).unavailable()
        if absent and options.stage is None and (archive.pending() or missing):
            raise UsageError(f"backend {archive.config.backend!r}: {absent}; --merge its results")
        return _search(archive, options, out)
    finally:
        archive.close()


def _search(archive: Archive, options: argparse.Namespace, out: Console) -> Result:
    seeds = _seeds(archive, options)
    with View(out) as view, Lab(archive) as lab:
        look = _profiler(archive, options, view)
        proposer = _proposer(archive, options, seeds, view, look)
        if options.stage == "check":
            if options.batch is None:
                raise UsageError("--stage check needs the BATCH to write")
            passed = stages.check_stage(archive, proposer, lab, options.batch, view)
            out.print(
                f"{passed} candidates passed; measure: evolve --stage measure {options.batch}"
            )
            return 0, {**_result(archive), "batch": str(options.batch), "passed": passed}
        reason = loop.evolve(archive, proposer, lab, view)
        if look is not None:
            look(archive)
    out.print(f"stopped: {reason}", markup=False)
    for slug in archive.slugs:
        if headroom(archive, slug) <= archive.config.search.saturated:
            out.print(f"saturated, left alone: {slug}", markup=False)
    absent = backends.get(archive.config.backend).unavailable()
    if absent and not options.no_publish:
        out.print(f"nothing is published here ({absent}): resume the run where it can be measured")
    if not absent and not options.no_publish:
        registries = [Registry(user_root())]
        if options.export:
            registries.append(Registry(options.export))
        for event in publish(archive, registries):
            kind = "published" if event["accepted"] else "not published"
            out.print(f"{kind}: {event['workload']}: {event['reason']}", markup=False)
    result = _result(archive)
    modelled = " (modelled)" if archive.config.backend == "host" else ""
    out.print(
        f"{archive.folder}: {result['candidates']} candidates, {result['ratio']:.3f}x "
        f"[{result['low']:.3f}, {result['high']:.3f}]{modelled}",
        markup=False,
    )
    return (0 if result["low"] > 1 else 1), result


def _result(archive: Archive) -> dict[str, Any]:
    ratio, low, high = archive.fitness()
    return {
        "run": str(archive.folder),
        "candidates": len(archive.done),
        "best": {
            slug: {"kernel": kernel, "params": dict(r.params), "ratio": r.ratio, "low": r.low}
            for slug, (kernel, r, _) in archive.best.items()
        },
        "ratio": ratio,
        "low": low,
        "high": high,
        "modelled": archive.config.backend == "host",
        "valid": archive.valid_share(),
        "failures": archive.failures(),
        "spent": archive.spent(),
        "stopped": archive.ended,
        "published": [e for e in archive.published if e["accepted"]],
    }


# Runs


def runs_root() -> Path:
    """Where runs are kept that were given no folder."""
    return user_root() / "runs"


def _run_folder(run: Path) -> Path:
    """A run by its folder, or by its name under `runs_root`."""
    return run if (run / "events.jsonl").exists() else runs_root() / run


def _start(options: argparse.Namespace, out: Console) -> Archive:
    backend = options.backend or detect().backend
    if options.stage is None:
        reason = backends.get(backend).unavailable()
        if reason:
            raise UsageError(f"backend {backend!r}: {reason}")
    if options.model and options.workloads:
        raise UsageError("--model and --workloads: give one of them")
    if options.model:
        check_model("--model", options.model)
        uses = suites.traced(options.model)
        workloads, weights = tuple(uses), tuple(uses.values())
    else:
        workloads = suites.suite(options.workloads or ["decode"])
        weights = tuple(1 / len(workloads) for _ in workloads)
    nothing_set = not (options.candidates or options.tokens or options.money)
    text = options.budget or (_DEFAULT_BUDGET if nothing_set else "")
    if options.candidates < 0 or options.tokens < 0 or options.money < 0 or options.jobs < 0:
        raise UsageError("budgets and --jobs are not negative")
    if options.explore is not None and not 0 <= options.explore <= 1:
        raise UsageError(f"--explore {options.explore:g}: a share lies between 0 and 1")
    proposer = options.proposer or "tune"
    jobs = options.jobs or min(4, os.cpu_count() or 1)
    config = Config(
        backend=backend,
        workloads=workloads,
        weights=weights,
        proposer=proposer,
        suite=" ".join(options.workloads or ([options.model] if options.model else ["decode"])),
        seed=options.seed,
        profile=_profiles(options.profile, backend, proposer != "tune"),
        budget=Budget(
            options.candidates,
            seconds_of(text) if text else 0.0,
            options.tokens,
            options.money,
        ),
        search=Search(
            explore=-1.0 if options.explore is None else options.explore,
            batch=max(2, jobs),
            saturated=0.0 if options.all else 1.1,
            targets=tuple(_target(text) for text in options.target),
        ),
        work=Work(jobs=jobs),
        llm=Llm(
            models=tuple(Model.parse(text) for text in options.llm),
            context=options.context,
            answer=options.answer,
            timeout=options.timeout,
        ),
    )
    folder = options.out or runs_root() / time.strftime(f"%Y%m%d-%H%M%S-{backend}")
    archive = Archive.create(folder, config, vars(detect(backend)))
    out.print(f"run {folder}", markup=False)
    return archive


def _profiles(told: bool | None, backend: str, default: bool) -> bool:
    if told and backend != "cuda":
        raise UsageError(f"--profile: ncu is NVIDIA's, it sees nothing of backend {backend!r}")
    return backend == "cuda" and (default if told is None else told)


def _target(text: str) -> tuple[float, float]:
    try:
        speedup, share = (float(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--target {text!r}: write SPEEDUP:SHARE, such as 1.2:0.8") from None
    return speedup, share


def _resume(options: argparse.Namespace) -> Archive:
    archive = Archive.open(_run_folder(options.resume))
    budget = archive.config.budget
    if options.candidates:  # more than before: a run that ended may go on
        budget = replace(budget, candidates=options.candidates)
    if options.budget:
        budget = replace(budget, seconds=archive.elapsed + seconds_of(options.budget))
    budget = replace(
        budget, tokens=options.tokens or budget.tokens, money=options.money or budget.money
    )
    profile = _profiles(options.profile, archive.config.backend, archive.config.profile)
    archive.config = replace(archive.config, budget=budget, profile=profile)
    # What was in flight: batches are run in order, and what another machine has was not.
    pending = [c.number for c in archive.pending() if c.number not in archive.batched]
    archive.add("resume", pending=pending[: archive.config.search.batch])
    return archive


def _seeds(archive: Archive, options: argparse.Namespace) -> list[Kernel]:
    """The kernels to begin with: as told, else all known ones that apply. Raises UsageError."""
    if options.kernels:
        kernels = [Kernel.load(folder) for folder in options.kernels]
    else:
        found: dict[str, Kernel] = {}
        for registry in (Registry(user_root()), Registry(tuned_root(), writable=False)):
            for kernel in registry.kernels():
                found.setdefault(kernel.id, kernel)
        for folder in sorted((Path(__file__).parent / "seeds").iterdir()):
            kernel = Kernel.load(folder)
            found.setdefault(kernel.id, kernel)
        kernels = list(found.values())
    metal = archive.config.backend != "cuda"
    kept = []
    for kernel in kernels:
        native = bool(kernel.native)
        try:
            applies = any(kernel.applies_to(archive.workload(slug)) for slug in archive.slugs)
        except OpenEvolveError:
            applies = False
        if applies and not (native and metal):
            kept.append(kernel)
    if not kept:
        raise UsageError(
            "no kernel to begin with applies to these workloads; name one with --kernels FOLDER"
        )
    return kept


def _profiler(archive: Archive, options: argparse.Namespace, view: View) -> Profiler | None:
    """What looks at kernels before they are written about; None where nothing is to be profiled,
    or where this is not the machine that measures."""
    here = archive.config.backend == "cuda" and options.stage is None
    return Profiler(view.say) if archive.config.profile and here else None


def _proposer(
    archive: Archive,
    options: argparse.Namespace,
    seeds: list[Kernel],
    view: View,
    profiler: Profiler | None,
) -> Proposer:
    look = profiler or no_look
    if archive.config.proposer == "tune":
        return Tune(seeds)
    if archive.config.proposer == "mailbox":
        return WithTuning(Mailbox(seeds, seconds_of(options.wait), view.say, look), seeds)
    return WithTuning(AskModels(seeds, look), seeds)
