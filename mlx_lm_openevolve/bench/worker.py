"""One arm of `bench` in a process of its own, asked once (see processes.py).

A task: model (a path) or shape, bits (of a shape's weights), draft, prompt_tokens,
generation_tokens, batch, kv_bits, trials, seed, arm ("stock", "patched" or "logits") and settings
(the arguments of enable_optimizations).
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.quantized import QuantizedEmbedding
from mlx_lm.generate import (
    BatchGenerator,
    generate_step,
    maybe_quantize_kv_cache,
    speculative_generate_step,
)
from mlx_lm.models.cache import make_prompt_cache

from .. import enable_optimizations, get_optimization_info, ops, optimizations
from ..ops.attention.exact import dequantised
from ..processes import serve
from ..runtime.patch import MethodPatch, Replacement, Wrap, installed, patches_of
from . import model_configs as shapes

PREFILL = 2048
LOGIT_STEPS = 8
KV_GROUP = 64


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Run an arm. "logits": what `logits` returns; else what `timed` returns, with `info`, that of
    get_optimization_info(). Raises what the model raises."""
    bits = task["bits"]
    model = load(task["model"] or task["shape"], bits)
    rng = np.random.default_rng(task["seed"])
    shape = (task["batch"], task["prompt_tokens"])
    prompts = rng.integers(0, vocabulary(model), shape).tolist()
    if task["arm"] == "logits":
        return logits(model, prompts, task)
    if task["arm"] == "patched":
        enable_optimizations(**task["settings"])
    draft = load(task["draft"], bits) if task["draft"] else None
    return {**timed(model, draft, prompts, task), "info": get_optimization_info()}


def load(name: str, bits: str = "", *, lazy: bool = False) -> Any:
    """A model by its shape's name, with weights of so many bits, or by its path. lazy: its weights
    are not read or made yet."""
    if name in shapes.SHAPES:
        return shapes.build(name, bits, lazy=lazy)
    return mlx_lm.load(name, lazy=lazy)[0]


def empty_cache(model: Any, batch: int) -> list[Any]:
    """A cache for so many sequences, one for each layer."""
    if batch == 1:
        alone: list[Any] = make_prompt_cache(model)
        return alone
    merged = zip(*(make_prompt_cache(model) for _ in range(batch)), strict=True)
    return [caches[0].merge(list(caches)) for caches in merged]


def vocabulary(model: Any) -> int:
    """How many tokens a model knows; beyond them an embedding's rows are whatever lies there."""
    args = model.args
    known = getattr(args, "vocab_size", None) or getattr(args, "text_config", {}).get("vocab_size")
    return int(known or 256)


def timed(model: Any, draft: Any, prompts: list[list[int]], task: dict[str, Any]) -> dict[str, Any]:
    """A warm-up, then `trials` rows of prompt_tps, generation_tps, peak_memory (GB) and
    total_time (s), and the tokens of the first sequences."""
    tokens = task["generation_tokens"]
    kv: dict[str, Any] = {}
    if task["kv_bits"]:
        # From the first token on: by default short runs would never quantise.
        kv = {"kv_bits": task["kv_bits"], "kv_group_size": KV_GROUP, "quantized_kv_start": 0}

    def one() -> tuple[float, float, list[int]]:
        prompt = mx.array(prompts[0])
        if draft is None:
            steps = (t for t, _ in generate_step(prompt, model, max_tokens=tokens, **kv))
        else:
            drafted = speculative_generate_step(prompt, model, draft, max_tokens=tokens, **kv)
            steps = (t for t, _, _ in drafted)
        start = time.perf_counter()
        made = [int(next(steps))]
        first = time.perf_counter()
        made += map(int, steps)
        end = time.perf_counter()
        return len(prompts[0]) / (first - start), (len(made) - 1) / (end - first), made

    def many() -> tuple[float, float, list[int]]:
        # All at once: every decode step that is timed has the whole batch.
        generator = BatchGenerator(model, prefill_batch_size=len(prompts))
        uids = generator.insert(prompts, [tokens] * len(prompts))
        made: list[int] = []
        with generator.stats() as stats:
            while responses := generator.next_generated():
                made += [r.token for r in responses if r.uid == uids[0]]
        generator.close()
        return stats.prompt_tps, stats.generation_tps, made

    work: Callable[[], tuple[float, float, list[int]]] = one if len(prompts) == 1 else many
    try:
        *_, made = work()
    except RuntimeError:
        if task["arm"] != "stock" or not kv:
            raise
        # MLX's CUDA backend has no quantized_matmul for a cache: there the plain one is stock's.
        kv.clear()
        *_, made = work()
    rows = []
    for _ in range(task["trials"]):
        mx.clear_cache()
        mx.reset_peak_memory()
        gc.collect()  # one in the middle takes as long as a prompt
        start = time.perf_counter()
        prompt_tps, generation_tps, made = work()
        rows.append(
            {
                "prompt_tps": prompt_tps,
                "generation_tps": generation_tps,
                "peak_memory": mx.get_peak_memory() / 1e9,
                "total_time": time.perf_counter() - start,
            }
        )
    return {"trials": rows, "tokens": made, "kv_bits": kv.get("kv_bits", 0)}


