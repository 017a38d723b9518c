"""Which expert each row goes to, drawn: what a model's router may say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .workload import Workload

__all__ = ["ROUTINGS", "deal", "routing"]

Indices = npt.NDArray[np.uint32]

# Half of all rows to two experts; each to any; to as many as there can be; all to one; and in the
# order of the experts, as mlx-lm hands over many rows.
ROUTINGS = ("skewed", "uniform", "distinct", "alike", "uniform, sorted", "skewed, sorted")


def routing(rng: np.random.Generator, w: Workload, kind: str) -> Indices:
    """Indices [batch, length] of one of ROUTINGS. The first and the last expert are among those of
    a routing to several, and what is not sorted is in another order."""
    kind, _, order = kind.partition(", ")
    ends = np.unique([0, w.experts - 1])[::-1]
    some = rng.permutation(w.experts)
    if kind == "alike":
        flat = np.full(w.rows, some[0])
    elif kind == "distinct":
        chosen = np.concatenate([ends, np.setdiff1d(some, ends, assume_unique=True)])[: w.rows]
        flat = np.resize(rng.permutation(chosen), w.rows)
    else:
        weights = np.ones(w.experts)
        weights[some[:2]] = w.experts if kind == "skewed" else 1
        again = w.length > w.experts
        tokens = [rng.choice(w.experts, w.length, again, weights / weights.sum())
                  for _ in range(w.batch)]  # fmt: skip
        flat = np.concatenate(tokens)
        if w.rows > 1:
            flat[rng.choice(w.rows, len(ends), False)] = ends
    if order:
        flat = np.sort(flat)
    elif (np.diff(flat) >= 0).all():
        flat = flat[::-1]
    return flat.reshape(w.batch, w.length).astype(np.uint32)


def deal(
    rng: np.random.Generator, w: Workload, sets: int, ordered: bool
) -> Iterator[tuple[int, Indices]]:
    """(set, indices [batch, length]) of calls that read all experts of `sets` sets of weights, once
    each but for a rest. A call's rows go to as many experts as rows that choose alike, on average.
    """
    for at in range(sets):
        cards = rng.permutation(w.experts)
        for begin in range(0, w.experts - w.chosen + 1, w.chosen):
            hand = cards[begin : begin + w.chosen]
            more = rng.choice(hand, w.rows - len(hand))
            flat = rng.permutation(np.concatenate([hand, more]))
            flat = np.sort(flat) if ordered else flat
            yield at, flat.reshape(w.batch, w.length).astype(np.uint32)
