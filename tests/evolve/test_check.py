"""The host check of the search: a cheating corpus, each caught by the check meant for it."""

from __future__ import annotations

import evolve_kernels
import pytest
from evolve_kernels import CAUSAL, CHEATS, DECODE, MASKED, THREADGROUP_MEMORY
from samples import shipped_in_metal

from mlx_lm_openevolve import metalhost
from mlx_lm_openevolve.evolve import check, measure
from mlx_lm_openevolve.ops.attention.workload import Bucket

pytestmark = pytest.mark.skipif(
    not metalhost.compiler_available()[0], reason="no clang for the host backend"
)


@pytest.mark.parametrize("workload", [CAUSAL, DECODE, MASKED])
def test_a_right_kernel_passes_and_is_counted(workload: Bucket) -> None:
    kernel = evolve_kernels.kernel()
    found = check.check(kernel, {"step": 1}, workload, seed=0)
    assert (found.cause, found.finding, found.host) == ("", "", "")
    assert 0 < found.margin <= 1
    (counters,) = found.points[0].counters
    assert counters["device_read_bytes"] > counters["compulsory_read_bytes"] > 0
    modelled = measure.modelled(kernel, {"step": 1}, workload, found.points)
    assert modelled.modelled
    assert modelled.seconds > 0


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
    assert {c["threadgroup_memory"] for p in most.points for c in p.counters} == {32768}
    above = check.check(kernel, {"step": 2}, DECODE, seed=0)
    assert above.cause == "threadgroup-memory"
    assert "32784 bytes" in above.finding
    assert "the limit is 32768" in above.finding


def test_a_shipped_kernels_params_are_refused_at_the_head_dim_that_makes_them_too_large() -> None:
    tiles = next(k for k in shipped_in_metal() if k.meta["name"] == "tiles")
    wide = Bucket(1, 16, 8, 32, 1024, 256, 256, "float32", "causal")
    params = {"tiles": 1, "row_groups": 4, "keys": 32, "key_groups": 1, "splits": 1}
    found = check.check(tiles, params, wide, seed=0)
    assert found.cause == "threadgroup-memory", found.finding
    assert "the limit is 32768" in found.finding
    assert check.check(tiles, {**params, "keys": 8}, wide, seed=0).cause == ""
