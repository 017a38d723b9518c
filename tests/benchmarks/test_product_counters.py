"""benchmarks/product_counters.py: what a shipped kernel reads of weights, and MLX's."""

from __future__ import annotations

import pytest
from product_counters import EXPERTS, experts, mlxs, ours
from samples import needs_clang

pytestmark = needs_clang


@pytest.mark.parametrize(
    ("rows", "packing"), [(1, "q4g64"), (3, "q8g64"), (7, "mxfp4"), (16, "q4g32")]
)
def test_weights_are_read_exactly_once(rows: int, packing: str) -> None:
    found = list(ours(rows, packing))
    assert found
    assert all(row["weights"] == 1.0 for row in found), found


def test_mlxs_vector_product_reads_them_for_every_row() -> None:
    by = {row["kernel"]: row["weights"] for row in mlxs(3, "q4g64")}
    assert by["MLX qmv_fast"] == 3.0


@pytest.mark.parametrize(  # each number of rows, each packing: neither asks for the other
    ("rows", "packing"), [(1, "q4g64"), (8, "mxfp4"), (20, "q4g64"), (20, "mxfp4")]
)
def test_weights_of_a_chosen_expert_are_read_exactly_once(rows: int, packing: str) -> None:
    """Of experts that no more than eight rows go to; none is read that no row goes to."""
    shared = [3, 0, 7, 3, 3, 1, 0, 3]
    for chosen in ([], shared[:rows], [5] * min(rows, 8)):
        [found, *_] = experts(len(chosen) or rows, packing, chosen)
        assert found["weights"] == 1.0, (chosen, found)


def test_mlxs_gathered_product_reads_an_expert_for_each_of_its_rows() -> None:
    *_, mlx = experts(4 * EXPERTS, "q4g64")
    assert mlx["kernel"] == "MLX gather_qmv_fast"
    assert mlx["weights"] >= 4.0
