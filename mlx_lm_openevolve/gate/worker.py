"""A verdict from a process that can be killed, for kernels of unknown origin.

judge_in_worker --Task--> python -m mlx_lm_openevolve.gate.worker: judge --> verdict, or why not
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from .. import ops
from ..backends.trouble import GpuTimeout
from ..device import detect
from ..errors import BackendError, GateMemory, GateTimeout, MachineError
from ..kernels.kernel import Kernel
from ..kernels.verdict import Poisoned, Verdict
from ..ops import Workload
from ..processes import Died, Worker, serve
from .correctness import drawn_seed
from .judge import Judgement, judge, verdict_of

__all__ = ["Task", "judge_in_worker"]

# Seconds a worker may take to start, import mlx and compile, beyond the gate's own.
_STARTUP = 30.0


@dataclass(frozen=True)
class Task:
    """What a worker is asked: the arguments of `judge`; a kernel travels with its whole content,
    the rival as (meta, sources, verdict)."""

    meta: Mapping[str, Any]
    sources: Mapping[str, str]
    params: Mapping[str, int]
    workload: str
    backend: str
    seconds: float
    speed: bool
    brief: bool
    seed: int
    elsewhere: int
    staged: bool = False
    wait: float | None = None
    proven: Mapping[str, Any] | None = None
    rival: tuple[Mapping[str, Any], Mapping[str, str], Mapping[str, Any]] | None = None


def judge_in_worker(
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
    staged: bool = False,
    wait: float = math.inf,
    proven: Verdict | None = None,
    rival: tuple[Kernel, Verdict] | None = None,
) -> Verdict:
    """As `judge`, in a process of its own. Raises Poisoned, with the rejection, where the kernel
    crashed or hung it, or was ended for its time by the GPU in two of them, and MachineError where
    the machine is to blame."""
    bucket = workload.bucket()
    seed = drawn_seed(turn) if seed is None else seed + turn

    def poisoned(reason: str) -> Poisoned:
        refused = Judgement(reason=reason)
        device = detect(backend)
        return Poisoned(verdict_of(kernel, params, bucket, device, refused, seed, worker=reason))

    task = Task(
        *_content(kernel), dict(params), bucket.slug,
        backend, seconds, speed, brief, seed, mx.get_active_memory(),
        staged, None if wait == math.inf else wait, proven.to_json() if proven else None,
        (*_content(rival[0]), rival[1].to_json()) if rival else None,
    )  # fmt: skip
    try:
        answer = _ask(task)
        late = answer.get("gpu_timeout")
        if late:
            # The machine may have been busy: once more, in a fresh process. A GPU's driver waits
            # longer than the gate may take at first use, so the seconds start anew.
            answer = _ask(task)
            if "gpu_timeout" in answer:
                raise poisoned(f"the GPU ended the kernel for its time, twice: {late}")
    except Died as death:
        if death.from_outside:
            raise MachineError(str(death)) from None
        end = f"the kernel ended its worker process: {death.signal}" if death.signal else ""
        raise poisoned(end or str(death)) from None
    if "no_memory" in answer:
        raise GateMemory(str(answer["no_memory"]))
    if "timeout" in answer:
        raise GateTimeout(str(answer["timeout"]))
    if "error" in answer:
        raise BackendError(str(answer["error"]))
    if "machine" in answer:
        raise MachineError(str(answer["machine"]))
    return Verdict.from_json(answer["verdict"])


def _content(kernel: Kernel) -> tuple[dict[str, Any], dict[str, str]]:
    return dict(kernel.meta), dict(kernel.sources)


def _ask(task: Task) -> dict[str, Any]:
    """A fresh worker's answer. Raises Died."""
    with Worker("mlx_lm_openevolve.gate.worker", start_seconds=_STARTUP) as worker:
        return worker.ask(asdict(task), task.seconds)


# The worker's own side


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    task = Task(**request)
    rival = task.rival
    try:
        verdict = judge(
            Kernel.from_parts(task.meta, task.sources),
            task.params,
            ops.parse(task.workload),
            task.backend,
            seconds=task.seconds,
            speed=task.speed,
            brief=task.brief,
            seed=task.seed,
            elsewhere=task.elsewhere,
            staged=task.staged,
            wait=math.inf if task.wait is None else task.wait,
            proven=Verdict.from_json(task.proven) if task.proven else None,
            rival=(Kernel.from_parts(*rival[:2]), Verdict.from_json(rival[2])) if rival else None,
        )
    except GateMemory as error:
        return {"no_memory": str(error)}
    except GateTimeout as error:
        return {"timeout": str(error)}
    except GpuTimeout as error:
        return {"gpu_timeout": str(error)}
    except OSError as error:
        return {"machine": error.strerror or str(error)}
    except Exception as error:  # no fault of the kernel's: what it raises is in its verdict
        return {"error": f"{type(error).__name__}: {error}"}
    return {"verdict": {**verdict.to_json(), "raw": dict(verdict.raw)}}


if __name__ == "__main__":
    serve(_answer)
