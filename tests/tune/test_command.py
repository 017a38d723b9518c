"""`tune`: the whole flow under the host backend, where kernels are judged right, never faster."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx_messages import MACHINES
from probe import on_host
from samples import shipped_in_metal, store_correct

import mlx_lm_openevolve
from mlx_lm_openevolve.backends.metal import fitting
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.decode.steps import ALL
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.errors import GateTimeout, MachineError
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.gate.judge import judge
from mlx_lm_openevolve.kernels.lookup import registries
from mlx_lm_openevolve.kernels.verdict import STEP, Verdict, gate_version
from mlx_lm_openevolve.ops.attention.workload import Bucket
from mlx_lm_openevolve.runtime.planner import Contender, Judges, Planner
from mlx_lm_openevolve.tune import command, decide, params, report
from mlx_lm_openevolve.tune.workloads import Use

BUCKET = Bucket(1, 4, 2, 1, 32, 64, 64, "bfloat16")


def tune(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["tune", "--backend", "host", "--json", *words])
    told = capsys.readouterr()
    return code, json.loads(told.out.splitlines()[-1]), told.err


def planner(judges: Judges | None = None) -> Planner:
    made = Judges(judge, judge) if judges is None else judges
    return Planner(detect("host"), registries(), judges=lambda: made, require_faster=False)


def test_a_model_is_tuned_once_and_then_served(
    tiny_folder: Path, tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", str(tiny_folder), "--context", "48")
    code, result, text = tune(capsys, *asked)
    assert code == 0
    rows = {row["workload"]: row for row in result["workloads"]}
    decode = [slug for slug in rows if "-lq1-" in slug]
    assert {rows[slug]["state"] for slug in decode} == {"served"}
    assert all(rows[slug]["verdict"]["correct"] for slug in decode)
    assert "0 left" in text
    # What is stored is not judged again, here or in a process that serves.
    code, again, text = tune(capsys, *asked)
    assert ", 0 of them to decide" in text
    states = [(row["workload"], row["state"]) for row in result["workloads"]]
    assert [(row["workload"], row["state"]) for row in again["workloads"]] == states
    with mlx_lm_openevolve.optimizations(backend="host", gate="stored", require_faster=False):
        import mlx.core as mx
        from mlx_lm import load
        from mlx_lm.generate import generate_step

        model = load(str(tiny_folder))[0]
        for _ in generate_step(mx.arange(33), model, max_tokens=8):
            pass
        info = mlx_lm_openevolve.get_optimization_info()["workloads"]
    served = {slug: row["hits"] for slug, row in info.items() if "-lq1-" in slug}
    assert served
    assert all(served.values())


def test_whoever_stops_keeps_what_there_is(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--model", str(tiny_folder), "--context", "32")
    calls = []

    def twice(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return judge(*args, **kwargs)

    monkeypatch.setattr(command, "judge", twice)
    code = main(["tune", "--backend", "host", *asked])
    told = capsys.readouterr()
    assert code == 130
    assert "interrupted" in told.err
    assert "1 served" in told.out
    assert "the same command goes on with what is left" in told.out
    monkeypatch.undo()


def test_a_budget_that_is_spent_says_how_to_go_on(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, text = tune(
        capsys, "--model", str(tiny_folder), "--context", "32", "--budget", "1s"
    )
    assert code == 0
    assert "goes on with what is left" in text
    assert "run serves it with --backend host --any-correct" in text
    assert {row["reason"] for row in result["workloads"]} == {"the budget was spent"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--context", "x"], "is no number of tokens"),
        (["--budget", "x"], "is no duration"),
        (["--batch", "0"], "1 to 4096 sequences"),
        (["--batch", "1,"], "write numbers of sequences"),
        (["--model", "/nowhere"], "no such folder"),
        (["--draft", "qwen3-0.6b"], "speculates for a --model"),
    ],
)
def test_a_wrong_option_is_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--backend", "host", *words]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.err.count("\n") == 1
    assert not told.out


def test_without_a_gpu_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    if detect().backend != "host":
        pytest.skip("this machine has a GPU")
    assert main(["tune"]) == 2
    assert "--backend host" in capsys.readouterr().err


def test_what_the_gate_has_no_time_for_is_left() -> None:
    def late(*args: Any, **kwargs: Any) -> Any:
        raise GateTimeout("3 s do not suffice")

    asked = planner(Judges(late, late))
    [row] = decide.decide(asked, [Use(BUCKET, 2.0)], time.monotonic() + 60)
    assert (row.state, row.reason, row.new) == (decide.LEFT, "3 s do not suffice", False)


def test_what_stock_loses_is_weighed_by_calls() -> None:
    one, two = (decide.worth(Use(BUCKET, calls), detect("host")) for calls in (1.0, 1000.0))
    assert 0 <= one < two < math.inf


def test_what_is_weighed_and_the_probe_share_what_a_small_mac_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe larger than the last-level cache alone takes 384 MiB, of the 170 that are free."""
    free, probed = 170 << 20, list[int]()
    monkeypatch.setattr(decide, "memory_for", lambda device: free)
    monkeypatch.setattr(timing, "bandwidth", lambda cache: probed.append(cache) or 1e12)
    chip = replace(detect("host"), cache=96 << 20)
    decide.worth(Use(BUCKET, 1.0), chip)
    (cache,) = probed
    assert timing._probe_bytes(cache) < free // 2
    with pytest.raises(MachineError, match="timing needs"):
        decide.worth(Use(replace(BUCKET, batch=8, kv_len=65536), 1.0), chip)


