"""benchmarks/product_counters.py: what a shipped kernel reads of weights, and MLX's."""

from __future__ import annotations

import pytest
from product_counters import mlxs, ours

from mlx_lm_openevolve.metalhost import compiler_available

HOST, REASON = compiler_available()
pytestmark = pytest.mark.skipif(not HOST, reason=f"no compiler for metalhost: {REASON}")


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
