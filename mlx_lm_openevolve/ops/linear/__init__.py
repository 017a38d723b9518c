"""Linear layers with quantised weights: a few rows times the transpose of a packed matrix."""

from __future__ import annotations

from .op import OP
from .workload import Bucket, Workload

__all__ = ["OP", "Bucket", "Workload"]
