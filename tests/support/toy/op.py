from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..base import Op, PatchPoint, Questions, SearchSpace
from . import target
from .workload import Bucket, Workload

_TARGET = target.__name__


class Toy(Op[Bucket, Workload]):
    name = "toy"
    stock = "x * scale + shift"
    variants = ("plain",)
    fields = frozenset({"rows", "width", "dtype"})
    patch_points = (PatchPoint(_TARGET, "affine"), PatchPoint(_TARGET, "Affine.__call__"))
    example = "toy-r8-w64-float32"

    def parse(self, slug: str) -> Workload:
        return Workload.parse(slug)

    def inputs(self, variant: str) -> tuple[str, ...]:
        return ("x", "scale", "shift")

    def describe(self, *call: Any) -> Workload | str:
        x, scale, shift = self.arguments(*call)
        if x.ndim != 2 or scale.shape != x.shape[1:] or shift.shape != x.shape[1:]:
            return "not rows with a scale and a shift"
        return Workload(*x.shape, str(x.dtype).removeprefix("mlx.core."))

    def arguments(self, *call: Any) -> tuple[Any, ...]:
        if isinstance(call[0], target.Affine):
            layer, x = call
            return x, layer.scale, layer.shift
        return call

    def bind(
        self, workload: Workload, names: frozenset[str], *, broadcast: bool
    ) -> Callable[..., list[mx.array | None]]:
        return lambda x, scale, shift: [x, scale, shift]

    def trial(
        self, workload: Workload, given: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
        dtype = getattr(mx, workload.dtype)
        one = mx.ones((workload.width,), dtype)
        given = (mx.ones((workload.rows, workload.width), dtype), one, one)
        return given, lambda out: "" if mx.all(out == 2).item() else "1 * 1 + 1 is not 2"

    @property
    def questions(self) -> Questions[Bucket, Workload]:
        from .questions import QUESTIONS

        return QUESTIONS

    @property
    def search(self) -> SearchSpace[Bucket]:
        from .search import SEARCH

        return SEARCH


OP = Toy()
