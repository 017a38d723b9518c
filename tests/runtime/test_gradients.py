"""Never a wrong derivative: vjp and jvp of both orders, by every operand, against stock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm.models.base as base
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from mlx_lm.tuner.utils import linear_to_lora_layers
from samples import shipped_in_metal, store_correct
from serving import enable, hits

import mlx_lm_openevolve
from mlx_lm_openevolve.backends import host
from mlx_lm_openevolve.ops.attention.quantized import dequantised
from mlx_lm_openevolve.ops.attention.workload import Workload

DECODE = Workload(1, 4, 2, 1, 32, 64, 64, "float32")
VERIFY = replace(DECODE, q_len=4, mask="causal")
Arrays = list[mx.array]
Function = Callable[..., mx.array]


def normal(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def floats(w: Workload) -> tuple[Function, Arrays]:
    """A call over a plain cache as a function of its floating operands, and those."""
    given = [
        normal(1, w.q_heads, w.q_len, w.head_dim, seed=0),
        normal(1, w.kv_heads, 20, w.head_dim, seed=1),
        normal(1, w.kv_heads, 20, w.v_head_dim, seed=2),
    ]
    if w.mask == "additive":
        given.append(normal(1, w.q_heads, w.q_len, 20, seed=3))
    if w.sinks:
        given.append(normal(w.q_heads, seed=4))

    def attention(q: mx.array, k: mx.array, v: mx.array, *more: mx.array) -> mx.array:
        rest = list(more)
        mask = {"none": None, "causal": "causal"}.get(w.mask)
        if w.mask == "additive":
            mask = rest.pop(0)
        elif w.mask == "bool":
            mask = mx.arange(20) % 3 > 0
        sinks = rest.pop() if w.sinks else None
        return base.scaled_dot_product_attention(q, k, v, KVCache(), 0.125, mask, sinks)

    return attention, given


def latent(w: Workload) -> tuple[Function, Arrays]:
    given = [
        normal(1, w.q_heads, w.q_len, w.head_dim, seed=0),
        normal(1, 1, 20, w.head_dim, seed=1),
        normal(1, w.q_heads, w.q_len, 20, seed=3),
    ]

    def attention(q: mx.array, k: mx.array, mask: mx.array) -> mx.array:
        return base.scaled_dot_product_attention(q, k, k, KVCache(), 0.125, mask)

    return attention, given


def quantized(w: Workload) -> tuple[Function, Arrays]:
    """By the scales and biases of keys and values as well, which MLX derives backwards alone."""
    q = normal(1, w.q_heads, w.q_len, w.head_dim, seed=0)
    k, v = (
        mx.quantize(normal(1, w.kv_heads, 20, w.head_dim, seed=n), w.kv_group, w.kv_bits)
        for n in (1, 2)
    )

    def attention(q: mx.array, ks: mx.array, kb: mx.array, vs: mx.array, vb: mx.array) -> mx.array:
        cache = QuantizedKVCache(w.kv_group, w.kv_bits)
        keys, values = (k[0], ks, kb), (v[0], vs, vb)
        # mlx-lm scales the queries in place.
        return base.scaled_dot_product_attention(q + 0, keys, values, cache, 0.125, None)

    return attention, [q, *k[1:], *v[1:]]


def quantized_queries(w: Workload) -> tuple[Function, Arrays]:
    attention, (q, *packed) = quantized(w)
    return lambda q: attention(q, *packed), [q]


CALLS = {
    "decode": (floats, DECODE),
    "verify": (floats, VERIFY),
    "additive mask": (floats, replace(DECODE, mask="additive")),
    "bool mask": (floats, replace(DECODE, mask="bool")),
    "sinks": (floats, replace(DECODE, sinks=True)),
    "sinks and an additive mask": (floats, replace(DECODE, sinks=True, mask="additive")),
    "latent": (latent, Workload(1, 4, 1, 1, 32, 256, 256, "float32", "additive", latent=True)),
    "quantised": (quantized, replace(DECODE, kv_bits=8, kv_group=32)),
    "quantised queries": (quantized_queries, replace(DECODE, kv_bits=8, kv_group=32)),
}


def vjp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    cotangent = normal(*f(*given).shape, seed=7)
    return list(mx.vjp(lambda *a: f(*a), given, [cotangent])[1])


def jvp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    return list(mx.jvp(lambda *a: f(*a), given, along)[1])


def each_jvp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    """By one operand at a time."""
    found: Arrays = []
    for i, tangent in enumerate(along):

        def one(x: mx.array, i: int = i) -> mx.array:
            return f(*given[:i], x, *given[i + 1 :])

        found += mx.jvp(one, [given[i]], [tangent])[1]
    return found


def gradients(f: Function, given: Arrays) -> Arrays:
    found = mx.grad(lambda *a: (f(*a) ** 2).sum(), argnums=list(range(len(given))))(*given)
    return list(found)


def vjp_of_vjp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    def product(*a: mx.array) -> mx.array:
        pairs = zip(gradients(f, list(a)), along, strict=True)
        return mx.stack([(g * t).sum() for g, t in pairs]).sum()

    return list(mx.grad(product, argnums=list(range(len(given))))(*given))


def jvp_of_vjp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    return list(mx.jvp(lambda *a: gradients(f, list(a)), given, along)[1])


def vjp_of_jvp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    def product(*a: mx.array) -> mx.array:
        return (mx.jvp(lambda *b: f(*b), list(a), along)[1][0] ** 2).sum()

    return list(mx.grad(product, argnums=list(range(len(given))))(*given))


def jvp_of_jvp(f: Function, given: Arrays, along: Arrays) -> Arrays:
    def inner(*a: mx.array) -> mx.array:
        return mx.jvp(lambda *b: f(*b), list(a), along)[1][0]

    return list(mx.jvp(inner, given, along)[1])


WAYS = [vjp, jvp, each_jvp, vjp_of_vjp, jvp_of_vjp, vjp_of_jvp, jvp_of_jvp]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("call", CALLS)
def test_derivatives_through_a_served_call_are_stocks(call: str, way: Any, home: Path) -> None:
    make, workload = CALLS[call]
    kernel = next(k for k in shipped_in_metal() if k.applies_to(workload.bucket()))
    store_correct(home, kernel, [workload.bucket()])
    f, given = make(workload)
    along = [normal(*x.shape, seed=20 + i) for i, x in enumerate(given)]

    def derived() -> Arrays | str:
        try:
            found = way(f, given, along)
            mx.eval(found)
        except (ValueError, RuntimeError) as error:  # what stock itself cannot derive
            return str(error)
        return found

    want = derived()
    enable()
    got = derived()
    assert hits() > 0
    if isinstance(want, str):
        assert got == want
        return
    assert not isinstance(got, str), got
    for a, b in zip(got, want, strict=True):
        assert mx.any(b != 0).item(), "a derivative that says something"
        assert mx.allclose(a, b, rtol=1e-3, atol=1e-4 * mx.abs(b).max().item()).item()


def test_a_kernel_s_result_is_not_changed_by_what_it_is_derived_by(home: Path) -> None:
    """Derived or not, a served call answers with the kernel's own bits."""
    kernel = next(k for k in shipped_in_metal() if k.applies_to(DECODE.bucket()))
    store_correct(home, kernel, [DECODE.bucket()])
    f, given = floats(DECODE)
    stock = f(*given)
    enable()
    plain, (derived,) = f(*given), mx.vjp(lambda *a: f(*a), given, [stock])[0]
    assert mx.array_equal(plain, derived)
    assert not mx.array_equal(plain, stock), "other bits than SDPA's, or this says nothing"


