"""Compiled layers against stock, bit for bit: mlx-lm's architectures, and whatever is done with
their caches. A sample by default, everything with the slow tests.

On the CPU a row of a product is summed by itself: what differs by a bit is wrong.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models.cache import (
    can_trim_prompt_cache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.cli.architectures import callers
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, COMPILED
from mlx_lm_openevolve.runtime.patch import installed

# Plain; experts; sliding windows and norms; sinks; scaled; attention and MLP side by side.
SAMPLE = {"cohere2", "gemma3_text", "gpt_oss", "granite", "llama", "qwen3_moe"}
# None of whose layers is compiled: their attention asks its cache or its mask for more, they are
# called with more, have caches without an offset, or change what they hold at each call.
ALONE = {
    "baichuan_m1", "bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3", "dbrx", "deepseek_v3",
    "deepseek_v32", "falcon_h1", "gemma3n", "gemma4_text", "glm4_moe_lite", "gptj", "hunyuan",
    "iquestloopcoder", "kimi_k3", "kimi_linear", "longcat_flash", "minimax_m3_vl", "ministral3",
    "mistral4", "phi", "phixtral", "plamo", "recurrent_gemma", "stablelm", "talkie",
}  # fmt: skip
TOKENS = 20

Said = tuple[list[Any], list[mx.array]]


def leaves(cache: list[Any]) -> list[mx.array]:
    flat: Any = tree_flatten([c.state for c in cache])
    return [leaf for _, leaf in flat if isinstance(leaf, mx.array)]


def run(model: Any, batch: int) -> Said:
    """Greedy tokens after a prompt, some of them after the caches were trimmed, and these."""
    cache = empty_cache(model, batch)
    token = mx.argmax(model(mx.array([[1, 2, 3, 4, 5]] * batch), cache=cache)[:, -1], -1)
    made = []
    for i in range(TOKENS):
        if i == TOKENS // 2 and can_trim_prompt_cache(cache):
            trim_prompt_cache(cache, 3)
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], -1)
        made.append(token.tolist())
    return made, leaves(cache)


@contextmanager
def compiled(model: Any, way: str, *batches: int) -> Iterator[Steps]:
    steps = Steps({slug(structure(model), n): way for n in batches})
    with installed([steps]):
        yield steps


def same(a: Said, b: Said) -> bool:
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(mx.array_equal, a[1], b[1]))


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a in SAMPLE else [pytest.mark.slow]) for a in callers().patched],
)
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", [ALL, pytest.param(COMPILED, marks=pytest.mark.slow)])
def test_compiled_is_stock(architecture: str, packed: bool, way: str) -> None:
    model = architectures.build(architecture)
    try:
        if packed:
            nn.quantize(model, 32, 8, class_predicate=fits)  # type: ignore[attr-defined]
        stock = {batch: run(model, batch) for batch in (1, 3) if batch == 1 or merges(model)}
    except (RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"stock itself does not run: {error}")
    with compiled(model, way, 1, 4) as steps:
        for batch, want in stock.items():
            assert same(run(model, batch), want)
        info = steps.info()[structure(model)] if architecture != "gemma3n" else {"compiled": 0}
        assert bool(info["compiled"]) is (architecture not in ALONE), info
        if architecture in SAMPLE:
            assert info["merged"] == 0 if way == COMPILED else info["merged"] > 0


def fits(path: str, layer: Any) -> bool:
    """Whether a layer can be packed in groups of 32."""
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 32 == 0


def merges(model: Any) -> bool:
    """Whether its caches can hold a batch."""
    return all(hasattr(type(c), "merge") for c in make_prompt_cache(model))


def generated(model: Any, length: int, count: int, cache: list[Any], **kv: Any) -> Said:
    prompt = 1 + mx.arange(length) % 100
    steps = generate_step(prompt, model, max_tokens=count, prompt_cache=cache, **kv)
    return [token for token, _ in steps], leaves(cache)


def over_a_buffers_growth(model: Any, folder: Path) -> Said:
    return generated(model, 240, 40, make_prompt_cache(model))


def saved_and_loaded(model: Any, folder: Path) -> Said:
    cache = make_prompt_cache(model)
    made, _ = generated(model, 12, 9, cache)
    save_prompt_cache(str(folder / "cache.safetensors"), cache)
    loaded = load_prompt_cache(str(folder / "cache.safetensors"))
    again, held = generated(model, 1, 9, loaded)
    return made + again, held


def trimmed_and_reused(model: Any, folder: Path) -> Said:
    cache = make_prompt_cache(model)
    made, _ = generated(model, 12, 9, cache)
    for count in (1, 5):
        trim_prompt_cache(cache, count)
        made += generated(model, 2, 9, cache)[0]
    return made, leaves(cache)


def forked(model: Any, folder: Path) -> Said:
    cache = make_prompt_cache(model)
    made, _ = generated(model, 12, 9, cache)
    fork = copy.deepcopy(cache)
    said = [generated(model, n, 9, one) for n, one in ((1, cache), (3, fork), (1, cache))]
    return made + [t for tokens, _ in said for t in tokens], said[1][1] + said[2][1]


def rotating(model: Any, folder: Path) -> Said:
    return generated(model, 12, 20, make_prompt_cache(model, max_kv_size=8))


def quantised_on_the_way(model: Any, folder: Path) -> Said:
    kv = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 20}
    return generated(model, 12, 20, make_prompt_cache(model), **kv)


def speculation(model: Any, folder: Path) -> Said:
    cache = make_prompt_cache(model) + make_prompt_cache(model)
    steps = speculative_generate_step(
        mx.arange(1, 12), model, model, max_tokens=20, num_draft_tokens=3, prompt_cache=cache
    )
    return [token for token, _, _ in steps], leaves(cache)


def a_batch_that_grows_and_shrinks(model: Any, folder: Path) -> Said:
    generator, made = BatchGenerator(model), list[Any]()
    prompts = [[1, 2, 3, 4 + i] + [5] * i for i in range(5)]
    generator.insert(prompts[:2], [6, 14])
    turn = 0
    while responses := generator.next_generated():
        made += [(r.uid, r.token) for r in responses]
        turn += 1
        if turn in (3, 5):
            generator.insert(prompts[turn - 1 : turn], [turn * 3])
    generator.close()
    first = min(uid for uid, _ in made)
    return [(uid - first, token) for uid, token in made], []


TURNS: tuple[Callable[[Any, Path], Said], ...] = (
    over_a_buffers_growth, saved_and_loaded, trimmed_and_reused, forked, rotating,
    quantised_on_the_way, speculation, a_batch_that_grows_and_shrinks,
)  # fmt: skip
# With windows too: masks that are None until the cache turns over.
MODELS = ("llama", "gemma3_text", "gpt_oss", "qwen3_moe")


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a == "llama" else [pytest.mark.slow]) for a in MODELS],
)
@pytest.mark.parametrize("turn", TURNS)
def test_whatever_is_done_with_caches(turn: Any, architecture: str, tmp_path: Path) -> None:
    model = architectures.build(architecture)
    try:
        stock = turn(model, tmp_path)
    except (NotImplementedError, ValueError) as error:
        pytest.skip(f"stock itself does not run: {error}")
    assert len(stock[0]) >= 18
    with compiled(model, ALL, 1, 2, 4) as steps:
        assert same(turn(model, tmp_path), stock)
        assert steps.info()[structure(model)]["compiled"] == len(model.layers)
        assert same(turn(model, tmp_path), stock)


@pytest.mark.slow
def test_memory_is_flat_over_2000_steps() -> None:
    model = architectures.build("llama")
    with compiled(model, ALL, 1):
        cache, token, held = make_prompt_cache(model), mx.array([[1]]), list[int]()
        for i in range(2000):
            token = mx.argmax(model(token, cache=cache)[:, -1:], -1)
            mx.eval(token)
            trim_prompt_cache(cache, i % 2)
            if i % 100 == 10:
                trim_prompt_cache(cache, cache[0].offset)
                gc.collect()
                held.append(mx.get_active_memory())
        assert max(held[1:]) <= held[1]
