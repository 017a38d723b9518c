"""What a bucket runs on. The judge is scripted here; test_gate holds the real one to account."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import COPY_FIRST, kernel_meta, timed

from mlx_lm_openevolve.device import Device, fingerprint
from mlx_lm_openevolve.errors import GateMemory, GateTimeout, MachineError
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.gate import worker as gate_worker
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import TUNED_GATE, Poisoned, Verdict, gate_version
from mlx_lm_openevolve.ops.attention import Bucket
from mlx_lm_openevolve.runtime.planner import (
    BUDGETS,
    BUSY,
    DEFERRED,
    FAILED,
    MAX_TIMEOUTS,
    NEVER_FASTER,
    PENDING,
    UNDECIDED,
    GateBudget,
    Judges,
    serving,
    tune_command,
)
from mlx_lm_openevolve.runtime.planner import Planner as PlannerWithoutGate

BUCKET = Bucket(1, 8, 2, 1, 1024, 64, 64, "bfloat16")
CHIP = Device("metal", "apple-m9", "Apple M9", "applegpu_g19")
OTHER = replace(CHIP, slug="apple-m1", architecture="applegpu_g13")


def Planner(*given: Any, **options: Any) -> PlannerWithoutGate:
    """A planner with the gate, whose functions the tests replace."""

    def judges() -> Judges:
        return Judges(gate.judge, gate_worker.judge_in_worker)

    return PlannerWithoutGate(*given, judges=judges, **options)


def make_kernel(name: str = "copy_first") -> Kernel:
    return Kernel.from_parts(kernel_meta(name=name), {"copy.metal": COPY_FIRST})


def make_verdict(kernel: Kernel, device: Device = CHIP, **changes: Any) -> Verdict:
    made = Verdict(
        kernel=kernel.id,
        params={"threads": 32},
        workload=BUCKET.slug,
        correct=True,
        faster=True,
        reason="accepted",
        fingerprint=fingerprint(device, gate_version("attention")),
        timing=timed(1.5),
    )
    return replace(made, **changes)


Answer = Callable[[Kernel], Verdict]


class Judge:
    """Stands in for gate.judge and gate.judge_in_worker; remembers which was asked for what."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        self.turns: list[int] = []
        self.proven: list[Verdict | None] = []
        self.rivals: list[tuple[Kernel, Verdict] | None] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Judge:
        for module, name in ((gate, "judge"), (gate_worker, "judge_in_worker")):
            monkeypatch.setattr(module, name, self._named(name))
        return self

    def _named(self, name: str) -> Callable[..., Verdict]:
        def judge(
            kernel: Kernel,
            params: Mapping[str, int],
            bucket: Bucket,
            backend: str,
            *,
            seconds: float,
            turn: int,
            brief: bool,
            staged: bool,
            wait: float,
            proven: Verdict | None,
            rival: tuple[Kernel, Verdict] | None,
        ) -> Verdict:
            self.turns.append(turn)
            self.rivals.append(rival)
            self.proven.append(proven)
            assert 0 < seconds <= wait <= BUDGETS[backend].workload
            assert brief
            assert staged
            self.asked.append((name, kernel.name))
            return self.answer(kernel)

        return judge


@pytest.fixture
def user(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "user")


@pytest.fixture
def tuned(tmp_path: Path) -> Registry:
    Registry(tmp_path / "tuned").add(make_kernel())
    return Registry(tmp_path / "tuned", writable=False)


