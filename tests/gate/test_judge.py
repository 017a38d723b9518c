"""The gate: what it accepts, what it refuses to say, and what it leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import mlx.core as mx
import numpy as np
import pytest
from samples import NAIVE, naive, questions

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import Device, detect
from mlx_lm_openevolve.errors import BackendError, GateTimeout
from mlx_lm_openevolve.gate import correctness, limits, speed, timing, worker
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.gate.host_check import check_on_host
from mlx_lm_openevolve.gate.static_rules import static_rules
from mlx_lm_openevolve.gate.worker import judge_in_worker
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import UNTIMED, Poisoned, Verdict, describe, gate_version
from mlx_lm_openevolve.ops import DTYPES
from mlx_lm_openevolve.ops.attention import MASKS, Bucket, Workload, mutants, reference
from mlx_lm_openevolve.ops.attention.reference import question as questions_of
from mlx_lm_openevolve.ops.attention.reference import sdpa, timing_inputs
from mlx_lm_openevolve.ops.attention.reference.baseline import answer
from mlx_lm_openevolve.ops.attention.reference.question import AttentionQuestion
from mlx_lm_openevolve.runtime.planner import (
    BUDGETS,
    MAX_TIMEOUTS,
    UNDECIDED,
    Contender,
    Judges,
    Planner,
)

HOST = detect("host")
SMALL = Bucket(2, 4, 2, 8, 64, 64, 64, "float32", "causal")
DECODE = Bucket(1, 2, 1, 1, 64, 64, 64, "float32")
FEW_ROWS = replace(SMALL, batch=1, q_len=4)  # for a kernel that is slow on the host


needs_compiler = pytest.mark.skipif(
    bool(backends.get("host").unavailable()), reason="no clang on this machine"
)


# Correctness


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, *range(2, 20)))]
)
def test_mlx_own_attention_is_never_rejected(seed):
    """The first seed asks every dtype and every mask once."""
    settings = list(itertools.product(DTYPES, MASKS))
    for dtype, mask in settings[:: 3 if seed == 1 else 1]:
        bucket = replace(SMALL, dtype=dtype, mask=mask, sinks=bool(seed % 2), kv_len=128)
        asked = questions(bucket, seed)
        assert correctness.passes(sdpa, asked).reason == ""


def judged(build, bucket=SMALL, seconds=60.0, **options):
    return gate.judge_calls(build, bucket, HOST, limits.Clock(seconds), **options)


def test_a_judgement_holds_the_evidence():
    found = judged(sdpa, speed=False, brief=True)
    assert found.correct
    assert not found.faster
    assert found.mutants["killed"] == found.mutants["of"] >= 40
    assert found.mutants["survivors"] == []
    errors = found.errors
    assert 0 < errors["avg_difference"] <= errors["max_difference"]
    assert 0 < errors["margin"] < 1
    assert errors["stock"]["max_difference"] == errors["max_difference"]
    assert len(found.raw["cases"]) == 8
    assert 16 < len(judged(sdpa, speed=False).raw["cases"]) <= 16 + 24 + 64  # and lengths


@pytest.mark.parametrize("name", ["zeros", "last-key-lost", "replayed-output", "wrong-gqa-map"])
def test_a_wrong_kernel_is_rejected_with_its_case(name):
    wrong = next(m for m in mutants.MUTANTS if m.name == name)
    found = judged(wrong.build)
    assert not found.correct
    assert "kv_len=" in found.reason
    assert found.errors["margin"] == 0
    assert not found.timing


def test_a_surviving_mutant_blocks_acceptance_and_is_named_in_the_evidence(monkeypatch):
    fake = mutants.Mutant("harmless", "nothing at all", lambda w: True, mutants.Attention.out)
    monkeypatch.setattr(mutants.base, "MUTANTS", [*mutants.MUTANTS, fake])
    monkeypatch.setattr(gate, "_trials", {})
    found = judged(sdpa)
    assert not found.correct
    assert f"1 of {found.mutants['of']} known-wrong kernels" in found.reason
    assert "harmless" not in found.reason, "a table has room for a short line alone"
    assert found.mutants["survivors"] == ["harmless"]


def test_with_one_key_the_reason_is_short_and_the_names_are_shown():
    """Every softmax over one key is 1: what is wrong about it cannot show."""
    one = replace(SMALL, q_len=1, kv_len=1)
    found = judged(sdpa, one, speed=False)
    assert not found.correct
    assert len(found.reason) < 120
    assert found.reason.startswith("nothing can be proven here: ")
    names = found.mutants["survivors"]
    assert len(names) > 5
    assert not any(name in found.reason for name in names)
    kernel = naive()
    text = describe(gate.verdict_of(kernel, {}, one, HOST, found, 0))
    (line,) = (line for line in text if line.startswith("  mutants"))
    assert all(name in line for name in names)


def test_where_a_mutant_lives_through_what_was_drawn_more_is_asked_of_all(monkeypatch):
    asked = []

    def tried(small, seed, clock):
        asked.append(seed)
        return correctness.MutantTrial(40, 41, ("unlucky", str(seed)), small.slug)

    monkeypatch.setattr(gate, "_try_mutants", tried)
    found = judged(sdpa, speed=False, brief=True)
    assert "1 of 41 known-wrong kernels" in found.reason  # what lives through both
    assert found.mutants["survivors"] == ["unlucky"]
    lucky = correctness.MutantTrial(41, 41, (), "another draw")
    monkeypatch.setattr(
        gate, "_try_mutants", lambda *given: tried(*given) if given[1] == asked[0] else lucky
    )
    found = judged(sdpa, speed=False, brief=True)
    assert found.correct
    assert found.mutants["survivors"] == []
    assert len(found.raw["cases"]) == 2 * 8
    # A contender that is right in the first draw alone.
    calls = []

    def late(exact):
        right, wrong = sdpa(exact), mutants.MUTANTS[0].build(exact)

        def call(*given):
            calls.append(given)
            return (right if len(calls) <= 24 else wrong)(*given)

        return call

    assert not judged(late, speed=False, brief=True).correct


def test_what_is_asked_cannot_be_known_beforehand(monkeypatch):
    """Without a seed each process draws its own, and keeps it; the next turn asks otherwise."""
    monkeypatch.undo()
    load = "from mlx_lm_openevolve.gate.correctness import drawn_seed as drawn"
    code = f"{load}; print(drawn(), drawn(), drawn(2) - drawn())"
    answers = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    rows = [tuple(map(int, done.stdout.split())) for done in answers]
    assert len({row[0] for row in rows}) == 3
    assert all(row[0] == row[1] and row[2] == 2 for row in rows)
    names = [{q.name for q in questions(SMALL, seed, brief=True)} for seed in (1, 2)]
    assert len(names[0] & names[1]) <= 2  # the longest context over a cache is always asked


def test_source_mutants_must_have_been_killed_by_this_gate(monkeypatch):
    version = gate_version("attention")
    entry = {"gate": version, "kernel": "0" * 12, "killed": ["a"], "survivors": {}}
    found = {"float/float32/causal": entry}
    monkeypatch.setattr(gate, "matrix", lambda op: found)
    assert judged(sdpa, speed=False).mutants["source"] == {"killed": 1, "kernel": "0" * 12}
    entry["survivors"] = {"scale-twice": "survived"}
    assert "1 of 2 kernels made wrong in their source pass" in judged(sdpa).reason
    assert judged(sdpa).mutants["survivors"] == ["scale-twice"]
    entry["survivors"], entry["gate"] = {}, f"{version}.1"
    assert "no source mutants" in judged(sdpa).reason
    found.clear()
    assert not judged(sdpa).correct


def test_inputs_that_change_are_noticed():
    question = AttentionQuestion(reference.case("peaked", SMALL.largest(), 0))
    right = sdpa(SMALL)
    assert correctness.Calls(lambda exact: right)(question).reason == ""
    question._checksum = (0, 0, 0)
    assert "inputs were changed" in correctness.Calls(lambda exact: right)(question).reason


def test_rows_without_a_truth_are_compared_with_sdpa():
    bucket = replace(SMALL, q_len=2048, kv_len=64, batch=1, mask="none")
    case = reference.case("peaked", replace(bucket, q_len=64), 0)
    question = AttentionQuestion(case)
    unseen = next(i for i in range(64) if i not in question.reference.rows)

    def build(exact):
        def call(*args):
            out = sdpa(exact)(*args)
            return mx.where((mx.arange(64) == unseen)[:, None], 0, out)

        return call

    assert f"row {unseen}" in correctness.Calls(build)(question).reason


@pytest.mark.parametrize(
    ("change", "word"),
    [(lambda x: x.astype(mx.float16), "float16"), (lambda x: x[..., :-1], "expected")],
)
def test_a_wrong_dtype_or_shape_is_named(change, word):
    found = judged(lambda exact: lambda *args: change(sdpa(exact)(*args)))
    assert not found.correct
    assert word in found.reason


# Speed


@pytest.mark.parametrize("runs", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_sdpa_against_itself_is_never_accepted(runs):
    bucket = replace(SMALL, q_len=1, mask="none", batch=1)
    for run in range(runs):
        try:
            found = judged(sdpa, bucket, seconds=0.6, seed=run, label=f"run {run}")
        except GateTimeout:
            continue
        assert not found.faster, found.timing


@pytest.mark.slow
def test_sdpa_against_itself_is_never_accepted_in_200_runs():
    for run in range(200):
        bucket = replace(SMALL, q_len=(1, 8)[run % 2], mask="none", kv_len=(64, 1024)[run % 2])
        try:
            found = judged(sdpa, bucket, seconds=2.0, seed=run, label=f"run {run}")
        except GateTimeout:
            continue
        assert not found.faster, found.timing


ARM = timing.Arm


class Invented:
    """Stands for timing.Arm: SDPA takes a second, the contender what `speed` says, another kernel
    what its call says."""

    speed = stock = 1.0

    def __init__(self, inputs, call, keep=0):
        self._arm = ARM(inputs, call, keep)
        self._own = getattr(call, "contender", False)
        self._takes = getattr(call, "takes", None)
        self._noise = np.random.default_rng(int(self._own))

    def recheck(self):
        return self._arm.recheck()

    def seconds(self, calls):
        self._arm.seconds(1)
        takes = self._takes or (1 / self.speed if self._own else self.stock)
        return takes * (1 + 1e-3 * self._noise.random())


@pytest.fixture
def invented(monkeypatch):
    monkeypatch.setattr(timing, "Arm", Invented)
    monkeypatch.setattr(timing, "bandwidth", lambda cache: 1e9)
    real = timing.paired
    monkeypatch.setattr(
        timing, "paired", lambda a, b, seconds, budget, seed: real(a, b, 1e-3, 0.2, seed)
    )

    def contender(speed, change=lambda out: out):
        Invented.speed = speed

        def build(exact):
            def call(*args):
                return change(sdpa(exact)(*args))

            call.contender = True
            return call

        return build

    return contender


def test_a_faster_kernel_is_accepted_with_both_arms_and_the_sealed_length(invented):
    found = judged(invented(1.3))
    assert found.faster, found.reason
    times = found.timing
    assert times["low"] <= times["ratio"] <= times["high"]
    assert times["ratio"] == pytest.approx(1.3, rel=0.01)
    assert Workload.parse(times["on"]).kv_len == 64
    assert 32 < Workload.parse(times["sealed"]["on"]).kv_len < 64
    assert times["same"]["low"] <= 1 <= times["same"]["high"]
    for arm in ("baseline", "candidate"):
        assert {"mean", "std", "min", "max", "trials"} == set(times[arm])
        assert len(found.raw["samples"]["sealed"][arm]) == times["sealed"][arm]["trials"]


def test_a_first_look_rejects_what_is_clearly_slower_unasked(invented, monkeypatch):
    asked = []
    monkeypatch.setattr(gate, "_proven", lambda *given: asked.append(given))
    found = judged(invented(0.7), staged=True)
    assert (found.correct, found.faster, asked) == (False, False, [])
    assert found.reason.startswith("not faster: 0.7")
    assert found.timing["ratio"] == pytest.approx(0.7, rel=0.01)
    assert set(found.raw["samples"]) == {"look"}
    # Not for noise: it is not asked again.
    verdict = gate.verdict_of(naive(), {}, SMALL, HOST, found, 0)
    assert not verdict.ask_again


@pytest.mark.parametrize("speed", [0.97, 1.0, 1.3])
def test_a_first_look_leaves_all_else_to_the_questions(invented, speed):
    found = judged(invented(speed), staged=True)
    assert found.correct
    assert found.faster is (speed > 1.02)


def test_a_verdict_in_two_halves(invented, monkeypatch):
    def late(*given, **options):
        raise GateTimeout("no time")

    with monkeypatch.context() as first:
        first.setattr(gate, "compare", late)
        half = judged(invented(1.3), staged=True)
        with pytest.raises(GateTimeout):
            judged(invented(1.3))
    assert (half.correct, half.faster) == (True, None)
    monkeypatch.setattr(gate, "_proven", lambda *given: pytest.fail("asked again"))
    whole = judged(invented(1.3), staged=True, proven=half)
    assert whole.faster
    assert (whole.errors, whole.mutants) == (half.errors, half.mutants)
    slow = judged(invented(0.9), staged=True, proven=half)
    assert (slow.correct, slow.faster) == (True, False)


def test_one_percent_is_not_enough(invented):
    found = judged(invented(1.01))
    assert found.correct
    assert not found.faster
    assert "not faster" in found.reason
    assert "sealed" not in found.timing


def test_the_sealed_length_depends_on_the_contender(invented):
    bucket = replace(SMALL, kv_len=512, batch=1, q_heads=2, kv_heads=1)
    build = invented(1.3)
    right = judged(build, bucket, speed=False, brief=True)
    lengths = {
        judged(build, bucket, proven=right, label=f"kernel {i}").timing["sealed"]["on"]
        for i in range(4)
    }
    assert len(lengths) == 4


@pytest.fixture
def kernels(invented, monkeypatch, tmp_path):
    """(judges a kernel of that name on a chip by name alone, whose seconds are `takes`; what serves
    there)."""
    monkeypatch.setattr(timing, "MIN_BLOCKS", 4)
    monkeypatch.setattr(timing, "size", lambda *_: (1, 4))
    metal, takes = backends.get("metal"), {}
    monkeypatch.setattr(metal, "unavailable", lambda: "")
    chip = Device("metal", "apple-m9", "Apple M9", "applegpu_g19")
    monkeypatch.setattr(gate, "detect", lambda backend: chip)

    def build(kernel, params, exact):
        def call(*args):
            return sdpa(exact)(*args)

        call.takes = takes[kernel.name]
        return call

    monkeypatch.setattr(metal, "build", build)
    proven = Verdict("0" * 12, {}, DECODE.slug, True, None, "", {})

    def judge(name, seconds, stock=1.0):
        takes[name] = seconds
        monkeypatch.setattr(Invented, "stock", stock)
        judges = Judges(gate.judge, gate.judge)
        planner = Planner(chip, [Registry(tmp_path)], judges=lambda: judges)
        contender = Contender(naive(name=name), {}, True, proven=proven)
        return planner.judge(contender, DECODE, 60.0)

    def serves():
        return Planner(chip, [Registry(tmp_path)]).stored(DECODE).kernel.name

    return judge, serves


def test_of_two_kernels_that_met_different_clocks_the_faster_one_serves(kernels):
    """4.80 times MLX's own speed in one hour, where it took 1.2 times what it takes in another: in
    turns with the kernel of 4.14 it was slower."""
    judge, serves = kernels
    first = judge("written", 1 / 4.14)
    assert (first.ratio, serves()) == (pytest.approx(4.14, rel=0.01), "written")
    assert "beside" not in first.timing
    later = judge("found", 1.2 / 4.8, stock=1.2)
    assert later.accepted
    assert later.ratio == pytest.approx(4.8, rel=0.01)
    assert later.timing["beside"]["ratio"] == pytest.approx(1 / 4.14 / 0.25, rel=0.01)
    assert serves() == "written"
    # And the other way round: slower against MLX's own, and faster in turns.
    assert judge("better", 0.9 / 4.14, stock=0.85).ratio < first.ratio
    assert serves() == "better"
    assert "beside   " in "\n".join(describe(judge("worst", 0.3)))
    assert serves() == "better"


def test_whoever_won_last_serves_however_they_beat_each_other(kernels):
    judge, serves = kernels
    for name, seconds in [("a", 0.5), ("b", 0.4), ("c", 0.3), ("a", 0.2)]:
        judge(name, seconds)
        assert serves() == name
    # Judged once more, by a clock that is worse to it, what serves is beside nothing.
    again = judge("a", 0.7)
    assert again.ratio == pytest.approx(1 / 0.7, rel=0.01)
    assert set(again.timing["beside"]) == {"standing"}
    assert "beside" not in again.raw["samples"]
    assert serves() == "a"
    assert judge("b", 0.69).accepted
    assert serves() == "b"


def test_an_impossible_time_is_a_fault_of_the_measurement(invented, monkeypatch):
    monkeypatch.setattr(timing, "bandwidth", lambda cache: 1.0)
    found = judged(invented(1.3))
    assert not found.faster
    assert "measurement fault" in found.reason


def test_what_was_timed_is_checked_again(invented):
    # Right whenever it is asked, wrong as soon as it is timed.
    state = {"on": False}

    def change(out):
        return out * 2 if state["on"] else out

    build = invented(1.3, change)
    real = gate.compare

    def comparing(*args, **options):
        state["on"] = True
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "compare", comparing)
        found = judged(build)
    assert not found.correct
    assert not found.faster
    assert "a timed result errs by" in found.reason


def doubled(w, queries, *rest):
    """An SDPA that is wrong."""
    return sdpa(w)(queries, *rest) * 2


@pytest.mark.parametrize("mask", MASKS)
def test_a_right_result_is_no_fault_where_sdpa_is_wrong(invented, monkeypatch, mask):
    # As MLX 0.32.4 on CUDA was for keys at an odd address: float64 has the last word.
    monkeypatch.setattr(timing_inputs, "answer", doubled)
    found = judged(invented(1.3), replace(SMALL, mask=mask))
    assert found.faster, found.reason


def test_sdpa_that_is_wrong_excuses_nobody(monkeypatch):
    case = next(reference.cases(SMALL, 0))
    honest = AttentionQuestion(case)
    monkeypatch.setattr(questions_of, "answer", doubled)
    question = AttentionQuestion(case)
    assert question.own == (0.0, 0.0)
    assert question.limits <= honest.limits


def test_an_unsteady_clock_gives_no_verdict(monkeypatch):
    class Drifting:
        turn = 0

        def __init__(self, inputs, call, keep=0):
            Drifting.turn += 1
            self.base = 1.0 + Drifting.turn

        def seconds(self, calls):
            return self.base

    monkeypatch.setattr(timing, "Arm", Drifting)
    monkeypatch.setattr(timing, "calls_for", lambda seconds: 1)
    monkeypatch.setattr(timing, "warm_up", lambda arms, seconds: 1e-4)
    with pytest.raises(GateTimeout, match="unsteady"):
        judged(sdpa)


# A guest


def test_no_time_no_verdict():
    with pytest.raises(GateTimeout, match="do not suffice"):
        judged(sdpa, seconds=0.0)


class Cold:
    """A machine on which nothing takes time but what runs for the first time in a process, 0.8 s
    or as many as `takes` says: each function of MLX's, each exact workload of a contender's."""

    def __init__(self, monkeypatch, takes=0.8):
        self.now, self.takes = 0.0, takes
        self.known = set()
        self._sdpa = mx.fast.scaled_dot_product_attention
        monkeypatch.setattr(limits.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", self.sdpa)

    def process(self):
        self.known = set()
        gate._trials.clear()

    def first(self, *key):
        self.now += 0.0 if key in self.known else self.takes
        self.known.add(key)

    def sdpa(self, q, k, v, *, mask=None, **more):
        self.first("sdpa", q.dtype, q.shape[2] > 8, k.shape[2] > 512)
        return self._sdpa(q, k, v, mask=mask, **more)

    def build(self, build):
        def made(exact):
            call = build(exact)

            def cold(*arguments):
                self.first("contender", exact)
                return call(*arguments)

            cold.contender = True
            return cold

        return made


def test_what_a_cold_compiler_takes_never_counts(invented, monkeypatch):
    cold = Cold(monkeypatch)
    monkeypatch.setattr(gate, "_trials", {})
    bucket = Bucket(1, 4, 2, 1, 1024, 64, 64, "float32")
    found = judged(cold.build(invented(1.3)), bucket, seconds=0.1)
    assert found.faster, found.reason
    # MLX's for the proxy and for the bucket; the sizes of the cases, and the sealed one.
    assert len(cold.known) > 7
    assert cold.now == pytest.approx(len(cold.known) * 0.8)


@pytest.fixture
def first_use(invented, monkeypatch, tmp_path):
    """(a cold machine, its bucket, what makes the planner of a process there)."""
    cold, metal = Cold(monkeypatch), backends.get("metal")
    monkeypatch.setattr(gate, "_trials", {})
    monkeypatch.setattr(metal, "unavailable", lambda: "")
    contender = cold.build(invented(1.3))
    monkeypatch.setattr(metal, "build", lambda kernel, params, exact: contender(exact))
    chip = Device("metal", "apple-m9", "Apple M9", "applegpu_g19")
    monkeypatch.setattr(gate, "detect", lambda backend: chip)
    judges = Judges(gate.judge, gate.judge)
    options = {"judges": lambda: judges, "only": naive()}
    bucket = Bucket(1, 4, 2, 1, 1024, 64, 64, "float32")
    return cold, bucket, lambda: Planner(chip, [Registry(tmp_path)], **options)


def test_a_cold_compiler_makes_nobody_wait_and_tune_decides(first_use):
    """Where nothing that was compiled is kept, three processes wait their share, then none."""
    cold, bucket, planner = first_use
    waited = []
    for _ in range(MAX_TIMEOUTS + 2):
        cold.process()
        before, plan = cold.now, planner().plan(bucket)
        waited.append(cold.now - before)
    # What compiles when the time ends cannot be stopped.
    assert max(waited) < BUDGETS["metal"].process + 0.8
    assert waited[MAX_TIMEOUTS:] == [0, 0]
    assert plan.reason == UNDECIDED
    assert "`tune`" in plan.reason
    asked = planner()
    [candidate] = asked.candidates(bucket)
    assert asked.judge(candidate, bucket, 6.0).accepted
    assert planner().plan(bucket).kernel == candidate.kernel


def test_where_compiled_text_is_kept_three_processes_decide(first_use):
    cold, bucket, planner = first_use
    cold.takes = 0.3
    plans = []
    for _ in range(3):
        gate._trials.clear()
        plans.append(planner().plan(bucket))
    assert plans[0].kernel is None
    assert plans[-1].kernel is not None
    assert cold.now == pytest.approx(len(cold.known) * 0.3)


def test_no_memory_no_verdict(monkeypatch):
    monkeypatch.setattr(gate, "memory_for", lambda device, elsewhere: 1 << 10)
    with pytest.raises(GateTimeout, match="MiB"):
        judged(sdpa)


def test_the_caller_is_undisturbed():
    active = mx.get_active_memory()
    mx.random.seed(3)
    want = mx.random.uniform(shape=(8,)).tolist()
    mx.random.seed(3)
    with contextlib.suppress(GateTimeout):  # on a busy machine: that leaves no trace either
        long = replace(SMALL, kv_len=1024, q_len=1, mask="none")
        judged(sdpa, long, seconds=30, brief=True)
    assert mx.random.uniform(shape=(8,)).tolist() == want
    assert mx.get_active_memory() - active < 1 << 20


def test_a_reported_peak_is_never_reached_for_its_own_sake(monkeypatch):
    """Allocating the peak of before anew took gigabytes; above 2 GiB a shape overflowed."""
    # Before, after, and once it was reset.
    peaks = itertools.chain([3 << 30, 7 << 29], itertools.repeat(0))
    monkeypatch.setattr(mx, "get_peak_memory", lambda: next(peaks))
    cached = mx.get_cache_memory()

    def fail():
        with limits.undisturbed():
            mx.eval(mx.zeros((96 << 20,), mx.uint8))
            raise ZeroDivisionError

    mx.reset_peak_memory()
    with pytest.raises(ZeroDivisionError):
        fail()
    monkeypatch.undo()
    assert mx.get_peak_memory() < 1 << 30
    assert mx.get_cache_memory() <= cached + (64 << 20)


def test_memory_is_a_small_share(monkeypatch):
    chip = replace(HOST, memory=64 << 30)
    assert 0 < limits.memory_for(chip) <= 8 << 30
    monkeypatch.setattr(mx, "get_active_memory", lambda: 63 << 30)
    assert limits.memory_for(chip) == 1 << 29


GIB = 1 << 30
PREFILL = Bucket(1, 32, 8, 2048, 8192, 256, 256, "bfloat16", "causal")


@pytest.mark.parametrize(
    ("memory", "working", "in_use", "allowed"),
    [
        (8, 5.33, 5, 0.165),  # a Mac with 8 GB that holds a model of 5
        (8, 5.33, 6, 0),
        (16, 10.67, 5, 2),
        (64, 48, 40, 4),
        (80, 0, 8, 10),  # CUDA names no working set
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_memory_is_what_the_driver_recommends_less_what_is_in_use(
    here, memory, working, in_use, allowed, monkeypatch
):
    monkeypatch.setattr(limits, "working_set", lambda: int(working * GIB))
    monkeypatch.setattr(mx, "get_active_memory", lambda: in_use * GIB if here else 0)
    chip = replace(HOST, memory=memory * GIB)
    got = limits.memory_for(chip, 0 if here else in_use * GIB)
    assert got / GIB == pytest.approx(allowed, abs=1e-6)


def test_scores_that_do_not_fit_a_small_mac_are_never_written(monkeypatch):
    """1.5 GB for the baseline of a prefill that MLX has no fused kernel for."""
    monkeypatch.setattr(limits, "working_set", lambda: int(5.33 * GIB))
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)  # what other tests hold is not asked
    chip = replace(HOST, memory=8 * GIB)

    def ask(bucket):
        gate.judge_calls(sdpa, bucket, chip, limits.Clock(0), elsewhere=5 * GIB)

    with pytest.raises(GateTimeout, match=r"needs 1\d{3} MiB, 168 MiB are free"):
        ask(PREFILL)
    with pytest.raises(GateTimeout, match="do not suffice"):  # of time: memory is no matter
        ask(replace(PREFILL, q_len=1, mask="none", head_dim=128, v_head_dim=128))


VARIED = {
    "decode": Bucket(1, 8, 2, 1, 2048, 128, 128, "bfloat16"),
    "verify": Bucket(1, 8, 2, 8, 1024, 64, 64, "float16", "bool"),
    "prefill": Bucket(1, 4, 2, 128, 512, 64, 64, "bfloat16", "causal"),
    "biases": Bucket(1, 4, 2, 64, 512, 64, 64, "float32", "additive", sinks=True),
    "quantized": Bucket(1, 4, 2, 1, 2048, 128, 128, "bfloat16", kv_bits=4, kv_group=64),
    "quantized prompt": Bucket(1, 4, 2, 32, 512, 64, 64, "float32", "causal", False, 8, 32),
    "latent": Bucket(1, 4, 1, 1, 512, 576, 576, "float32", latent=True),
}


def machines_and_names():
    """All but a drawn few are slow: each is a whole run of the gate."""
    drawn = {("decode", 8), ("latent", 16)}
    for memory, working, in_use in ((8, 5.33, 5), (16, 10.67, 8), (64, 48, 8)):
        for name in VARIED:
            marks = [] if (name, memory) in drawn else [pytest.mark.slow]
            yield pytest.param(name, memory, working, in_use, marks=marks)


@pytest.mark.parametrize(("name", "memory", "working", "in_use"), list(machines_and_names()))
def test_the_gates_true_peak_stays_below_what_it_may_take(
    name, memory, working, in_use, monkeypatch
):
    """Measured on the CPU, where MLX's attention is never fused: correctness, chains as long as the
    clock's, the recheck and the probe of the bandwidth."""
    monkeypatch.setattr(type(VARIED[name]), "fused", False)
    monkeypatch.setattr(limits, "working_set", lambda: int(working * GIB))
    chip = replace(HOST, memory=memory * GIB, cache=96 << 20)  # as device.py has it for a Mac
    real = timing.Comparison((1.0,), (1.0,), 1.0, 1.0, 1.0)

    def paired(a, b, *more):
        for arm in (a, b):
            arm.seconds(2 * timing._AHEAD)
        return real

    monkeypatch.setattr(timing, "paired", paired)
    monkeypatch.setattr(timing, "warm_up", lambda arms, seconds: 1e-3)
    monkeypatch.setattr(speed, "_ROOFLINE", 1e9)
    timing.bandwidth.cache_clear()
    mx.clear_cache()
    allowed = limits.memory_for(chip, in_use * GIB)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = gate.judge_calls(
        true_sdpa, VARIED[name], chip, limits.Clock(600), elsewhere=in_use * GIB
    )
    took = mx.get_peak_memory() - before
    timing.bandwidth.cache_clear()
    print(f"{name} on {memory} GB with {in_use} in use: {took >> 20} of {allowed >> 20} MiB")
    assert found.correct, found.reason
    assert "not faster" in found.reason
    assert 64 << 20 < took <= allowed


