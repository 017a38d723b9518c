"""The command line.

    mlx-lm-openevolve run | bench | evolve | report | check | import | list
                      | show | status | clear

Exit codes: 0 done; 1 rejected or not faster; 2 not done (a wrong argument, or something that this
machine lacks: the line says which); 70 a fault of this program; 130 interrupted by Ctrl-C. With
--json one JSON object is the last line of standard output, {"error": ...} where nothing was done,
and everything for people goes to standard error. Tracebacks are shown with --verbose alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import __version__
from ..bench import command as bench
from ..device import BACKENDS, detect
from ..errors import OpenEvolveError, UsageError, interrupted
from ..evolve import commands as evolve  # the core does without it: here the two meet
from ..kernels.kernel import Kernel
from ..kernels.verdict import describe
from ..ops.attention.workload import Workload
from . import inspect as inspection
from . import run

__all__ = ["main", "parser"]

NOT_DONE, FAULT, INTERRUPTED = 2, 70, 130

# What `check` asks of a kernel where no workload is named: the first ones that it applies to.
CHECKED = [
    Workload(1, 8, 2, q_len, 128, dim, dim, dtype, mask, sinks)
    for mask, sinks in (("none", False), ("causal", False), ("bool", False), ("additive", True))
    for q_len in (1, 8)
    for dim in (64, 96, 128)
    for dtype in ("bfloat16", "float16", "float32")
    if (q_len, mask) != (1, "causal")
]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process with code 1, which means "rejected" here."""
        raise BrokenPipeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    out = _Console(stderr=options.json, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 240  # a table in a file or a pipe keeps its words whole
    try:
        code, result = options.command(options, out)
    except BrokenPipeError:  # the reader has seen enough
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.verbose:
            traceback.print_exc()
        code, text = _failure(error)
        print(f"mlx-lm-openevolve: {text}", file=sys.stderr)
        result = {"error": text}
    if options.json:
        try:
            print(json.dumps(result), flush=True)
        except BrokenPipeError:
            pass
        except OSError as error:
            code, text = _failure(error)
            print(f"mlx-lm-openevolve: standard output: {text}", file=sys.stderr)
    return int(code)


def _failure(error: BaseException) -> tuple[int, str]:
    """Exit code and line for what ended a command."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if interrupted(error):
        return INTERRUPTED, "interrupted"
    if isinstance(error, OpenEvolveError):
        return NOT_DONE, " ".join(lines)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return NOT_DONE, f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return NOT_DONE, f"out of memory: {lines[0]}"
    return FAULT, f"{type(error).__name__}: {lines[0]} (a fault of ours; --verbose shows where)"


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="mlx-lm-openevolve", description="Proven attention kernels for mlx-lm."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_common(parser)
    parser.set_defaults(json=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        _add_common(sub)
        sub.set_defaults(command=command)
        return sub

    check = add("check", _check, "Judge a kernel as the gate does; stores nothing.")
    check.add_argument("kernel", metavar="FOLDER|KERNEL", help="a folder, or a known id or name")
    check.add_argument("--workload", metavar="SLUG", action="append", help="may be repeated")
    check.add_argument("--backend", choices=BACKENDS, help="default: the GPU, else host")
    check.add_argument("--seconds", type=float, default=300, help="time limit for a workload")

    program = add("import", _import, "Turn an OpenEvolve program into a kernel folder.")
    program.add_argument("program", metavar="PROGRAM.py", type=Path)
    program.add_argument("--out", metavar="FOLDER", type=Path, required=True)

    run.add_arguments(
        add("run", run.run, "Run a command of mlx-lm, or a script, with the patch on.")
    )
    bench.add_arguments(
        add("bench", bench.run, "Measure a model, stock against patched, in fresh processes.")
    )

    evolve.add_evolve_arguments(
        add("evolve", evolve.evolve, "Look for better kernels on this machine; resumable.")
    )
    evolve.add_report_arguments(add("report", evolve.report, "A run of evolve as one HTML page."))

    listed = add("list", inspection.list_verdicts, "List the stored verdicts, for every device.")
    listed.add_argument("--device", metavar="SLUG", help="only the verdicts of this device")
    show = add("show", inspection.show, "A kernel with its source, or what is known of a workload.")
    show.add_argument("what", metavar="KERNEL|WORKLOAD", help="a kernel's id or name, or a slug")
    add("status", inspection.status, "What runs here: a block to paste into a bug report.")
    clear = add("clear", inspection.clear, "Remove the user's stored verdicts and kernels.")
    clear.add_argument("--device", metavar="SLUG", help="only the verdicts of this device")
    clear.add_argument("--cache", action="store_true", help="compiled host programs as well")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    # Before the command or after it: what is not given must not undo what was.
    for name, text in (("json", "one JSON object on standard output"), ("verbose", "tracebacks")):
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)


Result = tuple[int, dict[str, Any]]


def _check(options: argparse.Namespace, out: Console) -> Result:
    from .. import backends
    from ..gate import judge as gate

    kernel = inspection.named(options.kernel)
    backend = options.backend or detect().backend
    backends.require(kernel, backend)
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
        for line in describe(verdict):
            out.print(line, markup=False, style=None if verdict.correct else "red")
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
    from .. import backends, metalhost
    from ..gate import judge as gate
    from ..ops.attention import reference

    host = backends.get("host")
    absent = host.unavailable()
    if not absent and kernel.native:
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
        if launch.counters is not None and launch.outputs:
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


def _import(options: argparse.Namespace, out: Console) -> Result:
    from .. import importer

    kernel = importer.import_program(options.program, options.out)
    out.print(f"wrote {options.out} (kernel {kernel.id}); judge it: ", end="")
    out.print(f"mlx-lm-openevolve check {options.out}")
    return 0, {"kernel": kernel.id, "folder": str(options.out)}


if __name__ == "__main__":
    sys.exit(main())
