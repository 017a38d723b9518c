"""Gate worker: one verdict in a process that may die of it.

    python -m mlx_lm_openevolve.gate.worker < task.json     one JSON object as the last line

Started by gate.judge_in_worker. Whatever a kernel prints cannot pass for the answer: standard
output is put aside before anything is imported.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Read a task from standard input, judge, and write the answer."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.stdin.read())
    with os.fdopen(answer_to, "w") as out:
        out.write(json.dumps(_answer(task)) + "\n")


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    try:
        return _judge(task)
    except OSError as error:
        return {"machine": error.strerror or str(error)}
    except Exception as error:  # no fault of the kernel's: what it raises is in its verdict
        return {"error": f"{type(error).__name__}: {error}"}


def _judge(task: dict[str, Any]) -> dict[str, Any]:
    from ..kernels.kernel import Kernel
    from ..ops.attention.workload import Workload
    from . import judge as gate

    try:
        verdict = gate.judge(
            Kernel.from_parts(task["meta"], task["sources"]),
            task["params"],
            Workload.parse(task["workload"]),
            task["backend"],
            seconds=task["seconds"],
            speed=task["speed"],
            seed=task["seed"],
        )
    except gate.GateTimeout as error:
        return {"timeout": str(error)}
    return {"verdict": verdict.to_json()}


if __name__ == "__main__":
    main()
