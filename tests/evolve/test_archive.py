"""The archive: events on disk, their replay, what a kill leaves, and the map of elites."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import evolve_kernels
import pytest

from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.evolve import events, loop, report
from mlx_lm_openevolve.evolve.archive import MAX_DEATHS, Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Config, Search
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult, geomean
from mlx_lm_openevolve.kernels.kernel import Kernel

SLUGS = (evolve_kernels.DECODE.slug, evolve_kernels.MASKED.slug)


def config(**search: object) -> Config:
    return Config(
        "metal",
        (evolve_kernels.DECODE, evolve_kernels.MASKED),
        (0.5, 0.5),
        search=Search(**search),  # type: ignore[arg-type]
    )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive.create(tmp_path / "run", config(), {"slug": "host"})
    yield made  # type: ignore[misc]
    made.close()


def result(ratio: float, **more: float) -> WorkloadResult:
    return WorkloadResult({"step": 1}, 1e-5 / ratio, ratio, ratio * 0.99, ratio * 1.01, **more)


def try_one(
    archive: Archive, kernel: Kernel, ratios: dict[str, float], parent: str = "", island: int = 0
) -> int:
    archive.registry.add(kernel)
    number = archive.next_number()
    candidate = Candidate(
        number, "llm", kernel.id, tuple(ratios), {"step": 1}, parent, island=island
    )
    archive.add(events.Proposed(candidate))
    done = Evaluation(results={slug: result(ratio) for slug, ratio in ratios.items()})
    archive.add(events.Evaluated(number, done))
    return number


def state(archive: Archive) -> object:
    return (
        archive.candidates,
        archive.done,
        archive.best,
        archive.cells,
        archive.history,
        dict(archive.kernel_best),
        archive.worker_deaths,
        archive.banned,
    )


def other(note: str) -> Kernel:
    return evolve_kernels.kernel(evolve_kernels.BODY.replace("32 * e", f"32 * e + 0 * {note}"))


def test_a_replay_gives_the_same_archive(archive: Archive) -> None:
    try_one(archive, evolve_kernels.kernel(), {SLUGS[0]: 1.2, SLUGS[1]: 0.7})
    try_one(archive, other("1"), {SLUGS[0]: 1.1, SLUGS[1]: 1.4}, evolve_kernels.kernel().id)
    archive.add(events.EndedWorker(f"{other('1').id} x", "it hung"))
    before = state(archive)
    archive.close()
    again = Archive.open(archive.folder)
    assert state(again) == before
    again.close()


def test_half_a_last_line_is_cut_and_an_earlier_one_is_an_error(archive: Archive) -> None:
    try_one(archive, evolve_kernels.kernel(), {SLUGS[0]: 1.2})
    archive.close()
    path = archive.folder / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"done","num')
    again = Archive.open(archive.folder)
    assert len(again.done) == 1
    again.add(events.Resumed())
    again.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()][-1] == "resume"
    path.write_bytes(whole.replace(b'"proposed"', b'"propo', 1))
    with pytest.raises(UsageError, match=r"events.jsonl:2: damaged"):
        Archive.open(archive.folder)


def test_a_run_has_one_owner_and_many_readers(archive: Archive) -> None:
    with pytest.raises(UsageError, match="another process"):
        Archive.open(archive.folder)
    assert Archive.open(archive.folder, write=False).done == {}
    with pytest.raises(UsageError, match="--resume"):
        Archive.create(archive.folder, config(), {})


def test_a_full_disk_loses_nothing_that_was_written(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_one(archive, evolve_kernels.kernel(), {SLUGS[0]: 1.2})
    size = (archive.folder / "events.jsonl").stat().st_size
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OpenEvolveError, match=r"No space left.*--resume"):
        archive.add(events.Ended("x"))
    monkeypatch.setattr(os, "fsync", real)
    assert (archive.folder / "events.jsonl").stat().st_size == size
    assert archive.ended == ""
    archive.close()
    assert len(Archive.open(archive.folder, write=False).done) == 1


def test_the_run_counts_the_best_kernel_of_each_workload_and_sdpa_elsewhere(
    archive: Archive,
) -> None:
    assert archive.fitness() == (1.0, 1.0, 1.0)
    try_one(archive, evolve_kernels.kernel(), {SLUGS[0]: 4.0, SLUGS[1]: 0.5})
    ratio, low, high = archive.fitness()
    assert ratio == pytest.approx(2.0)  # 4 and SDPA's own 1
    assert low < ratio < high
    try_one(archive, other("1"), {SLUGS[0]: 1.0, SLUGS[1]: 4.0})
    assert archive.fitness()[0] == pytest.approx(4.0)
    assert archive.kernel_fitness(other("1").id) == pytest.approx(2.0)
    assert (archive.fast_p(1.0), archive.fast_p(5.0)) == (1.0, 0.0)


def test_without_a_gpu_bytes_rank_and_no_kernel_is_held_against_sdpa(tmp_path: Path) -> None:
    workloads = (evolve_kernels.DECODE, evolve_kernels.MASKED)
    archive = Archive.create(tmp_path / "host", Config("host", workloads, (0.5, 0.5)), {})
    assert archive.standing() == "nothing right yet"
    few, many = evolve_kernels.kernel(), other("1")
    for number, (kernel, moved) in enumerate(((many, 400), (few, 200)), 1):
        archive.registry.add(kernel)
        archive.add(events.Proposed(Candidate(number, "llm", kernel.id, SLUGS[:1], {"step": 1})))
        counters = {"moved_bytes": moved, "least_bytes": 100}
        done = Evaluation(results={SLUGS[0]: WorkloadResult({"step": 1}, counters=counters)})
        archive.add(events.Evaluated(number, done))
    assert archive.best[SLUGS[0]].kernel == few.id
    assert archive.elites()[0] == few.id
    assert archive.cost(few.id, SLUGS[0], {"step": 1}) == 200
    assert archive.kernel_fitness(many.id) == pytest.approx(0.25), "of the one workload it ran on"
    assert [step["ratio"] for step in archive.history] == pytest.approx([0.25, 0.5])
    assert archive.standing() == "2.00x the least bytes"
    archive.close()
    page = report._workloads(archive)
    assert "200" in page
    assert "spread" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"counters": {}}, r"events.jsonl:3: damaged: .* neither a time nor the bytes"),
        ({"counters": {"moved_bytes": 0, "least_bytes": 9}}, ":3: damaged: .* neither"),
        ({"counters": {"moved_bytes": 9}}, ":3: damaged: .* neither"),
        ({"counters": {"moved_bytes": "9", "least_bytes": 9}}, ":3: damaged: "),
        ({"counters": [1]}, ":3: damaged: "),
        (
            {"counters": {}, "seconds": 1e-5, "ratio": 1.1, "low": 1.0, "high": 1.2},
            "candidate 1 has a result without bytes",
        ),
        ({"ratio": 1.1}, ":3: damaged: a result is timed in part"),
        (None, "candidate 7 was never proposed"),
    ],
)
def test_a_damaged_result_of_the_host_is_one_clear_line(
    tmp_path: Path, changes: dict[str, Any] | None, words: str
) -> None:
    folder = tmp_path / "host"
    archive = Archive.create(folder, Config("host", (evolve_kernels.DECODE,), (1.0,)), {})
    kernel = evolve_kernels.kernel()
    archive.registry.add(kernel)
    archive.add(events.Proposed(Candidate(1, "llm", kernel.id, SLUGS[:1], {"step": 1})))
    counters = {"moved_bytes": 200, "least_bytes": 100}
    done = Evaluation(results={SLUGS[0]: WorkloadResult({"step": 1}, counters=counters)})
    archive.add(events.Evaluated(1, done))
    archive.close()
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    if changes is None:
        lines[2]["number"] = 7
    else:
        lines[2]["done"]["results"][SLUGS[0]].update(changes)
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):  # it is not left locked
        with pytest.raises(UsageError, match=words):
            Archive.open(folder)


def test_intervals_of_a_mean_shrink_as_independent_ones_do() -> None:
    one = result(2.0)
    _, low, high = geomean([one], [1.0])
    assert (low, high) == (pytest.approx(one.low, rel=1e-3), pytest.approx(one.high, rel=1e-3))
    _, low4, high4 = geomean([one] * 4, [1.0] * 4)
    assert (high4 / low4) == pytest.approx((high / low) ** 0.5, rel=1e-3)


def test_a_cell_keeps_its_fittest_and_islands_keep_their_own(archive: Archive) -> None:
    seed = evolve_kernels.kernel()
    try_one(archive, seed, {SLUGS[0]: 1.2, SLUGS[1]: 1.2})
    assert all(seed.id in cells.values() for cells in archive.cells)  # seeds are everyone's
    better = other("1")
    try_one(archive, better, {SLUGS[0]: 1.21, SLUGS[1]: 1.21}, seed.id, island=1)
    assert archive.cell(better.id) == archive.cell(seed.id)
    assert [better.id in cells.values() for cells in archive.cells] == [False, True, False]
    assert seed.id not in archive.cells[1].values()
    apart = other("2")
    try_one(archive, apart, {SLUGS[0]: 2.6, SLUGS[1]: 2.6}, seed.id, island=1)
    assert set(archive.cells[1].values()) == {better.id, apart.id}
    assert archive.elites() == [apart.id, better.id, seed.id]


def test_what_differs_in_comments_alone_is_a_duplicate(archive: Archive) -> None:
    first = try_one(archive, evolve_kernels.kernel(), {SLUGS[0]: 1.2})
    same = evolve_kernels.kernel("// said otherwise\n" + evolve_kernels.BODY)
    archive.registry.add(same)
    candidate = Candidate(0, "llm", same.id, (SLUGS[0],), {"step": 1})
    assert same.id != evolve_kernels.kernel().id
    assert archive.duplicate(candidate) == first
    changed = Candidate(0, "llm", same.id, (SLUGS[0],), {"step": 2})
    assert archive.duplicate(changed) == 0


def test_in_flight_at_two_deaths_is_given_up(archive: Archive) -> None:
    kernel = evolve_kernels.kernel()
    archive.registry.add(kernel)
    candidate = Candidate(1, "llm", kernel.id, (SLUGS[0],))
    archive.add(events.Proposed(candidate))
    for _ in range(MAX_DEATHS):
        batch = archive.pending()
        assert loop.refused(archive, batch) == []
        archive.add(events.Resumed((1,)))
    loop.refused(archive, archive.pending())
    assert archive.done[1].cause == "lost"


def test_a_kernel_that_ends_worker_after_worker_is_banned(archive: Archive) -> None:
    for step in range(3):
        assert not archive.banned
        archive.add(events.EndedWorker(f"0123456789ab x {step}", "crash"))
    assert archive.banned == {"0123456789ab"}


def test_exploring_rises_while_nothing_gets_better(archive: Archive) -> None:
    try_one(archive, evolve_kernels.kernel(), {SLUGS[0]: 1.2})
    before = archive.explore()
    for i in range(20):
        try_one(archive, other(str(i + 1)), {SLUGS[0]: 1.1})
    assert archive.explore() > before
    archive.config = config(explore=0.25)
    assert archive.explore() == 0.25
