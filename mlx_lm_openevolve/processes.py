"""Child processes of this package: one JSON object a line in, one JSON object a line out.

    Worker(module).ask(request, seconds)  --stdin-->  python -m module: serve(answer)
                                          <-stdout--

A worker is asked once (a verdict of the gate, one arm of `bench`) or again and again (`evolve`,
where starting Python and MLX costs more than a check) until it hangs, crashes or takes too much
memory: then it is killed with everything that it started, and the next request starts a new one.
Plain subprocesses, never multiprocessing: fork is unsafe once a GPU is in use, spawn would rerun an
unguarded script.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Died", "Worker", "child_environment", "kill_session", "memory_of", "serve"]

START_SECONDS = 120.0  # what a worker may take to start, beside the seconds of its first answer
_POLL_SECONDS = 0.5
# Signals that no process raises by what it does wrong.
_SENT = ("SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM")


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of a child process that finds this package, with `extra` variables. What lies
    in the current folder cannot shadow a module (from Python 3.11 on)."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    safe = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    return {**os.environ, **safe, **extra}


def kill_session(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session, with all of the session, and wait for its end."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Died(Exception):
    """A worker ended without an answer.

    cause: "hang", "memory" or "crash". signal: the name of the signal that ended it, "" where none
    did. last: the last line on its standard error, "" where there is none.
    """

    def __init__(self, cause: str, text: str, *, signal: str = "", last: str = "") -> None:
        super().__init__(text)
        self.cause, self.signal, self.last = cause, signal, last

    @property
    def from_outside(self) -> bool:
        """Whether a kernel cannot have done it: a signal that others send, as a system without
        memory does, or Python's own end, as where an import fails."""
        return self.cause == "crash" and self.signal in ("", *_SENT)


class Worker:
    """A process that runs `python -m module`, started when it is first asked. Use it as a context,
    or `close` it. Not for two threads at once.

    memory: bytes that the process and its children may take, 0 for no limit.
    """

    def __init__(
        self,
        module: str,
        *,
        memory: int = 0,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.module, self.memory, self.start_seconds = module, memory, start_seconds
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: Any = None
        self._rest = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request, waited for `seconds` (and for the start of a new process).
        Raises Died; the process is then gone with all that it started."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
            seconds += self.start_seconds
        try:
            line = json.dumps(request).encode() + b"\n"
            answer = self._exchange(process, line, seconds)
            if answer is None:
                raise self._death(process)
        except BaseException:
            self.close()
            raise
        if answer.pop("ended", False):  # it says itself that it is of no further use
            self.close()
        return answer

    def interrupt(self) -> None:
        """Kill the process, from another thread than the one that asks: that one is told."""
        process = self._process
        if process is not None and process.poll() is None:
            kill_session(process)

    def close(self) -> None:
        """Kill the process and all that it started."""
        if self._process is None:
            return
        kill_session(self._process)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # its children die with it, and Ctrl-C is ours to handle
            env=self._environment or child_environment(),
        )
        return self._process

    def _exchange(
        self, process: subprocess.Popen[bytes], request: bytes, seconds: float
    ) -> dict[str, Any] | None:
        """Write a request and read its answer, None at the end of the stream. Raises Died."""
        assert process.stdin is not None
        assert process.stdout is not None
        to, answers = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(to, False)  # a pipe is full long before a hanging process has read a kernel
        deadline = time.monotonic() + seconds
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                with contextlib.suppress(ValueError):  # said by a library while it was imported
                    answer = json.loads(line)
                    if isinstance(answer, dict):
                        return answer
            if time.monotonic() > deadline:
                raise Died("hang", f"the worker hung and was killed after {seconds:.3g} s")
            ready, free, _ = select.select([answers], [to] if request else [], [], _POLL_SECONDS)
            if free:
                try:
                    request = request[os.write(to, request) :]
                except BrokenPipeError:  # it ended before it read everything
                    request = b""
            if ready:
                data = os.read(answers, 1 << 16)
                if not data:
                    return None
                self._rest += data
            used = memory_of(process.pid) if self.memory and not (ready or free) else 0
            if used > self.memory:
                raise Died("memory", f"{used >> 20} MiB taken, {self.memory >> 20} allowed")

    def _death(self, process: subprocess.Popen[bytes]) -> Died:
        """Why there is no answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        code = process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = lines[-1][:300] if lines else ""
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                text = f"the worker ended by {name}: {last or 'no message'}"
                return Died("crash", text, signal=name, last=last)
        text = f"the worker ended with status {code}: {last or 'no message'}"
        return Died("crash", text, last=last)


def memory_of(session: int) -> int:
    """Resident bytes of a session's processes, 0 where they are not known."""
    flag = "-s" if sys.platform.startswith("linux") else "-g"
    try:
        listed = subprocess.run(
            ["ps", "-o", "rss=", flag, str(session)], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(int(word) for word in listed.stdout.split() if word.isdigit()) << 10


def serve(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The child's side: answer requests until standard input ends.

    Whatever a kernel or a library prints from here on cannot pass for an answer: it goes to
    standard error. What `answer` raises ends the process, and its last line is in Died. An
    answer with "ended": True says that this process should not be asked again. It does not outlive
    the process that asks: nobody would wait for the answer, and the GPU would be held.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))) + "\n")
        out.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)
