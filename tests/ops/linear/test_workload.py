from __future__ import annotations

import random

import pytest

from mlx_lm_openevolve.errors import WorkloadError
from mlx_lm_openevolve.ops import DTYPES, parse
from mlx_lm_openevolve.ops.linear import OP, Workload

ONE = Workload(1, 1, 4096, 14336, "bfloat16")


def test_slugs_are_the_documented_ones() -> None:
    assert ONE.slug == "linear-m1-n4096-k14336-bfloat16-q4g64"
    assert ONE.exact(batch=2, length=3).slug == "linear-m2x3-n4096-k14336-bfloat16-q4g64"
    assert ONE.exact(group=32, variant="mxfp4").slug == "linear-m1-n4096-k14336-bfloat16-mxfp4"
    assert ONE.layout == "linear-n4096-k14336-bfloat16-q4g64"


def test_slug_and_parse_are_inverse_over_random_workloads() -> None:
    random.seed(0)
    for _ in range(300):
        variant = random.choice(["affine", "mxfp4"])
        packed = variant == "mxfp4"
        w = Workload(
            batch=random.randint(1, 8),
            length=random.randint(1, 4),
            n=random.randint(1, 200_000),
            k=128 * random.randint(1, 200),
            dtype=random.choice(DTYPES),
            bits=4 if packed else random.choice([4, 8]),
            group=32 if packed else random.choice([32, 64, 128]),
            variant=variant,
        )
        assert parse(w.slug) == w
        assert parse(w.bucket().slug).bucket() == w.bucket() == w.bucket().bucket()
        assert w.bucket().rows // 2 < w.rows <= w.bucket().rows
        assert w.bucket().layout == w.layout


@pytest.mark.parametrize(
    "slug",
    [
        "linear-m33-n64-k64-bfloat16-q4g64",
        "linear-m2x1-n64-k64-bfloat16-q4g64",
        "linear-m01-n64-k64-bfloat16-q4g64",
        "linear-m1-n64-k96-bfloat16-q4g64",
        "linear-m1-n64-k64-bfloat16-q3g64",
        "linear-m1-n64-k64-bfloat16-q4g16",
        "linear-m1-n0-k64-bfloat16-q4g64",
        "linear-m1-n64-k64-int8-q4g64",
        "linear-m1-n64-k64-bfloat16",
    ],
)
def test_what_is_no_workload_is_refused(slug: str) -> None:
    with pytest.raises(WorkloadError, match="workload"):
        OP.parse(slug)


def test_bytes_are_those_of_the_arrays() -> None:
    numbers = 4096 * 14336
    assert ONE.stored_bytes() == numbers // 2 + 2 * 2 * numbers // 64
    assert ONE.moved_bytes() == ONE.stored_bytes() + 2 * (4096 + 14336)
    assert ONE.exact(group=32, variant="mxfp4").stored_bytes() == numbers // 2 + numbers // 32
    assert ONE.flops() == 2.0 * numbers


def test_neighbours_have_half_and_twice_the_rows() -> None:
    rows = {n: [b.rows for b in ONE.exact(batch=n).bucket().neighbours()] for n in (1, 8, 32)}
    assert rows == {1: [2], 8: [4, 16], 32: [16]}