def true_sdpa(exact):
    """SDPA, on a quantised cache of what the numbers stand for: mlx-lm's own errs too much."""

    def call(queries, keys, values, scale, mask, sinks):
        return answer(exact, queries, keys, values, scale, mask, sinks).astype(queries.dtype)

    return call


# Kernels


def test_static_rules_name_what_is_missing():
    assert static_rules(naive(), {}, SMALL) == ""
    assert "does not apply" in static_rules(naive(), {}, replace(SMALL, sinks=True))
    lost = naive(NAIVE.replace("keys_shape[2]", "queries_shape[2]") + "// keys_shape[2]\n")
    assert "keys_shape[2]" in static_rules(lost, {}, SMALL)
    assert static_rules(naive(NAIVE.replace("scale[0]", "1.0f")), {}, SMALL) == (
        "no launch reads scale"
    )


@needs_compiler
def test_a_right_kernel_is_correct_on_the_host_and_never_faster(tmp_path):
    kernel = naive()
    verdict = gate.judge(kernel, {}, SMALL, "host", seconds=120)
    assert verdict.correct, verdict.reason
    assert not verdict.accepted
    assert verdict.reason == UNTIMED
    assert verdict.fingerprint["gate"] == gate_version("attention")
    registry = Registry(tmp_path)
    registry.publish("host", verdict)
    assert registry.verdicts("host", SMALL)[0] == Verdict.from_json(verdict.to_json())
    text = "\n".join(describe(verdict))
    assert f"verdict  {UNTIMED}" in text
    assert "killed" in text
    assert "margin" in text


