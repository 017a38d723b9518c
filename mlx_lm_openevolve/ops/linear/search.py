"""What the search knows of quantised products."""

from __future__ import annotations

import math

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
"""
# (outputs, inputs) of the layers of Llama-3.1-8B: attention's projections, the feed-forward's, and
# the vocabulary's.
_LAYERS = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128256, 4096))


def _suite(*rows: int) -> tuple[Bucket, ...]:
    return tuple(Bucket(m, 1, n, k, "bfloat16") for m in rows for n, k in _LAYERS)


class _ProductSearch(SearchSpace[Bucket]):
    suites = {"rows-1": _suite(1), "rows-4": _suite(4), "rows-16": _suite(16)}  # noqa: RUF012
    default_suite = "rows-4"
    task = (
        "You write kernels that multiply a few rows by a quantised matrix. A kernel must be right"
        " for every input and faster than MLX's own mx.quantized_matmul on the workloads below."
    )
    rules = RULES
    length = r"\bK\b|shape\s*\[\s*2\s*\]"

    def coordinates(self, bucket: Bucket) -> list[float]:
        sizes = (bucket.rows, bucket.n, bucket.k, bucket.bits)
        kinds = (bucket.dtype == "float32", bucket.variant == "mxfp4")
        return [*(math.log2(size) / 4 for size in sizes), *map(float, kinds)]


SEARCH = _ProductSearch()
