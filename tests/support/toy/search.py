from __future__ import annotations

import math

from ..base import SearchSpace
from .workload import Bucket


class _ToySearch(SearchSpace[Bucket]):
    suites = {"decode": (Bucket(8, 64, "float32"), Bucket(16, 64, "float32"))}  # noqa: RUF012
    default_suite = "decode"
    task = "You write kernels that multiply and add."
    rules = "x [rows, width], scale [width], shift [width]; out [rows, width].\n"
    length = r"rows"

    def coordinates(self, bucket: Bucket) -> list[float]:
        return [math.log2(bucket.rows), math.log2(bucket.width)]


SEARCH = _ToySearch()