@needs_compiler
@pytest.mark.parametrize(
    "mask",
    [pytest.param(mask, marks=[pytest.mark.slow] if mask != "causal" else []) for mask in MASKS],
)
def test_the_host_check_belongs_to_the_kernel(tmp_path, mask):
    registry, kernel = Registry(tmp_path), naive()
    registry.add(kernel)
    check = check_on_host(kernel, {}, replace(FEW_ROWS, mask=mask, dtype="bfloat16"))
    assert check["ok"], check["reason"]
    registry.add_host_check(kernel.id, check)
    assert registry.host_checks(kernel.id) == [check]


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("j < kv_len;", "j <= kv_len;", "out-of-bounds"),
        ("keys_strides[2] + i", "D + i", "out-of-bounds|error max"),
        ("i * keys_strides[3]", "i", "out-of-bounds|error max"),
        ("j <= kv_len - L + row", "j < kv_len - L + row", "error max"),
        ("head / GROUP * keys", "head % 2 * keys", "error max"),
        ("score *= scale[0]", "score *= scale[0] * scale[0]", "error max"),
        ("float score = 0.0f;", "float score = 0.0f", "compile"),
    ],
)
def test_the_host_check_finds_faults_of_the_source(old, new, word):
    assert old in NAIVE
    check = check_on_host(naive(NAIVE.replace(old, new)), {}, FEW_ROWS)
    assert not check["ok"]
    assert re.search(word, check["reason"])


