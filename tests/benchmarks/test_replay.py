"""benchmarks/replay.py: `params` over tables of points, measured and synthetic, without a GPU."""

from __future__ import annotations

import math
import random

from replay import MEASURED, Table, compare, shipped

from mlx_lm_openevolve.ops.attention.workload import Bucket

LARGE = Bucket(1, 32, 8, 1, 4096, 128, 128, "bfloat16")


def synthetic(seed: int, size: int = 200) -> Table:
    """A smooth bowl with a rugged surface and one interaction over the knobs of gqa_decode: no
    measurement."""
    kernel = shipped()["gqa_decode"]
    rng = random.Random(seed)
    centre = {param.name: rng.random() for param in kernel.params}
    weight = {param.name: rng.choice([0.2, 0.6, 1.2, 2.4]) for param in kernel.params}
    points: dict[tuple[str, tuple[tuple[str, int], ...]], float] = {}
    while len(points) < size:
        values = {param.name: rng.choice(param.values) for param in kernel.params}
        log = 0.3 * abs(math.log2(values["splits"] * values["simdgroups"] / 64)) / 6
        for param in kernel.params:
            rank = param.values.index(values[param.name]) / (len(param.values) - 1)
            log += weight[param.name] * (rank - centre[param.name]) ** 2
        log += random.Random(f"{seed} {sorted(values.items())}").gauss(0, 0.05)
        points["gqa_decode", tuple(values.items())] = 2e-5 * math.exp(log)
    return Table({"gqa_decode": kernel}, {LARGE: points})


def test_the_measured_points_are_searched_well_within_40_candidates() -> None:
    table = Table.read(MEASURED, shipped()).richest(200)
    assert len(table) >= 200
    found = compare(table, candidates=40, seeds=5)
    assert found["params"].after(40) <= 1.05
    assert found["params"].after(40) < found["random"].after(40)


def test_a_synthetic_table_is_searched_well_within_40_candidates() -> None:
    found = compare(synthetic(1), candidates=40, seeds=5)
    assert found["params"].after(40) <= 1.05
    assert found["params"].after(20) < found["random"].after(20)
