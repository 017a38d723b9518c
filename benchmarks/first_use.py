"""What the gate costs at first use, against another checkout of this repository.

    python benchmarks/first_use.py --against FOLDER [--backend cuda] [--rounds 3] [-o FILE]

Each checkout judges the same workloads in processes of its own, in an order that is drawn. Seconds
are those of the whole gate, and those in which a chain of calls was being timed: a GPU is busy
then. First what is planned, by the microseconds of a call, which no noise of the machine touches.
On the host MLX's own attention stands in for a kernel, since nothing is timed there
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


def asked(root: Path, backend: str, what: str) -> dict[str, Any]:
    """What a process with the library of `root` says."""
    words = [sys.executable, __file__, "--backend", backend, "--one", what]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def planned(call_seconds: float, left: float = 1.35) -> float:
    """Seconds in which calls are timed for a verdict, where each takes `call_seconds`, and `left`
    are left when timing begins: the original against itself, and against a contender twice."""
    from mlx_lm_openevolve.gate import timing

    total = 0

    class Counted:
        def seconds(self, calls: int) -> float:
            nonlocal total
            total += calls
            return call_seconds

    time.sleep, real = lambda seconds: None, time.sleep
    try:
        for share in (0.6 * 0.25, 0.6 * 0.5, 0.4 * 0.5):
            arms: Any = (Counted(), Counted())
            timing.paired(*arms, call_seconds, share * left, 0)
    finally:
        time.sleep = real
    return total * call_seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="root of the other checkout")
    parser.add_argument("--backend", choices=("metal", "cuda", "host"), default="host")
    parser.add_argument("--workloads", nargs="+", metavar="SLUG")
    parser.add_argument("--rounds", type=int, default=3, help="0: only what is planned")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--one", metavar="SLUG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == "planned":
        print(json.dumps({f"{n} us": planned(n * 1e-6) for n in (5, 10, 20, 40, 100, 400, 2000)}))
        return 0
    if options.one:
        print(json.dumps(judged(options.one, options.backend)))
        return 0
    if options.against is None:
        parser.error("--against is needed")
    trees = {"new": HERE, "old": options.against.resolve()}
    slugs = options.workloads or (ON_A_CPU if options.backend == "host" else WORKLOADS)
    found: list[dict[str, Any]] = []
    plans = {name: asked(root, options.backend, "planned") for name, root in trees.items()}
    for call, old in plans["old"].items():
        new = plans["new"][call]
        print(f"calls of {call:7}: timed {old:.3f} s, now {new:.3f} s: old/new {old / new:.3f}")
    for slug in slugs if options.rounds else ():
        for turn in range(options.rounds):
            for name in random.sample(sorted(trees), 2):
                record = asked(trees[name], options.backend, slug)
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
            "planned": plans,
            "runs": found,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
