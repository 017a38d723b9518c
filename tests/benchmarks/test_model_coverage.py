"""docs/coverage.md is what benchmarks/model_coverage.py makes of models.json, and no layout goes
without a kernel where one is promised."""

from __future__ import annotations

import random
import re
from typing import Any

import linear_coverage
import model_coverage
import pytest
from probe import on_host

from mlx_lm_openevolve.bench import model_configs
from mlx_lm_openevolve.evolve.suites import suites
from mlx_lm_openevolve.gate.host_check import check_on_host
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention.suites import LAYOUTS, LENGTHS
from mlx_lm_openevolve.ops.attention.workload import Bucket, Workload

KERNELS = Registry(tuned_root(), writable=False).kernels()
SOURCE = re.compile(
    r"unverified|[\w.-]+/[\w.-]+ [\w./-]+\.(py|yml|json|rs) ([0-9a-f]{12}|v\d+\.\d+\.\d+)"
)
# Rows that are not whole chunks of 16 bytes: OpenLLaMA-3B alone.
ODD = "32:32 of 100"
# Prompts that MLX does not fuse and no kernel takes: Gemma 4's layers over all keys, on Metal and
# on CUDA.
WIDEST = 512


def test_the_page_is_what_the_script_makes() -> None:
    assert model_coverage.PAGE.read_text() == model_coverage.page(), (
        "run python benchmarks/model_coverage.py"
    )


def test_every_model_says_where_its_numbers_were_read() -> None:
    rows = model_coverage.models()
    assert len({row["name"] for row in rows}) == len(rows) >= 60
    assert all(SOURCE.fullmatch(row["source"]) for row in rows)
    assert sum(row["source"] != "unverified" for row in rows) >= 60
    text = model_coverage.PAGE.read_text()
    for row in rows:
        cited = re.search(rf"^\| {re.escape(row['name'])} \|.*\| (.*) \|$", text, re.M)
        assert cited is not None
        assert (cited[1] == "unverified") == (row["source"] == "unverified")


def test_every_call_has_a_kernel_but_for_the_prompts_that_are_left_to_mlx() -> None:
    lacking = set()
    for (layout, kind, backend), row in model_coverage.table().items():
        for one in row:
            if one.kernel is None:
                fused = model_coverage.stock(one.bucket, backend) == "MLX's own, fused"
                assert kind == "prompt" or layout.name == ODD, one.bucket.slug
                if not fused:
                    lacking.add((layout.name if layout.name == ODD else layout.head_dim, backend))
    assert lacking == {
        (what, backend) for what in (ODD, WIDEST) for backend in model_coverage.BACKENDS
    }


@pytest.mark.parametrize("backend", model_coverage.BACKENDS)
@pytest.mark.parametrize("bits", [0, 4])
def test_every_group_up_to_128_has_a_kernel(backend: str, bits: int) -> None:
    for group in range(1, 129):
        for q_len in (1, 8):
            mask = "none" if q_len == 1 else "causal"
            bucket = Bucket(
                1, group, 1, q_len, 2048, 128, 128, "bfloat16", mask, False, bits, 64 * (bits > 0)
            )
            assert model_coverage.served(bucket, backend, KERNELS).kernel is not None, bucket.slug


def test_the_defaults_of_a_kernel_that_applies_are_among_its_values() -> None:
    failed = {
        (name, one.bucket.slug)
        for row in model_coverage.table().values()
        for one in row
        for name in one.failed
    }
    # gqa_quantized_mma asks for 256 splits of one KV head's 32k keys: 54 verdicts bear its id, so
    # it is mended when its text changes. gqa_quantized serves there until then.
    assert failed == {
        ("gqa_quantized_mma", "attention-b1-hq16-hkv1-lq1-lk32768-d128-v128-bfloat16-none-kv8g64")
    }


def test_the_suites_cover_the_most_used_models() -> None:
    known = suites()
    for q_heads, kv_heads, dim in LAYOUTS:
        for length in LENGTHS:
            shape = Workload(1, q_heads, kv_heads, 1, length, dim, dim, "bfloat16").bucket()
            padded = Workload(8, q_heads, kv_heads, 1, length, dim, dim, "bfloat16", "bool")
            step = Workload(1, q_heads, kv_heads, 8, length, dim, dim, "bfloat16", "causal")
            assert shape in known["decode"]
            assert padded.bucket() in known["batch"]
            assert step.bucket() in known["verify"]
    assert (LENGTHS[0], LENGTHS[-1]) == (256, 32768)


