"""What is computed: a folder for each family of operations.

`get` gives a family by its name, `of` that of a workload, `parse` reads any family's slug.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UsageError, WorkloadError
from .base import DTYPES, Bucket, Op, Workload, next_pow2

__all__ = [
    "DTYPES",
    "FAMILIES",
    "NAMES",
    "STEP",
    "Bucket",
    "Op",
    "Workload",
    "get",
    "next_pow2",
    "of",
    "of_slug",
    "parse",
]

# One line a family: the folder beside this file, which has an `OP`, and its version, raised when
# old verdicts of it should not count; see kernels/verdict.py.
FAMILIES = {"attention": 1, "linear": 1}
STEP = "step"  # whole decode steps, switched as a family is: see decode/
NAMES = (*FAMILIES, STEP)


def get(name: str) -> Op[Any, Any]:
    """The family of that name. Raises UsageError."""
    if name not in FAMILIES:
        raise UsageError(f"op {name!r} is none of {', '.join(FAMILIES)}")
    op: Op[Any, Any] = importlib.import_module(f".{name}", __package__).OP
    return op


def of(workload: Workload) -> Op[Any, Any]:
    """The family of a workload."""
    return get(workload.op)


def of_slug(slug: str) -> Op[Any, Any]:
    """The family whose name a slug begins with. Raises UsageError."""
    return get(slug.partition("-")[0])


def parse(slug: str) -> Workload:
    """The workload that a slug of any family names. Raises WorkloadError."""
    name = slug.partition("-")[0]
    if len(slug) > 200 or name not in FAMILIES:
        known = ", ".join(get(name).example for name in FAMILIES)
        raise WorkloadError(f"not a workload: {slug[:200]!r}; expected a slug such as {known}")
    workload: Workload = get(name).parse(slug)
    return workload
