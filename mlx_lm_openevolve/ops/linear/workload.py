"""The shape of a quantised product, exactly (Workload) and as the range that verdicts are stored
for (Bucket)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ...errors import WorkloadError
from ..base import DTYPES, Value, next_pow2, read_slug

__all__ = [
    *("FIELDS", "MODES", "MOST_EXPERT_ROWS", "MOST_ROWS", "VARIANTS"),
    *("Bucket", "Workload"),
]

# How weights are packed: numbers with a scale and a bias for each group, or 4-bit floats with a
# power of two for each group (OCP Microscaling Formats 1.0).
MODES = ("affine", "mxfp4")
_EXPERTS = "_experts"  # each row has a matrix of its own, of several
VARIANTS = (*MODES, *(mode + _EXPERTS for mode in MODES))
# More rows are MLX's: from there on a product is bound by arithmetic, and a dense one is faster.
# Experts: 32 sequences with eight each.
MOST_ROWS, MOST_EXPERT_ROWS = 32, 256

_SIZES = ("batch", "length", "n", "k")
FIELDS = frozenset({*_SIZES, "rows", "experts", "dtype", "bits", "group", "variant"})
_SLUG = re.compile(
    r"linear-m(?P<batch>\d+)(?:x(?P<length>\d+))?(?:-e(?P<experts>\d+))?-n(?P<n>\d+)-k(?P<k>\d+)"
    r"-(?P<dtype>float16|bfloat16|float32)-(?:q(?P<bits>\d+)g(?P<group>\d+)|(?P<mxfp4>mxfp4))"
)
_LIMIT = 1 << 31


@dataclass(frozen=True)
class _Shape:
    """x [batch, length, k] times the transpose of weights [n, k], packed with `bits` a number and
    `group` numbers that share a scale.

    With `experts`, weights [experts, n, k]: x has `batch` rows, and each is multiplied by the
    matrices of `length` experts. Raises WorkloadError where a field makes no sense."""

    op: ClassVar[str] = "linear"

    batch: int
    length: int
    n: int
    k: int
    dtype: str
    bits: int = 4
    group: int = 64
    variant: str = "affine"
    experts: int = 0

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if type(value) is not int or not 0 < value < _LIMIT:
                raise WorkloadError(f"workload: {name} is {value!r}, expected a positive integer")
        if type(self.experts) is not int or not 0 <= self.experts < _LIMIT:
            raise WorkloadError(f"workload: experts is {self.experts!r}, expected an integer")
        if self.rows > self.most_rows:
            raise WorkloadError(f"workload: {self.rows} rows, at most {self.most_rows} are served")
        if self.dtype not in DTYPES:
            raise WorkloadError(f"workload: dtype is {self.dtype!r}, expected one of {DTYPES}")
        if self.variant not in VARIANTS:
            raise WorkloadError(f"workload: variant is {self.variant!r}, not of {VARIANTS}")
        if bool(self.experts) != self.variant.endswith(_EXPERTS):
            raise WorkloadError(f"workload: {self.experts} experts in variant {self.variant}")
        packed = (self.bits, self.group)
        known = packed == (4, 32) if self.mode == "mxfp4" else _packs(*packed)
        if not known:
            raise WorkloadError(f"workload: {self.mode} weights of {packed[0]} bits in groups"
                                f" of {packed[1]}")  # fmt: skip
        if self.k % self.group:
            raise WorkloadError(f"workload: {self.k} numbers do not divide into {self.group}")

    @property
    def rows(self) -> int:
        """Rows of the result: those of x, of all sequences; with experts, of each one."""
        return self.batch * self.length

    @property
    def most_rows(self) -> int:
        """Calls of more rows are MLX's."""
        return MOST_EXPERT_ROWS if self.experts else MOST_ROWS

    @property
    def mode(self) -> str:
        """How the weights are packed, as MLX calls it."""
        return self.variant.removesuffix(_EXPERTS)

    @property
    def outputs(self) -> int:
        """Rows of all matrices."""
        return self.n * (self.experts or 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, as MLX's own operation has it."""
        return (self.batch, self.length, *([1] if self.experts else []), self.n)

    @property
    def chosen(self) -> int:
        """Matrices that are read: as many as rows choose that choose alike, on average."""
        if not self.experts:
            return 1
        return max(1, round(self.experts * (1 - (1 - 1 / self.experts) ** self.rows)))

    @property
    def slug(self) -> str:
        """Name of this shape; `Workload.parse` reads it back."""
        rows = f"{self.batch}" if self.length == 1 else f"{self.batch}x{self.length}"
        return f"linear-m{rows}-{self._weights}"

    @property
    def layout(self) -> str:
        """A matrix: all its products lie in one file."""
        return f"linear-{self._weights}"

    @property
    def _weights(self) -> str:
        packed = self.mode if self.mode == "mxfp4" else f"q{self.bits}g{self.group}"
        experts = f"e{self.experts}-" if self.experts else ""
        return f"{experts}n{self.n}-k{self.k}-{self.dtype}-{packed}"

    @property
    def element_bytes(self) -> int:
        """Bytes of one number of x."""
        return 4 if self.dtype == "float32" else 2

    def bucket(self) -> Bucket:
        """All rows as sequences of one token, rounded up to a power of two."""
        return Bucket(**{**self._plain(), "batch": next_pow2(self.rows), "length": 1})

    def exact(self, **changes: Any) -> Workload:
        """The exact workload of this shape, with other sizes."""
        return Workload(**{**self._plain(), **changes})

    def launch_key(self) -> Workload:
        """Launch expressions see every size."""
        return self.exact()

    def fields(self) -> dict[str, Value]:
        """What launch expressions see."""
        return {name: getattr(self, name) for name in FIELDS}

    def stored_bytes(self) -> int:
        """Bytes of the weights, of which each must be read once: those of the experts `chosen`."""
        return self.chosen * self.matrix_bytes

    @property
    def all_bytes(self) -> int:
        """Bytes of the weights of all experts, or of the one matrix."""
        return (self.experts or 1) * self.matrix_bytes

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one matrix."""
        numbers = self.n * self.k
        shared = 1 if self.mode == "mxfp4" else 2 * self.element_bytes
        return numbers * self.bits // 8 + numbers // self.group * shared

    def moved_bytes(self) -> int:
        """The weights, x and the result."""
        return self.stored_bytes() + self.rows * (self.k + self.n) * self.element_bytes

    def scratch_bytes(self) -> int:
        """MLX's product writes its result alone; beside the experts that are read lie others."""
        return self.all_bytes - self.stored_bytes()

    def flops(self) -> float:
        return 2.0 * self.rows * self.n * self.k

    def _plain(self) -> Mapping[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _packs(bits: int, group: int) -> bool:
    """Whether MLX packs so, and a number never lies across two words."""
    return bits in (4, 8) and group in (32, 64, 128)


@dataclass(frozen=True)
class Workload(_Shape):
    """The shape of one call. See _Shape for the fields."""

    @classmethod
    def parse(cls, slug: str) -> Workload:
        """The workload that `slug` names. Raises WorkloadError on anything else."""

        def made(fields: dict[str, Any]) -> Workload:
            experts = int(fields["experts"] or 0)
            variant = (fields["mxfp4"] or "affine") + (_EXPERTS if experts else "")
            sizes = {name: int(fields[name] or 1) for name in _SIZES}
            packed = {"bits": int(fields["bits"] or 4), "group": int(fields["group"] or 32)}
            return cls(**sizes, dtype=fields["dtype"], **packed, variant=variant, experts=experts)

        return read_slug(slug, _SLUG, "linear-m1-n4096-k4096-bfloat16-q4g64", made)


@dataclass(frozen=True)
class Bucket(_Shape):
    """A range of workloads, by its upper end. See _Shape for the fields."""

    def bucket(self) -> Bucket:
        """This one."""
        return self

    def largest(self) -> Workload:
        """As many rows as the range has."""
        return self.exact()

    @property
    def steady(self) -> bool:
        """So few rows come with every token."""
        return True

    def neighbours(self) -> list[Bucket]:
        """Half and twice the rows."""
        rows = {max(1, self.batch // 2), min(self.most_rows, 2 * self.batch)} - {self.batch}
        return [replace(self, batch=n) for n in sorted(rows)]
