"""Workload: what one attention call asks, as a frozen and hashable shape.

Two levels share the class. An *exact* workload has the shapes of one call; its `bucket()` is the
workload that verdicts are stored for, every size rounded to the upper end of its bucket. A busy
server meets thousands of exact shapes but tens of buckets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from ...errors import WorkloadError

__all__ = ["DTYPES", "MASKS", "OPS", "Q_LEN_BUCKETS", "Workload", "next_pow2"]

# Plain attention; over a quantised cache; and with one array for keys and values (MLA), whose
# rows are read once.
OPS = ("attention", "attention_quantized", "attention_latent")

DTYPES = ("float16", "bfloat16", "float32")
MASKS = ("none", "causal", "bool", "additive")

# The last one holds every longer query; its name is the size of mlx-lm's prefill chunk.
Q_LEN_BUCKETS = (1, 8, 32, 2048)

_SLUG = re.compile(
    r"(?P<op>[a-z_]+)-b(?P<batch>\d+)-hq(?P<q_heads>\d+)-hkv(?P<kv_heads>\d+)"
    r"-lq(?P<q_len>\d+)-lk(?P<kv_len>\d+)-d(?P<head_dim>\d+)-v(?P<v_head_dim>\d+)"
    r"-(?P<dtype>float16|bfloat16|float32)-(?P<mask>none|causal|bool|additive)"
    r"(?P<sinks>-sinks)?(?:-kv(?P<kv_bits>\d+)g(?P<kv_group>\d+))?"
)
_LIMIT = 1 << 31


def next_pow2(n: int) -> int:
    """The smallest power of two that is at least `n` (1 for n <= 1)."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True, order=True)
class Workload:
    """Shape of an attention call: queries [batch, q_heads, q_len, head_dim], keys
    [batch, kv_heads, kv_len, head_dim], values [batch, kv_heads, kv_len, v_head_dim].

    `mask` is one of MASKS; `kv_bits` is 0 for a float cache, else the bits of a quantised one
    with `kv_group` values a group; `op` is one of OPS. Raises WorkloadError where a field makes
    no sense.
    """

    batch: int
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_head_dim: int
    dtype: str
    mask: str = "none"
    sinks: bool = False
    kv_bits: int = 0
    kv_group: int = 0
    op: str = "attention"

    def __post_init__(self) -> None:
        for name in ("batch", "q_heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_head_dim"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < _LIMIT:
                raise WorkloadError(f"workload: {name} is {value!r}, expected a positive integer")
        if self.q_heads % self.kv_heads:
            raise WorkloadError(
                f"workload: {self.q_heads} query heads do not divide into {self.kv_heads} KV heads"
            )
        if self.dtype not in DTYPES:
            raise WorkloadError(f"workload: dtype is {self.dtype!r}, expected one of {DTYPES}")
        if self.mask not in MASKS:
            raise WorkloadError(f"workload: mask is {self.mask!r}, expected one of {MASKS}")
        if (self.kv_bits == 0) != (self.kv_group == 0) or not 0 <= self.kv_bits <= 8:
            raise WorkloadError(f"workload: kv_bits {self.kv_bits} with kv_group {self.kv_group}")
        if self.op not in OPS:
            raise WorkloadError(f"workload: op is {self.op!r}, expected one of {OPS}")
        if (self.op == "attention_quantized") != (self.kv_bits > 0):
            raise WorkloadError(f"workload: {self.op} with kv_bits {self.kv_bits}")
        if self.op == "attention_latent" and self.head_dim != self.v_head_dim:
            raise WorkloadError("workload: keys that are the values have one width, not two")

    def bucket(self) -> Workload:
        """The bucket of this workload: batch and kv_len rounded up to powers of two, q_len to
        the upper end of its range, "causal" at q_len 1 named "none" (it masks nothing)."""
        q_len = next((n for n in Q_LEN_BUCKETS if self.q_len <= n), Q_LEN_BUCKETS[-1])
        return replace(
            self,
            batch=next_pow2(self.batch),
            q_len=q_len,
            kv_len=next_pow2(self.kv_len),
            mask="none" if self.q_len == 1 and self.mask == "causal" else self.mask,
        )

    def largest(self) -> Workload:
        """The largest exact workload of this bucket: it has no more queries than keys."""
        return replace(self, q_len=min(self.q_len, self.kv_len))

    @property
    def slug(self) -> str:
        """Name of this workload in a registry; `Workload.parse` reads it back."""
        text = (
            f"{self.op}-b{self.batch}-hq{self.q_heads}-hkv{self.kv_heads}-lq{self.q_len}"
            f"-lk{self.kv_len}-d{self.head_dim}-v{self.v_head_dim}-{self.dtype}-{self.mask}"
        )
        if self.sinks:
            text += "-sinks"
        if self.kv_bits:
            text += f"-kv{self.kv_bits}g{self.kv_group}"
        return text

    @classmethod
    def parse(cls, slug: str) -> Workload:
        """The workload that `slug` names. Raises WorkloadError on anything else."""
        match = _SLUG.fullmatch(slug) if len(slug) < 200 else None
        if match is None:
            raise WorkloadError(
                f"not a workload: {slug[:200]!r}; expected a slug such as "
                "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none"
            )
        fields: dict[str, Any] = match.groupdict()
        fields["sinks"] = fields["sinks"] is not None
        for name in fields.keys() - {"op", "dtype", "mask", "sinks"}:
            fields[name] = int(fields[name] or 0)
        workload = cls(**fields)
        if workload.slug != slug:  # leading zeros and the like: one name for one workload
            raise WorkloadError(f"not a workload: {slug!r}; it is spelt {workload.slug!r}")
        return workload

    @property
    def group(self) -> int:
        """Query heads for one KV head."""
        return self.q_heads // self.kv_heads

    @property
    def element_bytes(self) -> int:
        """Bytes of one float of the cache."""
        return 4 if self.dtype == "float32" else 2

    def kv_bytes(self) -> int:
        """Bytes of keys and values that any implementation must read once."""
        width = self.head_dim + (0 if self.op == "attention_latent" else self.v_head_dim)
        elements = self.batch * self.kv_heads * self.kv_len * width
        if self.kv_bits:
            # packed words, and a scale and a bias of the activations' dtype for each group
            return elements * self.kv_bits // 8 + 2 * self.element_bytes * elements // self.kv_group
        return elements * self.element_bytes
