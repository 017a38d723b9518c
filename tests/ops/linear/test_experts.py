"""Quantised experts under the patch: what is served, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import serving
from mlx.utils import tree_map
from mlx_lm.models import qwen3_moe
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from samples import named, needs_clang, store_correct
from serving import close, hits

import mlx_lm_openevolve
from mlx_lm_openevolve.ops.linear import OP, Bucket
from mlx_lm_openevolve.ops.linear.call import differentiable, stock

pytestmark = needs_clang
N, K, EXPERTS, TOP = 48, 128, 6, 3
PACKINGS = [{}, {"bits": 8, "group_size": 32}, {"mode": "mxfp4", "group_size": 32}]


def layer(bias: bool = False, dtype: mx.Dtype = mx.float32, **packing: Any) -> Any:
    """Experts as a loaded model has them."""
    plain = SwitchLinear(K, N, EXPERTS, bias=bias)
    if bias:
        plain.bias = mx.arange(EXPERTS * N, dtype=mx.float32).reshape(EXPERTS, N) / N
    plain.update(tree_map(lambda x: x.astype(dtype), plain.parameters()))
    made = plain.to_quantized(**{"group_size": 64, "bits": 4, **packing})
    made.eval()
    mx.eval(made.parameters())
    return made


def numbers(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(3))


def routing(*shape: int) -> mx.array:
    """As a router makes it: the first of all experts in another order."""
    wide = (*shape[:-1], EXPERTS)
    return mx.argsort(mx.random.uniform(shape=wide, key=mx.random.key(4)), axis=-1)[
        ..., : shape[-1]
    ]


@pytest.fixture
def served(home: Path) -> Iterator[None]:
    """Verdicts "correct" for every number of rows of `layer()`, and the patch on."""
    buckets = [
        Bucket(rows, 1, N, K, "float32", bits, group, f"{mode}_experts", EXPERTS)
        for rows in (1, 2, 4, 8, 16, 64)
        for bits, group, mode in ((4, 64, "affine"), (8, 32, "affine"), (4, 32, "mxfp4"))
    ]
    store_correct(home, named("quantized_experts"), buckets)
    enable()
    yield
    mlx_lm_openevolve.disable_optimizations()


def enable() -> None:
    mlx_lm_openevolve.enable_optimizations(
        backend="host", gate="stored", require_faster=False, ops=("linear",)
    )


def fallbacks() -> dict[str, int]:
    return serving.fallbacks("linear")


def same(call: Callable[[], mx.array], limit: float = 1e-5) -> bool:
    """Whether the patched call gives what the original gives."""
    return serving.same(QuantizedSwitchLinear, call, limit)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
def test_experts_are_served(served: None, packing: dict[str, Any], bias: bool) -> None:
    made = layer(bias, **packing)
    calls = [
        # One x for all experts of a token, then to each its own.
        (numbers(1, 1, 1, 1, K), routing(1, 1, TOP), False),
        (numbers(2, 1, 1, 1, K), routing(2, 1, TOP), False),
        (numbers(2, 2, 1, 1, K), routing(2, 2, TOP), False),
        (numbers(2, 1, TOP, 1, K), routing(2, 1, TOP), False),
        (numbers(5, 1, 1, K), routing(5, TOP), False),
        # In the order of the experts.
        (numbers(16, 1, K), mx.sort(routing(16, TOP).flatten()[:16]), True),
        # One expert a token.
        (numbers(4, 1, 1, 1, K), routing(4, 1, 1), False),
    ]
    for x, indices, ordered in calls:
        before = hits()
        assert same(lambda x=x, i=indices, o=ordered: made(x, i, sorted_indices=o))  # type: ignore[misc]
        assert hits() == before + 1, (x.shape, indices.shape)
    assert fallbacks() == {}


def test_routing_and_weights_that_change_are_seen(served: None) -> None:
    made, other, x = layer(), layer(), numbers(2, 1, 1, 1, K)
    indices = routing(2, 1, TOP)
    assert same(lambda: made(x, indices))
    indices[:] = (indices + 1) % EXPERTS  # the same array, other experts
    assert same(lambda: made(x, indices))
    made.scales = made.scales * 2
    assert same(lambda: made(x, indices))
    made.weight, made.scales, made.biases = other.weight, other.scales, other.biases
    assert same(lambda: made(x, indices))
    assert hits() == 4


def test_what_is_no_workload_is_the_originals(served: None) -> None:
    made = layer()
    refused = [
        (numbers(300, 1, K), mx.zeros((300,), mx.uint32), "more than 256 rows of experts"),
        (numbers(1, 1, 1, 1, K).astype(mx.float16), routing(1, 1, TOP), "dtype"),
        (numbers(1, 1, 1, 1, K), routing(1, 1, TOP).astype(mx.int32), "indices are"),
        (numbers(1, 1, 2, K), routing(1, TOP), "differ in shape"),
        (numbers(1, 1, K), routing(2, TOP), "differ in shape"),
    ]
    for x, indices, reason in refused:
        assert same(lambda x=x, i=indices: made(x, i), 0.01)  # type: ignore[misc]
        assert any(reason in said for said in fallbacks()), reason
    assert sum(fallbacks().values()) == len(refused)
    assert hits() == 0
    assert same(lambda: made(numbers(1, 1, 1, 1, K), routing(1, 1, TOP)))
    assert hits() == 1
    for wrong in (numbers(1, 1, 1, 1, K // 2), None):
        with pytest.raises((ValueError, TypeError)) as ours:
            made(wrong, routing(1, 1, TOP))
        assert ours.value.__context__ is None
        mlx_lm_openevolve.disable_optimizations()
        with pytest.raises(ours.type) as theirs:
            made(wrong, routing(1, 1, TOP))
        assert str(ours.value) == str(theirs.value)
        enable()


def test_subclasses_and_experts_in_training_are_left_alone(served: None) -> None:
    class Own(QuantizedSwitchLinear):  # type: ignore[misc]
        pass

    own, training = layer(), layer()
    object.__setattr__(own, "__class__", Own)
    training.train()
    for made in (own, training):
        assert same(lambda made=made: made(numbers(1, 1, 1, 1, K), routing(1, 1, TOP)))  # type: ignore[misc]
    assert (hits(), fallbacks()) == (0, {})


def test_weights_that_are_a_view_are_the_originals(served: None) -> None:
    made = layer()
    wide = mx.concatenate([made.weight, made.weight], axis=-1)
    made.weight = wide[..., : made.weight.shape[-1]]
    assert same(lambda: made(numbers(1, 1, 1, 1, K), routing(1, 1, TOP)))
    assert (hits(), fallbacks()) == (0, {"weights are a view": 1})


TINY = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}


def test_a_models_logits_agree_and_every_expert_is_served(home: Path) -> None:
    """One sequence, and as many as mlx-lm sorts by their experts."""
    mx.random.seed(0)
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(TINY))
    nn.quantize(model, group_size=64, bits=4)
    model.eval()
    mx.eval(model.parameters())

    def logits() -> mx.array:
        found = []
        for batch in (1, 32):
            cache = make_prompt_cache(model)
            for token in (5, 6):
                found.append(model(mx.full((batch, 1), token), cache=cache))
            mx.eval(found)
        return mx.concatenate(found)

    want = logits()
    enable()
    logits()
    seen = mlx_lm_openevolve.get_optimization_info()["workloads"]
    mlx_lm_openevolve.disable_optimizations()
    of_experts = [OP.parse(slug).bucket() for slug in seen if "-e8-" in slug]
    assert {b.rows for b in of_experts} == {2, 64}
    store_correct(home, named("quantized_experts"), of_experts)
    enable()
    ours = logits()
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"]
    mlx_lm_openevolve.disable_optimizations()
    assert close(ours, want, 1e-5)
    for b in of_experts:  # two steps of two layers with three products
        assert (rows[b.slug]["hits"], rows[b.slug]["fallbacks"]) == (12, 0)


def test_derivatives_are_the_originals() -> None:
    made, x, indices = layer(), numbers(2, 1, 1, K), routing(2, TOP)
    w = OP.describe(made, x, indices)
    assert not isinstance(w, str)
    # An answer that is none: what is differentiated is the original alone.
    call = differentiable(w, lambda *given: mx.zeros(w.shape))
    _, _, weight, scales, biases = OP.arguments(made, x, indices)

    def of(product: Callable[..., mx.array]) -> list[Any]:
        def loss(*given: mx.array) -> mx.array:
            x, scales, biases = given
            return (product(x, indices, weight, scales, biases) * numbers(*w.shape)).sum()

        return [np.array(g) for g in mx.grad(loss, argnums=(0, 1, 2))(x, scales, biases)]

    ours, theirs = of(call), of(lambda *given: stock(w, *given))
    assert all(map(np.array_equal, ours, theirs))
