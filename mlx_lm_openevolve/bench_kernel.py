"""`bench --kernel FOLDER`: one kernel over a suite of workloads, judged and timed as the gate does.

Nothing is stored: this is for whoever writes or evolves a kernel.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from . import backends, gate
from .device import detect
from .errors import BackendError, UsageError
from .evolve.suites import suite
from .kernel import Kernel
from .registry import Verdict

__all__ = ["bench_kernel"]

SECONDS = 60.0  # for a workload: time enough for narrow intervals


def bench_kernel(options: argparse.Namespace, out: Console) -> list[dict[str, Any]]:
    """Verdicts on a kernel, one for each workload of the suites that it applies to."""
    kernel = Kernel.load(options.kernel)
    backend = options.backend or detect().backend
    reason = backends.get(backend).unavailable()
    if reason:
        raise BackendError(f"backend {backend!r}: {reason}")
    asked = suite(options.suite or ["decode"])[:: 3 if options.subset else 1]
    workloads = [workload for workload in asked if kernel.applies_to(workload)]
    if not workloads:
        raise UsageError(f"kernel {kernel.id} applies to none of the suite's workloads")
    rows = []
    for workload in workloads:
        verdict = _judge(kernel, workload, backend)
        for line in gate.describe(verdict):
            out.print(line, markup=False, style=None if verdict.correct else "red")
        rows.append(verdict.to_json())
    left = len(asked) - len(workloads)
    out.print(f"{len(workloads)} workloads; {left} more to which the kernel does not apply")
    return rows


def _judge(kernel: Kernel, workload: Any, backend: str) -> Verdict:
    params = kernel.default_params(workload)
    try:
        return gate.judge_in_worker(kernel, params, workload, backend, seconds=SECONDS)
    except gate.Poisoned as error:
        return error.verdict
    except gate.GateTimeout as error:
        raise UsageError(f"{workload.slug}: {error}; leave it out of the suite") from None
