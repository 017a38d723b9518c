"""`tune`: the whole flow under the host backend, where kernels are judged right, never faster."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_messages import MACHINES
from probe import on_host
from samples import shipped_in_metal, store_correct, timed

import mlx_lm_openevolve
from mlx_lm_openevolve.backends.metal import fitting
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.errors import GateTimeout, MachineError, RegistryError
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.gate.judge import judge
from mlx_lm_openevolve.kernels.lookup import registries
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import ALL, STEP, Verdict, gate_version
from mlx_lm_openevolve.ops.attention.workload import Bucket
from mlx_lm_openevolve.runtime import families
from mlx_lm_openevolve.runtime.planner import Contender, Judges, Planner
from mlx_lm_openevolve.tune import command, decide, params, report, steps
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
    asked = ("--model", str(tiny_folder), "--context", "32")
    code, result, text = tune(capsys, *asked)
    assert code == 0
    rows = {row["workload"]: row for row in result["workloads"]}
    decode = [slug for slug in rows if "-lq1-" in slug]
    assert {rows[slug]["state"] for slug in decode} == {"served"}
    assert all(rows[slug]["verdict"]["correct"] for slug in decode)
    assert "0 left" in text
    assert "`run --backend host --any-correct` serves it" in text
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
        for _ in generate_step(mx.arange(17), model, max_tokens=8):
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
    assert "1 correct, 0 rejected" in told.out
    assert "not reached" in told.out
    assert "budget" not in told.out
    assert "the same command goes on with what is left" in told.out
    monkeypatch.undo()


def test_what_could_not_be_stored_is_said_in_the_last_line(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Registry, device: str, verdict: Verdict) -> None:
        raise RegistryError("/home: No space left on device")

    monkeypatch.setattr(Registry, "publish", full)
    code = main(["tune", "--backend", "host", "--model", str(tiny_folder), "--context", "8"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert code == 0
    assert "verdicts could not be stored, and serve nobody: /home: No space left" in last


def test_a_budget_that_is_spent_says_how_to_go_on(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, text = tune(
        capsys, "--model", str(tiny_folder), "--context", "32", "--budget", "1s"
    )
    assert code == 0
    assert "goes on with what is left" in text
    assert {row["reason"] for row in result["workloads"]} == {"the budget was spent"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--context", "x"], "is no number of tokens"),
        (["--budget", "x"], "is no duration"),
        (["--batch", "0"], "1 to 4096 sequences"),
        (["--batch", "1,"], "write numbers of sequences"),
        (["--budget", "2minutes"], "is no duration"),
        (["--budget", "0"], "is no duration"),
        (["--ops", "linear,atention"], "'atention' is none of attention, linear, step"),
        (["--model", "/nowhere"], "no such folder"),
        (["--draft", "qwen3-0.6b"], "speculates for a --model"),
        (["--report", "/nowhere/chip.json"], "no file can be written there"),
    ],
)
def test_a_wrong_option_is_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["tune", "--backend", "host", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr()
    assert code == 2
    assert says in told.err
    assert words[0] in told.err
    assert told.err.count("\n") == 1
    assert not told.out


@pytest.mark.parametrize(
    "words",
    [["--budget", "0"], ["--ops", "atention"], ["--context", "x"], ["--model", "/nowhere"]],
)
def test_a_wrong_option_is_refused_before_mlx_is_loaded(words: list[str]) -> None:
    """Nor is a GPU asked for: it stands before the line that none is there."""
    text = f"import sys; sys.modules['mlx'] = None; sys.argv = {['x', 'tune', *words]};"
    text += "from mlx_lm_openevolve.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words[0] in done.stderr
    assert "MLX" not in done.stderr


def test_no_report_is_made_where_all_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE", "0")
    assert main(["tune", "--backend", "host", "--report", str(tmp_path / "chip.json")]) == 2
    assert "MLX_LM_OPENEVOLVE=0 switches off" in capsys.readouterr().err


def test_a_home_that_takes_no_verdict_is_told_before_any_is_made(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(command, "tuned", lambda *_: 1 / 0)
    words = ["--model", str(tiny_folder), "--context", "8", "--ops", "attention"]
    assert main(["tune", "--backend", "host", *words]) == 2
    told = capsys.readouterr()
    assert f"{tmp_path / 'file'} is a file, not a folder" in told.err
    assert told.err.count("\n") == 1


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


@pytest.mark.parametrize("standing", [1.6, 1.4])
def test_params_serve_where_turns_prove_them_faster(
    home: Path, monkeypatch: pytest.MonkeyPatch, standing: float
) -> None:
    """The clock found them, and MLX's own took twice their time: that is no proof."""
    kernel = next(k for r in registries() for k in r.kernels() if k.name == "gqa_decode")
    first = kernel.default_params(BUCKET)
    other = next(params.settings(kernel, BUCKET, first, 0))
    rivals = []

    def judged(kernel: Any, given: Any, bucket: Any, backend: str, **options: Any) -> Verdict:
        rivals.append(options["rival"])
        stamp, beside = fingerprint(GPU, gate_version(bucket.op)), {"standing": standing}
        times = timed(1.5) if given == first else {**timed(2.0), "beside": beside}
        return Verdict(kernel.id, given, bucket.slug, True, True, "", stamp, timing=times)

    monkeypatch.setattr(params, "fastest", lambda *_: Contender(kernel, other, True))
    judges = Judges(judged, judged)
    asked = Planner(GPU, registries(), judges=lambda: judges)
    known = asked.judge(Contender(kernel, first, True), BUCKET, 6.0)
    row = decide.Row(Use(BUCKET, 1.0), decide.SERVED, "", known, True)
    found = params.better(asked, row, time.monotonic() + 9)
    assert rivals == [None, (kernel, known)]
    assert (found is not None) == (standing > known.standing)
    plan = Planner(GPU, registries()).stored(BUCKET)
    assert plan is not None
    assert plan.verdict == (found.verdict if found else known)


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


