"""Quantised layers under the patch: what is served, and that nothing else changes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.qwen3 as qwen3
import numpy as np
import pytest
import serving
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.lora import LoRALinear
from samples import TINY, named, needs_clang, store_correct
from serving import close, hits

import mlx_lm_openevolve
from mlx_lm_openevolve.ops.linear import OP, Bucket
from mlx_lm_openevolve.ops.linear import call as call_module
from mlx_lm_openevolve.ops.linear.call import differentiable, stock

pytestmark = needs_clang
N, K = 48, 128


def layer(dtype: mx.Dtype = mx.float32, bias: bool = False, **packing: Any) -> nn.QuantizedLinear:
    """A quantised layer as a loaded model has it."""
    plain = nn.Linear(K, N, bias=bias)
    if bias:
        plain.bias = mx.arange(N, dtype=mx.float32) / N
    plain.update(tree_map(lambda x: x.astype(dtype), plain.parameters()))
    made = nn.QuantizedLinear.from_linear(plain, **{"group_size": 64, "bits": 4, **packing})
    made.eval()
    mx.eval(made.parameters())
    return made


def numbers(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(3)).astype(dtype)


@pytest.fixture
def served(home: Path) -> Iterator[None]:
    """Verdicts "correct" for every number of rows of `layer()`, and the patch on."""
    packings = [(4, 64, "affine"), (8, 32, "affine"), (4, 32, "mxfp4")]
    buckets = [
        Bucket(rows, 1, N, K, "float32", bits, group, variant)
        for rows in (1, 2, 4, 8)
        for bits, group, variant in packings
    ]
    store_correct(home, named("quantized_rows"), buckets)
    enable()
    yield
    mlx_lm_openevolve.disable_optimizations()


def enable(**changes: Any) -> None:
    on_host: dict[str, Any] = {"backend": "host", "gate": "stored", "require_faster": False}
    mlx_lm_openevolve.enable_optimizations(**{**on_host, "ops": ("linear",), **changes})


def fallbacks() -> dict[str, int]:
    return serving.fallbacks("linear")


def same(call: Callable[[], mx.array], limit: float = 1e-5) -> bool:
    """Whether the patched call gives what the original gives."""
    return serving.same(nn.QuantizedLinear, call, limit)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packing", [{}, {"bits": 8, "group_size": 32}, {"mode": "mxfp4"}])
def test_a_layer_is_served(served: None, packing: dict[str, Any], bias: bool) -> None:
    if packing.get("mode"):
        packing = {**packing, "group_size": 32}
    made = layer(bias=bias, **packing)
    for shape in ((1, 1, K), (1, 4, K), (2, 3, K), (4, K), (2, 2, 2, K)):
        before = hits()
        assert same(lambda shape=shape: made(numbers(*shape)))  # type: ignore[misc]
        assert hits() == before + 1, shape


def test_a_layer_says_by_which_kernel_it_is_served(served: None) -> None:
    """For a trace, which has no arrays to decide by: decode/look.py."""
    says = nn.QuantizedLinear.__call__.served  # type: ignore[attr-defined]
    for bias in (False, True):
        one, x = layer(bias=bias), numbers(1, 2, K)
        assert says(one, x) is None, "never called"
        one(x)
        assert close(says(one, x)(one, x), one(x))
        assert says(one, numbers(1, 3, K)) is None, "another shape"
        assert says(one, x.astype(mx.float16)) is None
        many = numbers(1, 64, K)
        one(many)
        assert says(one, many) is None, "the original serves it"
        one.scales = one.scales + 0
        assert says(one, x) is None, "other weights"
    half = layer(mx.float16)
    half(numbers(1, 2, K, dtype=mx.float16))
    assert says(half, numbers(1, 2, K, dtype=mx.float16)) is None, "no verdict"
    mlx_lm_openevolve.disable_optimizations()
    assert says(one, x) is None


def test_views_of_x_are_served(served: None) -> None:
    made = layer()
    x = numbers(2, 8, 2 * K)
    for view in (x[:, -2:, :K], x[:, :2, ::2], x[:, :4, :K].transpose(1, 0, 2)):
        assert same(lambda view=view: made(view))  # type: ignore[misc]
    assert hits() == 3


def test_what_is_no_workload_is_the_originals(served: None) -> None:
    made = layer()
    assert same(lambda: made(numbers(1, 33, K)))
    assert same(lambda: made(numbers(K)))
    assert same(lambda: made(numbers(1, 2, K).astype(mx.float16)))
    assert hits() == 0
    assert sum(fallbacks().values()) == 3
    for wrong in (numbers(1, 1, K // 2), None):
        with pytest.raises((ValueError, TypeError)) as ours:
            made(wrong)
        assert ours.value.__context__ is None
        mlx_lm_openevolve.disable_optimizations()
        with pytest.raises(ours.type) as theirs:
            made(wrong)
        assert str(ours.value) == str(theirs.value)
        enable()


def test_weights_that_are_a_view_are_the_originals(served: None) -> None:
    made = layer()
    wide = mx.concatenate([made.weight, made.weight], axis=1)
    made.weight = wide[:, : made.weight.shape[1]]
    assert same(lambda: made(numbers(1, 1, K)))
    assert hits() == 0
    assert fallbacks() == {"weights are a view": 1}


def test_subclasses_and_layers_in_training_are_left_alone(served: None) -> None:
    class Own(nn.QuantizedLinear):
        pass

    own = layer()
    object.__setattr__(own, "__class__", Own)
    training = layer()
    training.train()
    for made in (own, training):
        assert same(lambda made=made: made(numbers(1, 1, K)))  # type: ignore[misc]
    assert hits() == 0
    assert fallbacks() == {}


def test_changed_weights_are_seen(served: None) -> None:
    made, other = layer(), layer(bits=8, group_size=32)
    x = numbers(1, 1, K)
    assert same(lambda: made(x))
    made.update({"scales": made.scales * 2})
    assert same(lambda: made(x))
    made.weight, made.scales, made.biases = other.weight, other.scales, other.biases
    made.bits, made.group_size = 8, 32
    assert same(lambda: made(x))
    assert hits() == 3


@pytest.mark.parametrize("rows", [1, 33])
def test_a_packing_that_changes_under_its_weights_is_seen(served: None, rows: int) -> None:
    """MLX says what is wrong, and serves until the arrays are others: all that a fallback asks."""
    made, x = layer(), numbers(1, rows, K)
    assert same(lambda: made(x))
    for name, value in (("bits", 8), ("group_size", 32), ("mode", "mxfp4")):
        before = getattr(made, name)
        setattr(made, name, value)
        with pytest.raises(ValueError, match="matmul"):
            mx.eval(made(x))
        setattr(made, name, before)
        assert same(lambda: made(x))
    assert hits() == (rows == 1)
    made.scales = made.scales * 2
    assert same(lambda: made(x))
    assert hits() == 2 * (rows == 1)


def test_arrays_that_change_in_place_are_seen(served: None, home: Path) -> None:
    made, x = layer(), numbers(1, 1, K)
    assert same(lambda: made(x))
    made.biases += 1  # the same array, other numbers
    assert same(lambda: made(x))
    made.scales[:] = 0.5  # a view of one number
    assert same(lambda: made(x))
    made.biases[:] = mx.random.normal(made.biases.shape[::-1]).T
    assert same(lambda: made(x))
    assert hits() == 4
    half, y = layer(mx.float16), x.astype(mx.float16)
    w = OP.describe(half, y)
    assert not isinstance(w, str)
    store_correct(home, named("quantized_rows"), [w.bucket()])
    enable()
    assert same(lambda: half(y), 0.01)
    assert hits() == 1
    half.scales *= mx.ones((1, 1))  # a float32 array from here on
    half.biases *= mx.ones((1, 1))
    assert half.scales.dtype == mx.float32
    assert same(lambda: half(y), 0.01)
    assert hits() == 1
    assert fallbacks() == {"scales or biases differ from x in dtype": 1}


def test_fallbacks_are_decided_anew_with_other_weights(served: None) -> None:
    made, x = layer(), numbers(1, 1, K)
    half = [part.astype(mx.float16) for part in (made.scales, made.biases)]
    whole = made.scales, made.biases
    made.scales, made.biases = half
    assert same(lambda: made(x))
    assert (hits(), sum(fallbacks().values())) == (0, 1)
    made.scales, made.biases = whole
    assert same(lambda: made(x))
    assert (hits(), sum(fallbacks().values())) == (1, 1)
    # x of another dtype and the same shape has a route of its own.
    for _ in range(2):
        assert same(lambda: made(x.astype(mx.float16)))
        assert same(lambda: made(x))
    assert (hits(), sum(fallbacks().values())) == (3, 3)


def test_a_route_is_decided_once_for_each_layer_and_shape(
    served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    described = call_module.describe

    def describe(layer: Any, x: mx.array) -> Any:
        asked.append(x.shape)
        return described(layer, x)

    monkeypatch.setattr(call_module, "describe", describe)
    served_, plain = layer(), layer(bits=8, group_size=64)  # nobody judged the second
    for rows in (1, 2, 33):
        for made in (served_, plain):
            for _ in range(3):
                assert same(lambda made=made, rows=rows: made(numbers(1, rows, K)))  # type: ignore[misc]
    assert asked == [(1, rows, K) for rows in (1, 1, 2, 2, 33, 33)]
    assert hits() == 6
    assert fallbacks() == {"more than 32 rows": 6}
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"]
    assert sum(row["fallbacks"] for row in rows.values()) == 6


def test_threads_call_one_layer_while_its_weights_change(served: None) -> None:
    made, x = layer(), numbers(1, 1, K)
    halves = [(made.weight, made.scales, made.biases), *[()]]
    other = layer()
    halves[1] = (other.weight, other.scales * 3, other.biases * 3)
    mx.eval(halves, x)
    wanted = []
    for parts in halves:
        made.weight, made.scales, made.biases = parts
        mx.eval(want := stock(OP.describe(made, x), x, *parts))
        wanted.append(want)
    wrong: list[Any] = []
    layers = [layer() for _ in range(8)]
    for each in layers:
        each.weight, each.scales, each.biases = halves[0]

    def work(number: int) -> None:
        for turn in range(20):
            at = (turn + number) % 2
            mine = layers[number]
            mine.weight, mine.scales, mine.biases = halves[at]
            for each, want in ((mine, wanted[at]), (made, wanted[1])):
                if not close(each(x), want, 1e-5):
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert hits() == 2 * 8 * 20


def test_switched_off_and_on_again(served: None) -> None:
    made, x = layer(), numbers(1, 1, K)
    held = nn.QuantizedLinear.__call__  # as another library's wrapper would
    assert same(lambda: made(x))
    before = hits()
    mlx_lm_openevolve.disable_optimizations()
    want = made(x)
    assert close(held(made, x), want, 1e-6)
    made.scales = made.scales * 2
    enable()
    assert same(lambda: made(x))
    assert (before, hits()) == (1, 1)


def test_a_layer_quantised_anew_and_one_under_lora(served: None) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = layer()

        def __call__(self, x: mx.array) -> mx.array:
            return self.proj(x)

    block, x = Block().eval(), numbers(1, 1, K)
    assert same(lambda: block(x))
    plain = nn.Linear(K, N, bias=False)
    plain.weight = mx.dequantize(
        block.proj.weight, block.proj.scales, block.proj.biases, group_size=64, bits=4
    )
    block.proj = plain
    nn.quantize(block, group_size=32, bits=8)
    block.eval()
    assert same(lambda: block(x))
    assert hits() == 2
    block.proj = LoRALinear.from_base(block.proj, r=4)
    block.proj.lora_b = mx.random.normal(block.proj.lora_b.shape)
    block.eval()
    assert same(lambda: block(x))  # the layer within
    assert hits() == 3
    block.train()
    assert same(lambda: block(x))
    assert hits() == 3


def test_ids_of_layers_that_died_are_no_ones(served: None) -> None:
    """Memory is used again: what an id stands for may not outlive its layer."""
    x, seen = numbers(1, 1, K), set()
    for turn in range(40):
        made = layer(**({"bits": 8, "group_size": 32} if turn % 2 else {}))
        seen.add(id(made))
        assert same(lambda made=made: made(x))  # type: ignore[misc]
        del made
        gc.collect()
    assert len(seen) < 40
    assert hits() == 40


def test_a_layers_weights_are_freed_with_it(served: None) -> None:
    made = layer()
    mx.eval(made(numbers(1, 1, K)))
    assert hits() == 1
    held = weakref.ref(made.weight)
    del made
    gc.collect()
    assert held() is None


def test_weights_are_let_go_with_the_patch(served: None) -> None:
    """What is replaced after it is no one's, though the layer lives."""
    made = layer()
    mx.eval(made(numbers(1, 1, K)))
    held = weakref.ref(made.weight)
    mlx_lm_openevolve.disable_optimizations()
    made.weight = mx.zeros_like(made.weight)
    mx.eval(made.weight)
    gc.collect()
    assert held() is None


