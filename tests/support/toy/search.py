from __future__ import annotations

import math

from ..base import SearchSpace
from .workload import Bucket, Workload


class _ToySearch(SearchSpace[Bucket, Workload]):
    suites = {"decode": (Bucket(8, 64, "float32"), Bucket(16, 64, "float32"))}  # noqa: RUF012
    default_suite = "decode"
    task = "You write kernels that multiply and add."
    rules = "x [rows, width], scale [width], shift [width]; out [rows, width].\n"
    length = r"rows"

    def coordinates(self, bucket: Bucket) -> list[float]:
        return [math.log2(bucket.rows), math.log2(bucket.width)]

    def growth(self, workload: Workload) -> tuple[int, int]:
        return workload.rows, 1

    def stock_traffic(self, bucket: Bucket) -> tuple[int, float, float, int]:
        moved = 2.0 * bucket.moved_bytes()
        return 2, moved, moved, bucket.rows * bucket.width


SEARCH = _ToySearch()