@pytest.mark.usefixtures("at_hand")
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


GPU = replace(detect("host"), backend="cuda")  # by name alone


def step_accepted(model: Any, batch: int, what: str) -> Verdict:
    stamp, took = fingerprint(GPU, gate_version(STEP)), {"ratio": 1.2, "low": 1.1, "high": 1.3}
    name = slug(structure(model), batch)
    return Verdict(what, {}, name, True, True, "faster", stamp, timing=took, kind=STEP)


def test_whole_steps_are_judged_once(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU, and where steps are switched on; here it is one by name alone."""
    asked = []

    def judged(model: Any, batch: int, device: Any, seconds: float, what: str) -> Verdict:
        asked.append((batch, what, seconds <= 12))
        return step_accepted(model, batch, what)

    monkeypatch.setattr(command, "detect", lambda backend=None: GPU)
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
    capsys.readouterr()
    assert main([*words[:5], "--batch", "8", "--budget", "1s"]) == 0
    assert "the same command goes on with what is left" in capsys.readouterr().out
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("ops", "variable", "says"),
    [
        ("step", "", "step: whole steps are judged on a GPU alone"),
        ("linear", "", "linear: no call that it could serve is made here"),
        ("attention", "linear", "no family is named by --ops attention"),
    ],
)
def test_why_nothing_is_to_be_decided_is_said(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ops: str,
    variable: str,
    says: str,
) -> None:
    monkeypatch.setenv(families.OPS, variable)
    words = ["--model", str(tiny_folder), "--context", "8", "--ops", ops]
    code = main(["tune", "--backend", "host", *words])
    told = capsys.readouterr()
    assert says in told.out + told.err
    assert code == (2 if variable else 0)


def test_a_model_that_leaves_no_memory_is_not_compared(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = planner()
    monkeypatch.setattr("mlx_lm_openevolve.tune.steps.judge", lambda *_: 1 / 0)
    weights = sum(a.nbytes for _, a in tree_flatten(tiny_model.parameters()))
    monkeypatch.setattr("mlx_lm_openevolve.tune.steps.free_memory", lambda _: int(1.2 * weights))
    asked.device = replace(GPU, memory=1 << 33)
    (row,) = steps.decide_steps(tiny_model, 1, asked, time.monotonic() + 60)
    assert (row.verdict, "leave too little memory" in row.reason) == (None, True)
    monkeypatch.setattr("mlx_lm_openevolve.tune.steps.free_memory", lambda _: 2 * weights)
    with pytest.raises(ZeroDivisionError):
        steps.decide_steps(tiny_model, 1, asked, time.monotonic() + 60)


class Clock:
    """Stands in for `time`: what is judged takes as long as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_queues_take_turns_by_the_time_that_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(command, "time", clock)

    def queue(name: str, *seconds: float) -> Iterator[str]:
        for took in seconds:
            clock.now += took
            yield name

    queues = {"a": queue("a", 1, 1, 1, 1), "b": queue("b", 3, 1), "c": queue("c")}
    assert "".join(command.in_turns(queues)) == "abaaab"


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> tuple[Clock, list[str]]:
    """A GPU by name, a clock, and what it was asked: all is accepted there. A call of attention
    takes 4 s, a product 10 s, a step 20 s, to measure what stock loses 0.5 s; it grows with the
    rows."""
    clock, asked = Clock(), []
    nn.quantize(tiny_model, group_size=64, bits=4)
    tiny_model.eval()

    def judged(kernel: Any, params: Any, bucket: Any, backend: str, **_: Any) -> Verdict:
        asked.append(bucket.slug)
        clock.now += 4.0 if bucket.op == "attention" else 10.0
        stamp = fingerprint(GPU, gate_version(bucket.op))
        return Verdict(
            kernel.id, params, bucket.slug, True, True, "faster", stamp, timing=timed(1.5)
        )

    def worth(use: Use, device: Any) -> float:
        clock.now += 0.5
        return float(use.bucket.moved_bytes() * use.calls)

    def stepped(model: Any, batch: int, device: Any, seconds: float, what: str) -> Verdict:
        asked.append(f"step-b{batch}")
        clock.now += 20.0
        return step_accepted(model, batch, what)

    for module in (command, decide, steps):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(command, "detect", lambda backend=None: GPU)
    monkeypatch.setattr(command, "load", lambda name, bits="": tiny_model)
    monkeypatch.setattr(command, "judge", judged)
    monkeypatch.setattr(command, "judge_in_worker", judged)
    monkeypatch.setattr(steps, "judge", stepped)
    monkeypatch.setattr(decide, "worth", worth)
    monkeypatch.setattr(params, "better", lambda *_: None)
    return clock, asked


def test_a_plain_run_decides_what_a_plain_enable_uses(
    chip: tuple[Clock, list[str]], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, asked = chip
    words = ["tune", "--shape", "qwen3-0.6b", "--context", "64", "--json", "--budget"]
    assert main([*words, "1h"]) == 0
    assert {slug.partition("-")[0] for slug in asked} == {"attention", "linear", "step"}
    chosen = families.choose(families.named(), Planner(GPU, registries()))
    assert chosen == (["attention", "linear", "step"], ["linear", "step"], {})
    capsys.readouterr()
    done = len(asked)
    assert main([*words, "1h"]) == 0
    assert len(asked) == done, "what is decided is not judged again"


@pytest.mark.parametrize(
    ("how", "only"),
    [("--ops", "linear"), ("--ops", "step"), ("variable", "attention"), ("variable", "linear")],
)
def test_families_narrow_what_is_decided(
    chip: tuple[Clock, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    only: str,
) -> None:
    words = ["tune", "--shape", "qwen3-0.6b", "--context", "32", "--json"]
    if how == "--ops":
        words += [how, only]
    else:
        monkeypatch.setenv(families.OPS, only)
    assert main(words) == 0
    assert {slug.partition("-")[0] for slug in chip[1]} == {only}


def test_a_small_budget_decides_one_sequence_first_and_starves_no_family(
    chip: tuple[Clock, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    clock, asked = chip
    words = ["tune", "--shape", "qwen3-0.6b", "--context", "1k", "--batch", "1,4,8", "--json"]
    assert main([*words, "--budget", "2m"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert clock.now < 130, "nor is time left for measuring alone"
    assert {slug.partition("-")[0] for slug in asked[:3]} == {"attention", "linear", "step"}
    one = [row["workload"] for row in result["workloads"] if "-lq1-" in row["workload"]]
    one = [slug for slug in one if "-b1-" in slug]
    one += [row["workload"] for row in result["workloads"] if "linear-m1-" in row["workload"]]
    assert len(one) > 8
    first = asked[: len(one) + 1]
    assert {*first} == {*one, "step-b1"}, "all that one sequence meets with every token"
    left = {row["workload"] for row in result["workloads"] if row["state"] == "left"}
    assert left, "or the budget was no bound"
    assert not left & {*one}
