from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlx_lm_openevolve.errors import WorkloadError
from mlx_lm_openevolve.ops import DTYPES, next_pow2
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.reference import case, mass, sdpa
from mlx_lm_openevolve.ops.attention.workload import MASKS, Workload

DECODE = Workload(1, 32, 8, 1, 4000, 128, 128, "bfloat16")


def test_the_slug_of_a_bucket_is_the_documented_one() -> None:
    assert DECODE.bucket().slug == "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none"


def test_slug_and_parse_are_inverse_over_random_workloads() -> None:
    random.seed(0)
    for _ in range(500):
        heads = random.choice([1, 2, 8, 40])
        bits = random.choice([0, 0, 4, 8])
        workload = Workload(
            batch=random.randint(1, 300),
            q_heads=heads * random.randint(1, 16),
            kv_heads=heads,
            q_len=random.randint(1, 5000),
            kv_len=random.randint(1, 1 << 20),
            head_dim=random.choice([64, 128 if bits else 80, 512]),
            v_head_dim=random.choice([64, 128]),
            dtype=random.choice(DTYPES),
            mask=random.choice(MASKS),
            sinks=random.random() < 0.5,
            kv_bits=bits,
            kv_group=64 if bits else 0,
            latent=False,
        )
        assert Workload.parse(workload.slug) == workload
        assert workload.bucket().bucket() == workload.bucket()


@pytest.mark.parametrize(
    ("exact", "bucket"),
    [
        ((1, 1), (1, 1)),
        ((2, 2), (2, 8)),
        ((3, 8), (4, 8)),
        ((5, 9), (8, 32)),
        ((9, 33), (16, 2048)),
    ],
)
def test_batch_and_query_buckets(exact: tuple[int, int], bucket: tuple[int, int]) -> None:
    found = replace(DECODE, batch=exact[0], q_len=exact[1]).bucket()
    assert (found.batch, found.q_len) == bucket


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192)])
def test_kv_len_buckets_are_named_by_their_upper_end(n: int, power: int) -> None:
    assert next_pow2(n) == power
    assert replace(DECODE, kv_len=n).bucket().kv_len == power


def test_calls_of_one_launch_key_have_the_same_small_inputs() -> None:
    """MLX hands an input of fewer than 8 elements over in another address space on Metal: what was
    tried with a longer one says nothing of it."""

    def small(w: Workload) -> list[bool]:
        names = frozenset(OP.inputs(w.variant)) - {"length"}
        arrays = OP.bind(w, names, broadcast=True)(*OP.trial(w, ())[0])
        return [array is not None and array.size < 8 for array in arrays]

    seen = set()
    for batch, heads, kv_len, mask in itertools.product((1, 3), (1, 2), range(1, 18), MASKS):
        for more in ({}, {"kv_bits": 4, "kv_group": 64}, {"sinks": True}):
            w = Workload(batch, heads, heads, 1, kv_len, 64, 64, "float16", mask, **more)
            seen.add(tuple(small(w)))
            assert small(w.launch_key()) == small(w), w.slug
    assert len(seen) == 7  # scales, masks and sinks of either kind


def test_a_causal_mask_over_one_query_masks_nothing() -> None:
    assert replace(DECODE, mask="causal").bucket() == DECODE.bucket()
    assert replace(DECODE, mask="causal", q_len=2).bucket().mask == "causal"


@pytest.mark.parametrize(
    "slug",
    [
        "",
        "attention",
        "attention-b0-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none",
        "attention-b01-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none",
        "attention-b1-hq32-hkv5-lq1-lk4096-d128-v128-bfloat16-none",
        "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-float64-none",
        "attention-b1-hq32-hkv8-lq1-lk99999999999-d128-v128-bfloat16-none",
        "../../etc/passwd",
        "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none-kv4g0",
        "a" * 10_000,
    ],
)
def test_what_is_no_workload_is_refused_in_one_line(slug: str) -> None:
    with pytest.raises(WorkloadError) as error:
        Workload.parse(slug)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_stored_bytes_counts_keys_and_values_once() -> None:
    workload = replace(DECODE, kv_len=4096)
    assert workload.stored_bytes() == 2 * 8 * 4096 * 128 * 2
    packed = replace(workload, kv_bits=4, kv_group=64)
    assert packed.stored_bytes() == 2 * 8 * 4096 * 128 // 2 + 2 * 2 * (2 * 8 * 4096 * 128 // 64)
    latent = replace(workload, latent=True)
    assert latent.stored_bytes() == 8 * 4096 * 128 * 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": "convolution"},
        {"kv_bits": 4},
        {"kv_group": 64},
        {"kv_bits": 4, "kv_group": 64, "latent": True},
        {"latent": True, "v_head_dim": 64},
    ],
)
def test_fields_must_fit_each_other(wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError, match="workload: "):
        replace(DECODE, **wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 256, "v_head_dim": 256},
        {"head_dim": 192, "v_head_dim": 128, "q_heads": 4, "kv_heads": 1},
        {"kv_bits": 8, "kv_group": 64, "q_heads": 4, "kv_heads": 1, "kv_len": 1024},
        {"head_dim": 256, "v_head_dim": 256, "q_heads": 4, "kv_heads": 1, "dtype": "float32"},
    ],
    ids=str,
)
def test_scratch_bytes_hold_what_the_original_takes(changes: dict[str, Any]) -> None:
    """Measured on the CPU, where MLX's attention is never fused."""
    shape = Workload(1, 8, 2, 256, 2048, 128, 128, "bfloat16", "causal")
    w = replace(shape, **changes)
    asked = case("flat", w, 0)
    x = asked.upload()
    arguments = (x.queries, x.keys, x.values, asked.scale, x.mask, x.sinks)
    for call in (sdpa(w), lambda *given: mass(w, *given)):
        mx.eval(x.queries, x.keys, x.values)
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        out = call(*arguments)
        mx.eval(out)
        took = mx.get_peak_memory() - before - out.nbytes
        assert w.scratch_bytes() / 3 < took <= w.scratch_bytes()


def test_fused_attention_takes_no_scratch() -> None:
    prefill = Workload(1, 32, 8, 2048, 8192, 128, 128, "bfloat16", "causal")
    assert prefill.scratch_bytes() == 0
    wide = replace(prefill, head_dim=256, v_head_dim=256)
    assert wide.scratch_bytes() >= 32 * 2048 * 8192 * 2
    assert replace(wide, q_len=1, mask="none").scratch_bytes() == 0
    assert replace(prefill, q_len=8, q_heads=64).scratch_bytes() > 0  # 64 rows share a KV head
