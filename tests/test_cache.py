"""Nothing of the cache's or the compiler's making is a kernel's fault."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from probe import launch, messages, on_host, only

from mlx_lm_openevolve.cache import MANIFEST, _digests, intact
from mlx_lm_openevolve.errors import MachineError
from mlx_lm_openevolve.metalhost import build
from mlx_lm_openevolve.metalhost.build import BuildRequest, _compile
from mlx_lm_openevolve.metalhost.toolchain import toolchain


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("no folder")


DAMAGES = (remove, truncate, overwrite, empty, replace_folder)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which everything was built once."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LM_OPENEVOLVE_HOME", str(home))
        build._built.cache_clear()
        assert probe(1) == [1.0] * 32
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in use."""
    shutil.copytree(filled, tmp_path / "home", symlinks=True)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(tmp_path / "home"))
    build._built.cache_clear()
    return tmp_path / "home"


def probe(value: int) -> list[float]:
    done = launch(f"y[thread_position_in_grid.x] = {value};")
    assert done.ok, messages(done)
    values: list[float] = done.outputs[0].tolist()
    return values


def damage_all(home: Path, name: str, damage: Callable[[Path], None]) -> None:
    paths = [p for p in (home / "cache" / "metalhost").glob(f"??/*/{name}") if p.is_file()]
    assert paths, name
    for path in paths:
        damage(path)


SAMPLE = {
    *("kernel remove", "kernel overwrite", "program.json truncate", "contents.json empty"),
    *("shim.pch overwrite", "runtime.o truncate", "metal_stdlib remove", "kernel replace_folder"),
}


def damages(*names: str) -> list[object]:
    """(file, damage) of every kind; those outside a sample are marked slow."""
    return [
        pytest.param(
            name,
            damage,
            id=f"{name} {damage.__name__}",
            marks=() if f"{name} {damage.__name__}" in SAMPLE else pytest.mark.slow,
        )
        for name in names
        for damage in DAMAGES
    ]


@on_host
@pytest.mark.parametrize(("name", "damage"), damages("kernel", "program.json", "contents.json"))
@pytest.mark.parametrize("known", [True, False], ids=["in this process", "from disk"])
def test_a_damaged_entry_is_built_again(
    name: str, damage: Callable[[Path], None], known: bool, home: Path
) -> None:
    if known:
        assert probe(1) == [1.0] * 32
    damage_all(home, name, damage)
    assert probe(1) == [1.0] * 32


@on_host
@pytest.mark.parametrize(("name", "damage"), damages("shim.pch", "runtime.o", "metal_stdlib"))
def test_a_damaged_part_of_the_compiler_is_built_again(
    name: str, damage: Callable[[Path], None], home: Path
) -> None:
    damage_all(home, name, damage)
    done = launch("y[thread_position_in_grid.x] = 2;", header="#include <metal_stdlib>\n")
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == [2.0] * 32


