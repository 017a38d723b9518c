"""`list`, `show`, `status`, `clear`: what is stored, for which chip, and why SDPA serves the rest.

Nothing here gates, measures or changes a verdict; `clear` alone removes something.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from .. import ops, switches
from .._version import __version__
from ..device import BACKENDS, detect, fingerprint, version_of
from ..errors import RegistryError, UsageError, WorkloadError
from ..files import printable
from ..home import unwritable
from ..kernels.kernel import Kernel
from ..kernels.lookup import named, registries
from ..kernels.registry import VERSION, Registry, tuned_root, user_root
from ..kernels.shared import IMPORTED
from ..kernels.verdict import (
    STEP,
    TUNED_GATE,
    UNTIMED,
    Verdict,
    describe,
    gate_version,
    gate_versions,
)
from ..runtime import families
from ..runtime.planner import STORED_ALONE, Planner, advised
from .architectures import Callers, callers
from .result import Result

__all__ = ["clear", "list_verdicts", "show", "status", "usage"]

_Stored = list[tuple[Registry, str, Verdict]]  # each with where it lies, and for which device

# What changes how this library behaves, shown by `status` where it is set.
VARIABLES = (
    *switches.SWITCHES,
    "MLX_LM_OPENEVOLVE_OPS",
    "MLX_LM_OPENEVOLVE_HOME",
    "MLX_LM_OPENEVOLVE_CXX",
)


def usage(folder: Path) -> int:
    """Bytes of the files in a folder, 0 where there is none."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to read
                total += (Path(root) / name).lstat().st_size
    return total


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def cache_root() -> Path:
    """Where compiled kernels and their texts are kept; the stores there bound their sizes."""
    from ..cache import folder

    return folder()


# list


def list_verdicts(options: argparse.Namespace, out: Console) -> Result:
    """Every stored verdict, and why it does or does not serve."""
    table = Table(box=None, pad_edge=False)
    for name in ("device", "workload", "kernel", "ratio [low]", "verdict", "from"):
        table.add_column(name, overflow="fold")
    if options.device not in (None, detect().slug):
        _check_device(options.device, registries())
    rows = []
    for registry, device, verdict in _stored(options.device):
        row = {
            "device": device,
            "workload": verdict.workload,
            "kernel": verdict.kernel,
            "params": dict(verdict.params),
            "status": verdict.status,
            "correct": verdict.correct,
            "faster": verdict.faster,
            "reason": verdict.reason,
            "ratio": verdict.timing.get("ratio"),
            "low": verdict.timing.get("low"),
            "stale": _stale(verdict, device, shipped=not registry.writable),
            "from": "user" if registry.writable else "tuned",
        }
        rows.append(row)
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} [{row['low'] or 0:.2f}]"
        stale = f"stale: {row['stale']}" if row["stale"] else ""
        why = ": ".join(filter(None, (stale, "" if stale and verdict.accepted else verdict.text)))
        table.add_row(
            device, verdict.workload, verdict.kernel, ratio, escape(why), str(row["from"])
        )
    used = {"registry": usage(user_root() / VERSION), "tuned": usage(tuned_root() / VERSION)}
    none = advised("no verdict is stored yet: `tune` makes them", detect().backend)
    out.print(table if rows else none)
    kernels = sum(len(registry.kernels()) for registry in registries())
    out.print(
        f"{len(rows)} verdicts, {kernels} kernels;"
        f" {size(used['registry'])} in {user_root()}, {size(used['tuned'])} shipped",
        markup=False,
    )
    return 0, {"verdicts": rows, "kernels": kernels, "bytes": used}


def _check_device(device: str, among: Sequence[Registry]) -> None:
    """Raise UsageError where nothing is stored for a device."""
    known = sorted({name for registry in among for name in registry.devices()})
    if device not in known:
        text = ", ".join(known) or "none"
        raise UsageError(f"nothing is stored for {device[:80]!r}; devices: {text}")


def _stored(device: str | None = None) -> _Stored:
    return [
        (registry, name, verdict)
        for registry in registries()
        for name in registry.devices()
        if device in (None, name)
        for verdict in _verdicts(registry, name)
    ]


