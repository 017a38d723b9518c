"""The compiler, the cache, other machines."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from probe import launch, messages, on_host

from mlx_lm_openevolve import metalhost
from mlx_lm_openevolve.cache import Store
from mlx_lm_openevolve.errors import BackendError, UsageError
from mlx_lm_openevolve.metalhost import compiler_available, metal_kernel
from mlx_lm_openevolve.metalhost.build import BuildRequest, _build
from mlx_lm_openevolve.metalhost.findings import Sources
from mlx_lm_openevolve.metalhost.lint import lint_translated
from mlx_lm_openevolve.metalhost.signature import generate
from mlx_lm_openevolve.metalhost.symbols import LineTable
from mlx_lm_openevolve.metalhost.toolchain import RUNTIME, SHIM, _toolchain, toolchain

MAC = "aarch64-macos"


def test_wrong_use_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match="at least one output"):
        metal_kernel("k", [], [], "")
    with pytest.raises(UsageError, match="C identifier"):
        metal_kernel("a b", [], ["y"], "")
    with pytest.raises(UsageError, match="safe, relaxed, fast"):
        metal_kernel("k", [], ["y"], "", math_mode="wild")


@on_host
def test_wrong_arguments_are_one_clear_line() -> None:
    with pytest.raises(UsageError, match="takes 1 inputs, not 0"):
        metal_kernel("k", ["x"], ["y"], "")(
            [],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[mx.float32],
        )
    with pytest.raises(UsageError, match="complex64"):
        launch("y[0] = 1;", [mx.zeros((8,), mx.complex64)])
    with pytest.raises(UsageError, match="three numbers"):
        launch("y[0] = 1;", group=(1, 1))  # type: ignore[arg-type]


def test_the_compiler_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", "no-such-compiler")
    available, why = compiler_available()
    assert not available
    assert "no-such-compiler" in why
    with pytest.raises(BackendError):
        launch("y[0] = 1;")


@on_host
def test_a_clang_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain command line of a clang driver serves: here the same clang behind a script."""
    chain = toolchain()
    tool = chain.clang[0]
    if not tool.endswith("zig"):
        pytest.skip("a clang of the user's own is in use already")
    script = tmp_path / "my-clang++"
    script.write_text(
        '#!/bin/sh\ncase " $* " in *-nostdinc*|*" -x ir "*|*--version*) '
        f'exec "{tool}" clang "$@";;\n'
        f'*" -lm "*) exec {" ".join(chain.link)} "$1" "$2" "-femit-bin=$4";; esac\n'
        f'exec "{tool}" c++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", str(script))
    assert compiler_available()[0], compiler_available()
    done = launch("y[thread_position_in_grid.x] = 41;")
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == [41.0] * 32


@on_host
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_conversions_without_the_cpus_help(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an old x86 the runtime's own conversions serve: every value, rounding and special."""
    monkeypatch.setattr("mlx_lm_openevolve.metalhost.toolchain._has_avx2", lambda: False)
    halves = mx.arange(65536).astype(mx.uint16).view(dtype)
    rng = np.random.default_rng(1)
    floats = mx.array(rng.integers(0, 2**32, 65536, np.uint32).view(np.float32))
    body = """
        uint i = thread_position_in_grid.x;
        y[i] = T(i < 65536 ? float(a[i]) : b[i - 65536]);
        """
    done = launch(body, [halves, floats], n=131072, group=1024, dtype=dtype,
                  template=[("T", dtype)], sanitize=False)  # fmt: skip
    assert done.ok, messages(done)
    expected = mx.concatenate([halves, floats.astype(dtype)])
    same = (done.outputs[0] == expected) | (mx.isnan(done.outputs[0]) & mx.isnan(expected))
    assert mx.all(same).item()


@on_host
def test_two_installations_share_one_cache(tmp_path: Path) -> None:
    """A precompiled header names its sources by path: the second must not use the first's."""
    program = (
        "import mlx.core as mx\n"
        "from mlx_lm_openevolve.metalhost import metal_kernel\n"
        "kernel = metal_kernel('probe', ['a'], ['y'],\n"
        "    'uint i = thread_position_in_grid.x; y[i] = a[i] + {value};')\n"
        "done = kernel([mx.zeros((32,))], None, grid=(32, 1, 1), threadgroup=(32, 1, 1),\n"
        "    output_shapes=[(32,)], output_dtypes=[mx.float32])\n"
        "assert done.ok, done.findings\n"
    )
    package = Path(metalhost.__file__).parents[1]
    environment = {**os.environ, "MLX_LM_OPENEVOLVE_HOME": str(tmp_path / "fresh")}
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):  # with modification times of their own
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, place / package.name, ignore=skipped, copy_function=shutil.copy)
    for value, place in enumerate((first, second, second)):
        if value == 2:
            shutil.rmtree(first)
        done = subprocess.run(
            [sys.executable, "-c", program.format(value=value)], check=False,
            capture_output=True, text=True, env=environment, cwd=place,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_the_store_builds_once_and_stays_small(tmp_path: Path) -> None:
    built = []

    def build(key: str, size: int = 100) -> Any:
        def fill(work: Path) -> None:
            built.append(key)
            (work / "data").write_bytes(b"x" * size)

        return fill

    store = Store(tmp_path, limit=250)
    keys = [f"{k:02d}key" for k in range(4)]
    for age, key in enumerate(keys[:2]):
        folder = store.get(key, build(key))
        os.utime(folder, (age, age))
    store.get(keys[0], build(keys[0]))
    assert built == keys[:2]
    store.get(keys[2], build(keys[2]))
    left = {f.parent.name for f in tmp_path.glob("*/*/data")}
    assert left == {keys[0], keys[2]}
    with pytest.raises(RuntimeError):
        store.get(keys[3], lambda work: (_ for _ in ()).throw(RuntimeError("no")))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(("new-", "old-"))]


