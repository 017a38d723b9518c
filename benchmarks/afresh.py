"""What was accepted, timed afresh at lengths inside its bucket, by a loop of its own.

    python benchmarks/afresh.py [--registry FOLDER] [--lengths 20] [--below 0.99]
                                [--layout TEXT ...] [--backend cuda] [--output FILE]

For every accepted decode workload that is stored for this device: MLX's own call and the kernel's
at lengths drawn from its bucket, in chains in which every call needs the one before (a thousandth
of the result is added to the next queries, in both arms), blocks A B B A. Prints workloads with a
length below `--below` of stock, worst first. Neither buffers nor clock are the gate's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.kernels.lookup import registries
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention.workload import Bucket, Workload

CHAIN, BLOCKS, CACHES = 32, 6, 8


def chain(call: Callable[..., mx.array], first: mx.array, caches: list[Any]) -> float:
    """Seconds of a call."""
    mx.synchronize()
    start, queries = time.perf_counter(), first
    for i in range(CHAIN):
        queries = first + call(queries, *caches[i % len(caches)]) * 1e-3
        if i % 8 == 7:
            mx.async_eval(queries)  # type: ignore[no-untyped-call]
    mx.eval(queries)
    return (time.perf_counter() - start) / CHAIN


def ratio(w: Workload, served: Callable[..., mx.array], rng: np.random.Generator) -> float:
    """Stock's time over the kernel's at one exact workload."""
    dtype: mx.Dtype = getattr(mx, w.dtype)
    scale = w.head_dim**-0.5

    def drawn(*shape: int) -> mx.array:
        return mx.random.normal(shape).astype(dtype)

    first = drawn(w.batch, w.q_heads, w.q_len, w.head_dim)
    mask = None
    if w.mask == "bool":
        padding = mx.array(rng.integers(0, w.kv_len // 4 + 1, w.batch))
        mask = (mx.arange(w.kv_len)[None] >= padding[:, None])[:, None, None]
    sinks = drawn(w.q_heads) if w.sinks else None
    length = -(-w.kv_len // 256) * 256
    caches = []
    for _ in range(CACHES):
        keys, values = (drawn(w.batch, w.kv_heads, length, w.head_dim) for _ in range(2))
        caches.append((keys[:, :, : w.kv_len], values[:, :, : w.kv_len]))
    number = mx.array([scale], mx.float32)
    mx.eval(first, caches, mask, sinks, number)
    asked: Any = "causal" if w.mask == "causal" else mask

    def stock(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=asked, sinks=sinks)

    def kernel(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return served(q, k, v, number, mask, sinks)

    arms = (stock, kernel)
    for arm in (*arms, *arms):
        chain(arm, first, caches)
    ratios = []
    for _ in range(BLOCKS):
        a, b, c, d = (chain(arms[i], first, caches) for i in (0, 1, 1, 0))
        ratios.append((a + d) / (b + c))
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--lengths", type=int, default=20)
    parser.add_argument("--below", type=float, default=0.99)
    parser.add_argument("--layout", nargs="+", default=[""])
    parser.add_argument("--backend")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = detect(options.backend)
    stores = [Registry(options.registry)] if options.registry else registries()
    build = backends.get(device.backend).build
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    seen: set[Bucket] = set()
    for store in stores:
        for bucket in store.workloads(device.slug):
            known = [v for v in store.verdicts(device.slug, bucket) if v.accepted]
            wanted = any(text in bucket.slug for text in options.layout)
            plain = isinstance(bucket, Bucket) and not bucket.kv_bits and not bucket.latent
            if not known or not wanted or not plain or not bucket.steady or bucket in seen:
                continue
            seen.add(bucket)
            kernel = store.kernel(known[0].kernel) or registries()[1].kernel(known[0].kernel)
            assert kernel is not None
            lengths = rng.integers(bucket.kv_len // 2 + 1, bucket.kv_len + 1, options.lengths)
            found = {}
            for n in sorted({max(int(n), bucket.q_len) for n in lengths}):
                w = bucket.exact(kv_len=n)
                found[n] = ratio(w, build(kernel, dict(known[0].params), w), rng)
            least = min(found, key=found.__getitem__)
            middle = statistics.median(found.values())
            rows.append({"workload": bucket.slug, "gate": known[0].ratio, "ratios": found})
            print(f"{bucket.slug} {middle:.3f}, least {found[least]:.3f} at {least}", flush=True)
    low = sorted((min(row["ratios"].values()), row["workload"]) for row in rows)
    print(f"{len(rows)} workloads; below {options.below}:")
    for worst, slug in low:
        if worst < options.below:
            print(f"  {worst:.3f} {slug}")
    if options.output:
        record = {"date": time.strftime("%Y-%m-%d"), "device": device.slug, "mlx": mx.__version__}
        options.output.write_text(json.dumps({**record, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