@pytest.mark.parametrize("at", ["worth", "params"])
def test_a_gpu_without_memory_ends_no_run(
    at: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise RuntimeError(MACHINES[0])

    monkeypatch.setattr(timing.Arm, "seconds", full)
    if at == "worth":
        monkeypatch.setattr(decide.timing, "bandwidth", lambda cache: 1e12)
        with pytest.raises(MachineError, match="Insufficient Memory"):
            decide.worth(Use(BUCKET, 1.0), detect("host"))
        return
    asked = planner()
    kernel = next(k for r in registries() for k in r.kernels() if k.name == "gqa_decode")
    store_correct(home, kernel, [BUCKET])
    row = decide.stored(asked, Use(BUCKET, 1.0))
    assert row is not None
    monkeypatch.setattr(params, "fastest", full)
    assert params.better(asked, row, time.monotonic() + 9) is None


def test_settings_are_drawn_near_first_and_may_be_launched() -> None:
    kernel = next(k for r in registries() for k in r.kernels() if k.name == "gqa_decode")
    first = kernel.default_params(BUCKET)
    drawn = list(params.settings(kernel, BUCKET, first, 0))
    assert drawn == list(params.settings(kernel, BUCKET, first, 0))
    assert first not in drawn
    assert len({tuple(p.items()) for p in drawn}) == len(drawn)
    apart = [sum(p[name] != first[name] for name in first) for p in drawn]
    near = next((i for i, n in enumerate(apart) if n != 1), len(apart))
    assert near > 1
    assert set(apart[:near]) == {1}
    for setting in drawn[:8]:
        kernel.launches(BUCKET.largest(), setting)


def test_the_clock_finds_a_setting_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planner()
    kernel = next(k for r in registries() for k in r.kernels() if k.name == "gqa_decode")
    first = kernel.default_params(BUCKET)
    good = next(params.settings(kernel, BUCKET, first, 0))
    tried: list[dict[str, int]] = []

    class Arm:
        def __init__(self, inputs: Any, setting: Any) -> None:
            self.seconds_ = 0.5 if setting == good else 1.0

        def seconds(self, calls: int) -> float:
            return self.seconds_

    class Backend:
        @staticmethod
        def build(kernel: Any, setting: dict[str, int], exact: Any) -> dict[str, int]:
            tried.append(setting)
            return setting

    monkeypatch.setattr(params.timing, "Arm", Arm)
    monkeypatch.setattr(params.backends, "get", lambda name: Backend)
    found = params.fastest(asked, Contender(kernel, first, True), BUCKET, time.monotonic() + 5)
    assert found is not None
    assert dict(found.params) == good
    assert len(tried) > 2


@on_host
@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_settings_that_metal_has_no_threadgroup_memory_for_are_not_tried(backend: str) -> None:
    wide = Bucket(1, 16, 8, 32, 1024, 256, 256, "float32", "causal")
    tiles = next(k for k in shipped_in_metal() if k.name == "tiles")
    asked = planner()
    asked.device = replace(asked.device, backend=backend)
    own = Contender(tiles, tiles.default_params(wide), True)
    offered = list(params.settings(tiles, wide, own.params, 0))
    tried = list(params._launchable(asked, own, wide))
    large = {"tiles": 1, "row_groups": 4, "keys": 32, "key_groups": 1, "splits": 1}
    assert fitting(tiles, wide, [large]) == []
    assert fitting(tiles, wide, [{**large, "keys": 8}]) == [{**large, "keys": 8}]
    if backend == "cuda":
        assert tried == offered
    else:
        assert tried == fitting(tiles, wide, offered)
        assert 0 < len(tried) < len(offered)


def test_a_report_says_what_changes_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "power", lambda: "battery")
    assert any("battery" in line for line in report.conditions(detect("host")))
    monkeypatch.setattr(report, "power", lambda: "mains")
    assert not any("battery" in line for line in report.conditions(detect("host")))


