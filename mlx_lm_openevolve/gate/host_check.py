"""The host check: a kernel under metalhost's sanitizer, on small shapes of its workload."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .. import backends, ops
from ..device import version_of
from ..errors import BackendError
from ..kernels.kernel import Kernel
from ..kernels.verdict import gate_version
from ..ops import Bucket, Workload
from .correctness import drawn_seed, passes
from .static_rules import static_rules

__all__ = ["carried_on_host", "check_on_host", "smallest"]

# What the CPU computes of a kernel in some seconds; a prompt asks for a hundred times as much.
_HOST_FLOPS = 5e8


def check_on_host(
    kernel: Kernel, params: Mapping[str, int], workload: Workload, *, seed: int | None = None
) -> dict[str, Any]:
    """Run a kernel on the CPU with every check of metalhost, on a small workload that asks the
    same, with questions drawn from `seed` (None: drawn as well); needs a clang. Returns a record
    for Registry.add_host_check: params, workload, ok, reason, metalhost's version and seconds.
    Raises BackendError where no clang is at hand.
    """
    host = backends.get("host")
    if host.unavailable():
        raise BackendError(host.unavailable())
    seed = drawn_seed() if seed is None else seed
    start = time.monotonic()
    small = smallest(kernel, workload.bucket())
    reason = static_rules(kernel, params, small)
    if not reason:
        questions = (case() for case in ops.of(small).questions.cases(small, seed, True))
        reason = passes(
            lambda exact: host.build(kernel, params, exact, sanitize=True), questions
        ).reason
    return {
        "params": dict(params),
        "workload": workload.bucket().slug,
        "on": small.slug,
        "ok": not reason,
        "reason": reason,
        "gate": gate_version(small.op),
        "version": version_of("mlx-lm-openevolve"),
        "seconds": round(time.monotonic() - start, 2),
    }


def carried_on_host(kernel: Kernel, bucket: Bucket) -> Bucket:
    """What the CPU is asked in place of a bucket: the bucket itself, or where that is too much for
    it the small shapes of the host check, which ask the same."""
    return bucket if bucket.flops() <= _HOST_FLOPS else smallest(kernel, bucket)


def smallest(kernel: Kernel, bucket: Bucket) -> Bucket:
    """The smallest proxy of a bucket that the kernel still applies to."""
    questions = ops.of(bucket).questions
    small: Bucket | None = questions.proxy(bucket)
    while small is not None and not kernel.applies_to(small):
        small = questions.larger(small, bucket)
    return small or bucket
