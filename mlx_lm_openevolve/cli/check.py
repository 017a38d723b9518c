"""`mlx-lm-openevolve check`: judge a kernel as the gate does, and run it under the sanitizer."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from rich.console import Console

from .. import backends, metalhost, ops
from ..device import detect
from ..errors import GateMemory, GateTimeout, OpenEvolveError, UsageError
from ..gate.correctness import drawn_seed
from ..gate.host_check import carried_on_host, check_on_host
from ..gate.worker import judge_in_worker
from ..kernels.kernel import Kernel
from ..kernels.lookup import named, registries
from ..kernels.verdict import Poisoned, describe
from ..ops import Bucket
from ..runtime.planner import serving
from .result import Result

__all__ = ["check"]


def check(options: argparse.Namespace, out: Console) -> Result:
    """Judge a kernel on each workload, beside what serves it here; stores nothing. Exit code 0
    where it is right on all."""
    if not options.seconds > 0:
        raise UsageError(f"--seconds {options.seconds:g}: it must be more than 0")
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"--seed {options.seed}: it must not be negative")
    kernel = named(options.kernel)
    backend = options.backend or detect().backend
    backends.require(kernel, backend)
    if options.workload:
        workloads = [ops.parse(slug).bucket() for slug in options.workload]
    else:
        workloads = _usual(kernel)
        if not workloads:
            raise UsageError("name a --workload: the kernel applies to none of the usual ones")
    refused = [w.slug for w in workloads if not kernel.applies_to(w)]
    if refused:
        raise UsageError(f"kernel {kernel.id} does not apply to {refused[0]}")
    verdicts, profiles = [], []
    seed = drawn_seed() if options.seed is None else options.seed
    if backend == "host":
        workloads = list(dict.fromkeys(carried_on_host(kernel, w) for w in workloads))
    device = detect(backend)
    for workload in workloads:
        params = kernel.default_params(workload, device)
        profile = _on_host(kernel, params, workload, seed, out)
        profiles.append(profile)
        try:
            verdict = judge_in_worker(
                kernel,
                params,
                workload,
                backend,
                seconds=options.seconds,
                seed=seed,
                rival=serving(device, registries(), workload),
            )
        except GateMemory:  # more seconds do not help
            raise
        except GateTimeout as error:
            raise UsageError(f"{workload.slug}: {error}; allow more with --seconds") from None
        except Poisoned as error:
            verdict = error.verdict
        verdicts.append(verdict)
        for line in describe(verdict):
            out.print(line, markup=False, style=None if verdict.correct else "red")
    good = all(v.correct and p.get("ok", True) for v, p in zip(verdicts, profiles, strict=True))
    return (0 if good else 1), {
        "kernel": kernel.id,
        "backend": backend,
        "correct": good,
        "verdicts": [{**v.to_json(), "raw": dict(v.raw)} for v in verdicts],
        "host": profiles,
    }


def _usual(kernel: Kernel) -> list[Bucket]:
    """Up to four workloads that a kernel applies to: the family's usual ones, or where it is for
    others the smallest of the family's suites."""
    op = ops.get(kernel.op)
    suites = {bucket for suite in op.search.suites.values() for bucket in suite}
    for known in (op.questions.usual, sorted(suites, key=lambda b: (b.flops(), b.slug))):
        if found := [bucket for bucket in known if kernel.applies_to(bucket)]:
            return found[:4]
    return []


def _on_host(
    kernel: Kernel, params: dict[str, int], bucket: Bucket, seed: int, out: Console
) -> dict[str, Any]:
    """The kernel under metalhost's sanitizer, with findings and counters. Where it
    cannot be run on the CPU the record says why, under `absent`."""
    host = backends.get("host")
    absent = host.unavailable()
    if not absent and kernel.native:
        absent = "a launch is not written in Metal"
    if absent:
        out.print(f"no host check: {absent}", markup=False)
        return {"absent": absent}
    record = check_on_host(kernel, params, bucket, seed=seed)
    colour = "green" if record["ok"] else "red"
    text = "no finding, right on every case" if record["ok"] else record["reason"]
    out.print(f"host check of {record['on']}: ", end="", markup=False)
    out.print(text, markup=False, style=colour)
    launches: list[metalhost.LaunchResult] = []
    bucket = carried_on_host(kernel, bucket)
    question = next(ops.of(bucket).questions.cases(bucket, 0))()
    call = host.build(kernel, params, question.workload, sanitize=True, launches=launches)
    with contextlib.suppress(OpenEvolveError):  # the launches say why
        call(*question.arguments)
    for launch in launches:
        for finding in launch.findings:
            style = "yellow" if finding.benign else "red"
            out.print(str(finding), markup=False, style=style)
        if launch.counters is not None and launch.outputs:
            c = launch.counters
            out.print(
                f"  counters reads {c.device_read_bytes} B, {c.read_amplification:.2f}x compulsory,"
                f" line efficiency {c.line_efficiency:.0%}; {c.bank_conflicts} bank conflicts,"
                f" {c.barriers} barriers, {c.simd_ops} simd ops, {c.flops} flops;"
                f" moves {c.moved_bytes} B",
                markup=False,
            )
    return {**record, "launches": [launch.to_dict() for launch in launches]}
