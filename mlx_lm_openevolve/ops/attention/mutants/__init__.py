"""Mutants: known-wrong attention that the gate must reject before it may accept anything.

Each is a plain NumPy function over float32 arrays, a few lines away from `Attention.out`, the
right answer. A mutant is left out only by its own predicate over the workload (a wrong batch
stride cannot show at batch 1), never because it survived.
"""

from __future__ import annotations

from . import (  # each declares its mutants when imported
    conditions,
    masking,
    operands,
    packing,
    results,
    softmax,
)
from .base import MUTANTS, Attention, Mutant, applicable, correct

__all__ = [
    "MUTANTS",
    "Attention",
    "Mutant",
    "applicable",
    "conditions",
    "correct",
    "masking",
    "operands",
    "packing",
    "results",
    "softmax",
]
