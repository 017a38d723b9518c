"""What the options of `evolve` come to: the Config of a run."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.hub import check_model
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.units import seconds_of

from . import suites
from .config import Budget, Config, LanguageModel, LlmConfig, Search, Work
from .options import DEFAULT_BUDGET

__all__ = ["check_numbers", "check_same", "new_config", "profiles"]


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
    text = options.budget or ("" if limited else DEFAULT_BUDGET)
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
