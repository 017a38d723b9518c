"""Archive: what was tried and what came of it, as events on disk and as elites in memory.

    RUN/events.jsonl       one event a line, only ever appended to; the archive is their replay
    RUN/v1/kernels/<id>/   the kernels, as in every registry

A candidate is "proposed" before anything is done with it and "done" when its fate is known. A kill
at any moment leaves at most half a last line, which the next run cuts off, and candidates that were
proposed and are not done: those are finished first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention.workload import Workload

from . import features
from .candidate import Candidate, Done, Result, geomean
from .config import Config

__all__ = ["Archive"]

# A candidate in flight at so many deaths of the main process is taken for their cause.
MAX_DEATHS = 2
# A kernel that ended so many workers, with different params, is not tried again.
MAX_POISON = 3


class Archive:
    """One run. `open` locks its folder and replays its events; every change is one event.

    Raises UsageError where the folder holds no run or another process has it, and OpenEvolveError
    where an event cannot be written (nothing before it is lost).
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.registry = Registry(folder)
        self.slugs = [w.slug for w in config.workloads]
        self.weights = dict(zip(self.slugs, config.weights, strict=True))
        self.candidates: dict[int, Candidate] = {}
        self.done: dict[int, Done] = {}
        self.baseline: dict[str, dict[str, Any]] = {}  # slug -> seconds, floor, bound ...
        self.kernels: dict[str, Candidate] = {}  # id -> the candidate that brought it
        self.kernel_best: dict[str, dict[str, Result]] = defaultdict(dict)
        self.best: dict[str, tuple[str, Result, int]] = {}  # slug -> kernel, result, candidate
        self.cells: list[dict[str, str]] = [{} for _ in range(config.search.islands)]
        self.history: list[dict[str, Any]] = []  # the best after each improvement
        self.poison: dict[str, str] = {}
        self.published: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.deaths: dict[int, int] = defaultdict(int)
        self.batched: set[int] = set()  # handed to another machine
        self.device: dict[str, Any] = {}
        self.ended = ""
        self.unprofiled = ""  # why there are no GPU profiles
        self.broken = ""  # why proposing cannot go on in this session
        self.elapsed = 0.0  # seconds of all sessions together, up to the last event
        self._since = (0.0, 0.0)  # elapsed and the clock when this session began
        self.banned: set[str] = set()  # kernels that ended several workers
        # (kernel, slug) -> settings -> seconds; nan while it is not known, inf where it failed
        self._trials: dict[tuple[str, str], dict[tuple[tuple[str, int], ...], float]] = {}
        self._at_best: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._file: Any = None
        self._lock: Any = None

    # Opening and writing

    @classmethod
    def create(cls, folder: Path, config: Config, device: Mapping[str, Any]) -> Archive:
        """A new run in a folder that holds none yet."""
        if (folder / "events.jsonl").exists():
            raise UsageError(f"{folder} already holds a run; go on with --resume {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: {error.strerror or error}") from None
        archive = cls(folder, config)
        archive._take()
        archive._since = (0.0, time.monotonic())
        archive.add("start", config=config.to_json(), device=dict(device), format=1)
        return archive

    @classmethod
    def open(cls, folder: Path, *, write: bool = True) -> Archive:
        """A run that exists, replayed. write=False reads one that may be running."""
        path = folder / "events.jsonl"
        if not path.is_file():
            raise UsageError(f"{folder} holds no run (no events.jsonl)")
        events = list(_events(path))
        if not events or events[0].get("event") != "start":
            raise UsageError(f"{path} does not begin with a start event")
        try:
            config = Config.from_json(events[0]["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: the start event is damaged: {error}") from None
        archive = cls(folder, config)
        if write:
            archive._take()
            _cut_half_line(path)
        for event in events:
            archive._apply(event)
        archive._since = (archive.elapsed, time.monotonic())
        return archive

    def _take(self) -> None:
        self._lock = filelock.FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
            self._file = (self.folder / "events.jsonl").open("ab")
        except filelock.Timeout:
            raise UsageError(f"{self.folder} is being searched by another process") from None
        except OSError as error:
            raise UsageError(f"{self.folder}: {error.strerror or error}") from None

    def close(self) -> None:
        """Release the folder."""
        if self._file is not None:
            self._file.close()
            self._lock.release()
            self._file = None

    def add(self, kind: str, **data: Any) -> None:
        """Append an event, durably, and apply it."""
        event = {"event": kind, "t": round(self.now(), 2), **data}
        line = json.dumps(event, separators=(",", ":"), default=_plain).encode() + b"\n"
        at = self._file.tell()
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next run cuts the half line off
                os.ftruncate(self._file.fileno(), at)
            raise OpenEvolveError(
                f"{self.folder}: {error.strerror or error}; nothing before this is lost, go on "
                f"later with --resume {self.folder}"
            ) from None
        self._apply(json.loads(line))

    def now(self) -> float:
        """Seconds that this run has taken, over all its sessions."""
        return self._since[0] + time.monotonic() - self._since[1]

    # The events

    def _apply(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.elapsed = max(self.elapsed, float(event.get("t", 0.0)))
        match event["event"]:
            case "start" | "device":
                self.device = event["device"]
            case "resume":
                self.ended = ""
                for number in event.get("pending", ()):
                    self.deaths[number] += 1
            case "baseline":
                self.baseline[event["workload"]] = event
            case "proposed":
                self._propose(Candidate.from_json(event["candidate"]))
            case "done":
                self._finish(event["number"], Done.from_json(event["done"]))
            case "batch":
                self.batched |= set(event["numbers"])
            case "poison":
                self.poison[event["key"]] = event["reason"]
                kernel = event["key"].split()[0]
                if sum(key.startswith(kernel) for key in self.poison) >= MAX_POISON:
                    self.banned.add(kernel)
            case "profile":
                self._profiled(event)
            case "unprofiled":
                self.unprofiled = event["reason"]
            case "published":
                self.published.append(event)
            case "end":
                self.ended = event["reason"]

    def _propose(self, candidate: Candidate) -> None:
        self.candidates[candidate.number] = candidate
        if candidate.kernel:
            self.kernels.setdefault(candidate.kernel, candidate)
            self._seen.setdefault(self._key(candidate), candidate.number)
            if candidate.params is not None:
                for slug in candidate.workloads:
                    self._note(candidate.kernel, slug, candidate.params, math.nan)

    def _note(self, kernel: str, slug: str, params: Mapping[str, int], seconds: float) -> None:
        self._trials.setdefault((kernel, slug), {})[tuple(params.items())] = seconds

    def _finish(self, number: int, done: Done) -> None:
        if number in self.done:
            return
        self.done[number] = done
        candidate = self.candidates[number]
        improved = False
        for slug in candidate.workloads:
            result = done.results.get(slug)
            params = result.params if result is not None else candidate.params
            if params is not None and candidate.kernel:
                seconds = math.inf if result is None else result.seconds
                self._note(candidate.kernel, slug, params, seconds)
            if result is None:
                continue
            old = self.kernel_best[candidate.kernel].get(slug)
            if old is None or result.ratio > old.ratio:
                self.kernel_best[candidate.kernel][slug] = result
            if slug in self.weights and (
                slug not in self.best or result.ratio > self.best[slug][1].ratio
            ):
                self.best[slug] = (candidate.kernel, result, number)
                self._at_best[slug] = self.tries(slug)
                improved = True
        if candidate.kernel in self.kernel_best:
            self._place(candidate.kernel)
        if improved:
            ratio, low, high = self.fitness()
            self.history.append(
                {"number": number, "t": self.elapsed, "ratio": ratio, "low": low, "high": high}
            )

    def _profiled(self, event: Mapping[str, Any]) -> None:
        """Put a profile to its result, where that is still the kernel's best."""
        kernel, slug = event["kernel"], event["workload"]
        result = self.kernel_best.get(kernel, {}).get(slug)
        if result is None or dict(result.params) != event["params"]:
            return
        result = replace(result, profile=event["profile"])
        self.kernel_best[kernel][slug] = result
        if slug in self.best and self.best[slug][0] == kernel:
            self.best[slug] = (kernel, result, self.best[slug][2])
        self._place(kernel)

    def _place(self, kernel: str) -> None:
        """Put a kernel into its cell of its island where it is the fittest of that cell."""
        results = self.kernel_best[kernel]
        if not results:
            return
        island = self.kernels[kernel].island % len(self.cells)
        homes = range(len(self.cells)) if not self.kernels[kernel].parent else (island,)
        cell = self.cell(kernel)
        for home in homes:
            for other in [c for c, holder in self.cells[home].items() if holder == kernel]:
                del self.cells[home][other]
            holder = self.cells[home].get(cell)
            if holder is None or self.kernel_fitness(kernel) > self.kernel_fitness(holder):
                self.cells[home][cell] = kernel

    # Asking

    def cell(self, kernel: str) -> str:
        """A kernel's cell: tiers of speed, variance and margin, and its strategy."""
        results = list(self.kernel_best[kernel].values())
        loaded = self.registry.kernel(kernel)
        counters = next((r.counters for r in results if r.counters), None)
        profile = next((r.profile for r in results if r.profile), None)
        tiers = (
            features.tier(self.kernel_fitness(kernel), features.SPEED_TIERS),
            features.tier(max(r.spread for r in results), features.VARIANCE_TIERS),
            features.tier(min(r.margin for r in results), features.MARGIN_TIERS),
        )
        text = features.strategy(loaded, counters, profile).key if loaded is not None else "?"
        return "{}-{}-{} {}".format(*tiers, text)

    def kernel_fitness(self, kernel: str) -> float:
        """Geometric-mean speed-up of one kernel over the suite, SDPA where it was not measured."""
        results = self.kernel_best.get(kernel, {})
        kept = [results.get(slug) for slug in self.slugs]
        return geomean(kept, [self.weights[slug] for slug in self.slugs])[0]

    def fitness(self) -> tuple[float, float, float]:
        """(ratio, low, high) of the best kernel on every workload; SDPA where none is faster."""
        kept: list[Result | None] = []
        for slug in self.slugs:
            result = self.best[slug][1] if slug in self.best else None
            kept.append(result if result is not None and result.ratio > 1 else None)
        return geomean(kept, [self.weights[slug] for slug in self.slugs])

    def fast_p(self, p: float) -> float:
        """Share of the suite's workloads with a correct kernel at least `p` times SDPA's speed."""
        fast = sum(1 for slug in self.slugs if slug in self.best and self.best[slug][1].low >= p)
        return fast / len(self.slugs)

    def tried(self, kernel: str, slug: str) -> list[dict[str, int]]:
        """The settings of a kernel that were proposed for a workload."""
        return [dict(key) for key in self._trials.get((kernel, slug), ())]

    def seconds(self, kernel: str, slug: str, params: Mapping[str, int]) -> float:
        """What a setting took: nan while that is not known, infinite where it failed."""
        return self._trials[kernel, slug][tuple(params.items())]

    def tries(self, slug: str) -> int:
        """Settings tried for a workload."""
        return sum(len(trials) for (_, s), trials in self._trials.items() if s == slug)

    def tries_at_best(self, slug: str) -> int:
        """Settings that had been tried when its best was found."""
        return self._at_best.get(slug, 0)

    def parent(self, kernel: str) -> str:
        """The kernel that a kernel was made from, "" for a seed."""
        return self.kernels[kernel].parent if kernel in self.kernels else ""

    def explore(self) -> float:
        """Share of parents to take outside the elites: as told, else more the longer nothing got
        better."""
        told = self.config.search.explore
        return told if told >= 0 else min(0.7, 0.15 + 0.01 * self.stagnation())

    def pending(self) -> list[Candidate]:
        """Proposed and not done, in order."""
        return [c for n, c in sorted(self.candidates.items()) if n not in self.done]

    def next_number(self) -> int:
        """Number of the next candidate."""
        return max(self.candidates, default=0) + 1

    def duplicate(self, candidate: Candidate) -> int:
        """Number of the candidate that tried the same before, 0 where none did."""
        return self._seen.get(self._key(candidate), 0) if candidate.kernel else 0

    def _key(self, candidate: Candidate) -> str:
        kernel = self.registry.kernel(candidate.kernel)
        text = features.fingerprint(kernel) if kernel is not None else candidate.kernel
        return json.dumps([text, candidate.params and dict(candidate.params), candidate.workloads])

    def elites(self, island: int | None = None) -> list[str]:
        """Kernels that hold a cell, the fittest first."""
        cells = self.cells if island is None else [self.cells[island % len(self.cells)]]
        found = {kernel for cell in cells for kernel in cell.values()}
        return sorted(found, key=lambda k: (-self.kernel_fitness(k), k))

    def stagnation(self) -> int:
        """Candidates since the last improvement."""
        last = self.history[-1]["number"] if self.history else 0
        return len([n for n in self.done if n > last])

    def spent(self) -> dict[str, float]:
        """Candidates, seconds, tokens and money so far."""
        costs = [c.cost for c in self.candidates.values()]
        return {
            "candidates": len(self.candidates),
            "seconds": self.now() if self._file is not None else self.elapsed,
            "tokens": sum(c.get("tokens_in", 0) + c.get("tokens_out", 0) for c in costs),
            "money": sum(c.get("money", 0.0) for c in costs),
        }

    def failures(self) -> dict[str, int]:
        """Failed candidates by cause, the most frequent first."""
        causes = [done.cause for done in self.done.values() if done.cause]
        return {c: causes.count(c) for c in sorted(set(causes), key=lambda c: -causes.count(c))}

    def valid_share(self) -> float:
        """Share of finished candidates that were correct and measured."""
        return statistics.fmean(not d.cause for d in self.done.values()) if self.done else 0.0

    def load(self, kernel: str) -> Kernel:
        """A kernel of this run. Raises OpenEvolveError where the run's folder lost it."""
        found = self.registry.kernel(kernel)
        if found is None:
            raise OpenEvolveError(f"{self.folder}: kernel {kernel} is missing or damaged")
        return found

    def workload(self, slug: str) -> Workload:
        """The bucket of that slug."""
        return Workload.parse(slug)


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """The whole events of a file. Raises UsageError where a line within it is damaged."""
    lines = path.read_bytes().split(b"\n")
    for i, line in enumerate(lines[:-1], 1):  # what follows the last newline was never finished
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError("no event")
        except ValueError as error:
            raise UsageError(f"{path}:{i}: damaged: {error}") from None
        yield event


def _cut_half_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value)
