"""Publishing: the winners before the whole gate, and what passes into the user's registry.

The gate draws its own cases and its own sealed length, at which nothing was ever timed before. A
winner of many candidates was partly lucky: what counts is what it does here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import GateTimeout, OpenEvolveError
from mlx_lm_openevolve.gate.host_check import check_on_host
from mlx_lm_openevolve.gate.worker import judge_in_worker
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Poisoned

from .archive import Archive
from .evaluation import WorkloadResult
from .events import Published
from .measure import gpu

__all__ = ["contenders", "publish"]

# How many of the best of a workload are put before the gate until one passes.
_TRIES = 3
_SECONDS = {"metal": 30.0, "cuda": 30.0, "host": 300.0}


def contenders(archive: Archive, slug: str) -> list[tuple[str, WorkloadResult]]:
    """The best kernels for a workload that promise to be faster than SDPA, the fastest first."""
    faster = [
        (kernel, results[slug])
        for kernel, results in archive.kernel_best.items()
        if slug in results and results[slug].ratio > 1 and kernel not in archive.banned
    ]
    return sorted(faster, key=lambda item: -item[1].ratio)[:_TRIES]


def publish(archive: Archive, registries: list[Registry]) -> Iterator[Published]:
    """Judge the best of each workload and store every verdict in all `registries`; yields what the
    gate said of each, which is an event of the run as well. What an earlier session judged is not
    judged again: a sealed length is used once. Raises RegistryError."""
    judged = [
        (event.workload, event.kernel, event.params)
        for event in archive.published
        if event.correct is not None
    ]
    for slug in archive.slugs:
        for kernel_id, result in contenders(archive, slug):
            if (slug, kernel_id, result.params) in judged:
                break
            event = _one(archive, slug, archive.load(kernel_id), result, registries)
            archive.add(event)
            yield event
            if event.accepted:
                break


def _one(
    archive: Archive, slug: str, kernel: Kernel, result: WorkloadResult, registries: list[Registry]
) -> Published:
    backend = archive.config.backend
    workload = archive.workload(slug)
    device = detect(backend)
    params = dict(result.params)
    event = Published(slug, kernel.id, params, searched=result.ratio, device=device.slug)
    check = None
    if not kernel.native and not backends.get("host").unavailable():
        check = check_on_host(kernel, params, workload)
        if not check["ok"]:
            return replace(event, reason=f"the host check: {check['reason']}")
    try:
        with gpu(device):
            verdict = judge_in_worker(
                kernel, params, workload, backend, seconds=_SECONDS[backend], speed=True
            )
    except GateTimeout as error:
        return replace(event, reason=f"pending: {error}")
    except Poisoned as error:
        verdict = error.verdict
    except OpenEvolveError as error:
        return replace(event, reason=str(error))
    for registry in registries:
        registry.add(kernel)
        if check is not None:
            registry.add_host_check(kernel.id, check)
        registry.publish(device.slug, verdict)
    return replace(
        event,
        accepted=verdict.accepted,
        correct=verdict.correct,
        reason=verdict.reason,
        ratio=verdict.timing.get("ratio"),
        low=verdict.timing.get("low"),
        high=verdict.timing.get("high"),
    )
