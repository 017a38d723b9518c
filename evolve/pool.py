"""Executors: what runs requests, each in a worker process that may die of it.

Pool (here) has the workers of this machine, Fleet (fleet/client.py) those of a cluster.
"""

from __future__ import annotations

import queue
from typing import Any, Protocol

from mlx_lm_openevolve.processes import Died, Worker

__all__ = ["CHECK", "WORKER", "Executor", "Pool", "answer_of"]

WORKER = "mlx_lm_openevolve.evolve.worker"
# The role of workers that check on the host; any other role is a chip that measures.
CHECK = "check"


class Executor(Protocol):
    """What runs requests.

    chips: those that measure, the one that leads the search first. jobs: how many requests are
    worth asking at once. apart: whether checks leave the clocks of those that measure alone.
    """

    jobs: int
    apart: bool

    @property
    def chips(self) -> tuple[str, ...]: ...

    def ask(self, role: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A worker's answer, waited for `seconds` once one is free; the worker's death is an answer
        too: {"cause": ..., "finding": ...}. For many threads at once."""
        ...

    def close(self) -> None:
        """Kill what runs."""
        ...


def answer_of(worker: Worker, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A worker's answer; its death is an answer too."""
    try:
        return worker.ask(request, seconds)
    except Died as death:
        return {"cause": death.cause, "finding": str(death)}


class Pool:
    """This machine: `jobs` workers that check and one that measures, `memory` bytes for each."""

    apart = False

    def __init__(self, jobs: int, memory: int) -> None:
        self.jobs = jobs
        self.chips = ("here",)
        self._all = [Worker(WORKER, memory=memory) for _ in range(jobs + 1)]
        self._free: dict[bool, queue.SimpleQueue[Worker]] = {
            True: queue.SimpleQueue(),
            False: queue.SimpleQueue(),
        }
        for i, worker in enumerate(self._all):
            self._free[i < jobs].put(worker)

    def ask(self, role: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """See Executor."""
        free = self._free[role == CHECK]
        worker = free.get()
        try:
            return answer_of(worker, request, seconds)
        finally:
            free.put(worker)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._all:
            worker.close()
