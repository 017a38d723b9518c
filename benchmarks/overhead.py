"""What the patch costs a call that it does not serve, and what routing costs a call that it does.

    python benchmarks/overhead.py [--json]

Arms are interleaved in one process (original, patched, patched, original) and compared pair by
pair; the figure is the median of the paired differences. Two originals are used: mlx-lm's own
attention on lazy arrays (what a user pays), and a function that does nothing (what the wrapper
alone costs, free of the noise of building a graph). In the "hits" row both arms call MLX's SDPA,
one of them through the routes, so that the difference is routing and not the kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache

from mlx_lm_openevolve import device, ops
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.runtime.dispatch import Route, Router
from mlx_lm_openevolve.runtime.planner import Planner

ROUNDS, CALLS = 301, 200


def nothing(
    queries: Any, keys: Any, values: Any, cache: Any, scale: Any, mask: Any, sinks: Any = None
) -> Any:
    return queries


def seconds(function: Callable[..., Any], arrays: Any, cache: Any) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        function(*arrays, cache=cache, scale=0.1, mask=None)  # as mlx-lm's models call it
    return (time.perf_counter() - start) / CALLS


def added(original: Callable[..., Any], patched: Callable[..., Any], *call: Any) -> float:
    """Median of the paired differences, in microseconds a call."""
    differences = []
    for _ in range(ROUNDS):
        a, b = seconds(original, *call), seconds(patched, *call)
        c, d = seconds(patched, *call), seconds(original, *call)
        differences.append(((b + c) - (a + d)) / 2 * 1e6)
    return statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    queries = mx.zeros((1, 16, 1, 128), mx.bfloat16)
    buffer = mx.zeros((1, 8, 1024, 128), mx.bfloat16)
    keys = values = buffer[:, :, :777, :]
    mx.eval(queries, keys)
    arrays, cache = (queries, keys, values), KVCache()

    def sdpa(q: Any, k: Any, v: Any, scale: Any, mask: Any, sinks: Any) -> Any:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1, mask=mask, sinks=sinks)

    def direct(*arrays: Any, cache: Any, scale: Any, mask: Any) -> Any:
        return sdpa(*arrays, scale, mask, None)

    rows: dict[str, float] = {}
    for name, original in [("nothing", nothing), ("mlx-lm", base.scaled_dot_product_attention)]:
        # An empty registry: the planner finds no kernel, so that every keyed call falls back.
        empty = [Registry("/nonexistent")]
        router = Router(ops.get("attention"), Planner(device.detect(), empty, mode="stored"))
        patched = router.wrap(original)
        rows[f"{name}: no cache"] = added(original, patched, arrays, None)
        rows[f"{name}: falls back"] = added(original, patched, arrays, cache)
        (key,) = router.routes
        if original is not nothing:
            router.routes[key] = Route(None, "routing alone", sdpa)
            rows[f"{name}: hits"] = added(direct, patched, arrays, cache)
        router.off.append(True)
        rows[f"{name}: switched off"] = added(original, patched, arrays, cache)

    for name, value in rows.items():
        print(f"{name:28s} {value:+7.3f} us a call", file=sys.stderr)
    if options.json:
        print(json.dumps({"microseconds": rows}))


if __name__ == "__main__":
    main()
