"""The prompt rate, stock against patched, in one process: separate ones differ by more.

    python benchmarks/prompt_rate.py [--shape qwen3-0.6b ...] [--prompt 1024 1500] [--blocks 12]
                                     [--tokens 16]
                                     [--backend cuda] [--output FILE]

Blocks A B B A of generations after one of each arm that is not counted: what is paid at
first use is paid. Prints for the prompt (until the first token) and for a decode step stock's
milliseconds, the ratio stock / patched as the median over blocks with its 99% interval, and the
ratio of the fastest of each arm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

import mlx_lm_openevolve
from mlx_lm_openevolve.bench import model_configs
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.intervals import median_interval
from mlx_lm_openevolve.kernels.verdict import gate_version

CONFIDENCE = 0.99


def generation(model: Any, prompt: mx.array, tokens: int) -> tuple[float, float]:
    """Seconds until the first token, and of a step after it."""
    start = time.perf_counter()
    steps = generate_step(prompt, model, max_tokens=tokens)
    next(steps)
    first = time.perf_counter()
    made = sum(1 for _ in steps)
    return first - start, (time.perf_counter() - first) / made


def measure(
    model: Any, prompt: mx.array, tokens: int, blocks: int, backend: str | None
) -> dict[str, Any]:
    samples: dict[str, list[tuple[float, float]]] = {"stock": [], "patched": []}

    def one(arm: str) -> tuple[float, float]:
        if arm == "stock":
            return generation(model, prompt, tokens)
        with mlx_lm_openevolve.optimizations(backend=backend, gate="stored"):
            generation(model, prompt, tokens)  # routes are made anew
            return generation(model, prompt, tokens)

    for arm in samples:
        one(arm)
    for _ in range(blocks):
        for arm in ("stock", "patched", "patched", "stock"):
            if arm == "stock":
                generation(model, prompt, tokens)  # both arms are timed at their second turn
            samples[arm].append(one(arm))
    found: dict[str, Any] = {"samples": samples}
    for at, name in enumerate(("prompt", "step")):
        a, b = (np.array([s[at] for s in samples[arm]]).reshape(-1, 2) for arm in samples)
        ratios = (a.sum(1) / b.sum(1)).tolist()
        low, high = median_interval(ratios, CONFIDENCE)
        found[name] = {
            "stock_ms": 1e3 * float(np.median(a)),
            "ratio": statistics.median(ratios),
            "low": low,
            "high": high,
            "fastest": float(a.min() / b.min()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=["qwen3-0.6b"])
    parser.add_argument("--prompt", nargs="+", type=int, default=[1024, 1500])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--backend")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for shape in options.shape:
        model = model_configs.build(shape)
        for length in options.prompt:
            drawn = np.random.default_rng(0).integers(0, 1000, length)
            row = measure(model, mx.array(drawn), options.tokens, options.blocks, options.backend)
            rows.append({"shape": shape, "prompt_tokens": length, **row})
            for name in ("prompt", "step"):
                r = row[name]
                print(
                    f"{shape} {length} {name}: {r['stock_ms']:.2f} ms, {r['ratio']:.3f}"
                    f" [{r['low']:.3f}, {r['high']:.3f}], fastest {r['fastest']:.3f}",
                    flush=True,
                )
    if options.output:
        machine = fingerprint(detect(options.backend), gate_version("attention"))
        date = time.strftime("%Y-%m-%d")
        options.output.write_text(json.dumps({"machine": machine, "date": date, "rows": rows}))


if __name__ == "__main__":
    main()
