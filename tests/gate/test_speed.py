"""Speed: contenders that answer cheaply wherever timing would not notice, before the whole gate.

Chains are run for real; the clock is invented: an honest answer takes three times as long as
MLX's own, a cheap one a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from samples import accepted

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import BackendError, GateTimeout
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.gate import limits, speed, timing
from mlx_lm_openevolve.gate.judge import Judgement
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops import DTYPES
from mlx_lm_openevolve.ops.attention import Bucket, Workload
from mlx_lm_openevolve.ops.attention.reference.baseline import answer, floats, mass

HOST = replace(detect("host"), cache=1 << 20)
DECODE = Bucket(1, 4, 2, 1, 512, 64, 64, "float32")
# So many keys that their mean is next to nothing: the first gate accepted the four contenders here.
LONG = Bucket(1, 2, 2, 1, 4096, 32, 32, "float32")
VARIANTS = {
    "float": DECODE,
    "batch": replace(DECODE, batch=2, mask="bool"),
    "additive and sinks": replace(DECODE, mask="additive", sinks=True),
    "causal rows": replace(DECODE, q_len=8, mask="causal"),
    "prefill": replace(DECODE, q_len=2048, kv_len=64, mask="causal", sinks=True),
    "narrow values": replace(DECODE, v_head_dim=32),
    "wide values": replace(DECODE, head_dim=32),
    "quantised": replace(DECODE, kv_bits=4, kv_group=32),
    "latent": Bucket(1, 4, 1, 1, 512, 128, 128, "float32", "additive", latent=True),
}


def zeros(w: Workload, honest: Any, q: Any, k: Any, v: Any, *rest: Any) -> mx.array:
    return mx.zeros_like(honest)


def mean_of_v(w: Workload, honest: Any, q: Any, k: Any, v: Any, *rest: Any) -> mx.array:
    mean = mx.repeat(floats(w, v).mean(2, keepdims=True), w.group, axis=1)
    return mx.broadcast_to(mean, honest.shape)


def half_the_keys(
    w: Workload, honest: Any, q: Any, k: Any, v: Any, scale: Any, mask: Any, sinks: Any
) -> mx.array:
    half = w.kv_len // 2
    k, v = (tuple(p[:, :, half:] for p in x) if w.kv_bits else x[:, :, half:] for x in (k, v))
    mask = None if mask is None else mask[..., half:]
    short = w.exact(kv_len=w.kv_len - half, mask="none" if w.q_len == 1 else w.mask)
    return answer(short, q, k, v, scale, mask, sinks)


def wrong_head(w: Workload, honest: Any, q: Any, k: Any, v: Any, *rest: Any) -> mx.array:
    k, v = (tuple(p[:, ::-1] for p in x) if w.kv_bits else x[:, ::-1] for x in (k, v))
    return answer(w, q, k, v, *rest)


CHEAP = (zeros, mean_of_v, half_the_keys, wrong_head)


class Timed(timing.Arm):
    """An arm whose chains are short, and whose clock is told by its calls."""

    def __init__(self, inputs: Any, call: Any, *rest: Any, **more: Any) -> None:
        super().__init__(inputs, call, *rest, **more)
        self._told = getattr(call, "took", None)

    def seconds(self, calls: int) -> float:
        if self._told is not None:
            self._told.clear()
        super().seconds(min(calls, 4))
        return 1e-4 * (sum(self._told) / len(self._told) if self._told else 1.0)


Contender = Callable[..., Any]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "Arm", Timed)
    monkeypatch.setattr(timing, "bandwidth", lambda cache: 1e15)
    monkeypatch.setattr(timing, "MIN_BLOCKS", 4)
    monkeypatch.setattr(timing, "size", lambda *_: (4, 4))
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)


@pytest.fixture
def contender(clock: None, monkeypatch: pytest.MonkeyPatch) -> Contender:
    """What builds a contender that is honest until it is timed; from then on it gives a cheap
    answer wherever `cheap(error, allowed)` says so. `error` is what that answer errs by."""
    state = {"timed": False}
    real = speed.compare

    def comparing(*args: Any, **options: Any) -> Any:
        state["timed"] = True
        return real(*args, **options)

    monkeypatch.setattr(gate, "compare", comparing)

    def make(kind: Callable[..., mx.array], cheap: Callable[[float, float], bool]) -> Contender:
        state["timed"] = False

        def build(exact: Workload) -> Callable[..., mx.array]:
            def call(*args: Any) -> mx.array:
                honest = answer(exact, *args).astype(args[0].dtype)
                call.took.append(3.0)  # type: ignore[attr-defined]
                if not state["timed"]:
                    return honest
                other = kind(exact, honest, *args).astype(honest.dtype)
                off = mx.abs(other.astype(mx.float32) - honest.astype(mx.float32))
                error = float((off / mass(exact, *args).astype(mx.float32)).max())
                if not cheap(error, 4 * float(mx.finfo(honest.dtype).eps)):
                    return honest
                call.took[-1] = 0.1  # type: ignore[attr-defined]
                return other

            call.took = []  # type: ignore[attr-defined]
            return call

        return build

    return make


def unnoticed(error: float, allowed: float) -> bool:
    """What a check of the last result alone let pass, when queries faded: twice what may be."""
    return error <= 2 * allowed


def always(error: float, allowed: float) -> bool:
    return True


def judged(build: Any, bucket: Bucket) -> Judgement:
    return gate.judge_calls(build, bucket, HOST, limits.Clock(300.0))


def compared(build: Any, bucket: Bucket) -> speed.Speed:
    return gate.compare(build, bucket, HOST, limits.Clock(300.0), 0, "", 1 << 30)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [  # of each kind one dtype in CI
        pytest.param(kind, dtype, marks=[] if j == i % len(DTYPES) else pytest.mark.slow)
        for i, kind in enumerate(CHEAP)
        for j, dtype in enumerate(DTYPES)
    ],
)
def test_a_cheap_answer_where_it_went_unnoticed_is_refused(
    contender: Contender, kind: Any, dtype: str
) -> None:
    found = judged(contender(kind, unnoticed), replace(LONG, dtype=dtype))
    assert found.correct, found.reason
    assert not found.faster
    assert found.timing["ratio"] < 0.5  # it never had the chance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CHEAP)
def test_a_cheap_answer_to_every_timed_call_is_noticed(
    contender: Contender, kind: Any, dtype: str
) -> None:
    found = compared(contender(kind, always), replace(DECODE, dtype=dtype))
    assert not found.faster
    assert "a timed result errs by" in found.reason


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "kind", [mean_of_v, *(pytest.param(kind, marks=pytest.mark.slow) for kind in CHEAP)]
)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_no_variant_lets_a_cheap_answer_pass(
    contender: Contender, kind: Any, name: str, dtype: str
) -> None:
    bucket = replace(VARIANTS[name], dtype=dtype)
    if kind is wrong_head and bucket.kv_heads == 1:
        pytest.skip("there is no other head")
    assert "a timed result errs by" in compared(contender(kind, always), bucket).reason
    found = compared(contender(kind, unnoticed), bucket)
    assert not found.faster
    assert found.timing["ratio"] < 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_an_honest_contender_passes_what_is_rechecked(name: str, dtype: str) -> None:
    w = replace(VARIANTS[name], dtype=dtype).largest()
    inputs = ops.of(w).questions.timing_inputs(w, 0, 1 << 30, 0)

    def call(*args: Any) -> mx.array:
        return answer(w, *args).astype(args[0].dtype)

    arm = timing.Arm(inputs, call, keep=timing.RECHECKED)
    for _ in range(timing.RECHECKED):
        arm.seconds(4)
    assert arm.recheck() == ""


# Beside the kernel that serves already

KNOWN = accepted(DECODE.largest(), timing={"ratio": 4.0})


def taking(seconds: float, noise: float = 0.0, wrong: Callable[[], bool] = lambda: False) -> Any:
    """What builds a right contender that takes so many times as long as MLX's own."""
    draws = np.random.default_rng(0)

    def build(exact: Workload) -> Any:
        took = list[float]()

        def call(*args: Any) -> mx.array:
            took.append(seconds * (1 + noise * draws.uniform(-1, 1)))
            return answer(exact, *args).astype(args[0].dtype) * (0 if wrong() else 1)

        made: Any = call
        made.took = took
        return made

    return build


