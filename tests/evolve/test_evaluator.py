"""The evaluator: what host checks and measurements come to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import evolve_kernels
import pytest
from samples import needs_clang

from mlx_lm_openevolve.device import Device
from mlx_lm_openevolve.errors import MachineError, OpenEvolveError
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Config
from mlx_lm_openevolve.evolve.evaluation import MACHINE, HostCheck, Measurement
from mlx_lm_openevolve.evolve.evaluator import LocalEvaluator

SLUGS = (evolve_kernels.DECODE.slug, evolve_kernels.MASKED.slug)
COUNTERS = {"moved_bytes": 1024, "least_bytes": 512, "barriers": 2}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    config = Config("host", (evolve_kernels.DECODE, evolve_kernels.MASKED), (0.5, 0.5))
    made = Archive.create(tmp_path / "run", config, {})
    made.registry.add(evolve_kernels.kernel())
    yield made
    made.close()


def candidate() -> Candidate:
    return Candidate(1, "llm", evolve_kernels.kernel().id, SLUGS)


def test_without_a_gpu_checks_become_results_and_the_time_they_took(archive: Archive) -> None:
    check = HostCheck(seconds=0.5, params={"step": 1}, margin=0.25, error=1e-3, counters=COUNTERS)
    with LocalEvaluator(archive) as evaluator:
        done = evaluator.measure(archive, candidate(), dict.fromkeys(SLUGS, check))
    assert (done.cause, done.check) == ("", 1.0)
    assert set(done.results) == set(SLUGS)
    result = done.results[SLUGS[0]]
    assert (result.ratio, result.margin, result.error) == (0, 0.25, 1e-3)
    assert (result.cost, result.score, str(result)) == (1024, 0.5, "2.00x the least bytes")
    assert str(done) == "2.00x the least bytes 2.00x the least bytes"
    assert result.counters["barriers"] == 2


def test_with_a_gpu_measurements_become_results_and_the_time_they_took(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: Any) -> dict[str, Any]:
        time.sleep(0.05)
        return Measurement("", "", {"step": 1}, 1e-5, 1.5, 1.4, 1.6, margin=0.25).to_json()

    archive.config = replace(archive.config, backend="cuda")
    with LocalEvaluator(archive) as evaluator:
        monkeypatch.setattr(evaluator._executor, "ask", answer)
        check = HostCheck(counters=COUNTERS)
        done = evaluator.measure(archive, candidate(), dict.fromkeys(SLUGS, check))
    assert done.measure >= 0.1
    result = done.results[SLUGS[0]]
    assert (result.ratio, result.low, result.margin) == (1.5, 1.4, 0.25)
    assert (result.cost, result.score, str(result)) == (1e-5, 1.5, "1.500x")
    assert result.counters["barriers"] == 2


def test_what_is_checked_is_what_the_chip_that_measures_would_run(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows = evolve_kernels.kernel().with_defaults({"step": "device_cores"}, "handwritten")
    unwhole = follows.with_defaults({"step": "1 // (device_cores - 3)"}, "handwritten")
    archive.config = replace(archive.config, backend="cuda")
    archive.device = vars(Device("cuda", "nvidia-x", "X", "sm_90", 3))
    asked: list[tuple[str, Any]] = []

    def answer(_: str, request: dict[str, Any], *__: Any) -> dict[str, Any]:
        asked.append((request["op"], request.get("params")))
        if request["op"] == "check":
            return HostCheck(params=request.get("params") or {}, counters=COUNTERS).to_json()
        return Measurement("", "", request.get("params") or {}, 1e-5, 1.5, 1.4, 1.6).to_json()

    with LocalEvaluator(archive) as evaluator:
        monkeypatch.setattr(evaluator._executor, "ask", answer)
        for kernel in (follows, unwhole):
            archive.registry.add(kernel)
            one = Candidate(1, "llm", kernel.id, SLUGS[:1])
            list(evaluator.run(archive, [one]))
    # Of none the workers say why.
    assert asked == [("check", {"step": 2}), ("measure", {"step": 2}),
                     ("check", None), ("measure", None)]  # fmt: skip


def test_one_failed_check_is_the_end_and_none_at_all_is_one_too(archive: Archive) -> None:
    checks = {SLUGS[0]: HostCheck(seconds=0.5), SLUGS[1]: HostCheck("race", "why", seconds=0.25)}
    with LocalEvaluator(archive) as evaluator:
        done = evaluator.measure(archive, candidate(), checks)
        nothing = evaluator.measure(archive, candidate(), {})
    assert (done.cause, done.finding, done.check) == ("race", f"{SLUGS[1]}: why", 0.75)
    assert nothing.cause == "static"


@needs_clang
@pytest.mark.parametrize("backend", ["metal", "host"])
def test_params_above_metals_threadgroup_memory_are_never_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    kernel = evolve_kernels.kernel(evolve_kernels.THREADGROUP_MEMORY)
    config = Config(backend, (evolve_kernels.DECODE,), (1.0,))
    archive = Archive.create(tmp_path / "run", config, {})
    archive.registry.add(kernel)
    measured: list[int] = []

    def measure_it(self: Any, archive: Any, candidate: Candidate, *_: Any) -> Measurement:
        measured.append(candidate.number)
        return Measurement("", "", {"step": 1}, 1e-5, 1.5, 1.5, 1.5)

    monkeypatch.setattr(LocalEvaluator, "_measure", measure_it)
    batch = [
        Candidate(step, "params", kernel.id, SLUGS[:1], params={"step": step}) for step in (1, 2)
    ]
    with LocalEvaluator(archive) as evaluator:
        done = dict(evaluator.run(archive, batch))
    archive.close()
    assert (done[1].cause, measured) == ("", [1])
    assert done[2].cause == "threadgroup-memory"
    assert "32784 bytes of threadgroup memory" in done[2].finding


def test_a_fault_of_the_machine_is_no_candidates(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalEvaluator(archive) as evaluator:
        full = {"cause": MACHINE, "finding": "No space left on device"}
        monkeypatch.setattr(evaluator._executor, "ask", lambda *_: full)
        with pytest.raises(MachineError, match=r"No space left on device; .* --resume"):
            list(evaluator.run(archive, [candidate()]))
    assert archive.done == {}


@pytest.mark.parametrize("cause", ["machine", "timeout", "error"])
def test_a_baseline_that_the_machine_failed_is_asked_later_and_not_left_out(
    cause: str, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.baseline.clear()
    with LocalEvaluator(archive) as evaluator:
        answer = {"cause": cause, "finding": "why"}
        monkeypatch.setattr(evaluator._executor, "ask", lambda *_: answer)
        archive.config = replace(archive.config, backend="cuda")
        with pytest.raises(OpenEvolveError) as raised:
            list(evaluator.baselines(archive))
    assert isinstance(raised.value, MachineError) == (cause != "error")
    assert ("--resume" in str(raised.value)) == (cause != "error")
    assert ("leave it out" in str(raised.value)) == (cause == "error")


@pytest.mark.parametrize(
    ("causes", "ends"), [(["timeout", "timeout"], "hang"), (["timeout", "wrong"], "wrong")]
)
def test_what_the_gpu_ends_for_its_time_is_asked_once_more(
    causes: list[str], ends: str, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"cause": cause, "finding": "why"} for cause in causes]
    with LocalEvaluator(archive) as evaluator:
        monkeypatch.setattr(evaluator._executor, "ask", lambda *_: answers.pop(0))
        archive.config = replace(archive.config, backend="cuda")
        done = evaluator.measure(archive, candidate(), {SLUGS[0]: HostCheck()})
    assert (done.cause, answers) == (ends, [])
