"""Measure: what a candidate does on a GPU, in a worker that holds the GPU for itself.

    cases against float64 -> a few quick samples (abort above twice the best) -> paired timing

The same clock, buffers and comparison as the gate's, with less time for each: the winners go
through the gate itself. Where there is no GPU, time is modelled from the host's counters.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import mlx.core as mx
import numpy as np

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import Device, detect
from mlx_lm_openevolve.gate import correctness as exam
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.gate.limits import memory_for
from mlx_lm_openevolve.gate.speed import recheck
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.reference import cases, mask, sdpa
from mlx_lm_openevolve.ops.attention.workload import Workload

from . import cost_model as model

__all__ = ["baseline", "gpu", "healthy", "measure", "modelled", "modelled_baseline"]

# A candidate this many times slower than the best is not timed to the end.
ABORT = 2.0
_CASES = 3
_LOCK_SECONDS = 1800.0
# What an exam says of a call that raised: it did not compile, or not launch.
_RAISED = re.compile(r": (?:RuntimeError|ValueError|BackendError|TypeError|KernelError): ")
# Faster than this share of the bytes' time at copy bandwidth is a fault of the measurement.
_ROOFLINE = 1.5


@contextlib.contextmanager
def gpu(device: Device) -> Iterator[None]:
    """Be the one owner of the GPU among all runs on this machine."""
    if device.backend == "host":
        yield
        return
    path = Path(tempfile.gettempdir()) / f"mlx-lm-openevolve-{device.slug}.lock"
    with filelock.FileLock(path, timeout=_LOCK_SECONDS, mode=0o666):
        try:
            yield
        finally:  # what MLX keeps of long chains' results would be missing to the next owner
            mx.synchronize()
            mx.clear_cache()


@dataclass(frozen=True, eq=False)
class _Stand:
    """All that candidates for one workload share: made once, kept while it is the last."""

    bench: timing.Bench
    scale: float
    baseline: timing.Arm
    questions: tuple[exam.Question, ...]
    bandwidth: float


_stands: dict[tuple[Workload, str, int], _Stand] = {}


def _stand(workload: Workload, backend: str, seed: int) -> _Stand:
    """The stand of a workload; those used last are kept while they take a quarter of the GPU."""
    key = (workload, backend, seed)
    found = _stands.pop(key, None)
    if found is None:
        limit = (detect(backend).memory or 16 << 30) // 4
        while _stands and mx.get_active_memory() > limit:
            del _stands[next(iter(_stands))]
        found = _make_stand(workload, backend, seed)
    _stands[key] = found
    return found


def _make_stand(workload: Workload, backend: str, seed: int) -> _Stand:
    device = detect(backend)
    top = workload.largest()
    bench = timing.Bench(top, mask(top, seed), device.cache, memory_for(device), seed)
    scale = float(np.array(bench.scale)[0])
    questions = []
    for case in cases(workload, seed):
        questions.append(exam.prepare(case))
        if len(questions) == _CASES:
            break
    return _Stand(
        bench,
        scale,
        bench.arm(sdpa(top, scale)),
        tuple(questions),
        timing.bandwidth(device.cache),
    )


def healthy() -> bool:
    """Whether this process can still use its device: after a fault of a GPU nothing works."""
    try:
        return bool(mx.all(mx.ones((64,)) + 1 == 2).item())
    except Exception:
        return False


def baseline(workload: Workload, backend: str, seed: int) -> dict[str, Any]:
    """SDPA's seconds for a workload, the floor below which nothing goes, and what bounds it."""
    device = detect(backend)
    with gpu(device):
        stand = _stand(workload, backend, seed)
        seconds = timing.warm_up((stand.baseline,), 0.3)
        samples = [stand.baseline.seconds(timing.calls_for(seconds)) for _ in range(9)]
        launch = _launch_seconds()
    floor, bound = model.floor(
        stand.bench.workload, stand.bandwidth, _PEAK_TO_BANDWIDTH * stand.bandwidth, launch
    )
    return {
        "seconds": float(np.median(samples)),
        "floor": floor,
        "bound": bound,
        "bandwidth": stand.bandwidth,
        "launch": launch,
    }


# A baseline that moved by more is another one: a ratio to it would mislead the search.
_DRIFT = 3.0

# Half-precision flops for a byte a second: about 300 on data-centre chips, 40 on Apple's. A floor
# has to stay below what any chip can do.
_PEAK_TO_BANDWIDTH = 300.0


