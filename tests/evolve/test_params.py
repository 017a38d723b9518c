"""The proposer of params: what it tries, in which order. How well: benchmarks/test_replay.py."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import evolve_kernels
import pytest
from probe import on_host

from mlx_lm_openevolve.backends.metal import fitting
from mlx_lm_openevolve.evolve import events
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Config
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult
from mlx_lm_openevolve.evolve.propose.params import (
    ParamsProposer,
    headroom,
    launch_key,
    switches,
)
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention.workload import Bucket

LARGE = Bucket(1, 32, 8, 1, 4096, 128, 128, "bfloat16")


def shipped() -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in Registry(tuned_root(), writable=False).kernels()}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    config = Config("host", (evolve_kernels.DECODE, LARGE), (0.5, 0.5))
    made = Archive.create(tmp_path / "run", config, {})
    for slug in made.slugs:
        made.add(events.Baseline(slug, 4e-5, 1e-5, "memory"))
    yield made
    made.close()


def finish(archive: Archive, number: int, seconds: float) -> None:
    candidate = archive.candidates[number]
    ratio = 4e-5 / seconds
    found = {
        slug: WorkloadResult(candidate.params or {}, seconds, ratio, ratio, ratio)
        for slug in candidate.workloads
    }
    archive.add(events.Evaluated(number, Evaluation(results=found)))


def test_defaults_come_first_and_nothing_comes_twice(archive: Archive) -> None:
    kernel = evolve_kernels.kernel()
    tune = ParamsProposer([kernel])
    seen = []
    while made := tune.propose(archive, 2):
        for candidate in made:
            archive.add(events.Proposed(candidate))
            finish(archive, candidate.number, 3e-5)
            seen.append((candidate.kernel, candidate.workloads, tuple(candidate.params.items())))
        if len(seen) > 40:
            break
    assert len(set(seen)) == len(seen)
    first = archive.candidates[1]
    assert (first.note, first.params) == ("defaults", {"step": 1})
    # The knob is in the template, so each of its values counts, for the kernel and its switches.
    assert {dict(p)["step"] for _, _, p in seen} == {1, 2, 4}


def test_every_workload_has_a_row_before_any_is_tuned(tmp_path: Path) -> None:
    workloads = tuple(replace(LARGE, kv_len=n) for n in (256, 1024, 4096, 16384, 65536))
    config = Config("host", workloads, (0.6, 0.1, 0.1, 0.1, 0.1))
    tune = ParamsProposer([shipped()["gqa_decode"]])
    with contextlib.closing(Archive.create(tmp_path / "run", config, {})) as archive:
        for slug in archive.slugs:
            archive.add(events.Baseline(slug, 1e-4, 1e-5, "memory"))
        seen = []
        for _ in range(3):
            for candidate in tune.propose(archive, 3):
                archive.add(events.Proposed(candidate))
                finish(archive, candidate.number, 5e-5)
                seen.append((candidate.workloads[0], candidate.note))
    assert {slug for slug, _ in seen[:5]} == {w.slug for w in workloads}
    assert [note for _, note in seen[:5]] == ["defaults"] * 5
    assert "defaults" not in [note for _, note in seen[5:]]


def test_time_goes_where_there_is_most_to_win_and_none_to_the_saturated(archive: Archive) -> None:
    kernel = evolve_kernels.kernel(threadgroup=["32", "1", "1"])
    tune = ParamsProposer([kernel])
    archive.add(events.Baseline(LARGE.slug, 1.05e-5, 1e-5, "memory"))
    assert headroom(archive, LARGE.slug) == pytest.approx(1.05)
    slugs = set()
    for _ in range(3):
        for candidate in tune.propose(archive, 2):
            archive.add(events.Proposed(candidate))
            finish(archive, candidate.number, 3e-5)
            slugs |= set(candidate.workloads)
    assert slugs == {evolve_kernels.DECODE.slug}


def test_settings_that_launch_alike_are_one() -> None:
    kernel = shipped()["gqa_decode"]
    params = kernel.default_params(LARGE)
    assert launch_key(kernel, LARGE, params) == launch_key(kernel, LARGE, dict(params))
    assert launch_key(kernel, LARGE, {**params, "rows": 1}) != launch_key(kernel, LARGE, params)
    assert launch_key(kernel, LARGE, {**params, "splits": 7}) is None


@on_host
def test_settings_above_metals_threadgroup_memory_are_not_even_proposed(archive: Archive) -> None:
    kernel = evolve_kernels.kernel(evolve_kernels.THREADGROUP_MEMORY)
    proposed = []
    while (made := ParamsProposer([kernel]).propose(archive, 4)) and len(proposed) < 20:
        for candidate in made:
            archive.add(events.Proposed(candidate))
            finish(archive, candidate.number, 3e-5)
            proposed.append(candidate.params)
    assert proposed
    assert all(params == {"step": 1} for params in proposed)


@on_host
def test_most_settings_of_a_wide_float32_do_not_fit() -> None:
    kernel = shipped()["tiles"]
    wide = Bucket(1, 16, 8, 32, 1024, 256, 256, "float32", "causal")
    names = [param.name for param in kernel.params]
    settings = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(param.values for param in kernel.params))
    ]
    launched = [params for params in settings if launch_key(kernel, wide, params) is not None]
    fit = fitting(kernel, wide, launched)
    assert (len(launched), len(launched) - len(fit)) == (1632, 1296)
    # As the host check has it at either side of the limit.
    assert {"tiles": 1, "row_groups": 4, "keys": 8, "key_groups": 1, "splits": 1} in fit
    assert {"tiles": 1, "row_groups": 4, "keys": 32, "key_groups": 1, "splits": 1} not in fit


def test_a_switch_is_another_kernel_that_names_what_it_was_tuned_from() -> None:
    kernel = evolve_kernels.kernel()
    made = switches(kernel, "metal")
    assert [note for note, _ in made] == ["math_mode relaxed", "math_mode fast"]
    assert all(other.origin == f"tuned from {kernel.id}" for _, other in made)
    assert switches(kernel, "cuda") == []  # the same code, under another name
