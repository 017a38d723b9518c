"""The gate: the only place that decides that a kernel may run.

    static rules -> mutants (can this gate say no here?) -> correctness -> speed -> Verdict

`judge` works in this process, within a time and memory budget and without a trace in the caller's
random state or streams. See worker.py for the same in a process that can be killed,
and host_check.py for a kernel under metalhost's sanitizer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from .. import backends, ops
from ..backends.trouble import machines
from ..device import Device, detect, fingerprint
from ..errors import BackendError, GateMemory, GateTimeout, KernelError
from ..kernels.kernel import Kernel
from ..kernels.verdict import UNTIMED, Verdict, gate_version
from ..ops import Bucket, Workload
from ..ops.base import Call
from .correctness import (
    FREED,
    Buffers,
    Build,
    Calls,
    MutantTrial,
    Outcome,
    drawn_seed,
    passes,
    try_mutants,
)
from .limits import Clock, memory_for, undisturbed
from .source_mutants import matrix
from .speed import Rival, compare, first_look
from .static_rules import static_rules

__all__ = ["Judgement", "judge", "judge_calls", "verdict_of"]


@dataclass(frozen=True)
class Judgement:
    """What the gate decided on a contender, before it becomes a verdict. faster is None where
    speed was not measured."""

    correct: bool = False
    faster: bool | None = False
    reason: str = ""
    errors: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    mutants: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)


def judge(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    backend: str,
    *,
    seconds: float,
    speed: bool = True,
    brief: bool = False,
    seed: int | None = None,
    turn: int = 0,
    elsewhere: int = 0,
    staged: bool = False,
    wait: float = math.inf,
    proven: Verdict | None = None,
    rival: tuple[Kernel, Verdict] | None = None,
) -> Verdict:
    """The verdict on a kernel for a workload's bucket, in this process.

    speed=False leaves the speed step out: such a verdict says nothing of it. brief: ask no more
    than a first use has time for. seed: of what is drawn, None to draw that as well; turn: one more
    for each verdict that was asked for before. elsewhere: bytes of the device that the process
    which asked has in use. staged: what a first look shows to be slower is rejected unasked, and
    where time ends after correctness the verdict says that (faster is None). wait: seconds that may
    pass in all, compilation included. proven: such a verdict, of this gate on this device: its
    speed alone is measured. rival: what serves the bucket here already, and its verdict: what is
    accepted is timed beside it. Raises GateTimeout where `seconds` do not suffice, BackendError
    where the backend cannot run here at all, and MachineError where the machine is to blame.
    """
    clock = Clock(seconds, wait)
    seed = drawn_seed(turn) if seed is None else seed + turn
    module = backends.get(backend)
    if module.unavailable():
        raise BackendError(f"backend {backend}: {module.unavailable()}")
    bucket, device = workload.bucket(), detect(backend)
    reason = static_rules(kernel, params, bucket)
    serves = rival and (rival[0].id, dict(rival[1].params)) == (kernel.id, dict(params))
    if reason:
        judgement = Judgement(reason=reason)
    else:
        judgement = judge_calls(
            lambda exact: module.build(kernel, params, exact),
            bucket,
            device,
            clock,
            seed=seed,
            speed=speed and backend != "host",
            brief=brief,
            label=f"{kernel.id} {sorted(params.items())}",
            buffers=lambda exact: _intermediates(kernel, params, exact),
            elsewhere=elsewhere,
            staged=staged and backend != "host",
            proven=_judgement(proven) if proven else None,
            rival=_rival(rival, module.build) if rival and not serves else None,
        )
        if judgement.faster and rival and serves:  # judged once more it keeps its place
            beside = {"standing": rival[1].standing}
            judgement = replace(judgement, timing={**judgement.timing, "beside": beside})
        if judgement.correct and backend == "host":
            judgement = replace(judgement, faster=False, reason=UNTIMED)
    return verdict_of(kernel, params, bucket, device, judgement, seed)


def _rival(rival: tuple[Kernel, Verdict], build: Callable[..., Call]) -> Rival:
    kernel, verdict = rival
    return Rival(lambda exact: build(kernel, verdict.params, exact), verdict)


def _judgement(verdict: Verdict) -> Judgement:
    """What a verdict holds that was proven before."""
    return Judgement(verdict.correct, None, errors=verdict.errors, mutants=verdict.mutants)


def verdict_of(
    kernel: Kernel,
    params: Mapping[str, int],
    bucket: Bucket,
    device: Device,
    judgement: Judgement,
    seed: int,
    **evidence: Any,
) -> Verdict:
    """A judgement as it is stored, with what it was made by."""
    questions = ops.of(bucket).questions
    return Verdict(
        kernel=kernel.id,
        params=dict(params),
        workload=bucket.slug,
        correct=judgement.correct,
        faster=judgement.faster,
        reason=judgement.reason,
        fingerprint=fingerprint(device, gate_version(bucket.op)),
        errors=dict(judgement.errors),
        timing=dict(judgement.timing),
        mutants=dict(judgement.mutants),
        evidence={
            "seed": seed,
            "unit": questions.unit,
            "baseline": questions.baseline_name(bucket.largest()),
            **evidence,
        },
        raw=dict(judgement.raw),
    )


def _intermediates(
    kernel: Kernel, params: Mapping[str, int], exact: Workload
) -> list[tuple[tuple[int, ...], mx.Dtype]]:
    return [
        (shape, backends.dtype_of(dtype))
        for launch in kernel.launches(exact, params)
        for name, shape, dtype in launch.outputs
        if name != "out"
    ]


# The steps, for anything that can be called: kernels, mutants and MLX's own operations


def judge_calls(
    build: Build,
    bucket: Bucket,
    device: Device,
    clock: Clock,
    *,
    seed: int = 0,
    speed: bool = True,
    brief: bool = False,
    label: str = "",
    buffers: Callable[[Workload], Buffers] = lambda exact: (),
    elsewhere: int = 0,
    staged: bool = False,
    proven: Judgement | None = None,
    rival: Rival | None = None,
) -> Judgement:
    """Mutants, correctness and speed for whatever `build` makes of exact workloads of a bucket.

    `label` names the contender: the sealed workload is drawn from it. brief, staged, proven, rival:
    as for `judge`. Raises GateTimeout and MachineError.
    """
    memory = memory_for(device, elsewhere)
    # Inputs, their negatives or another set of them, the answers and what fills freed buffers; what
    # the original, which goes through the same questions, takes for itself; what the contender
    # writes between its launches, and what fills that.
    needed = 3 * bucket.moved_bytes() + bucket.scratch_bytes() + _between(bucket, buffers)
    if needed > memory:
        raise GateMemory(f"{bucket.slug}: needs {needed >> 20} MiB, {memory >> 20} MiB are free")
    judged = Judgement()
    with machines():
        try:
            with undisturbed():
                if staged and proven is None:
                    look = first_look(build, bucket, device, clock, seed, memory)
                    if look is not None:
                        raw = {"samples": look.samples}
                        return Judgement(reason=look.reason, timing=look.timing, raw=raw)
                judged = proven or _proven(build, bucket, clock, seed, brief, buffers)
                if not judged.correct:
                    return judged
                half = replace(judged, faster=None, reason="correct; speed was not measured")
                if not speed:
                    return half
                try:
                    timed = compare(build, bucket, device, clock, seed, label, memory, rival)
                except GateTimeout:
                    if staged and proven is None:
                        return half
                    raise
                return replace(
                    judged,
                    correct=timed.correct,
                    faster=timed.faster,
                    reason=timed.reason,
                    timing=timed.timing,
                    raw={**judged.raw, "samples": timed.samples},
                )
        except RuntimeError:
            # After a kernel's fault the device serves nobody in this process: the verdict stands.
            if judged.reason:
                return judged
            raise


def _between(bucket: Bucket, buffers: Callable[[Workload], Buffers]) -> int:
    """Bytes of intermediate outputs and of what fills their freed buffers; 0 where a kernel has no
    launch."""
    try:
        outputs = buffers(bucket.largest())
        return sum((1 + FREED) * math.prod(shape) * dtype.size for shape, dtype in outputs)
    except KernelError:
        return 0


def _proven(
    build: Build,
    bucket: Bucket,
    clock: Clock,
    seed: int,
    brief: bool,
    buffers: Callable[[Workload], Buffers],
) -> Judgement:
    """Mutants and correctness; with a reason where it is a rejection."""
    seeds, mutants, reason = _mutants(bucket, seed, clock)
    if reason:
        return Judgement(reason=reason, mutants=mutants)
    outcome, errors, cases = _correct(build, bucket, clock, seeds, brief, buffers)
    raw = {"cases": cases}
    correct = not outcome.reason
    return Judgement(correct, False, outcome.reason, errors, mutants=mutants, raw=raw)


# From one seed to that of further questions.
_MORE = 1 << 20
_trials: dict[tuple[Bucket, int], MutantTrial] = {}


def _mutants(
    bucket: Bucket, seed: int, clock: Clock
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """(seeds of the questions that all array mutants together fail, evidence, why this gate cannot
    be trusted on a bucket). Those mutants are tried here; source mutants were tried on a host, once
    for each version of the gate. Where a mutant lives through what was drawn, more is drawn."""
    questions, version = ops.of(bucket).questions, gate_version(bucket.op)
    seeds: tuple[int, ...] = (seed,)
    trial = _try_mutants(questions.proxy(bucket), seed, clock)
    if trial.survivors and not trial.broken:
        seeds = (seed, seed + _MORE)
        trial = trial.also(_try_mutants(questions.proxy(bucket), seeds[1], clock))
    key = questions.matrix_key(bucket)
    source = matrix(bucket.op).get(key, {})
    evidence = {
        "killed": trial.killed,
        "of": trial.of,
        "survivors": [*trial.survivors, *source.get("survivors", ())],
        "on": trial.on,
        "source": {"killed": len(source.get("killed", ())), "kernel": source.get("kernel", "")},
    }
    if trial.reason or not key:
        return seeds, evidence, trial.reason
    reason = ""
    if source.get("gate") != version or not source["killed"]:
        reason = f"no source mutants were tried for {key} by gate {version}"
    elif source["survivors"]:
        passed, of = len(source["survivors"]), len(source["killed"]) + len(source["survivors"])
        reason = f"nothing can be proven here: {passed} of {of} kernels made wrong in their source"
        reason += " pass as well"
    return seeds, evidence, reason


def _try_mutants(small: Bucket, seed: int, clock: Clock) -> MutantTrial:
    """The mutants of a proxy workload, tried once in a process."""
    key = (small, seed)
    if key not in _trials:
        asked = ops.of(small).questions
        with clock.paused():  # MLX's own functions
            questions = [case() for case in asked.cases(small, seed, brief=True)]
            passes(asked.correct.build, questions[:1])
        _trials[key] = try_mutants(small, questions, lambda: clock.check("mutants"))
    return _trials[key]


def _correct(
    build: Build,
    bucket: Bucket,
    clock: Clock,
    seeds: Sequence[int],
    brief: bool,
    buffers: Callable[[Workload], Buffers],
) -> tuple[Outcome, dict[str, Any], list[dict[str, Any]]]:
    """(first outcome that is no pass, errors, the single cases)."""
    calls, outcome = Calls(build, clock.paused), Outcome()
    outcomes: list[Outcome] = []
    own: list[tuple[float, float]] = []
    cases: list[dict[str, Any]] = []
    asked = ops.of(bucket).questions
    for case in itertools.chain(*(asked.cases(bucket, seed, brief) for seed in seeds)):
        clock.check("correctness")
        with nullcontext() if outcomes else clock.paused():  # MLX's own function at this size
            question = case()
        try:
            extra = buffers(question.workload)
        except KernelError as error:
            return Outcome(str(error)), {}, []
        outcome = calls(question, extra)
        outcomes.append(outcome)
        own.append(question.own)
        cases.append(
            {
                "name": question.name,
                "max": outcome.max,
                "avg": outcome.average,
                "margin": outcome.margin,
            }
        )
        if outcome.reason:
            break
    errors = {
        "max_difference": max(o.max for o in outcomes),
        "avg_difference": max(o.average for o in outcomes),
        "margin": min(o.margin for o in outcomes),
        "stock": {
            "max_difference": max(worst for worst, _ in own),
            "avg_difference": max(average for _, average in own),
        },
    }
    return outcome, errors, cases
