"""What the gate asks of attention kernels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..base import DTYPES, Mutant, Question, Questions
from ..source_mutants import SourceMutant
from . import mutants
from .mutants.source import SOURCE_MUTANTS
from .reference.baseline import baseline_name
from .reference.inputs import case, cases, counts, mask
from .reference.question import AttentionQuestion, CountQuestion
from .reference.timing_inputs import AttentionTimingInputs
from .workload import MASKS, VARIANTS, Bucket, Workload

__all__ = ["QUESTIONS"]


class _AttentionQuestions(Questions[Bucket, Workload]):
    unit = "sum of p |v|"
    correct: Mutant = mutants.correct
    usual = tuple(
        Bucket(1, 8, 2, q_len, 128, dim, dim, dtype, mask, sinks)
        for mask, sinks in (("none", False), ("causal", False), ("bool", False), ("additive", True))
        for q_len in (1, 8)
        for dim in (64, 96, 128)
        for dtype in ("bfloat16", "float16", "float32")
        if (q_len, mask) != (1, "causal")
    )

    def cases(
        self, bucket: Bucket, seed: int, brief: bool = False
    ) -> Iterator[Callable[[], Question]]:
        for made in cases(bucket, seed, brief):
            yield lambda made=made: AttentionQuestion(made)  # type: ignore[misc]
        for made in () if brief else counts(bucket, seed):
            yield lambda made=made: CountQuestion(made)  # type: ignore[misc]

    def quick(self, small: Bucket, bucket: Bucket, seed: int) -> Sequence[Question]:
        """Lost, foreign or shifted keys and rows; a softmax without its maximum and padded keys. At
        a length off every tile; the elements of a key apart in the second; the third at up to four
        times as many keys."""
        q_len = min(small.q_len, small.kv_len - 4)
        exact = small.exact(kv_len=max(small.kv_len - 3, q_len + 1), q_len=q_len)
        needles = case("needles", exact, seed)
        flat = case("flat", exact, seed, keys="columns", values="columns")
        made = [AttentionQuestion(needles), AttentionQuestion(flat)]
        longest = min(4 * small.kv_len, bucket.kv_len)
        if longest > small.kv_len:
            long = exact.exact(kv_len=longest - 3)
            made.append(AttentionQuestion(case("needles", long, seed)))
        return made

    def proxy(self, bucket: Bucket) -> Bucket:
        """One or two sequences and KV heads, as many query heads each (to four in prefill), the
        same q_len range, dtype, mask and head dims."""
        kv_heads = min(bucket.kv_heads, 2)
        group = bucket.group if bucket.q_len <= 8 else min(bucket.group, 4)
        return replace(
            bucket,
            batch=min(bucket.batch, 2),
            kv_heads=kv_heads,
            q_heads=kv_heads * group,
            kv_len=min(bucket.kv_len, 128 if bucket.q_len <= 32 else 64),
        )

    def larger(self, small: Bucket, bucket: Bucket) -> Bucket | None:
        if small.kv_len >= bucket.kv_len:
            return None
        return replace(small, kv_len=2 * small.kv_len)

    def mutants(self, workload: Workload) -> Sequence[Mutant]:
        return mutants.applicable(workload)

    def baseline_name(self, workload: Workload) -> str:
        return baseline_name(workload)

    def timing_inputs(
        self, workload: Workload, cache_bytes: int, memory: int, seed: int
    ) -> AttentionTimingInputs:
        return AttentionTimingInputs(workload, mask(workload, seed), cache_bytes, memory, seed)

    def sealed(self, bucket: Bucket, draw: int) -> Workload:
        """The largest workload at another length."""
        top = bucket.largest()
        low = max(bucket.kv_len // 2 + 1, top.q_len)
        return top.exact(kv_len=low + draw % max(1, bucket.kv_len - low))

    def static_rules(self, text: str, bucket: Bucket) -> str:
        """A kernel must read the exact length: a bucket's end is not it."""
        if not re.search(r"\bkeys_shape\s*\[\s*2\s*\]|\blength\s*\[\s*0\s*\]", text):
            return "the exact KV length is not read: no launch has keys_shape[2]"
        return ""

    def source_mutants(self) -> Sequence[SourceMutant]:
        return SOURCE_MUTANTS

    def matrix_key(self, bucket: Bucket) -> str:
        return f"{bucket.variant}/{bucket.dtype}/{bucket.mask}"

    def matrix(self) -> Iterator[tuple[str, Bucket, Bucket]]:
        for variant, dtype, kind in itertools.product(VARIANTS, DTYPES, MASKS):
            bucket = Bucket(2, 8, 2, 8, 128, 64, 64, dtype, kind, sinks=variant == "float")
            if variant == "quantized":
                bucket = replace(bucket, kv_bits=4, kv_group=32)
            elif variant == "latent":
                bucket = Bucket(2, 16, 1, 8, 128, 512, 512, dtype, kind, latent=True)
            yield self.matrix_key(bucket), bucket, replace(bucket, kv_len=4096)

    def exercised(
        self, params: Mapping[str, int], values: Mapping[str, Sequence[int]]
    ) -> dict[str, int]:
        """Few simdgroups, so that few keys reach more than one split; splits for all launches."""
        chosen = dict(params)
        if "simdgroups" in values:
            chosen["simdgroups"] = min(value for value in values["simdgroups"] if value > 1)
        if "splits" in values:
            least = max(4, params["splits"])
            chosen["splits"] = min(value for value in values["splits"] if value >= least)
        return chosen


QUESTIONS = _AttentionQuestions()
