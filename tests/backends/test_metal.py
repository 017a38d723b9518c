"""The Metal backend: on a Mac, the host's results against the GPU's, and the gate on the GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import constructed
import mlx.core as mx
import mlx_kernels
import numpy as np
import pytest
from apple_gpu import on_metal
from documentation import ROOT
from samples import shipped_in_metal

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.errors import BackendError
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.gate.correctness import Calls
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention import OP, Workload
from mlx_lm_openevolve.ops.attention.reference.question import (
    AttentionQuestion,
    as_float32,
    relative,
)
from mlx_lm_openevolve.runtime.api import SUPPORTED

HOST = backends.get("host").unavailable()
needs_compiler = pytest.mark.skipif(bool(HOST), reason=f"no compiler for metalhost: {HOST}")
SMALL = Workload(1, 4, 2, 1, 64, 64, 64, "bfloat16")


def checked() -> list[Any]:
    """(kernel, params, small workload) of every host check that ships: what was found right on
    the CPU has to be right on a GPU."""
    tuned, found = Registry(tuned_root(), writable=False), []
    for kernel in shipped_in_metal():
        for record in tuned.host_checks(kernel.id):
            name = f"{kernel.name}-{record['on']}"
            found.append(pytest.param(kernel, record["params"], record["on"], id=name))
    return found


def difference(kernel: Kernel, params: dict[str, int], on: str, backend: str) -> str:
    """Where a backend's answers are wrong, or further from the host's than both may err; "" where
    they are neither."""
    small = ops.parse(on).bucket()
    host = Calls(lambda exact: backends.get("host").build(kernel, params, exact))
    other = Calls(lambda exact: backends.get(backend).build(kernel, params, exact))
    for case in itertools.islice(ops.of(small).questions.cases(small, 0), 4):
        question = case()
        for name, calls in (("host", host), (backend, other)):
            outcome = calls(question)
            if outcome.reason:
                return f"{name}: {outcome.reason}"
        if not isinstance(question, AttentionQuestion):  # what both may err is judged already
            continue
        one, two = (
            as_float32(
                backends.get(name).build(kernel, params, question.workload)(*question.arguments)
            )
            for name in ("host", backend)
        )
        live = ~question.case.dead_rows()
        off = relative(one, two, question.mass)[live]
        if off.max() > 2 * question.limits[0]:
            return f"{question.name}: host and {backend} differ by {off.max():.3g}"
    return ""


@on_metal
@needs_compiler
@pytest.mark.parametrize(("kernel", "params", "on"), checked())
def test_the_gpu_agrees_with_the_host(kernel: Kernel, params: dict[str, int], on: str) -> None:
    assert difference(kernel, params, on, "metal") == ""


@on_metal
@pytest.mark.parametrize("kernel", shipped_in_metal(), ids=lambda kernel: kernel.name)
def test_the_gate_finds_shipped_kernels_right_on_the_gpu(kernel: Kernel) -> None:
    records = Registry(tuned_root(), writable=False).host_checks(kernel.id)
    bucket = ops.parse(records[0]["workload"])
    params = kernel.default_params(bucket)
    verdict = gate.judge(kernel, params, bucket, "metal", seconds=120, speed=False)
    assert verdict.correct, verdict.reason
    assert verdict.fingerprint["device"].startswith("apple")


@on_metal
def test_the_gate_refuses_a_broken_kernel_on_the_gpu() -> None:
    kernel = broken()
    params = kernel.default_params(SMALL)
    verdict = gate.judge_in_worker(kernel, params, SMALL, "metal", seconds=120)
    assert not verdict.correct


def broken() -> Kernel:
    """A shipped kernel that leaves out the last key."""
    kernel = next(k for k in shipped_in_metal() if k.applies_to(SMALL))
    sources = {
        file: source.replace("keys_shape[2]", "(keys_shape[2] - 1)")
        for file, source in kernel.sources.items()
    }
    return Kernel.from_parts({**kernel.meta, "name": "broken"}, sources)


@needs_compiler
def test_what_differs_would_be_seen() -> None:
    kernel = broken()
    params = kernel.default_params(SMALL)
    assert "host: needles" in difference(kernel, params, SMALL.slug, "host")
    right = next(k for k in shipped_in_metal() if k.applies_to(SMALL))
    assert difference(right, params, SMALL.slug, "host") == ""


def test_there_is_something_to_compare() -> None:
    assert len(checked()) > 10


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has a Metal GPU")
def test_without_a_metal_gpu_it_says_so() -> None:
    kernel = next(k for k in shipped_in_metal() if k.applies_to(SMALL))
    assert "no Metal GPU" in backends.get("metal").unavailable()
    with pytest.raises(BackendError, match="no Metal GPU"):
        backends.get("metal").build(kernel, kernel.default_params(SMALL), SMALL)


@pytest.mark.parametrize(
    ("version", "refused"), [("0.31.2", True), ("0.32.0", False), ("1.0", False)]
)
def test_an_mlx_that_takes_no_compile_options_is_refused_on_every_road(
    version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """check, evolve, bench and the gate ask `unavailable`; enabling asks the versions before."""
    metal = backends.get("metal")
    kernel = next(k for k in shipped_in_metal() if k.applies_to(SMALL))
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(metal, "version_of", lambda package: version)
    said = f"mlx {version} is older than 0.32" if refused else ""
    assert metal.unavailable() == said
    if refused:
        for ask in (
            lambda: backends.require(kernel, "metal"),
            lambda: metal.build(kernel, kernel.default_params(SMALL), SMALL),
            lambda: gate.judge(kernel, kernel.default_params(SMALL), SMALL, "metal", seconds=1),
        ):
            with pytest.raises(BackendError, match=r"older than 0\.32"):
                ask()
    assert SUPPORTED["mlx"] == metal._OLDEST


@pytest.mark.skipif(mx.metal.is_available(), reason="with Metal the calls would run")
def test_mlx_takes_every_shipped_launch_as_the_backend_gives_it() -> None:
    """The newest MLX that is supported: the one that is installed."""
    ends = constructed.constructed()
    assert len(ends) > 80
    assert set(ends) == {constructed.TAKEN}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs MLX's wheels for Linux: without Metal")
@pytest.mark.parametrize(("version", "taken"), [("0.32.0", True), ("0.31.2", False)])
def test_the_oldest_mlx_that_macos_may_have_takes_them_too(
    version: str, taken: bool, tmp_path: Path
) -> None:
    """The release before takes no compile_options, which is why it is not supported there."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--target", str(tmp_path), f"mlx=={version}", f"mlx-cpu=={version}"]
    got = subprocess.run(command, capture_output=True, text=True, check=False)
    if got.returncode:
        mlx_kernels.skip_offline("pypi.org")
        pytest.fail(got.stderr)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "constructed.py")],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if taken:
        said = done.stdout.splitlines()
        assert said[:2] == [version, version], done.stderr
        assert int(said[2]) == len(constructed.constructed())
        assert said[3:] == [constructed.TAKEN]
    else:
        assert "compile_options" in done.stderr


