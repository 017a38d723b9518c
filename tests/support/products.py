"""A small kernel of products, and tables of made-up points for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.kernels.kernel import Kernel

FACTS = {
    "device_name": "Chip 9",
    "device_cores": 10,
    "device_memory": 1 << 34,
    "device_cache": 1 << 20,
    "device_shared_memory": 32 << 10,
}


def product_kernel(tiles: str = "1", warps: str = "8") -> Kernel:
    """Two params; it multiplies nothing."""
    meta: dict[str, Any] = {
        "format": 2,
        "name": "product",
        "op": "linear",
        "variants": ["affine"],
        "origin": "handwritten",
        "applies": "bits == 4",
        "params": {
            "tiles": {"default": tiles, "values": [1, 2, 4]},
            "warps": {"default": warps, "values": [4, 8, 16]},
        },
        "launches": [
            {
                "source": "product.metal",
                "inputs": ["x", "weight", "scales", "biases"],
                "outputs": [
                    {"name": "out", "shape": ["batch", "length", "n"], "dtype": "dtype"},
                ],
                "template": {"T": "dtype", "TILES": "tiles", "WARPS": "warps"},
                "grid": ["32 * warps", "n", "1"],
                "threadgroup": ["32 * warps", "1", "1"],
            }
        ],
    }
    return Kernel.from_parts(meta, {"product.metal": "out[0] = T(0);"})


def slug(rows: int, n: int, k: int) -> str:
    return f"linear-m{rows}-n{n}-k{k}-bfloat16-q4g64"


def table(
    path: Path,
    shapes: Iterable[tuple[int, int, int]],
    us: Callable[[int, int, int, int, int], float],
    **changes: Any,
) -> Path:
    """A table with all settings of `product_kernel` at shapes (rows, n, k): us(rows, n, k, tiles,
    warps); infinite where it did not run."""
    points: list[dict[str, Any]] = []
    for rows, n, k in shapes:
        for tiles in (1, 2, 4):
            for warps in (4, 8, 16):
                point = {"workload": slug(rows, n, k), "id": product_kernel().id}
                point |= {"params": {"tiles": tiles, "warps": warps}}
                time = us(rows, n, k, tiles, warps)
                point |= {"us": time} if time < math.inf else {"reason": "too many resources"}
                points.append(point)
    data = {"device": "Chip 9", "facts": FACTS, "points": points} | changes
    path.write_text(json.dumps(data))
    return path
