"""Objects that all kernels share (the precompiled shim, the runtime), and the steps after the
compilation of a kernel."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..cache import store
from ..errors import BackendError, MachineError
from .confine import Access
from .findings import Finding
from .flops import count_blocks
from .object_rules import secure
from .toolchain import (
    METAL_HEADERS,
    RUNTIME,
    SHIM,
    Completed,
    Toolchain,
    one_line,
    package_digest,
    run_tool,
)

__all__ = [
    "assemble_counted",
    "header_folder",
    "link",
    "precompiled_shim",
    "runtime_object",
]


_NOTHING = 'extern "C" void mh_signature() {}\nextern "C" void mh_entry() {}\n'


def _stored(parts: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """The folder of the cache that `make` fills, by the parts of its key."""
    return store().get(hashlib.sha256("\0".join(parts).encode()).hexdigest(), make)


def _compile(what: str, command: list[str], access: Access | None = None) -> None:
    done = run_tool(command, access)
    if done.status != 0:
        raise BackendError(f"{what} does not compile: {done.stderr.strip()[:2000]}")


def header_folder() -> Path:
    """A folder with an empty file for each of Metal's own headers."""

    def make(work: Path) -> None:
        for name in METAL_HEADERS:
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("#pragma once\n", encoding="ascii")

    return _stored(("headers", *METAL_HEADERS), make)


def precompiled_shim(tools: Toolchain, flags: Sequence[str], header: str) -> Path:
    """A header of the shim, precompiled for these flags."""

    def make(work: Path) -> None:
        source = ["-w", "-x", "c++-header", "-Xclang", "-fno-pch-timestamp", str(SHIM / header)]
        _compile("the shim", [*tools.clang, *flags, *source, "-o", str(work / "shim.pch")])

    # A precompiled header names its sources by path: two installations must not share one.
    parts = ("pch", str(SHIM.resolve()), header, package_digest(), tools.identity, *flags)
    return _stored(parts, make) / "shim.pch"


def runtime_object(tools: Toolchain) -> Path:
    """The runtime, compiled, and linked once with a kernel of nothing: what the linker makes for
    itself at its first program (zig: the stubs of the libc) is there when a kernel needs it."""
    flags = ["-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector",
             "-fno-sanitize=all", "-fno-threadsafe-statics", "-g0",
             "-fno-omit-frame-pointer"]  # fmt: skip

    def make(work: Path) -> None:
        files = ["-c", str(RUNTIME / "metalhost.cpp"), "-o", str(work / "runtime.o")]
        _compile("the runtime", [*tools.runtime, *flags, *files])
        with tempfile.TemporaryDirectory(dir=work) as other:
            nothing = Path(other) / "nothing.cpp"
            nothing.write_text(_NOTHING, encoding="ascii")
            files = ["-c", str(nothing), "-o", f"{other}/nothing.o"]
            _compile("a kernel of nothing", [*tools.runtime, *flags, *files])
            _run_linker(tools, [f"{other}/nothing.o", str(work / "runtime.o")], Path(other))

    parts = ("runtime", package_digest(), tools.identity, *tools.runtime, *flags)
    return _stored(parts, make) / "runtime.o"


def assemble_counted(tools: Toolchain, work: Path) -> None:
    """From the instrumented IR to an object whose basic blocks report what they hold."""
    ir = work / "kernel.ll"
    ir.write_text(count_blocks(ir.read_text(encoding="utf-8")), encoding="utf-8")
    flags = ["-x", "ir", "-O1", *tools.target_flags, "-fno-sanitize=all", "-w"]
    output = ["-Xclang", "-disable-llvm-passes", "-c", str(ir), "-o", str(work / "kernel.o")]
    command = [*tools.clang, *flags, *output]
    _compile("the counted kernel", command, Access(tools.reads, (work,)))
    ir.unlink()


def link(tools: Toolchain, work: Path, initialisers: int) -> list[Finding]:
    """Links work/kernel. What a compiled kernel may not hold (object_rules.py), and a function that
    the source only declares, is a finding. initialisers: that the sanitizers add."""
    objects = [str(work / "kernel.o"), str(runtime_object(tools))]
    try:
        refusal = secure(work / "kernel.o", initialisers, runtime_object(tools))
    except (OSError, ValueError) as error:
        raise MachineError(f"the compiled kernel cannot be read: {error}") from None
    if refusal:
        return [Finding("sandbox", f"the compiled kernel holds {refusal}")]
    done = _run_linker(tools, objects, work)
    missing = re.search(r"undefined (?:symbol:|reference to) ([^\n]+)", done.stdout + done.stderr)
    if missing:
        name = missing.group(1).strip(" `'")
        return [Finding("compile", f"'{name}' is declared but nowhere defined")]
    if done.status != 0:
        store().discard(store().root / "zig")  # zig's own cache may be what is damaged
        done = _run_linker(tools, objects, work)
    if done.status != 0 or not (work / "kernel").is_file():
        raise MachineError(f"linking failed: {one_line(done.stdout + done.stderr)}")
    return []


def _run_linker(tools: Toolchain, objects: list[str], work: Path) -> Completed:
    output = str(work / "kernel")
    if "build-exe" not in tools.link:
        return run_tool([*tools.link, *objects, "-o", output, "-lm"])
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        files = [f"-femit-bin={output}", "--cache-dir", scratch, "-fno-strip"]
        return run_tool([*tools.link, *objects, *files])
