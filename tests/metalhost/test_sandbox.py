"""Hostile programs behind the lint: each gets nothing, and each would have got it without the
sandbox. What stops them is the rules on the compiled object and the system's own filter."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from probe import launch, messages, on_host, only

from mlx_lm_openevolve.errors import MachineError
from mlx_lm_openevolve.metalhost import LaunchResult, confine, objects
from mlx_lm_openevolve.metalhost import build as build_module
from mlx_lm_openevolve.metalhost import launch as launch_module
from mlx_lm_openevolve.metalhost.build import Program
from mlx_lm_openevolve.metalhost.confine import Access, landlock
from mlx_lm_openevolve.metalhost.findings import Sources
from mlx_lm_openevolve.metalhost.object_rules import secure
from mlx_lm_openevolve.metalhost.toolchain import run_tool, toolchain

on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="system calls of Linux on x86"
)
FREE, CONFINED = 0, 2


@dataclass
class Behind:
    """metalhost without its lint: what the rules on the object said, and whether they count."""

    refusals: list[str]
    rules: bool = True
    confine: int = CONFINED


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Behind:
    state = Behind([])

    def noted(path: Path, initialisers: int, runtime: Path) -> str:
        before = path.read_bytes()
        state.refusals.append(secure(path, initialisers, runtime))
        if state.rules:
            return state.refusals[-1]
        path.write_bytes(before)
        return ""

    monkeypatch.setattr(build_module, "lint_raw", lambda *_: [])
    monkeypatch.setattr(build_module, "lint_translated", lambda *_: [])
    monkeypatch.setattr(build_module, "strict_findings", lambda *_: [])
    monkeypatch.setattr(build_module, "strict_warnings", lambda *_: [])
    monkeypatch.setattr(objects, "secure", noted)
    monkeypatch.setattr(launch_module, "_confine", lambda _: state.confine)
    return state


def run(header: str, body: str, a: int = 0) -> LaunchResult:
    inputs = [np.array([a], np.int32)]
    return launch(body, inputs, n=1, group=1, dtype=mx.int32, header=header, sanitize=False)


# One program for all system calls, in which the first input chooses: FILE is a file, TARGET one
# that is not there, PID a process, PORT a port that listens, AWAY the way from memcpy to system.

CALLS = """
static long ask(long n, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
  long r;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return r;
}
// mov eax, 87 (unlink); syscall; ret: the immediate of a function that is never called.
static ulong immediate() { return 0xc3050f00000057b8ul; }
typedef long (*Function)(const char*);
extern "C" void* memcpy(void*, const void*, ulong);
static long data[16] = {1};
static char file[] = FILE;  // in the lowest 4 GiB
"""
PROGRAMS = {
    "open": "r = ask(2, (long)FILE);",
    "openat": "r = ask(257, -100, (long)FILE);",
    "openat2": "long how[3] = {0, 0, 0}; r = ask(437, -100, (long)FILE, (long)how, 24);",
    "create": "r = ask(85, (long)TARGET, 0600);",
    "unlink": "r = ask(87, (long)FILE);",
    "rename": "r = ask(82, (long)FILE, (long)TARGET);",
    "truncate": "r = ask(76, (long)FILE, 0);",
    "mkdir": "r = ask(83, (long)TARGET, 0700);",
    "symlink": "r = ask(88, (long)FILE, (long)TARGET);",
    "chmod": "r = ask(90, (long)FILE, 0777);",
    "fork": "r = ask(57); if (r == 0) ask(60, 0);",
    "clone": "r = ask(56, 17); if (r == 0) ask(60, 0);",
    "execute": """
        const char* words[3] = {"/usr/bin/touch", TARGET, 0};
        if (ask(57) == 0) ask(59, (long)words[0], (long)words);
        r = ask(61, -1);  // wait
        """,
    "ptrace": "r = ask(101, 16, PID);",
    "pidfd_open": "r = ask(434, PID);",
    "connect": """
        uchar to[16] = {2, 0, PORT / 256, PORT % 256, 127, 0, 0, 1};
        r = ask(42, ask(41, 2, 1), (long)to, 16);
        """,
    "io_uring": "static long p[15]; r = ask(425, 1, (long)p);",
    "write over the launch": "r = ask(18, 0, (long)FILE, 0, 0);",
    "map what others share": "r = ask(9, 0, 4096, 3, 0x21, -1) > 0;",
    "memory to share, as if of the launch": "r = ask(9, 0, 4096, 3, 0x21, 0) > 0;",
    "memory to share, as if of the launch, strictly": "r = ask(9, 0, 4096, 3, 0x23, 0) > 0;",
    "a stack that grows": "r = ask(9, 0, 4096, 3, 0x122, -1) > 0;",
    "int 0x80": """
        asm volatile("int $0x80" : "=a"(r) : "a"(10), "b"(file) : "memory");
        r = int(r);
        """,
    "bytes in an immediate": """
        volatile uchar* p = (volatile uchar*)&immediate;
        while (!(p[0] == 0xb8 && p[1] == 87)) ++p;
        r = ((Function)p)(FILE);
        """,
    "code in fresh memory": """
        volatile ulong* p = (volatile ulong*)ask(9, 0, 4096, 7, 0x22, -1);
        *p = immediate();
        r = ((Function)p)(FILE);
        """,
    "code in data": """
        ask(10, (long)data & -4096, 4096, 7);
        *(volatile ulong*)data = immediate();
        r = ((Function)data)(FILE);
        """,
    "libc by arithmetic": """
        void* (*volatile known)(void*, const void*, ulong) = &memcpy;
        r = ((Function)((ulong)known + AWAY))("touch " TARGET);
        """,
    "kill": "r = ask(62, PID, 9);",
}
# What a machine may refuse to anybody.
RARE = {"ptrace", "openat2", "pidfd_open", "io_uring", "int 0x80"}


@dataclass(frozen=True)
class World:
    """What the programs are after."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def file(self) -> Path:
        return self.folder / "file"

    @property
    def target(self) -> Path:
        return self.folder / "target"

    def restore(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.file.write_text("secret")
        self.file.chmod(0o600)

    def untouched(self) -> bool:
        """Whether everything is as it was."""
        same = self.file.is_file() and self.file.read_text() == "secret"
        return (
            same
            and self.file.stat().st_mode & 0o777 == 0o600
            and not self.target.is_symlink()
            and not self.target.exists()
            and self.process.poll() is None
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with socket.socket() as listener, subprocess.Popen(["sleep", "60"]) as process:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        world = World(tmp_path / "world", listener.getsockname()[1], process)
        world.folder.mkdir()
        world.restore()
        yield world
        process.kill()


def source(world: World) -> tuple[str, str]:
    """Header and body of all programs."""
    libc = ctypes.CDLL(None)
    way = [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (libc.memcpy, libc.system)]
    names = {
        "FILE": f'"{world.file}"',
        "TARGET": f'"{world.target}"',
        "PORT": world.port,
        "PID": world.process.pid,
        "AWAY": f"{way[1] - way[0]}l",
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in names.items())
    cases = "".join(f"case {k}: {{ {text} break; }}\n" for k, text in enumerate(PROGRAMS.values()))
    return defines + CALLS, f"long r = -1;\nswitch (a[0]) {{\n{cases}}}\ny[0] = r;"


@on_host
@on_x86
def test_programs_that_ask_the_system_get_nothing(behind: Behind, world: World) -> None:
    header, body = source(world)
    fresh = f"\n// {os.urandom(8).hex()}"  # what is switched off is no key of the cache
    got, ended = {}, {}
    for number, name in enumerate(PROGRAMS):
        done = run(header, body + fresh, number)
        ended[name] = {f.kind for f in done.findings}
        assert not done.outputs, name
        assert world.untouched(), name
    assert ended == {name: {"sandbox"} for name in PROGRAMS}
    assert behind.refusals == [""]  # nothing of this shows in the object
    behind.confine = FREE
    for number, name in enumerate(PROGRAMS):
        world.restore()
        done = run(header, body + fresh, number)
        got[name] = bool(done.outputs) and done.outputs[0].item() >= 0
    assert {name for name, had in got.items() if not had} <= RARE


# What a compiled kernel cannot name, take the place of, or have run by itself.

OBJECTS = {
    "a function of libc": (
        'extern "C" int system(const char*);',
        "y[0] = system(COMMAND);",
    ),
    "the loader": (
        'extern "C" void* dlsym(void*, const char*);',
        'y[0] = ((int (*)(const char*))dlsym(0, "system"))(COMMAND);',
    ),
    "another name of it": (
        'int innocent(const char*) __asm__("system");',
        "y[0] = innocent(COMMAND);",
    ),
    "another name of it, by a pragma": (
        '#pragma redefine_extname innocent system\nextern "C" int innocent(const char*);',
        "y[0] = innocent(COMMAND);",
    ),
    "another name of it, by an attribute": (
        '[ [gnu::weakref("system")] ] static int innocent(const char*);',
        "y[0] = innocent(COMMAND);",
    ),
    "another name of it, in assembly": (
        'extern "C" int innocent(const char*);\n'
        "[ [clang::sycl_external, gnu::noinline] ] void define() {\n"
        '  asm(".pushsection .text.i, \\"ax\\"; .globl innocent; innocent: jmp system@plt;"\n'
        '      ".popsection"); }',
        "y[0] = innocent(COMMAND);",
    ),
    "a constructor": (
        "[ [clang::sycl_external, gnu::constructor] ] void first() { ASSEMBLY }",
        "y[0] = 0;",
    ),
    "an initialiser": (
        "static int first() { ASSEMBLY return 1; }\nint at_start = first();",
        "y[0] = at_start - at_start;",
    ),
    "an initialiser before all others": (
        "[ [clang::sycl_external] ] void first() { ASSEMBLY }",
        'asm(".pushsection .preinit_array, \\"aw\\"; .quad _Z5firstv; .popsection"); y[0] = 0;',
    ),
    "an IFUNC": (
        'extern "C" { int innocent();\n'
        "[ [clang::sycl_external] ] void* first() { ASSEMBLY return (void*)&mh_lane; } }\n"
        "[ [clang::sycl_external, gnu::noinline] ] void define() {\n"
        '  asm(".pushsection .text.i, \\"ax\\"; .globl innocent; .type innocent, "\n'
        '      "@gnu_indirect_function; innocent: jmp first; .popsection"); }',
        "y[0] = innocent();",
    ),
    "a function that the runtime calls": (
        'extern "C" { [ [clang::sycl_external] ] int setitimer() { ASSEMBLY return 0; } }',
        "y[0] = 0;",
    ),
    "a place of libc's": (
        'extern "C" { [ [clang::sycl_external] ] int __libc_start_main() { ASSEMBLY return 0; } }',
        "y[0] = 0;",
    ),
}
ASSEMBLY = """
    long r;
    asm volatile("syscall" : "=a"(r) : "a"(85), "D"(TARGET), "S"(0600) : "rcx", "r11", "memory");
    """


@on_host
@on_x86
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_hold_more_than_a_kernel(name: str, behind: Behind, world: World) -> None:
    header, body = OBJECTS[name]
    defines = f'#define TARGET "{world.target}"\n#define COMMAND "touch " TARGET\n'
    header = defines + header.replace("ASSEMBLY", ASSEMBLY)
    behind.rules, behind.confine = False, FREE
    done = run(header, body)
    assert world.target.exists(), messages(done)
    assert [bool(reason) for reason in behind.refusals] == [True]


@on_host
def test_a_refused_object_is_never_started(behind: Behind, world: World) -> None:
    body = f'y[0] = system("touch {world.target}");'
    done = run('extern "C" int system(const char*);', body)
    assert "'system'" in only(done, "sandbox").message
    assert not done.outputs
    assert not world.target.exists()


@on_host
def test_the_system_holds_where_the_rules_fail(behind: Behind, world: World) -> None:
    """On every system and processor: a call of libc, from a program that the rules let pass."""
    behind.rules = False
    header, body = 'extern "C" int system(const char*);', f'y[0] = system("touch {world.target}");'
    run(header, body)
    assert world.untouched()
    behind.confine = FREE
    run(header, body)
    assert world.target.exists()


@on_host
@on_x86
@pytest.mark.parametrize("protection", [1, 3])
def test_addresses_end_as_memory_does(protection: int, behind: Behind) -> None:
    """Pages that are only read count as no data, but their tables take memory."""
    behind.rules = False
    body = f"""\
    long got = 0;
    while (got < 64 && ask(9, 0, 1l << 30, {protection}, 0x22, -1) > 0) ++got;
    y[0] = got; // {os.urandom(8).hex()}
    """
    done = run('#define FILE ""\n' + CALLS, body)
    assert done.ok, messages(done)
    assert done.outputs[0].item() < 16


@on_host
@on_x86
def test_a_program_holds_no_descriptor_but_its_own(behind: Behind) -> None:
    """The launch's file, the report, and nothing in place of standard error."""
    behind.confine = FREE
    count = "int n = 0; for (int k = 0; k < 256; ++k) n += ask(72, k, 1) >= 0; y[0] = n;"
    with Path(__file__).open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        done = run('#define FILE ""\n' + CALLS, f"{count} // {os.urandom(8).hex()}")
    assert [a.item() for a in done.outputs] == [3], messages(done)


REPORTS = {
    "no words of the runtime's": "finding\\tkind=race\\tthread=x\\tpc=y\\nend\\n",
    "no fields": "finding\\nfinding\\tkind=read-only\\nend\\n",
    "counters": "count\\tflops\\tmany\\nend\\n",
    "nothing": "",
}


@on_host
@on_x86
@pytest.mark.parametrize("report", REPORTS)
def test_a_forged_report_is_a_finding(report: str, behind: Behind) -> None:
    text = REPORTS[report]
    body = (
        f'static const char s[] = "{text}"; ask(1, 1, (long)s, sizeof s - 1); ask(231); y[0] = 0;'
    )
    done = run('#define FILE ""\n' + CALLS, f"{body} // {os.urandom(8).hex()}")
    if report == "counters":  # nobody asked for them
        assert done.ok
    else:
        assert {f.kind for f in done.findings} == {"fault"}, messages(done)


@on_host
@on_x86
def test_an_endless_report_ends(behind: Behind) -> None:
    body = f"for (;;) ask(1, 1, (long)&immediate, 4096); y[0] = 0; // {os.urandom(8).hex()}"
    done = run('#define FILE ""\n' + CALLS, body)
    assert "report" in only(done, "fault").message


def test_without_a_sandbox_somebody_must_vouch(monkeypatch: pytest.MonkeyPatch) -> None:
    options = launch_module.Options((1, 1, 1), (1, 1, 1), 0, True, False, 1.0, 1 << 20)
    program = Program(Path("kernel"), None, (), Sources({}), 0.0, Path())
    with pytest.raises(MachineError, match="MLX_LM_OPENEVOLVE_UNSAFE"):
        launch_module._read("unconfined\nend\n", program, {}, options)
    assert launch_module._confine(options) == launch_module.CONFINE
    vouched = replace(options, trusted=True)
    assert launch_module._confine(vouched) == launch_module.CONFINE_IF_POSSIBLE
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_UNSAFE", "1")
    assert launch_module._confine(options) == launch_module.CONFINE_IF_POSSIBLE


# What the compiler is made to do. FILE holds "42".

READS = {
    "a file": ("constant int stolen =\n#include FILE\n;", "y[0] = stolen;"),
    "a file, by a macro": (
        "#define H #\nconstant int stolen =\nH include FILE\n;",
        "y[0] = stolen;",
    ),
    "its bytes": ("constant char stolen[] = {\n#embed FILE\n};", "y[0] = 42 + stolen[0] - '4';"),
    "its bytes, in assembly": (
        "",
        'ulong at; asm(".pushsection .rodata; 1: .incbin \\"" FILE "\\"; .popsection;"\n'
        '    "lea 1b(%%rip), %0" : "=r"(at)); y[0] = 42 + *(const char*)at - \'4\';',
    ),
}
with_landlock = pytest.mark.skipif(not landlock(), reason="this system has no Landlock")


@on_host
@on_x86
@with_landlock
@pytest.mark.parametrize("name", READS)
def test_the_compiler_reads_no_file_of_the_users(
    name: str, behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("42")
    header, body = (text.replace("FILE", f'"{file}"') for text in READS[name])
    body = f"{body} // {os.urandom(8).hex()}"
    done = run(header, body)
    assert only(done, "compile").line, messages(done)
    monkeypatch.setattr(confine, "landlock", lambda: 0)
    done = run(header, f"{body}.")
    assert [a.item() for a in done.outputs] == [42], messages(done)


@on_host
@with_landlock
def test_the_compiler_writes_its_folder_alone(tmp_path: Path) -> None:
    work, other = tmp_path / "work", tmp_path / "other"
    work.mkdir()
    other.mkdir()
    source = work / "unit.cpp"
    source.write_text("int one = 1;\n")
    tools = toolchain()
    access = Access((*tools.reads, work), (work,))
    command = [*tools.clang, *tools.target_flags, "-c", str(source), "-o"]
    assert run_tool([*command, str(work / "unit.o")], access).status == 0
    with pytest.raises(MachineError, match="denied"):
        run_tool([*command, str(other / "unit.o")], access)
    assert not list(other.iterdir())
    assert run_tool([*command, str(other / "unit.o")]).status == 0


_TIMES = "".join(f"#define A{i} {', '.join([f'A{i - 1}'] * 8)}\n" for i in range(1, 6))
BOMBS = {
    "text": (
        "FILE_BYTES",
        100 << 10,
        f"#define A0 1, 1, 1, 1, 1, 1, 1, 1\n{_TIMES}constant int x[] = {{A5}};",
        "expands",
    ),
    "memory": (
        "MEMORY_BYTES",
        600 << 20,
        "#define D(x) x x\n#define E(x) D(D(D(D(x))))\n#define F(x) E(E(E(E(x))))\nF(F(F(;)))",
        "memory",
    ),
    "time": (
        "CPU_SECONDS",
        1,
        "template <int A, int B> struct W {\n"
        "  static constexpr int v = W<A - 1, B>::v + W<A - 1, B + (1 << A)>::v; };\n"
        "template <int B> struct W<0, B> { static constexpr int v = 1; };\n"
        "constant int x = W<26, 0>::v;",
        "1 s",
    ),
}


@on_host
@pytest.mark.parametrize("name", BOMBS)
def test_a_source_that_explodes_is_a_finding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, value, header, words = BOMBS[name]
    monkeypatch.setattr(confine, limit, value)
    if not hasattr(resource, "prlimit") and name != "memory":
        pytest.skip("only Linux ends this")
    done = launch(f"y[0] = 1; // {os.urandom(8).hex()}", header=header)
    assert words in only(done, "compile").message


@on_host
def test_memory_is_watched_where_it_cannot_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "limit", lambda _: False)
    monkeypatch.setattr(confine, "MEMORY_BYTES", 200 << 20)
    done = launch(f"y[0] = 1; // {os.urandom(8).hex()}", header=BOMBS["memory"][2])
    assert "memory" in only(done, "compile").message
