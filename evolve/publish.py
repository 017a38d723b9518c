"""Publish: the winners before the whole gate, and what passes into the user's registry.

The gate draws its own cases and its own sealed length, at which nothing was ever timed before. A
winner of many candidates was partly lucky: what counts is what it does here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import OpenEvolveError
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Verdict

from .archive import Archive
from .candidate import Result
from .measure import gpu

__all__ = ["contenders", "publish"]

# How many of the best of a workload are put before the gate until one passes.
_TRIES = 3
_SECONDS = {"metal": 30.0, "cuda": 30.0, "host": 300.0}


def contenders(archive: Archive, slug: str) -> list[tuple[str, Result]]:
    """The best kernels for a workload that promise to be faster than SDPA, the fastest first."""
    found = [
        (kernel, results[slug])
        for kernel, results in archive.kernel_best.items()
        if slug in results and results[slug].ratio > 1 and kernel not in archive.banned
    ]
    return sorted(found, key=lambda item: -item[1].ratio)[:_TRIES]


def publish(archive: Archive, registries: list[Registry]) -> Iterator[dict[str, Any]]:
    """Judge the best of each workload and store every verdict in all `registries`; yields what
    became of each workload, which is an event of the run as well. What an earlier session judged
    is not judged again: a sealed length is used once."""
    judged = {
        (event["workload"], event["kernel"], _frozen(event))
        for event in archive.published
        if "correct" in event
    }
    for slug in archive.slugs:
        for kernel_id, result in contenders(archive, slug):
            if (slug, kernel_id, _frozen({"params": result.params})) in judged:
                break
            event = _one(archive, slug, archive.load(kernel_id), result, registries)
            archive.add("published", **event)
            yield event
            if event["accepted"] or archive.config.backend == "host":
                break


def _frozen(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(event["params"].items()))


def _one(
    archive: Archive, slug: str, kernel: Kernel, result: Result, registries: list[Registry]
) -> dict[str, Any]:
    backend = archive.config.backend
    workload = archive.workload(slug)
    device = detect(backend)
    params = dict(result.params)
    event: dict[str, Any] = {
        "workload": slug,
        "kernel": kernel.id,
        "params": params,
        "searched": result.ratio,
        "device": device.slug,
        "accepted": False,
    }
    check = None
    native = bool(kernel.native)
    if not native and not backends.get("host").unavailable():
        check = gate.check_on_host(kernel, params, workload)
        if not check["ok"]:
            return {**event, "reason": f"the host check: {check['reason']}"}
    try:
        with gpu(device):
            verdict = gate.judge_in_worker(
                kernel, params, workload, backend, seconds=_SECONDS[backend], speed=True
            )
    except gate.GateTimeout as error:
        return {**event, "reason": f"pending: {error}"}
    except gate.Poisoned as error:
        verdict = error.verdict
    except OpenEvolveError as error:
        return {**event, "reason": str(error)}
    for registry in registries:
        registry.add(kernel)
        if check is not None:
            registry.add_host_check(kernel.id, check)
        registry.publish(device.slug, verdict)
    return {**event, **_summary(verdict)}


def _summary(verdict: Verdict) -> dict[str, Any]:
    timing = verdict.timing
    return {
        "accepted": verdict.accepted,
        "correct": verdict.correct,
        "reason": verdict.reason,
        **{key: timing[key] for key in ("ratio", "low", "high") if key in timing},
    }
