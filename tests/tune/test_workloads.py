"""What a model will meet, traced: the very calls that a generation makes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models import base

import mlx_lm_openevolve
from mlx_lm_openevolve.bench import model_configs
from mlx_lm_openevolve.bench.options import BITS
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.ops.linear import Bucket
from mlx_lm_openevolve.tune.workloads import SHORTEST, workloads


def asked() -> set[str]:
    """Slugs of the workloads that were met since, of at least SHORTEST keys."""
    slugs = mlx_lm_openevolve.get_optimization_info()["workloads"]
    return {slug for slug in slugs if int(slug.split("-lk")[1].split("-")[0]) >= SHORTEST}


@pytest.mark.parametrize("kv_bits", [None, 4])
def test_a_generation_meets_what_was_traced(tiny_model: Any, kv_bits: int | None) -> None:
    uses = workloads([tiny_model], 128, kv_bits=kv_bits or 0)
    kv: dict[str, Any] = {}
    if kv_bits:
        kv = {"kv_bits": kv_bits, "kv_group_size": 64, "quantized_kv_start": 0}
    with mlx_lm_openevolve.optimizations(backend="host", gate="stored"):
        for length in (35, 70):
            for _ in generate_step(mx.arange(length), tiny_model, max_tokens=128 - length, **kv):
                pass
        assert asked() <= {use.bucket.slug for use in uses}
        decode = {slug for slug in asked() if "-lq1-" in slug}
    traced = {use.bucket.slug for use in uses if "-lq1-" in use.bucket.slug}
    cache = "-kv4g64" if kv_bits else "-none"
    assert decode == {s for s in traced if s.endswith(cache) and "-lk32-" not in s}


def test_speculation_and_batches_meet_what_was_traced(tiny_model: Any) -> None:
    uses = {u.bucket.slug for u in workloads([tiny_model, tiny_model], 128, batches=(1, 2))}
    with mlx_lm_openevolve.optimizations(backend="host", gate="stored"):
        for _ in speculative_generate_step(
            mx.arange(40), tiny_model, tiny_model, num_draft_tokens=3, max_tokens=60
        ):
            pass
        generator = BatchGenerator(tiny_model)
        generator.insert([[1] * 40, [2] * 50], [40, 40])
        while generator.next_generated():
            pass
        generator.close()
        # A draft model is one or two tokens behind: its steps are those of verifying, or of one.
        assert asked() <= uses
    assert any("-b2-" in slug and slug.endswith("-bool") for slug in uses)
    assert any("-lq8-" in slug for slug in uses)


def shortened(shape: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A shape with as many layers as it takes to meet all their kinds: each is traced alike."""
    full = model_configs.SHAPES[shape]
    fewer = {"num_hidden_layers": LAYERS}
    if "layer_types" in full:
        fewer["layer_types"] = full["layer_types"][:LAYERS]
    monkeypatch.setitem(model_configs.SHAPES, shape, {**full, **fewer})
    return model_configs.SHAPES[shape]


