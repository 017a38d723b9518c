"""The host backend: a Metal kernel on the CPU, through metalhost.

It proves that a kernel is right; it is never faster. Inside MLX's lazy graph it evaluates its
inputs, which cannot be done under mx.compile or vmap: the call then raises BackendError and the
dispatcher returns the original. Gradients are those of MLX's SDPA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import mlx.core as mx

from .. import metalhost
from ..errors import BackendError
from ..kernels.kernel import Kernel, Launch
from ..ops.attention.workload import Workload
from . import Call, Operand, Run, chain, dtype_of, template_of

__all__ = ["build", "unavailable"]


def unavailable() -> str:
    """ "" where a clang is at hand, else the reason."""
    found, reason = metalhost.compiler_available()
    return "" if found else reason


def build(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Workload,
    *,
    sanitize: bool = False,
    launches: list[metalhost.Launch] | None = None,
    seed: int = 0,
) -> Call:
    """The kernel as a callable for one exact workload.

    sanitize: run with every check of metalhost; a finding raises BackendError with its text.
    launches: where given, every launch's findings and counters are appended to it instead.
    """
    reason = unavailable()
    if reason:
        raise BackendError(reason)

    def make(launch: Launch, name: str) -> Run:
        return _make(launch, name, sanitize, launches, seed)

    run = chain(kernel, params, workload, ("metal",), make)
    if workload.kv_bits:  # a quantised cache is never trained through
        return run
    causal = workload.mask == "causal"

    def call(
        queries: mx.array,
        keys: Operand,
        values: Operand,
        scale: mx.array,
        mask: mx.array | None,
        sinks: mx.array | None,
    ) -> mx.array:
        def sdpa(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return mx.fast.scaled_dot_product_attention(
                q,
                k,
                v,
                scale=cast(float, scale.item()),
                mask="causal" if causal else mask,
                sinks=sinks,
            )

        @mx.custom_function
        def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return run(q, k, v, scale, mask, sinks)

        @attention.vjp
        def attention_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
            return tuple(mx.vjp(sdpa, list(primals), [cotangent])[1])

        return cast(mx.array, attention(queries, keys, values))

    return call


def _make(
    launch: Launch,
    name: str,
    sanitize: bool,
    launches: list[metalhost.Launch] | None,
    seed: int,
) -> Run:
    stage = launch.stage
    function = metalhost.metal_kernel(
        name=name,
        input_names=list(stage.inputs),
        output_names=[output for output, _, _ in launch.outputs],
        source=stage.source,
        header=stage.header,
        ensure_row_contiguous=False,
        math_mode=stage.math_mode,
    )

    def run(inputs: Sequence[mx.array]) -> Sequence[mx.array]:
        try:
            mx.eval(*inputs)
        except ValueError as error:
            raise BackendError(f"the host backend cannot run while tracing: {error}") from None
        done = function(
            inputs=list(inputs),
            template=template_of(launch),
            grid=launch.grid,
            threadgroup=launch.threadgroup,
            output_shapes=[shape for _, shape, _ in launch.outputs],
            output_dtypes=[dtype_of(dtype) for _, _, dtype in launch.outputs],
            sanitize=sanitize,
            count=launches is not None,
            seed=seed,
        )
        if launches is not None:
            launches.append(done)
        if not done.outputs or (done.findings and launches is None):
            finding = done.findings[0] if done.findings else "no output"
            raise BackendError(f"{stage.file}: {finding}")
        return done.outputs

    return run
