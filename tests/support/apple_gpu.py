"""What the Apple GPU of this machine cannot do of what the kernels need, asked of the GPU itself.

    python tests/support/apple_gpu.py      the first step of the workflow on macOS

`mx.metal.is_available()` is true wherever MLX was built for Metal, also on a runner whose
"Apple Paravirtual device" lacks what every Apple silicon chip has.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import mlx.core as mx
import pytest

__all__ = ["LACKING", "PROBE", "lacking", "on_metal", "probe"]

# An 8x8 matrix of bfloat16, squared by one simdgroup.
PROBE = """
    simdgroup_matrix<bfloat16_t, 8, 8> a, square;
    simdgroup_load(a, x, 8);
    simdgroup_multiply(square, a, a);
    simdgroup_store(square, y, 8);
"""


def probe(metal_kernel: Any) -> str:
    """What is wrong with the answer of PROBE, "" where nothing is."""
    x = (mx.arange(64).reshape(8, 8) % 5).astype(mx.bfloat16)
    kernel = metal_kernel("probe", ["x"], ["y"], PROBE)
    size = {"grid": (32, 1, 1), "threadgroup": (32, 1, 1), "output_shapes": [(8, 8)]}
    done = kernel(inputs=[x], **size, output_dtypes=[mx.bfloat16])
    (y,) = getattr(done, "outputs", done)
    wanted = x.astype(mx.float32) @ x.astype(mx.float32)
    right = mx.array_equal(y.astype(mx.float32), wanted.astype(mx.bfloat16).astype(mx.float32))
    return "" if right.item() else "its answer is wrong"


@functools.cache
def lacking() -> str:
    """Why tests that run kernels on an Apple GPU are skipped here, "" where they are not."""
    if not mx.metal.is_available():
        return "needs an Apple GPU"
    name = "this machine"
    try:
        name = str(mx.device_info(mx.gpu).get("device_name", "a GPU without a name"))
        wrong = probe(mx.fast.metal_kernel)
    except Exception as error:  # whatever a driver or a compiler raises
        wrong = (str(error).strip() or type(error).__name__).replace("\n", " ")[:300]
    return f"{name} runs no bfloat16 simdgroup kernel: {wrong}" if wrong else ""


LACKING = lacking()
on_metal = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def main() -> None:
    """Say what GPU this is, and what it lacks."""
    with contextlib.suppress(RuntimeError):  # no device: LACKING says so
        device = mx.gpu if mx.metal.is_available() else mx.cpu
        for key, value in sorted(mx.device_info(device).items()):
            print(f"{key}: {value}")
    print(f"left out: {LACKING}" if LACKING else "a bfloat16 simdgroup kernel runs, and is right")


if __name__ == "__main__":
    main()
