"""Replay: a search over points that were measured once, instead of over a GPU.

A table holds times of one or more kernels by workload and params. The same loop, archive and
proposer run over it, so that what `tune` needs to come close to the best of the table, which is
known, can be counted in candidates and compared with random search.

    {"kernels": {"gqa_decode": {...kernel.json...}}, "baseline_us": {slug: us},
     "points": [{"workload": slug, "kernel": "gqa_decode", "params": {...}, "us": 12.3}, ...]}
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.kernel import Kernel
from mlx_lm_openevolve.workload import Workload

from .archive import Archive, Candidate, Done, Result
from .config import Budget, Config, Search
from .loop import evolve
from .propose.tune import Tune

__all__ = ["Outcome", "Table", "compare"]

Point = tuple[str, tuple[tuple[str, int], ...]]  # kernel and params


@dataclass(frozen=True)
class Outcome:
    """How far from the best of the table a search was after each candidate (1.0: there), for each
    seed. `to_reach` is the number of candidates after which a seed was within a share."""

    traces: tuple[tuple[float, ...], ...]

    def after(self, candidates: int) -> float:
        """Median over the seeds of the distance after so many candidates."""
        return statistics.median(t[min(candidates, len(t)) - 1] for t in self.traces)

    def to_reach(self, share: float) -> float:
        """Median number of candidates until within `share` of the best; infinite where never."""
        counts = [
            next((i + 1 for i, x in enumerate(t) if x <= 1 + share), math.inf) for t in self.traces
        ]
        return statistics.median(counts)


class Table:
    """Measured points of one workload, as a bench for the loop. `kernels` by the names that the
    points use. Raises UsageError where the points make no sense."""

    def __init__(
        self,
        workload: Workload,
        kernels: Mapping[str, Kernel],
        points: Mapping[Point, float],
        baseline: float = 0.0,
    ) -> None:
        if not points:
            raise UsageError(f"{workload.slug}: a table without points")
        self.workload, self.kernels = workload, dict(kernels)
        self._seconds: dict[Point, float] = {}
        for (name, params), seconds in points.items():
            checked = self.kernels[name].check_params(dict(params))
            self._seconds[self.kernels[name].id, tuple(checked.items())] = seconds
        self.best = min(self._seconds.values())
        self.baseline = baseline or statistics.median(self._seconds.values())

    def __len__(self) -> int:
        return len(self._seconds)

    @classmethod
    def read(cls, path: Path, kernels: Mapping[str, Kernel]) -> list[Table]:
        """The tables of a file, one for each workload. `kernels` by name. Points of kernels that
        are not given, or with params that a kernel no longer has, are left out."""
        try:
            data = json.loads(path.read_text())
            points = data["points"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: no table of points: {error}") from None
        found: dict[str, dict[Any, float]] = {}
        for point in points:
            name, params = point["kernel"], point["params"]
            if name not in kernels or set(params) != {p.name for p in kernels[name].params}:
                continue
            if any(params[p.name] not in p.values for p in kernels[name].params):
                continue
            ordered = tuple((p.name, params[p.name]) for p in kernels[name].params)
            found.setdefault(point["workload"], {})[name, ordered] = point["us"] * 1e-6
        baselines = data.get("baseline_us", {})
        return [
            cls(Workload.parse(slug), kernels, rows, baselines.get(slug, 0.0) * 1e-6)
            for slug, rows in found.items()
        ]

    def points(self, kernel: Kernel) -> list[dict[str, int]]:
        """The settings of a kernel that the table holds."""
        return [dict(params) for id, params in self._seconds if id == kernel.id]

    # The bench's side

    def baselines(self, archive: Archive) -> Iterator[tuple[str, dict[str, object]]]:
        """SDPA's time; no floor is known, so half of the best stands for it."""
        for slug in archive.slugs:
            if slug not in archive.baseline:
                yield slug, {"seconds": self.baseline, "floor": self.best / 2, "bound": "memory"}

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterator[tuple[int, Done]]:
        """What the table says."""
        for candidate in batch:
            assert candidate.params is not None
            seconds = self._seconds[candidate.kernel, tuple(candidate.params.items())]
            ratio = self.baseline / seconds
            result = Result(dict(candidate.params), seconds, ratio, ratio, ratio)
            yield candidate.number, Done(results={candidate.workloads[0]: result})

    # Searches

    def tune(self, candidates: int, seed: int) -> tuple[float, ...]:
        """The distance to the best after each candidate of the loop with `tune`."""
        config = Config(
            backend="host",
            workloads=(self.workload,),
            weights=(1.0,),
            seed=seed,
            budget=Budget(candidates=min(candidates, len(self))),
            search=Search(batch=1),
        )
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive.create(Path(folder) / "run", config, {})
            kernels = [k for k in self.kernels.values() if any(k.id == i for i, _ in self._seconds)]
            evolve(archive, Tune(kernels, points=self.points), self, lambda archive: None)
            times = [
                next(iter(archive.done[n].results.values())).seconds for n in sorted(archive.done)
            ]
            archive.close()
        return self._trace(times)

    def random(self, candidates: int, seed: int) -> tuple[float, ...]:
        """The same for points drawn at random, none twice."""
        points = list(self._seconds.values())
        return self._trace(random.Random(seed).sample(points, min(candidates, len(points))))

    def _trace(self, times: list[float]) -> tuple[float, ...]:
        best, trace = math.inf, []
        for seconds in times:
            best = min(best, seconds)
            trace.append(best / self.best)
        return tuple(trace)


def compare(table: Table, candidates: int = 40, seeds: int = 10) -> dict[str, Outcome]:
    """`tune` beside random search over the same table, for some seeds."""
    return {
        "tune": Outcome(tuple(table.tune(candidates, seed) for seed in range(seeds))),
        "random": Outcome(tuple(table.random(candidates, seed) for seed in range(seeds))),
    }
