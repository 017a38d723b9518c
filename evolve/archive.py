"""The archive of a run: the fittest kernels, and all that is known of what was tried.

    RUN/events.jsonl       the journal; the archive is the replay of its events
    RUN/v2/kernels/<id>/   the kernels, as in every registry

The map of elites is MAP-Elites (Mouret and Clune, Illuminating search spaces by mapping elites,
arXiv:1504.04909, 2015): a cell for each combination of features, the fittest kernel in each.
Several islands keep maps of their own, as in FunSearch (Romera-Paredes et al., Mathematical
discoveries from program search with large language models, Nature 625, 2023).

A candidate is on record before anything is done with it. Candidates that a killed session proposed
and did not evaluate are evaluated first.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.device import Device, detect
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops import Bucket

from . import events, features
from .candidate import Candidate
from .config import Config
from .evaluation import Evaluation, WorkloadResult, geomean
from .journal import Journal

__all__ = ["MAX_DEATHS", "Archive", "Best"]

# A candidate in flight at so many deaths of the main process is taken for their cause.
MAX_DEATHS = 2
# A kernel that ended so many workers, with different params, is not tried again.
MAX_WORKER_DEATHS = 3


class Best(NamedTuple):
    """The best of a workload: the kernel's id, its result, and the number of the candidate."""

    kernel: str
    result: WorkloadResult
    number: int


