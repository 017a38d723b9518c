"""What a call costs on the host: one that falls back, and one that a kernel serves.

    python benchmarks/overhead.py [--backend metal|cuda] [--rounds 301] [--json]

1. What a call adds that falls back, in microseconds: in front of mlx-lm's own attention on lazy
   arrays (what a user pays), and in front of a function that does nothing (the same without the
   noise of building a graph). Gradients' safety is in it: it is what `wrap` makes.
2. What a served call costs beside MLX's bare custom-kernel calls: the same launches with the same
   arguments, recorded from the call itself and made with nothing around them.

3. The same of a quantised layer, a model has some 200: mlx.nn.QuantizedLinear's own __call__ beside
   the patched one, that falls back and that a kernel serves.

Arms alternate in one process (A B B A), a round is one figure; medians with the interval in which
they lie with 95% confidence. What is timed is the building of the graph, in CPU time of the thread:
no kernel runs, and other processes do not count. Without a GPU the Metal calls are built while MLX
exports a function, which needs none.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_lm_openevolve import backends, device, ops
from mlx_lm_openevolve.intervals import median_interval
from mlx_lm_openevolve.kernels.lookup import in_order
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention import Workload, quantized
from mlx_lm_openevolve.ops.linear import Workload as Product
from mlx_lm_openevolve.runtime.dispatch import Route, Router
from mlx_lm_openevolve.runtime.patch import installed, patches_of
from mlx_lm_openevolve.runtime.planner import Planner

CALLS = 200
Arm = Callable[[], Any]


def seconds(arm: Arm) -> float:
    """CPU time of this thread in one call, the mean of CALLS."""
    start = time.thread_time()
    for _ in range(CALLS):
        arm()
    return (time.thread_time() - start) / CALLS


def pairs(a: Arm, b: Arm, rounds: int) -> list[tuple[float, float]]:
    """Microseconds a call of both arms, a pair a round."""
    gc.disable()
    try:
        made = []
        for _ in range(rounds):
            first, second = seconds(a), seconds(b)
            third, fourth = seconds(b), seconds(a)
            made.append(((first + fourth) / 2 * 1e6, (second + third) / 2 * 1e6))
        return made
    finally:
        gc.enable()


def median(samples: Sequence[float]) -> dict[str, float]:
    low, high = median_interval(samples, 0.95)
    middle = sorted(samples)[len(samples) // 2]
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def nothing(
    queries: Any, keys: Any, values: Any, cache: Any, scale: Any, mask: Any, sinks: Any = None
) -> Any:
    return queries


def dequantised(
    queries: Any, keys: Any, values: Any, cache: Any, scale: Any, mask: Any, sinks: Any = None
) -> Any:
    bits, group = cache.bits, cache.group_size
    return quantized.dequantised(queries, keys, values, scale, mask, bits, group)


def as_model(function: Callable[..., Any], workload: Workload, keys: int) -> Arm:
    """A call of it as mlx-lm's models make it, with slices of a cache's buffers."""
    w = workload
    dtype = getattr(mx, w.dtype)
    queries = mx.zeros((w.batch, w.q_heads, w.q_len, w.head_dim), dtype)

    def cached() -> Any:
        buffer = mx.zeros((w.batch, w.kv_heads, w.kv_len, w.head_dim), dtype)
        if not w.kv_bits:
            return buffer[:, :, :keys]
        parts = mx.quantize(buffer, group_size=w.kv_group, bits=w.kv_bits)
        return tuple(part[:, :, :keys] for part in parts)

    k, v = cached(), cached()
    mask = mx.ones((w.batch, 1, w.q_len, keys), mx.bool_) if w.mask == "bool" else None
    mx.eval(queries, k, v, mask)
    cache = QuantizedKVCache(w.kv_group, w.kv_bits) if w.kv_bits else KVCache()
    return lambda: function(queries, k, v, cache=cache, scale=0.1, mask=mask)


def router(backend: str, family: str = "attention") -> Router:
    """One whose planner finds no kernel: every call falls back. It asks for the default device, as
    on a machine with a GPU, and is told that it is one."""
    empty = [Registry("/nonexistent")]
    made = Router(ops.get(family), Planner(device.detect(backend), empty, mode="stored"))
    made.on_cpu = (lambda: device.on_cpu() and False) if device.on_cpu() else device.on_cpu
    return made


def falls_back(workload: Workload, original: Callable[..., Any], rounds: int) -> dict[str, float]:
    """Microseconds that the patch adds to a call of `original`."""
    stock = as_model(original, workload, workload.kv_len - 247)
    patched = as_model(router("host").wrap(original), workload, workload.kv_len - 247)
    patched()
    return median([b - a for a, b in pairs(stock, patched, rounds)])


class Recorder:
    """What the kernels that MLX makes are called with; `name` is the function that makes them."""

    def __init__(self, name: str) -> None:
        self._make = getattr(mx.fast, name)
        self.calls: list[tuple[Any, dict[str, Any], Any]] = []

    def __call__(self, **made: Any) -> Callable[..., Any]:
        function = self._make(**made)

        def call(**arguments: Any) -> Any:
            outputs = function(**arguments)
            self.calls.append((function, arguments, outputs))
            return outputs

        return call

    def bare(self) -> Arm:
        """The recorded calls again, each with the outputs of those before it."""
        if not self.calls:
            raise SystemExit("no kernel serves this call here: nothing to compare")
        steps = []
        for i, (function, arguments, _) in enumerate(self.calls):
            given = list(arguments["inputs"])
            made = {id(x): (j, k) for j in range(i) for k, x in enumerate(self.calls[j][2])}
            late = [(at, made[id(x)]) for at, x in enumerate(given) if id(x) in made]
            fixed = {name: value for name, value in arguments.items() if name != "inputs"}
            steps.append((function, given, late, fixed))
        if len(steps) == 1:
            ((only, inputs, _, rest),) = steps
            return lambda: only(inputs=inputs, **rest)[0]

        def chained() -> Any:
            made: list[Any] = []
            for function, given, late, fixed in steps:
                for at, (j, k) in late:
                    given[at] = made[j][k]
                made.append(function(inputs=given, **fixed))
            return made[-1][0]

        return chained


@contextmanager
def buildable(backend: str) -> Iterator[None]:
    """Lets a backend build calls on a machine that cannot run them."""
    module = backends.get(backend)
    if not module.unavailable():
        yield
        return
    with mock.patch.object(module, "unavailable", return_value=""):
        yield


def traced(body: Callable[[], Any], needed: bool) -> Any:
    """What `body` returns, run while MLX exports a function where `needed`."""
    if not needed:
        return body()
    kept = []

    def graph(x: mx.array) -> mx.array:
        kept.append(body())
        return x + 1

    with tempfile.TemporaryDirectory() as folder:
        mx.export_function(f"{folder}/graph.mlxfn", graph, mx.zeros((1,)))
    return kept[0]


def served(workload: Workload, backend: str, rounds: int) -> dict[str, Any]:
    """A served call against the bare ones, with the shipped kernel that is tried first."""
    bucket = workload.bucket()
    kernels = Registry(tuned_root(), writable=False).kernels()
    fitting = [k for k in kernels if k.native <= {backend} and k.applies_to(bucket)]
    kernel = in_order(fitting)[0]
    keys = workload.kv_len - 247
    there = not backends.get(backend).unavailable()
    recorder = Recorder(f"{backend}_kernel")
    with buildable(backend):
        build = backends.get(backend).build
        exact = workload.exact(kv_len=keys)
        with mock.patch.object(mx.fast, f"{backend}_kernel", recorder):
            recorded = build(kernel, kernel.default_params(bucket), exact)
        call = build(kernel, kernel.default_params(bucket), exact)

    def patched(call: Any) -> Arm:
        routes = router("host")
        routes.launches[exact.launch_key()] = Route(None, "as if accepted", call)
        return as_model(routes.wrap(nothing), workload, keys)

    if there:  # MLX compiles at the first evaluation
        mx.eval(patched(recorded)())
        recorder.calls.clear()

    def compare() -> list[tuple[float, float]]:
        patched(recorded)()
        bare, arm = recorder.bare(), patched(call)
        arm()
        return pairs(bare, arm, rounds)

    found = traced(compare, not there)
    return {
        "kernel": kernel.name,
        "launches": len(recorder.calls),
        "ratio": median([b / a for a, b in found]),
        "bare": median([a for a, _ in found]),
        "served": median([b for _, b in found]),
    }


WORKLOADS = {
    "decode": Workload(1, 16, 8, 1, 1024, 128, 128, "bfloat16"),
    "decode, short": Workload(1, 16, 8, 1, 256, 128, 128, "bfloat16"),
    "batch": Workload(8, 16, 8, 1, 1024, 128, 128, "bfloat16", "bool"),
    "quantised": Workload(1, 16, 8, 1, 1024, 128, 128, "bfloat16", kv_bits=8, kv_group=64),
}


def as_layer(workload: Product) -> tuple[nn.Module, mx.array]:
    """A quantised layer and its x, as a loaded model has them."""
    w = workload
    dtype = getattr(mx, w.dtype)
    layer = nn.QuantizedLinear(w.k, w.n, False, w.group, w.bits, mode=w.variant)
    layer.set_dtype(dtype)
    layer.eval()
    x = mx.zeros((w.batch, w.length, w.k), dtype)
    mx.eval(layer.parameters(), x)
    return layer, x


def layer_falls_back(workload: Product, rounds: int) -> dict[str, Any]:
    """Microseconds of stock's call of a layer, and that the patch adds where nothing serves."""
    layer, x = as_layer(workload)
    stock = nn.QuantizedLinear.__call__
    routes = router("host", "linear")
    with installed(patches_of(routes.op, routes.wrap)):
        ours = nn.QuantizedLinear.__call__
        ours(layer, x)
        found = pairs(lambda: stock(layer, x), lambda: ours(layer, x), rounds)
    (route,) = routes.launches.values()
    assert route.fallbacks > rounds * CALLS
    return {"stock": median([a for a, _ in found]), "adds": median([b - a for a, b in found])}


