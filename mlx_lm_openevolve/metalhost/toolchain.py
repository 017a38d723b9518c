"""The C++ compiler behind metalhost: clang from the ziglang wheel, or MLX_LM_OPENEVOLVE_CXX."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from .. import processes
from ..cache import store
from ..errors import BackendError, MachineError
from . import confine
from .confine import Access

__all__ = [
    "METAL_HEADERS",
    "Completed",
    "Crashed",
    "Exhausted",
    "Toolchain",
    "compiler_available",
    "one_line",
    "package_digest",
    "run_tool",
    "toolchain",
]

# Headers that a source may include; the shim is all of them, so that each stands for nothing.
METAL_HEADERS = (
    *("metal_stdlib", "metal_math", "metal_simdgroup", "metal_simdgroup_matrix", "metal_atomic"),
    *("metal_common", "metal_integer", "metal_relational", "metal_types", "metal_type_traits"),
    *("metal_limits", "metal_compute", "metal_pack", "metal_geometric", "metal_matrix"),
    *("metal_quadgroup", "metal_numeric", "metal_utility", "metal_array", "metal_logging"),
    "simd/simd.h",
)

MACOS = "14.0"  # the oldest macOS that MLX's wheels run on, and so our programs

HERE = Path(__file__).parent
SHIM = HERE / "shim"
RUNTIME = HERE / "runtime"


@dataclass(frozen=True)
class Toolchain:
    """Commands (without arguments), what identifies the compiler, and what it reads of its own."""

    clang: tuple[str, ...]
    link: tuple[str, ...]
    runtime: tuple[str, ...]
    target: str
    identity: str
    reads: tuple[Path, ...] = (Path("/"),)

    @property
    def target_flags(self) -> list[str]:
        arch = ["-march=x86-64-v3"] if self.target.startswith("x86_64") and _has_avx2() else []
        return ["-target", self.target, *arch]


@functools.lru_cache(maxsize=1)
def _has_avx2() -> bool:
    """Half conversions in hardware. Where the CPU cannot be asked, the baseline is used."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return all(f" {name}" in flags for name in ("avx2", "fma", "f16c", "bmi2"))


def _host_target() -> str:
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if arch not in ("x86_64", "aarch64"):
        raise BackendError(f"metalhost runs on x86-64 and arm64, not on {machine}")
    if sys.platform == "darwin":
        return f"{arch}-macos"
    if sys.platform != "linux":
        raise BackendError(f"metalhost runs on Linux and macOS, not on {sys.platform}")
    libc = "gnu" if platform.libc_ver()[0] == "glibc" else "musl"
    return f"{arch}-linux-{libc}"


def _zig() -> Path | None:
    spec = util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    for folder in spec.submodule_search_locations:
        if (Path(folder) / "zig").is_file():
            return Path(folder) / "zig"
    return None


@functools.lru_cache(maxsize=4)
def _toolchain(compiler: str | None) -> Toolchain:
    target = _host_target()
    if compiler:
        path = shutil.which(compiler)
        if path is None:
            raise BackendError(f"MLX_LM_OPENEVOLVE_CXX names {compiler!r}, which is not a program")
        version = _version([path])
        if "clang" not in version:
            raise BackendError(f"MLX_LM_OPENEVOLVE_CXX must name a clang, not {version!r}")
        triple = target.replace("-macos", f"-apple-macos{MACOS}")
        compiler_for = (path, "-target", triple) if "apple" in triple else (path,)
        own = (*_SYSTEM, Path(path).resolve().parent.parent)
        reads = own if _starts((path,), own) else (Path("/"),)
        return Toolchain((path,), compiler_for, compiler_for, triple, version, reads)
    zig = _zig()
    if zig is None:
        raise BackendError(
            "no clang: pip install 'mlx-lm-openevolve[host]', or set MLX_LM_OPENEVOLVE_CXX"
        )
    tool = str(zig)
    version = "zig " + _version([tool, "clang"])
    # The libc is linked by zig, from its own stubs; raw clang compiles, for its speed.
    clang_target = target.replace("-macos", f"-apple-macos{MACOS}")
    libc = {"gnu": ".2.28", "macos": f".{MACOS}"}
    link_target = target + libc.get(target.split("-")[-1], "")
    link: tuple[str, ...]
    link = (tool, "build-exe", "-target", link_target, "-lc", "-fno-compiler-rt", "-fno-ubsan-rt")
    if target.endswith("-musl"):
        link = (tool, "cc", "-target", link_target)
    runtime = (tool, "c++", "-target", link_target)
    return Toolchain((tool, "clang"), link, runtime, clang_target, version, (zig.parent,))


# Where a system's own clang has its libraries.
_SYSTEM = tuple(
    Path(p) for p in ("/usr", "/lib", "/lib64", "/bin", "/opt", "/nix", "/etc/ld.so.cache")
)


