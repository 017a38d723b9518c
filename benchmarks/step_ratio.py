"""A decode step, stock against patched, step by step in turns: for differences of a percent.

    python benchmarks/step_ratio.py [--shape llama-3.2-1b] [--bits 4] [--ops attention,linear]
                                    [--way compiled-merged] [--batch 1 4 8] [--length 1024 ...]
                                    [--kv-bits 4] [--half-width 0.02] [--seconds 60] [--control]
                                    [--backend cuda] [-o FILE]

One process, one model, one cache a batch. Between steps the model's module gets the other attention
function, and mlx.nn's classes the other methods; nothing else changes. Blocks of four steps are A B
B A or B A A B, as drawn: by turns one arm would have every step whose number of keys is a multiple
of eight, which suits MLX's products. A step ends when its token is there. Goes on until the 99%
interval of the median ratio stock / patched is as narrow as asked, or the seconds are spent.
Verdicts are those that are stored: where there are none (MLX_LM_OPENEVOLVE_HOME empty, tuned/
without this device) every call falls back. --way: in B layers are compiled as well, whatever
verdicts say; with `--ops step` they alone. Without --ops B is what enable_optimizations() gives.
--kv-bits: B has a quantised cache beside A's plain one. --control: both arms are stock, and what
differs from 1 is this measurement's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from decode_step import launches, prefilled
from mlx.nn.layers import quantized
from mlx_lm.generate import maybe_quantize_kv_cache

import mlx_lm_openevolve
from mlx_lm_openevolve import ops
from mlx_lm_openevolve.bench import model_configs
from mlx_lm_openevolve.bench.worker import KV_GROUP
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.intervals import median_interval
from mlx_lm_openevolve.kernels.verdict import WAYS, gate_version
from mlx_lm_openevolve.ops.base import next_pow2

CONFIDENCE = 0.99
WARM = 16
ORDERS = ("ABBA", "BAAB")


def orders() -> Iterator[str]:
    """The order of the arms in each block."""
    draw = random.Random(0)
    while True:
        yield draw.choice(ORDERS)


def arms(
    model: Any, batch: int, steps: Steps | None, options: argparse.Namespace
) -> dict[str, list[tuple[Any, str, Any]]]:
    """What is called in each arm, and where it stands."""
    places = [
        (sys.modules[type(model).__module__], "scaled_dot_product_attention"),
        (quantized.QuantizedLinear, "__call__"),
        (quantized.QuantizedEmbedding, "as_linear"),
        *((cls, "__call__") for cls in {type(layer) for layer in model.layers}),
    ]
    stock = [(holder, name, getattr(holder, name)) for holder, name in places]
    named = options.ops.split(",") if options.ops else None
    if options.control:
        return {"A": stock, "B": stock}
    mlx_lm_openevolve.enable_optimizations(backend=options.backend, gate="stored", ops=named)
    if steps is not None:
        steps.install()
    cache, token = prefilled(model, batch, 8)
    for _ in range(2):  # layers are compiled at their first tokens
        model(token[:, None], cache=cache)
    return {"A": stock, "B": [(holder, name, getattr(holder, name)) for holder, name in places]}


def measure(model: Any, batch: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    steps = None
    if options.way:
        steps = Steps({slug(structure(model), next_pow2(batch)): options.way})
    placed = arms(model, batch, steps, options)
    cache, token = prefilled(model, batch, length)
    caches = {"A": cache, "B": cache}
    if options.kv_bits:
        caches["B"] = prefilled(model, batch, length)[0]
        maybe_quantize_kv_cache(caches["B"], 0, KV_GROUP, options.kv_bits)

    def step(arm: str) -> float:
        nonlocal token
        for holder, name, function in placed[arm]:
            setattr(holder, name, function)
        start = time.perf_counter()
        token = mx.argmax(model(token[:, None], cache=caches[arm])[:, -1], -1)
        mx.eval(token)
        return time.perf_counter() - start

    counts = {}
    for i in range(WARM):
        step("AB"[i % 2])
        counts["AB"[i % 2]] = launches(model, caches["AB"[i % 2]], token)
    samples: list[dict[str, float]] = []
    ratios: list[float] = []
    drawn = orders()
    begin = time.perf_counter()
    while time.perf_counter() - begin < options.seconds:
        block = {"A": 0.0, "B": 0.0}
        for arm in next(drawn):
            block[arm] += step(arm) / 2
        samples.append(block)
        ratios.append(block["A"] / block["B"])
        if len(samples) % 100 == 0:
            low, high = median_interval(ratios, CONFIDENCE)
            if high - low < 2 * options.half_width:
                break
    low, high = median_interval(ratios, CONFIDENCE)
    step("B")  # what the session finds when it ends
    info = mlx_lm_openevolve.get_optimization_info()
    served = {name: (row["hits"], row["fallbacks"]) for name, row in info["workloads"].items()}
    if steps is not None:
        steps.restore()
    mlx_lm_openevolve.disable_optimizations()
    return {
        "launches": counts,
        "stock_ms": 1e3 * float(np.median([b["A"] for b in samples])),
        "ratio": float(np.median(ratios)),
        "low": low,
        "high": high,
        "blocks": len(samples),
        "calls": served,
        "samples_ms": [[round(1e3 * b[arm], 4) for arm in "AB"] for b in samples],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--bits", default="", choices=("", *model_configs.BITS))
    parser.add_argument("--ops", help="families to switch on")
    parser.add_argument("--way", choices=WAYS, help="compile layers in B")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--length", type=int, nargs="+", default=[1024])
    parser.add_argument("--kv-bits", type=int, default=0)
    parser.add_argument("--half-width", type=float, default=0.02)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--control", action="store_true", help="stock in both arms")
    parser.add_argument("--backend")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.control and (options.ops or options.way or options.kv_bits):
        parser.error("--control: both arms are stock, without --ops, --way and --kv-bits")
    model = model_configs.build(options.shape, options.bits)
    gates = {name: gate_version(name) for name in ops.FAMILIES}
    machine = fingerprint(detect(options.backend), gates)
    named = ("shape", "bits", "ops", "way", "kv_bits", "control")
    case = {name: getattr(options, name) for name in named}
    rows = []
    for batch, length in itertools.product(options.batch, options.length):
        row = measure(model, batch, length, options)
        rows.append({"batch": batch, "length": length, **row})
        for name, (hits, fallbacks) in row["calls"].items():
            print(f"{name}: {hits} served, {fallbacks} fell back")
        print(
            f"{options.shape} {batch}x{length}: {row['stock_ms']:.3f} ms,"
            f" {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}], {row['blocks']} blocks,"
            f" {1e3 * batch / row['stock_ms']:.0f} ->"
            f" {1e3 * batch * row['ratio'] / row['stock_ms']:.0f} tokens/s,"
            f" {row['launches']['A']} -> {row['launches']['B']} launches",
            flush=True,
        )
        if options.output:  # as it goes: a run may be ended
            report = {"machine": machine, "date": time.strftime("%Y-%m-%d"), **case, "rows": rows}
            options.output.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
