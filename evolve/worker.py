"""Worker: a process that runs candidates and may die of them, and the pool of them.

    python -m mlx_lm_openevolve.evolve.worker      one JSON request a line in, one answer a line out

A worker lives on between candidates (starting Python and MLX costs more than a check), until one
hangs, crashes or takes too much memory: then it and all its children are killed, the candidate is
blamed, and the next one gets a new worker. Plain subprocesses, never multiprocessing: fork is
unsafe once a GPU is in use, spawn would rerun an unguarded script.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx_lm_openevolve
from mlx_lm_openevolve.kernels.kernel import Kernel

__all__ = ["MACHINE", "Died", "Pool", "Worker", "environment", "request_for"]

MACHINE = "machine"  # the cause of what is no candidate's fault: the run ends, and can go on later
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.5


class Died(Exception):
    """A worker ended without an answer: cause is "hang", "memory" or "crash"."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def request_for(op: str, kernel: Kernel | None = None, **more: Any) -> dict[str, Any]:
    """A request as plain data; a kernel travels with its whole content."""
    held = {} if kernel is None else {"meta": dict(kernel.meta), "sources": dict(kernel.sources)}
    return {"op": op, **held, **more}


def environment() -> dict[str, str]:
    """The environment of a child process that finds this package, and nothing beside it."""
    root = str(Path(mlx_lm_openevolve.__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


class Worker:
    """One worker process, started when it is first asked. Not for use by two threads at once."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._rest = b""

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The worker's answer. Raises Died; the worker is then gone with all its children."""
        fresh = self._process is None or self._process.poll() is not None
        if fresh:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        deadline = time.monotonic() + seconds + (_START_SECONDS if fresh else 0.0)
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = self._line(deadline)
        except (BrokenPipeError, OSError):
            line = b""
        except Died:
            self.close()
            raise
        if not line:
            text = self._obituary()
            self.close()
            raise Died("crash", text)
        answer: dict[str, Any] = json.loads(line)
        if answer.pop("ended", False):  # its device is lost: what came next would be blamed for it
            self.close()
        return answer

    def close(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process = None

    def _start(self) -> None:
        self.close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_lm_openevolve.evolve.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # its children die with it, and Ctrl-C is ours to handle
            env=environment(),
        )

    def _line(self, deadline: float) -> bytes:
        """The next whole line, b"" at the end of the stream. Raises Died."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        while b"\n" not in self._rest:
            if time.monotonic() > deadline:
                raise Died("hang", "no answer within the time limit; the worker was killed")
            ready, _, _ = select.select([descriptor], [], [], _LOOK_SECONDS)
            if not ready:
                used = _memory_of(process.pid)
                if used > self.memory:
                    raise Died("memory", f"{used >> 20} MiB taken, {self.memory >> 20} allowed")
                continue
            data = os.read(descriptor, 1 << 16)
            if not data:
                return b""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _obituary(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = lines[-1][:300] if lines else "no message"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"the worker ended by {signal.Signals(-code).name}: {last}"
        return f"the worker ended with status {code}: {last}"


def _memory_of(session: int) -> int:
    """Resident bytes of a session's processes, 0 where it cannot be told."""
    flag = "-s" if sys.platform.startswith("linux") else "-g"
    try:
        listed = subprocess.run(
            ["ps", "-o", "rss=", flag, str(session)], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(int(word) for word in listed.stdout.split() if word.isdigit()) << 10


class Pool:
    """Some workers that take requests in turn; `close` kills them."""

    def __init__(self, jobs: int, memory: int) -> None:
        self._free = [Worker(memory) for _ in range(jobs)]
        self._all = list(self._free)
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(jobs)

    def map(
        self,
        requests: Sequence[dict[str, Any]],
        seconds: float,
        heard: Callable[[int], None] = lambda index: None,
    ) -> list[dict[str, Any]]:
        """Answers in the order of the requests; a death becomes {"cause": ..., "finding": ...}.
        `heard` is called with the index of each answer as it comes."""

        def one(item: tuple[int, dict[str, Any]]) -> dict[str, Any]:
            index, request = item
            with self._lock:
                worker = self._free.pop()
            try:
                return worker.ask(request, seconds)
            except Died as death:
                return {"cause": death.cause, "finding": str(death)}
            finally:
                with self._lock:
                    self._free.append(worker)
                heard(index)

        return list(self._threads.map(one, enumerate(requests)))

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._all:
            worker.close()
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# The worker's own side


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from mlx_lm_openevolve.ops.attention.workload import Workload

    kernel = Kernel.from_parts(request["meta"], request["sources"]) if "meta" in request else None
    workload = Workload.parse(request["workload"])
    if request["op"] == "baseline":
        from . import measure

        return measure.baseline(workload, request["backend"], request["seed"])
    assert kernel is not None
    params = request["params"] or kernel.default_params(workload)
    if request["op"] == "check":
        from . import check

        return {**check.check(kernel, params, workload, request["seed"]), "params": params}
    if request["op"] == "measure":
        from . import measure

        found = measure.measure(
            kernel,
            params,
            workload,
            request["backend"],
            best=request["best"],
            seconds=request["seconds"],
            seed=request["seed"],
            sdpa_seconds=request["sdpa_seconds"],
        )
        return {**found, "params": params}
    raise ValueError(f"unknown request {request['op']!r}")


def main() -> None:
    """Answer requests until standard input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a kernel or a library prints cannot pass for an answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request)
        except OSError as error:  # a full disk: no candidate's fault
            answer = {"cause": MACHINE, "finding": error.strerror or str(error)}
        except Exception as error:  # a candidate's fault or ours: it is this candidate that failed
            text = (str(error).strip() or "no message").splitlines()[0][:500]
            answer = {"cause": "error", "finding": f"{type(error).__name__}: {text}"}
        if answer.get("cause") and request.get("op") != "check":
            from . import measure

            if not measure.healthy():
                answer = {**answer, "cause": "crash", "ended": True}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
