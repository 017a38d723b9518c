"""Gate: the only place that decides that a kernel may run.

    static rules -> mutants (can this gate say no here?) -> correctness -> speed -> Verdict

`judge` works in this process, within a time and memory budget and without a trace in the caller's
random state, peak memory or streams; `judge_in_worker` does the same in a process that can be
killed, for kernels of unknown origin. `check_on_host` runs a kernel under metalhost's sanitizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import backends
from ..device import Device, detect, fingerprint, version_of
from ..errors import BackendError, KernelError, MachineError, OpenEvolveError
from ..kernels.kernel import INPUTS, Kernel
from ..kernels.verdict import Verdict
from ..ops.attention.mutants import proxy
from ..ops.attention.reference import baseline_name, cases
from ..ops.attention.workload import Workload
from . import correctness as exam
from .correctness import Build, Calls, Outcome, Result
from .limits import GATE_VERSION, Clock, GateTimeout, memory_for, undisturbed
from .source_mutants import matrix
from .speed import FASTER, race

__all__ = [
    "FASTER",
    "GATE_VERSION",
    "GateTimeout",
    "Poisoned",
    "check_on_host",
    "judge",
    "judge_in_worker",
    "static_rules",
]


class Poisoned(OpenEvolveError):
    """A kernel ended its worker process; `verdict` is its rejection."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


@dataclass(frozen=True)
class Finding:
    """What the gate found out about one contender, before it becomes a verdict."""

    correct: bool = False
    faster: bool = False
    reason: str = ""
    errors: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    mutants: Mapping[str, Any] = field(default_factory=dict)


def judge(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    backend: str,
    *,
    seconds: float,
    speed: bool = True,
    seed: int = 0,
) -> Verdict:
    """The verdict on a kernel for a workload's bucket, in this process.

    speed=False leaves the speed step out: such a verdict is never `faster`. Raises GateTimeout
    where `seconds` do not suffice, and BackendError where the backend cannot run here at all.
    """
    clock = Clock(seconds)
    module = backends.get(backend)
    if module.unavailable():
        raise BackendError(f"backend {backend}: {module.unavailable()}")
    bucket, device = workload.bucket(), detect(backend)
    reason = static_rules(kernel, params, bucket)
    if reason:
        found = Finding(reason=reason)
    else:
        found = weigh(
            lambda exact: module.build(kernel, params, exact),
            bucket,
            device,
            clock,
            seed=seed,
            speed=speed and backend != "host",
            label=f"{kernel.id} {sorted(params.items())}",
            buffers=lambda exact: _intermediates(kernel, params, exact),
        )
        if found.correct and backend == "host":
            found = replace(found, reason="the host backend proves correctness, it is never faster")
    return _verdict(kernel, params, bucket, device, found, seed)


def _verdict(
    kernel: Kernel,
    params: Mapping[str, int],
    bucket: Workload,
    device: Device,
    found: Finding,
    seed: int,
    **evidence: Any,
) -> Verdict:
    return Verdict(
        kernel=kernel.id,
        params=dict(params),
        workload=bucket.slug,
        correct=found.correct,
        faster=found.faster,
        reason=found.reason,
        fingerprint=fingerprint(device, GATE_VERSION),
        errors=dict(found.errors),
        timing=dict(found.timing),
        mutants=dict(found.mutants),
        evidence={
            "seed": seed,
            "unit": "sum of p |v|",
            "baseline": baseline_name(bucket),
            **evidence,
        },
    )


# Static rules: what a kernel of the family must say in its own text


def static_rules(kernel: Kernel, params: Mapping[str, int], bucket: Workload) -> str:
    """The first static rule that a kernel breaks for a bucket, "" where it breaks none."""
    try:
        if not kernel.applies_to(bucket):
            return "the kernel does not apply to this workload"
        launches = kernel.launches(bucket, params)
    except KernelError as error:
        return str(error)
    text = "\n".join(_code(launch.stage.source + launch.stage.header) for launch in launches)
    read = {name for launch in launches for name in launch.stage.inputs}
    wanted = set(INPUTS[bucket.op])
    wanted -= set() if bucket.mask in ("bool", "additive") else {"mask"}
    wanted -= set() if bucket.sinks else {"sinks"}
    for name in sorted(wanted):
        if name not in read or not re.search(rf"\b{name}\b", text):
            return f"no stage reads {name}"
    if "__cluster_dims__" in text:
        # MLX 0.32 updates its CUDA graphs without the cluster's size: other launches go wrong.
        return "a stage sets __cluster_dims__, which MLX's graphs do not carry"
    if not re.search(r"\bkeys_shape\s*\[\s*2\s*\]", text):
        return "the exact KV length is not read: no stage has keys_shape[2]"
    return ""


