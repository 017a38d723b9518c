"""A verdict from a process that can be killed, for kernels of unknown origin.

    python -m mlx_lm_openevolve.gate.worker < task.json     one JSON object as the last line

Whatever a kernel prints cannot pass for the answer: standard output is put aside before anything is
imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import ops
from ..device import detect
from ..errors import BackendError, GateTimeout, MachineError
from ..kernels.kernel import Kernel
from ..kernels.verdict import Poisoned, Verdict
from ..ops import Workload
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
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lm_openevolve.gate.worker"],
            input=json.dumps(asdict(task)),
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
        refused = Judgement(reason=end)
        raise Poisoned(
            verdict_of(kernel, params, bucket, detect(backend), refused, seed, worker=end)
        )
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


# The worker's own side


def main() -> None:
    """Read a task from standard input, judge, and write the answer."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    task = Task(**json.loads(sys.stdin.read()))
    with os.fdopen(answer_to, "w") as out:
        out.write(json.dumps(_judged(task)) + "\n")


def _judged(task: Task) -> dict[str, Any]:
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
    main()
