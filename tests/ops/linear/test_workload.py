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


EXPERTS = Workload(1, 8, 768, 2048, "bfloat16", variant="affine_experts", experts=128)


def test_slugs_of_experts_are_the_documented_ones() -> None:
    assert EXPERTS.slug == "linear-m1x8-e128-n768-k2048-bfloat16-q4g64"
    assert EXPERTS.bucket().slug == "linear-m8-e128-n768-k2048-bfloat16-q4g64"
    assert EXPERTS.layout == "linear-e128-n768-k2048-bfloat16-q4g64"
    packed = EXPERTS.exact(variant="mxfp4_experts", group=32)
    assert packed.slug == "linear-m1x8-e128-n768-k2048-bfloat16-mxfp4"
    for w in (EXPERTS, packed, EXPERTS.exact(batch=32)):
        assert parse(w.slug) == w
        assert parse(w.bucket().slug).bucket() == w.bucket()
    assert EXPERTS.shape == (1, 8, 1, 768)


def test_bytes_of_experts_are_those_of_the_chosen() -> None:
    matrix = ONE.exact(n=768, k=2048).stored_bytes()
    chosen = {rows: EXPERTS.exact(batch=rows, length=1).chosen for rows in (1, 8, 64, 256)}
    assert chosen == {1: 1, 8: 8, 64: 51, 256: 111}
    assert EXPERTS.stored_bytes() == 8 * matrix
    assert EXPERTS.scratch_bytes() == 120 * matrix
    assert ONE.scratch_bytes() == 0


@pytest.mark.parametrize(
    "slug",
    [
        "linear-m257-e8-n64-k64-bfloat16-q4g64",
        "linear-m1-e0-n64-k64-bfloat16-q4g64",
        "linear-m1-e08-n64-k64-bfloat16-q4g64",
        "linear-m1-e8-n64-k64-bfloat16-q3g64",
    ],
)
def test_what_is_no_workload_of_experts_is_refused(slug: str) -> None:
    with pytest.raises(WorkloadError, match="workload"):
        OP.parse(slug)
    with pytest.raises(WorkloadError, match="experts in variant"):
        ONE.exact(experts=8)
