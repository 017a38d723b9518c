"""A surrogate of the measurements: a Gaussian process over the settings of one kernel.

It says which settings to try next: those whose log cost (seconds, or where nothing is timed bytes
moved) may be lowest. Regression: Rasmussen and
Williams, Gaussian Processes for Machine Learning, 2006, chapter 2, with a squared exponential
covariance. Choice by mean less deviation: the confidence bound of Srinivas et al., Gaussian process
optimization in the bandit setting, ICML 2010.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import Bucket

from ..archive import Archive

__all__ = ["Observations", "observations", "place", "point", "scores"]

Params = dict[str, int]
Floats = npt.NDArray[np.float64]

# A failed setting counts as this many times slower than the slowest that ran.
_FAILED = 1.5
_NOISE = 0.02  # variance of an observation, in units of the process's own
_CAUTION = 0.5  # deviations below the mean


def place(bucket: Bucket) -> Floats:
    """A workload as coordinates [n], as many as its family has."""
    return np.array(ops.of(bucket).search.coordinates(bucket))


def point(kernel: Kernel, workload: Bucket, params: Mapping[str, int]) -> Floats:
    """A setting as coordinates [params + n]: each param by the rank of its value, 2.5 units from
    end to end, and the workload at half weight."""
    ranks = [
        param.values.index(params[param.name]) / max(1, len(param.values) - 1)
        for param in kernel.params
    ]
    return np.array([*(2.5 * rank for rank in ranks), *(0.5 * place(workload))])


@dataclass(frozen=True)
class Observations:
    """What is known of one kernel: points [m, params + n], and the log cost [m] of each over the
    median of its workload."""

    points: Floats
    logs: Floats

    def __len__(self) -> int:
        return len(self.logs)


def observations(archive: Archive, kernel: Kernel) -> Observations:
    """The settings of a kernel that were measured or failed, at the workloads where any ran."""
    points, logs = [], []
    for slug in archive.slugs:
        trials = archive.tried(kernel.id, slug)
        costs = [archive.cost(kernel.id, slug, params) for params in trials]
        ran = [math.log(c) for c in costs if math.isfinite(c)]
        if not ran:
            continue
        middle, failed = float(np.median(ran)), max(ran) + math.log(_FAILED)
        for params, cost in zip(trials, costs, strict=True):
            if not math.isnan(cost):
                points.append(point(kernel, archive.workload(slug), params))
                logs.append((math.log(cost) if math.isfinite(cost) else failed) - middle)
    return Observations(np.array(points), np.array(logs))


def scores(points: Floats, known: Observations) -> Floats:
    """For points [m, params + 9] the log cost [m] that the process thinks possible: its mean
    less a part of its deviation. Lower is more promising."""

    def covariance(a: Floats, b: Floats) -> Floats:
        near: Floats = np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 2)
        return near

    x = known.points
    inverse = np.linalg.inv(covariance(x, x) + _NOISE * np.eye(len(x)))
    cross = covariance(points, x)
    centre, spread = float(known.logs.mean()), max(float(known.logs.std()), 0.05)
    mean = centre + cross @ inverse @ (known.logs - centre)
    variance = np.maximum(1 - np.einsum("ij,jk,ik->i", cross, inverse, cross), 1e-9)
    return np.asarray(mean - _CAUTION * spread * np.sqrt(variance))