class Archive:
    """One run. Every change of it is an event, which `add` writes and applies.

    `create` and `open` raise UsageError where the folder holds no run, or one that is damaged or
    that another process has.
    """

    def __init__(self, journal: Journal, config: Config) -> None:
        self.journal, self.folder, self.config = journal, journal.folder, config
        self.registry = Registry(journal.folder)
        self.slugs = [w.slug for w in config.workloads]
        self.weights = dict(zip(self.slugs, config.weights, strict=True))
        self.candidates: dict[int, Candidate] = {}
        self.done: dict[int, Evaluation] = {}
        self.baseline: dict[str, events.Baseline] = {}  # by slug
        self.kernels: dict[str, Candidate] = {}  # id -> the candidate that brought it
        self.kernel_best: dict[str, dict[str, WorkloadResult]] = defaultdict(dict)  # id -> slug
        self.best: dict[str, Best] = {}  # by slug
        # What other chips of a fleet said: chip -> id -> slug
        self.elsewhere: dict[str, dict[str, dict[str, WorkloadResult]]] = {}
        self.cells: list[dict[str, str]] = [{} for _ in range(config.search.islands)]
        self.history: list[dict[str, Any]] = []  # the best after each improvement
        self.worker_deaths: dict[str, str] = {}  # what ended a worker -> how
        self.published: list[events.Published] = []
        self.deaths: dict[int, int] = defaultdict(int)
        self.device: Mapping[str, Any] = {}
        self.ended = ""
        self.unprofiled = ""  # why there are no GPU profiles
        self.broken = ""  # why proposing cannot go on in this session
        self.banned: set[str] = set()  # kernels that ended several workers
        # (kernel, slug) -> settings -> cost; nan while it is not known, inf where it failed
        self._trials: dict[tuple[str, str], dict[tuple[tuple[str, int], ...], float]] = {}
        self._at_best: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    @classmethod
    def create(cls, folder: Path, config: Config, device: Mapping[str, Any]) -> Archive:
        """A new run in a folder that holds none yet."""
        archive = cls(Journal.create(folder), config)
        archive.add(events.Started(config, device))
        return archive

    @classmethod
    def open(cls, folder: Path, *, write: bool = True) -> Archive:
        """A run that exists, replayed. write=False reads one that may be running."""
        journal = Journal.open(folder, write=write)
        start = journal.events[0]
        assert isinstance(start, events.Started)
        archive = cls(journal, start.config)
        try:
            for event in journal.events:
                archive._judge(event)
                archive._apply(event)
        except UsageError:
            archive.close()
            raise
        return archive

    def _judge(self, event: events.Event) -> None:
        """Raise UsageError where an event of a journal speaks of what the run does not have."""
        if not isinstance(event, events.Evaluated):
            return
        wrong = ""
        if event.number not in self.candidates:
            wrong = "was never proposed"
        elif not self.timed and not all(r.counted for r in event.done.results.values()):
            wrong = "has a result without bytes, and nothing is timed here"
        if wrong:
            raise UsageError(f"{self.journal.path}: damaged: candidate {event.number} {wrong}")

    def close(self) -> None:
        """Release the folder."""
        self.journal.close()

    def add(self, event: events.Event) -> None:
        """Append an event to the journal, durably, and apply it. Raises OpenEvolveError where it
        cannot be written."""
        self._apply(self.journal.append(event))

    def _apply(self, event: events.Event) -> None:
        match event:
            case events.Started() | events.MeasuredOn():
                self.device = event.device
            case events.Resumed():
                self.ended = ""
                for number in event.pending:
                    self.deaths[number] += 1
            case events.Baseline():
                self.baseline[event.workload] = event
            case events.Proposed():
                self._propose(event.candidate)
            case events.Evaluated():
                self._finish(event)
            case events.EndedWorker():
                self.worker_deaths[event.key] = event.reason
                kernel = event.key.split()[0]
                if sum(key.startswith(kernel) for key in self.worker_deaths) >= MAX_WORKER_DEATHS:
                    self.banned.add(kernel)
            case events.Profiled():
                self._profiled(event)
            case events.Unprofiled():
                self.unprofiled = event.reason
            case events.Published():
                self.published.append(event)
            case events.Ended():
                self.ended = event.reason

    def _propose(self, candidate: Candidate) -> None:
        self.candidates[candidate.number] = candidate
        if candidate.kernel:
            self.kernels.setdefault(candidate.kernel, candidate)
            self._seen.setdefault(self._key(candidate), candidate.number)
            if candidate.params is not None:
                for slug in candidate.workloads:
                    self._note(candidate.kernel, slug, candidate.params, math.nan)

    def _note(self, kernel: str, slug: str, params: Mapping[str, int], cost: float) -> None:
        self._trials.setdefault((kernel, slug), {})[tuple(params.items())] = cost

    def _finish(self, event: events.Evaluated) -> None:
        number, done = event.number, event.done
        if number in self.done:
            return
        self.done[number] = done
        candidate = self.candidates[number]
        improved = False
        for slug in candidate.workloads:
            result = done.results.get(slug)
            params = result.params if result is not None else candidate.params
            if params is not None and candidate.kernel:
                cost = math.inf if result is None else result.cost
                self._note(candidate.kernel, slug, params, cost)
            if result is None:
                continue
            old = self.kernel_best[candidate.kernel].get(slug)
            if old is None or result.score > old.score:
                self.kernel_best[candidate.kernel][slug] = result
            if slug in self.weights and (
                slug not in self.best or result.score > self.best[slug].result.score
            ):
                self.best[slug] = Best(candidate.kernel, result, number)
                self._at_best[slug] = self.tries(slug)
                improved = True
        for chip, there in done.elsewhere.items():
            known = self.elsewhere.setdefault(chip, {}).setdefault(candidate.kernel, {})
            for slug, result in there.results.items():
                if slug not in known or result.score > known[slug].score:
                    known[slug] = result
        if candidate.kernel in self.kernel_best:
            self._place(candidate.kernel)
        if improved:
            ratio, low, high = self.fitness()
            step = {"number": number, "t": event.t, "ratio": ratio, "low": low, "high": high}
            self.history.append(step)

    def _profiled(self, event: events.Profiled) -> None:
        """Add a profile to its result, where that is still the kernel's best."""
        kernel, slug = event.kernel, event.workload
        result = self.kernel_best.get(kernel, {}).get(slug)
        if result is None or result.params != event.params:
            return
        result = replace(result, profile=event.profile)
        self.kernel_best[kernel][slug] = result
        if slug in self.best and self.best[slug].kernel == kernel:
            self.best[slug] = self.best[slug]._replace(result=result)
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

    # Questions

    @property
    def elapsed(self) -> float:
        """Seconds of all sessions together, up to the last event."""
        return self.journal.elapsed

    def cell(self, kernel: str) -> str:
        """A kernel's cell: tiers of fitness, variance and margin, and its strategy."""
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

    def best_elsewhere(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The best on every other chip of a fleet: chip -> slug -> kernel, params and speed-up."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for chip, kernels in self.elsewhere.items():
            for kernel, results in kernels.items():
                for slug, r in results.items():
                    row = {"kernel": kernel, "params": dict(r.params), "ratio": r.ratio}
                    row |= {"low": r.low, "high": r.high}
                    known = found.setdefault(chip, {}).get(slug)
                    if known is None or r.ratio > known["ratio"]:
                        found[chip][slug] = row
        return found

    def kernel_fitness(self, kernel: str) -> float:
        """Geometric-mean score of one kernel over the suite, SDPA where it was not measured."""
        return self._mean(self.kernel_best.get(kernel, {}))[0]

    def fitness(self) -> tuple[float, float, float]:
        """(score, low, high) of the best kernel on every workload; SDPA where none is faster."""
        best = {slug: b.result for slug, b in self.best.items()}
        return self._mean({s: r for s, r in best.items() if not self.timed or r.ratio > 1})

    def _mean(self, results: Mapping[str, WorkloadResult]) -> tuple[float, float, float]:
        """Over all workloads; where nothing is timed over those with a result: SDPA has none."""
        slugs = [slug for slug in self.slugs if self.timed or slug in results]
        return geomean([results.get(s) for s in slugs], [self.weights[s] for s in slugs])

    def standing(self) -> str:
        """`fitness` for people."""
        score, low, high = self.fitness()
        if self.timed:
            return f"{score:.3f}x [{low:.3f}, {high:.3f}]"
        return f"{1 / score:.2f}x the least bytes" if self.best else "nothing right yet"

    def fast_p(self, p: float) -> float:
        """Share of the suite's workloads with a correct kernel at least `p` times SDPA's speed, by
        the lower end of its interval (fast_p of KernelBench: Ouyang et al., arXiv:2502.10517,
        2025)."""
        best = [self.best[slug].result for slug in self.slugs if slug in self.best]
        return sum(result.low >= p for result in best) / len(self.slugs)

    def tried(self, kernel: str, slug: str) -> list[dict[str, int]]:
        """The settings of a kernel that were proposed for a workload."""
        return [dict(key) for key in self._trials.get((kernel, slug), ())]

    def cost(self, kernel: str, slug: str, params: Mapping[str, int]) -> float:
        """What a setting took, see WorkloadResult: nan while that is not known, infinite where it
        failed."""
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
        """Share of parents to take outside the elites: as configured, else more the longer nothing
        got better."""
        share = self.config.search.explore
        return share if share >= 0 else min(0.7, 0.15 + 0.01 * self.stagnation())

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
        text = features.digest(kernel) if kernel is not None else candidate.kernel
        return json.dumps([text, candidate.params and dict(candidate.params), candidate.workloads])

    def elites(self, island: int | None = None) -> list[str]:
        """Kernels that hold a cell, the fittest first."""
        cells = self.cells if island is None else [self.cells[island % len(self.cells)]]
        kernels = {kernel for cell in cells for kernel in cell.values()}
        return sorted(kernels, key=lambda k: (-self.kernel_fitness(k), k))

    def stagnation(self) -> int:
        """Candidates since the last improvement."""
        last = self.history[-1]["number"] if self.history else 0
        return len([n for n in self.done if n > last])

    def spent(self) -> dict[str, float]:
        """Candidates, seconds, tokens and money so far."""
        costs = [c.cost for c in self.candidates.values()]
        return {
            "candidates": len(self.candidates),
            "seconds": self.journal.now(),
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
        loaded = self.registry.kernel(kernel)
        if loaded is None:
            raise OpenEvolveError(f"{self.folder}: kernel {kernel} is missing or damaged")
        return loaded

    @property
    def timed(self) -> bool:
        """Whether kernels are timed; without a GPU they are ranked by the bytes that they move."""
        return self.config.backend != "host"

    @property
    def stock(self) -> str:
        """What the run's kernels are compared with, for people."""
        return ops.of_slug(self.slugs[0]).stock

    def defaults(self, kernel: Kernel, slug: str) -> dict[str, int]:
        """A kernel's defaults on the chip of this run, which need not be this machine's. Raises
        KernelError."""
        facts = {f.name: self.device[f.name] for f in fields(Device) if f.name in self.device}
        chip = replace(detect(self.config.backend), **facts)
        return kernel.default_params(self.workload(slug), chip)

    def workload(self, slug: str) -> Bucket:
        """The bucket of that slug."""
        return ops.parse(slug).bucket()
