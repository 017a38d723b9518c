"""The evaluator: runs candidates in worker processes, on the host first and then on the GPU.

Host checks run side by side; the GPU has one worker and one owner at a time. Without a GPU
nothing is timed: the counters of the host check are all that is known.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mlx_lm_openevolve.errors import MachineError, OpenEvolveError
from mlx_lm_openevolve.processes import Worker

from . import events
from .archive import Archive
from .candidate import Candidate
from .evaluation import (
    MACHINE,
    TIMEOUT,
    Evaluation,
    HostCheck,
    Measurement,
    Request,
    WorkloadResult,
)
from .pool import WORKER, Pool, answer_of

__all__ = ["LocalEvaluator"]

# Ends of a worker that are put down to the candidate.
_FATAL = ("hang", "memory", "crash")


class LocalEvaluator:
    """The workers of a run on this machine; use it as a context. host=False leaves out the checks
    on the host, which another machine made."""

    def __init__(self, archive: Archive, *, host: bool = True) -> None:
        work = archive.config.work
        self._host = host
        self._pool = Pool(work.jobs, work.memory)
        self._gpu = Worker(WORKER, memory=work.memory)
        self._backend = archive.config.backend
        self._seconds, self._check_seconds = work.seconds, work.check_seconds

    def __enter__(self) -> LocalEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._gpu.close()

    def baselines(self, archive: Archive) -> Iterator[events.Baseline]:
        """SDPA's time and floor for each workload that has none yet, none without a GPU. Raises
        OpenEvolveError where a workload cannot be run here at all, and MachineError."""
        for slug in archive.slugs:
            if slug in archive.baseline or not archive.timed:
                continue
            request = Request("baseline", slug, archive.config.seed, backend=self._backend)
            answer = answer_of(self._gpu, request.to_json(), self._seconds)
            if answer.get("cause") in (MACHINE, TIMEOUT):  # it was busy, or full
                raise _machine_error(archive, answer["finding"])
            if answer.get("cause"):
                raise OpenEvolveError(
                    f"{slug} cannot be measured here ({answer['finding']}); leave it out"
                )
            yield events.Baseline.from_json(answer)

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterator[tuple[int, Evaluation]]:
        """What came of each candidate, with its number."""
        for candidate, checks in self.check(archive, batch):
            yield candidate.number, self.measure(archive, candidate, checks)

    def check(
        self, archive: Archive, batch: Sequence[Candidate]
    ) -> Iterator[tuple[Candidate, dict[str, HostCheck]]]:
        """Host checks of each candidate of a batch, by workload. Raises MachineError."""
        asked = [(candidate, slug) for candidate in batch for slug in candidate.workloads]
        if self._host:
            seed = archive.config.seed
            requests = [
                Request("check", slug, seed, archive.load(c.kernel), c.params) for c, slug in asked
            ]
            answers = self._pool.map([r.to_json() for r in requests], self._check_seconds)
            checks = [HostCheck.from_json(answer) for answer in answers]
        else:
            checks = [HostCheck(host="absent: not asked for")] * len(asked)
        by_number: dict[int, dict[str, HostCheck]] = {c.number: {} for c in batch}
        for (candidate, slug), check in zip(asked, checks, strict=True):
            _refuse_machine(archive, check)
            by_number[candidate.number][slug] = check
        for candidate in batch:
            yield candidate, by_number[candidate.number]

    def measure(
        self, archive: Archive, candidate: Candidate, checks: Mapping[str, HostCheck]
    ) -> Evaluation:
        """What came of a candidate with these host checks, by workload: it is measured where they
        are all well. Raises MachineError."""
        spent = sum(check.seconds for check in checks.values())
        for slug, check in checks.items():
            if check.cause:
                return Evaluation(check.cause, f"{slug}: {check.finding}", check=spent)
        if not checks:
            return Evaluation("static", "the kernel applies to no workload of this run")
        host = next((check.host for check in checks.values() if check.host), "")
        results: dict[str, WorkloadResult] = {}
        cause = finding = ""
        start = time.monotonic()
        for slug, check in checks.items():
            measured = self._measure(archive, candidate, slug, check)
            if measured.cause:
                cause, finding = measured.cause, f"{slug}: {measured.finding}"
                if cause in _FATAL:
                    key = f"{candidate.kernel} {slug} {measured.params or candidate.params}"
                    archive.add(events.EndedWorker(key, measured.finding))
                break
            results[slug] = WorkloadResult.from_json({**vars(measured), "counters": check.counters})
        took = round(time.monotonic() - start, 3)
        return Evaluation(cause, finding, results, spent, took, host)

    def _measure(
        self, archive: Archive, candidate: Candidate, slug: str, check: HostCheck
    ) -> Measurement:
        if not archive.timed:
            if check.host or not check.counters:
                return Measurement("backend", check.host or "nothing was counted")
            return Measurement(params=check.params, margin=check.margin, error=check.error)
        baseline = archive.baseline.get(slug)
        request = Request(
            "measure",
            slug,
            archive.config.seed,
            archive.load(candidate.kernel),
            candidate.params,
            self._backend,
            best=archive.best[slug].result.seconds if slug in archive.best else 0.0,
            seconds=archive.config.work.measure_seconds,
            sdpa_seconds=baseline.seconds if baseline is not None else 0.0,
        )
        for _ in range(2):  # where the machine was busy, a fresh worker has better luck
            measured = Measurement.from_json(answer_of(self._gpu, request.to_json(), self._seconds))
            if measured.cause != TIMEOUT:
                break
        else:
            measured = replace(measured, cause="hang")
        _refuse_machine(archive, measured)
        return measured


def _refuse_machine(archive: Archive, answer: HostCheck | Measurement) -> None:
    """Raise MachineError where the machine failed: the candidate is still pending then."""
    if answer.cause == MACHINE:
        raise _machine_error(archive, answer.finding)


def _machine_error(archive: Archive, finding: str) -> MachineError:
    return MachineError(
        f"{finding}; nothing before this is lost, go on later with --resume {archive.folder}"
    )