LAYERS = 6
TRACED = ("qwen3-0.6b", "gpt-oss-20b", "glm-4.7-flash")  # one of each kind of cache in CI


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=[] if shape in TRACED else pytest.mark.slow)
        for shape in model_configs.SHAPES
    ],
)
def test_a_trace_computes_nothing_and_leaves_mlx_lm_as_it_was(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened(shape, monkeypatch)
    original = base.scaled_dot_product_attention
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    uses = workloads([model_configs.build(shape, lazy=True)], 1 << 15, batches=(1, 8))
    assert base.scaled_dot_product_attention is original
    assert mx.get_peak_memory() - before < 8 << 20  # its smallest layer would be more
    layers = model_configs.SHAPES[shape]["num_hidden_layers"]
    ends = [1 << n for n in range(5, 16)]
    for batch in (1, 8):
        for end in ends:
            found = [
                u for u in uses if f"-b{batch}-" in u.bucket.slug and f"-lk{end}-" in u.bucket.slug
            ]
            assert any("-lq1-" in u.bucket.slug for u in found), (batch, end)
    full = max(u.calls for u in uses if "-lk32768-" in u.bucket.slug and "-lq1-" in u.bucket.slug)
    assert full <= layers


LINEAR = ("attention", "linear")
SAMPLE = (("qwen3-0.6b", "mxfp4"), ("qwen3-30b-a3b", "4"))


PACKED = [
    pytest.param(shape, bits, marks=[] if (shape, bits) in SAMPLE else pytest.mark.slow)
    for shape in ("llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b")
    for bits in BITS
]


@pytest.mark.parametrize(("shape", "bits"), PACKED)
def test_products_of_packed_weights_are_met_with_their_rows(
    shape: str, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {shape, "qwen3-0.6b"}:
        shortened(name, monkeypatch)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = model_configs.build(shape, bits, lazy=True)
    draft = model_configs.build("qwen3-0.6b", bits, lazy=True)
    uses = workloads([model, draft], 256, batches=(1, 3, 32), wanted=LINEAR)
    assert mx.get_peak_memory() - before < 8 << 20  # the weights are not read
    calls = {use.bucket: use.calls for use in uses if use.bucket.op == "linear"}
    config = model_configs.SHAPES[shape]
    packing = tuple(model_configs.BITS[bits].values())
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    # One sequence's, a batch's, what four tokens verify, the ends of prompts: as_linear is met too.
    for rows in (1, 4, 8, 32):
        assert Bucket(rows, 1, vocabulary, hidden, "bfloat16", *packing) in calls
    assert max(bucket.rows for bucket in calls if not bucket.experts) == 32
    # The most valuable by its calls is met in every layer, with every token.
    alone = {b: n for b, n in calls.items() if not b.experts}
    steps = {b: n for b, n in alone.items() if b.rows == 1 and b.k == hidden}
    head = steps[Bucket(1, 1, vocabulary, hidden, "bfloat16", *packing)]
    assert max(steps.values()) >= config["num_hidden_layers"] * head / 2
    if shape == "qwen3-30b-a3b":  # what mlx-lm packs routers in
        assert Bucket(1, 1, 128, hidden, "bfloat16", 8, 64) in calls
        # Eight experts for each token of a step: gate and up in every layer, then down.
        *packed, mode = packing
        for rows in (8, 32, 256):
            for n, k, products in ((768, hidden, 2), (hidden, 768, 1)):
                expert = Bucket(rows, 1, n, k, "bfloat16", *packed, f"{mode}_experts", 128)
                assert expert in calls
                if rows == 8:
                    assert calls[expert] >= products * config["num_hidden_layers"] * head / 2
        # What compiled layers make of gate and up, of steps alone.
        wide = {b: n for b, n in calls.items() if b.experts == 256}
        assert {(b.rows, b.n, b.k) for b in wide} == {(rows, 768, hidden) for rows in (16, 64)}
        assert max(wide.values()) >= config["num_hidden_layers"] * head / 2


def test_a_generation_meets_the_products_that_were_traced(tiny_model: Any) -> None:
    nn.quantize(tiny_model, group_size=64, bits=4)
    tiny_model.eval()
    uses = {u.bucket.slug for u in workloads([tiny_model], 128, batches=(1, 2), wanted=("linear",))}
    assert not {slug for slug in uses if not slug.startswith("linear-")}
    with mlx_lm_openevolve.optimizations(backend="host", gate="stored", ops=("linear",)):
        for _ in generate_step(mx.arange(50), tiny_model, max_tokens=8):
            pass
        generator = BatchGenerator(tiny_model)
        generator.insert([[1] * 40, [2] * 50], [4, 4])
        while generator.next_generated():
            pass
        generator.close()
        met = set(mlx_lm_openevolve.get_optimization_info()["workloads"])
    assert met
    assert met <= uses


def test_what_mlx_lm_cannot_run_is_said_in_one_line() -> None:
    model = model_configs.build("gemma-3-4b", lazy=True)
    with pytest.raises(UsageError, match="--kv-bits 4: NotImplementedError: Rotating"):
        workloads([model], 64, kv_bits=4)


def test_what_comes_with_every_step_of_one_sequence_is_told_apart(tiny_model: Any) -> None:
    nn.quantize(tiny_model, group_size=64, bits=4)
    tiny_model.eval()
    alone = {u.bucket.slug for u in workloads([tiny_model], 64, batches=(1, 4)) if u.alone}
    assert {slug for slug in alone if slug.startswith("attention")} == {
        f"attention-b1-hq4-hkv2-lq1-lk{end}-d64-v64-bfloat16-none" for end in (32, 64)
    }
    products = alone - {slug for slug in alone if slug.startswith("attention")}
    assert products
    assert all(slug.startswith("linear-m1-") for slug in products)
    # With a draft model a step verifies several tokens.
    speculating = workloads([tiny_model, tiny_model], 64, batches=(1, 16))
    rows = {u.bucket.rows for u in speculating if u.alone and u.bucket.op == "linear"}
    assert rows == {1, 4}
    assert not workloads([tiny_model], 64, batches=(4,))[0].alone
