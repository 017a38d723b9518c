"""Switches of the environment: what they take, and that what says neither is told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from mlx_lm.models import base

import mlx_lm_openevolve
from mlx_lm_openevolve import switches
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.metalhost import launch

SWITCH = "MLX_LM_OPENEVOLVE"


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "_told", set())


@pytest.mark.parametrize("name", switches.SWITCHES)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        *((text, False) for text in ("0", "off", "OFF", "False", "no", " 0 ")),
        *((text, True) for text in ("1", "on", "On", "TRUE", "yes")),
        *((text, None) for text in ("", " ", "of", "2", "disabled")),
    ],
)
def test_what_a_switch_takes(
    name: str,
    value: str,
    says: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert switches.switched(name) is None
    assert not caplog.records
    monkeypatch.setenv(name, value)
    assert [switches.switched(name) for _ in range(2)] == [says] * 2
    told = [record.getMessage() for record in caplog.records]
    ignored = says is None and value.strip() != ""
    assert told == [f"{name}={value!r} is ignored: write 0 or 1"] * ignored, "once in a process"


@pytest.mark.parametrize(
    ("value", "off"), [("off", True), ("no", True), ("of", False), ("", False)]
)
def test_every_way_into_the_package_takes_the_switch_alike(
    value: str,
    off: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(SWITCH, value)
    stock = base.scaled_dot_product_attention
    with caplog.at_level(logging.WARNING), mlx_lm_openevolve.optimizations(backend="host") as info:
        assert info["enabled"] is not off
        assert (base.scaled_dot_product_attention is stock) is off
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (attention,) = (line for line in lines if line.startswith("attention"))
    assert (f"off: {SWITCH}={value}" in attention) is off
    said = [line.split(None, 1)[1] for line in lines if line.startswith("set  ")]
    ignored = f"{SWITCH}={value!r} is ignored: write 0 or 1"
    assert (ignored if value == "of" else f"{SWITCH}={value}") in said
    words = ["bench", "--shape", "qwen3-0.6b", "--backend", "host", "--any-correct", "-g", "1"]
    assert main(words) == 2
    assert (f"{SWITCH}={value} switches off what" in capsys.readouterr().err) is off


def test_run_takes_the_switch_alike() -> None:
    words = ["-m", "mlx_lm_openevolve", "run", "--backend", "host", "-m", "mlx_lm.models.base"]
    for value, says in (("False", "stays as it is: MLX_LM_OPENEVOLVE=False"), ("of", "is ignored")):
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, SWITCH: value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert done.stderr.count(says) == 1, done.stderr


@pytest.mark.parametrize(("value", "opens"), [("1", True), ("off", False), ("please", False)])
def test_no_word_for_off_opens_the_sandbox(
    value: str, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(switches.UNSAFE, value)
    found = launch._confine(launch.Options((1, 1, 1), (1, 1, 1), 0, True, False, 1.0, 1 << 30))
    assert (found == launch.CONFINE_IF_POSSIBLE) is opens
