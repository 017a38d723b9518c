"""Runs a built program on arguments: lays them out in a shared file, starts the program, reads its
report. The program is a process of its own, so that nothing a kernel does reaches the caller."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MachineError
from .build import Program
from .counters import Counters
from .findings import Finding
from .report import Report, render

__all__ = ["Argument", "Launch", "Options", "Raw", "run"]

_MAGIC = 0x31304C4154454D48
_MAX_BUFFERS = 64
_HEAD = 16 * 8
_RECORD = 7 * 8
_PAGE = 16384
_WRITABLE, _UNWRITTEN, _REPORT, _FLOATS = 1, 2, 4, 8
MAX_THREADS = 1024


@dataclass(frozen=True)
class Options:
    """How to launch: see `metal_kernel`."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    seed: int = 0
    sanitize: bool = True
    count: bool = False
    time_limit: float = 20.0
    memory_limit: int = 2 << 30


@dataclass
class Argument:
    """One buffer of a launch.

    data: the bytes as a (possibly strided) array; None for threadgroup memory or an absent buffer.
    pointer: where the kernel's pointer points, in bytes from the lowest address of `data`.
    """

    data: NDArray[Any] | None
    name: str = ""
    writable: bool = False
    unwritten: bool = False
    report: bool = False
    floats: bool = False
    threadgroup_bytes: int = 0
    pointer: int = 0


@dataclass(frozen=True)
class Raw:
    """What came back: the bytes of the writable arguments by slot, findings, counters."""

    outputs: dict[int, NDArray[np.uint8]]
    findings: tuple[Finding, ...]
    counters: Counters | None
    run_seconds: float


@dataclass(frozen=True)
class Launch:
    """The result of one launch.

    outputs: the output arrays, [] after a fatal finding.
    findings: what is wrong with the kernel, () when nothing was found.
    counters: with count=True, what the launch did; else None.
    compile_seconds, run_seconds: wall time of the build (or of finding it in the cache) and of the
        run, process start included.
    """

    outputs: list[Any]
    findings: tuple[Finding, ...]
    counters: Counters | None
    compile_seconds: float
    run_seconds: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True without findings."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the arrays."""
        return {
            "ok": self.ok,
            "findings": [f.to_dict() for f in self.findings],
            "counters": None if self.counters is None else self.counters.to_dict(),
            "compile_seconds": self.compile_seconds,
            "run_seconds": self.run_seconds,
        }


@dataclass(frozen=True)
class _Span:
    """A strided array as one run of bytes from its lowest address."""

    low: int
    size: int
    element: int
    contiguous: bool


def _span(a: NDArray[Any]) -> _Span:
    low = high = 0
    for n, s in zip(a.shape, a.strides, strict=True):
        reach = (n - 1) * s
        low, high = low + min(reach, 0), high + max(reach, 0)
    size = high - low + a.itemsize if a.size else 0
    return _Span(low, size, a.itemsize, bool(a.flags.c_contiguous))


def _fill(target: NDArray[np.uint8], a: NDArray[Any], span: _Span, value: NDArray[Any]) -> None:
    """Writes `value` at the addresses of `a` into the span's bytes."""
    view = np.lib.stride_tricks.as_strided(
        target[-span.low :].view(value.dtype) if span.low else target.view(value.dtype),
        shape=a.shape,
        strides=a.strides,
    )
    view[...] = value


def _open(size: int) -> IO[bytes]:
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


