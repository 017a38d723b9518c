"""What the search knows of attention."""

from __future__ import annotations

import math

from ..base import SearchSpace
from .suites import SUITES
from .workload import Bucket

__all__ = ["SEARCH"]

RULES = """\
queries [B,Hq,L,D], keys [B,Hkv,N,D], values [B,Hkv,N,Dv] of type T, strided views: index them by
queries_strides[0..3] and so on, in elements. The last stride is 1 in nearly every call, but not in
all: take a fast path where it is 1 and rows are aligned. keys_shape[2] is N, exactly.
mask [B,Hq,L,N], bool or T (additive), by mask_strides, 0 on broadcast axes; a dummy without a mask.
sinks [Hq]; scale float32 [1]; `out`, the last launch's output, [B,Hq,L,Dv], row contiguous. Query
row i of L stands at position N - L + i; causal: key j <= it. Query head h reads KV head
h / (Hq / Hkv). A row that sees no key is zeros, or the mean of V over its keys of the largest mask
value: -infinity has no weight. Softmax in float32, best in base 2 with scale * 1.44269504f (exp2f
in CUDA, fast::exp2 in Metal).
"""


class _AttentionSearch(SearchSpace[Bucket]):
    suites = SUITES
    default_suite = "decode"
    task = (
        "You write attention kernels. A kernel must be right for every input and faster than MLX's "
        'own mx.fast.scaled_dot_product_attention ("SDPA") on the workloads below.'
    )
    rules = RULES
    length = r"kv_len|shape\s*\[\s*2\s*\]"

    def coordinates(self, bucket: Bucket) -> list[float]:
        w = bucket
        sizes = (w.batch, w.kv_heads, w.group, w.q_len, w.kv_len, w.head_dim)
        kinds = (w.dtype == "float32", w.mask in ("bool", "additive"), w.sinks)
        return [*(math.log2(size) / 4 for size in sizes), *map(float, kinds)]


SEARCH = _AttentionSearch()
