"""One small kernel on metalhost: launched, and its findings read."""

from __future__ import annotations

import textwrap
from typing import Any

import mlx.core as mx
import pytest

from mlx_lm_openevolve.metalhost import Finding, LaunchResult, compiler_available, metal_kernel

AVAILABLE, COMPILER = compiler_available()
on_host = pytest.mark.skipif(not AVAILABLE, reason=f"no compiler for metalhost: {COMPILER}")


def launch(
    body: str,
    inputs: list[Any] | None = None,
    *,
    n: int = 32,
    group: int | tuple[int, int, int] = 32,
    out: tuple[int, ...] | None = None,
    dtype: Any = mx.float32,
    header: str = "",
    contiguous: bool = True,
    template: list[tuple[str, Any]] | None = None,
    math_mode: str = "safe",
    **options: Any,
) -> LaunchResult:
    """One output `y` of `n` elements; inputs are named a, b, c."""
    inputs = inputs or []
    kernel = metal_kernel(
        "probe", list("abc"[: len(inputs)]), ["y"], textwrap.dedent(body), header, contiguous,
        math_mode=math_mode,
    )  # fmt: skip
    return kernel(
        inputs,
        template,
        grid=(n, 1, 1),
        threadgroup=group if isinstance(group, tuple) else (group, 1, 1),
        output_shapes=[out or (n,)],
        output_dtypes=[dtype],
        **options,
    )


def messages(done: LaunchResult) -> str:
    """All findings as text."""
    return "\n".join(str(f) for f in done.findings)


def only(done: LaunchResult, kind: str) -> Finding:
    """The one finding, of this kind."""
    assert [f.kind for f in done.findings] == [kind], messages(done)
    return done.findings[0]