def test_an_absent_backend_is_no_verdict():
    absent = "metal" if backends.get("metal").unavailable() else "cuda"
    with pytest.raises(BackendError):
        gate.judge(naive(), {}, SMALL, absent, seconds=1)


# The worker


@needs_compiler
def test_the_worker_says_the_same():
    bucket = replace(SMALL, q_len=1, mask="none")
    here = gate.judge(naive(), {}, bucket, "host", seconds=120, brief=True)
    there = judge_in_worker(naive(), {}, bucket, "host", seconds=120, brief=True)
    assert there.correct
    assert (there.reason, there.errors, there.mutants) == (here.reason, here.errors, here.mutants)


def test_the_worker_is_told_what_serves(monkeypatch):
    asked = []

    def judge(*given, rival, **options):
        asked.append(rival)
        raise GateTimeout("no time")

    monkeypatch.setattr(worker, "judge", judge)

    def sent(task):
        return worker._answer(json.loads(json.dumps(asdict(task))))

    monkeypatch.setattr(worker, "_ask", sent)
    verdict = gate.verdict_of(naive(name="known"), {}, SMALL, HOST, gate.Judgement(), 0)
    for rival in (None, (naive(name="known"), verdict)):
        with pytest.raises(GateTimeout):
            judge_in_worker(naive(), {}, SMALL, "host", seconds=1, rival=rival)
        assert asked.pop() == rival


