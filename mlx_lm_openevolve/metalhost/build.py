"""Builds a program from Metal source: preprocess, translate, compile, check strictly, link."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .cache import store
from .diagnostics import diagnostics
from .entry import entry, resolve
from .findings import Finding, Sources, position, unique
from .flags import compile_flags
from .lint import lint_raw, lint_translated
from .objects import assemble_counted, blame, header_folder, link, precompiled_shim, run_tool
from .strict import STRICT_FLAGS, strict_findings, strict_warnings
from .toolchain import SHIM, Toolchain, package_digest, toolchain
from .translate import KernelFunction, Parameter, Translation, TranslationError, translate

__all__ = ["Program", "Request", "build"]


@dataclass(frozen=True)
class Request:
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
    utilities: bool = False  # MLX's utilities (bfloat math, elem_to_loc, Limits), our own

    def key(self, chain: Toolchain) -> str:
        """The name of its folder in the cache."""
        parts = (
            package_digest(), chain.identity, *chain.clang, *chain.target_flags, self.text,
            self.function, repr(self.constants), _root_digest(self.include_root), self.math_mode,
            repr((self.instrument, self.count, self.utilities)),
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


def build(request: Request) -> Program:
    """Builds `request`, or takes it from the cache. Defects of the source are findings."""
    start = time.perf_counter()
    chain = toolchain()
    program = _built(request, chain)
    if program.executable is not None and not program.executable.is_file():
        _built.cache_clear()  # the cache on disk has dropped it
        program = _built(request, chain)
    return replace(program, compile_seconds=time.perf_counter() - start)


@functools.lru_cache(maxsize=512)
def _built(request: Request, chain: Toolchain) -> Program:
    sources = Sources(dict(request.files))
    refused = lint_raw(request.text, request.files, request.include_root)
    if refused:
        return Program(None, None, tuple(refused), sources, 0.0, Path())
    key = request.key(chain)
    folder = store().get(key, lambda work: _build(request, chain, sources, work))
    record = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    findings = tuple(Finding(**f) for f in record["findings"])
    executable = folder / "kernel"
    return Program(
        executable if executable.is_file() else None,
        _function(record["function"]),
        findings,
        sources,
        0.0,
        folder,
    )


def _function(data: dict[str, Any] | None) -> KernelFunction | None:
    if data is None:
        return None
    parameters = tuple(Parameter(**p) for p in data["parameters"])
    return KernelFunction(data["name"], parameters, data["template"])


def _build(request: Request, chain: Toolchain, sources: Sources, work: Path) -> None:
    """Fills a folder of the cache: program.json, and the program `kernel` without findings."""
    found, function = _compile(request, chain, sources, work)
    if not found:
        if request.count:
            assemble_counted(chain, work)
        found = link(chain, work)
    if not os.environ.get("MLX_LM_OPENEVOLVE_KEEP"):
        for path in work.glob("kernel.*"):
            # Mach-O programs leave their line table in the object.
            if path.suffix != ".o" or "apple" not in chain.target:
                path.unlink()
    record = {
        "findings": [
            {k: getattr(f, k) for k in ("kind", "message", "line", "file", "text")}
            for f in unique(found)
        ],
        "function": None if function is None else asdict(function),
    }
    (work / "program.json").write_text(json.dumps(record), encoding="utf-8")


def _compile(
    request: Request, chain: Toolchain, sources: Sources, work: Path
) -> tuple[list[Finding], KernelFunction | None]:
    """From source to work/kernel.o (or kernel.ll, to count): findings and the kernel found."""
    translation, found = _translate(request, chain, sources, work)
    if translation is None or any(f.kind == "sandbox" for f in found):
        return found, None
    call, function = resolve(translation, request.function)
    if function is None:
        message = f"no kernel named {request.function!r} in the source"
        return [*found, Finding("compile", message)], None
    unit = work / "kernel.cpp"
    head = '#include "mlx_utilities.h"\n' if request.utilities else ""
    unit.write_text(f"{head}{translation.text}\n{entry(call, function)}", encoding="utf-8")
    flags = compile_flags(chain, request.instrument, request.count, request.math_mode)
    shim = precompiled_shim(chain, tuple(flags))
    command = [*chain.clang, *flags, "-include-pch", str(shim), "-I", str(SHIM), str(unit)]
    if request.count:
        output = ["-S", "-emit-llvm", "-o", str(work / "kernel.ll")]
    else:
        output = ["-c", "-o", str(work / "kernel.o")]
    compiling = subprocess.Popen(
        [*command, *output],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, tree, warned = run_tool([*command, *STRICT_FLAGS])
        said = compiling.communicate(timeout=300)[1].decode("utf-8", "replace")
        blame(compiling.returncode, said)
    except subprocess.TimeoutExpired:
        compiling.kill()
        said = compiling.communicate()[1].decode("utf-8", "replace")
    except BaseException:
        compiling.kill()
        compiling.communicate()
        raise
    found += diagnostics(said, sources)
    if compiling.returncode != 0 and not any(f.kind == "compile" for f in found):
        found.append(Finding("compile", f"the compiler failed: {' '.join(said.split())[:300]}"))
    if not any(f.kind == "compile" for f in found):
        found += strict_findings(tree, sources, translation.kernels, translation.constants)
        found += strict_warnings(diagnostics(warned, sources, strict=True))
    return found, function


def _translate(
    request: Request, chain: Toolchain, sources: Sources, work: Path
) -> tuple[Translation | None, list[Finding]]:
    raw, expanded = work / "kernel.metal", work / "kernel.ii"
    raw.write_text(request.text, encoding="utf-8", errors="replace")
    include = ["-I", str(header_folder())]
    if request.include_root is not None:
        include += ["-I", request.include_root]
    status, _, said = run_tool(
        [*chain.clang, "-E", "-x", "c++", "-std=c++17", "-nostdinc", "-undef", "-w",
         "-fno-color-diagnostics", "-fno-caret-diagnostics", *include,
         "-include", str(SHIM / "macros.h"), str(raw), "-o", str(expanded)]
    )  # fmt: skip
    if status != 0:
        found = diagnostics(said, sources)
        return None, found or [Finding("compile", f"the preprocessor failed: {said[:300]}")]
    text = expanded.read_text(encoding="utf-8", errors="replace")
    try:
        return translate(text, dict(request.constants)), lint_translated(text, sources)
    except TranslationError as error:
        place = sources.place(*position(text, error.position))
        return None, [Finding("compile", str(error), place.line, place.file, place.text)]
