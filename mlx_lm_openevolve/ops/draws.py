"""Drawing by strata, for the questions of every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["spread"]

X = TypeVar("X")


def spread(rng: np.random.Generator, values: Sequence[X], count: int) -> list[X]:
    """`count` of the values, each as often as any other, in a random order."""
    drawn: list[X] = []
    while len(drawn) < count:
        drawn += [values[i] for i in rng.permutation(len(values))]
    return drawn[:count]
