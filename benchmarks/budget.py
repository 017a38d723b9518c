"""Whether `evolve --budget` ends when it says: the seconds that each run takes in all.

    python benchmarks/budget.py [--budget 60] [--slack 10] [--backend host] [--runs 3]

A run of its own process and home for each seed: whole suites, nothing compiled before. Its seconds
are those of the whole command, import and the gate's last word included. Exit code 1 where one took
more than budget + slack.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from mlx_lm_openevolve.device import BACKENDS, detect


def seconds_of_run(budget: float, backend: str, suite: str, seed: int) -> dict[str, object]:
    """One search with that budget: seconds of the command, and what it says of itself."""
    with tempfile.TemporaryDirectory() as home:
        words = ["evolve", "--json", "--backend", backend, "--budget", f"{budget:g}s"]
        words += ["--workloads", suite, "--seed", str(seed)]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "mlx_lm_openevolve", *words],
            env={**os.environ, "MLX_LM_OPENEVOLVE_HOME": home},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr}
    return {
        "seed": seed,
        "suite": suite,
        "seconds": round(seconds, 1),
        "exit": done.returncode,
        "candidates": found.get("candidates"),
        "stopped": found.get("stopped"),
        "error": found.get("error"),
    }


def main() -> int:
    """Print each run as it ends, and one JSON object at last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--slack", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--backend", choices=BACKENDS, default=detect().backend)
    parser.add_argument("--suite", nargs="+", default=["decode", "quantized"], metavar="SUITE")
    parser.add_argument("--runs", type=int, default=3, help="of each suite")
    options = parser.parse_args()
    rows = []
    for suite in options.suite:
        for seed in range(options.runs):
            rows.append(seconds_of_run(options.budget, options.backend, suite, seed))
            print(rows[-1], file=sys.stderr, flush=True)
    late = [row for row in rows if row["error"] or row["seconds"] > options.budget + options.slack]
    print(json.dumps({"device": detect(options.backend).slug, "runs": rows, "late": len(late)}))
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
