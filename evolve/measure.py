"""Measuring: what a candidate does on a GPU, in a worker that holds the GPU for itself.

    cases against float64 -> a few quick samples (abort above twice the best) -> paired timing

The same clock, buffers and comparison as the gate's, with less time for each: the winners go
through the gate itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import mlx.core as mx
import numpy as np

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.backends.trouble import machines
from mlx_lm_openevolve.device import Device, detect
from mlx_lm_openevolve.gate import correctness, timing
from mlx_lm_openevolve.gate.limits import memory_for
from mlx_lm_openevolve.gate.static_rules import static_rules
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import Bucket, Workload
from mlx_lm_openevolve.ops.base import Question, TimingInputs

from .evaluation import Measurement, Request
from .events import Baseline

__all__ = ["baseline", "floor", "gpu", "healthy", "measure"]

# A candidate this many times slower than the best is not timed to the end.
ABORT = 2.0
_CASES = 3
_LOCK_SECONDS = 1800.0
# What the correctness tests say of a call that raised: it did not compile, or not launch.
_RAISED = re.compile(r": (?:RuntimeError|ValueError|BackendError|TypeError|KernelError): ")
# Faster than this share of the bytes' time at copy bandwidth is a fault of the measurement.
_ROOFLINE = 1.5


@contextlib.contextmanager
def gpu(device: Device) -> Iterator[None]:
    """Be the one owner of the GPU among all runs on this machine."""
    if device.backend == "host":
        yield
        return
    # Of two cards of one chip each process sees its own, under this variable.
    card = re.sub(r"[^A-Za-z0-9-]", "", os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0])
    name = f"mlx-lm-openevolve-{device.slug}-{card or 0}"
    path = Path(tempfile.gettempdir()) / f"{name}.lock"
    with filelock.FileLock(path, timeout=_LOCK_SECONDS, mode=0o666):
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # after a fault nothing works: the first counts
                _leave()
            raise
        _leave()


def _leave() -> None:
    """What MLX keeps of long chains' results would be missing to the next owner."""
    mx.synchronize()
    mx.clear_cache()


@dataclass(frozen=True, eq=False)
class _Setup:
    """All that candidates for one workload share."""

    inputs: TimingInputs
    stock: timing.Arm
    questions: tuple[Question, ...]
    bandwidth: float


_setups: dict[tuple[Bucket, str, int], _Setup] = {}


def _setup(workload: Bucket, backend: str, seed: int) -> _Setup:
    """The setup of a workload; those used last are kept while they take a quarter of the GPU."""
    key = (workload, backend, seed)
    known = _setups.pop(key, None)
    if known is None:
        limit = (detect(backend).memory or 16 << 30) // 4
        while _setups and mx.get_active_memory() > limit:
            del _setups[next(iter(_setups))]
        known = _new_setup(workload, backend, seed)
    _setups[key] = known
    return known


def _new_setup(workload: Bucket, backend: str, seed: int) -> _Setup:
    device, asked = detect(backend), ops.of(workload).questions
    cache, room = timing.room(device.cache, memory_for(device))
    inputs = asked.timing_inputs(workload.largest(), device.cache, room, seed)
    stock = timing.Arm(inputs, inputs.baseline())
    cases = asked.cases(workload, seed, brief=True)
    questions = tuple(case() for case in itertools.islice(cases, _CASES))
    return _Setup(inputs, stock, questions, timing.bandwidth(cache))


def healthy() -> bool:
    """Whether this process can still use its device: after a fault of a GPU nothing works."""
    try:
        return bool(mx.all(mx.ones((64,)) + 1 == 2).item())
    except Exception:
        return False


def baseline(workload: Bucket, backend: str, seed: int) -> Baseline:
    """SDPA's seconds for a workload, and the floor below which no implementation goes. Raises
    MachineError where the machine is to blame."""
    device = detect(backend)
    with machines(), gpu(device):
        setup = _setup(workload, backend, seed)
        seconds = timing.warm_up((setup.stock,), 0.3)
        samples = [setup.stock.seconds(timing.calls_for(seconds)) for _ in range(9)]
        launch = _launch_seconds()
    bandwidth, exact = setup.bandwidth, setup.inputs.workload
    least, bound = floor(exact, bandwidth, _PEAK_TO_BANDWIDTH * bandwidth, launch)
    return Baseline(workload.slug, float(np.median(samples)), least, bound, bandwidth, launch)


def floor(w: Workload, bandwidth: float, peak: float, launch: float) -> tuple[float, str]:
    """(seconds below which no implementation goes, what bounds it: memory, compute or launch)."""
    bounds = {"memory": w.moved_bytes() / bandwidth, "compute": w.flops() / peak, "launch": launch}
    bound = max(bounds, key=lambda name: bounds[name])
    return bounds[bound], bound


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


def measure(kernel: Kernel, params: dict[str, int], request: Request) -> Measurement:
    """Judge and time a kernel on the request's bucket. Raises what a backend raises, and
    MachineError where the machine is to blame."""
    workload = ops.parse(request.workload).bucket()
    bad = static_rules(kernel, params, workload)
    if bad:
        return Measurement("static", bad, params)
    module = backends.get(request.backend)
    with machines(), gpu(detect(request.backend)):
        setup = _setup(workload, request.backend, request.seed)
        calls = correctness.Calls(lambda exact: module.build(kernel, params, exact))
        outcomes = []
        for question in setup.questions:
            outcomes.append(calls(question))
            if reason := outcomes[-1].reason:
                return Measurement("launch" if _RAISED.search(reason) else "wrong", reason, params)
        inputs = setup.inputs
        call = module.build(kernel, params, inputs.workload)
        arm = timing.Arm(inputs, call, keep=timing.RECHECKED)
        arm.seconds(2)  # compiles
        quick = min(arm.seconds(4) for _ in range(3))
        aborted = 0 < ABORT * request.best < quick
        call_seconds = timing.warm_up((setup.stock, arm), 0.1 * request.seconds)
        least = timing.least(call_seconds)
        budget = least if aborted else max(least, 0.9 * request.seconds)
        pair = timing.paired(setup.stock, arm, call_seconds, budget, request.seed)
        assert pair is not None
        wrong = arm.recheck()
    if wrong:
        return Measurement("wrong", wrong, params)
    fault = "a fault of the measurement: "
    usual = float(np.median(pair.a))
    drift = usual / (request.sdpa_seconds or usual)
    if not 1 / _DRIFT < drift < _DRIFT:
        text = f"{ops.of(workload).stock} took {drift:.2g} times as long as when the run began"
        return Measurement("unsteady", fault + text, params)
    fastest = float(np.median(pair.b))
    least_possible = inputs.bytes / (_ROOFLINE * setup.bandwidth)
    if fastest < least_possible:
        text = f"{fastest:.3g} s is below the roofline's {least_possible:.3g} s"
        return Measurement("roofline", fault + text, params)
    samples = np.array(pair.b)
    return Measurement(
        params=params,
        seconds=fastest,
        ratio=pair.ratio,
        low=pair.low,
        high=pair.high,
        spread=float(samples.std() / samples.mean()),
        margin=min(outcome.margin for outcome in outcomes),
        error=max(outcome.max for outcome in outcomes),
        trials=len(pair.b),
        aborted=aborted,
    )