def _verdicts(registry: Registry, device: str) -> Iterator[Verdict]:
    for workload in registry.workloads(device):
        yield from registry.verdicts(device, workload)
    yield from registry.about(device, STEP)


def _stale(verdict: Verdict, device: str, *, shipped: bool) -> str:
    """Why a verdict does not count on its own device, "" where it does. shipped: whether it lies in
    tuned/."""
    if device.startswith(IMPORTED):
        return "made by another machine"
    about = STEP if verdict.kind == STEP else ops.of_slug(verdict.workload).name
    current = fingerprint(detect(), gate_version(about))
    keys = ["mlx", "gate"]
    if "macos" in current and "macos" in verdict.fingerprint:  # both are Metal's
        keys.append("macos")
    for key in keys:
        if shipped and key == "gate" and verdict.fingerprint.get(key) == TUNED_GATE:
            continue
        if verdict.fingerprint.get(key) != current[key]:
            return f"made by {key} {verdict.fingerprint.get(key)}, now {current[key]}"
    return ""


# show


def show(options: argparse.Namespace, out: Console) -> Result:
    """A kernel by id or name, or a workload, also a whole step's."""
    stored = _stored()
    if any(verdict.workload == options.what for _, _, verdict in stored):
        return _show_workload(options.what, stored, out)
    try:
        return _show_workload(ops.parse(options.what).bucket().slug, stored, out, options.what)
    except WorkloadError as wrong:
        try:
            return _show_kernel(named(options.what), stored, out)
        except UsageError:
            if options.what.partition("-")[0].lower() in ops.FAMILIES:  # it was meant for a slug
                raise wrong from None
            raise


def _show_workload(slug: str, stored: _Stored, out: Console, asked: str = "") -> Result:
    here, gated = _here(slug)
    out.print(slug, style="bold", markup=False)
    if asked not in ("", slug):
        out.print(f"  bucket   of {asked}: all its shapes share one answer", markup=False)
    out.print(f"  here     {here['text']}", markup=False)
    verdicts = []
    for registry, device, verdict in stored:
        if verdict.workload == slug:
            verdicts.append({"device": device, **verdict.to_json()})
            out.print(f"\n{device}", style="dim", markup=False)
            for line in describe(verdict):
                out.print(line, markup=False, style=None if verdict.correct else "red")
            stale = _stale(verdict, device, shipped=not registry.writable)
            if stale:
                again = "it is gated again at first use" if gated else "`tune` judges it again"
                again = advised(again, detect().backend)
                out.print(f"  stale    {stale}: {again}", markup=False)
    return 0, {"workload": slug, "here": here, "verdicts": verdicts}


def _here(slug: str) -> tuple[dict[str, Any], bool]:
    """What a workload runs on on this machine as things stand, and why; whether it may be gated at
    first use."""
    device = detect()
    # On the host this mode gates nothing; on a GPU it would.
    mode = "auto" if device.backend == "host" else "stored"
    planner = Planner(device, registries(), mode=mode)
    choice = families.choose(families.named(), planner)
    planner.ungated = choice.unnamed
    family = slug.partition("-")[0]
    if family == STEP:
        about = (v for v in planner.counting(STEP) if v.workload == slug)
        serving = next(filter(planner.serves, about), None)
        kernel, stock = serving.kernel if serving else None, "layers as they are"
        reason = "accepted" if serving else advised(families.NO_VERDICT, device.backend)
    else:
        plan = planner.plan(ops.parse(slug).bucket())
        kernel, stock = plan.kernel.id if plan.kernel else None, ops.get(family).stock
        reason = plan.reason
    if reason == STORED_ALONE:
        reason = "no verdict on this device yet: the gate decides at first use"
    if family in choice.off:
        kernel, reason = None, f"{family} is off: {choice.off[family]}"
    text = f"kernel {kernel}: {reason}" if kernel else f"{stock}: {reason}"
    here = {"device": device.slug, "kernel": kernel, "reason": reason, "text": text}
    return here, family not in (STEP, *choice.off, *choice.unnamed)


