"""Merged against stock in mlx-lm's architectures: the same greedy tokens and caches, whatever their
attention is: a sample by default, all that hold a known layer with the slow tests.

On the CPU a row of a product is summed by itself: what differs by a bit is wrong.
"""

from __future__ import annotations

from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.cli.architectures import callers
from mlx_lm_openevolve.decode.steps import ALL, Steps
from mlx_lm_openevolve.decode.structure import slug, structure

# Both bodies that most share; norms over all heads, sinks, experts, a model in a model.
SAMPLE = {"gemma3", "gpt_oss", "llama", "olmo2", "qwen3_moe"}
TOKENS = 20


def run(model: Any, batch: int) -> tuple[list[Any], list[mx.array]]:
    """Greedy tokens after a prompt, some of them after the caches were trimmed, and these."""
    cache = empty_cache(model, batch) if batch > 1 else make_prompt_cache(model)
    token = mx.argmax(model(mx.array([[1, 2, 3, 4, 5]] * batch), cache=cache)[:, -1], -1)
    made = []
    for i in range(TOKENS):
        if i == TOKENS // 2 and can_trim_prompt_cache(cache):
            trim_prompt_cache(cache, 3)
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], -1)
        made.append(token.tolist())
    flat: Any = tree_flatten([c.state for c in cache])
    return made, [leaf for _, leaf in flat if isinstance(leaf, mx.array)]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a in SAMPLE else [pytest.mark.slow]) for a in callers().patched],
)
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_merged_is_stock(architecture: str, packed: bool) -> None:
    model = architectures.build(architecture)
    try:
        if packed:
            nn.quantize(model, 32, 8, class_predicate=fits)  # type: ignore[attr-defined]
        stock = {batch: run(model, batch) for batch in (1, 3) if batch == 1 or merges(model)}
    except (RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"stock itself does not run: {error}")
    able = [layer for layer in layers(model, {}) if not layer.reason]
    steps = Steps({slug(structure(model), n): ALL for n in (1, 4)})
    steps.install()
    try:
        for batch, (tokens, states) in stock.items():
            made, held = run(model, batch)
            assert made == tokens
            assert all(map(mx.array_equal, held, states))
        assert len(steps.merges.of) == len(able)
    finally:
        steps.restore()


def fits(path: str, layer: Any) -> bool:
    """Whether a layer can be packed in groups of 32."""
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 32 == 0


def merges(model: Any) -> bool:
    """Whether its caches can hold a batch."""
    return all(hasattr(type(c), "merge") for c in make_prompt_cache(model))
