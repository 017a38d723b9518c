"""Kernels for mlx-lm, proven right and faster on this very chip; else MLX's own operations.

    import mlx_lm_openevolve
    mlx_lm_openevolve.enable_optimizations()

Importing this package changes nothing and does not import mlx_lm.
"""

from __future__ import annotations

from ._version import __version__
from .runtime.api import (
    disable_optimizations,
    enable_optimizations,
    get_optimization_info,
    optimizations,
)

__all__ = [
    "__version__",
    "disable_optimizations",
    "enable_optimizations",
    "get_optimization_info",
    "optimizations",
]
