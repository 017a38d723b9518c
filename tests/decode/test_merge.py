"""Merged products: the same numbers, no more memory, and a model that is what it was to others."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as llama
import pytest
from mlx.nn.layers.distributed import shard_linear
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from mlx_lm_openevolve.decode.merge import Merged, Merges, why_not
from mlx_lm_openevolve.decode.steps import ALL, Steps
from mlx_lm_openevolve.decode.structure import slug, structure

QKV = ("q_proj", "k_proj", "v_proj")
MIB = 1 << 20


def model_of(kind: str, seed: int = 0) -> Any:
    """A tiny llama: of float32, of packed weights, or with biases."""
    model = architectures.build("llama", seed=seed)
    if kind == "biased":
        args = llama.ModelArgs.from_dict({**vars(model.args), "attention_bias": True})
        model = llama.Model(args)
        mx.eval(model.parameters())
        model.eval()
    if kind == "packed":
        nn.quantize(model, 32, 4)  # type: ignore[attr-defined]
    mx.eval(model.parameters())
    return model


def weights(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    assert list(a) == list(b)
    return all(mx.array_equal(a[key], b[key]).item() for key in a)


def logits(model: Any, tokens: list[int] | None = None) -> mx.array:
    """Of a few tokens after two others."""
    cache = make_prompt_cache(model)
    model(mx.array([[5, 7]]), cache=cache)
    out = model(mx.array([tokens or [3]]), cache=cache)
    mx.eval(out)
    return out


@pytest.fixture
def merging() -> Iterator[Any]:
    """A function that merges a model for so many rows at once; put back afterwards."""
    made = []

    def merge(model: Any, batch: int = 1) -> Steps:
        steps = Steps({slug(structure(model), n): ALL for n in (1, batch)})
        made.append(steps)
        steps.install()
        steps.merge(model)
        assert len(steps.merges.of) == 2 * len(model.layers)
        return steps

    yield merge
    for steps in made:
        steps.restore()


KINDS = ("plain", "packed", "biased")


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_what_they_were_and_disabling_gives_them_back(
    kind: str, merging: Any, tmp_path: Path
) -> None:
    model, before = model_of(kind), weights(model_of(kind))
    model.save_weights(str(tmp_path / "before.safetensors"))
    method = vars(llama.Attention)["__call__"]
    steps = merging(model)
    assert vars(llama.Attention)["__call__"] is not method
    assert same(weights(model), before)
    model.save_weights(str(tmp_path / "merged.safetensors"))
    saved = [mx.load(str(tmp_path / f"{name}.safetensors")) for name in ("before", "merged")]
    assert same(*saved)
    sizes = {path.stat().st_size for path in tmp_path.glob("*.safetensors")}
    assert len(sizes) == 1
    steps.restore()
    assert same(weights(model), before)
    assert vars(llama.Attention)["__call__"] is method
    assert not steps.merges.of


@pytest.mark.parametrize("kind", KINDS)
def test_one_product_gives_the_bits_of_three(
    kind: str, merging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU each row of a product is summed by itself, whatever stands beside it."""
    model = model_of(kind)
    for tokens in ([3], [3, 1, 4, 1]):
        want = logits(model, tokens)
        steps = merging(model, 4)
        products = {id(m.product) for m in steps.merges.of.values()}
        cls = type(next(iter(steps.merges.of.values())).product)
        called, original = set(), cls.__call__

        def call(self: Any, x: Any, original: Any = original, called: Any = called) -> Any:
            called.add(id(self))
            return original(self, x)

        monkeypatch.setattr(cls, "__call__", call)
        assert mx.array_equal(logits(model, tokens), want)
        monkeypatch.undo()
        assert products <= called
        steps.restore()


