"""What the questions of a first-use verdict cost, against another checkout of this repository:

    git worktree add OLD main
    python benchmarks/first_use_verdict.py OLD [--backend cuda] [--seeds 3] [WORKLOAD ...]

Each checkout is asked in a process of its own, in the order old, new, new, old. A time is that of
making and putting all questions to a shipped kernel: "compiled" where every kernel was built
before, "first" with the compilations, which a cache on disk may shorten. Prints each workload's
seconds, and new/old.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKLOADS = (
    "attention-b1-hq8-hkv2-lq1-lk128-d64-v64-bfloat16-none",
    "attention-b2-hq4-hkv2-lq1-lk256-d64-v64-bfloat16-bool",
    "attention-b2-hq4-hkv2-lq8-lk64-d64-v64-bfloat16-additive",
    "attention-b1-hq4-hkv2-lq32-lk64-d64-v64-bfloat16-causal",
)

CHILD = """
import inspect, json, sys, time
from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.gate.correctness import Calls
from mlx_lm_openevolve.kernels.lookup import shipped

backend, seeds = sys.argv[1], int(sys.argv[2])
module = backends.get(backend)
found = {}
for slug in sys.argv[3:]:
    bucket = ops.parse(slug).bucket()
    asked = ops.of(bucket).questions
    brief = {"brief": True} if "brief" in inspect.signature(asked.cases).parameters else {}
    fit = (k for k in shipped().kernels() if k.native <= {backend} - {"host"})
    kernel = min((k for k in fit if k.applies_to(bucket)), key=lambda k: k.name)  # the same in both
    params = kernel.default_params(bucket)

    def put(seed):
        start = time.perf_counter()
        calls = Calls(lambda exact: module.build(kernel, params, exact))
        for case in asked.cases(bucket, seed, **brief):
            reason = calls(case()).reason
            assert not reason, reason
        return time.perf_counter() - start

    first = put(0)
    for seed in range(seeds):
        put(seed)
    # The least of three: what others do on the machine only adds.
    compiled = sum(min(put(seed) for _ in range(3)) for seed in range(seeds)) / seeds
    found[slug] = {"first": first, "compiled": compiled}
print(json.dumps(found))
"""


def timed(
    checkout: Path, backend: str, seeds: int, workloads: list[str], home: str
) -> dict[str, dict[str, float]]:
    """Seconds of every workload in a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "MLX_LM_OPENEVOLVE_HOME": home}
    command = [sys.executable, "-c", CHILD, backend, str(seeds), *workloads]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checkout)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="old against new questions of the gate")
    parser.add_argument("old", type=Path)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--backend", default="host")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    new = Path(__file__).resolve().parents[1]
    found: dict[str, list[dict[str, dict[str, float]]]] = {"old": [], "new": []}
    for name in ("old", "new", "new", "old"):
        checkout = options.old.resolve() if name == "old" else new
        with tempfile.TemporaryDirectory() as home:
            asked = checkout, options.backend, options.seeds, options.workloads, home
            found[name].append(timed(*asked))
    ratios: dict[str, list[float]] = {"first": [], "compiled": []}
    for slug in options.workloads:
        for kind, all_ratios in ratios.items():
            a, b = (min(run[slug][kind] for run in found[n]) for n in ("old", "new"))
            all_ratios.append(b / a)
            print(f"{slug} {kind}: old {a:.3f} s, new {b:.3f} s, new/old {b / a:.2f}")
    for kind, all_ratios in ratios.items():
        print(f"{kind}: geometric mean of new/old {statistics.geometric_mean(all_ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
