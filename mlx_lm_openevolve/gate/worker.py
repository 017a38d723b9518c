"""A verdict from a process that can be killed, for kernels of unknown origin.

judge_in_worker --Task--> python -m mlx_lm_openevolve.gate.worker: judge --> verdict, or why not
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import ops
from ..device import detect
from ..errors import BackendError, GateTimeout, MachineError
from ..kernels.kernel import Kernel
from ..kernels.verdict import Poisoned, Verdict
from ..ops import Workload
from ..processes import Died, Worker, serve
from .judge import Judgement, judge, verdict_of

__all__ = ["Task", "judge_in_worker"]

# Seconds a worker may take to start, import mlx and compile, beyond the gate's own.
_STARTUP = 30.0


@dataclass(frozen=True)
class Task:
    """What a worker is asked: the arguments of `judge`; a kernel travels with its whole content."""

    meta: Mapping[str, Any]
    sources: Mapping[str, str]
    params: Mapping[str, int]
    workload: str
    backend: str
    seconds: float
    speed: bool
    seed: int


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
    task = Task(
        dict(kernel.meta), dict(kernel.sources), dict(params), bucket.slug,
        backend, seconds, speed, seed,
    )  # fmt: skip
    with Worker("mlx_lm_openevolve.gate.worker", start_seconds=_STARTUP) as worker:
        try:
            answer = worker.ask(asdict(task), seconds)
        except Died as death:
            end = f"the kernel ended its worker process: {death.signal}" if death.signal else ""
            refused = Judgement(reason=end or str(death))
            device = detect(backend)
            raise Poisoned(
                verdict_of(kernel, params, bucket, device, refused, seed, worker=refused.reason)
            ) from None
    if "timeout" in answer:
        raise GateTimeout(str(answer["timeout"]))
    if "error" in answer:
        raise BackendError(str(answer["error"]))
    if "machine" in answer:
        raise MachineError(str(answer["machine"]))
    return Verdict.from_json(answer["verdict"])


# The worker's own side


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    task = Task(**request)
    try:
        verdict = judge(
            Kernel.from_parts(task.meta, task.sources),
            task.params,
            ops.parse(task.workload),
            task.backend,
            seconds=task.seconds,
            speed=task.speed,
            seed=task.seed,
        )
    except GateTimeout as error:
        return {"timeout": str(error)}
    except OSError as error:
        return {"machine": error.strerror or str(error)}
    except Exception as error:  # no fault of the kernel's: what it raises is in its verdict
        return {"error": f"{type(error).__name__}: {error}"}
    return {"verdict": {**verdict.to_json(), "raw": dict(verdict.raw)}}


if __name__ == "__main__":
    serve(_answer)
