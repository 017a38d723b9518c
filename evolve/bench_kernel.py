"""`bench --kernel FOLDER`: one kernel over a suite of workloads, judged and timed as the gate does.

    suite -> the gate's verdict (correct; on a GPU both arms, paired) -> a row for each workload
          -> on the host, where nothing is timed: the bytes that it moves

Nothing is stored: this is for whoever writes or evolves a kernel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from rich.console import Console

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import GateTimeout, UsageError
from mlx_lm_openevolve.gate.worker import judge_in_worker
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import named
from mlx_lm_openevolve.kernels.verdict import Poisoned, Verdict, describe
from mlx_lm_openevolve.ops import Bucket

from . import check
from .suites import default_suite, suite

__all__ = ["bench_kernel"]

SECONDS = 60.0  # for a workload: time enough for narrow intervals; three times that on the host
Row = dict[str, Any]


def bench_kernel(
    options: argparse.Namespace, out: Console, keep: Callable[[list[Row]], None]
) -> bool:
    """Judge a kernel on each workload of the suites that it applies to; `keep` is handed all rows
    whenever there is a new one. A row is a verdict; on the host it has `bytes` too. Returns
    whether every row is as good as it can be here: accepted, on the host correct."""
    kernel = named(options.kernel)
    backend = options.backend or detect().backend
    backends.require(kernel, backend)
    asked = suite(options.suite or [default_suite(kernel.op)])[:: 3 if options.subset else 1]
    workloads = [workload for workload in asked if kernel.applies_to(workload)]
    if not workloads:
        raise UsageError(f"kernel {kernel.id} applies to none of the suite's workloads")
    rows: list[Row] = []
    for workload in workloads:
        verdict = _judge(kernel, workload, backend)
        for line in describe(verdict):
            out.print(line, markup=False, style=None if verdict.correct else "red")
        rows.append(verdict.to_json())
        if backend == "host" and verdict.correct:
            rows[-1]["bytes"] = counted = _bytes(kernel, workload)
            over = counted["moved"] / counted["least"]
            moved = f"moves {counted['moved']} bytes on a small shape, {over:.2f}x the least"
            out.print(f"  {moved}: nothing is timed here", markup=False)
        keep(rows)
    left = len(asked) - len(workloads)
    out.print(f"{len(workloads)} workloads; {left} more to which the kernel does not apply")
    return all(row["correct"] if "bytes" in row else row["status"] == "accepted" for row in rows)


def _judge(kernel: Kernel, workload: Bucket, backend: str) -> Verdict:
    params = kernel.default_params(workload, detect(backend))
    seconds = 3 * SECONDS if backend == "host" else SECONDS
    try:
        return judge_in_worker(kernel, params, workload, backend, seconds=seconds)
    except Poisoned as error:
        return error.verdict
    except GateTimeout as error:
        raise UsageError(f"{workload.slug}: {error}; leave it out of the suite") from None


def _bytes(kernel: Kernel, workload: Bucket) -> dict[str, int]:
    """Bytes that the kernel moves in the search's host check, and the least (see check)."""
    params = kernel.default_params(workload, detect("host"))
    counters = check.check(kernel, params, workload, 0).counters
    return {"moved": counters["moved_bytes"], "least": counters["least_bytes"]}
