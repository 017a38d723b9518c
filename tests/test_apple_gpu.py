"""What an Apple GPU lacks is found by running a kernel, and is the reason for which tests skip."""

from __future__ import annotations

from typing import Any

import apple_gpu
import mlx.core as mx
import pytest
import yaml
from documentation import ROOT
from probe import on_host

from mlx_lm_openevolve.metalhost import metal_kernel

PARAVIRTUAL = "Apple Paravirtual device"


def asked(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> str:
    """What is lacking on a runner's GPU with that metal_kernel."""
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda device: {"device_name": PARAVIRTUAL})
    monkeypatch.setattr(mx.fast, "metal_kernel", kernel)
    return apple_gpu.lacking.__wrapped__()


@on_host
def test_a_gpu_that_computes_the_probe_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, metal_kernel) == ""


def test_what_a_gpu_cannot_do_is_the_reason_for_skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        def call(**_: Any) -> Any:
            raise RuntimeError("[metal::Device] Unable to load kernel probe\nno simdgroup matrices")

        return call

    said = asked(monkeypatch, refused)
    assert said == (
        f"{PARAVIRTUAL} runs no bfloat16 simdgroup kernel: "
        "[metal::Device] Unable to load kernel probe no simdgroup matrices"
    )

    def zeros(*_: Any) -> Any:
        return lambda **_: [mx.zeros((8, 8), mx.bfloat16)]

    assert asked(monkeypatch, zeros).endswith("its answer is wrong")


def test_a_mac_without_a_gpu_is_named_and_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headless or virtual: MLX was built for Metal, and finds no device."""

    def absent(device: Any) -> Any:
        raise RuntimeError("[metal::load_device] No Metal device available.")

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", absent)
    said = apple_gpu.lacking.__wrapped__()
    assert said.startswith("this machine runs no bfloat16 simdgroup kernel: [metal::load_device]")
    monkeypatch.setattr(apple_gpu, "LACKING", said)
    apple_gpu.main()
    assert capsys.readouterr().out == f"left out: {said}\n"


def test_the_workflow_asks_the_gpu_first_and_shows_why_tests_are_skipped() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["macos"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert runs[0] == "make gpu"
    assert "gpu:" in (ROOT / "Makefile").read_text()
    assert "is_available" not in text
    for path in ("tests/metalhost/test_corpus.py", "tests/backends/test_metal.py"):
        (run,) = (run for run in runs if path in run)
        assert " -rs " in run
