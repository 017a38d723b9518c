"""The options of the commands `evolve`, `fleet` and `report`, and the Config that they come to."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.device import BACKENDS, detect
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.hub import check_model
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.units import seconds_of

from . import suites
from .config import PROPOSERS, Budget, Config, LanguageModel, LlmConfig, Search, Work

__all__ = [
    "HEURISTIC",
    "add_evolve_arguments",
    "add_fleet_arguments",
    "add_report_arguments",
    "check_numbers",
    "check_same",
    "new_config",
    "profiles",
]

_DEFAULT_BUDGET = "10m"
HEURISTIC = "heuristic"  # a search of its own over measured points, without a run of candidates


def add_evolve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evolve`."""
    add, known = parser.add_argument, f"suites: {', '.join(suites.suites())}"
    add(
        "--backend",
        choices=BACKENDS,
        help="default: the GPU, else host (nothing is timed)",
    )
    add("--workloads", nargs="+", metavar="SUITE|SLUG", help=f"default decode; {known}")
    add("--model", metavar="PATH_OR_ID", help="search for what a generation of this model calls")
    add("--proposer", choices=(*PROPOSERS, HEURISTIC), help="default params, which needs nothing")
    points = "heuristic: tables of measured points"
    add("--points", nargs="+", type=Path, metavar="FILE", help=points)
    add("--budget", metavar="10m", help=f"time; default {_DEFAULT_BUDGET} where nothing is set")
    add("--candidates", type=int, metavar="N", help="how many may be tried")
    add("--tokens", type=int, metavar="N", help="tokens that llm may spend")
    add("--money", type=float, metavar="X", help="money that llm may spend")
    add("--resume", type=Path, metavar="RUN", help="go on with a run")
    text = "of parents outside the elites (llm, mailbox); adaptive"
    add("--explore", type=float, metavar="SHARE", help=text)
    add("--seed", type=int, metavar="N", help="default 0")
    add("--kernels", nargs="+", type=Path, metavar="FOLDER", help="seeds; default: all known ones")
    text = "an OpenEvolve configuration: its models, budget and seed"
    add("--config", type=Path, metavar="FILE.yaml", help=text)
    add("--out", type=Path, metavar="RUN", help="folder of a new run")
    add("--export", type=Path, metavar="FOLDER", help="write what was published there as well")
    add("--no-publish", action="store_true", help="leave the user's registry as it is")
    add("--jobs", type=int, metavar="N", help="host checks side by side")
    add("--llm", action="append", metavar="NAME[,WEIGHT[,PRICE_IN,PRICE_OUT]]", default=[])
    add("--context", type=int, default=32768, metavar="TOKENS", help="what the models take")
    add("--answer", type=int, default=8192, metavar="TOKENS", help="longest answer")
    add("--timeout", type=float, default=300.0, metavar="SECONDS", help="for an answer of llm")
    add("--wait", metavar="10m", default="1h", help="for an answer in the mailbox")
    add("--ahead", type=int, default=1, metavar="N", help="prompts of the mailbox open at a time")
    add("--target", action="append", metavar="SPEEDUP:SHARE", default=[], help="stop at fast_p")
    add(
        "--profile",
        action=argparse.BooleanOptionalAction,
        help="NVIDIA: put profiles of ncu into prompts and report; default with llm and mailbox",
    )
    add("--all", action="store_true", help="search saturated workloads too")
    _add_link(parser)


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fleet`."""
    parser.add_argument("what", choices=("worker",), help="answer the requests of a search")
    parser.add_argument(
        "--check", action="store_true", help="check on the CPU, though it has a GPU"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU, else host")
    _add_link(parser, required=True)


def _add_link(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    add, text = parser.add_argument, "of the machines of a fleet (extra fleet), tls://HOST:8786"
    add("--scheduler", metavar="ADDRESS", required=required, help=f"dask scheduler {text}")
    for name, what in (("ca", "the authority's certificate"), ("cert", "ours"), ("key", "our key")):
        add(f"--tls-{name}", type=Path, metavar="FILE", help=f"tls://: {what}")
    add("--insecure", action="store_true", help="allow tcp:// beyond this machine")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder or name, or a packed run (.tar.xz)")
    where = "default: the run's folder, or one of its name beside a packed run"
    add("--out", type=Path, metavar="FOLDER", help=where)


def new_config(options: argparse.Namespace) -> Config:
    """The Config of a new run. Raises UsageError."""
    check_numbers(options)
    if options.explore is not None and not 0 <= options.explore <= 1:
        raise UsageError(f"--explore {options.explore:g}: a share lies between 0 and 1")
    if options.model and options.workloads:
        raise UsageError("--model and --workloads: give one of them")
    backend = options.backend or detect().backend
    if not options.scheduler and (reason := backends.get(backend).unavailable()):
        raise UsageError(f"backend {backend!r}: {reason}")
    limited = options.candidates or options.tokens or options.money
    text = options.budget or ("" if limited else _DEFAULT_BUDGET)
    budget = Budget(
        options.candidates or 0,
        seconds_of(text) if text else 0.0,
        options.tokens or 0,
        options.money or 0.0,
    )
    proposer = options.proposer or "params"
    jobs = options.jobs or min(4, os.cpu_count() or 1)
    targets = tuple(_target(text) for text in options.target)
    if targets and backend == "host":
        raise UsageError("--target: nothing is timed without a GPU")
    llm = LlmConfig(
        models=tuple(LanguageModel.parse(text) for text in options.llm),
        context=options.context,
        answer=options.answer,
        timeout=options.timeout,
    )
    if options.model:
        check_model("--model", options.model)
        uses, names = suites.traced(options.model), [options.model]
    else:
        names = options.workloads or [suites.default_suite(_op(options.kernels))]
        chosen = suites.suite(names)
        uses = dict.fromkeys(chosen, 1 / len(chosen))
    return Config(
        backend=backend,
        workloads=tuple(uses),
        weights=tuple(uses.values()),
        proposer=proposer,
        suite=" ".join(names),
        seed=options.seed or 0,
        profile=profiles(options.profile, backend, proposer != "params"),
        budget=budget,
        search=Search(
            explore=-1.0 if options.explore is None else options.explore,
            batch=max(2, jobs),
            saturated=0.0 if options.all else 1.1,
            targets=targets,
        ),
        work=Work(jobs=jobs),
        llm=llm,
    )


def check_numbers(options: argparse.Namespace) -> None:
    """Raise UsageError where a number cannot be meant: no limit is to leave an option out."""
    for name in ("candidates", "tokens", "money", "jobs", "context", "answer", "timeout", "ahead"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} {value}: a number above 0, not negative, 0 or infinite")
    if (options.seed or 0) < 0:
        raise UsageError(f"--seed {options.seed}: it must not be negative")
    if options.answer >= options.context:
        raise UsageError(f"--answer {options.answer}: it must leave room in --context")
    seconds_of(options.wait)


def check_same(options: argparse.Namespace, config: Config) -> None:
    """Raise UsageError where an option asks a run that goes on for what it was not begun with."""
    search = config.search
    explore = None if search.explore < 0 else search.explore
    targets = [_target(text) for text in options.target]
    models = [LanguageModel.parse(text) for text in options.llm]
    for name, asked, begun in (
        ("backend", options.backend, config.backend),
        ("workloads", " ".join(options.workloads or []), config.suite),
        ("model", options.model, config.suite),
        ("proposer", options.proposer, config.proposer),
        ("explore", options.explore, explore),
        ("target", targets, list(search.targets)),
        ("llm", models, list(config.llm.models)),
        ("out", options.out, None),
    ):
        if asked not in (None, "", []) and asked != begun:
            raise UsageError(f"--{name} with --resume: a run keeps what it began with; begin anew")


def profiles(wanted: bool | None, backend: str, default: bool) -> bool:
    """Whether ncu is to look at kernels, by --profile or --no-profile (None: neither). Raises
    UsageError where it cannot."""
    if wanted and backend != "cuda":
        raise UsageError(f"--profile: ncu is NVIDIA's, it sees nothing of backend {backend!r}")
    return backend == "cuda" and (default if wanted is None else wanted)


def _target(text: str) -> tuple[float, float]:
    try:
        speedup, share = (float(part) for part in text.split(":"))
        if not (0 < speedup < math.inf and 0 < share <= 1):
            raise ValueError
    except ValueError:
        raise UsageError(f"--target {text!r}: write SPEEDUP:SHARE, such as 1.2:0.8") from None
    return speedup, share


def _op(kernels: Sequence[Path] | None) -> str:
    """The family of the named kernels, else the first."""
    return Kernel.load(kernels[0]).op if kernels else next(iter(ops.FAMILIES))
