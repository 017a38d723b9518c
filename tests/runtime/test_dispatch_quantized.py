"""The dispatcher with mlx-lm's quantised caches: kernels, stock, and what stands in for stock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.base as base
import mlx_lm.models.qwen3 as qwen3
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import QuantizedKVCache
from samples import accepted, shipped_in_metal, store_correct

import mlx_lm_openevolve
from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import Device
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention import OP, quantized
from mlx_lm_openevolve.ops.attention.reference.baseline import sdpa
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.runtime.dispatch import Router
from mlx_lm_openevolve.runtime.planner import Plan, Planner

BUCKETS = [
    Workload(1, 4, 2, 1, n, 64, 64, "bfloat16", kv_bits=bits, kv_group=32)
    for n in (16, 32, 64)
    for bits in (4, 8)
]


@pytest.fixture
def proven(home: Path) -> Kernel:
    """Verdicts "correct" on the host for the decode of a quantised cache."""
    kernel = next(k for k in shipped_in_metal() if all(k.applies_to(w) for w in BUCKETS))
    store_correct(home, kernel, [*BUCKETS, *(replace(w, mask="bool") for w in BUCKETS)])
    return kernel


def enable() -> None:
    mlx_lm_openevolve.enable_optimizations(backend="host", gate="stored", require_faster=False)


def call(bits: int = 4, **changes: Any) -> dict[str, Any]:
    """Arguments of a decode call as mlx-lm makes it after 19 keys."""
    q, k, v = (
        mx.random.normal((1, heads, n, 64), key=mx.random.key(seed)).astype(mx.bfloat16)
        for seed, (heads, n) in enumerate(((4, 1), (2, 19), (2, 19)))
    )
    cache = QuantizedKVCache(group_size=32, bits=bits)
    keys, values = cache.update_and_fetch(k, v)
    made = {"queries": q, "keys": keys, "values": values, "cache": cache}
    return made | {"scale": 0.125, "mask": None} | changes


def fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    """With queries of their own: mlx-lm's function scales them in place."""
    return arguments | {"queries": mx.array(arguments["queries"])}


def exact(arguments: dict[str, Any], bits: int = 4) -> mx.array:
    """The answer in float32."""
    k, v = (quantized.exact(arguments[name], bits, 32) for name in ("keys", "values"))
    q = arguments["queries"].astype(mx.float32)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=arguments["mask"])


def off(a: mx.array, b: mx.array) -> float:
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return float((mx.linalg.norm(a - b) / mx.linalg.norm(b)).item())


def row() -> dict[str, Any]:
    (found,) = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    return dict(found)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_kernel_serves_a_quantised_cache(proven: Kernel, bits: int) -> None:
    asked = call(bits)
    before = mx.array(asked["queries"])
    enable()
    out = base.scaled_dot_product_attention(**asked)
    assert off(out, exact(asked, bits)) < 0.005
    assert (row()["kernel"], row()["hits"], row()["fallbacks"]) == (proven.id, 1, 0)
    assert mx.array_equal(asked["queries"], before), "stock scales them, a kernel leaves them"
    base.scaled_dot_product_attention(**asked)
    assert row()["hits"] == 2


def test_a_mask_reaches_the_kernel(proven: Kernel) -> None:
    asked = call(mask=mx.arange(19) % 3 > 0)
    enable()
    assert off(base.scaled_dot_product_attention(**asked), exact(asked)) < 0.005
    assert row()["hits"] == 1


def test_a_prompt_is_served_too(home: Path) -> None:
    """12 queries after 7 keys, without scores in memory."""
    bucket = replace(BUCKETS[0], q_len=12, kv_len=19, mask="causal").bucket()
    kernel = next(k for k in shipped_in_metal() if k.applies_to(bucket))
    store_correct(home, kernel, [bucket])
    queries = mx.random.normal((1, 4, 12, 64), key=mx.random.key(3)).astype(mx.bfloat16)
    asked = call(queries=queries, mask="causal")
    enable()
    assert off(base.scaled_dot_product_attention(**asked), exact(asked)) < 0.005
    assert (row()["kernel"], row()["hits"]) == (kernel.id, 1)


def test_without_a_verdict_stock_serves_bit_for_bit() -> None:
    asked = call()
    want = base.scaled_dot_product_attention(**fresh(asked))
    enable()
    assert mx.array_equal(base.scaled_dot_product_attention(**fresh(asked)), want)
    assert (row()["kernel"], row()["hits"], row()["fallbacks"]) == (None, 0, 1)


