"""What a kernel of this family reads: the arrays of a Call by their names.

A Call takes (x, weight, scales, biases): x [batch, length, K], any strides; weight uint32
[N, K * bits / 32], scales and biases [N, K / group], row contiguous, as MLX packs them (biases is
None where the variant has none). It returns [batch, length, N].

With experts it takes (x, indices, weight, scales, biases): x of `batch` rows of K numbers, indices
uint32 of `length` for each of them, both in any number of axes, the others with one axis of experts
in front. It returns [batch, length, 1, N].
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ..base import as_given
from .workload import Workload

__all__ = ["INPUTS", "bind"]

INPUTS = {
    "affine": ("x", "weight", "scales", "biases"),
    "mxfp4": ("x", "weight", "scales"),
    "affine_experts": ("x", "indices", "weight", "scales", "biases"),
    "mxfp4_experts": ("x", "indices", "weight", "scales"),
}


def bind(workload: Workload) -> Callable[..., list[mx.array | None]]:
    """See Op.bind."""
    return as_given
