"""What the toy family replaces."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def affine(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    """x [rows, width] times scale [width] plus shift [width]."""
    return x * scale + shift


class Affine(nn.Module):
    """The same as a layer with its own scale and shift."""

    def __init__(self, scale: mx.array, shift: mx.array) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.scale + self.shift
