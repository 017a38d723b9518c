"""What the gate costs at first use, against another checkout of this repository.

    python benchmarks/first_use.py --against FOLDER [--backend cuda] [--rounds 3] [-o FILE]

Each checkout judges the same workloads in processes of its own, in an order that is drawn. Seconds
are those of the whole gate, and those in which a chain of calls was being timed: a GPU is busy
then. On the host MLX's own attention stands in for a kernel, since nothing is timed there
otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent.parent
# For a workload, as in a user's process; on the host more, where correctness alone takes as long.
SECONDS = {"metal": 2.0, "cuda": 2.0, "host": 20.0}
WORKLOADS = (
    "attention-b1-hq16-hkv8-lq1-lk4096-d128-v128-bfloat16-none",
    "attention-b8-hq32-hkv8-lq1-lk2048-d128-v128-bfloat16-bool",
    "attention-b1-hq32-hkv8-lq8-lk4096-d128-v128-bfloat16-causal",
    "attention-b1-hq16-hkv8-lq1-lk2048-d128-v128-bfloat16-none-kv8g64",
)
ON_A_CPU = (
    "attention-b1-hq4-hkv2-lq1-lk512-d64-v64-float32-none",
    "attention-b1-hq4-hkv2-lq8-lk256-d64-v64-float32-causal",
)


def judged(slug: str, backend: str) -> dict[str, Any]:
    """One verdict in this process, with the library of this process."""
    from mlx_lm_openevolve import ops
    from mlx_lm_openevolve.device import detect
    from mlx_lm_openevolve.errors import GateTimeout
    from mlx_lm_openevolve.gate import judge, limits, timing
    from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
    from mlx_lm_openevolve.ops.attention.reference import sdpa

    spent = {"timing": 0.0, "chains": 0, "calls": 0}
    run = timing.Arm.seconds

    def seconds(arm: Any, calls: int) -> float:
        each = run(arm, calls)
        spent["timing"] += each * calls
        spent["chains"] += 1
        spent["calls"] += calls
        return each

    timing.Arm.seconds = seconds  # type: ignore[method-assign]
    bucket = ops.parse(slug).bucket()
    start, said = time.monotonic(), ""
    try:
        if backend == "host":
            clock = limits.Clock(SECONDS[backend])
            said = judge.judge_calls(sdpa, bucket, detect(backend), clock).reason
        else:
            kernels = Registry(tuned_root(), writable=False).kernels()
            kernel = next(k for k in kernels if not k.native and k.applies_to(bucket))
            params = kernel.default_params(bucket)
            said = judge.judge(kernel, params, bucket, backend, seconds=SECONDS[backend]).reason
    except GateTimeout as error:
        said = f"no verdict: {error}"
    return {"workload": slug, "gate": time.monotonic() - start, **spent, "said": said}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="root of the other checkout")
    parser.add_argument("--backend", choices=("metal", "cuda", "host"), default="host")
    parser.add_argument("--workloads", nargs="+", metavar="SLUG")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--one", metavar="SLUG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(judged(options.one, options.backend)))
        return 0
    if options.against is None:
        parser.error("--against is needed")
    trees = {"new": HERE, "old": options.against.resolve()}
    slugs = options.workloads or (ON_A_CPU if options.backend == "host" else WORKLOADS)
    found: list[dict[str, Any]] = []
    for slug in slugs:
        for turn in range(options.rounds):
            for name in random.sample(sorted(trees), 2):
                words = [sys.executable, __file__, "--backend", options.backend, "--one", slug]
                environment = {**os.environ, "PYTHONPATH": str(trees[name])}
                done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    return 2
                record = json.loads(done.stdout.splitlines()[-1])
                found.append({"tree": name, "round": turn, **record})
        for what in ("gate", "timing"):
            old, new = (
                median(x[what] for x in found if (x["workload"], x["tree"]) == (slug, name))
                for name in ("old", "new")
            )
            ratio = old / new if new else float("nan")
            print(f"{slug} {what:6} old {old:.3f} s, new {new:.3f} s: old/new {ratio:.3f}")
        print(
            *sorted({f"  {x['tree']}: {x['said']}" for x in found if x["workload"] == slug}),
            sep="\n",
        )
    if options.output:
        record = {
            "command": "python benchmarks/first_use.py " + " ".join(sys.argv[1:]),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "runs": found,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