def test_long_inputs_and_other_rows_run_on_the_separate_layers(merging: Any) -> None:
    model = model_of("plain")
    one, two = logits(model, [1]), logits(model, [1, 2])
    steps = merging(model)
    merged = next(iter(steps.merges.of.values()))
    merged.product["weight"] = mx.zeros_like(merged.product["weight"])  # whoever uses it shows
    assert mx.array_equal(logits(model, [1, 2]), two)
    assert not mx.array_equal(logits(model, [1]), one)
    model.train()
    assert mx.array_equal(logits(model, [1]), one)


def layer_of(kind: type, width: int = 1024, bias: bool = False) -> Any:
    layer = nn.Module()
    for name, rows in zip(QKV, (1024, 512, 512), strict=True):
        linear = nn.Linear(width, rows, bias=bias)
        layer[name] = linear if kind is nn.Linear else linear.to_quantized(64, 8)
    layer.eval()
    mx.eval(layer.parameters())
    return layer


@pytest.mark.parametrize("kind", [nn.Linear, nn.QuantizedLinear])
def test_merged_weights_take_no_more_memory_and_replaced_ones_are_let_go(kind: type) -> None:
    layer = layer_of(kind)
    whole = sum(a.nbytes for _, a in tree_flatten(layer.parameters()))
    gc.collect()
    before = mx.get_active_memory()
    changed: list[int] = []
    merges = Merges(changed.append)
    merges.add(layer, QKV, {1}, 7)
    assert abs(mx.get_active_memory() - before) < MIB / 16
    assert sum(a.nbytes for _, a in tree_flatten(layer.parameters())) == whole
    # Other weights: what was joined does not outlive the views, nor wait for a call.
    layer.update(layer_of(kind).parameters())
    gc.collect()
    assert abs(mx.get_active_memory() - before) < MIB / 16
    assert not merges.of
    assert changed[0] == 7
    # And back to arrays of its own.
    merges.add(layer, QKV, {1}, 7)
    merges.drop(layer, owner=8)
    assert merges.of
    merges.drop(layer, owner=7)
    del layer.q_proj, layer.k_proj
    gc.collect()
    assert mx.get_active_memory() - before < -whole / 2