def _code(source: str) -> str:
    """A source without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)


def _intermediates(
    kernel: Kernel, params: Mapping[str, int], exact: Workload
) -> list[tuple[tuple[int, ...], mx.Dtype]]:
    return [
        (shape, backends.dtype_of(dtype))
        for launch in kernel.launches(exact, params)
        for name, shape, dtype in launch.outputs
        if name != "out"
    ]


# The steps, for anything that can be called: kernels, mutants and MLX's own attention


def weigh(
    build: Build,
    bucket: Workload,
    device: Device,
    clock: Clock,
    *,
    seed: int = 0,
    speed: bool = True,
    label: str = "",
    buffers: Callable[[Workload], exam.Buffers] = lambda exact: (),
) -> Finding:
    """Mutants, correctness and speed for whatever `build` makes of exact workloads of a bucket.

    `label` names the contender: the sealed length is drawn from it. Raises GateTimeout.
    """
    memory = memory_for(device)
    if 3 * bucket.kv_bytes() > memory:
        raise GateTimeout(
            f"{bucket.slug}: needs {3 * bucket.kv_bytes() >> 20} MiB, {memory >> 20} MiB are free"
        )
    with undisturbed():
        mutants, reason = _mutants(bucket, seed, clock)
        if reason:
            return Finding(reason=reason, mutants=mutants)
        outcome, errors, limit = _correct(build, bucket, clock, seed, buffers)
        found = Finding(not outcome.reason, False, outcome.reason, errors, {}, mutants)
        if outcome.reason:
            return found
        if not speed:
            return replace(found, reason="correct; speed was not measured")
        faster, reason, times = race(build, bucket, device, clock, seed, label, memory, limit)
        return replace(found, faster=faster, reason=reason, timing=times)


_trials: dict[tuple[Workload, int], Result] = {}


def _mutants(bucket: Workload, seed: int, clock: Clock) -> tuple[dict[str, Any], str]:
    """(evidence, why this gate cannot be trusted on a bucket): array mutants are put up here,
    source mutants were put up on a host, once for each gate version."""
    trial = _try_mutants(proxy(bucket), seed, clock)
    key = f"{bucket.op}/{bucket.dtype}/{bucket.mask}"
    source = matrix().get(key, {})
    evidence = {
        "killed": trial.killed,
        "of": trial.of,
        "survivors": [*trial.survivors, *source.get("survivors", ())],
        "on": trial.on,
        "source": {"killed": len(source.get("killed", ())), "kernel": source.get("kernel", "")},
    }
    if trial.reason:
        return evidence, trial.reason
    if source.get("gate") != GATE_VERSION or not source["killed"]:
        return evidence, f"no source mutants were put up for {key} by gate {GATE_VERSION}"
    if source["survivors"]:
        return evidence, f"source mutants survived for {key}: {', '.join(source['survivors'])}"
    return evidence, ""


def _try_mutants(small: Workload, seed: int, clock: Clock) -> Result:
    """The mutants of a proxy workload, put up once in a process."""
    key = (small, seed)
    if key not in _trials:
        questions = [exam.prepare(case) for case in cases(small, seed)]
        _trials[key] = exam.try_mutants(small, questions, lambda: clock.check("mutants"))
    return _trials[key]


def _correct(
    build: Build,
    bucket: Workload,
    clock: Clock,
    seed: int,
    buffers: Callable[[Workload], exam.Buffers],
) -> tuple[Outcome, dict[str, Any], float]:
    """(first outcome that is no pass, evidence, largest error that any case allowed)."""
    calls, found, own = Calls(build), [], []
    outcome, limit = Outcome(), 0.0
    for case in cases(bucket, seed):
        clock.check(case.name)
        question = exam.prepare(case)
        try:
            extra = buffers(case.workload)
        except KernelError as error:
            return Outcome(str(error)), {}, 0.0
        outcome = calls(question, extra)
        found.append((case.name, outcome))
        own.append(question.own)
        limit = max(limit, question.limits[0])
        if outcome.reason:
            break
    errors = {
        "max_difference": max(o.max for _, o in found),
        "avg_difference": max(o.average for _, o in found),
        "margin": min(o.margin for _, o in found),
        "sdpa": {
            "max_difference": max(worst for worst, _ in own),
            "avg_difference": max(average for _, average in own),
        },
        "cases": [
            {"name": name, "max": o.max, "avg": o.average, "margin": o.margin} for name, o in found
        ],
    }
    return outcome, errors, limit


# The host check: a kernel under metalhost's sanitizer, on small shapes of its workload


def check_on_host(
    kernel: Kernel, params: Mapping[str, int], workload: Workload, *, seed: int = 0
) -> dict[str, Any]:
    """Run a kernel on the CPU with every check of metalhost, on a small workload that asks the
    same; needs a clang. Returns a record for Registry.add_host_check: params, workload, ok,
    reason, metalhost's version and seconds. Raises BackendError where no clang is at hand.
    """
    host = backends.get("host")
    if host.unavailable():
        raise BackendError(host.unavailable())
    start = time.monotonic()
    small = _small(kernel, workload.bucket())
    reason = static_rules(kernel, params, small)
    if not reason:
        questions = (exam.prepare(case) for case in cases(small, seed))
        found = exam.passes(
            lambda exact: host.build(kernel, params, exact, sanitize=True), questions
        )
        reason = found.reason
    return {
        "params": dict(params),
        "workload": workload.bucket().slug,
        "on": small.slug,
        "ok": not reason,
        "reason": reason,
        "gate": GATE_VERSION,
        "version": version_of("mlx-lm-openevolve"),
        "seconds": round(time.monotonic() - start, 2),
    }


def _small(kernel: Kernel, bucket: Workload) -> Workload:
    """The smallest proxy of a bucket that the kernel still applies to."""
    small = proxy(bucket)
    while small.kv_len < bucket.kv_len and not kernel.applies_to(small):
        small = replace(small, kv_len=small.kv_len * 2)
    return small if kernel.applies_to(small) else bucket


# The worker: the same verdict from a process that can be killed

# Seconds a worker may take to start, import mlx and compile, beyond the gate's own.
_STARTUP = 30.0


def judge_in_worker(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    backend: str,
    *,
    seconds: float,
    speed: bool = True,
    seed: int = 0,
) -> Verdict:
    """As `judge`, in a process of its own. Raises Poisoned, with the rejection, where the kernel
    crashed or hung it, and MachineError where the machine is to blame."""
    bucket = workload.bucket()
    task = {
        "meta": dict(kernel.meta),
        "sources": dict(kernel.sources),
        "params": dict(params),
        "workload": bucket.slug,
        "backend": backend,
        "seconds": seconds,
        "speed": speed,
        "seed": seed,
    }
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lm_openevolve.gate.worker"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=seconds + _STARTUP,
            # Ctrl-C is ours to handle: a worker that it ended would be blamed on the kernel.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        answer = _answer(done.stdout)
        end = _ended(done)
    except subprocess.TimeoutExpired:
        answer, end = None, f"the worker hung and was killed after {seconds + _STARTUP:.3g} s"
    if answer is None:
        found = Finding(reason=end)
        device = detect(backend)
        raise Poisoned(_verdict(kernel, params, bucket, device, found, seed, worker=end))
    if "timeout" in answer:
        raise GateTimeout(str(answer["timeout"]))
    if "error" in answer:
        raise BackendError(str(answer["error"]))
    if "machine" in answer:
        raise MachineError(str(answer["machine"]))
    return Verdict.from_json(answer["verdict"])


def _answer(text: str) -> dict[str, Any] | None:
    """The worker's last line, None where it is no answer."""
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(text.splitlines()[-1])
        if isinstance(answer, dict) and answer.keys() & {"verdict", "timeout", "error", "machine"}:
            return answer
    return None


def _ended(done: subprocess.CompletedProcess[str]) -> str:
    """How a worker ended that gave no answer."""
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-done.returncode).name
            return f"the kernel ended its worker process: {name}"
    lines = done.stderr.strip().splitlines()
    return f"the worker ended with status {done.returncode}: {(lines or ['no message'])[-1][:300]}"
