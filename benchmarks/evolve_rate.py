"""How fast the search is: candidates a minute of `params` on the host backend.

    python benchmarks/evolve_rate.py [--candidates 60] [--jobs 2]

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
from mlx_lm_openevolve.evolve.propose.params import ParamsProposer
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root


def rate(candidates: int, jobs: int) -> dict[str, float]:
    """A `params` run over the suites decode and batch on the host backend."""
    workloads = suites.suite(["decode", "batch"])
    config = Config(
        backend="host",
        workloads=workloads,
        weights=tuple(1 / len(workloads) for _ in workloads),
        budget=Budget(candidates=candidates),
        search=Search(batch=max(2, jobs), saturated=0.0),
        work=Work(jobs=jobs),
    )
    kernels = [k for k in Registry(tuned_root(), writable=False).kernels() if not k.native]
    with tempfile.TemporaryDirectory() as folder:
        # An empty home has an empty cache of compiled kernels.
        os.environ["MLX_LM_OPENEVOLVE_HOME"] = str(Path(folder) / "home")
        archive = Archive.create(Path(folder) / "run", config, {})
        start = time.monotonic()
        with LocalEvaluator(archive) as evaluator:
            loop.evolve(archive, ParamsProposer(kernels), evaluator, lambda archive: None)
        minutes = (time.monotonic() - start) / 60
        archive.close()
    return {
        "candidates": len(archive.done),
        "minutes": round(minutes, 2),
        "candidates_per_minute": round(len(archive.done) / minutes, 1),
        "valid": round(archive.valid_share(), 3),
    }


def main() -> None:
    """Print the rate as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    print(json.dumps({"rate": rate(options.candidates, options.jobs), "jobs": options.jobs}))


if __name__ == "__main__":
    main()
