"""Attention as the rest of the house sees it: over float, quantised and latent caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from ..base import Absent, Call, Op, PatchPoint, Questions, Router, SearchSpace
from . import call, exact, signature
from .workload import FIELDS, VARIANTS, Bucket, Workload

__all__ = ["OP", "AttentionOp"]


class AttentionOp(Op[Bucket, Workload]):
    """mlx_lm.models.base.scaled_dot_product_attention."""

    name = "attention"
    version = 1
    stock = "SDPA"
    variants = VARIANTS
    fields = FIELDS
    patch_points = (PatchPoint("mlx_lm.models.base", "scaled_dot_product_attention"),)
    scalars = frozenset({"scale"})
    example = "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none"

    def parse(self, slug: str) -> Workload:
        return Workload.parse(slug)

    def inputs(self, variant: str) -> tuple[str, ...]:
        return signature.INPUTS[variant]

    def required(self, workload: Workload) -> frozenset[str]:
        return signature.required(workload)

    def absent(self, workload: Workload) -> Mapping[str, Absent]:
        return signature.absent(workload)

    def describe(self, *args: Any, **kwargs: Any) -> Workload | str:
        return call.describe(*args, **kwargs)

    def arguments(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return call.arguments(*args, **kwargs)

    def wrap(self, original: Callable[..., Any], router: Router) -> Callable[..., Any]:
        return call.wrap(original, router)

    def exact(self, original: Call) -> Callable[..., Any]:
        return exact.in_float32(original)

    def bind(
        self, workload: Workload, names: frozenset[str], *, broadcast: bool
    ) -> Callable[..., list[mx.array | None]]:
        return signature.bind(workload, names, broadcast=broadcast)

    def trial(
        self, workload: Workload, given: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
        return call.trial(workload)

    def substitute(self, workload: Workload) -> Call | None:
        return call.substitute(workload)

    def differentiable(self, workload: Workload, made: Call) -> Call:
        return call.differentiable(workload, made)

    @property
    def questions(self) -> Questions[Bucket, Workload]:
        from .questions import QUESTIONS

        return QUESTIONS

    @property
    def search(self) -> SearchSpace[Bucket]:
        from .search import SEARCH

        return SEARCH


OP = AttentionOp()
