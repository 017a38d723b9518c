"""The first token of a process, stock and patched, in fresh processes that alternate.

    python benchmarks/first_token.py [--shape qwen3-0.6b] [--prompt 1500] [--tokens 64]
                                     [--processes 5] [--backend cuda] [--output FILE]

Each process makes the shape's model, enables the optimizations or does not, and generates. Printed
for each: seconds until the first token (enabling included), tokens a second afterwards, calls that
kernels served, and the share of decode calls whose workload is decided; at the end the medians, and
how much later the first token of a patched process came. What MLX_LM_OPENEVOLVE_HOME and tuned/
hold is what these processes find: an empty folder shows first use, the same one again what was
learnt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One process."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.generate import generate_step

    import mlx_lm_openevolve
    from mlx_lm_openevolve.bench import model_configs

    model = model_configs.build(options.shape)
    vocabulary = model_configs.SHAPES[options.shape]["vocab_size"]
    prompt = mx.array(np.random.default_rng(0).integers(0, vocabulary, options.prompt))
    mx.eval(prompt)
    start = time.perf_counter()
    if options.child == "patched":
        mlx_lm_openevolve.enable_optimizations(backend=options.backend)
    enabled = time.perf_counter()
    steps = generate_step(prompt, model, max_tokens=options.tokens)
    next(steps)
    first = time.perf_counter()
    made = sum(1 for _ in steps)
    end = time.perf_counter()
    info = mlx_lm_openevolve.get_optimization_info()
    rows = info["workloads"]
    decode = [row for slug, row in rows.items() if "-lq1-" in slug]
    calls = sum(row["hits"] + row["fallbacks"] for row in decode)
    open_ = ("pending", "undecided")
    decided = sum(
        row["hits"] + row["fallbacks"] for row in decode if not row["reason"].startswith(open_)
    )
    return {
        "enable": enabled - start,
        "first": first - start,
        "tokens_per_second": made / (end - first),
        "hits": sum(row["hits"] for row in rows.values()),
        "decided": decided / calls if calls else None,
        "reasons": {slug: row["reason"] for slug, row in rows.items()},
    }


def ask(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--child", arm, "--shape", options.shape]
    argv += ["--prompt", str(options.prompt), "--tokens", str(options.tokens)]
    argv += ["--backend", options.backend] if options.backend else []
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{arm}: exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--prompt", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--backend")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=("stock", "patched"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options)))
        return

    rows: dict[str, list[dict[str, Any]]] = {"stock": [], "patched": []}
    for i in range(options.processes):
        for arm in ("stock", "patched") if i % 2 == 0 else ("patched", "stock"):
            row = ask(options, arm)
            rows[arm].append(row)
            text = f"{arm:8s} first {row['first']:.3f} s, {row['tokens_per_second']:.1f} tokens/s"
            if arm == "patched":
                decided = "none" if row["decided"] is None else f"{row['decided']:.0%}"
                text += f", enable {row['enable']:.3f} s, {row['hits']} hits, decided {decided}"
            print(text, flush=True)
    first = {arm: statistics.median(row["first"] for row in rows[arm]) for arm in rows}
    print(f"first token: stock {first['stock']:.3f} s, patched {first['patched']:.3f} s,")
    print(f"{first['patched'] - first['stock']:+.3f} s (medians of {options.processes})")
    for slug, reason in rows["patched"][-1]["reasons"].items():
        print(f"  {slug}: {reason}")
    if options.output:
        from mlx_lm_openevolve.device import detect, fingerprint
        from mlx_lm_openevolve.kernels.verdict import gate_version

        named = ("shape", "prompt", "tokens", "processes")
        asked = {name: getattr(options, name) for name in named}
        date, machine = time.strftime("%Y-%m-%d"), fingerprint(detect(), gate_version("attention"))
        options.output.write_text(
            json.dumps({"date": date, "machine": machine, "asked": asked, **rows}) + "\n"
        )


if __name__ == "__main__":
    main()
