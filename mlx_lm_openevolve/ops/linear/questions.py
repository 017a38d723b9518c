"""What the gate asks of kernels for quantised products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..base import DTYPES, Mutant, Question, Questions
from ..source_mutants import SourceMutant
from . import mutants
from .reference import ProductQuestion, cases
from .source_mutants import SOURCE_MUTANTS
from .timing_inputs import ProductTimingInputs
from .workload import VARIANTS, Bucket, Workload

__all__ = ["QUESTIONS"]

_N, _K = 64, 512  # of a proxy, beside what is left of whole tiles
_EXPERTS = 5  # of a proxy


class _ProductQuestions(Questions[Bucket, Workload]):
    unit = "sum of |x| (|w| + step)"
    correct: Mutant = mutants.correct
    usual = tuple(
        Bucket(rows, 1, 96, 512, dtype, bits, group, variant)
        for variant, bits, group in (
            *(("affine", bits, group) for bits in (4, 8) for group in (64, 32, 128)),
            ("mxfp4", 4, 32),
        )
        for rows in (1, 4, 16)
        for dtype in ("bfloat16", "float16", "float32")
    ) + tuple(
        Bucket(rows, 1, 96, 512, dtype, bits, group, f"{mode}_experts", 6)
        for mode, bits, group in (("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32))
        for rows in (1, 8, 64)
        for dtype in ("bfloat16", "float16")
    )

    def cases(
        self, bucket: Bucket, seed: int, brief: bool = False
    ) -> Iterator[Callable[[], Question]]:
        for case in cases(bucket, seed, brief):
            yield lambda case=case: ProductQuestion(case, seed)  # type: ignore[misc]

    def quick(self, small: Bucket, bucket: Bucket, seed: int) -> Sequence[Question]:
        """Lost and shifted numbers; sums; where rows are longer than the proxy's, these once more
        at up to four times as many numbers."""
        made = list(itertools.islice(cases(small, seed, True), 2))
        longer = min(4 * small.k, bucket.k) // small.group * small.group
        if longer > small.k:
            made.append(next(cases(replace(small, k=longer), seed, True)))
        return [ProductQuestion(case, seed) for case in made]

    def proxy(self, bucket: Bucket) -> Bucket:
        """The same rows and packing; of outputs and of numbers a tile, and what is left of whole
        tiles; few experts."""
        n = bucket.n if bucket.n <= 2 * _N else _N + bucket.n % _N
        k = bucket.k if bucket.k <= 2 * _K else _K + bucket.k % _K
        return replace(bucket, n=n, k=k, experts=min(bucket.experts, _EXPERTS))

    def larger(self, small: Bucket, bucket: Bucket) -> Bucket | None:
        if small.k < bucket.k:
            return replace(small, k=min(2 * small.k, bucket.k))
        if small.n < bucket.n:
            return replace(small, n=min(2 * small.n, bucket.n))
        if small.experts < bucket.experts:
            return replace(small, experts=min(2 * small.experts, bucket.experts))
        return None

    def mutants(self, workload: Workload) -> Sequence[Mutant]:
        return mutants.applicable(workload)

    def baseline_name(self, workload: Workload) -> str:
        return "mx.gather_qmm" if workload.experts else "mx.quantized_matmul"

    def timing_inputs(
        self, workload: Workload, cache_bytes: int, memory: int, seed: int
    ) -> ProductTimingInputs:
        return ProductTimingInputs(workload, cache_bytes, memory, seed)

    def sealed(self, bucket: Bucket, draw: int) -> Workload:
        """Another number of rows of the range."""
        low = bucket.batch // 2 + 1
        return bucket.exact(batch=low + draw % max(1, bucket.batch - low))

    def source_mutants(self) -> Sequence[SourceMutant]:
        return SOURCE_MUTANTS

    def matrix_key(self, bucket: Bucket) -> str:
        return f"{bucket.variant}/{bucket.dtype}"

    def matrix(self) -> Iterator[tuple[str, Bucket, Bucket]]:
        """Eight rows of four bits, as sequences, as tokens and as both; the last tile is none."""
        for variant, dtype in itertools.product(VARIANTS, DTYPES):
            experts = _EXPERTS if variant.endswith("_experts") else 0
            group = 32 if variant.startswith("mxfp4") else 64
            bucket = Bucket(8, 1, 72, 320, dtype, 4, group, variant, experts)
            yield self.matrix_key(bucket), bucket, bucket


QUESTIONS = _ProductQuestions()