def _show_kernel(kernel: Kernel, stored: _Stored, out: Console) -> Result:
    out.print(f"[bold]{kernel.name}[/] {kernel.id} ({escape(kernel.origin)})")
    if kernel.description:
        out.print(kernel.description, markup=False)
    out.print(f"applies   {kernel.applies.text}", markup=False)
    for param in kernel.params:
        values = ", ".join(map(str, param.values))
        out.print(f"{param.name:9s} {values}; by default {param.default.text}", markup=False)
    verdicts: dict[str, dict[str, int]] = {}
    for _, device, verdict in stored:
        if verdict.kernel == kernel.id:
            counts = verdicts.setdefault(device, {"accepted": 0, "rejected": 0})
            counts[verdict.status] += 1
    for device, counts in verdicts.items():
        right = sum(v.untimed for _, at, v in stored if (v.kernel, at) == (kernel.id, device))
        text = f"{counts['accepted']} accepted, {counts['rejected'] - right} not"
        out.print(f"verdicts  {device}: {text}" + (f", {right} {UNTIMED}" if right else ""))
    checks = [check for registry in registries() for check in registry.host_checks(kernel.id)]
    if checks:
        good = sum(bool(check.get("ok")) for check in checks)
        out.print(f"on host   {good} of {len(checks)} checks passed")
    for file, source in kernel.sources.items():
        out.print(f"\n{file}", style="bold", markup=False)
        if out.is_terminal:
            out.print(Syntax(printable(source), "cpp", word_wrap=True, background_color="default"))
        else:
            out.print(source, markup=False, end="")
    return 0, {
        "kernel": kernel.id,
        "name": kernel.name,
        "meta": dict(kernel.meta),
        "sources": dict(kernel.sources),
        "verdicts": verdicts,
        "host_checks": checks,
    }


# status


def status(options: argparse.Namespace, out: Console) -> Result:
    """What runs here, as one block that can be pasted into a bug report."""
    from .. import backends

    device, calls = detect(), callers()
    planner = Planner(device, registries())
    off = families.choose(families.named(), planner).off
    facts: dict[str, Any] = {
        "version": __version__,
        "python": sys.version.split()[0],
        "os": platform.platform(),
        "mlx": version_of("mlx"),
        "mlx_lm": version_of("mlx-lm"),
        "gate": gate_versions(),
        "device": {
            "slug": device.slug,
            "name": device.name,
            "architecture": device.architecture,
            "cores": device.cores,
            "memory": device.memory,
        },
        "backends": {name: backends.get(name).unavailable() or "available" for name in BACKENDS},
        "ops": {
            name: {
                "on": name not in off,
                "reason": off.get(name, ""),
                "stock": ops.get(name).stock,
                "replaces": [f"{p.module}.{p.name}" for p in ops.get(name).patch_points],
            }
            for name in ops.FAMILIES
        },
        "step": {
            "on": STEP not in off,
            "reason": off.get(STEP, ""),
            "accepted_here": sorted({v.workload for v in planner.counting(STEP) if v.accepted}),
        },
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "architectures": {
            "patched": sorted(calls.patched),
            "direct": {
                name: {"lines": list(lines), "served": False, "patched": name in calls.patched}
                for name, lines in calls.direct.items()
            },
            "aliased": {name: list(lines) for name, lines in calls.aliased.items()},
        },
        "registries": [],
        "cache": _place(cache_root()),
        "runs": _place(user_root() / "runs"),
    }
    for registry in registries():
        here, counting = registry.workloads(device.slug), Planner(device, [registry]).counting
        verdicts = [v for family in ops.FAMILIES for v in counting(family)]
        facts["registries"].append(
            {
                "root": str(registry.root),
                "writable": registry.writable,
                "problem": registry.problem if registry.writable else "",
                "kernels": len(registry.kernels()),
                "devices": registry.devices(),
                "workloads_here": len(here),
                "accepted_here": len({v.workload for v in verdicts if v.accepted}),
                "untimed_here": len({v.workload for v in verdicts if v.untimed}),
                "poisoned_here": registry.poisoned(device.slug),
                "bytes": usage(registry.root / VERSION),
            }
        )
    for line in block(facts, calls):
        out.print(line, markup=False)
    return 0, facts


