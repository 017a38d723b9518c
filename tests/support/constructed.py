"""Every shipped kernel through backends/metal.py with the real mx.fast.metal_kernel of the MLX that
is installed: without a GPU its constructor runs, and its call ends where the arguments were taken.

    python tests/support/constructed.py      prints MLX's version and how many launches there were
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import mlx.core as mx
from samples import launched_in_metal

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.device import version_of

# What MLX built without Metal says of a call whose arguments it took.
TAKEN = "[metal_kernel] No Metal back-end"

__all__ = ["TAKEN", "constructed"]


def constructed() -> list[str]:
    """What each call of a launch ended in, for every shipped stage; TAKEN where MLX took
    what the backend gives it."""
    ends: list[str] = []
    real = mx.fast.metal_kernel

    def metal_kernel(**made: Any) -> Any:
        function = real(**made)

        def called(**call: Any) -> list[mx.array]:
            try:
                function(**call)
                ends.append("it ran")
            except RuntimeError as error:
                ends.append(TAKEN if str(error).startswith(TAKEN) else str(error))
            outputs = zip(call["output_shapes"], call["output_dtypes"], strict=True)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        return called

    metal = backends.get("metal")
    with (
        mock.patch.object(mx.fast, "metal_kernel", metal_kernel),
        mock.patch.object(metal, "unavailable", return_value=""),
    ):
        for kernel, params, on in launched_in_metal():
            exact = ops.parse(on).bucket().largest()
            given, _ = ops.of(exact).trial(exact, ())
            before = len(ends)
            metal.build(kernel, params, exact)(*given)
            assert len(ends) - before == len(kernel.launches(exact, params)), kernel.name
    return ends


if __name__ == "__main__":
    found = constructed()
    print(version_of("mlx"), mx.__version__, len(found), *sorted(set(found)), sep="\n")
