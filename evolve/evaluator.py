"""The evaluator: runs candidates in worker processes, on the host first and then on each GPU.

Host checks run side by side; a GPU has one owner at a time. Without a GPU nothing is timed: the
counters of the host check are all that is known. The first chip leads the search: what the others
say of a candidate is kept beside it.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from typing import Any

from mlx_lm_openevolve.errors import KernelError, MachineError, OpenEvolveError

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
from .pool import CHECK, Executor, Pool

__all__ = ["LocalEvaluator"]

# Ends of a worker that are put down to the candidate.
_FATAL = ("hang", "memory", "crash")


class LocalEvaluator:
    """The evaluator of a run that goes on here; use it as a context. executor: what runs its
    requests, by default workers of this machine, which are closed with the evaluator."""

    def __init__(self, archive: Archive, executor: Executor | None = None) -> None:
        work = archive.config.work
        self._executor = executor or Pool(work.jobs, work.memory)
        self._own = executor is None
        self._backend = archive.config.backend
        self._seconds, self._check_seconds = work.seconds, work.check_seconds
        self._ended: queue.SimpleQueue[events.EndedWorker] = queue.SimpleQueue()
        # A candidate waits for its requests: each of both has threads of its own.
        self._candidates = ThreadPoolExecutor(self._executor.jobs)
        self._requests = ThreadPoolExecutor(self._executor.jobs)

    def __enter__(self) -> LocalEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._executor.close()
        for threads in (self._candidates, self._requests):
            threads.shutdown(wait=self._own, cancel_futures=True)

    def baselines(self, archive: Archive) -> Iterator[events.Baseline]:
        """SDPA's time and floor for each workload that has none yet, none without a GPU. Raises
        OpenEvolveError where a workload cannot be run here at all, and MachineError."""
        for slug in archive.slugs:
            if slug in archive.baseline or not archive.timed:
                continue
            request = Request("baseline", slug, archive.config.seed, backend=self._backend)
            answer = self._executor.ask(self._executor.chips[0], request.to_json(), self._seconds)
            if answer.get("cause") in (MACHINE, TIMEOUT):  # it was busy, or full
                raise _machine_error(archive, answer["finding"])
            if answer.get("cause"):
                raise OpenEvolveError(
                    f"{slug} cannot be measured here ({answer['finding']}); leave it out"
                )
            yield events.Baseline.from_json(answer)

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterator[tuple[int, Evaluation]]:
        """What came of each candidate, with its number, as it becomes known. Raises
        MachineError."""
        checks = {
            c.number: {s: self._requests.submit(self._check, archive, c, s) for s in c.workloads}
            for c in batch
        }

        def evaluation(candidate: Candidate) -> Evaluation:
            known = {slug: check.result() for slug, check in checks[candidate.number].items()}
            return self._evaluation(archive, candidate, known)

        if self._executor.apart:
            running = {self._candidates.submit(evaluation, c): c for c in batch}
            for done in as_completed(running):
                yield running[done].number, self._on_record(archive, done.result())
            return
        wait([check for of in checks.values() for check in of.values()])
        for candidate in batch:
            yield candidate.number, self._on_record(archive, evaluation(candidate))

    def measure(
        self, archive: Archive, candidate: Candidate, checks: Mapping[str, HostCheck]
    ) -> Evaluation:
        """What came of a candidate with these host checks, by workload: it is measured where they
        are all well. Raises MachineError."""
        return self._on_record(archive, self._evaluation(archive, candidate, checks))

    def _check(self, archive: Archive, candidate: Candidate, slug: str) -> HostCheck:
        kernel, params = archive.load(candidate.kernel), candidate.params
        if not params:  # a machine that checks has other facts than the chip that measures
            with contextlib.suppress(KernelError):  # the worker says why there are none
                params = archive.defaults(kernel, slug)
        request = Request("check", slug, archive.config.seed, kernel, params)
        answer = self._executor.ask(CHECK, request.to_json(), self._check_seconds)
        return HostCheck.from_json(_well(archive, answer))

    def _evaluation(
        self, archive: Archive, candidate: Candidate, checks: Mapping[str, HostCheck]
    ) -> Evaluation:
        spent = sum(check.seconds for check in checks.values())
        for slug, check in checks.items():
            if check.cause:
                return Evaluation(check.cause, f"{slug}: {check.finding}", check=spent)
        if not checks:
            return Evaluation("static", "the kernel applies to no workload of this run")
        host = next((check.host for check in checks.values() if check.host), "")
        lead, *others = self._executor.chips
        asked = {
            chip: self._requests.submit(self._on_chip, archive, candidate, checks, chip)
            for chip in others
        }
        done = self._on_chip(archive, candidate, checks, lead)
        elsewhere = {chip: measured.result() for chip, measured in asked.items()}
        return replace(done, check=spent, host=host, elsewhere=elsewhere)

    def _on_chip(
        self, archive: Archive, candidate: Candidate, checks: Mapping[str, HostCheck], chip: str
    ) -> Evaluation:
        """What a chip says of a candidate. Raises MachineError where it is the one that leads."""
        results: dict[str, WorkloadResult] = {}
        cause = finding = ""
        start = time.monotonic()
        for slug, check in checks.items():
            measured = self._measure(archive, candidate, slug, check, chip)
            if measured.cause:
                cause, finding = measured.cause, f"{slug}: {measured.finding}"
                if cause in _FATAL:
                    key = f"{candidate.kernel} {slug} {measured.params or candidate.params}"
                    self._ended.put(events.EndedWorker(key, measured.finding))
                break
            results[slug] = WorkloadResult.from_json({**vars(measured), "counters": check.counters})
        return Evaluation(cause, finding, results, measure=round(time.monotonic() - start, 3))

    def _measure(
        self, archive: Archive, candidate: Candidate, slug: str, check: HostCheck, chip: str
    ) -> Measurement:
        if not archive.timed:
            if check.host or not check.counters:
                return Measurement("backend", check.host or "nothing was counted")
            return Measurement(params=check.params, margin=check.margin, error=check.error)
        leads = chip == self._executor.chips[0]
        baseline = archive.baseline.get(slug) if leads else None
        best = archive.best.get(slug) if leads else None
        request = Request(
            "measure",
            slug,
            archive.config.seed,
            archive.load(candidate.kernel),
            candidate.params or (check.params if leads else None),
            self._backend,
            best=best.result.seconds if best is not None else 0.0,
            seconds=archive.config.work.measure_seconds,
            sdpa_seconds=baseline.seconds if baseline is not None else 0.0,
        )
        for _ in range(2):  # where the machine was busy, a fresh worker has better luck
            answer = self._executor.ask(chip, request.to_json(), self._seconds)
            measured = Measurement.from_json(_well(archive, answer) if leads else answer)
            if measured.cause != TIMEOUT:
                break
        else:
            measured = replace(measured, cause="hang")
        return measured

    def _on_record(self, archive: Archive, done: Evaluation) -> Evaluation:
        """The evaluation, once the journal has which kernels ended their worker."""
        with contextlib.suppress(queue.Empty):
            while True:
                archive.add(self._ended.get_nowait())
        return done


def _well(archive: Archive, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer. Raises MachineError where the machine failed: the candidate is still pending."""
    if answer.get("cause") == MACHINE:
        raise _machine_error(archive, answer["finding"])
    return answer


def _machine_error(archive: Archive, finding: str) -> MachineError:
    return MachineError(
        f"{finding}; nothing before this is lost, go on later with --resume {archive.folder}"
    )
