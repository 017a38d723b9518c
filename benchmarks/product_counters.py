"""How often the shipped Metal kernels and MLX's own read a packed matrix, and x.

    python benchmarks/product_counters.py [--rows 1 2 4 7 8 12 16] [--json FILE]

Both run on the CPU through metalhost, which counts every access; MLX's kernels come from the
mlx-metal wheel of this version of MLX. A product of few rows is qmv_fast's in MLX, or qmm_t's, from
a number of rows on that depends on the chip: both are shown. weights, x: bytes that the threads ask
for, over the bytes that there are. Nothing here was run on an Apple GPU, and nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import mlx_quantized
from mlx_kernels import VERSION

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.backends import host
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.metalhost import LaunchResult, Reads
from mlx_lm_openevolve.ops.linear.reference import drawn_weights

N, K = 256, 1024
PACKINGS = ("q4g64", "q8g64", "q4g32", "mxfp4")
ROWS = (1, 2, 4, 7, 8, 12, 16)


def ratios(reads: Mapping[str, Reads], weight: str, x: str, rows: int) -> dict[str, float]:
    """Bytes asked for over the bytes that there are."""
    return {
        "weights": round(reads[weight].device_bytes / reads[weight].compulsory_bytes, 3),
        "x": round(reads[x].device_bytes / (rows * K * 2), 3),
    }


def ours(rows: int, packing: str) -> Iterator[dict[str, Any]]:
    """Every shipped Metal kernel that applies, with its default params."""
    w = ops.parse(f"linear-m{rows}-n{N}-k{K}-bfloat16-{packing}")
    rng = np.random.default_rng(0)
    x = mx.array(rng.standard_normal((w.batch, w.length, w.k), np.float32)).astype(mx.bfloat16)
    given = drawn_weights(rng, w).upload(w)
    for kernel in Registry(tuned_root(), writable=False).kernels():
        if kernel.op != "linear" or kernel.native or not kernel.applies_to(w):
            continue
        launches: list[LaunchResult] = []
        params = kernel.default_params(w)
        call = host.build(kernel, params, w, sanitize=False, launches=launches)
        mx.eval(call(x, *given))
        [launch] = launches
        assert launch.counters is not None
        read = ratios(launch.counters.reads, "weight", "x", rows)
        yield {"kernel": kernel.name, "params": params, **read}


def mlxs(rows: int, packing: str) -> Iterator[dict[str, Any]]:
    w = ops.parse(f"linear-m{rows}-n{N}-k{K}-bfloat16-{packing}")
    for name in ("qmv_fast", "qmm_t"):
        product = mlx_quantized.Product(
            name, rows, N, K, bits=w.bits, group=w.group, mode=w.variant, dtype="bfloat16"
        )
        launch, _ = mlx_quantized.run(product, count=True)
        assert launch.counters is not None
        yield {"kernel": f"MLX {name}", **ratios(launch.counters.reads, "w", "x", rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    table = Table("packing", "rows", "kernel", "weights", "x")
    rows = []
    for packing in PACKINGS:
        for m in options.rows:
            for row in (*ours(m, packing), *mlxs(m, packing)):
                rows.append({"packing": packing, "rows": m, **row})
                table.add_row(packing, str(m), row["kernel"], f"{row['weights']}", f"{row['x']}")
    Console(width=100).print(table)
    if options.json:
        text = json.dumps({"mlx": VERSION, "n": N, "k": K, "rows": rows})
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
