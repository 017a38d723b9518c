"""A method of exactly one class, replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.nn as nn

from mlx_lm_openevolve.runtime import patch as patches


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: ("replaced", original(*args))


class Doubling(nn.Module):
    def __call__(self, x: float) -> Any:
        return 2 * x


class Tripling(Doubling):
    def __call__(self, x: float) -> Any:
        return super().__call__(x) * 1.5


class Inheriting(Doubling):
    pass


def test_a_method_is_replaced_for_exactly_its_class_and_not_in_training() -> None:
    stock = vars(Doubling)["__call__"]
    made_here = patches.made(sys.modules[__name__], "Doubling.__call__", wrap)
    doubling, tripling, inheriting = (cls().eval() for cls in (Doubling, Tripling, Inheriting))
    made_here.install()
    made_here.install()
    try:
        assert doubling(4) == ("replaced", 8)
        assert (tripling(4), inheriting(4)) == (12, 8)
        assert doubling.train()(4) == 8
        assert doubling.eval()(4) == ("replaced", 8)
        assert Doubling.__call__.__wrapped__ is stock  # type: ignore[attr-defined]
        assert made_here.unreached() == []
    finally:
        made_here.restore()
    made_here.restore()
    assert vars(Doubling)["__call__"] is stock
    assert doubling(4) == 8


def test_a_method_that_is_inherited_is_inherited_again() -> None:
    made_here = patches.made(sys.modules[__name__], "Inheriting.__call__", wrap)
    made_here.install()
    assert Inheriting().eval()(4) == ("replaced", 8)
    assert Doubling().eval()(4) == 8
    made_here.restore()
    assert "__call__" not in vars(Inheriting)


def test_a_method_that_another_library_wrapped_since_is_left_alone() -> None:
    stock = vars(Doubling)["__call__"]
    made_here = patches.made(sys.modules[__name__], "Doubling.__call__", wrap)
    made_here.install()
    foreign = lambda self, x: x  # noqa: E731
    Doubling.__call__ = foreign  # type: ignore[method-assign]
    try:
        assert made_here.unreached() == [f"{__name__}.Doubling.__call__ (changed since)"]
        made_here.restore()
        assert vars(Doubling)["__call__"] is foreign
    finally:
        Doubling.__call__ = stock  # type: ignore[method-assign]