def run(program: Program, arguments: dict[int, Argument], options: Options) -> Raw:
    """Launches `program`. Findings never raise."""
    assert program.executable is not None
    refused = check_threadgroup(options.threadgroup)
    if refused is not None:
        return Raw({}, (refused,), None, 0.0)
    start = time.perf_counter()
    if any(n <= 0 for n in options.grid):
        return Raw({i: _bytes(a) for i, a in arguments.items() if a.writable}, (), None, 0.0)
    with contextlib.ExitStack() as stack:
        count = max(arguments, default=-1) + 1
        records = [(3, 0, 0, 0, 0, 0, 0)] * count
        place = -(-(_HEAD + _MAX_BUFFERS * _RECORD) // _PAGE) * _PAGE
        spans: dict[int, _Span] = {}
        layout: list[tuple[int, int, int]] = []  # slot, data offset, gap table's offset
        for slot, a in arguments.items():
            if a.threadgroup_bytes:
                records[slot] = (2, 0, a.threadgroup_bytes, 0, 0, 0, 1)
                continue
            if a.data is None:
                continue
            span = spans[slot] = _span(a.data)
            offset = place
            place += -(-max(span.size, 1) // _PAGE) * _PAGE
            gaps = 0
            if not span.contiguous and options.sanitize and span.size:
                gaps = place
                place += -(-span.size // _PAGE) * _PAGE
            flags = a.writable * _WRITABLE | a.unwritten * _UNWRITTEN | a.report * _REPORT
            flags |= a.floats * _FLOATS
            pointer = a.pointer - span.low
            records[slot] = (0, offset, span.size, pointer, gaps, flags, span.element)
            layout.append((slot, offset, gaps))
        total = sum(s.size for s in spans.values())
        if total > options.memory_limit:
            message = f"the arguments need {total} bytes; the limit is {options.memory_limit}"
            return Raw({}, (Finding("memory-limit", message),), None, 0.0)
        file = stack.enter_context(_open(place))
        shared = stack.enter_context(mmap.mmap(file.fileno(), place))
        whole = np.frombuffer(shared, np.uint8)
        try:
            head = struct.pack(
                "<16Q", _MAGIC, options.seed & (1 << 64) - 1, options.sanitize, options.count,
                *options.grid, *(min(g, t) for g, t in zip(options.grid, options.threadgroup,
                                                           strict=True)),
                int(options.time_limit * 1000), options.memory_limit, 0, count, 0, 0,
            )[: _HEAD]  # fmt: skip
            # LaunchRecord: 14 fields, then the buffers.
            shared[: 14 * 8] = head[: 14 * 8]
            for slot, record in enumerate(records):
                struct.pack_into("<7Q", shared, 14 * 8 + slot * _RECORD, *record)
            for slot, offset, gaps in layout:
                data, span = arguments[slot].data, spans[slot]
                assert data is not None
                if span.size == 0 or arguments[slot].unwritten:
                    continue
                target = whole[offset : offset + span.size]
                if span.contiguous:
                    target[:] = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
                    continue
                target[:] = 0xFF
                _fill(target, data, span, data)
                if gaps:
                    # One mark a byte: elements of bytes, at the same addresses.
                    one = np.frombuffer(b"\1" * data.itemsize, f"u{data.itemsize}")
                    _fill(whole[gaps : gaps + span.size], data, span, one)
            report, status, timed_out = _start(program.executable, file, options)
            findings = render(Report(report), program, arguments)
            if timed_out and not any(f.kind == "time-limit" for f in findings):
                message = f"still running after {options.time_limit:g} s"
                findings += (Finding("time-limit", message),)
            elif report.splitlines()[-1:] != ["end"] and not findings:
                message = f"the host program ended with status {status}"
                findings += (Finding("fault", message),)
            outputs = {}
            if not any(f.fatal for f in findings):
                for slot, offset, _ in layout:
                    if arguments[slot].writable:
                        outputs[slot] = whole[offset : offset + spans[slot].size].copy()
        finally:
            del whole
            target = np.empty(0, np.uint8)
        counters = Counters.parse(report) if options.count else None
        return Raw(outputs, findings, counters, time.perf_counter() - start)


def _bytes(a: Argument) -> NDArray[np.uint8]:
    assert a.data is not None
    return np.ascontiguousarray(a.data).reshape(-1).view(np.uint8).copy()


def check_threadgroup(threadgroup: tuple[int, int, int]) -> Finding | None:
    """The finding about a threadgroup that no GPU takes, if it is one."""
    x, y, z = threadgroup
    if min(threadgroup) < 1 or x * y * z > MAX_THREADS:
        message = f"a threadgroup of {x}x{y}x{z} = {x * y * z} threads; the limit is {MAX_THREADS}"
        return Finding("threadgroup-size", message)
    return None


def _start(executable: Path, file: IO[bytes], options: Options) -> tuple[str, int, bool]:
    process = subprocess.Popen(
        [str(executable)],
        stdin=file.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
    )
    try:
        said, _ = process.communicate(timeout=options.time_limit + 5.0)
        timed_out = False
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        timed_out = True
    return said.decode("utf-8", "replace"), process.returncode, timed_out


def total_bytes(arguments: Sequence[Argument]) -> int:
    """Bytes of all arrays among the arguments."""
    return sum(a.data.nbytes for a in arguments if a.data is not None)