def test_an_original_that_raises_is_called_once(
    served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it serves whatever is so large."""
    made, x, calls = layer(mx.float16), numbers(1, 1, K).astype(mx.float16), []
    made(x)

    def failing(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise TypeError("no")

    monkeypatch.setattr(mx, "quantized_matmul", failing)
    with pytest.raises(TypeError, match="no"):
        made(x)
    assert calls == [1]


def test_as_linear_adds_no_bias(served: None) -> None:
    made = nn.QuantizedEmbedding(N, K, 64, 4)
    made.eval()
    x = numbers(1, 1, K)
    want = made.as_linear(x)
    made.bias = mx.ones((N,))
    assert hits() == 1
    assert mx.array_equal(made.as_linear(x), want).item()


def test_a_tied_models_logits_agree_and_every_product_is_served(home: Path) -> None:
    mx.random.seed(0)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(TINY))
    nn.quantize(model, group_size=64, bits=4)
    model.eval()
    mx.eval(model.parameters())

    def logits() -> mx.array:
        cache = make_prompt_cache(model)
        model(mx.arange(40)[None], cache=cache)
        found = [model(mx.array([[token]]), cache=cache) for token in (5, 6)]
        mx.eval(found)
        return mx.concatenate(found)

    want = logits()
    enable()
    logits()
    seen = mlx_lm_openevolve.get_optimization_info()["workloads"]
    mlx_lm_openevolve.disable_optimizations()
    assert f"linear-m1-n{TINY['vocab_size']}-k64-float32-q4g64" in seen  # as_linear
    store_correct(home, named("quantized_rows"), [OP.parse(slug).bucket() for slug in seen])
    enable()
    ours = logits()
    info = mlx_lm_openevolve.get_optimization_info()
    assert close(ours, want, 1e-5)
    rows = info["workloads"].values()
    assert (sum(row["hits"] for row in rows), sum(row["fallbacks"] for row in rows)) == (30, 0)
    assert fallbacks() == {"more than 32 rows": 15}


def test_derivatives_are_the_originals() -> None:
    made = layer()
    w = OP.describe(made, numbers(1, 2, K))
    assert not isinstance(w, str)
    # An answer that is none: what is differentiated is the original alone.
    call = differentiable(w, lambda *given: mx.zeros((1, 2, N)))
    x, *rest = OP.arguments(made, numbers(1, 2, K))
    weight, scales, biases = rest

    def of(product: Callable[..., mx.array]) -> list[Any]:
        def loss(*given: mx.array) -> mx.array:
            x, scales, biases = given
            return (product(x, weight, scales, biases) * numbers(1, 2, N)).sum()

        return [np.array(g) for g in mx.grad(loss, argnums=(0, 1, 2))(x, scales, biases)]

    ours, theirs = of(call), of(lambda *given: stock(w, *given))
    assert all(map(np.array_equal, ours, theirs))


def test_the_family_is_off_without_a_verdict_unless_it_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.QuantizedLinear.__call__
    enable(ops=None)
    assert nn.QuantizedLinear.__call__ is original
    mlx_lm_openevolve.disable_optimizations()
    enable()
    assert nn.QuantizedLinear.__call__ is not original
    mlx_lm_openevolve.disable_optimizations()
    assert nn.QuantizedLinear.__call__ is original
    assert "as_linear" in vars(nn.QuantizedEmbedding)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", "attention,linear")
    enable(ops=None)
    assert nn.QuantizedLinear.__call__ is not original
