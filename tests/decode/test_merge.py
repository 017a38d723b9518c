"""Compiled layers and merged products: no more memory, and a model is what it was to others."""

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

from mlx_lm_openevolve.decode.merge import Merged, alike
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, COMPILED
from mlx_lm_openevolve.runtime.patch import installed

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
def compiling() -> Iterator[Any]:
    """A function that compiles a model's layers for so many rows at once; put back afterwards."""
    made = []

    def run(model: Any, way: str = ALL, batch: int = 1) -> Steps:
        steps = Steps({slug(structure(model), n): way for n in (1, batch)})
        made.append(steps)
        steps.install()
        logits(model)
        assert counts(steps) == (len(model.layers), 2 * len(model.layers) if way != COMPILED else 0)
        return steps

    yield run
    for steps in made:
        steps.restore()


def counts(steps: Steps) -> tuple[int, int]:
    """How many layers are compiled, and how many products stand for several."""
    (info,) = steps.info().values()
    return info["compiled"], info["merged"]


KINDS = ("plain", "packed", "biased")
MOST = ("plain", "packed", pytest.param("biased", marks=pytest.mark.slow))
ways = pytest.mark.parametrize("way", [ALL, COMPILED])


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_what_they_were_and_disabling_gives_them_back(
    kind: str, compiling: Any, tmp_path: Path
) -> None:
    model, before = model_of(kind), weights(model_of(kind))
    model.save_weights(str(tmp_path / "before.safetensors"))
    method = vars(llama.TransformerBlock)["__call__"]
    steps = compiling(model)
    assert vars(llama.TransformerBlock)["__call__"] is not method
    assert same(weights(model), before)
    model.save_weights(str(tmp_path / "merged.safetensors"))
    saved = [mx.load(str(tmp_path / f"{name}.safetensors")) for name in ("before", "merged")]
    assert same(*saved)
    sizes = {path.stat().st_size for path in tmp_path.glob("*.safetensors")}
    assert len(sizes) == 1
    steps.restore()
    assert same(weights(model), before)
    assert vars(llama.TransformerBlock)["__call__"] is method
    assert not steps.layers


