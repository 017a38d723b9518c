"""Reference: attention in float64, and inputs on which a wrong kernel cannot look right.

    bucket --plans.py--> what to ask --inputs.py: contents, masks, layouts--> Case
    bucket --cases(seed)--> Case (NumPy) --upload()--> Inputs (MLX) --> the kernel under test
                              `--reference()--> Reference (float64) --error(out)--> (max, average)

The inputs of a seed are the same on every device: all randomness comes from NumPy generators, and
mx.random is never touched. An error is measured against what the arithmetic can be held to: for
one output element, in units of `mass`, the sum of p_j |v_j| over the keys. Zeros, the mean of V or
a lost key are then errors of order one, whatever the magnitude of V.
"""

from __future__ import annotations

from ...encoding import decode, download, encode, smallest
from .baseline import answer, baseline_name, floats, mass, sdpa
from .float64 import Case, Inputs, Reference, attention
from .inputs import KINDS, case, cases, mask
from .layouts import Packed, pack

__all__ = [
    "KINDS",
    "Case",
    "Inputs",
    "Packed",
    "Reference",
    "answer",
    "attention",
    "baseline_name",
    "case",
    "cases",
    "decode",
    "download",
    "encode",
    "floats",
    "mask",
    "mass",
    "pack",
    "sdpa",
    "smallest",
]
