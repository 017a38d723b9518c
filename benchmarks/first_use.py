"""What a verdict costs at first use, against another checkout of this repository.

    git worktree add OLD REVISION
    python benchmarks/first_use.py --against OLD [--backend cuda] [--rounds 3] [-o FILE] [SLUG ...]

Each checkout judges the same workloads in processes of its own, in an order that is drawn, with
nothing compiled before. For each workload the medians, in seconds, of
  first      making all questions and putting them to a shipped kernel, compilations included
  compiled   the same once more, the least of three
  gate       a whole verdict; on the host, where no kernel is timed, one on MLX's own attention
  timing     the part of that in which chains of calls were being timed: a GPU is busy then
and old/new of each.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
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
    "attention-b1-hq8-hkv2-lq1-lk128-d64-v64-bfloat16-none",
    "attention-b2-hq4-hkv2-lq1-lk256-d64-v64-bfloat16-bool",
    "attention-b2-hq4-hkv2-lq8-lk64-d64-v64-bfloat16-additive",
    "attention-b1-hq4-hkv2-lq32-lk64-d64-v64-bfloat16-causal",
)
PARTS = ("first", "compiled", "gate", "timing")


def questions(slug: str, backend: str, seeds: int = 3) -> dict[str, float]:
    """Seconds of all questions of a first-use verdict, put to a shipped kernel."""
    from mlx_lm_openevolve import backends, ops
    from mlx_lm_openevolve.gate.correctness import Calls
    from mlx_lm_openevolve.kernels.lookup import shipped

    module = backends.get(backend)
    bucket = ops.parse(slug).bucket()
    asked = ops.of(bucket).questions
    brief = briefly(asked.cases)
    fit = (k for k in shipped().kernels() if k.native <= {backend} - {"host"})
    kernel = min((k for k in fit if k.applies_to(bucket)), key=lambda k: k.name)
    params = kernel.default_params(bucket)

    def put(seed: int) -> float:
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
    compiled = [min(put(seed) for _ in range(3)) for seed in range(seeds)]
    return {"first": first, "compiled": statistics.mean(compiled)}


def briefly(asked: Callable[..., Any]) -> dict[str, bool]:
    """The argument that asks no more than a first use does, in a checkout that knows it."""
    return {"brief": True} if "brief" in inspect.signature(asked).parameters else {}


def verdict(slug: str, backend: str) -> dict[str, Any]:
    """Seconds of a whole verdict, and what it said."""
    from mlx_lm_openevolve import ops
    from mlx_lm_openevolve.device import detect
    from mlx_lm_openevolve.errors import GateTimeout
    from mlx_lm_openevolve.gate import judge, limits, timing
    from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
    from mlx_lm_openevolve.ops.attention.reference import sdpa

    spent = 0.0
    run = timing.Arm.seconds

    def seconds(arm: Any, calls: int) -> float:
        nonlocal spent
        each = run(arm, calls)
        spent += each * calls
        return each

    timing.Arm.seconds = seconds  # type: ignore[method-assign]
    bucket = ops.parse(slug).bucket()
    start = time.monotonic()
    try:
        if backend == "host":
            clock = limits.Clock(SECONDS[backend])
            said = judge.judge_calls(
                sdpa, bucket, detect(backend), clock, **briefly(judge.judge_calls)
            ).reason
        else:
            kernels = Registry(tuned_root(), writable=False).kernels()
            kernel = next(k for k in kernels if not k.native and k.applies_to(bucket))
            params = kernel.default_params(bucket)
            said = judge.judge(
                kernel, params, bucket, backend, seconds=SECONDS[backend], **briefly(judge.judge)
            ).reason
    except GateTimeout as error:
        said = f"no verdict: {error}"
    return {"gate": time.monotonic() - start, "timing": spent, "said": said}


def asked(root: Path, backend: str, slug: str) -> dict[str, Any]:
    """What a process with the library of `root`, and nothing compiled, measures."""
    words = [sys.executable, __file__, "--backend", backend, "--one", slug]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PYTHONPATH": str(root), "MLX_LM_OPENEVOLVE_HOME": home}
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slugs", nargs="*", metavar="SLUG")
    parser.add_argument("--against", type=Path, help="root of the other checkout")
    parser.add_argument("--backend", choices=("metal", "cuda", "host"), default="host")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--one", metavar="SLUG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        call = (options.one, options.backend)
        print(json.dumps({**questions(*call), **verdict(*call)}))
        return 0
    if options.against is None:
        parser.error("--against is needed")
    trees = {"new": HERE, "old": options.against.resolve()}
    found: list[dict[str, Any]] = []
    ratios: dict[str, list[float]] = {part: [] for part in PARTS}
    for slug in options.slugs or (ON_A_CPU if options.backend == "host" else WORKLOADS):
        runs: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
        for turn in range(options.rounds):
            for name in random.sample(sorted(trees), 2):
                record = asked(trees[name], options.backend, slug)
                runs[name].append(record)
                found.append({"tree": name, "round": turn, "workload": slug, **record})
        print(slug)
        for part in PARTS:
            old, new = (statistics.median(run[part] for run in runs[n]) for n in ("old", "new"))
            ratios[part].append(old / new)
            print(f"  {part:9} old {old:.3f}, new {new:.3f}: old/new {old / new:.2f}", flush=True)
        print(*sorted({f"  {n}: {run['said']}" for n in runs for run in runs[n]}), sep="\n")
    for part, each in ratios.items():
        print(f"{part:9} geometric mean of old/new {statistics.geometric_mean(each):.2f}")
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
