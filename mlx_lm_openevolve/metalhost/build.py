"""Builds a program from Metal source: preprocess, translate, compile, check strictly, link."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..cache import intact, store
from ..errors import MachineError
from ..switches import KEEP, switched
from .confine import Access
from .declarations import KernelFunction, Parameter, TranslationError
from .diagnostics import diagnostics
from .entry import entry, resolve
from .findings import Finding, Sources, position, unique
from .flags import NO_WARNINGS, compile_flags
from .lint import MAX_EXPANDED, lint_raw, lint_translated, plain_comments
from .loops import count_iterations
from .objects import assemble_counted, header_folder, link, precompiled_shim, runtime_object
from .strict import STRICT_FLAGS, strict_findings, strict_warnings
from .toolchain import (
    SHIM,
    Completed,
    Crashed,
    Exhausted,
    Toolchain,
    one_line,
    package_digest,
    run_tool,
    toolchain,
)
from .translate import translate

__all__ = ["BuildRequest", "Program", "access_to", "build", "preprocess"]


@dataclass(frozen=True)
class BuildRequest:
    """What to build. `files` are the texts by the names that findings show; `text` holds #line
    markers that name them. `function` is `name` or `name<args>`, or a host name."""

    text: str
    function: str
    files: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, bool | int | float], ...] = ()
    include_root: str | None = None
    math_mode: str = "safe"
    instrument: bool = True
    count: bool = False  # count basic blocks and floating-point operations too
    language: str = "3.2"  # of Metal
    utilities: bool = False  # MLX's utilities (bfloat math, elem_to_loc, Limits), our own

    def key(self, tools: Toolchain) -> str:
        """The name of its folder in the cache."""
        parts = (
            package_digest(), tools.identity, *tools.clang, *tools.target_flags, self.text,
            self.function, repr(self.constants), _root_digest(self.include_root), self.math_mode,
            repr((self.instrument, self.count, self.utilities, self.language)),
            repr([name for name, _ in self.files]),
        )  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Program:
    """A built kernel, or the findings that say why there is none."""

    executable: Path | None
    function: KernelFunction | None
    findings: tuple[Finding, ...]
    sources: Sources
    compile_seconds: float
    folder: Path


@functools.lru_cache(maxsize=16)
def _root_digest(root: str | None) -> str:
    if root is None:
        return ""
    h = hashlib.sha256()
    for path in sorted(p for p in Path(root).rglob("*.h") if p.is_file()):
        h.update(str(path.relative_to(root)).encode())
        h.update(path.read_bytes())
    return h.hexdigest()


def build(request: BuildRequest) -> Program:
    """Builds `request`, or takes it from the cache. Defects of the source are findings."""
    start = time.perf_counter()
    tools = toolchain()
    program = _built(request, tools)
    if program.folder != Path() and not intact(program.folder):
        _built.cache_clear()  # the cache on disk has lost it
        program = _built(request, tools)
    return replace(program, compile_seconds=time.perf_counter() - start)


@functools.lru_cache(maxsize=512)
def _built(request: BuildRequest, tools: Toolchain) -> Program:
    sources = Sources(dict(request.files))
    refusals = lint_raw(request.files, request.include_root)
    if refusals:
        return Program(None, None, tuple(refusals), sources, 0.0, Path())
    for _ in range(2):
        folder = store().get(request.key(tools), lambda work: _build(request, tools, sources, work))
        try:
            record = json.loads((folder / "program.json").read_text(encoding="utf-8"))
            findings = tuple(Finding(**f) for f in record["findings"])
            function = _function(record["function"])
        except (OSError, ValueError, KeyError, TypeError):
            findings, function = (), None
        executable = folder / "kernel"
        if findings or (function is not None and executable.is_file()):
            program = None if findings else executable
            return Program(program, function, findings, sources, 0.0, folder)
        store().discard(folder)  # neither a program nor a reason why there is none
    raise MachineError(f"{folder} cannot be read back")


def _function(data: dict[str, Any] | None) -> KernelFunction | None:
    if data is None:
        return None
    return KernelFunction(data["name"], tuple(Parameter(**p) for p in data["parameters"]))


def _build(request: BuildRequest, tools: Toolchain, sources: Sources, work: Path) -> None:
    """Fills a folder of the cache: program.json, and without findings the program `kernel`."""
    function: KernelFunction | None = None
    try:
        findings, function = _compiled(request, tools, sources, work)
        if not findings and request.count:
            assemble_counted(tools, work)
    except Exhausted as error:
        findings = [Finding("compile", str(error))]
    if not findings:
        findings = link(tools, work, int(request.instrument) + int(request.count))
    if not switched(KEEP):
        for path in work.glob("kernel.*"):
            # Mach-O programs leave their line table in the object.
            if path.suffix != ".o" or "apple" not in tools.target:
                path.unlink()
    record = {
        "findings": [
            {k: getattr(f, k) for k in ("kind", "message", "line", "file", "text")}
            for f in unique(findings)
        ],
        "function": None if function is None else asdict(function),
    }
    (work / "program.json").write_text(json.dumps(record), encoding="utf-8")


_TRIVIAL = "[[kernel]] void trivial(device float* y [[buffer(0)]]) { y[0] = 1; }"


def _compiled(
    request: BuildRequest, tools: Toolchain, sources: Sources, work: Path
) -> tuple[list[Finding], KernelFunction | None]:
    """As _compile. A compiler that crashes or hangs on a source twice, and compiles a trivial one,
    has it from the source."""
    for last in (False, True):
        try:
            return _compile(request, tools, sources, work)
        except Crashed as error:
            if last:
                files = (("trivial", _TRIVIAL),)
                trivial = replace(
                    request, text=_TRIVIAL, function="trivial", files=files, constants=()
                )
                with tempfile.TemporaryDirectory() as other:
                    _compile(trivial, tools, Sources(dict(files)), Path(other))
                return [Finding("compile", f"{error}: with this source, and not with others")], None
    raise AssertionError


def _compile(
    request: BuildRequest, tools: Toolchain, sources: Sources, work: Path
) -> tuple[list[Finding], KernelFunction | None]:
    """From source to work/kernel.o (or kernel.ll, to count): findings, and the kernel to start."""
    text, findings = preprocess(request, tools, sources, work)
    if text is None:
        return findings, None
    try:
        text, declared = translate(text, dict(request.constants))
    except TranslationError as error:
        return [sources.finding("compile", str(error), *position(text, error.position))], None
    if any(f.kind == "sandbox" for f in findings):
        return findings, None
    call, function = resolve(declared, request.function)
    if function is None:
        message = (
            f"no kernel named {request.function!r} in the source: does the header end in a comment "
            "or a directive, without a line break?"
        )
        return [*findings, Finding("compile", message)], None
    unit = work / "kernel.cpp"
    # A helper that waits is known by its call: calls in two branches are not merged into one.
    head = "#pragma clang attribute push(__attribute__((nomerge)), apply_to = function)\n"
    tail = f"\n#pragma clang attribute pop\n{entry(call, function)}"
    # What a kernel reads is counted with its loops as they are.
    text = text if request.count else count_iterations(text)
    unit.write_text(f"{head}{text}{tail}", encoding="utf-8")
    flags = compile_flags(tools, request.instrument, request.count, request.math_mode)
    output = ["-S", "-emit-llvm", "-o", f"{work}/kernel.ll"]
    if not request.count:
        output = ["-c", "-o", f"{work}/kernel.o"]
    header = "mlx_utilities.h" if request.utilities else "metal.h"

    def strict(tree: Completed) -> list[Finding]:
        if tree.status:
            return []
        return strict_findings(
            tree.stdout, sources, declared.kernels, declared.constants,
            float(request.language) >= 3.2,
        ) + strict_warnings(diagnostics(tree.stderr, sources, strict=True))  # fmt: skip

    compiled, tree, refusals = _run_clang(tools, flags, header, unit, output, strict)
    findings += diagnostics(compiled.stderr, sources)
    if not any(f.kind == "compile" for f in findings):
        if compiled.status or tree.status:
            message = one_line(compiled.stderr or tree.stderr)
            raise MachineError(f"the compiler failed without a line of the source: {message}")
        findings += refusals
    return findings, function


# What clang says of a precompiled header that does not fit, with no place in a source.
_UNUSABLE = re.compile(r"^(?:fatal )?error: .*(?:\bPCH\b|\bAST file\b|precompiled|\.pch\b)", re.M)


def _run_clang(
    tools: Toolchain,
    flags: list[str],
    header: str,
    unit: Path,
    output: list[str],
    check: Callable[[Completed], list[Finding]],
) -> tuple[Completed, Completed, list[Finding]]:
    """Compiles, and prints the syntax tree and checks that, both at once, beside the runtime where
    that is missing. A precompiled shim that clang refuses is built again, once."""
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            runtime = pool.submit(runtime_object, tools)
            shim = precompiled_shim(tools, flags, header)
            access = access_to(tools, unit.parent, shim.parent, SHIM, SHIM.parent / "runtime")
            command = [*tools.clang, *flags, "-include-pch", str(shim), "-I", str(SHIM), str(unit)]
            compiling = pool.submit(run_tool, [*command, *NO_WARNINGS, *output], access)
            tree = run_tool([*command, *STRICT_FLAGS], access)
            found = check(tree)
            compiled = compiling.result()
            runtime.result()
        if not _UNUSABLE.search(compiled.stderr + tree.stderr):
            return compiled, tree, found
        store().discard(shim.parent)
    raise MachineError(f"the precompiled shim is unusable: {one_line(compiled.stderr)}")


def access_to(tools: Toolchain, work: Path, *reads: Path) -> Access:
    """A compiler that reads its installation and `reads`, and writes `work`."""
    return Access((*tools.reads, *reads), (work,))


def preprocess(
    request: BuildRequest, tools: Toolchain, sources: Sources, work: Path
) -> tuple[str | None, list[Finding]]:
    """The preprocessed text and what the rules on it say, or the errors that leave none. It works
    in the folder `work`."""
    raw, expanded = work / "kernel.metal", work / "kernel.ii"
    source = plain_comments(request.text)
    if not source.isascii():  # its files' comments, put together, are none
        return None, [Finding("non-ascii", "a comment or a literal is not closed in its own file")]
    raw.write_text(source, encoding="ascii")
    folders = [header_folder()]
    if request.include_root is not None:
        folders.append(Path(request.include_root))
    include = [word for folder in folders for word in ("-I", str(folder))]
    utilities = ["-include", str(SHIM / "mlx_macros.h")] if request.utilities else []
    done = run_tool(
        [*tools.clang, "-E", "-x", "c++", "-std=c++14", "-nostdinc", "-undef", "-w",
         "-fno-color-diagnostics", "-fno-caret-diagnostics", "-fno-crash-diagnostics", *include,
         "-include", str(SHIM / "macros.h"), *utilities, str(raw), "-o", str(expanded)],
        access_to(tools, work, SHIM, *folders),
    )  # fmt: skip
    if done.status != 0:
        findings = diagnostics(done.stderr, sources)
        if not findings:
            raise MachineError(f"the preprocessor failed: {one_line(done.stderr)}")
        return None, findings
    text = expanded.read_text(encoding="utf-8", errors="replace")
    if len(text) > MAX_EXPANDED:
        raise Exhausted(f"it expands to more than {MAX_EXPANDED >> 20} MiB")
    return text, lint_translated(text, sources)
