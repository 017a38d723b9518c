"""Tokens a second of whole mlx-lm models, stock against patched, in one process.

    python benchmarks/end_to_end.py [--shapes qwen3-0.6b llama-3.2-1b] [--output FILE]

Random weights of the real shapes serve: speed does not depend on their values. The arms come in
blocks stock, patched, patched, stock, after a warm-up of both; a case's ratio is the median over
the blocks, with a bootstrap interval. A case counts only where the patched arm's calls were served
by kernels. Tokens of random weights are ties that rounding decides, so parity is told by logits:
each arm's distance from the same step with attention in float32.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.base as base
import numpy as np
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models import llama, qwen3
from mlx_lm.models.cache import BatchKVCache, make_prompt_cache

import mlx_lm_openevolve
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.gate import GATE_VERSION
from mlx_lm_openevolve.patch import Patch

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    "qwen3-0.6b": (
        qwen3,
        {
            "model_type": "qwen3",
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
    ),
    # https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/config.json
    "llama-3.2-1b": (
        llama,
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 5e5,
            "tie_word_embeddings": True,
        },
    ),
}
CASES = [(1, 1024), (1, 16384), (8, 2048), (32, 2048)]  # sequences, prompt tokens


def build(shape: str) -> Any:
    module, config = SHAPES[shape]
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters()))
    mx.eval(model.parameters())
    return model


def decode_rate(model: Any, prompts: list[list[int]], tokens: int) -> float:
    """Generated tokens a second once every prompt is processed, as mlx-lm's own loops run."""
    stamps: list[float] = []
    if len(prompts) == 1:
        for _ in generate_step(mx.array(prompts[0]), model, max_tokens=tokens):
            stamps.append(time.perf_counter())
    else:
        generator = BatchGenerator(model, prefill_batch_size=8, completion_batch_size=len(prompts))
        # Enough tokens for the first ones to still run when the last ones start.
        generator.insert(prompts, [tokens + 4 * len(prompts)] * len(prompts))
        while len(stamps) < tokens:
            responses = generator.next_generated()
            if len(responses) == len(prompts):
                stamps.append(time.perf_counter())
        generator.close()
    # The first two steps still wait for what the prefill left behind.
    return len(prompts) * (len(stamps) - 3) / (stamps[-1] - stamps[2])


def distances(model: Any, batch: int, length: int) -> dict[str, float]:
    """Distance of each arm's logits from attention in float32, over one decode step after the
    same stock prefill."""
    original = [base.scaled_dot_product_attention]  # in a list: the patch rebinds module globals

    def exact(queries: Any, keys: Any, values: Any, *rest: Any, **named: Any) -> Any:
        up = (x.astype(mx.float32) for x in (queries, keys, values))
        if isinstance(named.get("mask"), mx.array) and named["mask"].dtype != mx.bool_:
            named["mask"] = named["mask"].astype(mx.float32)
        return original[0](*up, *rest, **named).astype(queries.dtype)

    tokens = mx.array(np.random.default_rng(0).integers(0, 1000, (batch, length)))

    def caches() -> list[Any]:
        if batch == 1:
            return list(make_prompt_cache(model))
        return [BatchKVCache([0] * batch) for _ in model.layers]

    def prefilled() -> list[Any]:
        cache = caches()
        for i in range(0, length - 1, 2048):
            mx.eval(model(tokens[:, i : min(i + 2048, length - 1)], cache=cache))
        return cache

    def last(cache: list[Any]) -> mx.array:
        logits = model(tokens[:, -1:], cache=cache).astype(mx.float32)
        mx.eval(logits)
        return logits

    stock = last(prefilled())
    cache = prefilled()
    patch = Patch(base, lambda _: exact)
    patch.install()
    truth = last(cache)
    patch.restore()
    cache = prefilled()
    with mlx_lm_openevolve.optimizations():
        ours = last(cache)
        hits = served()
    scale = mx.linalg.norm(truth).item()
    return {
        "stock": mx.linalg.norm(stock - truth).item() / scale,
        "patched": mx.linalg.norm(ours - truth).item() / scale,
        "hits": hits,
    }


def served() -> int:
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    return sum(row["hits"] for row in rows)


def run_case(model: Any, batch: int, length: int, tokens: int, blocks: int) -> dict[str, Any]:
    prompts = np.random.default_rng(1).integers(0, 1000, (batch, length)).tolist()
    rates: dict[str, list[float]] = {"stock": [], "patched": []}
    routes: dict[str, str] = {}
    hits = 0

    def arm(name: str) -> float:
        nonlocal hits
        if name == "stock":
            rate = decode_rate(model, prompts, tokens)
        else:
            with mlx_lm_openevolve.optimizations():
                rate = decode_rate(model, prompts, tokens)
                hits += served()
                workloads = mlx_lm_openevolve.get_optimization_info()["workloads"]
                routes.update({s: row["kernel"] or row["reason"] for s, row in workloads.items()})
        gc.collect()
        return rate

    for name in ("stock", "patched"):
        arm(name)
    ratios = []
    for _ in range(blocks):
        found = [(name, arm(name)) for name in ("stock", "patched", "patched", "stock")]
        for name, rate in found:
            rates[name].append(rate)
        mean = {n: statistics.mean(r for m, r in found if m == n) for n in rates}
        ratios.append(mean["patched"] / mean["stock"])
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(resampled, [0.005, 0.995])
    return {
        "batch": batch,
        "prompt": length,
        "tokens": tokens,
        "hits": hits,
        "rates": rates,
        "ratio": statistics.median(ratios),
        "low": float(low),
        "high": float(high),
        "routes": routes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--cases", nargs="+", default=[f"{b}x{n}" for b, n in CASES])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    result: dict[str, Any] = {
        "machine": fingerprint(detect(), GATE_VERSION),
        "date": time.strftime("%Y-%m-%d"),
        "cases": [],
    }
    lines = []
    for shape in options.shapes:
        model = build(shape)
        for case in options.cases:
            batch, length = (int(part) for part in case.split("x"))
            row = run_case(model, batch, length, options.tokens, options.blocks)
            row["logits"] = distances(model, batch, length)
            result["cases"].append({"shape": shape, **row})
            stock, patched = (statistics.median(row["rates"][n]) for n in ("stock", "patched"))
            lines.append(
                f"{shape:14s} {case:9s} stock {stock:8.1f} tok/s  patched {patched:8.1f} tok/s  "
                f"ratio {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                f"  hits {row['hits']}"
                f"  logits from float32: stock {row['logits']['stock']:.4f}"
                f" patched {row['logits']['patched']:.4f}"
            )
            print(lines[-1], file=sys.stderr, flush=True)
            for slug, route in row["routes"].items():
                print(f"    {slug}: {route}", file=sys.stderr)
            if options.output:
                options.output.write_text(json.dumps(result))
        del model
        gc.collect()
        mx.clear_cache()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
