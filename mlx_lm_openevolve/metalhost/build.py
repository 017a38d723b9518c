"""Builds a program from Metal source: preprocess, translate, compile, check strictly, link."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BackendError
from .cache import store
from .findings import Finding, Sources, position, unique
from .flops import count_blocks
from .lint import lint_raw, lint_translated
from .strict import STRICT_FLAGS, strict_findings, strict_warnings
from .toolchain import METAL_HEADERS, RUNTIME, SHIM, package_digest, toolchain
from .translate import KernelFunction, Translation, TranslationError, translate

__all__ = ["Program", "Request", "build"]

# A place in the grid for each attribute: the field of MhPlace.
ATTRIBUTES = {
    "thread_position_in_grid": "thread_in_grid",
    "thread_position_in_threadgroup": "thread_in_group",
    "threadgroup_position_in_grid": "group_in_grid",
    "threads_per_threadgroup": "threads_in_group",
    "dispatch_threads_per_threadgroup": "full_threads_in_group",
    "threads_per_grid": "threads_in_grid",
    "grid_size": "threads_in_grid",
    "threadgroups_per_grid": "groups_in_grid",
    "thread_index_in_threadgroup": "index_in_group",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
    "dispatch_simdgroups_per_threadgroup": "full_simdgroups",
}
EXPRESSIONS = {
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
    "thread_index_in_quadgroup": "(mh_place()->index_in_group % 4)",
    "quadgroup_index_in_threadgroup": "(mh_place()->index_in_group / 4)",
    "quadgroups_per_threadgroup": "(mh_place()->simdgroups * 8)",
    "dispatch_quadgroups_per_threadgroup": "(mh_place()->full_simdgroups * 8)",
}

LANGUAGE = [
    *("-x", "c++", "-std=c++17", "-nostdinc", "-fno-exceptions", "-fno-rtti", "-fwrapv"),
    *("-fno-strict-aliasing", "-fno-finite-loops", "-fno-stack-protector", "-fno-math-errno"),
    *("-fno-delete-null-pointer-checks", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"),
    *("-fno-sanitize=all", "-cl-single-precision-constant", "-fno-color-diagnostics"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none", "-ferror-limit=40"),
    *("-fdiagnostics-format=clang", "-fno-caret-diagnostics", "-Wno-everything", "-fno-crash-diagnostics"),
]
INSTRUMENT = [
    *("-O1", "-fno-vectorize", "-fno-slp-vectorize", "-gline-tables-only", "-gdwarf-4"),
    "-fsanitize=thread,bounds,local-bounds,return",
    "-fsanitize-recover=all",
    "-ftrivial-auto-var-init=pattern",
    *("-mllvm", "-tsan-instrument-atomics=0", "-mllvm", "-tsan-instrument-func-entry-exit=0"),
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
    # An access stays where the source has it: not moved behind a guard, not merged with another.
    *("-mllvm", "-instcombine-code-sinking=0", "-mllvm", "-simplifycfg-sink-common=0"),
    *("-mllvm", "-simplifycfg-merge-cond-stores=0"),
]
PLAIN = ["-O2", "-gline-tables-only", "-gdwarf-4"]
MATH = {
    "safe": ["-ffp-contract=on"],
    "relaxed": ["-ffp-contract=fast", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"],
    "fast": ["-ffast-math", "-fno-finite-math-only"],
}


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

    def key(self) -> str:
        chain = toolchain()
        parts = (
            package_digest(), chain.identity, *chain.target_flags, self.text, self.function,
            repr(self.constants), _root_digest(self.include_root), self.math_mode,
            str(self.instrument), str(self.count), str(self.utilities), repr([name for name, _ in self.files]),
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
    program = _built(request)
    if program.executable is not None and not program.executable.is_file():
        _built.cache_clear()  # the cache on disk has dropped it
        program = _built(request)
    return program


@functools.lru_cache(maxsize=512)
def _built(request: Request) -> Program:
    start = time.perf_counter()
    sources = Sources(dict(request.files))
    refused = lint_raw(request.text, request.files, request.include_root)
    if refused:
        return Program(None, None, tuple(refused), sources, time.perf_counter() - start, Path())
    folder = store().get(request.key(), lambda work: _build(request, sources, work))
    record = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    findings = tuple(_finding(f) for f in record["findings"])
    function = None
    if record["function"] is not None:
        function = _function(record["function"])
    executable = folder / "kernel"
    return Program(
        executable if executable.is_file() else None,
        function,
        findings,
        sources,
        time.perf_counter() - start,
        folder,
    )


def _finding(data: dict[str, object]) -> Finding:
    known = {k: v for k, v in data.items() if k in ("kind", "message", "file", "line", "text")}
    return Finding(**known)  # type: ignore[arg-type]


def _function(data: dict[str, object]) -> KernelFunction:
    from .translate import Parameter

    parameters = data["parameters"]
    assert isinstance(parameters, list)
    return KernelFunction(
        str(data["name"]), tuple(Parameter(**p) for p in parameters), bool(data["template"])
    )


def _save(
    work: Path, findings: Sequence[Finding], function: KernelFunction | None = None
) -> None:
    record = {
        "findings": [f.to_dict() for f in findings],
        "function": None
        if function is None
        else {
            "name": function.name,
            "template": function.template,
            "parameters": [vars(p) for p in function.parameters],
        },
    }
    (work / "program.json").write_text(json.dumps(record), encoding="utf-8")


def run_tool(command: Sequence[str], timeout: float = 120.0) -> tuple[int, str]:
    """Runs a compiler; (exit status, what it said)."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "kernel: fatal error: the compiler took too long\n"
    return done.returncode, (done.stderr + done.stdout).decode("utf-8", "replace")