GIVEN: Any = taking(0.5), DECODE, HOST, limits.Clock(math.inf), 0, 1 << 30


def beside(build: Any, rival: Any) -> speed.Speed:
    given = build, DECODE, HOST, limits.Clock(300.0), 0, "", 1 << 30
    return speed.compare(*given, speed.Rival(rival, KNOWN))


@pytest.mark.parametrize(
    ("rival", "proven"),
    [(taking(0.6), True), (taking(0.45), False), (taking(0.5, noise=0.3), False)],
    ids=["slower", "faster", "level"],
)
def test_what_is_accepted_stands_before_what_serves_only_where_turns_prove_it(
    clock: None, rival: Any, proven: bool
) -> None:
    found = beside(taking(0.5), rival)
    assert found.faster, "than MLX's own"
    record = found.timing["beside"]
    about = record["kernel"], record["params"], record["on"]
    assert about == (KNOWN.kernel, KNOWN.params, DECODE.largest().slug)
    assert record["low"] <= record["ratio"] <= record["high"]
    for arm in ("baseline", "candidate"):
        assert len(found.samples["beside"][arm]) == record[arm]["trials"]
    made = accepted(DECODE.largest(), timing=found.timing)
    assert made.ratio == pytest.approx(2.0), "of another clock than 4.0"
    assert (made.rank > KNOWN.rank) == proven
    assert made.standing == pytest.approx(4.0 * record["low"])
    assert ("not proven faster than what served" in found.reason) != proven