@ways
@pytest.mark.parametrize("kind", MOST)
def test_compiled_layers_give_the_bits_of_stock(
    kind: str, way: str, compiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU each row of a product is summed by itself, whatever stands beside it."""
    model, product = model_of(kind), nn.QuantizedLinear if kind == "packed" else nn.Linear
    want = logits(model)
    compiling(model, way)
    called, original = list[Any](), product.__call__
    monkeypatch.setattr(product, "__call__", lambda *a: called.append(a[0]) or original(*a))
    assert mx.array_equal(logits(model), want)
    monkeypatch.undo()
    long = 7 * len(model.layers) + 1  # of the prompt, layer by layer
    assert len(called) == long + 1, "the head alone, beside compiled layers"


def test_long_inputs_and_other_rows_run_as_ever(
    compiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("plain")
    one, two = logits(model, [1]), logits(model, [1, 2])
    steps = compiling(model)
    for layer in steps.layers.values():
        for key, (split, joined) in layer.splits.items():  # whoever uses it shows
            other = split.changed(after=lambda *given, after=split.after: 0 * after(*given))
            layer.splits[key] = other, joined
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
def test_merged_weights_take_no_more_memory(kind: type) -> None:
    layer = layer_of(kind)
    whole = sum(a.nbytes for _, a in tree_flatten(layer.parameters()))
    gc.collect()
    before = mx.get_active_memory()
    merged = Merged([layer[name] for name in QKV])
    assert abs(mx.get_active_memory() - before) < MIB / 16
    assert sum(a.nbytes for _, a in tree_flatten(layer.parameters())) == whole
    # Back to arrays of its own.
    merged.undo()
    del merged, layer.q_proj, layer.k_proj
    gc.collect()
    assert mx.get_active_memory() - before < -whole / 2


@ways
@pytest.mark.parametrize("kind", ["plain", pytest.param("packed", marks=pytest.mark.slow)])
def test_replaced_weights_are_let_go_at_once(kind: str, way: str, compiling: Any) -> None:
    """They wait for no call, and no collection of garbage."""
    model, other = model_of(kind), model_of(kind, seed=1)
    compiling(model, way)
    gc.collect()
    gc.disable()
    try:
        before = mx.get_active_memory()
        model.update(other.parameters())
        whole = sum(a.nbytes for _, a in tree_flatten(model.layers[0].parameters()))
        assert mx.get_active_memory() - before < -whole
        logits(model)
        del model, other
        assert mx.get_active_memory() - before < -3 * whole
    finally:
        gc.enable()


@ways
@pytest.mark.parametrize("kind", MOST)
def test_weights_that_are_replaced_are_seen_at_the_next_call(
    kind: str, way: str, compiling: Any
) -> None:
    model, other, fresh = model_of(kind), model_of(kind, seed=1), model_of(kind)
    of_other, weight = logits(other), other.layers[0].mlp.up_proj.weight
    fresh.layers[0].mlp.up_proj.weight = weight
    of_fresh = logits(fresh)
    steps = compiling(model, way)
    logits(model)
    held = model.layers[0].mlp.up_proj.weight  # held elsewhere: nothing dies
    model.layers[0].mlp.up_proj.weight = weight
    assert mx.array_equal(logits(model), of_fresh)
    assert mx.array_equal(logits(model), of_fresh)  # compiled anew
    del held
    model.load_weights(list(weights(other).items()))
    for _ in range(2):
        assert mx.array_equal(logits(model), of_other)
    assert counts(steps)[0] == len(model.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_holds_is_computed(
    kind: str, compiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may be in the midst of a step: two that compute one array crash."""
    model, evaluate, seen = model_of(kind), mx.eval, []

    def watched(*given: Any) -> None:
        lazy = {id(array) for _, array in tree_flatten(list(given))}
        seen.append(lazy & {id(array) for array in weights(model).values()})
        evaluate(*given)

    steps = compiling(model, COMPILED)
    steps.restore()
    monkeypatch.setattr(mx, "eval", watched)
    compiling(model).restore()
    assert len(seen) >= 4
    assert not any(seen)


def test_a_bias_that_comes_later_is_added(compiling: Any) -> None:
    model, fresh = model_of("plain"), model_of("plain")
    compiling(model)
    logits(model)
    for one in (model, fresh):
        layer = one.layers[0].self_attn.q_proj
        layer.bias = mx.arange(layer.weight.shape[0]) / 8
    for _ in range(2):
        assert mx.array_equal(logits(model), logits(fresh))


@ways
def test_what_is_packed_afterwards_runs_packed(way: str, compiling: Any) -> None:
    model, other = model_of("plain"), model_of("packed")
    want = logits(other)
    steps = compiling(model, way)
    logits(model)
    nn.quantize(model, 32, 4)  # type: ignore[attr-defined]
    assert same(weights(model), weights(other))
    assert mx.array_equal(logits(model), want)
    assert counts(steps) == (0, 0), "another structure, without a verdict"


@ways
def test_adapters_are_loaded_afterwards_as_ever(way: str, compiling: Any, tmp_path: Path) -> None:
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
    steps = compiling(model, way)
    plain = logits(model)
    load_adapters(model, str(tmp_path)).eval()
    assert same(weights(model), weights(stock))
    got = logits(model)
    assert mx.array_equal(got, want)
    assert not mx.array_equal(got, plain)
    assert mx.array_equal(logits(model), want)
    assert counts(steps) == (0, 0), "another structure, without a verdict"


def test_what_cannot_be_one_product_stays_separate() -> None:
    def found(layer: Any) -> list[int]:
        return [len(group) for group in alike(layer[name] for name in QKV)]

    layer = layer_of(nn.Linear)
    assert found(layer) == [3]
    layer.k_proj = layer.k_proj.to_quantized(64, 8)
    assert found(layer) == [2]
    layer.q_proj = layer.q_proj.to_quantized(64, 4)
    assert found(layer) == [], "packed otherwise"
    layer.v_proj = layer.v_proj.to_quantized(64, 4)
    assert found(layer) == [2]
    layer = layer_of(nn.Linear)
    layer.v_proj = nn.Linear(512, 512, bias=False)
    assert found(layer) == [2], "of another width"
    layer.v_proj = nn.Linear(1024, 512, bias=True)
    assert found(layer) == [2]
    layer = layer_of(nn.Linear)
    layer.v_proj.weight = layer.v_proj.weight.astype(mx.float16)
    assert found(layer) == [2]
    layer.q_proj = shard_linear(layer.q_proj, "all-to-sharded")
    assert found(layer) == []


def test_traced_weights_are_not_joined() -> None:
    layer = layer_of(nn.Linear)

    def joins(weight: mx.array) -> mx.array:
        layer.q_proj.weight = weight
        Merged([layer[name] for name in QKV])
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
        Merged([layer[name] for name in QKV])
    assert all(layer[name]["weight"] is before[name] for name in QKV)


def test_weights_that_layers_share_stay_separate(compiling: Any) -> None:
    """Joined they would be two copies; one layer's views would be another's change."""
    model = model_of("plain")
    model.layers[0].mlp = model.layers[1].mlp
    model.layers[0].self_attn.k_proj.weight = model.layers[0].self_attn.v_proj.weight
    want = logits(model)
    steps = Steps({slug(structure(model), 1): ALL})
    with installed([steps]):
        for _ in range(3):
            assert mx.array_equal(logits(model), want)
        assert counts(steps) == (2, 1), "queries, keys and values of the second layer"
        assert steps.info()[structure(model)]["reason"] == ""
        assert model.layers[0].self_attn.k_proj.weight is model.layers[0].self_attn.v_proj.weight


def test_rows_that_were_accepted_compiled_alone_get_no_merged_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever comes first: then what was compiled from the separate weights lets them go."""
    model = model_of("plain")
    steps = Steps({slug(structure(model), 1): COMPILED, slug(structure(model), 2): ALL})
    with installed([steps]):
        products = dict[int, int]()
        split, before = mx.split, mx.get_active_memory()
        monkeypatch.setattr(mx, "split", lambda *a, **k: made.append(1) or split(*a, **k))
        for rows in (1, 2, 1):
            made = list[int]()
            cache = make_prompt_cache(model)
            model(mx.array([[5, 7]] * rows), cache=cache)
            for _ in range(2):
                mx.eval(model(mx.array([[3]] * rows), cache=cache))
            products[rows] = len(made)
            del cache
            gc.collect()
        assert products == {1: 0, 2: products[2]}
        assert products[2] > 0
        assert counts(steps) == (2, 4)
        whole = sum(a.nbytes for _, a in tree_flatten(model.layers[0].parameters()))
        assert mx.get_active_memory() - before < whole / 4


def test_old_weights_go_layer_by_layer_while_products_are_joined() -> None:
    """Though nothing of the step is computed before its end."""
    layers = 12
    config = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 1024}
    config |= {"num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": 64}
    model = llama.Model(llama.ModelArgs.from_dict({**config, "rms_norm_eps": 1e-5}))
    model.eval()
    mx.eval(model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    with installed([Steps({slug(structure(model), 1): ALL})]):
        cache = make_prompt_cache(model)
        mx.eval(model(mx.array([[1, 2]]), cache=cache))
        mx.reset_peak_memory()
        mx.eval(model(mx.array([[1]]), cache=cache))
        peak = mx.get_peak_memory() - before
    weights = sum(a.nbytes for _, a in tree_flatten(model.parameters()))
    # Two layers at most: one that is joined, and what it is joined from.
    assert peak < 2 * weights / layers