def _build(request: Request, sources: Sources, work: Path) -> None:
    chain = toolchain()
    raw = work / "source.metal"
    raw.write_text(request.text, encoding="utf-8", errors="replace")
    include = ["-I", str(_header_folder())]
    if request.include_root is not None:
        include += ["-I", request.include_root]
    expanded = work / "expanded.ii"
    status, said = run_tool(
        [*chain.clang, "-E", "-x", "c++", "-std=c++17", "-nostdinc", "-undef", "-w",
         "-fno-color-diagnostics", "-fno-caret-diagnostics", *include,
         "-include", str(SHIM / "macros.h"), str(raw), "-o", str(expanded)]
    )  # fmt: skip
    if status != 0:
        _save(work, unique(diagnostics(said, sources)))
        return
    text = expanded.read_text(encoding="utf-8", errors="replace")
    try:
        translation = translate(text, dict(request.constants))
    except TranslationError as error:
        place = sources.place(*position(text, error.position))
        _save(work, [Finding("compile", str(error), place.line, place.file, place.text)])
        return
    found = lint_translated(text, sources)
    call, function = resolve(translation, request.function)
    if function is None:
        message = f"no kernel named {request.function!r} in the source"
        _save(work, [*found, Finding("compile", message)])
        return
    unit = work / "kernel.cpp"
    head = '#include "mlx_utilities.h"\n' if request.utilities else ""
    unit.write_text(
        f"{head}{translation.text}\n{entry(call, function, dict(request.constants), translation)}",
        encoding="utf-8",
    )
    flags = compile_flags(request)
    output = ["-S", "-emit-llvm", "-o", str(work / "kernel.ll")] if request.count else [
        "-c", "-o", str(work / "kernel.o")]  # fmt: skip
    compile_ = subprocess.Popen(
        [*chain.clang, *flags, "-include-pch", str(_pch(tuple(flags))), "-I", str(SHIM),
         str(unit), *output],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    tree, warned = _syntax_tree(
        [*chain.clang, *flags, "-include-pch", str(_pch(tuple(flags))), "-I", str(SHIM),
         *STRICT_FLAGS, str(unit)]
    )  # fmt: skip
    try:
        _, said_bytes = compile_.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        compile_.kill()
        _, said_bytes = compile_.communicate()
    said = said_bytes.decode("utf-8", "replace")
    found += diagnostics(said, sources)
    if compile_.returncode != 0 and not any(f.kind == "compile" for f in found):
        found.append(Finding("compile", f"the compiler failed: {' '.join(said.split())[:300]}"))
    if not any(f.kind == "compile" for f in found):
        found += strict_findings(tree, sources, translation.kernels, translation.constants)
        found += strict_warnings(diagnostics(warned, sources, strict=True))
    if not found:
        if request.count:
            assemble_counted(work)
        found += link(work, sources)
        if not os.environ.get("MLX_LM_OPENEVOLVE_KEEP"):
            for name in ("source.metal", "expanded.ii", "kernel.cpp", "kernel.o"):
                (work / name).unlink(missing_ok=True)
    _save(work, unique(found), function)


def _syntax_tree(command: Sequence[str]) -> tuple[str, str]:
    """The syntax tree that a compiler prints, and its warnings."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "", ""
    return done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def assemble_counted(work: Path) -> None:
    """From the instrumented IR to an object whose basic blocks report what they hold."""
    ir = work / "kernel.ll"
    ir.write_text(count_blocks(ir.read_text(encoding="utf-8")), encoding="utf-8")
    chain = toolchain()
    status, said = run_tool(
        [*chain.clang, "-x", "ir", "-O1", *chain.target_flags, "-fno-sanitize=all", "-w",
         "-Xclang", "-disable-llvm-passes", "-c", str(ir), "-o", str(work / "kernel.o")]
    )  # fmt: skip
    if status != 0:
        raise BackendError(f"the counted kernel does not assemble: {said.strip()[:400]}")
    ir.unlink()


def link(work: Path, sources: Sources) -> list[Finding]:
    """Links the program; a function that the source only declares is a finding."""
    chain = toolchain()
    kernel, runtime = str(work / "kernel.o"), str(_runtime())
    output = work / "kernel"
    if chain.link[-1] == "-fno-ubsan-rt":
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            status, said = run_tool(
                [*chain.link, kernel, runtime, f"-femit-bin={output}",
                 "--cache-dir", scratch, "-fno-strip"]
            )  # fmt: skip
    else:
        status, said = run_tool([*chain.link, kernel, runtime, "-o", str(output), "-lm"])
    missing = re.findall(r"undefined symbol: ([^\n]+)", said)
    if missing:
        return [Finding("compile", f"'{missing[0].strip()}' is declared but nowhere defined")]
    if status != 0 or not output.is_file():
        raise BackendError(f"linking failed: {said.strip()[:400]}")
    return []


def compile_flags(request: Request) -> list[str]:
    chain = toolchain()
    aux = "x86_64-linux-gnu" if chain.target.startswith("x86_64") else "aarch64-linux-gnu"
    return [
        *LANGUAGE,
        *chain.target_flags,
        *("-Xclang", "-fsycl-is-device", "-Xclang", "-aux-triple", "-Xclang", aux),
        *(INSTRUMENT if request.instrument else PLAIN),
        *(["-fsanitize-coverage=bb,no-prune,trace-pc-guard"] if request.count else []),
        *MATH[request.math_mode],
    ]


@functools.lru_cache(maxsize=1)
def _header_folder() -> Path:
    """A folder with an empty file for each of Metal's own headers."""

    def make(work: Path) -> None:
        for name in METAL_HEADERS:
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("#pragma once\n", encoding="ascii")

    key = hashlib.sha256(" ".join(METAL_HEADERS).encode())
    return store().get(key.hexdigest(), make)


@functools.lru_cache(maxsize=32)
def _pch(flags: tuple[str, ...]) -> Path:
    """The shim, precompiled for these flags."""
    chain = toolchain()
    key = hashlib.sha256("\0".join(("pch", package_digest(), chain.identity, *flags)).encode())

    def make(work: Path) -> None:
        status, said = run_tool(
            [*chain.clang, *flags, "-x", "c++-header", "-Xclang", "-fno-pch-timestamp",
             str(SHIM / "metal.h"), "-o", str(work / "metal.pch")]
        )  # fmt: skip
        if status != 0:
            raise BackendError(f"the shim does not compile: {said.strip()[:2000]}")

    return store().get(key.hexdigest(), make) / "metal.pch"


@functools.lru_cache(maxsize=1)
def _runtime() -> Path:
    """The runtime's object file."""
    chain = toolchain()
    flags = ["-std=c++17", "-O2", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector",
             "-fno-sanitize=all", "-fno-threadsafe-statics", "-g0"]  # fmt: skip
    key = hashlib.sha256("\0".join(("runtime", package_digest(), chain.identity)).encode())

    def make(work: Path) -> None:
        status, said = run_tool(
            [*chain.runtime, *flags, "-c", str(RUNTIME / "metalhost.cpp"),
             "-o", str(work / "runtime.o")]
        )  # fmt: skip
        if status != 0:
            raise BackendError(f"the runtime does not compile: {said.strip()[:2000]}")

    return store().get(key.hexdigest(), make) / "runtime.o"


def resolve(translation: Translation, wish: str) -> tuple[str, KernelFunction | None]:
    """The call expression and the kernel that `wish` names: a host name, `f` or `f<args>`."""
    call = translation.host_names.get(wish, wish)
    name = call.split("<", 1)[0].split("::")[-1].strip()
    return call, translation.kernels.get(name)


def entry(
    call: str,
    function: KernelFunction,
    constants: Mapping[int, object],
    translation: Translation,
) -> str:
    """The generated functions that bind a kernel's arguments."""
    declare, arguments = [], []
    for i, p in enumerate(function.parameters):
        kind = f"MhParameters::at<{i}>"
        if p.attribute in ("buffer", "threadgroup"):
            slot = (p.index or 0) + (32 if p.attribute == "threadgroup" else 0)
            declare.append(f"mh::declare<{kind}>({slot});")
            arguments.append(f"mh::bind<{kind}>({slot})")
        elif p.attribute in ATTRIBUTES:
            arguments.append(f"mh::coordinate<{kind}>(mh_place()->{ATTRIBUTES[p.attribute]})")
        else:
            expression = EXPRESSIONS.get(p.attribute, "0u")
            arguments.append(f"mh::coordinate<{kind}>({expression})")
    return (
        '\n# 1 "<entry>"\n'
        f"typedef mh::Parameters<decltype(&{call})> MhParameters;\n"
        'extern "C" MH_EXTERNAL void mh_signature() { ' + " ".join(declare) + " }\n"
        'extern "C" MH_EXTERNAL MH_UNCHECKED void mh_entry() { '
        f"{call}({', '.join(arguments)}); }}\n"
    )


_DIAGNOSTIC = re.compile(r"^(.*?):(\d+):(\d+): (fatal error|error|warning|note): (.*)$")


def diagnostics(said: str, sources: Sources, strict: bool = False) -> list[Finding]:
    """The errors in a compiler's output. One in the shim is put on the caller's line, which a
    note of the same error names."""
    found: list[Finding] = []
    pending: tuple[str, str] | None = None
    for line in said.splitlines():
        m = _DIAGNOSTIC.match(line)
        if m is None:
            if line.startswith("error:") and not found:
                found.append(Finding("compile", line[7:]))
            continue
        file, number, level, message = m.group(1), int(m.group(2)), m.group(4), m.group(5)
        if level == "note":
            if pending is not None and sources.known(file):
                place = sources.place(file, number)
                kind, text = pending
                found.append(Finding(kind, text, place.line, file, place.text))
                pending = None
            continue
        if pending is not None and not found:
            found.append(Finding(*pending))
        pending = None
        kind = "strict" if strict else "compile"
        if level == "warning" and not strict:
            continue
        text = plain_words(message)
        if sources.known(file) or not str(file).startswith(str(SHIM)):
            place = sources.place(file, number)
            found.append(Finding(kind, text, place.line, file, place.text))
        else:
            pending = (kind, text)
    if pending is not None:
        found.append(Finding(*pending))
    return found


def plain_words(message: str) -> str:
    """Metal's words for the shim's types."""
    for spelled, word in (
        ("__attribute__((address_space(1)))", "device"),
        ("__attribute__((address_space(2)))", "constant"),
        ("__attribute__((address_space(3)))", "threadgroup"),
        ("__global_host", "constant"),
        ("__global", "device"),
        ("__local", "threadgroup"),
        ("_Float16", "half"),
        ("__bf16", "bfloat"),
        ("mh::Bools<", "vec<bool, "),
    ):
        message = message.replace(spelled, word)
    message = re.sub(r"'(\w+) __attribute__\(\(ext_vector_type\((\d)\)\)\)'", r"'\1\2'", message)
    return re.sub(r"\s*\[-W[^\]]*\]$", "", message)
