"""How often the shipped Metal kernels and MLX's own read a packed matrix, and x.

    python benchmarks/product_counters.py [--rows 1 2 4 7 8 12 16] [--json FILE]
                                          [--expert-rows 1 8 16 64]

Both run on the CPU through metalhost, which counts every access; MLX's kernels come from the
mlx-metal wheel of this version of MLX. A product of few rows is qmv_fast's in MLX, or qmm_t's, from
a number of rows on that depends on the chip: both are shown. weights, x: bytes that the threads ask
for, over the bytes that there are. With experts each row is multiplied by the matrix of one of
eight, drawn; weights are those of the experts that some row goes to, and MLX's kernel is
gather_qmv_fast. Nothing here was run on an Apple GPU, and nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
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

N, K, EXPERTS = 256, 1024, 8
PACKINGS = ("q4g64", "q8g64", "q4g32", "mxfp4")
ROWS = (1, 2, 4, 7, 8, 12, 16)
EXPERT_ROWS = (1, 8, 16, 64)


def ratios(reads: Mapping[str, Reads], weight: str, x: str, rows: int) -> dict[str, float]:
    """Bytes asked for over the bytes that there are."""
    return {
        "weights": round(reads[weight].device_bytes / reads[weight].compulsory_bytes, 3),
        "x": round(reads[x].device_bytes / (rows * K * 2), 3),
    }


def ours(rows: int, packing: str) -> Iterator[dict[str, Any]]:
    """Every shipped Metal kernel that applies, with its default params."""
    w = ops.parse(f"linear-m{rows}-n{N}-k{K}-bfloat16-{packing}")
    x = mx.random.normal((w.batch, w.length, w.k), key=mx.random.key(0)).astype(mx.bfloat16)
    for row, launch in _launched(w, x):
        yield row | ratios(launch.counters.reads, "weight", "x", rows)


def experts(rows: int, packing: str, chosen: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
    """The same of rows that go to experts: those `chosen`, else drawn; then MLX's."""
    w = ops.parse(f"linear-m{rows}-e{EXPERTS}-n{N}-k{K}-bfloat16-{packing}")
    product = mlx_quantized.Product(
        "gather_qmv_fast",
        *(rows, N, K, "bfloat16", w.bits, w.group, w.mode, EXPERTS),
    )
    by_mlx = not chosen
    chosen = chosen or mlx_quantized.operands(product).chosen
    words = len(set(chosen)) * N * K * w.bits // 8

    def ratio(launch: LaunchResult, weight: str, x: str) -> dict[str, float]:
        reads = launch.counters.reads
        found = {"weights": reads[weight].device_bytes / words}
        found["x"] = reads[x].device_bytes / (rows * K * 2)
        return {name: round(value, 3) for name, value in found.items()}

    x = mx.random.normal((rows, 1, 1, K), key=mx.random.key(0)).astype(mx.bfloat16)
    indices = mx.array(chosen, mx.uint32).reshape(rows, 1)
    for row, launch in _launched(w, x, indices):
        yield row | ratio(launch, "weight", "x")
    if by_mlx:
        launch, _ = mlx_quantized.run(product, count=True)
        yield {"kernel": "MLX gather_qmv_fast", **ratio(launch, "w", "x")}


def _launched(w: Any, *given: mx.array) -> Iterator[tuple[dict[str, Any], LaunchResult]]:
    """Every shipped Metal kernel that applies, with its params, and its one launch."""
    weights = drawn_weights(np.random.default_rng(0), w).upload(w)
    for kernel in Registry(tuned_root(), writable=False).kernels():
        if kernel.op != "linear" or kernel.native or not kernel.applies_to(w):
            continue
        launches: list[LaunchResult] = []
        params = kernel.default_params(w)
        call = host.build(kernel, params, w, sanitize=False, launches=launches)
        mx.eval(call(*given, *weights))
        [launch] = launches
        assert launch.counters is not None
        yield {"kernel": kernel.name, "params": params}, launch


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
    parser.add_argument("--expert-rows", type=int, nargs="+", default=EXPERT_ROWS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    table = Table("packing", "rows", "experts", "kernel", "weights", "x")
    rows = []
    asked = [(m, 0) for m in options.rows] + [(m, EXPERTS) for m in options.expert_rows]
    for packing in PACKINGS:
        for m, of in asked:
            for row in experts(m, packing) if of else (*ours(m, packing), *mlxs(m, packing)):
                rows.append({"packing": packing, "rows": m, "experts": of, **row})
                cells = (row["kernel"], f"{row['weights']}", f"{row['x']}")
                table.add_row(packing, str(m), str(of or ""), *cells)
    Console(width=100).print(table)
    if options.json:
        text = json.dumps({"mlx": VERSION, "n": N, "k": K, "rows": rows})
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