def _starts(clang: tuple[str, ...], reads: tuple[Path, ...]) -> bool:
    """Whether a compiler works where it may read no more than this."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "empty.cpp").touch()
        command = [*clang, "-nostdinc", "-c", str(work / "empty.cpp"), "-o", str(work / "empty.o")]
        try:
            return run_tool(command, Access((work, *reads), (work,))).status == 0
        except (MachineError, Exhausted):
            return False


def _version(command: list[str]) -> str:
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"cannot run {command[0]}: {error}") from None
    return (done.stdout.splitlines() or ["?"])[0]


def toolchain() -> Toolchain:
    """The compiler in use. BackendError says in one line why there is none."""
    return _toolchain(os.environ.get("MLX_LM_OPENEVOLVE_CXX") or None)


def compiler_available() -> tuple[bool, str]:
    """(True, which compiler) or (False, why there is none)."""
    try:
        tools = toolchain()
    except BackendError as error:
        return False, str(error)
    return True, f"{tools.identity} for {tools.target}"


class Completed(NamedTuple):
    """What a tool returned and printed."""

    status: int
    stdout: str
    stderr: str


TIMEOUT = 120.0  # seconds by the clock for a compiler; confine.py has those for unknown sources


class Exhausted(Exception):
    """A source takes more of the compiler's time, memory or files than any kernel does."""


class Crashed(MachineError):
    """The compiler broke, or came to no end: the machine's trouble, unless it happens to one source
    again and again."""


# Lines that name no place in a source: a source's own text cannot forge them.
_NO_PLACE = r"^(?!.*:\d+:\d+: ).*"
_CANNOT = re.compile(
    _NO_PLACE + r"(No space left on device|File too large|Disk quota exceeded|Read-only file system"
    r"|Permission denied|Cannot allocate memory|out of memory)",
    re.M,
)
_BROKEN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
_FULL = re.compile(_NO_PLACE + r"File too large", re.M)
_NO_MEMORY = re.compile(
    _NO_PLACE + r"(?:Cannot allocate memory|out of memory|std::bad_alloc)", re.M
)
_CRASHED = re.compile(
    _NO_PLACE + r"(?:Stack dump:|PLEASE submit a bug report|LLVM ERROR:|Assertion .*failed)", re.M
)


def run_tool(command: Sequence[str], access: Access | None = None) -> Completed:
    """Runs a compiler, confined to `access` where its source is not our own. Its verdict on a
    source ends in status 0, or 1 with a message; whatever else it does (a signal, silence, a full
    disk) raises MachineError, and a crash or a hang Crashed: what a source is to blame for is kept
    in the cache, and this must not be. A source that goes beyond the limits of confine.py raises
    Exhausted."""
    zig = str(store().root / "zig")  # zig's own caches lie beside ours
    name = Path(command[0]).name
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig},
        "start_new_session": True,  # a driver's children are ended with it
    }
    seconds = TIMEOUT if access is None else min(TIMEOUT, confine.SECONDS)
    try:
        if access is None:
            process = subprocess.Popen(command, **options)
        else:
            process = confine.start(command, access, **options)
    except OSError as error:
        raise MachineError(f"cannot start {name}: {error.strerror}") from None
    try:
        watched = access is not None and not confine.limit(process.pid)
        output = _communicate(process, seconds, watched)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Crashed(f"{name} took more than {seconds:g} s") from None
        raise
    stdout, stderr = (text.decode("utf-8", "replace") for text in output)
    status = process.returncode
    if access is not None and status:
        _refuse_exhaustion(status, stderr)
    if status < 0:
        ended = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        kind = Crashed if -status in _BROKEN else MachineError
        raise kind(f"the compiler was ended by {ended}: no memory left, or interrupted")
    cannot = _CANNOT.search(stderr) if status else None
    if cannot:
        raise MachineError(f"the compiler cannot write or work: {cannot[1]}")
    if status > 1 or (status and _CRASHED.search(stderr)):
        raise Crashed(f"the compiler crashed with status {status}: {one_line(stderr)}")
    if status and not (stdout + stderr).strip():
        raise MachineError(f"the compiler ended with status {status} and said nothing")
    return Completed(status, stdout, stderr)


def _communicate(
    process: subprocess.Popen[bytes], seconds: float, watched: bool
) -> tuple[bytes, bytes]:
    """What a tool writes. watched: look at its memory now and then. Raises Exhausted,
    TimeoutExpired."""
    deadline = time.monotonic() + seconds
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        try:
            return process.communicate(timeout=min(left, 1.0) if watched else left)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
            if processes.memory_of(process.pid) > confine.MEMORY_BYTES:
                raise Exhausted(_MEMORY) from None


_MEMORY = f"compiling it takes more than {confine.MEMORY_BYTES >> 30} GiB of memory"


def _refuse_exhaustion(status: int, stderr: str) -> None:
    """Raises Exhausted where a confined compiler came to the end of what it may take."""
    if status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        raise Exhausted(f"compiling it takes more than {confine.CPU_SECONDS} s")
    if status in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ) or _FULL.search(stderr):
        raise Exhausted(f"it expands to more than {confine.FILE_BYTES >> 20} MiB")
    if _NO_MEMORY.search(stderr):
        raise Exhausted(_MEMORY)


def one_line(text: str) -> str:
    """The beginning of a tool's output, without line breaks."""
    return " ".join(text.split())[:300]


@functools.lru_cache(maxsize=1)
def package_digest() -> str:
    """Changes with every change of the shim, the runtime or the translator."""
    h = hashlib.sha256()
    files = [*SHIM.rglob("*"), *RUNTIME.rglob("*"), *HERE.glob("*.py")]
    for path in sorted(p for p in files if p.is_file() and "__pycache__" not in p.parts):
        h.update(path.relative_to(HERE).as_posix().encode())
        h.update(path.read_bytes())
    return h.hexdigest()
