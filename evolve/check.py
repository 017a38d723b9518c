"""Checking on the host: a candidate on the CPU, compiled for Metal, sanitised, counted and compared
with float64.

It runs small workloads that ask what the real ones ask (Questions.proxy), so that a candidate costs
a second or two. The whole gate judges the winners; see publish.

Bytes moved are those of the 128-byte lines that the simdgroups' loads and stores touch: a line
counts again each time. The least: every input that the answer rests on read once (not what a mask
hides), and every output written once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_lm_openevolve import backends, metalhost, ops
from mlx_lm_openevolve.errors import BackendError, KernelError
from mlx_lm_openevolve.gate import correctness
from mlx_lm_openevolve.gate.host_check import smallest
from mlx_lm_openevolve.gate.static_rules import static_rules
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.metalhost import Counters
from mlx_lm_openevolve.ops import Bucket
from mlx_lm_openevolve.ops.base import Question

from .evaluation import HostCheck

__all__ = ["check"]


@functools.lru_cache(maxsize=8)
def _questions(bucket: Bucket, small: Bucket, seed: int) -> tuple[Question, ...]:
    return tuple(ops.of(bucket).questions.quick(small, bucket, seed))


def check(kernel: Kernel, params: Mapping[str, int], bucket: Bucket, seed: int) -> HostCheck:
    """What the host says of a kernel with params for a bucket. Raises nothing that a kernel can
    bring about."""
    start = time.perf_counter()
    host = backends.get("host")

    def answer(cause: str = "", finding: str = "", **more: Any) -> HostCheck:
        seconds = round(time.perf_counter() - start, 3)
        return HostCheck(cause, finding, seconds=seconds, params=params, **more)

    try:
        bad = static_rules(kernel, params, bucket)
        if bad:
            return answer("static", bad)
        native = [spec.file for spec in kernel.specs if spec.language != "metal"]
        if native or host.unavailable():
            reason = f"{native[0]} is no Metal" if native else host.unavailable()
            return answer(host=f"absent: {reason}")
        questions = _questions(bucket, smallest(kernel, bucket), seed)
        for question in (questions[0], *questions[2:]):
            exact = question.workload
            launches: list[metalhost.LaunchResult] = []
            call = host.build(kernel, params, exact, sanitize=True, launches=launches, seed=seed)
            try:
                call(*question.arguments)
            except BackendError as error:
                if all(launch.ok for launch in launches):
                    return answer("backend", str(error))
            findings = [f for launch in launches for f in launch.findings if not f.benign]
            if findings:
                return answer(findings[0].kind, "\n".join(str(f) for f in findings[:3]))
        counters = counted(question, [launch.counters for launch in launches if launch.counters])
        calls = correctness.Calls(
            lambda w: host.build(kernel, params, w, sanitize=True, seed=seed + 1)
        )
        outcomes = []
        for question in questions[:2]:
            outcomes.append(calls(question))
            if outcomes[-1].reason:
                return answer("wrong", outcomes[-1].reason)
    except KernelError as error:
        return answer("static", str(error))
    return answer(
        margin=min(outcome.margin for outcome in outcomes),
        error=max(outcome.max for outcome in outcomes),
        counters=counters,
    )


_KEPT = (
    "device_read_bytes", "device_write_bytes", "compulsory_read_bytes", "compulsory_write_bytes",
    "read_lines", "write_lines", "read_useful_bytes", "write_useful_bytes", "bank_conflicts",
    "threadgroup_memory", "barriers", "simd_reductions", "simd_shuffles", "flops",
)  # fmt: skip


def counted(question: Question, launches: Sequence[Counters]) -> dict[str, Any]:
    """The counters of all launches of a call together; bytes moved, and the least."""
    total: dict[str, Any] = {name: sum(getattr(c, name) for c in launches) for name in _KEPT}
    lines = total["read_lines"] + total["write_lines"]
    used = total["read_useful_bytes"] + total["write_useful_bytes"]
    total["line_efficiency"] = round(used / (128 * lines), 3) if lines else 1.0
    total["launches"] = len(launches)
    total["moved_bytes"] = sum(c.moved_bytes for c in launches)
    total["least_bytes"] = question.least_bytes()
    return total
