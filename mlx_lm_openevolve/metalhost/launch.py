"""Runs a built program on arguments: writes them to a shared file, starts the program, reads its
report. The program is a process of its own, so that nothing a kernel does reaches the caller."""

from __future__ import annotations

import operator
import os
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ..errors import MachineError, UsageError
from ..switches import UNSAFE, switched
from .arguments import HEADER, Argument, Layout
from .arrays import to_mlx
from .build import Program
from .counters import Counters
from .findings import BENIGN, Finding
from .report import argument_names, read_findings

__all__ = ["LaunchResult", "Options", "Size", "check_threadgroup", "dim3", "integers", "run"]

_MAGIC = 0x31304C4154454D48
MAX_THREADS = 1024
MAX_REPORT = 4 << 20  # bytes; 64 findings and the counters take a twentieth of it
CONFINE_IF_POSSIBLE, CONFINE = 1, 2  # runtime/base.h: Confine
Size = Sequence[int]


@dataclass(frozen=True)
class Options:
    """How to launch: see `MetalKernel.__call__`."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    seed: int
    sanitize: bool
    count: bool
    time_limit: float
    memory_limit: int
    trusted: bool = False


@dataclass(frozen=True)
class LaunchResult:
    """The result of one launch.

    outputs: the output arrays, [] after a fatal finding.
    findings: what is wrong with the kernel, and what is worth knowing though it does no harm
        (`Finding.benign`); () where nothing is.
    counters: with count=True, what the launch did; else None.
    compile_seconds, run_seconds: wall time of the build (or of its lookup in the cache) and of the
        run, process start included.
    """

    outputs: list[Any]
    findings: tuple[Finding, ...]
    counters: Counters | None
    compile_seconds: float
    run_seconds: float

    @property
    def ok(self) -> bool:
        """True without findings but benign ones."""
        return all(f.benign for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the arrays."""
        return {
            "ok": self.ok,
            "findings": [f.to_dict() for f in self.findings],
            "counters": None if self.counters is None else self.counters.to_dict(),
            "compile_seconds": self.compile_seconds,
            "run_seconds": self.run_seconds,
        }


def run(program: Program, arguments: Mapping[int, Argument], options: Options) -> LaunchResult:
    """Launches `program`, where it was built. Findings never raise, whatever the program reports:
    its outputs are bytes that the caller judges.

    Raises: MachineError, also where the system has no sandbox and nobody vouches for the kernel.
    """
    start = time.perf_counter()
    layout = Layout(arguments, mark_gaps=options.sanitize)
    refusal = check_threadgroup(options.threadgroup)
    if refusal is None and layout.array_bytes > options.memory_limit:
        needed = f"the arguments need {layout.array_bytes} bytes"
        refusal = Finding("memory-limit", f"{needed}; the limit is {options.memory_limit}")
    outputs: list[Any] = []
    findings, counters = program.findings, None
    if program.executable is None:
        start = time.perf_counter()
    elif refusal is not None:
        findings = (refusal,)
    elif min(options.grid) <= 0:
        outputs = [
            to_mlx(a.data, a.dtype) for _, a in sorted(arguments.items())
            if a.writable and a.data is not None
        ]  # fmt: skip
    else:
        with _shared_file(layout.file_bytes) as file:
            report, problem = _start(program.executable, file, layout, options)
            findings, counters = _read(report, program, arguments, options)
            if not any(f.fatal for f in findings):
                if problem is None:
                    outputs = layout.outputs(file)
                else:
                    findings += (problem,)
            if outputs and _may_be_discarded(findings):
                findings = _discarded(program, file, layout, options, findings)
    seconds = time.perf_counter() - start
    return LaunchResult(outputs, findings, counters, program.compile_seconds, seconds)


# The byte that fresh memory holds: as half, bfloat and float NaN, 0, large, large and negative.
FILLS = (0xFF, 0x00, 0x7B, 0xFB)


def _start(
    executable: Path, file: IO[bytes], layout: Layout, options: Options, fill: int = FILLS[0]
) -> tuple[str, Finding | None]:
    """Writes the arguments and runs the program on them: see `_execute`."""
    file.seek(0)
    file.write(_header(options, layout, fill))
    layout.write(file)
    file.flush()
    return _execute(executable, file, options)


def _may_be_discarded(findings: Sequence[Finding]) -> bool:
    """Whether values that no thread has written are read, and nothing else is wrong."""
    read = [f for f in findings if not f.benign]
    return bool(read) and all(f.kind == "uninitialised" and "space" in f.details for f in read)


def _discarded(
    program: Program,
    file: IO[bytes],
    layout: Layout,
    options: Options,
    findings: tuple[Finding, ...],
) -> tuple[Finding, ...]:
    """The findings, benign where the outputs are the same whatever fresh memory holds."""
    assert program.executable is not None
    first = layout.output_bytes(file)
    for fill in FILLS[1:]:
        report, problem = _start(program.executable, file, layout, options, fill)
        if problem is not None or "fatal=1" in report or layout.output_bytes(file) != first:
            return findings
    return tuple(
        f if f.benign else replace(f, kind=BENIGN, message=f"{f.message}: it is discarded")
        for f in findings
    )


