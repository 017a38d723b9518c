"""The command line.

    mlx-lm-openevolve run | bench | evolve | report | check | import | list
                      | show | status | clear

Exit codes: 0 done, 1 rejected or not faster, 2 usage. With --json one JSON object is the last line
of standard output, and everything for people goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from . import __version__
from .callers import Callers, callers
from .device import BACKENDS, detect, version_of
from .errors import OpenEvolveError, UsageError, WorkloadError
from .kernel import Kernel
from .registry import VERSION, Registry, Verdict, tuned_root, user_root
from .workload import Workload

__all__ = ["main"]

# What `check` asks of a kernel where no workload is named: the first ones that it applies to.
CHECKED = [
    Workload(1, 8, 2, q_len, 128, dim, dim, dtype, mask, sinks)
    for mask, sinks in (("none", False), ("causal", False), ("bool", False), ("additive", True))
    for q_len in (1, 8)
    for dim in (64, 96, 128)
    for dtype in ("bfloat16", "float16", "float32")
    if (q_len, mask) != (1, "causal")
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    out = Console(stderr=options.json, highlight=False, soft_wrap=True)
    try:
        code, result = options.command(options, out)
    except OpenEvolveError as error:
        if options.verbose:
            raise
        print(f"mlx-lm-openevolve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mlx-lm-openevolve: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    if options.json:
        print(json.dumps(result))
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx-lm-openevolve", description="Proven attention kernels for mlx-lm."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
        sub.add_argument("--verbose", action="store_true", help="show tracebacks")
        sub.set_defaults(command=command)
        return sub

    check = add("check", _check, "Judge a kernel folder as the gate does; stores nothing.")
    check.add_argument("folder", metavar="FOLDER", type=Path)
    check.add_argument("--workload", metavar="SLUG", action="append", help="may be repeated")
    check.add_argument("--backend", choices=BACKENDS, help="default: the GPU, else host")
    check.add_argument("--seconds", type=float, default=300, help="time limit for a workload")

    program = add("import", _import, "Turn an OpenEvolve program into a kernel folder.")
    program.add_argument("program", metavar="PROGRAM.py", type=Path)
    program.add_argument("--out", metavar="FOLDER", type=Path, required=True)

    from . import bench, run

    run.add_arguments(
        add("run", run.run, "Run a command of mlx-lm, or a script, with the patch on.")
    )
    bench.add_arguments(
        add("bench", bench.run, "Measure a model, stock against patched, in fresh processes.")
    )

    # The core does without evolve; the command line is where the two meet.
    from .evolve import commands as evolve

    evolve.add_evolve_arguments(
        add("evolve", evolve.evolve, "Look for better kernels on this machine; resumable.")
    )
    evolve.add_report_arguments(add("report", evolve.report, "A run of evolve as one HTML page."))

    add("list", _list, "List the verdicts that are stored, for every device.")
    show = add("show", _show, "Show a kernel with its source, or what is known of a workload.")
    show.add_argument("what", metavar="KERNEL_ID|WORKLOAD")
    add("status", _status, "What runs here: versions, device, backends, registries.")
    clear = add("clear", _clear, "Remove the user's stored verdicts and kernels.")
    clear.add_argument("--device", metavar="SLUG", help="only the verdicts of this device")
    return parser


Result = tuple[int, dict[str, Any]]


def _registries() -> list[Registry]:
    return [Registry(user_root()), Registry(tuned_root(), writable=False)]


def _check(options: argparse.Namespace, out: Console) -> Result:
    from . import backends, gate

    kernel = Kernel.load(options.folder)
    backend = options.backend or detect().backend
    reason = backends.get(backend).unavailable()
    if reason:
        raise UsageError(f"backend {backend!r}: {reason}")
    if options.workload:
        workloads = [Workload.parse(slug).bucket() for slug in options.workload]
    else:
        workloads = [w for w in CHECKED if kernel.applies_to(w)][:4]
    refused = [w.slug for w in workloads if not kernel.applies_to(w)]
    if refused or not workloads:
        raise UsageError(
            f"kernel {kernel.id} does not apply to {refused[0]}"
            if refused
            else "name a --workload: the kernel applies to none of the usual ones"
        )
    verdicts, profiles = [], []
    for workload in workloads:
        params = kernel.default_params(workload)
        profile = _on_host(kernel, params, workload, out)
        profiles.append(profile)
        try:
            verdict = gate.judge_in_worker(
                kernel, params, workload, backend, seconds=options.seconds
            )
        except gate.GateTimeout as error:
            raise UsageError(f"{workload.slug}: {error}; allow more with --seconds") from None
        except gate.Poisoned as error:
            verdict = error.verdict
        verdicts.append(verdict)
        _print_verdict(out, verdict)
    good = all(v.correct and p.get("ok", True) for v, p in zip(verdicts, profiles, strict=True))
    return (0 if good else 1), {
        "kernel": kernel.id,
        "backend": backend,
        "correct": good,
        "verdicts": [verdict.to_json() for verdict in verdicts],
        "host": profiles,
    }


def _on_host(
    kernel: Kernel, params: dict[str, int], workload: Workload, out: Console
) -> dict[str, Any]:
    """The kernel under metalhost's sanitizer, with findings, counters and modelled times. Where
    it cannot be run on the CPU the record says why, under `absent`."""
    from . import backends, gate, metalhost, reference

    host = backends.get("host")
    absent = host.unavailable()
    if not absent and any(stage.language != "metal" for stage in kernel.stages):
        absent = "a stage is not written in Metal"
    if absent:
        out.print(f"no host check: {absent}", markup=False)
        return {"absent": absent}
    record = gate.check_on_host(kernel, params, workload)
    colour = "green" if record["ok"] else "red"
    text = "no finding, right on every case" if record["ok"] else record["reason"]
    out.print(f"host check of {record['on']}: ", end="", markup=False)
    out.print(text, markup=False, style=colour)
    launches: list[metalhost.Launch] = []
    inputs = reference.case("needles", workload, 0).upload()
    call = host.build(kernel, params, workload, sanitize=True, launches=launches)
    with contextlib.suppress(OpenEvolveError):  # the launches say why
        call(inputs.queries, inputs.keys, inputs.values, inputs.scale, inputs.mask, inputs.sinks)
    for launch in launches:
        for finding in launch.findings:
            out.print(str(finding), markup=False, style="red")
        if launch.counters is not None:
            c = launch.counters
            out.print(
                f"  counters reads {c.device_read_bytes} B, {c.read_amplification:.2f}x compulsory,"
                f" line efficiency {c.line_efficiency:.0%}; {c.bank_conflicts} bank conflicts,"
                f" {c.barriers} barriers, {c.simd_ops} simd ops, {c.flops} flops",
                markup=False,
            )
            modelled = [
                f"{chip} {metalhost.roofline(c, chip).modelled_seconds * 1e6:.1f}"
                for chip in ("apple-m1-8", "apple-m2-max-38", "apple-m4-max-40")
            ]
            out.print(f"  modelled floor, us: {', '.join(modelled)}", markup=False)
    return {**record, "launches": [launch.to_dict() for launch in launches]}


def _print_verdict(out: Console, verdict: Verdict) -> None:
    from .gate import describe

    for line in describe(verdict):
        out.print(line, markup=False, style=None if verdict.correct else "red")


def _import(options: argparse.Namespace, out: Console) -> Result:
    from . import importer

    kernel = importer.import_program(options.program, options.out)
    out.print(f"wrote {options.out} (kernel {kernel.id}); judge it: ", end="")
    out.print(f"mlx-lm-openevolve check {options.out}")
    return 0, {"kernel": kernel.id, "folder": str(options.out)}


def _list(options: argparse.Namespace, out: Console) -> Result:
    table = Table("device", "workload", "kernel", "status", "ratio", "low", "from", box=None)
    rows = []
    for registry in _registries():
        origin = "user" if registry.writable else "tuned"
        for device in registry.devices():
            for workload in registry.workloads(device):
                for verdict in registry.verdicts(device, workload):
                    row = {
                        "device": device,
                        "workload": workload.slug,
                        "kernel": verdict.kernel,
                        "params": dict(verdict.params),
                        "status": verdict.status,
                        "correct": verdict.correct,
                        "ratio": verdict.timing.get("ratio"),
                        "low": verdict.timing.get("low"),
                        "from": origin,
                    }
                    rows.append(row)
                    table.add_row(
                        *(
                            f"{value:.2f}" if isinstance(value, float) else str(value or "")
                            for key, value in row.items()
                            if key not in ("params", "correct")
                        )
                    )
    out.print(table if rows else "nothing is stored yet")
    return 0, {"verdicts": rows}


def _show(options: argparse.Namespace, out: Console) -> Result:
    registries = _registries()
    try:
        workload = Workload.parse(options.what).bucket()
    except WorkloadError:
        kernel = next((k for k in (r.kernel(options.what) for r in registries) if k), None)
        if kernel is None:
            raise UsageError(
                f"{options.what[:80]!r} is neither a stored kernel's id nor a workload"
            ) from None
        return _show_kernel(kernel, registries, out)
    found = []
    for registry in registries:
        for device in registry.devices():
            for verdict in registry.verdicts(device, workload):
                found.append({"device": device, **verdict.to_json()})
                out.print(f"[dim]{device}[/]")
                _print_verdict(out, verdict)
    if not found:
        out.print(f"{workload.slug}: no verdict is stored; it is gated at first use")
    return 0, {"workload": workload.slug, "verdicts": found}


def _show_kernel(kernel: Kernel, registries: list[Registry], out: Console) -> Result:
    out.print(f"[bold]{kernel.name}[/] {kernel.id} ({kernel.origin})")
    if kernel.description:
        out.print(kernel.description, markup=False)
    out.print(f"applies   {kernel.applies.text}", markup=False)
    for param in kernel.params:
        out.print(f"{param.name:9s} {list(param.values)}, by default {param.default.text}")
    for file, source in kernel.sources.items():
        out.print(f"\n[bold]{file}[/]")
        out.print(Syntax(source, "cpp", word_wrap=True, background_color="default"))
    checks = [check for registry in registries for check in registry.host_checks(kernel.id)]
    return 0, {
        "kernel": kernel.id,
        "meta": dict(kernel.meta),
        "sources": dict(kernel.sources),
        "host_checks": checks,
    }


def _status(options: argparse.Namespace, out: Console) -> Result:
    from . import backends

    device, calls = detect(), callers()
    status: dict[str, Any] = {
        "version": __version__,
        "python": sys.version.split()[0],
        "mlx": version_of("mlx"),
        "mlx_lm": version_of("mlx-lm"),
        "device": {
            "slug": device.slug,
            "name": device.name,
            "architecture": device.architecture,
            "cores": device.cores,
        },
        "backends": {name: backends.get(name).unavailable() or "available" for name in BACKENDS},
        "architectures": {
            "patched": sorted(calls.patched),
            "direct": {
                name: {"lines": list(lines), "served": False, "patched": name in calls.patched}
                for name, lines in calls.direct.items()
            },
        },
        "registries": [],
    }
    for registry in _registries():
        files = [p for p in (registry.root / VERSION).rglob("*") if p.is_file()]
        workloads = registry.workloads(device.slug)
        status["registries"].append(
            {
                "root": str(registry.root),
                "writable": registry.writable,
                "kernels": len(registry.kernels()),
                "devices": registry.devices(),
                "workloads_here": len(workloads),
                "bytes": sum(p.stat().st_size for p in files),
            }
        )
    for key in ("version", "python", "mlx", "mlx_lm"):
        out.print(f"{key:10s} {status[key]}")
    out.print(f"{'device':10s} {device.slug} ({device.name}, {device.architecture})")
    for name, reason in status["backends"].items():
        out.print(f"{name:10s} {reason}", markup=False)
    for line in _architectures(calls):
        out.print(line, markup=False)
    for row in status["registries"]:
        out.print(
            f"{'user' if row['writable'] else 'tuned':10s} {row['root']}: {row['kernels']} kernels,"
            f" {row['workloads_here']} workloads judged on this device, {row['bytes']} bytes"
        )
    return 0, status


def _architectures(calls: Callers) -> list[str]:
    """Which of mlx-lm's architectures the patch reaches, for people."""
    if not calls.patched:
        return [f"{'models':10s} mlx-lm is not installed"]
    lines = [f"{'models':10s} {len(calls.patched)} of mlx-lm's architectures call its attention"]
    if calls.direct:
        names = (f"{n} (in part)" if n in calls.patched else n for n in calls.direct)
        lines.append(
            f"{'not served':10s} {', '.join(names)}: these call MLX's attention directly,"
            " past the patch; no kernel serves those calls"
        )
    return lines


def _clear(options: argparse.Namespace, out: Console) -> Result:
    registry = Registry(user_root())
    removed = registry.clear(options.device)
    out.print(f"removed {removed} files under {registry.root}")
    return 0, {"removed": removed, "registry": str(registry.root)}


if __name__ == "__main__":
    sys.exit(main())
