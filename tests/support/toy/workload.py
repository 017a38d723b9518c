from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ...errors import WorkloadError
from ..base import Value, next_pow2

_SLUG = re.compile(r"toy-r(?P<rows>\d+)-w(?P<width>\d+)-(?P<dtype>float16|bfloat16|float32)")


@dataclass(frozen=True)
class _Shape:
    op: ClassVar[str] = "toy"
    variant: ClassVar[str] = "plain"

    rows: int
    width: int
    dtype: str

    @property
    def slug(self) -> str:
        return f"toy-r{self.rows}-w{self.width}-{self.dtype}"

    @property
    def layout(self) -> str:
        return f"toy-w{self.width}-{self.dtype}"

    def _plain(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def bucket(self) -> Bucket:
        return Bucket(next_pow2(self.rows), self.width, self.dtype)

    def launch_key(self) -> Workload:
        return Workload(**self._plain())

    def fields(self) -> dict[str, Value]:
        return self._plain()

    def stored_bytes(self) -> int:
        return 2 * self.width * (4 if self.dtype == "float32" else 2)

    def moved_bytes(self) -> int:
        return self.stored_bytes() * (1 + self.rows)

    def scratch_bytes(self) -> int:
        return self.rows * self.stored_bytes() // 2  # x * scale

    def flops(self) -> float:
        return 2.0 * self.rows * self.width


@dataclass(frozen=True)
class Workload(_Shape):
    @classmethod
    def parse(cls, slug: str) -> Workload:
        match = _SLUG.fullmatch(slug)
        if match is None:
            raise WorkloadError(f"not a workload: {slug!r}")
        return cls(int(match["rows"]), int(match["width"]), match["dtype"])


@dataclass(frozen=True)
class Bucket(_Shape):
    def bucket(self) -> Bucket:
        return self

    def largest(self) -> Workload:
        return Workload(**self._plain())

    @property
    def steady(self) -> bool:
        return True

    def neighbours(self) -> list[Bucket]:
        return [replace(self, rows=2 * self.rows)]
