"""The client of a fleet: the executor of a search whose workers are on other machines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from mlx_lm_openevolve.errors import MachineError, OpenEvolveError

from ..evaluation import MACHINE, HostCheck, Measurement, WorkloadResult, geomean
from ..events import Baseline
from ..pool import CHECK
from ..publish import Judged
from ..record import Record
from .link import FACTS, MAX_TEXT, Facts, Link, engine, one_line
from .worker import answer as remote_answer

__all__ = ["Fleet"]

_LOOK = 0.5  # seconds between looks at who is there
_POLL = 0.2  # and between those of who waits for an answer
_AWAY = 10.0  # seconds after which a worker is gone that its scheduler lost
_SILENT = 60.0  # one that says nothing, or has not come to a new scheduler
_CONNECT_SECONDS = 10.0
_PATIENCE = 300.0  # seconds that a scheduler or the first worker of a kind is waited for
_RETRIES = 4  # of a check whose worker is gone
_ANSWERS: dict[str, type[Record]] = {
    "check": HostCheck,
    "measure": Measurement,
    "baseline": Baseline,
    "gate": Judged,
}


class _Gone(Exception):
    """A worker was gone before it answered."""


class _Left(Exception):
    """A worker ended a request unanswered, because it was told to end: it knows that it did."""


class _Nobody(Exception):
    """There is no worker for a request."""


@dataclass(eq=False)
class _Member:
    """A worker as last seen. generation: number of the scheduler that knows it; heard: the time of
    its last sign of life as the scheduler says it, since: as seen here, on the monotonic clock."""

    name: str
    facts: Facts
    address: str = ""
    generation: int = 0
    heard: Any = None
    since: float = 0.0
    gone: bool = False
    leaves: bool = False
    busy: bool = False
    left_out: str = ""


class Fleet:
    """The workers that one scheduler knows; use it as a context. say: told who comes and goes.

    Raises MachineError where the scheduler cannot be reached.
    """

    jobs = 256
    apart = True

    def __init__(self, link: Link, say: Callable[[str], None]) -> None:
        self._link, self.say = link, say
        self._changed = threading.Condition()
        self._members: dict[str, _Member] = {}
        self._scheduler, self._generation = "", 0
        self._lead = self._broken = ""
        # What dask raises where its scheduler is gone.
        closed = engine().client.ClosedClientError
        self._lost = (OSError, RuntimeError, TimeoutError, asyncio.TimeoutError, CancelledError,
                      asyncio.CancelledError, closed)  # fmt: skip
        asyncio.run(link.probe())
        self._client = self._connect()
        self._look()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a search asks

    @property
    def chips(self) -> tuple[str, ...]:
        """The chips that are there, and the one that leads in any case."""
        return (self._lead, *sorted(set(self.there()) - {CHECK, self._lead}))

    def there(self) -> Counter[str]:
        """How many workers there are of each role."""
        with self._changed:
            members = [m for m in self._members.values() if not m.gone and not m.left_out]
            return Counter(member.facts.role for member in members)

    def lead(self, backend: str | None, slug: str = "") -> dict[str, Any]:
        """Wait for somebody who checks and, unless the backend is host, for a chip of that backend
        (None: of any) and slug ("": any), which leads the search from now on; its Device's fields.
        Raises MachineError where nobody comes."""
        host = self._wait_for(CHECK, lambda facts: facts.role == CHECK)
        if backend == "host":
            return host

        def suits(facts: Facts) -> bool:
            right = slug in ("", facts.role) and backend in (None, facts.device["backend"])
            return facts.role != CHECK and right

        device = self._wait_for(slug or f"a chip ({backend or 'any'})", suits)
        self._lead = str(device["slug"])
        return device

    def ask(self, role: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """See Executor. A worker whose machine fails is left out, and another is asked."""
        text, gone = json.dumps({"request": request, "seconds": seconds}), ""
        for _ in range(1 + _RETRIES if role == CHECK else 1):
            try:
                return self._asked(role, request["op"], text)
            except _Gone as error:
                gone = str(error)
            except _Nobody as error:
                return {"cause": MACHINE, "finding": str(error)}
        return {"cause": "crash", "finding": gone}

    def close(self) -> None:
        """Let go of the fleet; what it runs for us is cancelled."""
        with self._changed:
            self._broken = self._broken or "the search is over"
            self._changed.notify_all()
        self._watcher.join(2 * _CONNECT_SECONDS)
        self._client.close(timeout=_CONNECT_SECONDS)

    # One request

    def _asked(self, role: str, op: str, text: str) -> dict[str, Any]:
        while True:
            member = self._take(role)
            try:
                found = self._answer_of(member, op, text)
            except _Left:
                member.gone = member.leaves = True
                self.say(f"{member.name} ({role}) leaves")
                continue
            finally:
                with self._changed:
                    member.busy = False
                    self._changed.notify_all()
            if found.get("cause") != MACHINE:
                return found
            self._leave_out(member, str(found["finding"]))

    def _take(self, role: str) -> _Member:
        """A worker of a role that nobody else asks. Raises _Nobody."""
        with self._changed:
            give_up = time.monotonic() + _PATIENCE
            while True:
                ours = [m for m in self._members.values() if m.facts.role == role]
                there = [m for m in ours if not m.gone and not m.left_out]
                free = [m for m in there if not m.busy and m.generation == self._generation]
                if self._broken:
                    raise _Nobody(self._broken)
                if free:
                    free[0].busy = True
                    return free[0]
                if there:
                    give_up = time.monotonic() + _PATIENCE
                elif time.monotonic() > give_up or any(m.left_out for m in ours):
                    last = next((m.left_out for m in ours if m.left_out), "all are gone")
                    raise _Nobody(f"no worker of the fleet does {role}: {last}")
                self._changed.wait(_POLL)

    def _answer_of(self, member: _Member, op: str, text: str) -> dict[str, Any]:
        """A worker's answer. What is lost with the scheduler is handed in again, to the same
        worker once that is back. Raises _Gone, _Left, _Nobody."""
        while True:
            with self._changed:
                while member.generation != self._generation or member.gone or self._broken:
                    if self._broken:
                        raise _Nobody(self._broken)
                    if member.gone:
                        raise _Gone(f"worker {member.name} of {member.facts.role} is gone")
                    self._changed.wait(_POLL)
            with contextlib.suppress(*self._lost):
                found = self._future(member, text)
                if found == "":
                    raise _Left
                if found is not None:
                    return _checked(found, op)
            time.sleep(_POLL)

    def _future(self, member: _Member, text: str) -> str | None:
        """What dask brings of a worker; None where it, or what leads to it, is not what it was."""
        role, state = member.facts.role, (self._generation, member.address)
        future = self._client.submit(
            remote_answer, text, key=f"{role}-{uuid.uuid4()}", pure=False,
            workers=[state[1]], allow_other_workers=False, resources={role: 1},
        )  # fmt: skip
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while not done.wait(_POLL):
            if state != (self._generation, member.address) or member.gone or self._broken:
                future.cancel()
                return None
        if future.status == "error":
            error = future.exception()
            if isinstance(error, engine().KilledWorker):  # `member` will be gone
                return None
            return json.dumps({"cause": MACHINE, "finding": repr(error)[:200]})  # ours never raises
        return str(future.result(timeout=_CONNECT_SECONDS)) if future.status == "finished" else None

    # Who is there

    def _connect(self) -> Any:
        return engine().Client(
            self._link.address,
            security=self._link.security(),
            timeout=_CONNECT_SECONDS,
            set_as_default=False,
        )

    def _watch(self) -> None:
        while not self._broken:
            time.sleep(_LOOK)
            try:
                self._look()
            except Exception:  # whatever dask raises where the scheduler is gone
                self._reconnect()

    def _reconnect(self) -> None:
        self.say(f"{self._link.address} is gone; waiting for it")
        give_up = time.monotonic() + _PATIENCE
        self._client.close(timeout=1)
        while not self._broken:
            try:
                asyncio.run(self._link.probe())
                client = self._connect()
            except (OSError, OpenEvolveError) as error:
                if time.monotonic() > give_up:
                    self._broken = str(error)
                time.sleep(_POLL)
                continue
            with self._changed:
                self._client = client
            return

    def _look(self) -> None:
        info, now = self._client.scheduler_info(n_workers=-1), time.monotonic()
        with self._changed:
            if info["id"] != self._scheduler:
                if self._scheduler:
                    self.say(f"{self._link.address} was started anew: what is open goes there")
                self._scheduler, self._generation = info["id"], self._generation + 1
                for member in self._members.values():
                    member.since = member.since if member.gone else now
            for address, worker in info["workers"].items():
                self._see(address, worker, now)
            for member in self._members.values():
                came = member.generation == self._generation
                lost = came and member.address not in info["workers"]
                gone = now - member.since > (_AWAY if lost else _SILENT)
                if gone and not member.gone:
                    self.say(f"{member.name} ({member.facts.role}) is gone")
                member.gone = gone or member.leaves
            self._changed.notify_all()

    def _see(self, address: str, worker: dict[str, Any], now: float) -> None:
        name, heard = one_line(worker.get("name"), 200), worker.get("last_seen")
        member = self._members.get(name)
        if member is None:
            try:
                member = _Member(name, Facts.from_json(worker[FACTS]))
            except (KeyError, TypeError, ValueError, AttributeError):  # not of ours
                return
            self._members[name] = member
            self.say(f"{name} does {member.facts.role}")
            if differs := member.facts.differs():
                self._leave_out(member, differs)
        if heard != member.heard or address != member.address:
            member.heard, member.since = heard, now
        member.address, member.generation = address, self._generation

    def _leave_out(self, member: _Member, why: str) -> None:
        member.left_out = why
        self.say(f"{member.name} is left out: {why}")

    def _wait_for(self, what: str, suits: Callable[[Facts], bool]) -> dict[str, Any]:
        began, told = time.monotonic(), False
        with self._changed:
            while True:
                there = [m for m in self._members.values() if not m.gone and suits(m.facts)]
                able = sorted((m.facts.role, m.name) for m in there if not m.left_out)
                if able:
                    return dict(self._members[able[0][1]].facts.device)
                if time.monotonic() - began > (_AWAY if there else _PATIENCE) or self._broken:
                    why = self._broken or next((m.left_out for m in there), "nobody announces it")
                    raise MachineError(f"{self._link.address}: no worker for {what}: {why}")
                if not told:
                    self.say(f"waiting for a worker for {what}")
                told = True
                self._changed.wait(_POLL)


def _checked(text: str, op: str) -> dict[str, Any]:
    """An answer that is what an answer to that request may be, else that it was none."""
    try:
        found = json.loads(text if len(text) <= MAX_TEXT else "")
        if not isinstance(found, dict):
            raise TypeError(f"it is {type(found).__name__}")
        kind = Measurement if set(found) == {"cause", "finding"} else _ANSWERS[op]
        answer = kind.from_json(found)
        answer.check_types()
        if isinstance(answer, HostCheck | Measurement) and not answer.cause:
            _check_result(answer)
    except (ArithmeticError, AttributeError, TypeError, ValueError, RecursionError) as error:
        return {"cause": MACHINE, "finding": f"no answer to {op}: {str(error)[:200]}"}
    return found


def _check_result(answer: HostCheck | Measurement) -> None:
    """Raise an error where what was well has params that are none, or could not be ranked."""
    if not all(type(value) is int for value in answer.params.values()):
        raise TypeError("params are no integers")
    if isinstance(answer, Measurement):
        geomean([WorkloadResult.from_json(vars(answer))], [1.0])
        return
    counted = WorkloadResult(answer.params, counters=answer.counters)
    if counted.counted:
        geomean([counted], [1.0])