def test_the_worker_passes_on_that_time_ran_out():
    with pytest.raises((GateTimeout, BackendError)):
        judge_in_worker(naive(), {}, SMALL, "host", seconds=0.0)


def test_a_worker_that_cannot_start_its_work_is_no_fault_of_the_kernel():
    kernel = naive()
    broken = replace(kernel, meta={**kernel.meta, "format": 1})
    with pytest.raises(BackendError, match="KernelError"):
        judge_in_worker(broken, {}, SMALL, "host", seconds=1)


def ends_as(script, tmp_path, monkeypatch):
    """Have workers be a shell script."""
    program = tmp_path / "worker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("kill -9 $$", "SIGKILL"),  # a system without memory
        ("kill -TERM $$", "SIGTERM"),
        ("echo 'ImportError: no mlx' >&2; exit 1", "status 1: ImportError: no mlx"),
        ("echo '{\"verdict'", "status 0"),
    ],
)
def test_a_worker_that_was_ended_from_outside_is_no_fault_of_the_kernel(
    tmp_path, monkeypatch, script, word
):
    ends_as(script, tmp_path, monkeypatch)
    registry, kernel = Registry(tmp_path / "registry"), naive()
    judges = Judges(judge_in_worker, judge_in_worker)
    options = {"only": kernel, "require_faster": False}
    bucket = replace(SMALL, q_len=1, mask="none")
    for _ in range(2):
        plan = Planner(HOST, [registry], judges=lambda: judges, **options).plan(bucket)
        assert plan.kernel is None
        assert plan.reason.startswith("pending: ")
        assert word in plan.reason
    assert registry.poisoned("host") == {}
    assert registry.verdicts("host", bucket) == []


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("kill -SEGV $$", "SIGSEGV"),
        ("kill -ABRT $$", "SIGABRT"),
        ("exec sleep 60", "hung"),
    ],
)
def test_a_kernel_that_ends_its_worker_is_rejected_and_can_be_poisoned(
    tmp_path, monkeypatch, script, word
):
    ends_as(script, tmp_path, monkeypatch)
    monkeypatch.setattr(worker, "_STARTUP", 1.0 if word == "hung" else 30.0)
    with pytest.raises(Poisoned, match=word) as caught:
        judge_in_worker(naive(), {}, SMALL, "host", seconds=0.5)
    verdict = caught.value.verdict
    assert not verdict.correct
    assert word in verdict.reason
    registry = Registry(tmp_path / "registry")
    registry.publish("host", verdict)
    registry.poison("host", verdict.kernel, verdict.reason)
    assert word in registry.poisoned("host")[verdict.kernel]


def test_what_a_kernel_writes_between_its_launches_counts():
    """A terabyte of intermediates: no memory for it, and none is taken to find that out."""
    huge = [((1 << 20, 1 << 18), mx.float32)]
    with pytest.raises(GateTimeout, match="MiB are free"):
        judged(sdpa, buffers=lambda exact: huge)