def test_a_large_cache_is_looked_through_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after every build, which took longer than the build; it stays near its limit."""
    store, looks, prune = Store(tmp_path, limit=10_000), [], Store._prune
    monkeypatch.setattr(Store, "_prune", lambda self, keep: (looks.append(keep), prune(self, keep)))
    for k in range(400):
        store.get(f"{k % 100:02d}key{k}", lambda work: (work / "data").write_bytes(b"x" * 100))
        assert k % 10 or len(list(tmp_path.glob("*/*/data"))) < 200
    assert 16 < len(looks) < 160  # of a hundred that fill it sixteen, more or less


@on_host
@pytest.mark.parametrize("target", [MAC, "x86_64-macos", "aarch64-linux-gnu.2.28"])
def test_the_runtime_builds_for_other_machines(target: str, tmp_path: Path) -> None:
    tool = toolchain().runtime[0]
    if not tool.endswith("zig"):
        pytest.skip("needs zig, which brings the libraries of other systems")
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text('extern "C" void mh_signature() {}\nextern "C" void mh_entry() {}\n')
    objects = []
    for source in (kernel, RUNTIME / "metalhost.cpp"):
        objects.append(str(tmp_path / f"{source.stem}.o"))
        done = subprocess.run(
            [tool, "c++", "-target", target, "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti",
             "-fno-sanitize=all", "-Wall", "-Wextra", "-Werror", "-c", str(source),
             "-o", objects[-1]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[:2000]
    done = subprocess.run(
        [tool, "build-exe", "-target", target, "-lc", "-fno-compiler-rt", "-fno-ubsan-rt", *objects,
         f"-femit-bin={tmp_path / 'program'}", "--cache-dir", str(tmp_path / "zig")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:2000]
    program = (tmp_path / "program").read_bytes()
    assert program[:4] == (b"\xcf\xfa\xed\xfe" if "macos" in target else b"\x7fELF")
    assert (b"_sandbox_init" in program) == ("macos" in target)  # Linux: a filter, no function


def load_commands(program: bytes) -> dict[int, bytes]:
    """The load commands of a Mach-O program by their number."""
    (count,) = struct.unpack_from("<I", program, 16)
    commands, at = {}, 32
    for _ in range(count):
        number, size = struct.unpack_from("<II", program, at)
        commands[number] = program[at + 8 : at + size]
        at += size
    return commands


@on_host
@pytest.mark.parametrize("count", [False, True])
def test_a_kernel_builds_for_a_mac(
    count: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed, for the oldest macOS of MLX's wheels, with the lines of the kernel."""
    if not toolchain().runtime[0].endswith("zig"):
        pytest.skip("needs zig, which brings the libraries of other systems")
    monkeypatch.setattr("mlx_lm_openevolve.metalhost.toolchain._host_target", lambda: MAC)
    mac = _toolchain.__wrapped__(None)
    body = "y[thread_position_in_grid.x] = 1;\ny[0] = simd_sum(1.0f);"
    source = generate("probe", body, "", [], [("y", "float")])
    request = BuildRequest(
        source.marked("header", "probe"), source.function, (("probe", body),), utilities=True,
        count=count,
    )  # fmt: skip
    _build(request, mac, Sources({"probe": body}), tmp_path)
    commands = load_commands((tmp_path / "kernel").read_bytes())
    platform, oldest = struct.unpack_from("<II", commands[0x32])  # LC_BUILD_VERSION
    assert (platform, oldest >> 16, oldest >> 8 & 0xFF) == (1, 14, 0)
    assert 0x1D in commands  # LC_CODE_SIGNATURE
    rows = LineTable(tmp_path / "kernel.o").rows
    assert {("probe", 1), ("probe", 2)} <= {row[1:] for row in rows}