def logits(model: Any, prompts: list[list[int]], task: dict[str, Any]) -> dict[str, Any]:
    """Distances between logits [B, steps, V] of a few decode steps after one stock prefill, the
    same tokens fed to all: stock and patched from a float32 model, and patched from stock. In
    float32 is what the families compute that are switched on, over what the cache holds and the
    layers hold (dequantised where it is quantised), and the whole model where layers were compiled.
    Distance: L2 norm of the difference over that of the reference."""
    tokens = mx.array(prompts)
    shape = (len(prompts), LOGIT_STEPS)
    more = mx.array(np.random.default_rng(1).integers(0, vocabulary(model), shape))
    cache = empty_cache(model, len(prompts))
    for i in range(0, tokens.shape[1], PREFILL):
        model(tokens[:, i : i + PREFILL], cache=cache)
        mx.eval([c.state for c in cache])
    if task["kv_bits"]:
        maybe_quantize_kv_cache(cache, 0, KV_GROUP, task["kv_bits"])

    def decode() -> mx.array:
        own = copy.deepcopy(cache)
        steps = [model(more[:, i : i + 1], cache=own) for i in range(LOGIT_STEPS)]
        out = mx.concatenate(steps, axis=1).astype(mx.float32)
        mx.eval(out)
        return out

    def under(wraps: Mapping[str, Wrap], also: Sequence[Replacement] = ()) -> mx.array:
        patches = [p for name, wrap in wraps.items() for p in patches_of(ops.get(name), wrap)]
        with installed([*patches, *also]):
            return decode()

    try:
        stock = decode()
    except RuntimeError:
        if not task["kv_bits"]:
            raise
        stock = under({"attention": dequantised})
    with optimizations(**task["settings"]):
        patched = decode()
        info = get_optimization_info()
    hits = sum(row["hits"] for row in info["workloads"].values())
    compiled = any(row["compiled"] for row in info["models"].values())
    on = info["ops"].keys() - ({"linear"} if compiled else set())
    exact = under({name: ops.get(name).exact for name in on}, in_float32() if compiled else ())
    return {
        "hits": hits,
        "compiled": compiled,
        "difference": distance(patched, stock),
        "stock": distance(stock, exact),
        "patched": distance(patched, exact),
    }


def in_float32() -> list[Replacement]:
    """What makes a whole model compute in float32 on the same weights, packed ones dequantised:
    what comes out of an embedding decides the dtype of all that follows."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: original(*given).astype(mx.float32)

    linear = ops.get("linear")
    embeddings = [MethodPatch(cls, "__call__", wrap) for cls in (Embedding, QuantizedEmbedding)]
    return [*embeddings, *patches_of(linear, linear.exact)]


def distance(a: mx.array, b: mx.array) -> float:
    """L2 norm of a - b over that of b."""
    return cast(float, (mx.linalg.norm(a - b) / mx.linalg.norm(b)).item())


if __name__ == "__main__":
    serve(answer)
