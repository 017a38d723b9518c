"""Quantised products as the rest of the house sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..base import Call, Op, PatchPoint, Questions, Router, SearchSpace
from . import call, experts, signature
from .workload import FIELDS, VARIANTS, Bucket, Workload

__all__ = ["OP", "LinearOp"]

_LAYERS = "mlx.nn.layers.quantized"


class LinearOp(Op[Bucket, Workload]):
    """The product in mlx.nn.QuantizedLinear, QuantizedEmbedding.as_linear and, of experts, in
    mlx-lm's QuantizedSwitchLinear."""

    name = "linear"
    stock = "MLX's own product"
    # Weights may become a view at any time: `layer.scales[:] = 1` makes them one in place.
    row_contiguous = True
    variants = VARIANTS
    fields = FIELDS
    patch_points = (
        PatchPoint(_LAYERS, "QuantizedLinear.__call__"),
        PatchPoint(_LAYERS, "QuantizedEmbedding.as_linear"),
        PatchPoint("mlx_lm.models.switch_layers", "QuantizedSwitchLinear.__call__"),
    )
    guards = True
    example = "linear-m1-n4096-k4096-bfloat16-q4g64"

    def parse(self, slug: str) -> Workload:
        return Workload.parse(slug)

    def inputs(self, variant: str) -> tuple[str, ...]:
        return signature.INPUTS[variant]

    def describe(self, *args: Any, **kwargs: Any) -> Workload | str:
        return call.describe(*args, **kwargs)

    def arguments(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return call.arguments(*args, **kwargs)

    def wrap(self, original: Callable[..., Any], router: Router) -> Callable[..., Any]:
        of_experts = "indices" in inspect.signature(original).parameters
        return experts.wrap(original, router) if of_experts else call.wrap(original, router)

    def joined(self, workload: Workload, times: int) -> Workload | None:
        return experts.joined(workload, times)

    def exact(self, original: Call) -> Callable[..., Any]:
        return call.in_float32(original)

    def bind(
        self, workload: Workload, names: frozenset[str], *, broadcast: bool
    ) -> Callable[..., list[mx.array | None]]:
        return signature.bind(workload)

    def trial(
        self, workload: Workload, given: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
        return call.trial(workload, given)

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


OP = LinearOp()