def layer_served(workload: Product, backend: str, rounds: int) -> dict[str, Any]:
    """A served call of a layer against the kernel's bare call, and against stock's."""
    layer, x = as_layer(workload)
    stock = nn.QuantizedLinear.__call__
    bucket = workload.bucket()
    kernels = Registry(tuned_root(), writable=False).kernels()
    fitting = [k for k in kernels if k.native <= {backend} and k.applies_to(bucket)]
    kernel = in_order(fitting)[0]
    there = not backends.get(backend).unavailable()
    recorder = Recorder(f"{backend}_kernel")
    with buildable(backend):
        build = backends.get(backend).build
        with mock.patch.object(mx.fast, f"{backend}_kernel", recorder):
            recorded = build(kernel, kernel.default_params(bucket), workload)
        call = build(kernel, kernel.default_params(bucket), workload)

    def measured() -> list[list[tuple[float, float]]]:
        made = recorded(*ops.get("linear").arguments(layer, x))
        if there:  # MLX compiles at the first evaluation
            mx.eval(made)
        routes = router("host", "linear")
        routes.launches[workload.launch_key()] = Route(None, "as if accepted", call)
        with installed(patches_of(routes.op, routes.wrap)):
            ours = nn.QuantizedLinear.__call__
            ours(layer, x)
            arms = (recorder.bare(), lambda: stock(layer, x))
            return [pairs(arm, lambda: ours(layer, x), rounds) for arm in arms]

    to_bare, to_stock = traced(measured, not there)
    return {
        "kernel": kernel.name,
        "ratio": median([b / a for a, b in to_bare]),
        "bare": median([a for a, _ in to_bare]),
        "served": median([b for _, b in to_bare]),
        "adds": median([b - a for a, b in to_stock]),
    }