def test_a_report_holds_chip_verdicts_and_tokens_a_second(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "PROMPT", 8)
    monkeypatch.setattr(report, "GENERATED", 4)
    monkeypatch.setattr(report, "BLOCKS", 1)
    file = tmp_path / "report.json"
    code, _, _ = tune(capsys, "--model", str(tiny_folder), "--context", "32", "--report", str(file))
    written = json.loads(file.read_text())
    assert code == 0
    assert written["machine"]["device"]
    assert written["date"]
    assert written["bench"]["ratio"] > 0
    assert set(written["bench"]["averages"]) == {
        "stock",
        "patched",
    }
    assert any(row["verdict"] and row["verdict"]["correct"] for row in written["workloads"])


def test_whole_steps_are_judged_once(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU, and where steps are switched on; here it is one by name alone."""
    gpu, asked = replace(detect("host"), backend="cuda"), []

    def judged(model: Any, batch: int, device: Any, seconds: float, what: str) -> Verdict:
        asked.append((batch, what, seconds <= 12))
        name = slug(structure(model), batch)
        stamp = fingerprint(device, gate_version(STEP))
        timed = {"ratio": 1.2, "low": 1.1, "high": 1.3}
        return Verdict(what, {}, name, True, True, "faster", stamp, timing=timed, kind=STEP)

    monkeypatch.setattr(command, "detect", lambda backend=None: gpu)
    monkeypatch.setattr("mlx_lm_openevolve.tune.steps.judge", judged)
    words = ["tune", "--model", str(tiny_folder), "--ops", "step", "--batch", "1,3", "--json"]
    for _ in range(2):
        assert main(words) == 0
        steps = json.loads(capsys.readouterr().out.splitlines()[-1])["steps"]
        assert [row["workload"].split("-")[1] for row in steps] == ["b1", "b4"]
        assert {row["verdict"]["status"] for row in steps} == {"accepted"}
        assert asked == [(1, ALL, True), (4, ALL, True)]
    assert (
        main([*words[:3], "--ops", "attention", "--context", "8", "--budget", "1s", "--json"]) == 0
    )
    assert len(asked) == 2