def test_a_workload_without_a_verdict_is_gated_once_and_the_verdict_is_stored(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(make_verdict).install(monkeypatch)
    planner = Planner(CHIP, [user, tuned])
    plan = planner.plan(BUCKET)
    assert plan.kernel == make_kernel()
    assert planner.plan(BUCKET) is plan
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel == make_kernel()
    # A shipped kernel is judged in this process.
    assert judge.asked == [("judge", "copy_first")]
    assert user.verdicts(CHIP.slug, BUCKET) == [make_verdict(make_kernel())]


def test_a_rejection_is_stored_too_and_not_judged_again(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Judge(lambda k: make_verdict(k, correct=False, faster=False, reason="V[0]"))
    wrong.install(monkeypatch)
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == "rejected: V[0]"
    again = Planner(CHIP, [user, tuned]).plan(BUCKET)
    assert (again.kernel, again.reason) == (None, "rejected: V[0]")
    assert len(wrong.asked) == 1


def test_what_noise_rejected_is_asked_again_in_later_processes_a_bounded_number_of_times(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = {"ratio": 1.05, "low": 1.01, "high": 1.09}
    judge = Judge(lambda k: make_verdict(k, faster=False, reason="noise", timing=noise))
    judge.install(monkeypatch)
    for asked in (1, 2, 3, 3, 3):
        planner = Planner(CHIP, [user, tuned])
        assert planner.plan(BUCKET).reason == planner.plan(BUCKET).reason == "rejected: noise"
        (stored,) = user.verdicts(CHIP.slug, BUCKET)
        assert stored.asked == asked
    # Each time other questions, and another sealed workload.
    assert judge.turns == [0, 1, 2]


@pytest.mark.parametrize("root", ["user", "tuned"])
def test_a_later_process_can_find_faster_what_noise_rejected(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    noise = {"ratio": 1.05, "low": 1.01, "high": 1.09}
    rejected = make_verdict(make_kernel(), faster=False, reason="noise", timing=noise)
    Registry({"user": user, "tuned": tuned}[root].root).publish(CHIP.slug, rejected)
    judge = Judge(make_verdict).install(monkeypatch)
    assert Planner(CHIP, [user, tuned], mode="stored").plan(BUCKET).kernel is None
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel == make_kernel()
    assert judge.turns == [1]
    assert user.verdicts(CHIP.slug, BUCKET)[0].asked == 2


@pytest.mark.parametrize(
    "timing",
    [
        {"ratio": 0.99, "low": 0.97, "high": 1.01},  # slower than what is asked for
        {"ratio": 1.5, "low": 1.4, "high": 1.6},  # rejected for another reason
        {},  # not timed
    ],
)
def test_a_firm_rejection_stays(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch, timing: dict[str, float]
) -> None:
    firm = Judge(lambda k: make_verdict(k, faster=False, reason="firm", timing=timing))
    firm.install(monkeypatch)
    for _ in range(3):
        assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == "rejected: firm"
    assert firm.turns == [0]


def test_what_the_gate_refused_is_said_once_in_one_line(
    user: Registry,
    tuned: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Judge(lambda k: make_verdict(k, faster=False, reason="slow")).install(monkeypatch)
    planner = Planner(CHIP, [user, tuned])
    for bucket in (BUCKET, replace(BUCKET, kv_len=2048)):
        planner.plan(bucket)
    Planner(CHIP, [user, tuned]).plan(BUCKET)  # from what is stored
    seen = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(seen) == 1
    assert BUCKET.slug in seen[0]
    assert "slow" in seen[0]
    assert "evolve" in seen[0]


def test_stages_written_for_this_backend_are_tried_first(
    user: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = replace(CHIP, backend="cuda", slug="nvidia-x", architecture="sm_90")
    for i in range(4):  # whatever the order of their ids
        meta = kernel_meta(name=f"native_{i}")
        meta["launches"][0] |= {"source": "copy.cu", "language": "cuda"}
        shipped = Registry(tmp_path / f"tuned{i}")
        shipped.add(make_kernel())
        shipped.add(Kernel.from_parts(meta, {"copy.cu": COPY_FIRST}))
        judge = Judge(lambda k: make_verdict(k, chip)).install(monkeypatch)
        Planner(chip, [Registry(tmp_path / f"user{i}"), shipped]).plan(BUCKET)
        assert judge.asked[0][1] == f"native_{i}"


def test_of_what_ships_a_search_s_find_is_tried_after_what_was_written_for_all_shapes(
    user: Registry, tmp_path: Path
) -> None:
    for i in range(4):  # whatever the order of their ids
        shipped = Registry(tmp_path / f"tuned{i}")
        for origin in ("run r candidate 1", "handwritten"):
            meta = kernel_meta(name=f"k{i}", origin=origin)
            shipped.add(Kernel.from_parts(meta, {"copy.metal": COPY_FIRST}))
        planner = Planner(CHIP, [user, Registry(shipped.root, writable=False)])
        tried = [contender.kernel.origin for contender in planner.candidates(BUCKET)]
        assert tried == ["handwritten", "run r candidate 1"]


def test_of_accepted_kernels_in_both_registries_what_stands_first_serves(
    user: Registry, tmp_path: Path
) -> None:
    writer = Registry(tmp_path / "tuned")
    shipped = Registry(writer.root, writable=False)

    def add(registry: Registry, name: str, ratio: float, **beside: float) -> None:
        registry.add(make_kernel(name))
        times = {**timed(ratio), **({"beside": beside} if beside else {})}
        registry.publish(CHIP.slug, make_verdict(make_kernel(name), timing=times))

    def served() -> str:
        plan = Planner(CHIP, [user, shipped], mode="stored").plan(BUCKET)
        assert plan.kernel is not None
        return plan.kernel.name

    for registry, name, ratio in ((writer, "found", 1.5), (writer, "written", 1.7)):
        add(registry, name, ratio)
    add(user, "own", 1.6)
    assert served() == "written"
    # In turns with it this one was slower, and the next one faster.
    add(user, "slower", 1.9, standing=1.68)
    assert served() == "written"
    add(user, "faster", 1.4, standing=1.75)
    assert served() == "faster"
    planner = Planner(CHIP, [user, shipped])
    assert [v.standing for v in planner.verdicts(BUCKET)] == [1.75, 1.7, 1.68, 1.6, 1.5]
    assert serving(CHIP, [user, shipped], BUCKET) == (
        make_kernel("faster"),
        planner.verdicts(BUCKET)[0],
    )
    user.clear()
    assert served() == "written"
    assert serving(OTHER, [user, shipped], BUCKET) is None


def test_a_kernel_that_a_person_named_is_timed_beside_what_serves_without_it(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(make_verdict).install(monkeypatch)
    Planner(CHIP, [user, tuned]).plan(BUCKET)
    Planner(CHIP, [user, tuned], only=make_kernel("mine")).plan(BUCKET)
    assert judge.asked == [("judge", "copy_first"), ("judge_in_worker", "mine")]
    assert judge.rivals == [None, (make_kernel(), make_verdict(make_kernel()))]


def test_ctrl_c_that_a_library_disguised_is_not_swallowed(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(kernel: Kernel) -> Verdict:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("cleaning up") from error

    Judge(pressed).install(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        Planner(CHIP, [user, tuned]).plan(BUCKET)


def test_correct_but_not_faster_serves_only_where_that_was_asked_for(
    user: Registry, tuned: Registry
) -> None:
    user.publish(CHIP.slug, make_verdict(make_kernel(), faster=False, reason="0.9x"))
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel is None
    relaxed = Planner(CHIP, [user, tuned], require_faster=False).plan(BUCKET)
    assert relaxed.kernel == make_kernel()
    # The wish of that call is not stored.
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == "rejected: 0.9x"


@pytest.mark.parametrize("changed", ["architecture", "mlx", "gate"])
def test_a_verdict_of_another_fingerprint_is_judged_again(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    made = make_verdict(make_kernel())
    stale = {**fingerprint(CHIP, gate_version("attention")), changed: "other"}
    user.publish(CHIP.slug, make_verdict(make_kernel(), fingerprint=stale))
    judge = Judge(make_verdict).install(monkeypatch)
    assert Planner(CHIP, [user, tuned], mode="stored").plan(BUCKET).kernel is None
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel == make_kernel()
    assert len(judge.asked) == 1
    # The old one stays beside it: it counts again for whoever goes back to that version.
    kept = user.verdicts(CHIP.slug, BUCKET)
    assert {v.fingerprint[changed] for v in kept} == {"other", made.fingerprint[changed]}
    assert made in kept
    assert len(kept) == 2


def test_what_ships_serves_under_the_gate_before_and_what_the_user_has_does_not(
    user: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_lm_openevolve.kernels.verdict.GATE_VERSION", 9)
    stamp = {**fingerprint(CHIP, gate_version("attention")), "gate": TUNED_GATE}
    writer = Registry(tmp_path / "tuned")
    writer.add(make_kernel())
    shipped = Registry(tmp_path / "tuned", writable=False)
    for registry, serves in ((user, False), (writer, True)):
        registry.publish(CHIP.slug, make_verdict(make_kernel(), fingerprint=stamp))
        plan = Planner(CHIP, [user, shipped], mode="stored").plan(BUCKET)
        assert (plan.kernel is not None) == serves
    other = {**stamp, "gate": "1.1"}
    assert not make_verdict(make_kernel(), fingerprint=other).counts_for(
        fingerprint(CHIP, gate_version("attention")), shipped=True
    )


def test_the_users_own_verdict_overrules_the_shipped_one(user: Registry, tmp_path: Path) -> None:
    shipped = Registry(tmp_path / "tuned")
    shipped.add(make_kernel())
    shipped.publish(CHIP.slug, make_verdict(make_kernel()))
    assert Planner(CHIP, [user, shipped], mode="stored").plan(BUCKET).kernel is not None
    user.publish(CHIP.slug, make_verdict(make_kernel(), faster=False, reason="slower here"))
    plan = Planner(CHIP, [user, shipped], mode="stored").plan(BUCKET)
    assert (plan.kernel, plan.reason) == (None, "rejected: slower here")


def test_what_won_on_another_chip_is_tried_first_with_its_params(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.publish(OTHER.slug, make_verdict(make_kernel(), OTHER, params={"threads": 64}))
    params: list[dict[str, int]] = []

    def judge(kernel: Kernel, given: Mapping[str, int], *_: Any, **__: Any) -> Verdict:
        params.append(dict(given))
        return make_verdict(kernel, params=dict(given), correct=False, faster=False, reason="no")

    monkeypatch.setattr(gate, "judge", judge)
    monkeypatch.setattr(gate_worker, "judge_in_worker", judge)
    Planner(CHIP, [user, tuned]).plan(BUCKET)
    assert params == [{"threads": 64}, {"threads": 32}]


def test_a_kernel_of_unknown_origin_is_judged_in_a_worker(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(make_verdict).install(monkeypatch)
    named = make_kernel("mine")
    plan = Planner(CHIP, [user, tuned], only=named).plan(BUCKET)
    assert plan.kernel == named
    assert judge.asked == [("judge_in_worker", "mine")]
    assert user.kernel(named.id) == named


def test_a_named_kernel_is_the_only_one_considered(user: Registry, tuned: Registry) -> None:
    user.publish(CHIP.slug, make_verdict(make_kernel()))
    plan = Planner(CHIP, [user, tuned], mode="stored", only=make_kernel("mine")).plan(BUCKET)
    assert plan.kernel is None


def test_a_kernel_that_ends_its_worker_is_never_tried_again(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = make_kernel("crasher")
    dead = make_verdict(named, correct=False, faster=False, reason="the worker died")

    def crash(kernel: Kernel) -> Verdict:
        raise Poisoned(dead)

    judge = Judge(crash).install(monkeypatch)
    assert Planner(CHIP, [user, tuned], only=named).plan(BUCKET).kernel is None
    assert list(user.poisoned(CHIP.slug)) == [named.id]
    longer = replace(BUCKET, kv_len=4096)
    assert Planner(CHIP, [user, tuned], only=named).plan(longer).kernel is None
    assert len(judge.asked) == 1


def test_a_stage_written_for_another_backend_is_no_candidate(
    user: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = kernel_meta()
    meta["launches"][0] |= {"source": "copy.cu", "language": "cuda"}
    native = Kernel.from_parts(meta, {"copy.cu": COPY_FIRST})
    Registry(tmp_path / "tuned").add(native)
    judge = Judge(make_verdict).install(monkeypatch)
    tuned = Registry(tmp_path / "tuned", writable=False)
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == "no kernel applies"
    assert judge.asked == []
    card = replace(CHIP, backend="cuda", slug="nvidia-x", architecture="sm_90")
    Planner(card, [user, tuned]).plan(BUCKET)
    assert judge.asked == [("judge", "copy_first")]


def test_on_the_host_nothing_is_gated_to_be_faster(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(make_verdict).install(monkeypatch)
    host = replace(CHIP, backend="host", slug="host")
    assert Planner(host, [user, tuned]).plan(BUCKET).reason == NEVER_FASTER.format("SDPA")
    assert judge.asked == []
    Planner(host, [user, tuned], require_faster=False).plan(BUCKET)
    assert judge.asked == [("judge", "copy_first")]


def test_no_kernel_applies(user: Registry, tuned: Registry) -> None:
    plan = Planner(CHIP, [user, tuned]).plan(replace(BUCKET, mask="bool"))
    assert (plan.kernel, plan.reason) == (None, "no kernel applies")


def test_what_the_budget_does_not_reach_is_pending_and_stored_nowhere(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(kernel: Kernel) -> Verdict:
        time.sleep(0.06)
        return make_verdict(kernel)

    judge = Judge(slow).install(monkeypatch)
    monkeypatch.setitem(BUDGETS, "metal", GateBudget(1.0, 0.05))
    planner = Planner(CHIP, [user, tuned])
    assert planner.plan(BUCKET).kernel is not None
    late = planner.plan(replace(BUCKET, kv_len=4096))
    assert (late.kernel, late.reason) == (None, PENDING)
    assert len(judge.asked) == 1
    assert len(user.workloads(CHIP.slug)) == 1


def test_a_gate_that_runs_out_of_time_leaves_the_workload_pending(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timeout(kernel: Kernel) -> Verdict:
        raise GateTimeout("2 s")

    Judge(timeout).install(monkeypatch)
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == PENDING
    assert user.workloads(CHIP.slug) == []


def test_time_that_is_too_short_is_not_spent_in_every_process(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timeout(kernel: Kernel) -> Verdict:
        raise GateTimeout("2 s")

    judge = Judge(timeout).install(monkeypatch)
    reasons = [Planner(CHIP, [user, tuned]).plan(BUCKET).reason for _ in range(5)]
    assert reasons == [PENDING] * MAX_TIMEOUTS + [UNDECIDED] * (5 - MAX_TIMEOUTS)
    assert len(judge.asked) == MAX_TIMEOUTS
    # Another workload, or a new version of MLX, is another matter.
    assert Planner(CHIP, [user, tuned]).plan(replace(BUCKET, kv_len=4096)).reason == PENDING
    planner = Planner(CHIP, [user, tuned])
    planner.stamp(BUCKET.op)["mlx"] = "9.9"
    assert planner.plan(BUCKET).reason == PENDING
    # A verdict from elsewhere decides.
    user.publish(CHIP.slug, make_verdict(make_kernel()))
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel == make_kernel()


def test_what_is_left_of_a_spent_budget_counts_for_nothing(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timeout(kernel: Kernel) -> Verdict:
        time.sleep(0.06)
        raise GateTimeout("2 s")

    Judge(timeout).install(monkeypatch)
    monkeypatch.setitem(BUDGETS, "metal", GateBudget(1.0, 1.05))
    planner = Planner(CHIP, [user, tuned])
    longer = replace(BUCKET, kv_len=4096)
    assert [planner.plan(w).reason for w in (BUCKET, longer)] == [PENDING, PENDING]
    stamp = planner.stamp(BUCKET.op)
    assert [user.timeouts(CHIP.slug, w, stamp) for w in (BUCKET, longer)] == [1, 0]


def test_what_was_spent_on_waiting_for_another_process_counts_for_nothing(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three servers that start at once, the first of which comes to no verdict."""

    def timeout(kernel: Kernel) -> Verdict:
        raise GateTimeout("2 s")

    Judge(timeout).install(monkeypatch)
    monkeypatch.setitem(BUDGETS, "metal", GateBudget(1.0, 3.0))
    planner = Planner(CHIP, [user, tuned])
    about = CHIP.slug, BUCKET, planner.stamp(BUCKET.op)
    held, free = threading.Event(), threading.Event()

    def other() -> None:
        with Registry(user.root).gating(CHIP.slug, BUCKET, 1.0) as ours:
            assert ours
            held.set()
            free.wait(0.4)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    assert planner.plan(BUCKET).reason == PENDING
    thread.join()
    assert user.timeouts(*about) == 0
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == PENDING
    assert user.timeouts(*about) == 1


def test_what_was_accepted_before_the_machine_failed_serves(
    user: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        Registry(tmp_path / "tuned").add(make_kernel(name))
    judged: list[Kernel] = []

    def then_full(kernel: Kernel) -> Verdict:
        if judged:
            raise MachineError("[METAL] Insufficient Memory")
        judged.append(kernel)
        return make_verdict(kernel)

    Judge(then_full).install(monkeypatch)
    tuned = Registry(tmp_path / "tuned", writable=False)
    planner = Planner(CHIP, [user, tuned])
    assert planner.plan(BUCKET).kernel == judged[0]
    assert user.timeouts(CHIP.slug, BUCKET, planner.stamp(BUCKET.op)) == 0


def test_memory_that_does_not_suffice_is_what_is_said(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(kernel: Kernel) -> Verdict:
        raise GateMemory("needs 1500 MiB, 168 MiB are free")

    judge = Judge(full).install(monkeypatch)
    reasons = [Planner(CHIP, [user, tuned]).plan(BUCKET).reason for _ in range(5)]
    said = "needs 1500 MiB, 168 MiB are free"
    undecided = FAILED.format(MAX_TIMEOUTS, said)
    assert reasons == [f"pending: {said}"] * MAX_TIMEOUTS + [undecided] * (5 - MAX_TIMEOUTS)
    assert len(judge.asked) == MAX_TIMEOUTS
    assert user.workloads(CHIP.slug) == []


def test_a_registry_that_cannot_be_written_still_serves_this_process(
    tmp_path: Path, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    Judge(make_verdict).install(monkeypatch)
    plan = Planner(CHIP, [Registry(tmp_path / "file"), tuned]).plan(BUCKET)
    assert plan.kernel == make_kernel()


def test_threads_that_ask_at_once_gate_once(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(lambda k: (time.sleep(0.05), make_verdict(k))[1]).install(monkeypatch)
    planner = Planner(CHIP, [user, tuned])
    threads = [threading.Thread(target=planner.plan, args=(BUCKET,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(judge.asked) == 1


def test_nothing_is_gated_while_another_thread_is_at_work(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(make_verdict).install(monkeypatch)
    planner, other = Planner(CHIP, [user, tuned]), replace(BUCKET, kv_len=2048)
    planner.seen()
    thread = threading.Thread(target=planner.seen)
    thread.start()
    thread.join()
    assert planner.plan(BUCKET).reason == BUSY
    assert not judge.asked
    assert not user.verdicts(CHIP.slug, BUCKET)
    monkeypatch.setattr("mlx_lm_openevolve.runtime.planner._AT_WORK", 0.0)
    assert planner.plan(other).kernel == make_kernel()
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel == make_kernel(), "the next process"


def _plan_in_a_process(root: Path, log: Path) -> None:
    def judge(kernel: Kernel, *_: Any, **__: Any) -> Verdict:
        with log.open("a") as file:
            file.write("judged\n")
        time.sleep(0.3)
        return make_verdict(kernel)

    gate.judge = judge
    planner = Planner(CHIP, [Registry(root / "user"), Registry(root / "tuned", writable=False)])
    assert planner.plan(BUCKET).kernel is not None


def test_processes_that_ask_at_once_gate_once(tmp_path: Path, tuned: Registry) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [context.Process(target=_plan_in_a_process, args=(tmp_path, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert log.read_text() == "judged\n"


def test_a_verdict_that_one_process_began_another_ends(
    user: Registry, tuned: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = make_verdict(make_kernel(), faster=None, reason="correct; speed unknown", timing={})
    judge = Judge(lambda k: half).install(monkeypatch)
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).reason == PENDING
    assert judge.proven == [None]
    judge.answer = make_verdict
    assert Planner(CHIP, [user, tuned]).plan(BUCKET).kernel == make_kernel()
    assert judge.proven == [None, half]
    assert [v.faster for v in user.verdicts(CHIP.slug, BUCKET)] == [True]


def test_a_prompt_waits_one_process_for_what_comes_with_every_token(
    user: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, meta = replace(BUCKET, q_len=2048), kernel_meta(applies="head_dim == v_head_dim")
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    user.add(kernel)
    judge = Judge(lambda k: make_verdict(k, workload=prompt.slug)).install(monkeypatch)
    assert Planner(CHIP, [user]).plan(prompt).reason == DEFERRED
    assert judge.asked == []
    assert Planner(CHIP, [user]).plan(prompt).kernel == kernel


def test_what_won_at_a_neighbouring_length_is_tried_first(user: Registry) -> None:
    meta = kernel_meta(params={"threads": {"values": [32, 64], "default": "32"}})
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    user.add(kernel)
    for n in (512, 4096):
        near = replace(BUCKET, kv_len=n)
        params = {"threads": 64 if n == 512 else 32}
        user.publish(CHIP.slug, make_verdict(kernel, workload=near.slug, params=params))
    tried = [dict(c.params) for c in Planner(CHIP, [user]).candidates(BUCKET)]
    assert tried == [{"threads": 64}, {"threads": 32}]  # 4096 is no neighbour of 1024


@pytest.mark.parametrize(
    ("argv", "model"),
    [
        (["mlx_lm.generate", "--model", "a b", "--prompt", "x"], "'a b'"),
        (["run", "--model=org/name"], "org/name"),
        (["script.py"], "MODEL"),
        (["run", "--model"], "MODEL"),
    ],
)
def test_the_line_for_a_person_names_tune_for_this_model(argv: list[str], model: str) -> None:
    assert tune_command(argv, "cuda") == f"mlx-lm-openevolve tune --model {model}"
    on_host = f"mlx-lm-openevolve tune --backend host --model {model}"
    assert tune_command(argv, "host") == on_host
