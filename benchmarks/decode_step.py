"""Where the time of a decode step goes: the host builds the graph, hands it over, waits.

    python benchmarks/decode_step.py [--shape qwen3-0.6b] [--bits 4] [--cases 8x2048 1x1024]
                                     [--steps 24]

Six arms in one process, twice: stock, patched (kernels alone), compiled (layers), merged (compiled,
with products of one input as one), both (kernels and merged), and with attention left out (its
result is the queries: then MLX leaves out what fed the caches as well, so this is more than any
kernel can save).
A step is pipelined as mlx-lm's own loops are. Launches are the operations of a step's graph that
are more than another view of an array; memory is what is held, and the most while weights are
merged. With PyTorch for CUDA, CUPTI also counts the GPU's kernels and the time in which it was
busy: what is far below the step is not the bound. For intervals: step_ratio.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import base
from mlx_lm.models.cache import make_prompt_cache

from mlx_lm_openevolve import get_optimization_info, optimizations
from mlx_lm_openevolve.bench import model_configs as shapes
from mlx_lm_openevolve.bench.options import SHAPES
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, COMPILED, STEP
from mlx_lm_openevolve.ops.base import next_pow2
from mlx_lm_openevolve.runtime import families
from mlx_lm_openevolve.runtime.patch import Patch, installed

ARMS = ("stock", "patched", "compiled", "merged", "both", "left out")
WARM = 4
# Operations that move nothing: what they make is another view.
VIEWS = (
    *("AsStrided", "Broadcast", "BroadcastAxes", "Copy", "ExpandDims", "Flatten", "Reshape"),
    *("Slice", "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten", "View"),
)


@contextlib.contextmanager
def compiled(model: Any, batch: int, way: str) -> Iterator[Steps]:
    """A model with compiled layers, in one of WAYS, whatever any verdict says."""
    steps = Steps({slug(structure(model), next_pow2(batch)): way})
    with installed([steps]):
        yield steps


def launches(model: Any, cache: list[Any], token: mx.array) -> int:
    """Operations of a step that launch something, as its graph says."""
    for _ in range(2):  # what is decided at a first call is not a step's
        mx.eval([c.state for c in cache])
        out = mx.argmax(model(token[:, None], cache=cache)[:, -1], -1)
    text = io.StringIO()
    mx.export_to_dot(text, out)
    mx.eval(out)
    return sum(name not in VIEWS for name in re.findall(r'label ="(\w+)"', text.getvalue()))


@contextlib.contextmanager
def arm(name: str, model: Any = None, batch: int = 1) -> Iterator[None]:
    """mlx-lm as it is, patched, compiled in two ways, both, or without attention."""
    if name in ("patched", "compiled", "merged", "both"):
        with contextlib.ExitStack() as stack:
            if name in ("patched", "both"):
                ops = [name for name in families.named() or families.DEFAULT if name != STEP]
                stack.enter_context(optimizations(ops=ops))
            if name != "patched":
                way = COMPILED if name == "compiled" else ALL
                stack.enter_context(compiled(model, batch, way))
            yield
    elif name == "left out":
        name = "scaled_dot_product_attention"
        patch = Patch(base, name, lambda original: lambda queries, *rest, **named: queries)
        patch.install()
        try:
            yield
        finally:
            patch.restore()
    else:
        yield


def prefilled(model: Any, batch: int, length: int) -> tuple[list[Any], mx.array]:
    """Caches of `batch` random prompts, as one sequence or a batch has them, and a next token."""
    tokens = mx.array(np.random.default_rng(0).integers(0, 1000, (batch, length)))
    cache = make_prompt_cache(model)
    if batch > 1:
        merged = zip(*(make_prompt_cache(model) for _ in range(batch)), strict=True)
        cache = [caches[0].merge(list(caches)) for caches in merged]
    # MLX's CUDA backend multiplies no more than 65,535 rows by experts at once.
    some = max(1, 2048 // batch)
    for i in range(0, length, some):
        model(tokens[:, i : i + some], cache=cache)
        mx.eval([c.state for c in cache])
    return cache, tokens[:, -1]


def steps(model: Any, cache: list[Any], token: mx.array, count: int) -> dict[str, float]:
    """Milliseconds of a step: in all (mean), and the medians of its three parts."""
    parts: dict[str, list[float]] = {"build": [], "encode": [], "wait": []}
    before, start = token, 0.0
    for i in range(WARM + count):
        if i == WARM:
            mx.synchronize()
            start = time.perf_counter()
        times = [time.perf_counter()]
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], -1)
        times.append(time.perf_counter())
        mx.async_eval(token)
        times.append(time.perf_counter())
        before.tolist()
        before = token
        times.append(time.perf_counter())
        for values, a, b in zip(parts.values(), times[:-1], times[1:], strict=True):
            values.append(1e3 * (b - a))
    mx.synchronize()
    total = 1e3 * (time.perf_counter() - start) / count
    return {"step": total, **{k: statistics.median(v[WARM:]) for k, v in parts.items()}}


def on_the_gpu(model: Any, cache: list[Any], token: mx.array, count: int) -> str:
    """Milliseconds of a step in which the GPU was busy, its kernels, and the longest of them."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.zeros(1, device="cuda")
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        steps(model, cache, token, count)
    count += WARM
    rows: dict[str, list[float]] = {}
    for event in trace.events():
        if str(event.device_type).endswith("CUDA"):
            rows.setdefault(event.name[:70], []).append(event.device_time)
    busy = sum(map(sum, rows.values())) / count / 1e3
    kernels = sum(map(len, rows.values())) / count
    lines = [f"GPU busy {busy:.2f} ms a step, {kernels:.0f} kernels"]
    for name, times in sorted(rows.items(), key=lambda row: -sum(row[1]))[:6]:
        lines.append(f"    {sum(times) / count:7.1f} us in {len(times) / count:5.1f}  {name}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--bits", default="", choices=("", *shapes.BITS))
    parser.add_argument("--cases", nargs="+", default=["8x2048", "1x1024"], metavar="BxN")
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    model = shapes.build(options.shape, options.bits)
    name_of = f"{options.shape} {options.bits or 'bfloat16'}"
    for case in options.cases:
        batch, length = map(int, case.split("x"))
        cache, token = prefilled(model, batch, length)
        for name in ARMS * 2:
            mx.clear_cache()
            mx.reset_peak_memory()
            with arm(name, model, batch):
                memory = f"{mx.get_active_memory() / 1e9:.3f} ({mx.get_peak_memory() / 1e9:.3f}) GB"
                count = launches(model, cache, token)
                found = steps(model, cache, token, options.steps)
                rows = get_optimization_info()["workloads"].values()
                hits = sum(row["hits"] for row in rows)
            told = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
            rate = 1e3 * batch / found["step"]
            print(
                f"{name_of} {case} {name:8s} {told} ms; {rate:.0f} tokens/s, {count} launches,"
                f" {memory}; {hits} hits",
                flush=True,
            )
        try:
            for name in ARMS[:-1]:
                with arm(name, model, batch):
                    print(name, on_the_gpu(model, cache, token, 6), flush=True)
        except (ImportError, RuntimeError, AssertionError) as error:
            print(f"no GPU times: {str(error).splitlines()[0]}")
        del cache


if __name__ == "__main__":
    main()
