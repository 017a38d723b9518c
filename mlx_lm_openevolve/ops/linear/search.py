"""What the search knows of quantised products."""

from __future__ import annotations

import math
from typing import Any

from ..base import SearchSpace
from .workload import Bucket

__all__ = ["SEARCH"]

RULES = """\
x [batch, length, K] of type T, a strided view: index it by x_strides[0..2], in elements. The last
stride is 1 in nearly every call. weight uint32 [N, K * BITS / 32], row contiguous: number i of a
word is its bits BITS * i and on. scales, biases [N, K / GROUP] of type T, row contiguous: a weight
is number * scale + bias. In variant mxfp4 numbers are 4-bit floats (E2M1), scales are bytes, 2 to
the power of byte - 127, and there are no biases. `out` [batch, length, N], row contiguous. Sum in
float32. Every weight should be read once for all rows.
Variants affine_experts and mxfp4_experts: weights of several experts, [experts, N, ...], and each
row goes to one of them. x has `batch` rows of K numbers, indices uint32 `length` for each of them,
`out` [batch, length, 1, N]; all lie row by row, without strides. Row i of batch * length is row
i / length of x times the matrix of expert indices[i]. Rows of one expert should share its weights.
"""
# (outputs, inputs) of the layers of Llama-3.1-8B: attention's projections, the feed-forward's, and
# the vocabulary's.
_LAYERS = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128256, 4096))


# Of an expert of Qwen3-30B-A3B, which has 128 of them and takes eight for a token.
_EXPERT, _EXPERTS = ((768, 2048), (2048, 768)), 128


def _suite(*rows: int) -> tuple[Bucket, ...]:
    return tuple(Bucket(m, 1, n, k, "bfloat16") for m in rows for n, k in _LAYERS)


def _experts(rows: int) -> tuple[Bucket, ...]:
    packing: Any = {"variant": "affine_experts", "experts": _EXPERTS}
    return tuple(Bucket(rows, 1, n, k, "bfloat16", **packing) for n, k in _EXPERT)


class _ProductSearch(SearchSpace[Bucket]):
    suites = {  # noqa: RUF012
        "rows-1": _suite(1),
        "rows-4": _suite(4),
        "rows-16": _suite(16),
        "experts-8": _experts(8),
        "experts-64": _experts(64),
    }
    default_suite = "rows-4"
    task = (
        "You write kernels that multiply a few rows by a quantised matrix. A kernel must be right"
        " for every input and faster than MLX's own mx.quantized_matmul, or mx.gather_qmm where"
        " rows go to experts, on the workloads below."
    )
    rules = RULES
    length = r"\bK\b|shape\s*\[\s*2\s*\]"

    def coordinates(self, bucket: Bucket) -> list[float]:
        sizes = (bucket.rows, bucket.n, bucket.k, bucket.bits, bucket.experts or 1)
        kinds = (bucket.dtype == "float32", bucket.mode == "mxfp4")
        return [*(math.log2(size) / 4 for size in sizes), *map(float, kinds)]


SEARCH = _ProductSearch()
