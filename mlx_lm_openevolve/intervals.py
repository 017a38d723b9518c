"""Intervals of medians, by resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["median_interval"]

_RESAMPLES = 2000


def median_interval(
    samples: Sequence[float], confidence: float, seed: int = 0
) -> tuple[float, float]:
    """The lower and the upper end of the interval in which the median of `samples` lies with
    `confidence` (between 0 and 1): the percentile bootstrap over 2000 resamples of the same length,
    drawn with `seed`. Raises ValueError where there are no samples.

    Source: B. Efron, Bootstrap Methods: Another Look at the Jackknife, The Annals of Statistics
    7(1), 1979; the percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13.
    """
    values, count = np.asarray(samples, np.float64), len(samples)
    if not count:
        raise ValueError("no samples")
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(0, count, (_RESAMPLES, count))], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
