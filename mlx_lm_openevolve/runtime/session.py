"""A process that `mlx-lm-openevolve run` patches: from its settings to the line at its end.

    the variable's settings -> activate() once mlx_lm.models.base is loaded -> one line at the end

The first process prints the line; its children, patched as well, leave reports that are added.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["VARIABLE", "activate", "summary", "totals"]

VARIABLE = "MLX_LM_OPENEVOLVE_RUN"


def activate() -> None:
    """Patch this process as the variable says and see to the line at its end.

    Called once mlx_lm.models.base is loaded; never raises, because the command must run.
    """
    settings = json.loads(os.environ[VARIABLE])
    from ..switches import switched_off
    from . import api
    from .api import enable_optimizations, get_optimization_info

    api.told_idle = True  # the line at the end tells it
    problem = ""
    try:
        arguments = ("path", "backend", "gate", "require_faster")
        enable_optimizations(**{name: settings[name] for name in arguments})
        problem = switched_off()
    except Exception as error:  # the command goes on without us
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if settings["verbose"]:
            traceback.print_exc()
    pid = os.getpid()
    done: list[bool] = []

    def finish() -> None:
        if done or os.getpid() != pid:  # a fork has its parent's counts
            return
        done.append(True)
        _finish(settings, {"problem": problem, **get_optimization_info()})

    def end(number: int, _: object) -> None:
        finish()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    atexit.register(finish)
    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, end)


def _finish(settings: Mapping[str, Any], info: dict[str, Any]) -> None:
    """Tell what happened: the first process prints the line, its children leave a report."""
    folder = Path(settings["folder"] or os.devnull)
    try:
        if os.getpid() != settings["pid"]:
            if folder.is_dir():  # gone where the first process ended before this one
                (folder / f"{os.getpid()}.json").write_text(json.dumps(info))
            return
        reports = [info]
        for path in sorted(folder.glob("*.json")):
            with contextlib.suppress(ValueError):  # a child was killed while it wrote
                reports.append(json.loads(path.read_text()))
        report = totals(reports)
        print(f"mlx-lm-openevolve: {summary(report)}", file=sys.stderr, flush=True)
        if settings["json"]:
            print(json.dumps(report), flush=True)
    except OSError:  # a full disk or a closed terminal is no reason to change the exit code
        pass
    if os.getpid() == settings["pid"]:
        shutil.rmtree(folder, ignore_errors=True)


def totals(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What get_optimization_info() of several processes says together: `processes`, `hits`,
    `kernels` (name and id -> calls), `fallbacks` (reason -> calls), `workloads`, `problems`; and
    `ops`, where each family has its own `hits`, `kernels` and `fallbacks`, and `unreached`; `off`,
    the families that were on in none of them, each with the reason; and `models` as the last
    process that had called one says of it."""
    from .families import NAMES

    families: dict[str, _Family] = {}
    workloads: dict[str, dict[str, Any]] = {}
    models: dict[str, Any] = {}
    off: dict[str, str] = {}
    on = set[str]()
    problems: list[str] = []
    processes = 0
    for report in reports:
        processes += 1
        if report["problem"] and report["problem"] not in problems:
            problems.append(report["problem"])
        models.update(report.get("models", {}))
        said_off = report.get("off", {})
        off.update(said_off)
        # What is enabled and not off is on; of whole steps nothing else says so.
        on.update(n for n in NAMES if report.get("enabled") and n not in said_off)
        on.update(report["ops"])
        for name, said in report["ops"].items():
            family = families.setdefault(name, _Family())
            family.fallbacks.update(said["fallbacks"])
            family.unreached.update(said["unreached"])
        for slug, row in report["workloads"].items():
            family = families[slug.partition("-")[0]]
            if row["hits"]:
                family.kernels[f"{row['name']} {row['kernel']}"] += row["hits"]
            if row["fallbacks"]:
                # Where the kernel serves other calls of the workload, its verdict is no reason.
                reason = "the kernel stepped aside" if row["hits"] else row["reason"]
                family.fallbacks[reason] += row["fallbacks"]
            known = workloads.setdefault(slug, {**row, "hits": 0, "fallbacks": 0})
            known["hits"] += row["hits"]
            known["fallbacks"] += row["fallbacks"]
    kernels, fallbacks = Counter[str](), Counter[str]()
    for family in families.values():
        kernels.update(family.kernels)
        fallbacks.update(family.fallbacks)
    return {
        "processes": processes,
        "hits": kernels.total(),
        "kernels": dict(kernels.most_common()),
        "fallbacks": dict(fallbacks.most_common()),
        "ops": {name: family.to_json() for name, family in families.items()},
        "off": {name: reason for name, reason in off.items() if name not in on},
        "workloads": workloads,
        "models": models,
        "problems": problems,
    }


@dataclass
class _Family:
    """What all processes together say of one family."""

    kernels: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    unreached: set[str] = field(default_factory=set)

    def to_json(self) -> dict[str, Any]:
        return {
            "hits": self.kernels.total(),
            "kernels": dict(self.kernels.most_common()),
            "fallbacks": dict(self.fallbacks.most_common()),
            "unreached": sorted(self.unreached),
        }


def summary(report: Mapping[str, Any]) -> str:
    """`totals` in one line for a person, family by family; at its end those that are off although
    nobody said so."""
    from .families import NOT_NAMED

    stays = "mlx-lm stays as it is: " + "; ".join(report["problems"])
    if report["problems"] and not report["ops"] and not report["models"]:
        return stays
    reasons: dict[str, list[str]] = {}
    for name, reason in report["off"].items():
        if reason != NOT_NAMED:
            reasons.setdefault(reason, []).append(name)
    off = [f"{' and '.join(names)} off ({reason})" for reason, names in reasons.items()]
    others = [f"in other processes {stays}"] if report["problems"] else []
    return ", ".join([_served(report), *off, *others])


def _served(report: Mapping[str, Any]) -> str:
    from .. import ops
    from .families import NAMES

    models = report["models"].values()
    layers = sum(row["compiled"] for row in models)
    compiled = [f"{layers} layers compiled"] if layers else []
    seen = {name: row for name, row in report["ops"].items() if row["kernels"] or row["fallbacks"]}
    on = [name for name in NAMES if name in report["ops"] or name not in (report["off"] or NAMES)]
    if not on and not models:
        return "mlx-lm stays as it is: no family of operations is switched on"
    if not seen and not models:
        return f"no {' or '.join(on)} call was seen"
    parts = []
    for name, row in seen.items():
        for calls, where, names in (
            (row["hits"], "kernels", row["kernels"]),
            (sum(row["fallbacks"].values()), ops.get(name).stock, row["fallbacks"]),
        ):
            detail = "; ".join(f"{name}: {count}" for name, count in names.items())
            parts.append(f"{calls} {name} calls on {where}" + (f" ({detail})" if detail else ""))
    parts += compiled or {f"no layer compiled ({r['reason']})": 0 for r in models if r["reason"]}
    if report["processes"] > 1:
        parts.append(f"{report['processes']} processes")
    return ", ".join(parts)
