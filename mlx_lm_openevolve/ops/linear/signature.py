"""What a kernel of this family reads: the arrays of a Call by their names.

A Call takes (x, weight, scales, biases): x [batch, length, K], any strides; weight uint32
[N, K * bits / 32], scales and biases [N, K / group], row contiguous, as MLX packs them (biases is
None where the variant has none). It returns [batch, length, N].
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ..base import as_given
from .workload import Workload

__all__ = ["INPUTS", "bind"]

INPUTS = {"affine": ("x", "weight", "scales", "biases"), "mxfp4": ("x", "weight", "scales")}


def bind(workload: Workload) -> Callable[..., list[mx.array | None]]:
    """See Op.bind."""
    return as_given
