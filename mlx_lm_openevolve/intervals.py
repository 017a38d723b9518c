"""Intervals of medians, by resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["median_interval", "median_intervals"]

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
    low, high = median_intervals(np.array([samples], np.float64), confidence, seed)
    return float(low[0]), float(high[0])


def median_intervals(
    samples: npt.NDArray[np.float64], confidence: float, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """As `median_interval` for every row of `samples` [rows, count]: (low, high), both [rows]."""
    count = samples.shape[-1]
    if not count:
        raise ValueError("no samples")
    rng = np.random.default_rng(seed)
    # The median of a resample is that of the ranks drawn: equal ones for all rows.
    ranks = np.sort(rng.integers(0, count, (_RESAMPLES, count)), axis=1)
    ordered = np.sort(samples, axis=-1)
    medians = (ordered[:, ranks[:, (count - 1) // 2]] + ordered[:, ranks[:, count // 2]]) / 2
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    return low, high
