"""MLX's reductions, rotary embeddings and gated delta updates, unmodified, on metalhost."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx_kernels as mlx
import numpy as np
import pytest
from mlx_kernels import (
    DTYPES,
    ROUNDING,
    Floats,
    Out,
    assert_right,
    launch,
    packed,
    random_array,
    wide,
)
from samples import needs_clang

from mlx_lm_openevolve.metalhost import LaunchResult

pytestmark = needs_clang


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def text(findings: Any) -> str:
    return "\n".join(str(f) for f in findings)


# ---- reduction/*.h, launched as mlx/backend/metal/reduce.cpp launches them ----------------------

REDUCTIONS = "".join(
    f'#include "{mlx.KERNELS}/{name}"\n' for name in ("utils.h", "reduce_utils.h", "reduce.h")
)
TYPES = {**DTYPES, "int32": "int", "bool": "bool"}


def reduction(
    kernel: str, op: str, x: mx.array, shape: tuple[int, ...], buffers: list[bytes], **grid: Any
) -> LaunchResult:
    """kernel: its name, a blank, and its template arguments behind types and operation."""
    name, rest = kernel.split(" ", 1)
    t = TYPES[str(x.dtype).removeprefix("mlx.core.").rstrip("_")]
    return launch(
        REDUCTIONS,
        f"{name}<{t}, {t}, {op}<{t}>, {rest}>",
        dict(enumerate([x, Out(shape, x.dtype), *buffers])),
        count=True,
        **grid,
    )


def reduce_all(x: mx.array, op: str) -> list[LaunchResult]:
    if x.size <= 4096:
        threads = blocks(x.size, 4 * 32) * 32
        sizes = [packed("Q", x.size)] * 2
        grid = {"groups": (1, 1, 1), "threadgroup": (threads, 1, 1)}
        return [reduction("all_reduce int64_t", op, x, (1,), sizes, **grid)]
    row = blocks(x.size, 128)
    sizes = [packed("Q", x.size), packed("Q", row)]
    grid = {"groups": (1, 128, 1), "threadgroup": (min(blocks(row, 4 * 32) * 32, 1024), 1, 1)}
    first = reduction("all_reduce int64_t", op, x, (128,), sizes, **grid)
    return [first, *(reduce_all(first.outputs[0], op) if first.ok else [])]


def reduce_rows(x: mx.array, op: str) -> list[LaunchResult]:
    """Over the first and the last axis of x [outer, rows, width]."""
    outer, rows, width = x.shape
    threads = (
        32 if width <= 512 else 128 if width <= 1024 else min(blocks(width, 4 * 32) * 32, 1024)
    )
    if outer == 1 and width > 64 and rows >= 32:
        sizes = [packed("Q", width), packed("q", rows)]
        grid = {"groups": (1, blocks(rows, 4), 1), "threadgroup": (threads, 1, 1)}
        return [reduction("row_reduce_simple size_t", op, x, (rows,), sizes, **grid)]
    over = int(outer > 1)
    arguments = [packed("q", width), packed("q", outer), packed("i", rows), packed("q", width)]
    arguments += [packed("i", 1), packed("i", outer * over), packed("q", rows * width * over)]
    arguments.append(packed("i", over))
    if width > 64:
        grid = {"groups": (1, rows, 1), "threadgroup": (threads, 1, 1)}
        return [reduction("row_reduce_looped int, 1", op, x, (rows,), arguments, **grid)]
    grid = {"groups": (1, rows, 1), "threadgroup": (32, 1, 1)}
    if (outer < 32 and width <= 8) or outer <= 8:
        grid = {"grid": (rows, 1, 1), "threadgroup": (min(rows, 1024), 1, 1)}
    return [reduction("row_reduce_small int, 1", op, x, (rows,), arguments, **grid)]


def reduce_columns(x: mx.array, op: str) -> list[LaunchResult]:
    """Over the first axis of x [length, columns]."""
    length, columns = x.shape
    arguments = [packed("Q", length), packed("q", columns), packed("i", 0), packed("q", 0)]
    arguments += [packed("i", 0), packed("i", length), packed("q", columns), packed("i", 1)]
    arguments.append(packed("Q", 1))
    wide_groups = {"groups": (blocks(columns, 32), 1, 1), "threadgroup": (256, 1, 1)}
    if length < 32:
        threads = min(blocks(columns, 4), 32)
        grid = {
            "groups": (blocks(blocks(columns, 4), threads), 1, 1),
            "threadgroup": (threads, min(8, 1024 // threads, length), 1),
        }
        return [reduction("col_reduce_small int, 1", op, x, (columns,), arguments, **grid)]
    if columns < 32 and length >= 1024:
        parts = 128 if length >= 32768 else 32
        threadgroup = columns, min(32, blocks(length, parts)), 1
        kernel, tail = "col_reduce_longcolumn int, 1", [packed("Q", columns)]
        grid = {"groups": (1, 1, parts), "threadgroup": threadgroup}
    elif length > 256 and columns // 32 < 1024:
        parts, kernel = 32, "col_reduce_2pass int, 1, 32, 32"
        tail = [packed("q", 0), packed("Q", 1)]
        grid = {"groups": (blocks(columns, 32), parts, 1), "threadgroup": (256, 1, 1)}
    else:
        kernel, tail = "col_reduce_looped int, 1, 32, 32", [packed("q", 0)]
        return [reduction(kernel, op, x, (columns,), [*arguments, *tail], **wide_groups)]
    first = reduction(kernel, op, x, (parts, columns), [*arguments, *tail], **grid)
    if not first.ok:
        return [first]
    second = [packed("Q", parts), packed("q", columns), *arguments[2:5], packed("i", parts)]
    second += [*arguments[6:], packed("q", 0)]
    kernel, partial = "col_reduce_looped int, 1, 32, 32", first.outputs[0]
    return [first, reduction(kernel, op, partial, (columns,), second, **wide_groups)]


NUMPY = {
    "Sum": np.sum, "Prod": np.prod, "Max": np.max, "Min": np.min, "And": np.all, "Or": np.any,
}  # fmt: skip
ROUTES: list[tuple[Any, tuple[int, ...], Any]] = [  # a route, the shape it takes, and the axes
    (reduce_rows, (1, 36, 300), (0, 2)),
    (reduce_columns, (300, 40), 0),
    (reduce_all, (1000,), None),
    (reduce_all, (9000,), None),
    (reduce_rows, (1, 5, 60), (0, 2)),
    (reduce_rows, (40, 5, 30), (0, 2)),
    (reduce_rows, (3, 6, 700), (0, 2)),
    (reduce_columns, (20, 120), 0),
    (reduce_columns, (1100, 10), 0),
    (reduce_columns, (200, 70), 0),
]


def reductions() -> list[Any]:
    """Every route with a sum in float32; the rest of types and operations take turns."""
    kinds = [
        ("bfloat16", "Sum"), ("float16", "Prod"), ("bfloat16", "Max"), ("float32", "Min"),
        ("int32", "Sum"), ("int32", "Max"), ("bool", "And"), ("bool", "Or"), ("float16", "Sum"),
    ]  # fmt: skip
    cases = []
    for i, route in enumerate(ROUTES):
        turns = [("float32", "Sum"), *(kinds[(3 * i + j) % len(kinds)] for j in range(3))]
        for j, kind in enumerate(turns):
            marks = () if i < 2 and j == 0 else (pytest.mark.slow,)
            name = f"{route[0].__name__}-{'x'.join(map(str, route[1]))}-{'-'.join(kind)}"
            cases.append(pytest.param(*route, *kind, marks=marks, id=name))
    return cases


def drawn(dtype: str, op: str, shape: tuple[int, ...]) -> mx.array:
    x = random_array("float32", *shape)
    if dtype == "bool":
        x = x > (-3.0 if op == "And" else 3.0)
    elif dtype == "int32":
        x = (1000 * x).astype(mx.int32)
    else:
        x = (mx.exp(0.05 * x) if op == "Prod" else x).astype(getattr(mx, dtype))
    mx.eval(x)
    return x


@pytest.mark.parametrize(("route", "shape", "axes", "dtype", "op"), reductions())
def test_reductions_match_float64(
    route: Any, shape: tuple[int, ...], axes: Any, dtype: str, op: str
) -> None:
    """Each thread, simdgroup and pass rounds partial results: to the dtype, as MLX adds in it."""
    x = drawn(dtype, op, shape)
    steps = route(x, op)
    for done in steps:
        assert done.ok, text(done.findings)
    expected = np.asarray(NUMPY[op](wide(x), axis=axes)).reshape(-1)
    rounded = op in ("Sum", "Prod") and dtype in ROUNDING
    longest = x.size // expected.size / 32 + 16  # additions in a row, of lanes and of the tree
    if dtype == "bool":
        assert np.array(steps[-1].outputs[0]).tolist() == expected.tolist()
    else:
        tolerance = longest * ROUNDING[dtype] if rounded else 0
        assert_right(steps[-1], expected, tolerance)
    counters = steps[0].counters
    assert counters is not None
    assert counters.device_read_bytes == counters.compulsory_read_bytes == x.nbytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "shape", "axes", "kind"),
    [
        # Of rows in fours, the last four are moved back: some are computed twice, alike.
        (reduce_rows, (1, 37, 300), (0, 2), "race"),
        # Threads beyond the columns of the last threadgroup leave before the others' barrier.
        (reduce_columns, (20, 150), 0, "divergent-barrier"),
    ],
)
def test_findings_of_reductions_are_the_ones_that_are_there(
    route: Any, shape: tuple[int, ...], axes: Any, kind: str
) -> None:
    x = random_array("float32", *shape)
    [done] = route(x, "Sum")
    assert {f.kind for f in done.findings} == {kind}, text(done.findings)
    expected = wide(x).sum(axes)
    assert np.abs(wide(done.outputs[0]) - expected).max() <= 2e-6 * np.abs(expected).max()


# ---- rope.metal, launched as mlx/backend/metal/rope.cpp launches it -----------------------------


def power_of_two_block(*dims: int) -> tuple[int, ...]:
    """get_block_dims of mlx/backend/metal/utils.cpp: powers of two, 1024 threads in all."""
    block = [1, 1, 1]
    grown = True
    while grown:
        grown = False
        for i, dim in enumerate(dims):
            if dim >= 2 * block[i] and math.prod(block) < 1024:
                block[i] *= 2
                grown = True
    return tuple(block)


def rope(
    x: mx.array, offsets: list[int], traditional: bool, frequencies: mx.array | None, back: bool
) -> LaunchResult:
    batch, heads, length, dim = x.shape
    source = mlx.text("rope.metal")
    single = length == 1 and len(offsets) == 1
    name = "rope_single" if single else "rope"
    buffers: dict[int, Any] = {
        0: x,
        1: Out(x.shape, x.dtype),
        2: mx.array(offsets, dtype=mx.int32),
        3: packed("f", 1.0),
    }
    if single:
        buffers[4] = packed("q", dim)
        grid = dim // 2, batch * heads, 1
    else:
        strides = packed("3q", length * dim, dim, 1)
        buffers |= {4: strides, 5: strides, 6: packed("q", len(offsets) > 1), 7: packed("i", heads)}
        grid = dim // 2, length, batch * blocks(heads, 4)
    if frequencies is None:
        buffers[10] = packed("f", math.log2(10000.0))
    else:
        name, buffers[10], buffers[11] = f"{name}_freqs", frequencies, packed("q", 1)
    return launch(
        source[: source.index("#define instantiate_rope")],
        f"{name}<{DTYPES[str(x.dtype).removeprefix('mlx.core.')]}{'' if single else ', int32_t'}>",
        buffers,
        grid=grid,
        threadgroup=power_of_two_block(*grid),
        constants={1: not back, 2: traditional, 3: False},
        count=True,
    )


@pytest.mark.parametrize(
    ("dtype", "shape", "offsets", "traditional", "frequencies", "back"),
    [
        ("bfloat16", (2, 5, 3, 64), [7, 100], False, False, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("float32", (2, 5, 3, 64), [7, 100], True, False, False),
                ("float32", (1, 8, 1, 128), [1000], False, False, False),
                ("float16", (3, 2, 1, 32), [40], True, True, False),
                ("float32", (1, 3, 4, 96), [5], False, True, True),
            ]
        ),
    ],
)
def test_rope_matches_float64(
    dtype: str,
    shape: tuple[int, int, int, int],
    offsets: list[int],
    traditional: bool,
    frequencies: bool,
    back: bool,
) -> None:
    """An angle is a product in float32, of a frequency that is rounded twice."""
    batch, _, length, dim = shape
    x = random_array(dtype, *shape)
    given = mx.exp(random_array("float32", dim // 2, seed=1)) if frequencies else None
    if given is not None:
        mx.eval(given)
    done = rope(x, offsets, traditional, given, back)
    inverse = 10000.0 ** (-np.arange(dim // 2) / (dim // 2)) if given is None else 1 / wide(given)
    positions = np.arange(length) + np.broadcast_to(offsets, (batch,))[:, None]
    angles = positions[:, None, :, None] * inverse * (-1 if back else 1)
    pairs = wide(x).reshape(*shape[:3], *((dim // 2, 2) if traditional else (2, dim // 2)))
    a, b = np.moveaxis(pairs, -1 if traditional else -2, 0)
    turned = a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)
    expected = np.stack(turned, -1 if traditional else -2).reshape(shape)
    assert_right(done, expected, ROUNDING[dtype] + 3 * 2**-24 * np.abs(angles).max())
    counters = done.counters
    assert counters is not None
    assert counters.device_write_bytes == counters.compulsory_write_bytes == x.nbytes
    rest = counters.compulsory_read_bytes - x.nbytes  # of offsets and frequencies
    assert 0 <= rest <= 4 * len(offsets) + (2 * dim if frequencies else 0)


# ---- gated_delta_update.h -----------------------------------------------------------------------


def gated_delta(
    dtype: str, kernel: str, length: int, source: str | None = None
) -> tuple[LaunchResult, tuple[Floats, Floats]]:
    """One sequence of `length` steps, of four value heads and two key heads, and the result."""
    k_heads, heads, k_dim, v_dim = 2, 4, 64, 32
    q, k = (random_array(dtype, 1, length, k_heads, k_dim, seed=i) / 8 for i in range(2))
    v = random_array(dtype, 1, length, heads, v_dim, seed=2)
    state = random_array("float32", 1, heads, v_dim, k_dim, seed=3)
    decay = mx.sigmoid(random_array(dtype, 1, length, heads, seed=4) + 2)
    beta = mx.sigmoid(random_array(dtype, 1, length, heads, seed=5))
    mx.eval(q, k, decay, beta)
    chunked = kernel == "gated_delta_fused_chunk"
    whole = source or mlx.text("gated_delta_update.h")
    done = launch(
        whole,
        f"{kernel}<{DTYPES[dtype]}, {k_dim}, {v_dim}, {k_heads}, {heads}, {8 if chunked else 16}>",
        {
            0: q,
            1: k,
            2: v,
            3: state,
            4: decay,
            5: beta,
            6: Out(v.shape, v.dtype),
            7: Out(state.shape, state.dtype),
            8: packed("i", length),
        },
        groups=(1, v_dim // (32 if chunked else 4), heads),
        threadgroup=(32, 4, 1),
        constants={200: False},
        count=True,
    )
    return done, delta_rule(*(wide(a)[0] for a in (q, k, v, state, decay, beta)))


def delta_rule(
    q: Floats, k: Floats, v: Floats, state: Floats, decay: Floats, beta: Floats
) -> tuple[Floats, Floats]:
    """Step by step: the state decays, forgets what it holds under the key, and takes the value."""
    q, k = (np.repeat(a, v.shape[1] // a.shape[1], 1) for a in (q, k))
    y = np.zeros_like(v)
    for t in range(len(v)):
        state = state * decay[t][:, None, None]
        error = v[t] - np.einsum("hvk,hk->hv", state, k[t])
        state = state + np.einsum("hv,hk->hvk", error * beta[t][:, None], k[t])
        y[t] = np.einsum("hvk,hk->hv", state, q[t])
    return y[None], state[None]


@pytest.mark.parametrize(
    ("dtype", "kernel", "length"),
    [
        ("bfloat16", "gated_delta_seq", 5),
        pytest.param("float32", "gated_delta_seq", 17, marks=pytest.mark.slow),
        pytest.param("float32", "gated_delta_fused_chunk", 8, marks=pytest.mark.slow),
        pytest.param("float16", "gated_delta_fused_chunk", 5, marks=pytest.mark.slow),
    ],
)
def test_gated_delta_updates_match_float64(dtype: str, kernel: str, length: int) -> None:
    """The state is float32 throughout: only the output is rounded to the dtype."""
    done, (y, state) = gated_delta(dtype, kernel, length)
    assert_right(done, y, ROUNDING[dtype] + 2e-6)
    assert_right(done, state, 2e-6, output=1)
    counters = done.counters
    assert counters is not None
    written = done.outputs[0].nbytes + done.outputs[1].nbytes
    assert counters.device_write_bytes == counters.compulsory_write_bytes == written


@pytest.mark.slow
def test_chunks_of_gated_delta_hand_over_without_a_barrier() -> None:
    """A chunk's decays are overwritten by the next chunk's, behind simdgroup operations and no
    barrier: more than MSL 6.9 promises, and said of no other memory. The values are right."""
    done, (y, state) = gated_delta("float32", "gated_delta_fused_chunk", 20)
    assert {f.kind for f in done.findings} == {"race"}, text(done.findings)
    assert all("gamma_all" in f.message for f in done.findings), text(done.findings)
    for got, expected in zip(done.outputs, (y, state), strict=True):
        assert np.abs(wide(got) - expected).max() <= 2e-6 * np.abs(expected).max()
