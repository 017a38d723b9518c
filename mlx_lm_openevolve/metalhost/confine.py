"""Starts a compiler on a source that nobody knows: with an end to its memory, time and files, and,
on Linux with Landlock, where it can read its own installation and write one folder.

What Landlock takes it takes from one thread and from all that this thread starts, so that a thread
of its own starts the compiler: nothing is left of it in this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CPU_SECONDS",
    "FILE_BYTES",
    "MEMORY_BYTES",
    "SECONDS",
    "Access",
    "landlock",
    "limit",
    "start",
]

# A kernel takes some 0.3 GiB of address space, a second or two of the processor, and 1 MiB.
MEMORY_BYTES = 4 << 30
SECONDS, CPU_SECONDS = 60, 20  # by the clock, where others may be busy too; of the processor
FILE_BYTES = 32 << 20

# linux/landlock.h. The same numbers on every architecture.
_CREATE, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3  # start a program, read a file, list a folder
_WRITE = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 14  # files, no links and no programs
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True)
class Access:
    """The paths that a compiler may read, and those that it may write too."""

    reads: tuple[Path, ...]
    writes: tuple[Path, ...]


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock() -> int:
    """The version of the system's Landlock, 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)))


def start(command: Sequence[str], access: Access, **options: Any) -> subprocess.Popen[bytes]:
    """Starts `command` confined, as subprocess.Popen does. Raises OSError."""
    started: list[subprocess.Popen[bytes]] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _restrict(access)
            started.append(subprocess.Popen(command, **options))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return started[0]


def limit(pid: int) -> bool:
    """Sets ends to a process's memory, time and files. False where the system cannot (macOS)."""
    if not hasattr(resource, "prlimit"):
        return False
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        # It may have ended, or be allowed less already. Time's hard end is a little later: the
        # soft one says which it was.
        hard = most + 5 if what == resource.RLIMIT_CPU else most
        with contextlib.suppress(ProcessLookupError, ValueError):
            resource.prlimit(pid, what, (most, hard))
    return True


def _restrict(access: Access) -> None:
    """Takes from this thread what is not in `access`. Raises OSError."""
    version = landlock()
    if not version:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: Any) -> int:
        result = int(libc.syscall(*arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), "Landlock")
        return result

    # What each version knows: links between folders, truncating, TCP, devices, sockets and signals.
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    rules = _Ruleset((1 << bits) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    try:
        writes = (*access.writes, Path(os.devnull))
        for paths, allowed in ((access.reads, _READ), (writes, _WRITE)):
            for path in paths:
                _allow(call, ruleset, path, allowed & rules.files)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
        call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(call: Callable[..., int], ruleset: int, path: Path, allowed: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH)  # type: ignore[attr-defined, unused-ignore]
    except FileNotFoundError:
        return
    try:
        rule = _PathBeneath(allowed if path.is_dir() else allowed & _OF_FILES, descriptor)
        call(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)
