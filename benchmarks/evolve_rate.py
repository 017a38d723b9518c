"""How fast the search is: candidates a minute on the host backend, and how soon `tune` comes close
to the best of measured points.

    python benchmarks/evolve_rate.py [--candidates 60] [--table benchmarks/results/...json]

The rate counts everything a candidate goes through without a GPU: compiling for Metal, the
sanitised runs, float64, the counters and the archive. What was compiled before is not used again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from mlx_lm_openevolve.evolve import loop, suites
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Budget, Config, Search, Work
from mlx_lm_openevolve.evolve.evaluator import LocalEvaluator
from mlx_lm_openevolve.evolve.propose.tune import Tune
from mlx_lm_openevolve.evolve.replay import Table, compare
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention.workload import Workload

TABLE = Path(__file__).parent / "results" / "h100-param-points.json"


def shipped() -> list[Kernel]:
    """The shipped kernels."""
    return Registry(tuned_root(), writable=False).kernels()


def rate(candidates: int, jobs: int) -> dict[str, float]:
    """A `tune` run over the suites decode and batch on the host backend."""
    workloads = suites.suite(["decode", "batch"])
    config = Config(
        backend="host",
        workloads=workloads,
        weights=tuple(1 / len(workloads) for _ in workloads),
        budget=Budget(candidates=candidates),
        search=Search(batch=max(2, jobs), saturated=0.0),
        work=Work(jobs=jobs),
    )
    kernels = [k for k in shipped() if not k.native]
    with tempfile.TemporaryDirectory() as folder:
        # An empty home has an empty cache of compiled kernels.
        os.environ["MLX_LM_OPENEVOLVE_HOME"] = str(Path(folder) / "home")
        archive = Archive.create(Path(folder) / "run", config, {})
        start = time.monotonic()
        with LocalEvaluator(archive) as evaluator:
            loop.evolve(archive, Tune(kernels), evaluator, lambda archive: None)
        minutes = (time.monotonic() - start) / 60
        archive.close()
    return {
        "candidates": len(archive.done),
        "minutes": round(minutes, 2),
        "candidates_per_minute": round(len(archive.done) / minutes, 1),
        "valid": round(archive.valid_share(), 3),
    }


def replay(path: Path, points: int, candidates: int, seeds: int) -> dict[str, object]:
    """`tune` and random search over the workloads with most points, until they are `points`."""
    whole = Table.read(path, {kernel.name: kernel for kernel in shipped()})
    kept: list[Workload] = []
    for workload in sorted(whole.workloads, key=lambda w: -len(whole.part([w]))):
        kept.append(workload)
        if len(whole.part(kept)) >= points:
            break
    table = whole.part(kept)
    found = compare(table, candidates, seeds)
    return {
        "points": len(table),
        "workloads": len(kept),
        "seeds": seeds,
        **{
            f"{name}_over_best_after_{n}": round(outcome.after(n), 4)
            for name, outcome in found.items()
            for n in (10, 20, candidates)
        },
    }


def main() -> None:
    """Print both as one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    if options.table.is_file():
        print(json.dumps({"replay": replay(options.table, 200, 40, options.seeds)}), flush=True)
    print(json.dumps({"rate": rate(options.candidates, options.jobs), "jobs": options.jobs}))


if __name__ == "__main__":
    main()