@functools.cache
def _launch_seconds() -> float:
    """Seconds of one tiny operation in a chain of them: what any kernel pays at least."""
    x = mx.zeros((32,), mx.float32)
    one = mx.array(1.0)
    mx.eval(x, one)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(128):
            x = x + one
        mx.eval(x)
        best = min(best, (time.perf_counter() - start) / 128)
    return best


def measure(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    backend: str,
    *,
    best: float,
    seconds: float,
    seed: int,
    sdpa_seconds: float = 0.0,
) -> dict[str, Any]:
    """Judge and time a kernel on a bucket; `best` is the least seconds known (0: none),
    `sdpa_seconds` what SDPA took when the run began (0: not known).

    Returns cause ("" where it is correct), finding, and where it is: seconds, ratio, low, high,
    spread, margin, error. Raises what a backend raises.
    """
    bad = gate.static_rules(kernel, params, workload)
    if bad:
        return {"cause": "static", "finding": bad}
    module = backends.get(backend)
    with gpu(detect(backend)):
        stand = _stand(workload, backend, seed)
        calls = exam.Calls(lambda exact: module.build(kernel, params, exact))
        outcomes = []
        for question in stand.questions:
            outcomes.append(calls(question))
            if outcomes[-1].reason:
                raised = _RAISED.search(outcomes[-1].reason)
                cause = "launch" if raised else "wrong"
                return {"cause": cause, "finding": outcomes[-1].reason}
        bench = stand.bench
        arm = bench.arm(module.build(kernel, params, bench.workload))
        arm.seconds(2)  # compiles
        quick = min(arm.seconds(4) for _ in range(3))
        aborted = best > 0 and quick > ABORT * best
        call_seconds = timing.warm_up((stand.baseline, arm), 0.1 * seconds)
        least = 4 * timing.MIN_BLOCKS * timing.calls_for(call_seconds) * call_seconds * 1.01
        budget = least if aborted else max(least, 0.9 * seconds)
        race = timing.paired(stand.baseline, arm, call_seconds, budget, seed)
        assert race is not None
        limit = max(question.limits[0] for question in stand.questions)
        wrong = recheck(arm, bench, stand.scale, limit)
    if wrong:
        return {"cause": "wrong", "finding": wrong}
    usual = float(np.median(race.a))
    drift = usual / (sdpa_seconds or usual)
    if not 1 / _DRIFT < drift < _DRIFT:
        text = f"SDPA took {drift:.2g} times as long as when the run began"
        return {"cause": "unsteady", "finding": f"a fault of the measurement: {text}"}
    fastest = float(np.median(race.b))
    least_possible = bench.bytes / (_ROOFLINE * stand.bandwidth)
    if fastest < least_possible:
        text = f"{fastest:.3g} s is below the roofline's {least_possible:.3g} s"
        return {"cause": "roofline", "finding": f"a fault of the measurement: {text}"}
    samples = np.array(race.b)
    return {
        "cause": "",
        "finding": "",
        "seconds": fastest,
        "ratio": race.ratio,
        "low": race.low,
        "high": race.high,
        "spread": float(samples.std() / samples.mean()),
        "margin": min(outcome.margin for outcome in outcomes),
        "error": max(outcome.max for outcome in outcomes),
        "trials": len(race.b),
        "aborted": aborted,
    }


# Without a GPU


def modelled_baseline(workload: Workload) -> dict[str, Any]:
    """As `baseline`, modelled."""
    roof = model.NOMINAL
    floor, bound = model.floor(workload, roof.bandwidth, roof.flops, roof.launch)
    return {
        "seconds": model.sdpa_seconds(workload),
        "floor": floor,
        "bound": bound,
        "bandwidth": roof.bandwidth,
        "launch": roof.launch,
        "modelled": True,
    }


def modelled(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    points: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """As `measure`, from the counters that a host check returned (its `points`)."""
    counted = [(Workload.parse(point["on"]), point["counters"]) for point in points]
    seconds = model.kernel_seconds(kernel, params, workload, counted)
    ratio = model.sdpa_seconds(workload) / seconds
    return {
        "cause": "",
        "finding": "",
        "seconds": seconds,
        "ratio": ratio,
        "low": ratio,
        "high": ratio,
        "spread": 0.0,
        "modelled": True,
    }
