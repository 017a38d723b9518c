"""The surrogate: a Gaussian process, against its closed form and against what it should prefer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import evolve_kernels
import numpy as np
import pytest

from mlx_lm_openevolve.evolve import events
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Config
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult
from mlx_lm_openevolve.evolve.propose import surrogate

SLUG = evolve_kernels.DECODE.slug


def test_one_observation_gives_the_closed_form() -> None:
    known = surrogate.Observations(np.array([[0.0]]), np.array([0.3]))
    near, far = surrogate.scores(np.array([[1.0], [50.0]]), known)
    like = math.exp(-0.5)
    # The mean is that of all observations; the deviation grows with the distance.
    assert near == pytest.approx(0.3 - 0.5 * 0.05 * math.sqrt(1 - like**2 / 1.02))
    assert far == pytest.approx(0.3 - 0.5 * 0.05)


def test_what_lies_near_the_fast_is_preferred() -> None:
    x = np.linspace(0, 4, 9)[:, None]
    known = surrogate.Observations(x, (x[:, 0] - 3) ** 2)
    points = np.array([[0.25], [1.75], [2.9]])
    assert np.argsort(surrogate.scores(points, known)).tolist() == [2, 1, 0]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive.create(tmp_path / "run", Config("host", (evolve_kernels.DECODE,), (1.0,)), {})
    made.registry.add(evolve_kernels.kernel())
    yield made
    made.close()


def test_a_failure_is_slower_than_all_that_ran_and_what_is_in_flight_says_nothing(
    archive: Archive,
) -> None:
    kernel = evolve_kernels.kernel()
    assert len(surrogate.observations(archive, kernel)) == 0
    for number, (step, seconds) in enumerate([(1, 1e-5), (2, None), (4, 0.0)], 1):
        candidate = Candidate(number, "params", kernel.id, (SLUG,), {"step": step})
        archive.add(events.Proposed(candidate))
        if seconds == 0.0:
            continue  # in flight
        evaluation = Evaluation("wrong", "why")
        if seconds is not None:
            result = WorkloadResult({"step": step}, seconds, 1.0, 1.0, 1.0)
            evaluation = Evaluation(results={SLUG: result})
        archive.add(events.Evaluated(number, evaluation))
    known = surrogate.observations(archive, kernel)
    assert known.logs.tolist() == pytest.approx([0.0, math.log(1.5)])
    assert known.points.shape == (2, 1 + 9)
    assert known.points[:, 0].tolist() == [0.0, 1.25]  # ranks of the values 1 and 2 of 1, 2, 4
