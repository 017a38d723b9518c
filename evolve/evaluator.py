"""Lab: runs candidates in worker processes, on the host first and then on the GPU.

Host checks run side by side; the GPU has one worker and one owner at a time. Without a GPU the
time is modelled from the counters of the host check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_lm_openevolve.errors import MachineError, OpenEvolveError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.processes import Worker

from . import measure
from .archive import Archive
from .candidate import Candidate, Done, Result
from .pool import WORKER, Pool, answer_of
from .worker import MACHINE

__all__ = ["Lab", "request_for"]

# Ends of a worker that are put down to the candidate.
_FATAL = ("hang", "memory", "crash")


def request_for(op: str, kernel: Kernel | None = None, **more: Any) -> dict[str, Any]:
    """A request as plain data; a kernel travels with its whole content."""
    content = {} if kernel is None else {"meta": dict(kernel.meta), "sources": dict(kernel.sources)}
    return {"op": op, **content, **more}


class Lab:
    """The workers of a run. `checked_only` leaves out the measuring (stage check)."""

    def __init__(self, archive: Archive, *, host: bool = True) -> None:
        work = archive.config.work
        self._host = host
        self._pool = Pool(work.jobs, work.memory)
        self._gpu = Worker(WORKER, memory=work.memory)
        self._backend = archive.config.backend
        self._seconds, self._check_seconds = work.seconds, work.check_seconds

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._gpu.close()

    def baselines(self, archive: Archive) -> Iterator[tuple[str, dict[str, Any]]]:
        """SDPA's seconds and floor for each workload that has none yet. Raises OpenEvolveError
        where a workload cannot be run here at all."""
        for slug in archive.slugs:
            if slug in archive.baseline:
                continue
            if self._backend == "host":
                yield slug, measure.modelled_baseline(archive.workload(slug))
                continue
            request = request_for(
                "baseline", workload=slug, backend=self._backend, seed=archive.config.seed
            )
            found = answer_of(self._gpu, request, self._seconds)
            if found.get("cause"):
                raise OpenEvolveError(
                    f"{slug} cannot be measured here ({found['finding']}); leave it out"
                )
            yield slug, found

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterator[tuple[int, Done]]:
        """The fate of each candidate."""
        for candidate, checks in self.check(archive, batch):
            yield candidate.number, self.measure(archive, candidate, checks)

    def check(
        self, archive: Archive, batch: list[Candidate]
    ) -> Iterator[tuple[Candidate, dict[str, dict[str, Any]]]]:
        """Host checks of a batch, by workload."""
        asked = [(candidate, slug) for candidate in batch for slug in candidate.workloads]
        if self._host:
            requests = [
                request_for(
                    "check",
                    archive.load(candidate.kernel),
                    params=candidate.params,
                    workload=slug,
                    seed=archive.config.seed,
                )
                for candidate, slug in asked
            ]
            answers = self._pool.map(requests, self._check_seconds)
        else:
            answers = [{"cause": "", "finding": "", "host": "absent: not asked for"}] * len(asked)
        found: dict[int, dict[str, dict[str, Any]]] = {c.number: {} for c in batch}
        for (candidate, slug), answer in zip(asked, answers, strict=True):
            _refuse_machine(archive, answer)
            found[candidate.number][slug] = answer
        for candidate in batch:
            yield candidate, found[candidate.number]

    def measure(
        self, archive: Archive, candidate: Candidate, checks: dict[str, dict[str, Any]]
    ) -> Done:
        """The fate of a candidate whose host checks are known."""
        spent = sum(float(check.get("seconds", 0)) for check in checks.values())
        for slug, check in checks.items():
            if check["cause"]:
                return Done(check["cause"], f"{slug}: {check['finding']}", check=spent)
        if not checks:
            return Done("static", "the kernel applies to no workload of this run")
        host = next((check["host"] for check in checks.values() if check.get("host")), "")
        results: dict[str, Result] = {}
        took = 0.0
        for slug, check in checks.items():
            found = self._measure(archive, candidate, slug, check)
            took += float(found.pop("took", 0.0))
            if found["cause"]:
                if found["cause"] in _FATAL:
                    key = f"{candidate.kernel} {slug} {found.get('params', candidate.params)}"
                    archive.add("poison", key=key, reason=found["finding"])
                return Done(
                    found["cause"], f"{slug}: {found['finding']}", results, spent, took, host
                )
            results[slug] = _result(found, check)
        return Done("", "", results, spent, took, host)

    def _measure(
        self, archive: Archive, candidate: Candidate, slug: str, check: dict[str, Any]
    ) -> dict[str, Any]:
        kernel = archive.load(candidate.kernel)
        workload = archive.workload(slug)
        if self._backend == "host":
            if check.get("host"):
                return {"cause": "backend", "finding": check["host"]}
            found = measure.modelled(kernel, check["params"], workload, check["points"])
            return {**found, "params": check["params"]}
        best = archive.best[slug][1].seconds if slug in archive.best else 0.0
        request = request_for(
            "measure",
            kernel,
            params=candidate.params,
            workload=slug,
            backend=self._backend,
            best=best,
            seconds=archive.config.work.measure_seconds,
            seed=archive.config.seed,
            sdpa_seconds=archive.baseline.get(slug, {}).get("seconds", 0.0),
        )
        answer = answer_of(self._gpu, request, self._seconds)
        _refuse_machine(archive, answer)
        return answer


def _refuse_machine(archive: Archive, answer: dict[str, Any]) -> None:
    """Raise MachineError where the machine failed: the candidate is still pending then."""
    if answer["cause"] == MACHINE:
        raise MachineError(
            f"{answer['finding']}; nothing before this is lost, go on later with --resume "
            f"{archive.folder}"
        )


def _result(found: dict[str, Any], check: dict[str, Any]) -> Result:
    points = check.get("points") or [{"counters": []}]
    return Result(
        params=found["params"],
        seconds=found["seconds"],
        ratio=found["ratio"],
        low=found["low"],
        high=found["high"],
        spread=found.get("spread", 0.0),
        margin=found.get("margin", check.get("margin", 1.0)),
        error=found.get("error", check.get("error", 0.0)),
        modelled=bool(found.get("modelled", False)),
        counters=_summed(points[0]["counters"]),
        profile=found.get("profile", {}),
    )


_KEPT = (
    "device_read_bytes", "device_write_bytes", "compulsory_read_bytes", "compulsory_write_bytes",
    "read_lines", "write_lines", "read_useful_bytes", "write_useful_bytes", "bank_conflicts",
    "threadgroup_memory", "barriers", "simd_reductions", "simd_shuffles", "flops",
)  # fmt: skip


def _summed(counters: list[dict[str, Any]]) -> dict[str, Any]:
    """The counters of all launches of a call together."""
    if not counters:
        return {}
    total: dict[str, Any] = {name: sum(c.get(name, 0) for c in counters) for name in _KEPT}
    lines = total["read_lines"] + total["write_lines"]
    used = total["read_useful_bytes"] + total["write_useful_bytes"]
    total["line_efficiency"] = round(used / (128 * lines), 3) if lines else 1.0
    total["launches"] = len(counters)
    return total
