"""Attention: over float, quantised and latent (MLA) caches."""

from __future__ import annotations

from .op import OP
from .workload import MASKS, Bucket, Workload

__all__ = ["MASKS", "OP", "Bucket", "Workload"]