def test_the_products_of_a_model_are_those_of_its_config() -> None:
    """Two readings of the same models: models.json's, and the shapes of `bench`."""
    rows = {row["name"].partition("/")[2].lower(): row for row in model_coverage.models()}
    rows["llama-3.1-8b"] = rows["meta-llama-3.1-8b"]
    compared = 0
    for shape, config in model_configs.SHAPES.items():
        row = rows.get(shape)
        if row is None or not linear_coverage.matrices(row):
            continue
        found = linear_coverage.matrices(row)
        model = model_configs.build(shape, lazy=True)
        layer = model.layers[0]
        weights = {name: getattr(layer.self_attn, f"{name}_proj").weight.shape for name in "qkvo"}
        if "num_experts" not in config:
            weights["gate, up"] = layer.mlp.up_proj.weight.shape
            weights["down"] = layer.mlp.down_proj.weight.shape
        else:
            stack = layer.mlp.switch_mlp
            words = {"gate, up": stack.up_proj.weight.shape, "down": stack.down_proj.weight.shape}
            # Eight numbers in a word: experts of a shape are packed in four bits.
            sizes = {name: (n, 8 * k) for name, (_, n, k) in words.items()}
            assert linear_coverage.experts(row) == sizes
            one = linear_coverage.expert_bucket(row, sizes["down"], 1)
            assert (one.experts, one.rows) == (layer.mlp.num_experts, layer.mlp.top_k)
        assert found == {**weights, "vocabulary": (config["vocab_size"], config["hidden_size"])}
        compared += 1
    assert compared >= 7


def test_every_matrix_has_a_kernel_but_for_many_rows_on_metal() -> None:
    rows = model_coverage.models()
    shapes = linear_coverage.distinct(rows)
    assert sum(bool(linear_coverage.matrices(row)) for row in rows) >= 45
    lacking = {
        (backend, n)
        for backend in model_coverage.BACKENDS
        for n in linear_coverage.ROWS
        for shape in shapes
        if not model_coverage.serve_product(linear_coverage.bucket(shape, n), backend)[0]
    }
    assert lacking == {("metal", 32)}
    for shape in shapes:
        for backend in model_coverage.BACKENDS:
            for n in linear_coverage.ROWS:
                found = model_coverage.served(
                    linear_coverage.bucket(shape, n), backend, model_coverage.kernels()
                )
                assert found.failed == ()


def test_every_expert_has_a_kernel() -> None:
    rows = [row for row in model_coverage.models() if linear_coverage.experts(row)]
    assert len(rows) >= 8
    for row in rows:
        for shape in linear_coverage.experts(row).values():
            for sequences in linear_coverage.SEQUENCES:
                asked = linear_coverage.expert_bucket(row, shape, sequences)
                for backend in model_coverage.BACKENDS:
                    found = model_coverage.served(asked, backend, model_coverage.kernels())
                    assert found.kernel is not None
                    assert found.failed == ()


def _cases() -> list[Any]:
    """One bucket of every layout and kind of call on Metal; all but a drawn sample are slow."""
    found = {}
    for layout, kind in model_coverage.calls():
        asked = model_coverage.buckets(layout, kind)
        one = model_coverage.served(asked[min(2, len(asked) - 1)], "metal", KERNELS)
        if one.kernel is not None:
            found[f"{layout.name}-{kind}"] = one
    drawn = set(random.Random(19).sample(sorted(found), 2))
    return [
        pytest.param(one, id=name, marks=() if name in drawn else pytest.mark.slow)
        for name, one in found.items()
    ]


@on_host
@pytest.mark.parametrize("one", _cases())
def test_a_kernel_is_right_for_a_layout_that_the_page_lists(one: model_coverage.Served) -> None:
    check = check_on_host(one.kernel, dict(one.params), one.bucket)
    assert check["ok"], check["reason"]
