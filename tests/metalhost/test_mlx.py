"""MLX's own kernels, unmodified, on metalhost: right against float64, no false finding."""

from __future__ import annotations

import itertools
import random
from typing import Any

import mlx.core as mx
import mlx_kernels as mlx
import numpy as np
import pytest
from mlx_attention import Call, Case, scalar, sdpa_two_pass, sdpa_vector, steel_attention
from mlx_kernels import DTYPES, Floats, Out, assert_right, launch, random_array, wide
from samples import needs_clang

from mlx_lm_openevolve.metalhost import LaunchResult

pytestmark = needs_clang

# Rounding of the output and, in two passes or with half weights, of what is kept in between,
# relative to the largest value of V.
TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def call(case: Case, seed: int = 0) -> Call:
    """Random inputs, with the float64 result."""
    rng = np.random.default_rng(seed)
    dtype = getattr(mx, case.dtype)

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)

    room = -(-case.k_len // 64) * 64 + 64  # a KV cache grows in steps and is read as a slice
    kv_shape = case.batch, case.kv_heads, room, case.head_dim
    q = normal(case.batch, case.q_heads, case.q_len, case.head_dim)
    k, v = (normal(*kv_shape)[:, :, : case.k_len] for _ in range(2))
    mask = None
    shape = case.batch, case.q_heads, case.q_len, case.k_len
    if case.mask == "bool":
        keep = rng.random(shape) < 0.7
        keep[..., 0] = True
        mask = mx.array(keep)
    elif case.mask == "additive":
        mask = normal(*shape)
    sinks = normal(case.q_heads) if case.sinks else None
    mx.eval(q, k, v, *(a for a in (mask, sinks) if a is not None))
    strides = case.kv_heads * room * case.head_dim, room * case.head_dim, case.head_dim
    return Call(q, k, v, mask, sinks, strides, attention(case, q, k, v, mask, sinks))


def attention(
    case: Case, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, sinks: mx.array | None
) -> Floats:
    """softmax(scale * q k^T + mask) v in float64; sinks take weight and give no value."""
    keys, values = (np.repeat(wide(a), case.gqa, axis=1) for a in (k, v))
    scores = wide(q) @ keys.swapaxes(-1, -2) * case.scale
    if case.mask == "causal":
        last = np.arange(case.q_len)[:, None] + case.k_len - case.q_len
        scores = np.where(np.arange(case.k_len) <= last, scores, -np.inf)
    elif mask is not None:
        scores = (
            np.where(wide(mask), scores, -np.inf) if case.mask == "bool" else scores + wide(mask)
        )
    top = scores.max(-1, keepdims=True)
    sink = np.full_like(top, -np.inf)
    if sinks is not None:
        sink = np.broadcast_to(wide(sinks).reshape(1, -1, 1, 1), top.shape)
    top = np.maximum(top, sink)
    weights = np.exp(scores - top)
    result: Floats = weights @ values / (weights.sum(-1, keepdims=True) + np.exp(sink - top))
    return result


# ---- sdpa_vector.h -----------------------------------------------------------------------------


def sampled(cases: list[Case], count: int) -> list[Any]:
    """All cases as parameters, those outside a seeded sample marked slow."""
    kept = set(random.Random(2026).sample(range(len(cases)), count))
    return [
        pytest.param(case, id=str(case), marks=() if i in kept else (pytest.mark.slow,))
        for i, case in enumerate(cases)
    ]


def grid(q_lens: tuple[int, ...], k_lens: tuple[int, ...]) -> list[Case]:
    """Every dtype, head size, mask, sinks and GQA factor; lengths and batches take turns."""
    lengths = itertools.cycle(itertools.product(q_lens, k_lens))
    batches = itertools.cycle((1, 2, 1))
    return [
        Case(dtype, d, mask, sinks, gqa, *next(lengths), batch=next(batches))
        for dtype, d, mask, sinks, gqa in itertools.product(
            DTYPES, (64, 96, 128), ("none", "bool", "additive", "causal"), (False, True), (1, 2, 4)
        )
    ]


@pytest.mark.parametrize("case", sampled(grid((1, 3, 8), (8, 33, 70)), 3))
def test_sdpa_vector_matches_float64(case: Case) -> None:
    c = call(case)
    assert_right(sdpa_vector(case, c), c.expected, TOLERANCE[case.dtype])


@pytest.mark.parametrize("case", sampled(grid((1, 2, 5), (45, 64, 130)), 2))
def test_sdpa_two_pass_matches_float64(case: Case) -> None:
    c = call(case)
    first, second = sdpa_two_pass(case, c)
    assert first.ok, "\n".join(str(f) for f in first.findings)
    assert second is not None
    assert_right(second, c.expected, 2 * TOLERANCE[case.dtype])


@pytest.mark.parametrize(("head_dim", "grouped"), [(64, 8), (128, 4)])
def test_sdpa_two_pass_for_many_heads_matches_float64(head_dim: int, grouped: int) -> None:
    case = Case("float16", head_dim, gqa=8, k_len=150, kv_heads=1)
    c = call(case)
    first, second = sdpa_two_pass(case, c, grouped=grouped)
    assert first.ok, "\n".join(str(f) for f in first.findings)
    assert second is not None
    assert_right(second, c.expected, 2 * TOLERANCE[case.dtype])


def test_counters_of_sdpa_vector_are_exact() -> None:
    """16 heads read 8 heads' keys and values: twice the compulsory bytes, plus the queries."""
    case = Case(k_len=4096, kv_heads=8)
    c = call(case)
    done = sdpa_vector(case, c, count=True)
    assert done.ok, "\n".join(str(f) for f in done.findings)
    counters = done.counters
    assert counters is not None
    assert counters.device_read_bytes == 33_685_504
    assert counters.compulsory_read_bytes == 16_781_312
    assert counters.barriers == 144
    assert counters.simd_reductions == counters.simd_reductions == 68_608
    assert counters.flops == pytest.approx(52.7e6, rel=0.002)


# ---- steel_attention.h -------------------------------------------------------------------------


@pytest.mark.parametrize("case", sampled(grid((32, 40, 9), (64, 75, 47)), 2))
def test_steel_attention_matches_float64(case: Case) -> None:
    c = call(case)
    assert_right(steel_attention(case, c), c.expected, 2 * TOLERANCE[case.dtype])


# One in CI: the others differ in a template argument.
each_dtype = pytest.mark.parametrize(
    "dtype",
    [pytest.param(name, marks=[] if name == "bfloat16" else [pytest.mark.slow]) for name in DTYPES],
)

# ---- softmax.h, logsumexp.h, rms_norm.metal, gemv.h --------------------------------------------


def row_threads(width: int, looped: bool) -> int:
    return 1024 if looped else -(-width // (4 * 32)) * 32


def softmax(x: mx.array, precise: bool, source: str | None = None, **options: Any) -> LaunchResult:
    rows, width = x.shape
    looped = width > 4096
    t = DTYPES[str(x.dtype).removeprefix("mlx.core.")]
    name = "softmax_looped" if looped else "softmax_single_row"
    threads = row_threads(width, looped)
    return launch(
        f'#include "{mlx.KERNELS}/utils.h"\n' + (source or mlx.text("softmax.h")),
        f"{name}<{t}, {'float' if precise else t}>",
        {0: x, 1: Out(x.shape, x.dtype), 2: scalar("i", width)},
        groups=(rows, 1, 1),
        threadgroup=(threads, 1, 1),
        **options,
    )


WIDTHS = (5, 33, 128, 1000, 4096, 4099)


@pytest.mark.parametrize("width", WIDTHS)
@each_dtype
def test_softmax_matches_float64(dtype: str, width: int) -> None:
    x = random_array(dtype, 3, width)
    weights = np.exp(wide(x) - wide(x).max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True)
    assert_right(softmax(x, precise=True), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("width", WIDTHS)
@each_dtype
def test_logsumexp_matches_float64(dtype: str, width: int) -> None:
    x = random_array(dtype, 3, width)
    looped = width > 4096
    done = launch(
        f'#include "{mlx.KERNELS}/utils.h"\n' + mlx.text("logsumexp.h"),
        f"{'logsumexp_looped' if looped else 'logsumexp'}<{DTYPES[dtype]}, float>",
        {0: x, 1: Out((3,), x.dtype), 2: scalar("i", width)},
        groups=(3, 1, 1),
        threadgroup=(row_threads(width, looped), 1, 1),
    )
    assert_right(done, np.log(np.exp(wide(x)).sum(-1)), TOLERANCE[dtype])


def rms_norm(x: mx.array, w: mx.array, source: str | None = None, **options: Any) -> LaunchResult:
    rows, width = x.shape
    looped = width > 4096
    t = DTYPES[str(x.dtype).removeprefix("mlx.core.")]
    body = source or mlx.text("rms_norm.metal")
    return launch(
        body[: body.index("#define instantiate_rms")],
        f"{'rms_looped' if looped else 'rms_single_row'}<{t}>",
        {
            0: x,
            1: w,
            2: Out(x.shape, x.dtype),
            3: scalar("f", 1e-5),
            4: scalar("I", width),
            5: scalar("I", 1),
        },
        groups=(rows, 1, 1),
        threadgroup=(row_threads(width, looped), 1, 1),
        constants={20: True},
        **options,
    )


@pytest.mark.parametrize("width", WIDTHS)
@each_dtype
def test_rms_norm_matches_float64(dtype: str, width: int) -> None:
    x, w = random_array(dtype, 3, width), random_array(dtype, width, seed=1)
    expected = wide(w) * wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-5)
    assert_right(rms_norm(x, w), expected, 2 * TOLERANCE[dtype])


def gemv_buffers(mat: mx.array, vec: mx.array, n_in: int, n_out: int) -> dict[int, Any]:
    return {
        0: mat,
        1: vec,
        3: Out((n_out,), vec.dtype),
        4: scalar("i", n_in),
        5: scalar("i", n_out),
        6: scalar("i", mat.shape[1]),
        9: scalar("i", 1),
        10: scalar("i", 1),
        11: scalar("q", 0),
        12: scalar("q", 0),
    }


def gemv(
    dtype: str,
    n_in: int,
    n_out: int,
    transposed: bool,
    source: str | None = None,
    **options: Any,
) -> tuple[LaunchResult, Floats]:
    """The choice of blocks is that of gemv_axbpy in mlx/backend/metal/matmul.cpp."""
    bm, bn, sm, sn, tm, tn = 1, 1, 1, 32, 4, 4
    if transposed:
        sm, sn = (4, 8) if n_in >= 8192 and n_out >= 2048 else (8, 4)
        bn = 16 if n_out >= 2048 else 4 if n_out >= 512 else 2
        tn = 1 if n_out < tn else tn
        outputs = bn * sn * tn
    else:
        bm = 8 if n_out >= 4096 else 4
        if n_in <= 64:
            bm, sm, sn = 1, 8, 4
        elif n_in >= 16 * n_out:
            bm, bn = 1, 8
        tm = 1 if n_out < tm else tm
        outputs = bm * sm * tm
    mat = random_array(dtype, *((n_in, n_out) if transposed else (n_out, n_in)))
    vec = random_array(dtype, n_in, seed=1)
    blocks = ", ".join(str(n) for n in (bm, bn, sm, sn, tm, tn))
    done = launch(
        source or mlx.text("gemv.h"),
        f"{'gemv_t' if transposed else 'gemv'}<{DTYPES[dtype]}, {blocks}, false, false>",
        gemv_buffers(mat, vec, n_in, n_out),
        groups=(-(-n_out // outputs), 1, 1),
        threadgroup=(32, bn, bm),
        **options,
    )
    product: Floats = wide(vec) @ wide(mat) if transposed else wide(mat) @ wide(vec)
    return done, product


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 96), (33, 32), (200, 100), (130, 16), (96, 4100)])
@each_dtype
def test_gemv_matches_float64(dtype: str, n_in: int, n_out: int) -> None:
    done, expected = gemv(dtype, n_in, n_out, transposed=False)
    assert_right(done, expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("n_in", "n_out"), [(100, 64), (77, 32), (40, 512), (30, 2048)])
@each_dtype
def test_gemv_of_a_transposed_matrix_matches_float64(dtype: str, n_in: int, n_out: int) -> None:
    done, expected = gemv(dtype, n_in, n_out, transposed=True)
    assert_right(done, expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("vectors", "n_in", "n_out"), [(2, 40, 33), (5, 1028, 8), (7, 96, 90)])
@each_dtype
def test_gemv_of_several_vectors_matches_float64(
    dtype: str, vectors: int, n_in: int, n_out: int
) -> None:
    """The choice of tiles is that of gemv_wide_config in mlx/backend/metal/matmul.cpp."""
    passes = (vectors + 4) // 5
    lanes = 32 if passes == 1 or n_out <= 64 else 16
    mat = random_array(dtype, n_out, n_in)
    vec = random_array(dtype, vectors, n_in, seed=1)
    sizes = n_in, n_out, vectors, n_in, n_in
    done = launch(
        mlx.text("gemv.h"),
        f"gemv_wide<{DTYPES[dtype]}, {-(-vectors // passes)}, {lanes}>",
        {
            0: mat,
            1: vec,
            3: Out((vectors, n_out), vec.dtype),
            **{4 + i: scalar("i", size) for i, size in enumerate(sizes)},
            11: scalar("i", 1),
            12: scalar("i", 1),
            13: scalar("q", 0),
            14: scalar("q", 0),
        },
        groups=(passes, -(-n_out // 4), 1),
        threadgroup=(32, lanes // 8, 1),
        constants={0: False, 1: False},
    )
    assert_right(done, wide(vec) @ wide(mat).T, TOLERANCE[dtype])


@each_dtype
def test_gemv_of_gathered_matrices_matches_float64(dtype: str) -> None:
    n_in, n_out, experts, pick = 130, 16, 5, (3, 0, 4)
    mats = random_array(dtype, experts, n_out, n_in)
    vecs = random_array(dtype, len(pick), n_in, seed=1)
    done = launch(
        mlx.text("gemv.h"),
        f"gemv_gather<{DTYPES[dtype]}, 4, 1, 1, 32, 4, 4>",
        {
            0: mats,
            1: vecs,
            3: Out((len(pick), n_out), vecs.dtype),
            4: scalar("i", n_in),
            5: scalar("i", n_out),
            6: scalar("i", n_in),
            9: scalar("i", 1),
            10: scalar("i", len(pick)),
            11: scalar("2q", 1, 1),
            12: scalar("i", 1),
            13: scalar("i", len(pick)),
            14: scalar("q", n_in),
            15: scalar("i", 1),
            16: scalar("i", experts),
            17: scalar("q", n_in * n_out),
            18: scalar("3I", 0, 1, 2),
            19: scalar("3I", *pick),
        },
        groups=(1, 1, len(pick)),
        threadgroup=(32, 1, 4),
    )
    expected = np.einsum("boi,bi->bo", wide(mats)[list(pick)], wide(vecs))
    assert_right(done, expected, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("width", [1000, 4099])
def test_readings_of_rows_are_counted(width: int) -> None:
    """A row that fits a threadgroup's registers is read once, a longer one for the sum and again
    for the result; the weight of rms_norm by each row."""
    x, w = random_array("bfloat16", 3, width), random_array("bfloat16", width, seed=1)
    times = 1 if width <= 4096 else 2
    for done in (softmax(x, True, count=True), rms_norm(x, w, count=True)):
        assert done.ok, "\n".join(str(f) for f in done.findings)
        assert done.counters is not None
        assert done.counters.device_write_bytes == x.nbytes
        read = {name: r.device_bytes for name, r in done.counters.reads.items()}
        assert read.pop("w", x.nbytes) == 3 * w.nbytes
        assert list(read.values()) == [times * x.nbytes]


@pytest.mark.slow
@pytest.mark.parametrize(("n_in", "n_out", "transposed"), [(256, 96, False), (40, 512, True)])
def test_readings_of_gemv_are_counted(n_in: int, n_out: int, transposed: bool) -> None:
    """The matrix once; the vector by every simdgroup, of 4 outputs or (transposed) 16."""
    done, _ = gemv("bfloat16", n_in, n_out, transposed, count=True)
    assert done.ok, "\n".join(str(f) for f in done.findings)
    assert done.counters is not None
    mat, vec = done.counters.reads["mat"], done.counters.reads["in_vec"]
    assert mat.device_bytes == mat.compulsory_bytes == mat.useful_bytes == n_in * n_out * 2
    assert vec.compulsory_bytes == n_in * 2
    assert vec.useful_bytes == n_out // (16 if transposed else 4) * n_in * 2


@pytest.mark.parametrize(
    ("n_in", "n_out", "transposed", "kinds"),
    [
        # BN = 8: sums pass through threadgroup memory.
        (400, 20, False, {"divergent-barrier", "race"}),
        # Lanes beyond the outputs return before the shuffles of the others.
        (64, 100, False, {"divergent-collective"}),
        # Lanes beyond the outputs skip the loop and its barrier.
        (64, 8, True, {"divergent-barrier", "divergent-collective"}),
    ],
)
def test_gemv_findings_are_the_ones_that_are_there(
    n_in: int, n_out: int, transposed: bool, kinds: set[str]
) -> None:
    """What gemv.h does at its edges is more than MSL 6.9 promises, and no more than that is said.

    It hands threadgroup memory over behind threadgroup_barrier(mem_none) in `if (thrN == 0)`, and
    lets lanes leave before barriers and shuffles that others execute. Apple's GPUs cope.
    """
    done, expected = gemv("float32", n_in, n_out, transposed)
    found = {f.kind for f in done.findings}
    assert found, "nothing was found"
    assert found <= kinds, "\n".join(str(f) for f in done.findings)
    if done.outputs:
        error = np.abs(wide(done.outputs[0]) - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE["float32"]


# ---- every barrier that does work --------------------------------------------------------------

# Line numbers are not used: barriers are counted within a file. A barrier "does no work" where no
# memory that it fences is touched by one thread before it and by another one after it.
VECTOR = Case("float32", 64, gqa=2, k_len=40)
GROUPED = Case("float32", 64, gqa=8, k_len=150, kv_heads=1)
STEEL = Case("float16", 64, q_len=40, k_len=70, kv_heads=1, gqa=1)


def deletions() -> list[Any]:
    """(file, barriers in it, launch of the file's text, which of them do work there)."""
    vector = {
        "sdpa_vector": (lambda t: sdpa_vector(VECTOR, call(VECTOR), t), {0, 1, 2}),
        "2pass_1_gqa": (lambda t: sdpa_two_pass(GROUPED, call(GROUPED), 32, t, 8)[0], {3}),
        "2pass_2": (lambda t: sdpa_two_pass(VECTOR, call(VECTOR), 32, t)[-1], {4, 5}),
    }
    steel = "steel/attn/kernels/steel_attention.h"
    x = random_array
    found = [(f"{n}", "sdpa_vector.h", 6, run, work) for n, (run, work) in vector.items()]
    found += [
        # 0: nothing precedes it. 3 and 4 belong to WN = 2. 7: mem_none, nothing shared follows.
        ("steel", steel, 8, lambda t: steel_attention(STEEL, call(STEEL), t), {1, 2, 5, 6}),
        (
            "softmax",
            "softmax.h",
            7,
            lambda t: softmax(x("float32", 2, 300), True, t),
            set(range(5)),
        ),
        (
            "softmax_looped",
            "softmax.h",
            7,
            lambda t: softmax(x("float32", 1, 4099), True, t),
            {5, 6},
        ),
    ]
    return found


def deletion_params() -> list[Any]:
    """Of each launch one that does work in CI: every one is a compilation."""
    return [
        pytest.param(
            file,
            count,
            run,
            i,
            i in work,
            id=f"{name}-{i}",
            marks=[] if i == min(work) else [pytest.mark.slow],
        )
        for name, file, count, run, work in deletions()
        for i in (sorted(work) if name != "steel" else range(count))
    ]


@pytest.mark.parametrize(("file", "count", "run", "index", "works"), deletion_params())
def test_a_deleted_barrier_is_found(
    file: str, count: int, run: Any, index: int, works: bool
) -> None:
    whole = mlx.text(file)
    assert len(mlx.barrier_lines(whole)) == count, "MLX has changed: count the barriers anew"
    done = run(mlx.without_barrier(whole, index))
    kinds = {f.kind for f in done.findings}
    if works:
        assert kinds & {"race", "uninitialised"}, f"line {mlx.barrier_lines(whole)[index]}: {kinds}"
    else:
        assert done.ok, "\n".join(str(f) for f in done.findings)


@pytest.mark.parametrize(
    "index", [pytest.param(i, marks=[] if i in (0, 5) else [pytest.mark.slow]) for i in range(6)]
)
def test_a_deleted_barrier_of_rms_norm_is_found(index: int) -> None:
    whole = mlx.text("rms_norm.metal")
    width = 300 if index < 3 else 4099
    x, w = random_array("float32", 1, width), random_array("float32", width)
    done = rms_norm(x, w, mlx.without_barrier(whole, index))
    assert {f.kind for f in done.findings} & {"race", "uninitialised"}