PRODUCTS = {
    "4 bits": Product(1, 1, 512, 4096, "bfloat16"),
    "mxfp4": Product(1, 1, 512, 4096, "bfloat16", 4, 32, "mxfp4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("metal", "cuda"), help="default: the GPU's, or metal")
    parser.add_argument("--rounds", type=int, default=301)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = device.detect().backend
    backend = options.backend or (found if found in ("metal", "cuda") else "metal")
    if backend == "cuda" and (missing := backends.get("cuda").unavailable()):
        parser.error(missing)

    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "device": device.detect().name,
            "cores": os.cpu_count(),
            "mlx": mx.__version__,
        },
        "command": "python " + " ".join(sys.argv),
        "backend": backend,
        "falls back": {},
        "served": {},
    }
    for name, workload in WORKLOADS.items():
        originals = {"nothing": nothing}
        if workload.kv_bits and not quantized.stock_runs(workload):  # it is replaced by this
            originals = {"dequantise + SDPA": dequantised}
        if not workload.kv_bits:  # mlx-lm's would scale the queries in place, again at each call
            originals["mlx-lm"] = base.scaled_dot_product_attention
        for kind, original in originals.items():
            row = falls_back(workload, original, options.rounds)
            result["falls back"][f"{name}, before {kind}"] = row
            print(
                f"falls back: {name + ', before ' + kind:30s} {row['median']:+6.2f} us "
                f"[{row['low']:.2f}, {row['high']:.2f}]",
                file=sys.stderr,
            )
        row = served(workload, backend, options.rounds)
        result["served"][name] = row
        ratio = row["ratio"]
        print(
            f"served:     {name + ', ' + row['kernel']:30s} {ratio['median']:6.2f} x  "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}]: {row['served']['median']:.2f} us, "
            f"{row['bare']['median']:.2f} bare, {row['launches']} launches",
            file=sys.stderr,
        )
    for name, product in PRODUCTS.items():
        row = layer_falls_back(product, options.rounds)
        result["falls back"][f"layer, {name}"] = row
        adds = row["adds"]
        print(
            f"falls back: {'layer, ' + name:30s} {adds['median']:+6.2f} us "
            f"[{adds['low']:.2f}, {adds['high']:.2f}] to {row['stock']['median']:.2f}",
            file=sys.stderr,
        )
        row = layer_served(product, backend, options.rounds)
        result["served"][f"layer, {name}"] = row
        ratio = row["ratio"]
        print(
            f"served:     {'layer, ' + name + ', ' + row['kernel']:30s} {ratio['median']:6.2f} x  "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}]: {row['served']['median']:.2f} us, "
            f"{row['bare']['median']:.2f} bare, {row['adds']['median']:+.2f} to stock's",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
