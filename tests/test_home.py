"""A home that is a file, or cannot be written: one clear line everywhere, and calls run on MLX."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache
from probe import on_host

import mlx_lm_openevolve
from mlx_lm_openevolve import cache, home
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.errors import MachineError
from mlx_lm_openevolve.kernels import registry as registries


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "afile"
    path.write_text("")
    monkeypatch.setenv(home.HOME, str(path))
    monkeypatch.setattr(registries, "_told", set())
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["show", "gqa_decode"],
        ["clear"],
        ["clear", "--cache"],
        ["tune", "--backend", "host"],
        ["export", "--device", "nvidia-h200", "x.json"],
        ["import", "x.json"],
        ["check", "gqa_decode"],
        ["evolve", "--backend", "host"],
        ["bench", "--shape", "qwen3-4b", "--backend", "host", "--any-correct"],
    ],
)
def test_a_home_that_is_a_file_is_one_line(
    words: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    line = f"mlx-lm-openevolve: {file} is a file, not a folder ({home.HOME})\n"
    assert capsys.readouterr() == ("", line)


def test_status_says_what_is_wrong_with_a_home(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def problems(path: Path) -> list[str]:
        monkeypatch.setenv(home.HOME, str(path))
        assert main(["status", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert main(["status"]) == 0
        lines = {line[:10].strip(): line for line in capsys.readouterr().out.splitlines()}
        found = [
            facts["registries"][0]["problem"],
            *(facts[k]["problem"] for k in ("cache", "runs")),
        ]
        for said, key in zip(found, ("user", "cache", "runs"), strict=True):
            assert lines[key].endswith(said)
        assert facts["registries"][1]["problem"] == "", "nobody writes to what ships"
        return found

    says = f"{file} is a file, not a folder ({home.HOME})"
    assert problems(file) == problems(file / "deeper") == [says] * 3
    assert problems(file.parent / "new") == [""] * 3
    closed = file.parent / "closed"
    closed.mkdir()
    allowed = os.access  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != closed and allowed(p, mode))
    assert problems(closed) == [f"{closed} cannot be written ({home.HOME})"] * 3


@on_host
def test_calls_run_on_mlx_where_the_home_is_a_file(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x, keys = mx.ones((1, 2, 1, 64), mx.bfloat16), mx.ones((1, 2, 64, 64), mx.bfloat16)
    with (
        caplog.at_level(logging.WARNING),
        mlx_lm_openevolve.optimizations(backend="host", require_faster=False),
    ):
        base.scaled_dot_product_attention(x, keys, keys, KVCache(), 1.0, None)
        (row,) = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    says = f"{file} is a file, not a folder ({home.HOME})"
    assert (row["kernel"], says in row["reason"]) == (None, True)
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith(says)] == [
        f"{says}: calls run on MLX's own"
    ]


def test_a_store_that_cannot_be_written_names_no_temporary_file(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder / "kernel.cpp"))

    store = cache.Store(tmp_path)
    with pytest.raises(MachineError) as raised:
        store.get("ab" * 16, build)
    assert str(raised.value) == f"{tmp_path}: No space left on device"