def test_too_few_scales_for_metals_device_memory_never_fail_in_the_users_eval(
    home: Path, copy_first: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than 8 elements are in `constant` memory there: what reads them from `device` does not
    compile, also where the kernel was built at a greater length of the same bucket."""

    def build(kernel: Kernel, params: Any, exact: Workload) -> Any:
        def call(queries: mx.array, keys: Any, *rest: Any) -> mx.array:
            if keys[1].size < 8:
                raise RuntimeError("[metal::Device] Unable to build metal library from source")
            return sdpa(exact)(queries, keys, *rest)

        return call

    planner = Planner(Device("metal", "chip", "Chip", "arch"), [Registry(home)])
    monkeypatch.setattr(planner, "plan", lambda b: Plan(b, "accepted", copy_first, accepted(b)))
    monkeypatch.setattr(backends.get("metal"), "build", build)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    router = Router(OP, planner)
    patched = router.wrap(base.scaled_dot_product_attention)
    x = mx.random.normal((1, 1, 8, 64), key=mx.random.key(0)).astype(mx.bfloat16)
    cache = QuantizedKVCache(group_size=64, bits=4)
    for length in (8, 5, 7, 8):
        keys = values = tuple(part[:, :, :length] for part in mx.quantize(x, bits=4))
        out = patched(mx.array(x[:, :, :1]), keys, values, cache, scale=0.125, mask=None)
        mx.eval(out)
    assert [(w.kv_len, route.hits, route.fallbacks) for w, route in router.launches.items()] == [
        (8, 2, 0), (5, 0, 1), (7, 0, 1),
    ]  # fmt: skip
    assert (
        "Unable to build" in router.launches[replace(next(iter(router.launches)), kv_len=5)].reason
    )


@pytest.mark.parametrize("change", ["sinks", "two parts"])
def test_what_is_no_affine_cache_goes_to_stock(change: str) -> None:
    asked = call()
    if change == "sinks":
        asked["sinks"] = mx.zeros((4,), mx.bfloat16)
    else:
        asked["keys"] = asked["keys"][:2]
    with pytest.raises((ValueError, TypeError)) as stock:
        mx.eval(base.scaled_dot_product_attention(**fresh(asked)))
    enable()
    with pytest.raises((ValueError, TypeError)) as ours:
        mx.eval(base.scaled_dot_product_attention(**fresh(asked)))
    assert str(ours.value) == str(stock.value)
    assert len(mlx_lm_openevolve.get_optimization_info()["fallbacks"]) == 1


def unable(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("[quantized_matmul] No implementation for problem shape")


def test_where_stock_cannot_run_dequantised_keys_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on MLX's CUDA backend, where mlx-lm's own attention raises."""
    asked = call()
    monkeypatch.setattr(base, "quantized_scaled_dot_product_attention", unable)
    quantized._tried.cache_clear()
    try:
        enable()
        for q_len, mask in ((1, None), (5, "causal"), (5, mx.ones((5, 19), mx.bool_))):
            queries = mx.random.normal((1, 4, q_len, 64), key=mx.random.key(9))
            some = asked | {"queries": queries.astype(mx.bfloat16), "mask": mask}
            out = base.scaled_dot_product_attention(**some)
            assert off(out, exact(some)) < 0.01
    finally:
        quantized._tried.cache_clear()
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    assert sum(found["fallbacks"] for found in rows) == 3


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_generates_with_a_quantised_cache(
    proven: Kernel, tiny_model: qwen3.Model, bits: int
) -> None:
    """generate_step(kv_bits=...) decodes on the kernel; logits stay within what the activations'
    rounding explains."""

    def run() -> tuple[list[int], list[mx.array]]:
        steps = generate_step(
            mx.arange(1, 20) % 128,
            tiny_model,
            max_tokens=8,
            kv_bits=bits,
            kv_group_size=32,
            quantized_kv_start=0,
        )
        tokens, logits = zip(*steps, strict=True)
        return [int(token) for token in tokens], list(logits)

    _, want = run()
    enable()
    _, found = run()
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"]
    served = {slug: found for slug, found in rows.items() if found["hits"]}
    assert served
    assert all(f"kv{bits}g32" in slug for slug in served)
    assert off(found[0], want[0]) < 0.02


def test_one_tuple_for_keys_and_values_is_read_as_two(proven: Kernel) -> None:
    arguments = call()
    arguments["values"] = arguments["keys"]
    want = exact(arguments)
    enable()
    try:
        out = base.scaled_dot_product_attention(**fresh(arguments))
    finally:
        mlx_lm_openevolve.disable_optimizations()
    assert off(out, want) < 1e-2
