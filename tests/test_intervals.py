"""The interval of a median: against counting, against its promise, and the same for a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlx_lm_openevolve.intervals import median_interval


def test_one_sample_is_its_own_interval_and_none_is_an_error() -> None:
    assert median_interval([1.25], 0.99) == (1.25, 1.25)
    with pytest.raises(ValueError, match="no samples"):
        median_interval([], 0.99)


def test_of_three_samples_the_ends_are_drawn_often_enough() -> None:
    # The median of a resample of three is the least one with probability 7/27 = 0.26: what is cut
    # off at either end is less of the medians at 0.56 (0.22), and more at 0.4 (0.3).
    assert median_interval([1.0, 2.0, 4.0], 0.56) == (1.0, 4.0)
    assert median_interval([1.0, 2.0, 4.0], 0.4) == (2.0, 2.0)


def test_a_seed_gives_the_same_interval_and_the_order_of_samples_no_other_meaning() -> None:
    samples = np.random.default_rng(1).lognormal(0, 0.1, 16).tolist()
    assert median_interval(samples, 0.99, 3) == median_interval(samples, 0.99, 3)
    low, high = median_interval(samples, 0.99)
    assert low < float(np.median(samples)) < high
    narrow = median_interval(samples, 0.5)
    assert low < narrow[0] <= narrow[1] < high


def test_the_true_median_lies_within_as_often_as_promised() -> None:
    rng = np.random.default_rng(2)
    rounds = 300
    inside = 0
    for seed in range(rounds):
        low, high = median_interval(rng.lognormal(0, 0.1, 16).tolist(), 0.95, seed)
        inside += low <= 1.0 <= high
    # Within four standard deviations of a binomial count.
    assert abs(inside / rounds - 0.95) < 4 * math.sqrt(0.95 * 0.05 / rounds)