def refuses(exact: Workload) -> Any:
    raise BackendError("it cannot be built")


def no_time(*_: Any) -> Any:
    raise GateTimeout("no time is left")


@pytest.mark.parametrize("why", ["it cannot be built", "too little time", "no time is left"])
def test_without_turns_what_serves_goes_on(
    clock: None, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    real, done = speed._beside, taking(0.6)

    def late(*given: Any) -> speed.Speed:
        if why == "too little time":
            monkeypatch.setattr(timing, "paired", lambda *_: None)
        elif why == "no time is left":
            monkeypatch.setattr(limits.Clock, "check", no_time)
        return real(*given)

    monkeypatch.setattr(speed, "_beside", late)
    found = beside(taking(0.2), refuses if why == "it cannot be built" else done)
    assert found.faster
    assert found.timing["ratio"] > KNOWN.ratio, "by which it would serve"
    assert f"not proven faster than what served (kernel {KNOWN.kernel}): " in found.reason
    assert found.reason.endswith(f"not timed in turns, {why}")
    made = accepted(DECODE.largest(), timing=found.timing)
    assert Verdict.from_json(made.to_json()) == made
    assert made.rank < KNOWN.rank
    # Once it serves, for want of the other, what is faster than it in turns takes its place.
    monkeypatch.setattr(limits.Clock, "check", lambda *_: None)
    won = timing.Comparison((1.0,), (1.0,), 1.3, 1.2, 1.4)
    monkeypatch.setattr(timing, "paired", lambda *_: won)
    better = real(found, speed.Rival(done, made), *GIVEN, 1.0)
    assert accepted(DECODE.largest(), timing=better.timing).rank > made.rank


def test_turns_take_no_more_time_than_is_left(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(limits.Clock, "left", 0.25)
    monkeypatch.setattr(timing, "paired", lambda *asked: given.append(asked[3]))
    found = speed.Speed(True, "faster")
    speed._beside(found, speed.Rival(taking(0.6), KNOWN), *GIVEN, 60.0)
    assert given == [pytest.approx(0.25 * (1 - speed.WARM))]


def test_what_is_not_accepted_is_timed_beside_nothing(clock: None) -> None:
    def build(exact: Workload) -> Any:
        pytest.fail("it was built")

    found = beside(taking(1.0), build)
    assert not found.faster
    assert "beside" not in found.timing


def test_a_wrong_answer_in_turns_is_noticed(clock: None) -> None:
    begun: list[Workload] = []

    def rival(exact: Workload) -> Any:
        begun.append(exact)
        return taking(0.6)(exact)

    found = beside(taking(0.5, wrong=lambda: bool(begun)), rival)
    assert not found.faster
    assert not found.correct, "or it would serve who asks for no speed"
    assert "a timed result errs by" in found.reason