def _place(folder: Path) -> dict[str, Any]:
    return {"root": str(folder), "bytes": usage(folder), "problem": unwritable(folder)}


def block(facts: dict[str, Any], calls: Callers) -> list[str]:
    """The block of `status`; the home folder is left out of it."""
    device = facts["device"]
    cores = f", {device['cores']} cores" if device["cores"] else ""
    memory = f", {size(device['memory'])}" if device["memory"] else ""
    rows = [(key, str(facts[key])) for key in ("version", "python", "os", "mlx", "mlx_lm", "gate")]
    name = f"{device['slug']} ({device['name']}, {device['architecture']}{cores}{memory})"
    rows.append(("device", name))
    rows += [(name, reason) for name, reason in facts["backends"].items()]
    for name, row in facts["ops"].items():
        state = f"on kernels where one is proven, else on {row['stock']}"
        state = state if row["on"] else f"off: {row['reason']}"
        rows.append((name, f"{state}; replaces {', '.join(row['replaces'])}"))
    step = facts["step"]
    count = len(step["accepted_here"])
    text = f"layers compiled in {count} kinds of steps that are proven here"
    rows.append(("step", text if step["on"] else f"off: {step['reason']}"))
    for name, value in facts["variables"].items():
        ignored = switches.ignored(name) if name in switches.SWITCHES else ""
        rows.append(("set", ignored or f"{name}={value}"))
    rows += _architectures(calls)
    for row in facts["registries"]:
        text = (
            f"{row['root']}: {row['kernels']} kernels, {row['accepted_here']} of"
            f" {row['workloads_here']} workloads judged here run on one, "
        )
        if row["untimed_here"]:
            text += f"{row['untimed_here']} with --any-correct alone ({UNTIMED}), "
        text += size(row["bytes"])
        text += f"; nothing can be stored: {row['problem']}" if row["problem"] else ""
        rows.append(("user" if row["writable"] else "tuned", text))
        rows += [("crashed", f"{k}: {reason}") for k, reason in row["poisoned_here"].items()]
    for key in ("cache", "runs"):
        problem = facts[key]["problem"]
        text = f"{facts[key]['root']}: {size(facts[key]['bytes'])}"
        rows.append((key, text + (f"; {problem}" if problem else "")))
    home = str(Path.home())
    return [f"{key:10s} {text.replace(home, '~') if home != '/' else text}" for key, text in rows]


def _architectures(calls: Callers) -> list[tuple[str, str]]:
    """Which of mlx-lm's architectures the patch reaches, for people."""
    if not calls.patched:
        return [("models", "mlx-lm is not installed")]
    rows = [("models", f"{len(calls.patched)} of mlx-lm's architectures call its attention")]
    if calls.direct:
        names = (f"{n} (in part)" if n in calls.patched else n for n in calls.direct)
        text = (
            f"{', '.join(names)}: these call MLX's attention directly,"
            " past the patch; no kernel serves those calls"
        )
        rows.append(("not served", text))
    if calls.aliased:
        text = f"{', '.join(calls.aliased)}: these hold mlx-lm's attention under another name"
        rows.append(("not served", text))
    return rows


# clear


def clear(options: argparse.Namespace, out: Console) -> Result:
    """Remove stored verdicts and kernels; runs of `evolve` are left alone. Of folders that nothing
    is left in, nothing is left."""
    registry = Registry(user_root())
    if options.device is not None:
        _check_device(options.device, [registry])
    folder = registry.root / VERSION / (f"devices/{options.device}" if options.device else "")
    freed = usage(folder)
    removed = registry.clear(options.device)
    places = [registry.root]
    if options.cache:
        cache = cache_root()
        places.append(cache)
        freed += usage(cache)
        removed += sum(len(names) for _, _, names in os.walk(cache))
        try:
            if cache.exists():
                shutil.rmtree(cache)
        except OSError as error:
            raise RegistryError(f"{cache}: {error.strerror or error}") from None
    with contextlib.suppress(OSError):  # something is left in it
        registry.root.rmdir()
    where = " and ".join(map(str, places))
    out.print(f"removed {removed} files, {size(freed)}, under {where}", markup=False)
    return 0, {"removed": removed, "bytes": freed, "registry": str(registry.root)}
