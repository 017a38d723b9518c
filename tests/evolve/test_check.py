"""The host check of the search: a cheating corpus, each caught by the check meant for it."""

from __future__ import annotations

from dataclasses import replace

import evolve_kernels
import mlx.core as mx
import numpy as np
import pytest
from evolve_kernels import CAUSAL, CHEATS, DECODE, MASKED, THREADGROUP_MEMORY
from samples import needs_clang, shipped_in_metal

from mlx_lm_openevolve.evolve import check
from mlx_lm_openevolve.evolve.evaluation import WorkloadResult
from mlx_lm_openevolve.metalhost import Counters
from mlx_lm_openevolve.ops.attention.reference.inputs import case
from mlx_lm_openevolve.ops.attention.reference.question import AttentionQuestion
from mlx_lm_openevolve.ops.attention.workload import Bucket

pytestmark = needs_clang


@pytest.mark.parametrize("workload", [CAUSAL, DECODE, MASKED])
def test_a_right_kernel_passes_and_is_counted(workload: Bucket) -> None:
    kernel = evolve_kernels.kernel()
    found = check.check(kernel, {"step": 1}, workload, seed=0)
    assert (found.cause, found.finding, found.host) == ("", "", "")
    assert 0 < found.margin <= 1
    counters = found.counters
    assert counters["device_read_bytes"] > counters["compulsory_read_bytes"] > 0
    assert counters["launches"] == 1
    assert counters["moved_bytes"] > counters["least_bytes"] > 0


def test_counters_of_a_calls_launches_come_together() -> None:
    one = Counters(read_lines=2, write_lines=2, read_useful_bytes=256, barriers=1)
    question = AttentionQuestion(case("needles", DECODE.largest(), 0))
    found = check.counted(question, [one, one])
    assert (found["barriers"], found["launches"]) == (2, 2)
    assert found["line_efficiency"] == 0.5  # 512 of 8 lines of 128 bytes
    assert found["moved_bytes"] == 8 * 128
    assert found["least_bytes"] == DECODE.moved_bytes()


@pytest.mark.parametrize("mask", ["bool", "additive"])
def test_the_least_bytes_are_those_of_keys_that_a_row_sees(mask: str) -> None:
    w = replace(DECODE, mask=mask, batch=2).exact(kv_len=100)
    counted = []
    for form in ("ends", "padding"):
        question = AttentionQuestion(case("needles", w, 3, form=form, axes="BL"))
        bias = np.array(question.inputs.mask.astype(mx.float32))
        seen = (bias > 0 if mask == "bool" else bias > -1e30).any(axis=(1, 2))  # [B, N]
        assert 0 < seen.sum() < seen.size
        row = w.kv_heads * (w.head_dim + w.v_head_dim) * w.element_bytes
        rest = w.rows * (w.head_dim + w.v_head_dim) * w.element_bytes
        expected = int(seen.sum()) * row * (w.batch // seen.shape[0]) + rest
        expected += question.inputs.mask.nbytes
        assert question.least_bytes() == expected
        counted.append(expected)
    assert counted[0] < counted[1] <= w.moved_bytes()


def test_a_kernel_that_reads_its_keys_twice_moves_more_bytes() -> None:
    """And is ranked below."""
    summed = "  score = simd_sum(score)"
    again = (
        "score += 1e-30f * float(k[(kv_len - 1 - j) * keys_strides[2] + lane * keys_strides[3]]);\n"
    )
    twice = evolve_kernels.BODY.replace(summed, again + summed)
    found = [
        check.check(evolve_kernels.kernel(body), {"step": 1}, DECODE, seed=0).counters
        for body in (evolve_kernels.BODY, twice)
    ]
    results = [WorkloadResult({"step": 1}, counters=counters) for counters in found]
    assert found[0]["least_bytes"] == found[1]["least_bytes"]
    assert found[0]["moved_bytes"] < found[1]["moved_bytes"]
    assert results[0].score > results[1].score
    assert results[0].cost < results[1].cost


def test_the_corpus_is_large_enough() -> None:
    assert len(CHEATS) >= 20


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_caught_by_the_check_meant_for_it(name: str) -> None:
    kernel, workload, cause, words = CHEATS[name]
    found = check.check(kernel, {"step": 1}, workload, seed=0)
    assert found.cause == cause, found.finding
    assert words in found.finding
    assert found.finding


def test_params_above_metals_threadgroup_memory_are_refused() -> None:
    kernel = evolve_kernels.kernel(THREADGROUP_MEMORY)
    most = check.check(kernel, {"step": 1}, DECODE, seed=0)
    assert (most.cause, most.finding) == ("", "")
    assert most.counters["threadgroup_memory"] == 32768
    above = check.check(kernel, {"step": 2}, DECODE, seed=0)
    assert above.cause == "threadgroup-memory"
    assert "32784 bytes" in above.finding
    assert "the limit is 32768" in above.finding


def test_a_shipped_kernels_params_are_refused_at_the_head_dim_that_makes_them_too_large() -> None:
    tiles = next(k for k in shipped_in_metal() if k.meta["name"] == "tiles")
    wide = Bucket(1, 2, 1, 32, 64, 256, 256, "float32", "causal")
    params = {"tiles": 1, "row_groups": 4, "keys": 32, "key_groups": 1, "splits": 1}
    found = check.check(tiles, params, wide, seed=0)
    assert found.cause == "threadgroup-memory", found.finding
    assert "the limit is 32768" in found.finding
    narrow = replace(wide, head_dim=64, v_head_dim=64)
    assert check.check(tiles, params, narrow, seed=0).cause == ""
