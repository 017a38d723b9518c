"""The journal of a run: one event a line, only ever appended to.

An event has reached the disk before anything is done that builds on it. A kill at any moment leaves
at most half a last line, which the next session cuts off.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from mlx_lm_openevolve.errors import OpenEvolveError, UsageError

from .events import Event, Started, parse

__all__ = ["NAME", "Journal", "read"]

NAME = "events.jsonl"


class Journal:
    """RUN/events.jsonl. One process may write it, which holds RUN/.lock; any may read it."""

    def __init__(self, folder: Path, events: list[Event]) -> None:
        self.folder, self.path = folder, folder / NAME
        self.events = events
        self.elapsed = max([0.0, *(event.t for event in events)])  # up to the last event
        self._began = time.monotonic() - self.elapsed
        self._file: Any = None
        self._lock: Any = None

    @classmethod
    def create(cls, folder: Path) -> Journal:
        """The journal of a new run. Raises UsageError where the folder holds a run already, or
        cannot be made or locked."""
        if (folder / NAME).exists():
            raise UsageError(f"{folder} already holds a run; go on with --resume {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: {error.strerror or error}") from None
        journal = cls(folder, [])
        journal._take()
        return journal

    @classmethod
    def open(cls, folder: Path, *, write: bool = True) -> Journal:
        """The journal of a run that exists, to be gone on with; write=False reads one that may be
        running. Raises UsageError where there is none, where it is damaged or another's."""
        if not (folder / NAME).is_file():
            raise UsageError(f"{folder} holds no run (no {NAME})")
        journal = cls(folder, list(read(folder / NAME)))
        if not journal.events or not isinstance(journal.events[0], Started):
            raise UsageError(f"{journal.path} does not begin with a start event")
        if write:
            journal._take()
            journal._cut_half_line()
        return journal

    def _take(self) -> None:
        self._lock = filelock.FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
            self._file = self.path.open("ab")
        except filelock.Timeout:
            raise UsageError(f"{self.folder} is being searched by another process") from None
        except OSError as error:
            raise UsageError(f"{self.folder}: {error.strerror or error}") from None

    def _cut_half_line(self) -> None:
        data = self.path.read_bytes()
        os.truncate(self.path, data.rfind(b"\n") + 1)

    def append(self, event: Event) -> Event:
        """Write an event, durably; returns it as a later session will read it. Raises
        OpenEvolveError where it cannot be written: nothing before it is lost."""
        event = replace(event, t=round(self.now(), 2))
        line = json.dumps(event.to_json(), separators=(",", ":"), default=str).encode() + b"\n"
        at = self._file.tell()
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next session cuts the half line off
                os.ftruncate(self._file.fileno(), at)
            raise OpenEvolveError(
                f"{self.folder}: {error.strerror or error}; nothing before this is lost, go on "
                f"later with --resume {self.folder}"
            ) from None
        written = parse(json.loads(line))
        assert written is not None
        self.elapsed = max(self.elapsed, written.t)
        self.events.append(written)
        return written

    def now(self) -> float:
        """Seconds that the run has taken, over all its sessions; only read: up to the last
        event."""
        return self.elapsed if self._file is None else time.monotonic() - self._began

    def close(self) -> None:
        """Release the run."""
        if self._file is not None:
            self._file.close()
            self._lock.release()
            self._file = None


def read(path: Path) -> Iterator[Event]:
    """The whole events of a file. Raises UsageError where it cannot be read, or a line within it is
    damaged."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    for i, line in enumerate(lines[:-1], 1):  # what follows the last newline was never finished
        try:
            event = parse(json.loads(line))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}:{i}: damaged: {error}") from None
        if event is not None:
            yield event
