"""The shape of an attention call, exactly (Workload) and as the range that verdicts are stored for
(Bucket). A busy server meets thousands of exact shapes but tens of buckets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ...errors import WorkloadError
from ..base import DTYPES, Value, next_pow2, read_slug

__all__ = ["FIELDS", "MASKS", "Q_LEN_BUCKETS", "VARIANTS", "Bucket", "Workload"]

# Over a float cache; over a quantised one; and with one array for keys and values (multi-head
# latent attention), whose rows are read once.
VARIANTS = ("float", "quantized", "latent")
MASKS = ("none", "causal", "bool", "additive")

# The last one holds every longer query; its name is the size of mlx-lm's prefill chunk.
Q_LEN_BUCKETS = (1, 8, 32, 2048)

_SIZES = ("batch", "q_heads", "kv_heads", "q_len", "kv_len", "head_dim", "v_head_dim")
# What launch expressions may use.
FIELDS = frozenset(
    {*_SIZES, "group", "dtype", "mask", "sinks", "kv_bits", "kv_group", "latent", "variant"}
)
_SLUG = re.compile(
    r"attention-b(?P<batch>\d+)-hq(?P<q_heads>\d+)-hkv(?P<kv_heads>\d+)"
    r"-lq(?P<q_len>\d+)-lk(?P<kv_len>\d+)-d(?P<head_dim>\d+)-v(?P<v_head_dim>\d+)"
    r"-(?P<dtype>float16|bfloat16|float32)-(?P<mask>none|causal|bool|additive)"
    r"(?P<sinks>-sinks)?(?:-kv(?P<kv_bits>\d+)g(?P<kv_group>\d+))?(?P<latent>-latent)?"
)
_LIMIT = 1 << 31


@dataclass(frozen=True)
class _Shape:
    """queries [batch, q_heads, q_len, head_dim], keys [batch, kv_heads, kv_len, head_dim], values
    [batch, kv_heads, kv_len, v_head_dim].

    `mask` is one of MASKS; `kv_bits` is 0 for a float cache, else the bits of a quantised one with
    `kv_group` values a group; `latent`: keys and values are one array. Raises WorkloadError where
    a field makes no sense.
    """

    op: ClassVar[str] = "attention"

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
    latent: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
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
        if self.kv_bits not in (0, 2, 3, 4, 5, 6, 8):
            raise WorkloadError(f"workload: MLX quantises to no {self.kv_bits} bits")
        if self.kv_bits and (self.head_dim % self.kv_group or self.v_head_dim % self.kv_group):
            raise WorkloadError(
                f"workload: heads of {self.head_dim} and {self.v_head_dim} numbers do not divide"
                f" into groups of {self.kv_group}"
            )
        if self.latent and self.kv_bits:
            raise WorkloadError("workload: a latent cache with kv_bits")
        if self.latent and self.head_dim != self.v_head_dim:
            raise WorkloadError("workload: keys that are the values have one width, not two")

    @property
    def variant(self) -> str:
        """One of VARIANTS."""
        return "quantized" if self.kv_bits else "latent" if self.latent else "float"

    @property
    def slug(self) -> str:
        """Name of this shape; `Workload.parse` reads it back."""
        return (
            f"attention-b{self.batch}-hq{self.q_heads}-hkv{self.kv_heads}-lq{self.q_len}"
            f"-lk{self.kv_len}-d{self.head_dim}-v{self.v_head_dim}-{self.dtype}-{self.mask}"
            f"{self._suffix}"
        )

    @property
    def layout(self) -> str:
        """What the calls of one model have in common: heads, their sizes, the cache."""
        return (
            f"attention-hq{self.q_heads}-hkv{self.kv_heads}-d{self.head_dim}-v{self.v_head_dim}"
            f"-{self.dtype}{self._suffix}"
        )

    @property
    def _suffix(self) -> str:
        text = "-sinks" if self.sinks else ""
        text += f"-kv{self.kv_bits}g{self.kv_group}" if self.kv_bits else ""
        return text + ("-latent" if self.latent else "")

    @property
    def group(self) -> int:
        """Query heads for one KV head."""
        return self.q_heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Query rows of all heads and sequences."""
        return self.batch * self.q_heads * self.q_len

    @property
    def element_bytes(self) -> int:
        """Bytes of one float of the cache."""
        return 4 if self.dtype == "float32" else 2

    def bucket(self) -> Bucket:
        """Batch and kv_len rounded up to powers of two, q_len to the upper end of its range,
        "causal" at q_len 1 named "none" (it masks nothing)."""
        sizes = {
            "batch": next_pow2(self.batch),
            "q_len": next((n for n in Q_LEN_BUCKETS if self.q_len <= n), Q_LEN_BUCKETS[-1]),
            "kv_len": next_pow2(self.kv_len),
            "mask": "none" if self.q_len == 1 and self.mask == "causal" else self.mask,
        }
        return Bucket(**{**self._plain(), **sizes})

    def exact(self, **changes: Any) -> Workload:
        """The exact workload of this shape, with other sizes."""
        return Workload(**{**self._plain(), **changes})

    def launch_key(self) -> Workload:
        """kv_len as its bucket's: launch expressions see no other. Below 8 keys as it is: there an
        input (a mask, scales) may have fewer than 8 elements, which on Metal is another kernel, to
        be tried by itself."""
        return self.exact(kv_len=self.kv_len if self.kv_len < 8 else next_pow2(self.kv_len))

    def fields(self) -> dict[str, Value]:
        """What launch expressions see: batch and q_len as they are, of kv_len only the bucket (the
        exact one is read inside the kernel)."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {**values, "kv_len": next_pow2(self.kv_len)}

    def stored_bytes(self) -> int:
        """Bytes of keys and values that any implementation must read once."""
        width = self.head_dim + (0 if self.latent else self.v_head_dim)
        elements = self.batch * self.kv_heads * self.kv_len * width
        if self.kv_bits:
            # packed words, and a scale and a bias of the activations' dtype for each group
            return elements * self.kv_bits // 8 + 2 * self.element_bytes * elements // self.kv_group
        return elements * self.element_bytes

    def moved_bytes(self) -> int:
        """Keys and values once, queries, result and mask."""
        mask = self.batch * self.q_len * self.kv_len if self.mask == "bool" else 0
        if self.mask == "additive":
            mask = self.rows * self.kv_len * self.element_bytes
        return (
            self.stored_bytes()
            + self.rows * (self.head_dim + self.v_head_dim) * self.element_bytes
            + mask
        )

    @property
    def fused(self) -> bool:
        """Whether MLX's own attention keeps its scores out of memory: `use_fallback` in
        mlx/backend/metal/scaled_dot_product_attention.cpp, by the shapes that every version
        takes. mlx-lm's, on a quantised cache, never does."""
        if self.kv_bits or self.head_dim != self.v_head_dim:
            return False
        if self.q_len > 8:
            return self.head_dim in (64, 80, 128)
        rows = self.q_len * self.group
        return rows <= 32 and self.q_len <= self.kv_len and self.head_dim in (64, 96, 128, 256)

    def score_bytes(self) -> int:
        """The scores that the original writes, once and what masks and the copies of small operands
        add to them; once more before and after the sinks are put beside them."""
        scores = self.rows * self.kv_len * self.element_bytes
        return 0 if self.fused else scores * (7 if self.sinks else 3) // 2

    def scratch_bytes(self) -> int:
        """The scores; on a quantised cache in float32 too, from all keys and values as floats."""
        if not self.kv_bits:
            return self.score_bytes()
        width = self.head_dim + self.v_head_dim
        keys = 2 * self.batch * self.kv_heads * self.kv_len * width
        return 4 * (self.rows * self.kv_len * 3 // 2 + keys)

    def flops(self) -> float:
        """Two products; half of them where the mask is causal."""
        seen = 0.5 if self.mask == "causal" and self.q_len * 2 > self.kv_len else 1.0
        return 2.0 * self.rows * self.kv_len * (self.head_dim + self.v_head_dim) * seen

    def _plain(self) -> Mapping[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Workload(_Shape):
    """The shape of one call. See _Shape for the fields."""

    @classmethod
    def parse(cls, slug: str) -> Workload:
        """The workload that `slug` names. Raises WorkloadError on anything else."""

        def made(fields: dict[str, Any]) -> Workload:
            for name in ("sinks", "latent"):
                fields[name] = fields[name] is not None
            for name in (*_SIZES, "kv_bits", "kv_group"):
                fields[name] = int(fields[name] or 0)
            return cls(**fields)

        example = "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none"
        return read_slug(slug, _SLUG, example, made)


@dataclass(frozen=True)
class Bucket(_Shape):
    """A range of workloads, by its upper end. See _Shape for the fields."""

    def bucket(self) -> Bucket:
        """This one."""
        return self

    def largest(self) -> Workload:
        """The largest workload of the range: it has no more queries than keys."""
        return self.exact(q_len=min(self.q_len, self.kv_len))

    @property
    def steady(self) -> bool:
        """A decode step or one of verifying, no chunk of a prompt."""
        return self.q_len <= Q_LEN_BUCKETS[1]

    def neighbours(self) -> list[Bucket]:
        """Half and twice the keys."""
        lengths = {max(1, self.kv_len // 2), 2 * self.kv_len} - {self.kv_len}
        return [replace(self, kv_len=n) for n in sorted(lengths)]