@on_host
def test_a_header_that_clang_finds_stale_is_built_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim changes under a running process, as in an upgrade: the key is the old one."""
    shim = tmp_path / "shim"
    shutil.copytree(build.SHIM, shim)
    shutil.copytree(build.SHIM.parent / "runtime", tmp_path / "runtime")
    for module in ("build", "objects", "diagnostics"):
        monkeypatch.setattr(f"mlx_lm_openevolve.metalhost.{module}.SHIM", shim)
    assert probe(3) == [3.0] * 32
    header = shim / "atomics.h"
    header.write_text(header.read_text() + "// one more line\n")
    assert probe(4) == [4.0] * 32


@on_host
def test_an_entry_without_its_program_is_no_clean_launch(home: Path) -> None:
    """Even where its list of files agrees: nothing was run, so nothing can be said of it."""
    [folder] = {p.parent for p in (home / "cache" / "metalhost").glob("??/*/program.json")}
    (folder / "kernel").unlink()
    (folder / MANIFEST).write_text(json.dumps(_digests(folder)))
    assert intact(folder)
    assert probe(1) == [1.0] * 32


@on_host
def test_a_store_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match="MLX_LM_OPENEVOLVE_HOME"):
        launch("y[thread_position_in_grid.x] = 5;")


FAILURES = {
    "crash": ("kill -SEGV $$", "SIGSEGV"),
    "abort": ("echo 'LLVM ERROR: out of luck' >&2; kill -ABRT $$", "SIGABRT"),
    "crash in a driver": ("echo 'Stack dump:' >&2; exit 1", "crashed"),
    "crash behind a shell": ("exit 139", "139"),
    "internal error": ("echo 'error: internal' >&2; exit 70", "70"),
    "silence": ("exit 1", "said nothing"),
    "no line of a source": ("echo 'error: no temporary file' >&2; exit 1", "no temporary file"),
    "no permission": ("echo 'error: cannot open: Permission denied' >&2; exit 1", "Permission"),
    "killed": ("kill -KILL $$", "SIGKILL"),
    "hang": ("sleep 60", "took more than"),
}
CASES = [
    pytest.param(script, words, step, id=f"{name} {step}")
    for name, (script, words) in FAILURES.items()
    for step in ("-E", "-c", "-ast-dump")
    if step == "-c" or name in ("crash", "silence", "no line of a source")
]


@pytest.fixture(scope="module")
def compiler(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clang of the user's own, here the same one behind a script, which does beforehand what the
    file `broken` beside it says. The shim and the runtime are there that it has built."""
    tools = toolchain()
    tool = tools.clang[0]
    if not tool.endswith("zig"):
        pytest.skip("a clang of the user's own is in use already")
    script = tmp_path_factory.mktemp("compiler") / "clang++"
    broken = script.parent / "broken"
    script.write_text(
        f'#!/bin/sh\nif [ -e "{broken}" ]; then . "{broken}"; fi\n'
        'case " $* " in *-nostdinc*|*" -x ir "*|*--version*) '
        f'exec "{tool}" clang "$@";;\n'
        f'*" -lm "*) exec {" ".join(tools.link)} "$1" "$2" "-femit-bin=$4";; esac\n'
        f'exec "{tool}" c++ "$@"\n'
    )
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_LM_OPENEVOLVE_HOME", str(filled))
        patch.setenv("MLX_LM_OPENEVOLVE_CXX", str(script))
        assert probe(7) == [7.0] * 32
    return script


@on_host
@pytest.mark.parametrize(("script", "words", "step"), CASES)
def test_a_compiler_that_fails_by_itself_rejects_no_kernel(
    script: str, words: str, step: str, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", str(compiler))
    body = f"y[thread_position_in_grid.x] = 6; // {os.urandom(4).hex()}"
    assert probe(7) == [7.0] * 32
    broken = compiler.parent / "broken"
    broken.write_text(f'case " $* " in *" {step} "*) {script};; esac\n')
    try:
        with monkeypatch.context() as patch:
            seconds = 0.5 if "sleep" in script else 2.0  # three waits for one that hangs
            patch.setattr("mlx_lm_openevolve.metalhost.toolchain.TIMEOUT", seconds)
            with pytest.raises(MachineError, match=words):
                launch(body)
    finally:
        broken.unlink()
    assert launch(body).ok


@on_host
@pytest.mark.parametrize("script", ["kill -SEGV $$", "sleep 60", "exit 139"])
def test_a_compiler_that_fails_on_one_source_rejects_it(
    script: str, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, while it compiles another."""
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", str(compiler))
    mark = f"bomb_{os.urandom(4).hex()}"
    assert probe(7) == [7.0] * 32
    broken = compiler.parent / "broken"
    compiled: list[str] = []

    def noted(request: BuildRequest, *rest: Any) -> Any:
        compiled.append(request.function)
        return _compile(request, *rest)

    broken.write_text(
        'for word; do case "$word" in */kernel.metal) '
        f'if grep -q {mark} "$word"; then {script}; fi;; esac; done\n'
    )
    body = f"const float {mark} = 6; y[thread_position_in_grid.x] = {mark};"
    try:
        with monkeypatch.context() as patch:
            patch.setattr("mlx_lm_openevolve.metalhost.toolchain.TIMEOUT", 2.0)
            patch.setattr("mlx_lm_openevolve.metalhost.build._compile", noted)
            done = launch(body)
    finally:
        broken.unlink()
    assert "with this source" in only(done, "compile").message
    assert len(compiled) == 3
    assert compiled[0] == compiled[1] != compiled[2]


@on_host
def test_a_source_that_breaks_clang_is_to_blame() -> None:
    done = launch(f"y[thread_position_in_grid.x] = {'-~' * 60_000}1; // {os.urandom(4).hex()}")
    only(done, "compile")
