"""Worker processes side by side: requests in, answers out in the same order."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlx_lm_openevolve.processes import Died, Worker

__all__ = ["WORKER", "Pool", "answer_of"]

WORKER = "mlx_lm_openevolve.evolve.worker"


def answer_of(worker: Worker, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A worker's answer; its death is an answer too: {"cause": ..., "finding": ...}."""
    try:
        return worker.ask(request, seconds)
    except Died as death:
        return {"cause": death.cause, "finding": str(death)}


class Pool:
    """`jobs` workers that take requests in turn; `close` kills them. memory: bytes for each."""

    def __init__(self, jobs: int, memory: int) -> None:
        self._all = [Worker(WORKER, memory=memory) for _ in range(jobs)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(jobs)

    def map(
        self,
        requests: Sequence[dict[str, Any]],
        seconds: float,
        answered: Callable[[int], None] = lambda index: None,
    ) -> list[dict[str, Any]]:
        """Answers in the order of the requests, each waited for `seconds`; `answered` is called
        with the index of each answer as it comes."""

        def one(index: int) -> dict[str, Any]:
            worker = self._free.get()
            try:
                return answer_of(worker, requests[index], seconds)
            finally:
                self._free.put(worker)
                answered(index)

        return list(self._threads.map(one, range(len(requests))))

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._all:
            worker.close()
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
