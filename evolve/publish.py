"""Publishing: the winners before the whole gate, and what passes into the user's registry.

The gate draws its own cases and its own sealed length, at which nothing was ever timed before. A
winner of many candidates was partly lucky: what counts is what it does here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import GateTimeout, OpenEvolveError
from mlx_lm_openevolve.gate.host_check import check_on_host
from mlx_lm_openevolve.gate.worker import judge_in_worker
from mlx_lm_openevolve.kernels import records
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import shipped
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.shared import imported
from mlx_lm_openevolve.kernels.verdict import Poisoned, Verdict
from mlx_lm_openevolve.ops import Bucket
from mlx_lm_openevolve.runtime.planner import serving

from .archive import Archive
from .evaluation import Request, WorkloadResult
from .events import Published
from .measure import gpu
from .pool import Executor
from .record import Record

__all__ = ["Judged", "contenders", "judged_here", "publish", "stored"]

# How many of the best of a workload are put before the gate until one passes.
_TRIES = 3
_FLEET_SECONDS = 1800.0  # a whole gate on another machine, compilers and waiting included
_SECONDS = {"metal": 30.0, "cuda": 30.0, "host": 300.0}


@dataclass(frozen=True)
class Judged(Record):
    """What the gate came to: reason says why there is no verdict, "" where there is one; check is
    that of the host, {} where the kernel cannot run there."""

    reason: str = ""
    check: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)


def contenders(archive: Archive, slug: str, chip: str = "") -> list[tuple[str, WorkloadResult]]:
    """The best kernels for a workload that promise to be faster than SDPA, the fastest first: on
    the chip that leads the search, or on another."""
    known = archive.elsewhere.get(chip, {}) if chip else archive.kernel_best
    faster = [
        (kernel, results[slug])
        for kernel, results in known.items()
        if slug in results and results[slug].ratio > 1 and kernel not in archive.banned
    ]
    return sorted(faster, key=lambda item: -item[1].ratio)[:_TRIES]


def publish(
    archive: Archive, registries: Sequence[Registry], fleet: Executor | None = None
) -> Iterator[Published]:
    """Judge the best of each workload and store every verdict in all `registries`, the first the
    user's; yields what the gate said of each, which is an event of the run as well. With a fleet
    each chip judges what was best there. What an earlier session judged is not judged again: a
    sealed length is used once. Raises RegistryError."""
    judged = [
        (event.workload, event.kernel, event.params, event.device)
        for event in archive.published
        if event.correct is not None
    ]
    lead, *others = fleet.chips if fleet else [detect(archive.config.backend).slug]
    for chip in (lead, *others):
        for slug in archive.slugs:
            for kernel_id, result in contenders(archive, slug, "" if chip == lead else chip):
                if (slug, kernel_id, result.params, chip) in judged:
                    break
                kernel, params = archive.load(kernel_id), dict(result.params)
                event = Published(slug, kernel.id, params, searched=result.ratio, device=chip)
                if fleet:
                    request = Request("gate", slug, 0, kernel, params)
                    answer = fleet.ask(chip, request.to_json(), _FLEET_SECONDS)
                    found = Judged.from_json({"reason": answer.pop("finding", ""), **answer})
                else:
                    workload, backend = archive.workload(slug), archive.config.backend
                    found = judged_here(kernel, params, workload, backend, registries[0])
                event = stored(event, found, kernel, registries, elsewhere=fleet is not None)
                archive.add(event)
                yield event
                if event.accepted:
                    break


def judged_here(
    kernel: Kernel, params: dict[str, int], workload: Bucket, backend: str, user: Registry
) -> Judged:
    """What this machine's gate says; user: the user's registry, where what serves here is known."""
    check: dict[str, Any] = {}
    if not kernel.native and not backends.get("host").unavailable():
        check = check_on_host(kernel, params, workload)
        if not check["ok"]:
            return Judged(f"the host check: {check['reason']}")
    device = detect(backend)
    rival = serving(device, [user, shipped()], workload)
    try:
        with gpu(device):
            verdict = judge_in_worker(
                kernel, params, workload, backend, seconds=_SECONDS[backend], rival=rival
            )
    except GateTimeout as error:
        return Judged(f"pending: {error}")
    except Poisoned as error:
        verdict = error.verdict
    except OpenEvolveError as error:
        return Judged(str(error))
    return Judged("", check, {**verdict.to_json(), "raw": records.plain(verdict.raw)})


def stored(
    event: Published,
    found: Judged,
    kernel: Kernel,
    registries: Sequence[Registry],
    *,
    elsewhere: bool = False,
) -> Published:
    """The event with what was found, which is stored; from elsewhere, the user's registry keeps it
    as another machine's word."""
    if found.reason:
        return replace(event, reason=found.reason)
    try:
        verdict = Verdict.from_json(dict(found.verdict))
        about = verdict.kernel, dict(verdict.params), verdict.workload
        if about != (event.kernel, dict(event.params), event.workload):
            raise ValueError("it is about something else")
    except (ValueError, OpenEvolveError) as error:
        return replace(event, reason=f"no verdict: {error}")
    for registry in registries:
        registry.add(kernel)
        theirs = elsewhere and registry is registries[0]
        if found.check and not theirs:
            registry.add_host_check(kernel.id, found.check)
        registry.publish(imported(event.device) if theirs else event.device, verdict)
    return replace(
        event,
        accepted=verdict.accepted,
        correct=verdict.correct,
        reason=verdict.reason,
        ratio=verdict.timing.get("ratio"),
        low=verdict.timing.get("low"),
        high=verdict.timing.get("high"),
    )