@on_host
def test_lines_of_a_mach_o_object(tmp_path: Path) -> None:
    unit = tmp_path / "unit.cpp"
    unit.write_text(
        '# 1 "kernel"\nvoid touch(int*);\nextern "C" void mh_entry() {\n  int i = 0;\n\n'
        "  touch(&i);\n}\n"
    )
    out = tmp_path / "unit.o"
    command = [*toolchain().clang, "-target", "arm64-apple-macos", "-gline-tables-only"]
    command += ["-gdwarf-4", "-O1", "-c", str(unit), "-o", str(out)]
    assert subprocess.run(command, check=False).returncode == 0
    table = LineTable(out)
    lines = {table.find(d) for d in range(4, 40, 4)}
    assert ("kernel", 5) in lines


def test_the_shim_and_the_runtime_are_ascii() -> None:
    for path in [*SHIM.glob("*.h"), *RUNTIME.iterdir()]:
        assert path.read_bytes().isascii(), path


def test_importing_metalhost_imports_no_mlx() -> None:
    code = "import sys, mlx_lm_openevolve.metalhost as m; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("/* */" * 24 + "x", ""),
        ("/* a */ " * 30_000 + "x", ""),
        ("/**/" * 60_000, ""),
        ("#define X " + "/*" * 120_000, ""),
        ("#pragma " + "/*" * 100_000, "#pragma"),
        ("#pragma unroll" + " " * 2000 + "evil", "#pragma"),
        ("\n" * 200_000, ""),
        ("\\\n" * 100_000, ""),
        ("*/" * 100_000, ""),
        ('/**/ /**/ # /**/ include "/etc/passwd"', "#include"),
        ('/* a */ b */ #include "/etc/passwd"', "#include"),
        ("#include /**/ /**/ <metal_stdlib>", ""),
    ],
)
def test_directives_are_found_in_time_that_grows_with_the_text(text: str, refused: str) -> None:
    start = time.process_time()
    findings = metalhost.check_source(text)
    assert time.process_time() - start < 2.0
    assert [f.message.split()[0] for f in findings] == ([refused] if refused else [])


@pytest.mark.parametrize(
    "text",
    [
        f'R"({chr(10) * 120_000})"',
        "\n" * 120_000,
        "long " * 24_000,
        'R"(' * 40_000,
        '"\\' * 60_000,
        "[[kernel" * 15_000,
        "[[a," * 30_000,
        "int& a,\n" * 15_000,
        "".join(f"using a{i} = int;" for i in range(8000)),
    ],
)
def test_the_rules_end_in_time_that_grows_with_the_text(text: str) -> None:
    start = time.process_time()
    lint_translated(f'# 1 "kernel"\n{text}', Sources({"kernel": text}))
    assert time.process_time() - start < 2.0