def test_a_mask_for_each_head_over_a_quantised_cache_is_judged_and_derived() -> None:
    """The gate asks it of a kernel; mlx-lm's own attention refuses it."""
    w = replace(DECODE, kv_bits=8, kv_group=32, mask="additive", kv_len=20)
    kernel = next(k for k in shipped_in_metal() if k.applies_to(w.bucket()))
    call = host.build(kernel, kernel.default_params(w.bucket()), w)
    q, mask = normal(1, 4, 1, 64, seed=0), normal(1, 4, 1, 20, seed=3)
    k, v = (mx.quantize(normal(1, 2, 20, 64, seed=n), 32, 8) for n in (1, 2))
    scale = mx.array([0.125])

    def ours(q: mx.array, mask: mx.array) -> mx.array:
        return call(q, k, v, scale, mask, None)

    def stock(q: mx.array, mask: mx.array) -> mx.array:
        return dequantised(q, k, v, 0.125, mask, 8, 32)

    assert mx.allclose(ours(q, mask), stock(q, mask), atol=1e-4)
    for a, b in zip(gradients(ours, [q, mask]), gradients(stock, [q, mask]), strict=True):
        assert mx.any(b != 0).item()
        assert mx.allclose(a, b, atol=1e-3)


def lora_steps(architecture: str, steps: int = 3) -> list[tuple[str, mx.array]]:
    """LoRA weights after some steps of mlx-lm's own kind, and the last loss."""
    model = architectures.build(architecture)
    model.freeze()
    mx.random.seed(3)
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 10.0, "dropout": 0.0})
    model.train()
    tokens = mx.random.randint(1, architectures.VOCAB, (2, 17), key=mx.random.key(5))

    def loss(model: nn.Module) -> mx.array:
        logits = model(tokens[:, :-1]).astype(mx.float32)
        return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")

    step, optimizer = nn.value_and_grad(model, loss), optim.Adam(1e-2)
    last = mx.array(0.0)
    for _ in range(steps):
        last, gradient = step(model)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, last)
    return [*tree_flatten(model.trainable_parameters()), ("loss", last)]


@pytest.mark.parametrize("architecture", ["afm7", "deepseek_v3", "gpt_oss", "llama", "qwen3_next"])
def test_lora_steps_are_stocks_bit_for_bit(architecture: str) -> None:
    """afm7 makes itself a cache in training: it is no reason to reach for a kernel."""
    want = lora_steps(architecture)
    enable()
    got = lora_steps(architecture)
    for (name, a), (_, b) in zip(got, want, strict=True):
        assert mx.array_equal(a, b), name
    assert any(mx.any(x != 0).item() for name, x in want if name.endswith("lora_b"))
    info = mlx_lm_openevolve.get_optimization_info()
    assert info["workloads"] == {}, "no call was routed at all"
    assert set(info["fallbacks"]) == {"no cache, as in training"}
