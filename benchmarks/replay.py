"""The proposer `params` beside random search, over points that were measured once on a GPU.

    python benchmarks/replay.py [--table FILE] [--points 200] [--candidates 40] [--seeds 10]

A table holds times of one or more kernels by workload and params. The same loop, archive and
proposer run over it, so that what `params` needs to come close to the best of the table, which is
known, can be counted in candidates. Needs no GPU. A table is a JSON file:

    {"points": [{"workload": slug, "kernel": "gqa_decode", "params": {...}, "us": 12.3}, ...]}
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Budget, Config, Search
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult
from mlx_lm_openevolve.evolve.events import Baseline
from mlx_lm_openevolve.evolve.loop import evolve
from mlx_lm_openevolve.evolve.propose.params import ParamsProposer
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops import Bucket

Point = tuple[str, tuple[tuple[str, int], ...]]  # kernel and params
MEASURED = Path(__file__).parent / "results" / "h100-param-points.json"


def shipped() -> dict[str, Kernel]:
    """The shipped kernels by name."""
    return {kernel.name: kernel for kernel in Registry(tuned_root(), writable=False).kernels()}


@dataclass(frozen=True)
class Outcome:
    """How far from the best of the table a search was after each candidate (1.0: there), for each
    seed."""

    traces: tuple[tuple[float, ...], ...]

    def after(self, candidates: int) -> float:
        """Median over the seeds of the distance after so many candidates."""
        return statistics.median(t[min(candidates, len(t)) - 1] for t in self.traces)


class Table:
    """Measured points, as an evaluator for the loop: seconds by workload, kernel (by the name in
    `kernels`) and params. Raises UsageError where there are none."""

    def __init__(
        self, kernels: Mapping[str, Kernel], points: Mapping[Bucket, Mapping[Point, float]]
    ) -> None:
        if not points or not all(points.values()):
            raise UsageError("a table without points")
        self.kernels = dict(kernels)
        self._seconds: dict[str, dict[Point, float]] = {}
        for workload, rows in points.items():
            kept = self._seconds[workload.slug] = {}
            for (name, params), seconds in rows.items():
                checked = self.kernels[name].check_params(dict(params))
                kept[self.kernels[name].id, tuple(checked.items())] = seconds
        self.workloads = tuple(points)
        self.best = {slug: min(rows.values()) for slug, rows in self._seconds.items()}
        self.worst = {slug: max(rows.values()) for slug, rows in self._seconds.items()}

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._seconds.values())

    @classmethod
    def read(cls, path: Path, kernels: Mapping[str, Kernel]) -> Table:
        """The table in a file. Points of kernels that are not given, or with params that a kernel
        no longer has, are left out."""
        try:
            points = json.loads(path.read_text())["points"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: no table of points: {error}") from None
        found: dict[Bucket, dict[Point, float]] = {}
        for point in points:
            kernel, params = kernels.get(point["kernel"]), point["params"]
            if kernel is None or set(params) != {p.name for p in kernel.params}:
                continue
            if any(params[p.name] not in p.values for p in kernel.params):
                continue
            ordered = tuple((p.name, params[p.name]) for p in kernel.params)
            rows = found.setdefault(ops.parse(point["workload"]).bucket(), {})
            rows[point["kernel"], ordered] = point["us"] * 1e-6
        return cls(kernels, found)

    def part(self, workloads: Sequence[Bucket]) -> Table:
        """The table of some of the workloads."""
        names = {kernel.id: name for name, kernel in self.kernels.items()}
        return Table(
            self.kernels,
            {
                w: {(names[id], params): s for (id, params), s in self._seconds[w.slug].items()}
                for w in workloads
            },
        )

    def richest(self, points: int) -> Table:
        """The table of the workloads with most points, until there are so many."""
        kept: list[Bucket] = []
        for workload in sorted(self.workloads, key=lambda w: -len(self.part([w]))):
            kept.append(workload)
            if len(self.part(kept)) >= points:
                break
        return self.part(kept)

    def points(self, kernel: Kernel, workload: Bucket) -> list[dict[str, int]]:
        """The settings of a kernel that the table holds for a workload."""
        return [dict(params) for id, params in self._seconds[workload.slug] if id == kernel.id]

    # The evaluator's side

    def baselines(self, archive: Archive) -> Iterator[Baseline]:
        """The worst point stands for SDPA, half of the best for the floor: neither is known."""
        for slug in archive.slugs:
            floor = self.best[slug] / 2
            yield Baseline(slug, self.worst[slug], floor, "memory")

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterator[tuple[int, Evaluation]]:
        """What the table says."""
        for candidate in batch:
            assert candidate.params is not None
            (slug,) = candidate.workloads
            seconds = self._seconds[slug][candidate.kernel, tuple(candidate.params.items())]
            ratio = self.worst[slug] / seconds
            result = WorkloadResult(dict(candidate.params), seconds, ratio, ratio, ratio)
            yield candidate.number, Evaluation(results={slug: result})

    # Searches

    def params(self, candidates: int, seed: int) -> tuple[float, ...]:
        """The distance to the best after each candidate of the loop with `params`."""
        config = Config(
            backend="host",
            workloads=self.workloads,
            weights=(1 / len(self.workloads),) * len(self.workloads),
            seed=seed,
            budget=Budget(candidates=min(candidates, len(self))),
            search=Search(batch=1),
        )
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive.create(Path(folder) / "run", config, {})
            kernels = list(self.kernels.values())
            evolve(archive, ParamsProposer(kernels, points=self.points), self, lambda archive: None)
            found = [
                (slug, result.seconds)
                for number in sorted(archive.done)
                for slug, result in archive.done[number].results.items()
            ]
            archive.close()
        return self._trace(found)

    def random(self, candidates: int, seed: int) -> tuple[float, ...]:
        """The same for points drawn at random, none twice."""
        points = [(slug, s) for slug, rows in self._seconds.items() for s in rows.values()]
        return self._trace(random.Random(seed).sample(points, min(candidates, len(points))))

    def _trace(self, found: Sequence[tuple[str, float]]) -> tuple[float, ...]:
        """After each candidate the geometric mean over the workloads of the best time found over
        the best time there is; the worst time where nothing was tried yet."""
        best, trace = dict(self.worst), []
        for slug, seconds in found:
            best[slug] = min(best[slug], seconds)
            off = [math.log(best[slug] / self.best[slug]) for slug in best]
            trace.append(math.exp(statistics.fmean(off)))
        return tuple(trace)


def compare(table: Table, candidates: int = 40, seeds: int = 10) -> dict[str, Outcome]:
    """`params` beside random search over the same table, for some seeds."""
    return {
        "params": Outcome(tuple(table.params(candidates, seed) for seed in range(seeds))),
        "random": Outcome(tuple(table.random(candidates, seed) for seed in range(seeds))),
    }


def main() -> None:
    """Print the comparison as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=MEASURED)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    table = Table.read(options.table, shipped()).richest(options.points)
    found = compare(table, options.candidates, options.seeds)
    over_best = {
        name: {n: round(outcome.after(n), 4) for n in (10, 20, options.candidates)}
        for name, outcome in found.items()
    }
    print(
        json.dumps(
            {
                "points": len(table),
                "workloads": len(table.workloads),
                "seeds": options.seeds,
                "time_over_best_after_candidates": over_best,
            }
        )
    )


if __name__ == "__main__":
    main()
