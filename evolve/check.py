"""Checking on the host: a candidate on the CPU, compiled for Metal, sanitised, counted and compared
with float64.

It runs small workloads that ask what the real ones ask (mutants.proxy), so that a candidate costs
a second or two. The whole gate judges the winners; see publish.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx_lm_openevolve import backends, metalhost
from mlx_lm_openevolve.errors import BackendError, KernelError
from mlx_lm_openevolve.gate import correctness
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.mutants import proxy
from mlx_lm_openevolve.ops.attention.reference import case
from mlx_lm_openevolve.ops.attention.workload import Workload

from .evaluation import HostCheck, Point

__all__ = ["check", "small"]

# What the two questions show: lost, foreign or shifted keys and rows; a softmax without its maximum
# and padded keys.
_KINDS = ("needles", "flat")


def small(kernel: Kernel, bucket: Workload) -> Workload:
    """The smallest proxy bucket that the kernel still applies to."""
    smaller = proxy(bucket)
    while smaller.kv_len < bucket.kv_len and not kernel.applies_to(smaller):
        smaller = replace(smaller, kv_len=2 * smaller.kv_len)
    return smaller if kernel.applies_to(smaller) else bucket


@functools.lru_cache(maxsize=8)
def _questions(workload: Workload, longer: int, seed: int) -> tuple[correctness.Question, ...]:
    """Two questions at the workload's length, off every tile, the second with the elements of a key
    apart in memory, and one at about `longer` keys, for what grows with them."""
    q_len = min(workload.q_len, workload.kv_len - 4)
    exact = replace(workload, kv_len=max(workload.kv_len - 3, q_len + 1), q_len=q_len)
    needles, flat = (case(kind, exact, seed) for kind in _KINDS)
    made = [correctness.prepare(needles), correctness.prepare(replace(flat, columns=True))]
    if longer > workload.kv_len:
        made.append(correctness.prepare(case(_KINDS[0], replace(exact, kv_len=longer - 3), seed)))
    return tuple(made)


def check(kernel: Kernel, params: Mapping[str, int], bucket: Workload, seed: int) -> HostCheck:
    """What the host says of a kernel with params for a bucket. Raises nothing that a kernel can
    bring about."""
    start = time.perf_counter()
    host = backends.get("host")

    def answer(cause: str = "", finding: str = "", **more: Any) -> HostCheck:
        seconds = round(time.perf_counter() - start, 3)
        return HostCheck(cause, finding, seconds=seconds, params=params, **more)

    try:
        bad = gate.static_rules(kernel, params, bucket)
        if bad:
            return answer("static", bad)
        native = [stage.file for stage in kernel.stages if stage.language != "metal"]
        if native or host.unavailable():
            reason = f"{native[0]} is no Metal" if native else host.unavailable()
            return answer(host=f"absent: {reason}")
        tiny = small(kernel, bucket)
        questions = _questions(tiny, min(4 * tiny.kv_len, bucket.kv_len), seed)
        exact = questions[0].case.workload
        points = []
        for question in (questions[0], *questions[2:]):
            exact = question.case.workload
            launches: list[metalhost.Launch] = []
            call = host.build(kernel, params, exact, sanitize=True, launches=launches, seed=seed)
            try:
                call(*question.arguments)
            except BackendError as error:
                if not any(launch.findings for launch in launches):
                    return answer("backend", str(error))
            findings = [finding for launch in launches for finding in launch.findings]
            if findings:
                return answer(findings[0].kind, "\n".join(str(f) for f in findings[:3]))
            counters = [launch.counters.to_dict() for launch in launches if launch.counters]
            points.append(Point(exact.slug, tuple(counters)))
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
        points=tuple(points),
    )