def test_a_layer_that_dies_is_forgotten() -> None:
    layer = layer_of(nn.Linear)
    merges = Merges(lambda owner: None)
    merges.add(layer, QKV, {1}, 0)
    del layer
    gc.collect()
    assert not merges.of


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_replaced_are_seen_at_the_next_call(kind: str, merging: Any) -> None:
    model, other, fresh = model_of(kind), model_of(kind, seed=1), model_of(kind)
    of_other, weight = logits(other), other.layers[0].mlp.up_proj.weight
    fresh.layers[0].mlp.up_proj.weight = weight
    of_fresh = logits(fresh)
    steps = merging(model)
    logits(model)
    held = model.layers[0].mlp.up_proj.weight  # held elsewhere: nothing dies
    model.layers[0].mlp.up_proj.weight = weight
    assert mx.array_equal(logits(model), of_fresh)
    assert mx.array_equal(logits(model), of_fresh)  # merged anew
    del held
    model.load_weights(list(weights(other).items()))
    for _ in range(2):
        assert mx.array_equal(logits(model), of_other)
    assert len(steps.merges.of) == 2 * len(model.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_holds_is_computed(
    kind: str, merging: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may be in the midst of a step: two that compute one array crash."""
    model, evaluate, seen = model_of(kind), mx.eval, []

    def watched(*given: Any) -> None:
        lazy = {id(array) for _, array in tree_flatten(list(given))}
        seen.append(lazy & {id(array) for array in weights(model).values()})
        evaluate(*given)

    monkeypatch.setattr(mx, "eval", watched)
    merging(model).restore()
    assert len(seen) >= 4
    assert not any(seen)


def test_a_bias_that_comes_later_is_added(merging: Any) -> None:
    model, fresh = model_of("plain"), model_of("plain")
    merging(model)
    logits(model)
    for one in (model, fresh):
        layer = one.layers[0].self_attn.q_proj
        layer.bias = mx.arange(layer.weight.shape[0]) / 8
    for _ in range(2):
        assert mx.array_equal(logits(model), logits(fresh))


def test_what_is_packed_afterwards_runs_packed(merging: Any) -> None:
    model, other = model_of("plain"), model_of("packed")
    want = logits(other)
    steps = merging(model)
    logits(model)
    nn.quantize(model, 32, 4)  # type: ignore[attr-defined]
    assert same(weights(model), weights(other))
    assert mx.array_equal(logits(model), want)
    assert not steps.merges.of, "another structure, without a verdict"


def test_adapters_are_loaded_afterwards_as_ever(merging: Any, tmp_path: Path) -> None:
    kind = {"rank": 4, "scale": 10.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": kind}
    model, other = model_of("plain"), model_of("plain")
    linear_to_lora_layers(other, 1, kind)
    made = dict(tree_flatten(other.trainable_parameters()))
    made = {k: mx.random.normal(a.shape) for k, a in made.items() if "lora" in k}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), made)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    stock = load_adapters(model_of("plain"), str(tmp_path))
    stock.eval()
    want = logits(stock)
    steps = merging(model)
    plain = logits(model)
    load_adapters(model, str(tmp_path)).eval()
    assert same(weights(model), weights(stock))
    got = logits(model)
    assert mx.array_equal(got, want)
    assert not mx.array_equal(got, plain)
    assert mx.array_equal(logits(model), want)
    assert not steps.merges.of, "another structure, without a verdict"


def test_what_cannot_be_one_product_is_named() -> None:
    layer = layer_of(nn.Linear)
    assert why_not(layer, QKV) == ""
    layer.k_proj = layer.k_proj.to_quantized(64, 8)
    assert why_not(layer, QKV) == "k_proj is another kind of layer than q_proj"
    layer.q_proj, layer.v_proj = (p.to_quantized(64, 4) for p in (layer.q_proj, layer.v_proj))
    assert why_not(layer, QKV) == "k_proj is packed otherwise than q_proj"
    layer = layer_of(nn.Linear)
    layer.v_proj = nn.Linear(512, 512, bias=False)
    assert why_not(layer, QKV) == "v_proj takes another input than q_proj"
    layer.v_proj = nn.Linear(1024, 512, bias=True)
    assert why_not(layer, QKV) == "v_proj is another kind of layer than q_proj"
    layer = layer_of(nn.Linear)
    layer.v_proj.weight = layer.v_proj.weight.astype(mx.float16)
    assert why_not(layer, QKV) == "v_proj has another dtype than q_proj"
    layer.q_proj = shard_linear(layer.q_proj, "all-to-sharded")
    assert why_not(layer, QKV).startswith("q_proj is mlx.nn.layers.distributed.")
    del layer.q_proj
    assert why_not(layer, QKV) == "q_proj is builtins.NoneType"


def test_traced_weights_are_not_joined() -> None:
    layer = layer_of(nn.Linear)

    def joins(weight: mx.array) -> mx.array:
        layer.q_proj.weight = weight
        Merged(layer, QKV, {1}, 0)
        return weight.sum()

    own = layer.k_proj.weight
    with pytest.raises(ValueError, match="eval"):
        mx.compile(joins)(mx.ones((1024, 1024)))
    assert layer.k_proj.weight is own


def test_where_memory_holds_no_copy_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(nn.Linear)
    before = {name: layer[name]["weight"] for name in QKV}

    def full(*_: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate")

    fake = SimpleNamespace(eval=full, concatenate=mx.concatenate)
    monkeypatch.setattr("mlx_lm_openevolve.decode.merge.mx", fake)
    with pytest.raises(RuntimeError, match="allocate"):
        Merges(lambda owner: None).add(layer, QKV, {1}, 0)
    assert all(layer[name]["weight"] is before[name] for name in QKV)