def test_metal_kernel_is_asked_as_mlx_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are not copied, the grid counts threads, and the math mode is the stage's."""
    asked: list[dict[str, Any]] = []

    def metal_kernel(**made: Any) -> Any:
        def function(**call: Any) -> list[mx.array]:
            asked.append({**made, **call})
            shapes = zip(call["output_shapes"], call["output_dtypes"], strict=True)
            return [mx.zeros(shape, dtype) for shape, dtype in shapes]

        return function

    metal = backends.get("metal")
    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    monkeypatch.setattr(metal, "unavailable", lambda: "")
    kernel = next(k for k in shipped_in_metal() if k.applies_to(SMALL))
    params = kernel.default_params(SMALL)
    question = next(OP.questions.cases(SMALL, 0))()
    metal.build(kernel, params, question.case.workload)(*question.arguments)
    launches = kernel.launches(question.case.workload, params)
    assert len(asked) == len(launches)
    for got, launch in zip(asked, launches, strict=True):
        assert got["ensure_row_contiguous"] is False
        assert got["compile_options"] == {"math_mode": launch.spec.math_mode}
        assert (got["grid"], got["threadgroup"]) == (launch.grid, launch.threadgroup)
        assert got["source"] == launch.spec.source
        assert np.all([dict(got["template"])[name] is not None for name, _ in launch.template])
