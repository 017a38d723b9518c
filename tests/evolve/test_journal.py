"""The journal's events: what is written is read back, and so is what earlier releases wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evolve_kernels
import pytest

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import events
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Config
from mlx_lm_openevolve.evolve.evaluation import (
    Evaluation,
    HostCheck,
    Measurement,
    Request,
    WorkloadResult,
)
from mlx_lm_openevolve.evolve.journal import Journal, read

SLUG = evolve_kernels.DECODE.slug
CONFIG = Config("host", (evolve_kernels.DECODE,), (1.0,))
RESULT = WorkloadResult({"step": 2}, 1e-5, 1.5, 1.4, 1.6, 0.01, 0.5, 1e-3, {"flops": 3})
EVALUATION = Evaluation("wrong", "why", {SLUG: RESULT}, 0.5, 0.25, "absent")
EVENTS = [
    events.Started(CONFIG, {"name": "chip", "memory": 0}),
    events.MeasuredOn({"name": "other"}),
    events.Resumed((1, 2)),
    events.Baseline(SLUG, 4e-5, 1e-5, "memory", 1e12, 4e-6),
    events.Proposed(Candidate(3, "llm", "", ("a", "b"), {"x": 0}, error="x", cost={"money": 0.5})),
    events.Evaluated(3, EVALUATION),
    events.EndedWorker("0123456789ab x {}", "it hung"),
    events.Profiled("0123456789ab", SLUG, {"step": 2}, {"dram": 0.8}),
    events.Unprofiled("no ncu"),
    events.Published(SLUG, "0123456789ab", {"step": 2}, 1.5, "host", False, "no", False, 1.1, 1, 2),
    events.Published(SLUG, "0123456789ab", reason="pending: too slow"),
    events.Ended("3 candidates are done"),
]


def test_every_event_reads_back(tmp_path: Path) -> None:
    assert {type(event) for event in EVENTS} == set(events.Event.__subclasses__())
    journal = Journal.create(tmp_path / "run")
    written = [journal.append(event) for event in EVENTS]
    journal.close()
    assert list(read(journal.path)) == written == journal.events
    assert [events.parse({**e.to_json(), "t": 0.0}) for e in written] == EVENTS
    again = Journal.open(tmp_path / "run", write=False)
    assert again.elapsed == max(event.t for event in written)


@pytest.mark.parametrize(
    "record",
    [
        Request("measure", SLUG, 1, evolve_kernels.kernel(), {"step": 2}, "cuda", 1e-5, 0.6, 2e-5),
        Request("baseline", SLUG, 0),
        HostCheck("wrong", "why", "", 0.5, {"step": 1}, 0.2, 0.1, {"flops": 1}),
        Measurement("", "", {"step": 1}, 1e-5, 1.5, 1.4, 1.6, 0.1, 0.5, 1e-3, 20, True),
        EVALUATION,
    ],
)
def test_records_pass_a_pipe(record: Any) -> None:
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record


# Lines of runs that are kept as evidence, shortened.
BEFORE = [
    {"event": "start", "t": 0.0, "config": {
        "backend": "cuda", "workloads": [SLUG], "weights": [1.0], "proposer": "mailbox",
        "suite": SLUG, "seed": 0,
        "budget": {"candidates": 27, "seconds": 0.0, "tokens": 0, "money": 0.0},
        "of a newer release": 1,
        "search": {"islands": 3, "explore": -1.0, "batch": 2, "tune_after": 6, "saturated": 1.1,
                   "targets": []},
        "work": {"jobs": 2, "seconds": 120.0, "memory": 8589934592, "measure_seconds": 0.6},
        "llm": {"models": [], "context": 32768, "answer": 8192, "timeout": 300.0, "retries": 4,
                "failures": 5}}, "device": {"backend": "cuda", "name": "GPU"}, "format": 1},
    {"event": "baseline", "t": 0.1, "workload": SLUG, "seconds": 4e-5, "floor": 1e-5,
     "bound": "memory", "bandwidth": 2e12, "launch": 3e-6},
    {"event": "proposed", "t": 0.2, "candidate": {
        "number": 1, "proposer": "seed", "kernel": "075e795e3d00", "workloads": [SLUG],
        "note": "a seed with its defaults", "repairs": 0, "island": 0}},
    {"event": "done", "t": 0.5, "number": 1, "done": {"results": {SLUG: {
        "params": {"step": 1}, "seconds": 2e-5, "ratio": 2.0, "low": 1.9, "high": 2.1,
        "spread": 0.01, "margin": 0.5, "error": 0.001, "modelled": False, "counters": {},
        "profile": {}}}, "check": 0.3}},
    {"event": "of a newer release", "t": 0.6, "x": 1},
    {"event": "published", "t": 0.7, "workload": SLUG, "kernel": "075e795e3d00",
     "params": {"step": 1}, "searched": 2.0, "device": "gpu", "accepted": True, "correct": True,
     "reason": "accepted", "ratio": 1.8, "low": 1.7, "high": 1.9, "of a newer release": 3},
]  # fmt: skip


@pytest.fixture
def before(tmp_path: Path) -> Path:
    (tmp_path / "before").mkdir()
    lines = "".join(json.dumps(line) + "\n" for line in BEFORE)
    (tmp_path / "before" / "events.jsonl").write_text(lines)
    return tmp_path / "before"


def test_a_run_kept_from_before_opens(before: Path) -> None:
    archive = Archive.open(before, write=False)
    assert (archive.config.work.check_seconds, archive.device["name"]) == (30.0, "GPU")
    assert archive.baseline[SLUG].bandwidth == 2e12
    best = archive.best[SLUG]
    assert (best.kernel, best.result.ratio, best.number) == ("075e795e3d00", 2.0, 1)
    assert archive.fitness()[0] == pytest.approx(2.0)
    assert [(e.accepted, e.correct, e.ratio) for e in archive.published] == [(True, True, 1.8)]
    assert archive.elapsed == 0.7


def test_a_run_of_modelled_times_is_refused_in_one_line(before: Path) -> None:
    path = before / "events.jsonl"
    path.write_text(
        path.read_text().replace('"launch": 3e-06', '"launch": 3e-06, "modelled": true')
    )
    with pytest.raises(UsageError, match=r"events.jsonl:2: .*modelled.* begin a new run$"):
        Archive.open(before, write=False)
