"""A worker of a fleet: `mlx-lm-openevolve fleet worker`.

It announces `check`, or the chip of this machine, and answers one request at a time, in the
sandboxed process that a local search has as well (evolve/worker.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_lm_openevolve import backends, cache
from mlx_lm_openevolve.device import Device, detect
from mlx_lm_openevolve.errors import MachineError, UsageError
from mlx_lm_openevolve.processes import Worker

from ..config import Work
from ..pool import CHECK, WORKER, answer_of
from .link import FACTS, MAX_TEXT, Facts, Link, engine, versions

__all__ = ["answer", "facts_here", "serve"]

Say = Callable[[str], None]
_PATIENCE = 600.0  # seconds that a scheduler which is gone is waited for
_FAREWELL = 1.0  # seconds for the last answer to reach who asked
_ROOM = 1 << 20  # bytes that must fit on the disk
_MAX_SECONDS = 3600.0


class _Station:
    """The sandboxed process of this worker, and the one thread that may ask it."""

    def __init__(self, facts: Facts, module: str) -> None:
        self.facts = facts
        self.worker = Worker(module, memory=Work().memory)
        self.busy = threading.Lock()
        self.ending = self.over = False

    def answer(self, text: str) -> str:
        """The answer to a request of a client, both JSON; "" where it was interrupted."""
        with self.busy:
            if self.over:
                return ""
            try:
                data = json.loads(text[:MAX_TEXT])
                request, seconds = dict(data["request"]), float(data["seconds"])
                if (request.get("op") == "check") != (self.facts.role == CHECK):
                    raise ValueError(f"{self.facts.role} is what is done here")
                if not 0 < seconds <= _MAX_SECONDS:
                    raise ValueError("the seconds are out of range")
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                return json.dumps({"cause": "error", "finding": f"no request: {error}"})
            if self.facts.role != CHECK:
                request["backend"] = self.facts.device["backend"]
            found = answer_of(self.worker, request, seconds)
            return "" if self.ending else json.dumps(found)  # its death would say nothing

    def interrupt(self) -> None:
        """End what is being run."""
        self.ending = True
        self.worker.interrupt()

    def end(self) -> None:
        """`interrupt`, and return when it has ended; then the next request may come."""
        self.interrupt()
        with self.busy:
            self.worker.close()
            self.ending = self.over


_station: _Station | None = None


def answer(text: str) -> str:
    """What dask runs here."""
    assert _station is not None
    return _station.answer(text)


def facts_here(check: bool, backend: str | None) -> Facts:
    """What this machine announces: with `check` or without a GPU "check", else its chip. Raises
    UsageError or MachineError, in one line, where it cannot do that."""
    device = detect("host" if check else backend)
    if reason := backends.get(device.backend).unavailable():
        raise UsageError(f"nothing can be {'checked' if check else 'done'} here: {reason}")
    for folder in (Path(tempfile.gettempdir()), cache.folder()):
        _check_room(folder)
    return facts_of(device)


def facts_of(device: Device) -> Facts:
    """What a machine announces with that device."""
    role = CHECK if device.backend == "host" else device.slug
    return Facts(role, asdict(device), versions())


def _check_room(folder: Path) -> None:
    """Raise MachineError where nothing more can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        raise MachineError(f"{folder}: {error.strerror or error}") from None


def serve(link: Link, facts: Facts, say: Say, module: str = WORKER) -> None:
    """Answer requests until this process is interrupted or ended, or the scheduler stays away.
    Raises MachineError where it does."""
    global _station
    engine()
    _station = _Station(facts, module)
    try:
        asyncio.run(_serve(link, _station, say))
    except asyncio.CancelledError:  # told to end
        return
    finally:
        _station.end()


async def _serve(link: Link, station: _Station, say: Say) -> None:
    import distributed
    from distributed.utils import get_ip

    class Ending(distributed.WorkerPlugin):  # type: ignore[misc]
        """dask waits for our thread before it closes a worker, and we for the process."""

        def teardown(self, worker: Any) -> None:
            station.interrupt()

    facts = station.facts
    name = f"{platform.node()}-{os.getpid()}-{os.urandom(3).hex()}"
    task = asyncio.current_task()
    assert task is not None
    for told in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(told, task.cancel)
    give_up = 0.0
    with tempfile.TemporaryDirectory(prefix="mlx-lm-openevolve-fleet-") as scratch:
        while True:
            try:
                await link.probe()
                worker = distributed.Worker(
                    link.address,
                    name=name,
                    nthreads=1,
                    resources={facts.role: 1},
                    startup_information={FACTS: lambda _: facts.to_json()},
                    host=get_ip(link.host),
                    security=link.security(),
                    plugins=(Ending(),),
                    memory_limit=0,
                    local_directory=scratch,
                )
                await worker
            except (OSError, RuntimeError) as error:  # or it has not noticed that we were gone
                if time.monotonic() > give_up:
                    if isinstance(error, MachineError):
                        raise
                    raise MachineError(f"{link.address}: {error.__cause__ or error!r}") from None
                await asyncio.sleep(1)
                continue
            say(f"{name} does {facts.role} for {link.address}")
            try:
                await worker.finished()
            except asyncio.CancelledError:
                station.over = True
                raise
            finally:
                # Before it comes back: what it ran would be handed in again beside it.
                await asyncio.to_thread(station.end)
                await asyncio.sleep(_FAREWELL if station.over else 0)
                await worker.close()
            say(f"{link.address} is gone; waiting for it")
            give_up = time.monotonic() + _PATIENCE