def _read(
    report: str, program: Program, arguments: Mapping[int, Argument], options: Options
) -> tuple[tuple[Finding, ...], Counters | None]:
    if report.startswith("unconfined\n"):
        raise MachineError(
            f"this system has no sandbox for kernels of unknown origin; set {UNSAFE}=1 to run them "
            "without one"
        )
    try:
        findings = read_findings(report, program, arguments)
        if not options.count:
            return findings, None
        return findings, Counters.parse(report, argument_names(program, arguments))
    except (
        ValueError,
        LookupError,
        AttributeError,
        OverflowError,
        TypeError,
    ):  # not the runtime's writing
        return (Finding("fault", "the host program's report is not readable"),), None


def _confine(options: Options) -> int:
    return CONFINE_IF_POSSIBLE if options.trusted or switched(UNSAFE) else CONFINE


def _header(options: Options, layout: Layout, fill: int) -> bytes:
    """runtime/base.h: LaunchRecord."""
    group = (min(g, t) for g, t in zip(options.grid, options.threadgroup, strict=True))
    records = layout.records()
    head = struct.pack(
        "<15Q", _MAGIC, options.seed & (1 << 64) - 1, options.sanitize, options.count,
        *options.grid, *group, int(options.time_limit * 1000), options.memory_limit,
        fill, _confine(options), len(records),
    )  # fmt: skip
    assert len(head) == HEADER
    return head + b"".join(records)


def _shared_file(size: int) -> IO[bytes]:
    """A file of `size` bytes without a name, in memory where the system has such a folder and room
    in it. Raises MachineError: a page that finds no room when it is touched ends the process."""
    for folder in ("/dev/shm", None):
        if folder and not Path(folder).is_dir():
            continue
        file = tempfile.TemporaryFile(prefix="metalhost-", dir=folder)  # noqa: SIM115
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.truncate(file.fileno(), size)
        except OSError as error:
            file.close()
            problem = error.strerror
        else:
            return file
    raise MachineError(f"{size} bytes for a launch in {tempfile.gettempdir()}: {problem}")


def _execute(executable: Path, file: IO[bytes], options: Options) -> tuple[str, Finding | None]:
    """Runs the program: its report, and a finding where it did not end by itself."""
    try:
        process = subprocess.Popen(
            [str(executable)], stdin=file.fileno(), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={},
        )  # fmt: skip
    except OSError as error:
        raise MachineError(f"cannot start {executable}: {error.strerror}") from None
    assert process.stdout is not None
    problem: Finding | None = Finding("fault", "interrupted")
    try:
        with process.stdout as pipe:
            data, problem = _receive(pipe.fileno(), options.time_limit)
    finally:
        if problem is not None:
            process.kill()
        process.wait()
    report = data.decode("utf-8", "replace")
    if problem is None and process.returncode == -signal.SIGSYS:
        problem = Finding("sandbox", "the kernel asks the system for something")
    if problem is None and report.splitlines()[-1:] != ["end"]:
        problem = Finding("fault", f"the host program ended with status {process.returncode}")
    return report, problem


def _receive(pipe: int, time_limit: float) -> tuple[bytes, Finding | None]:
    """What is written to a pipe until it is closed, and what is wrong with it."""
    data = b""
    deadline = time.monotonic() + time_limit + 5.0
    readable = select.poll()
    readable.register(pipe, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not readable.poll(left * 1000):
            return data, Finding("time-limit", f"still running after {time_limit:g} s")
        part = os.read(pipe, 1 << 16)
        if not part:
            return data, None
        data += part
        if len(data) > MAX_REPORT:
            return b"", Finding("fault", f"a report of more than {MAX_REPORT} bytes")


def check_threadgroup(threadgroup: tuple[int, int, int]) -> Finding | None:
    """The finding about a threadgroup that no GPU takes, if it is one."""
    x, y, z = threadgroup
    if min(threadgroup) < 1 or x * y * z > MAX_THREADS:
        message = f"a threadgroup of {x}x{y}x{z} = {x * y * z} threads; the limit is {MAX_THREADS}"
        return Finding("threadgroup-size", message)
    return None


def integers(sizes: Size, what: str) -> tuple[int, ...]:
    """A sequence of integers, as MLX takes them: a float is none. UsageError otherwise."""
    try:
        return tuple(map(operator.index, sizes))
    except TypeError:
        raise UsageError(f"{what} is a sequence of integers, not {sizes!r}") from None


def dim3(size: Size, what: str) -> tuple[int, int, int]:
    """A size with its three numbers; UsageError otherwise."""
    values = integers(size, what)
    if len(values) != 3:
        raise UsageError(f"{what} has three numbers, not {len(values)}")
    return values[0], values[1], values[2]
