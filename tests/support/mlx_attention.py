"""MLX's own attention kernels launched on metalhost as MLX's host code launches them.

A Case is the shape of a call, a Call its arrays, a Route what MLX runs for it on a class of chips.
The host code that this mirrors is mlx/backend/metal/scaled_dot_product_attention.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx_kernels as mlx
from mlx_kernels import DTYPES, Floats, Out, launch

from mlx_lm_openevolve.metalhost import LaunchResult
from mlx_lm_openevolve.metalhost.arrays import as_numpy
from mlx_lm_openevolve.ops.attention.workload import Workload


@dataclass(frozen=True)
class Case:
    """One attention call."""

    dtype: str = "bfloat16"
    head_dim: int = 128
    mask: str = "none"
    sinks: bool = False
    gqa: int = 2
    q_len: int = 1
    k_len: int = 37
    batch: int = 1
    kv_heads: int = 2
    v_dim: int = 0  # width of a value, where it is not head_dim

    @property
    def v_head_dim(self) -> int:
        return self.v_dim or self.head_dim

    @property
    def q_heads(self) -> int:
        return self.kv_heads * self.gqa

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    def __str__(self) -> str:
        mask = self.mask + ("-sinks" if self.sinks else "")
        lengths = f"{self.q_len}x{self.k_len}"
        return f"{self.dtype}-d{self.head_dim}-{mask}-gqa{self.gqa}-b{self.batch}-{lengths}"


@dataclass(frozen=True)
class Call:
    """The arrays of one call; keys and values are slices of longer caches."""

    q: mx.array
    k: mx.array
    v: mx.array
    mask: mx.array | None
    sinks: mx.array | None
    strides: tuple[int, int, int]  # of k and v, in elements, without the last
    expected: Floats
    other: tuple[int, int, int] | None = None  # of v, where they are not those of k

    @property
    def v_strides(self) -> tuple[int, int, int]:
        return self.other or self.strides


def scalar(fmt: str, *values: float) -> bytes:
    return mlx.packed(fmt, *values)


def vector_source(body: str | None = None) -> str:
    return f'#include "{mlx.KERNELS}/utils.h"\n' + (body or mlx.text("sdpa_vector.h"))


def mask_constants(case: Case) -> dict[int, bool | int]:
    has_mask = case.mask in ("bool", "additive")
    return {
        20: has_mask,
        21: False,
        22: case.mask == "causal",
        23: case.mask == "bool",
        24: case.mask == "additive",
        25: case.sinks,
    }


def mask_strides(mask: mx.array) -> list[int]:
    """Of [B, Hq, L, N], in elements; 0 where the mask is broadcast."""
    a, _ = as_numpy(mask)
    return [s // a.itemsize if n > 1 else 0 for n, s in zip(a.shape, a.strides, strict=True)]


def mask_buffers(case: Case, c: Call, first: int) -> dict[int, Any]:
    """The optional arguments: bool mask, float mask, three mask strides, sinks, query heads."""
    found: dict[int, Any] = {}
    if c.mask is not None:
        found[first + (case.mask == "additive")] = c.mask
        strides = mask_strides(c.mask)[:0:-1]
        found |= {first + 2 + i: scalar("i", s) for i, s in enumerate(strides)}
    if c.sinks is not None:
        found[first + 5] = c.sinks
    return found


def sdpa_vector(case: Case, c: Call, source: str | None = None, **options: Any) -> LaunchResult:
    t = DTYPES[case.dtype]
    buffers: dict[int, Any] = {
        0: c.q,
        1: c.k,
        2: c.v,
        3: Out((*c.q.shape[:3], case.v_head_dim), c.q.dtype),
        4: scalar("i", case.gqa),
        5: scalar("i", case.k_len),
        6: scalar("Q", c.strides[1]),
        7: scalar("Q", c.strides[2]),
        8: scalar("Q", c.v_strides[1]),
        9: scalar("Q", c.v_strides[2]),
        10: scalar("f", case.scale),
    }
    buffers |= mask_buffers(case, c, 11)
    if case.sinks:
        buffers[17] = scalar("i", case.q_heads)
    return launch(
        vector_source(source),
        f"sdpa_vector<{t}, {case.head_dim}, {case.v_head_dim}>",
        buffers,
        groups=(case.batch * case.q_heads, case.q_len, 1),
        threadgroup=(1024, 1, 1),
        constants=mask_constants(case),
        **options,
    )


def sdpa_two_pass(
    case: Case,
    c: Call,
    blocks: int = 32,
    source: str | None = None,
    grouped: int = 0,
    **options: Any,
) -> tuple[LaunchResult, LaunchResult | None]:
    """Both passes; `grouped` is the HPT of sdpa_vector_2pass_1_gqa. No second after a finding."""
    t, d, dv = DTYPES[case.dtype], case.head_dim, case.v_head_dim
    rows = case.batch, case.q_heads, case.q_len
    buffers: dict[int, Any] = {
        0: c.q,
        1: c.k,
        2: c.v,
        3: Out((*rows, blocks, dv), c.q.dtype),
        4: Out((*rows, blocks), mx.float32),
        5: Out((*rows, blocks), mx.float32),
        7: scalar("i", case.k_len),
        8: scalar("Q", c.strides[1]),
        9: scalar("Q", c.strides[2]),
        10: scalar("Q", c.v_strides[1]),
        11: scalar("Q", c.v_strides[2]),
        12: scalar("f", case.scale),
    }
    buffers |= mask_buffers(case, c, 13)
    gqa = f"sdpa_vector_2pass_1_gqa<{t}, {d}, {dv}, {case.gqa}, {grouped}>"
    first = launch(
        vector_source(source),
        gqa if grouped else f"sdpa_vector_2pass_1<{t}, {d}, {dv}>",
        buffers,
        groups=(case.kv_heads, case.batch, blocks),
        threadgroup=(32, case.gqa, case.q_len),
        constants=mask_constants(case) | {26: blocks},
        **options,
    )
    if not first.ok:
        return first, None
    partial, sums, maxs = first.outputs
    second = launch(
        vector_source(source),
        f"sdpa_vector_2pass_2<{t}, {dv}>",
        {0: partial, 1: sums, 2: maxs, 3: Out((*rows, dv), c.q.dtype), 4: scalar("i", blocks)},
        groups=(case.batch * case.q_heads, case.q_len, 1),
        threadgroup=(1024, 1, 1),
        constants=mask_constants(case) | {26: blocks},
        **options,
    )
    return first, second


def steel_source(body: str | None = None) -> str:
    return f'#include "{mlx.KERNELS}/utils.h"\n' + (
        body or mlx.text("steel/attn/kernels/steel_attention.h")
    )


def steel_attention(
    case: Case, c: Call, source: str | None = None, wn: int = 1, **options: Any
) -> LaunchResult:
    t, d = DTYPES[case.dtype], case.head_dim
    bq, bk = 32, 32 if d < 128 else 16
    has_mask = c.mask is not None
    rows = tuple(s * d for s in (case.q_heads * case.q_len, case.q_len, 1))
    params = mlx.attention_params(
        case.batch,
        case.q_heads,
        d,
        (case.q_len, case.k_len),
        case.gqa,
        case.scale,
        (bq, bk),
        (rows, c.strides, c.strides, rows),
    )
    buffers: dict[int, Any] = {0: c.q, 1: c.k, 2: c.v, 3: Out(c.q.shape, c.q.dtype), 4: params}
    if c.mask is not None:
        buffers |= {5: scalar("3q", *mask_strides(c.mask)[:3]), 6: c.mask}
    if c.sinks is not None:
        buffers[7] = c.sinks
    mask_type = "bool" if case.mask == "bool" else t
    return launch(
        steel_source(source),
        f"attention<{t}, {bq}, {bk}, {d}, {d}, 4, {wn}, {mask_type}, float>",
        buffers,
        groups=(-(-case.q_len // bq), case.q_heads, case.batch),
        threadgroup=(32, 4, wn),
        constants={
            200: case.q_len % bq == 0,
            201: case.k_len % bk == 0,
            300: has_mask,
            301: case.mask == "causal",
            302: case.sinks,
            303: False,
        },
        **options,
    )


# ---- which of them runs ------------------------------------------------------------------------

# Head sizes (keys, values) of the kernels; MLX 0.32 has one for D 512 besides (sdpa_blocked.h).
STEEL = [(d, d) for d in (64, 72, 80, 96, 128)]
VECTOR = [*((d, d) for d in (64, 96, 128, 256)), (192, 128), (96, 64)]
# MLX's routes depend on the last letter of Metal's name for a chip's architecture.
CHIPS = {"base, Pro": "g", "Max": "s", "Ultra": "d"}
Route = tuple[str, int, int]  # name, blocks, query heads of a simdgroup of the grouped variant


def route(w: Workload, letter: str) -> Route | None:
    """What MLX 0.32 runs on a chip, None where it has no fused kernel."""
    if w.variant != "float":
        return None
    dims = w.head_dim, w.v_head_dim
    if w.q_len > 8:
        return ("steel_attention", 0, 0) if dims in STEEL else None
    if dims not in VECTOR or w.q_len * w.group > 32:
        return None
    large = letter in "sd"
    if not (large and w.kv_len >= 1024) and not (w.group > 1 and w.kv_len >= 4096):
        return "sdpa_vector", 0, 0
    n, rows = w.kv_len, w.group * w.q_len
    if letter == "s":
        blocks = 64
        if n > 1024 and rows > 4:
            blocks = 128 if n <= 8192 else 256 if n <= 32768 else 512 if n <= 65536 else 1024
    elif letter == "d":
        blocks = 256 if rows <= 2 and n > 8192 else 128
        if rows >= 6 and n >= 16384:
            blocks = 512 if n < 65536 else 1024
    else:
        blocks = 64 if rows >= 4 else 32
    plain = w.mask == "none" and not w.sinks and w.q_len == 1
    if plain and n >= 8192 and w.group == 8 and w.head_dim in (64, 128):
        return "sdpa_vector_2pass_gqa", blocks, 8 if w.head_dim == 64 else 4
    return "sdpa_vector_2pass", blocks, 0
