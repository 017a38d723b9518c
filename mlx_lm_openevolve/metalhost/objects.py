"""Objects that all kernels share (the precompiled shim, the runtime), and the steps after the
compilation of a kernel."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import BackendError, MachineError
from .cache import store
from .findings import Finding
from .flops import count_blocks
from .toolchain import METAL_HEADERS, RUNTIME, SHIM, Toolchain, package_digest

__all__ = [
    "assemble_counted",
    "blame",
    "header_folder",
    "link",
    "precompiled_shim",
    "run_tool",
    "runtime_object",
]


_KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FULL = re.compile(r"No space left on device|File too large|Disk quota exceeded|Read-only file sys")


def tool_environment() -> dict[str, str]:
    """The caller's, with zig's own caches beside ours."""
    zig = str(store().root / "zig")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}


def run_tool(command: Sequence[str], timeout: float = 120.0) -> tuple[int, str, str]:
    """Runs a compiler: (exit status, standard output, standard error). Raises MachineError where it
    failed for reasons that say nothing about the source."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=tool_environment(),
        )
    except subprocess.TimeoutExpired:
        return 1, "", "error: the compiler took too long\n"
    said = [text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)]
    blame(done.returncode, said[1])
    return done.returncode, said[0], said[1]


def blame(status: int, said: str) -> None:
    """Raise MachineError where a compiler's failure is no fault of the source: it was killed, or
    the disk is full. What a source is to blame for is kept in the cache; this must not be."""
    if -status in _KILLED:
        name = signal.Signals(-status).name
        raise MachineError(f"the compiler was ended by {name}: no memory left, or interrupted")
    full = _FULL.search(said) if status else None
    if full:
        raise MachineError(f"the compiler cannot write: {full[0]}")


@functools.lru_cache(maxsize=1)
def header_folder() -> Path:
    """A folder with an empty file for each of Metal's own headers."""

    def make(work: Path) -> None:
        for name in METAL_HEADERS:
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("#pragma once\n", encoding="ascii")

    key = hashlib.sha256(" ".join(METAL_HEADERS).encode())
    return store().get(key.hexdigest(), make)


@functools.lru_cache(maxsize=32)
def precompiled_shim(chain: Toolchain, flags: tuple[str, ...]) -> Path:
    """The shim, precompiled for these flags."""
    # A precompiled header names its sources by path: two installations must not share one.
    parts = ("pch", str(SHIM.resolve()), package_digest(), chain.identity, *flags)
    key = hashlib.sha256("\0".join(parts).encode())

    def make(work: Path) -> None:
        status, _, said = run_tool(
            [*chain.clang, *flags, "-x", "c++-header", "-Xclang", "-fno-pch-timestamp",
             str(SHIM / "metal.h"), "-o", str(work / "metal.pch")]
        )  # fmt: skip
        if status != 0:
            raise BackendError(f"the shim does not compile: {said.strip()[:2000]}")

    return store().get(key.hexdigest(), make) / "metal.pch"


@functools.lru_cache(maxsize=4)
def runtime_object(chain: Toolchain) -> Path:
    """The runtime, compiled."""
    flags = ["-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector",
             "-fno-sanitize=all", "-fno-threadsafe-statics", "-g0"]  # fmt: skip
    parts = ("runtime", package_digest(), chain.identity, *chain.runtime, *flags)
    key = hashlib.sha256("\0".join(parts).encode())

    def make(work: Path) -> None:
        status, _, said = run_tool(
            [*chain.runtime, *flags, "-c", str(RUNTIME / "metalhost.cpp"),
             "-o", str(work / "runtime.o")]
        )  # fmt: skip
        if status != 0:
            raise BackendError(f"the runtime does not compile: {said.strip()[:2000]}")

    return store().get(key.hexdigest(), make) / "runtime.o"


def assemble_counted(chain: Toolchain, work: Path) -> None:
    """From the instrumented IR to an object whose basic blocks report what they hold."""
    ir = work / "kernel.ll"
    ir.write_text(count_blocks(ir.read_text(encoding="utf-8")), encoding="utf-8")
    status, _, said = run_tool(
        [*chain.clang, "-x", "ir", "-O1", *chain.target_flags, "-fno-sanitize=all", "-w",
         "-Xclang", "-disable-llvm-passes", "-c", str(ir), "-o", str(work / "kernel.o")]
    )  # fmt: skip
    if status != 0:
        raise BackendError(f"the counted kernel does not assemble: {said.strip()[:400]}")
    ir.unlink()


def link(chain: Toolchain, work: Path) -> list[Finding]:
    """Links work/kernel; a function that the source only declares is a finding."""
    objects = [str(work / "kernel.o"), str(runtime_object(chain))]
    output = work / "kernel"
    if "build-exe" in chain.link:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            status, out, said = run_tool(
                [*chain.link, *objects, f"-femit-bin={output}", "--cache-dir", scratch,
                 "-fno-strip"]
            )  # fmt: skip
    else:
        status, out, said = run_tool([*chain.link, *objects, "-o", str(output), "-lm"])
    missing = re.search(r"undefined (?:symbol:|reference to) ([^\n]+)", out + said)
    if missing:
        name = missing.group(1).strip(" `'")
        return [Finding("compile", f"'{name}' is declared but nowhere defined")]
    if status != 0 or not output.is_file():
        raise BackendError(f"linking failed: {said.strip()[:400]}")
    return []
