"""metalhost itself: signatures, memory, races, schedules, isolation, counters, cache, targets.

Its judgement of Metal as a language is held by the corpora (test_metalhost_corpus.py), its
fidelity by MLX's own kernels (test_metalhost_mlx.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_lm_openevolve import metalhost
from mlx_lm_openevolve.errors import BackendError, UsageError
from mlx_lm_openevolve.metalhost import (
    Counters,
    Finding,
    Launch,
    Place,
    check_source,
    chips,
    compiler_available,
    metal_function,
    metal_kernel,
    roofline,
)
from mlx_lm_openevolve.metalhost.cache import Store
from mlx_lm_openevolve.metalhost.findings import unique
from mlx_lm_openevolve.metalhost.flops import count_blocks
from mlx_lm_openevolve.metalhost.signature import ArgumentType, generate
from mlx_lm_openevolve.metalhost.symbols import LineTable
from mlx_lm_openevolve.metalhost.toolchain import RUNTIME, SHIM, toolchain

HOST, WHY = compiler_available()
on_host = pytest.mark.skipif(not HOST, reason=f"no compiler for metalhost: {WHY}")


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
) -> Launch:
    """One output `y` of `n` elements; inputs are named a, b, c."""
    inputs = inputs or []
    kernel = metal_kernel(
        "probe", list("abc"[: len(inputs)]), ["y"], textwrap.dedent(body), header, contiguous,
        math_mode,
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


def said(done: Launch) -> str:
    return "\n".join(str(f) for f in done.findings)


def only(done: Launch, kind: str) -> Finding:
    """The one finding, of this kind."""
    assert [f.kind for f in done.findings] == [kind], said(done)
    return done.findings[0]


# ---- what the body sees -------------------------------------------------------------------------


def test_the_signature_declares_what_the_body_mentions() -> None:
    text = generate(
        "k",
        "y[0] = x_shape[0] + s_ndim + thread_index_in_simdgroup;",
        "// header",
        [("x", ArgumentType("float", 64, 2)), ("s", ArgumentType("int32_t", 3, 1)),
         ("z", ArgumentType("bfloat16_t", 1, 0))],
        [("y", "float")],
        [("T", "typename"), ("N", "int")],
        ("k.header", "k"),
    )  # fmt: skip
    flat = " ".join(text.split())
    assert "const device float* x [[buffer(0)]], const constant int* x_shape [[buffer(1)]]" in flat
    assert (
        "const constant int32_t* s [[buffer(2)]], const constant int& s_ndim [[buffer(3)]]" in flat
    )
    assert "const constant bfloat16_t& z [[buffer(4)]], device float* y [[buffer(5)]]" in flat
    assert "uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]" in flat
    assert "template <typename T, int N>" in flat
    assert "x_strides" not in flat
    assert "threads_per_grid" not in flat


@on_host
def test_shapes_strides_and_ranks_of_a_strided_view() -> None:
    a = mx.arange(48).astype(mx.float32).reshape(6, 8)[1:5:2, 2:7]
    done = launch(
        """
        uint i = thread_position_in_grid.x;
        uint row = i / a_shape[1], column = i % a_shape[1];
        y[i] = a[row * a_strides[0] + column * a_strides[1]] + 100 * a_ndim;
        """,
        [a],
        n=10,
        group=10,
        contiguous=False,
    )
    assert done.ok, said(done)
    assert np.array_equal(np.array(done.outputs[0]), np.array(a).reshape(-1) + 200)


@on_host
def test_broadcast_and_reversed_views_keep_their_strides() -> None:
    wide = mx.broadcast_to(mx.array([3.0, 4.0, 5.0, 6.0])[:, None], (4, 8))
    body = (
        "uint i = thread_position_in_grid.x; y[i] = a[i / 8 * a_strides[0] + i % 8 * a_strides[1]];"
    )
    done = launch(body, [wide], contiguous=False)
    assert done.ok, said(done)
    assert np.array_equal(np.array(done.outputs[0]), np.array(wide).reshape(-1))
    back = np.arange(32, dtype=np.float32)[::-1]
    body = "uint i = thread_position_in_grid.x; y[i] = a[int(i) * int(a_strides[0])];"
    done = launch(body, [back], contiguous=False)
    assert done.ok, said(done)
    assert np.array_equal(np.array(done.outputs[0]), back)


@on_host
def test_contiguous_rows_are_made_when_asked_for() -> None:
    a = mx.arange(32).astype(mx.float32).reshape(4, 8).T
    done = launch("uint i = thread_position_in_grid.x; y[i] = a[i];", [a])
    assert done.ok, said(done)
    assert np.array_equal(np.array(done.outputs[0]), np.array(a).reshape(-1))


@on_host
@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int8, mx.uint16, mx.int64]
)
def test_dtypes_go_in_and_out(dtype: Any) -> None:
    a = mx.arange(32).astype(dtype)
    done = launch(
        "uint i = thread_position_in_grid.x; y[i] = T(a[i] + T(1));",
        [a],
        dtype=dtype,
        template=[("T", dtype)],
    )
    assert done.ok, said(done)
    assert done.outputs[0].dtype == dtype
    assert mx.array_equal(done.outputs[0], a + mx.array(1, dtype))


@on_host
def test_scalars_small_arrays_and_template_values() -> None:
    done = launch(
        """
        uint i = thread_position_in_grid.x;
        y[i] = FLAG ? a * b[1] + N : 0;
        """,
        [mx.array(2.0), mx.array([5.0, 7.0])],
        template=[("N", -3), ("FLAG", True)],
    )
    assert done.ok, said(done)
    assert set(np.array(done.outputs[0])) == {11.0}


@on_host
def test_several_outputs_and_an_initial_value() -> None:
    kernel = metal_kernel("two", ["a"], ["p", "q"], "uint i = thread_position_in_grid.x;\n"
                          "p[i] = a[i] + 1; if (i < 4) q[i] = bfloat16_t(i);")  # fmt: skip
    a = mx.arange(8).astype(mx.float32)
    done = kernel([a], grid=(8, 1, 1), threadgroup=(8, 1, 1), output_shapes=[(2, 4), (8,)],
                  output_dtypes=[mx.float32, mx.bfloat16], init_value=2.5)  # fmt: skip
    assert done.ok, said(done)
    assert np.array_equal(np.array(done.outputs[0]).reshape(-1), np.arange(8) + 1)
    assert done.outputs[1].tolist() == [0, 1, 2, 3, 2.5, 2.5, 2.5, 2.5]


@on_host
def test_attributes_at_a_ragged_edge() -> None:
    done = launch(
        """
        uint i = thread_position_in_grid.x;
        y[i] = threads_per_threadgroup.x + 100 * dispatch_threads_per_threadgroup.x
             + 10000 * simdgroups_per_threadgroup + 100000 * threadgroup_position_in_grid.x
             + 1000000 * thread_index_in_simdgroup;
        """,
        n=90,
        group=64,
        dtype=mx.int32,
    )
    assert done.ok, said(done)
    y = np.array(done.outputs[0])
    assert y[0] == 64 + 6400 + 20000
    assert y[63] == 64 + 6400 + 20000 + 31_000_000
    assert y[64] == 26 + 6400 + 10000 + 100000


@on_host
def test_whole_sources_offsets_threadgroup_memory_and_host_names() -> None:
    source = """
    #include <metal_stdlib>
    using namespace metal;
    constant int factor [[function_constant(3)]];
    template <typename T>
    [[kernel]] void turn(const device T* x [[buffer(0)]], device T* y [[buffer(2)]],
                         constant int& shift [[buffer(4)]],
                         threadgroup T* shared [[threadgroup(0)]],
                         uint i [[thread_position_in_threadgroup]],
                         uint n [[threads_per_threadgroup]]) {
      shared[i] = x[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      y[i] = shared[(i + shift) % n] * factor;
    }
    template [[host_name("turn_float")]] [[kernel]] decltype(turn<float>) turn<float>;
    """
    x = mx.arange(40).astype(mx.float32)
    for name, arguments in (("turn_float", ()), ("turn", (mx.float32,))):
        f = metal_function(source, name, arguments, constants={3: 10})
        done = f([(x, 32), None, mx.zeros((32,)), None, np.int32(5).tobytes()],
                 threadgroups=(1, 1, 1), threadgroup=(32, 1, 1), threadgroup_memory={0: 128},
                 outputs=[2])  # fmt: skip
        assert done.ok, said(done)
        expected = 10 * (8 + (np.arange(32) + 5) % 32)
        assert np.array_equal(np.array(done.outputs[0]), expected)


# ---- memory -------------------------------------------------------------------------------------


@on_host
@pytest.mark.parametrize(
    ("index", "words"),
    [("i + 1", "byte 128 of 'a', which has 128 bytes"), ("int(i) - 1", "before 'a' (128 bytes)"),
     ("i * 1000", "byte 4000 of 'a'")],
)  # fmt: skip
def test_reads_outside_a_buffer(index: str, words: str) -> None:
    done = launch(f"uint i = thread_position_in_grid.x;\n\ny[i] = a[{index}];", [mx.zeros((32,))])
    found = only(done, "out-of-bounds")
    assert (found.line, found.file) == (3, "probe")
    assert words in found.message
    assert found.text == f"y[i] = a[{index}];"
    assert found.fatal
    assert done.outputs == []


@on_host
def test_the_gap_between_a_views_rows_is_not_readable() -> None:
    a = mx.arange(64).astype(mx.float32).reshape(4, 16)[:, :8]
    body = "uint i = thread_position_in_grid.x; y[i] = a[i];"
    done = launch(body, [a], n=8, group=8, contiguous=False)
    assert done.ok, said(done)
    found = only(launch(body, [a], n=9, group=9, contiguous=False), "out-of-bounds")
    assert "between the elements" in found.message


@on_host
def test_private_and_threadgroup_arrays_have_bounds_too() -> None:
    body = "float t[4] = {0, 0, 0, 0};\nuint i = thread_position_in_grid.x;\ny[i] = t[i];"
    assert only(launch(body), "out-of-bounds").line == 3
    body = """\
        threadgroup float t[16];
        threadgroup float u[16];
        uint i = thread_position_in_grid.x;
        threadgroup float* p = t;
        u[i % 16] = 0;
        p[i] = 1;
        y[i] = 2;
        """
    done = launch(body)
    outside = [f for f in done.findings if f.kind == "out-of-bounds"]
    assert [f.line for f in outside] == [6], said(done)
    assert "threadgroup 't', which has 64 bytes" in outside[0].message


@on_host
def test_misaligned_vectors_and_writes_to_const() -> None:
    done = launch(
        "uint i = thread_position_in_grid.x;\n"
        "y[i] = (*(const device float2*)(a + 1)).x;", [mx.zeros((32,))])  # fmt: skip
    assert only(done, "misaligned").line == 2
    done = launch(
        "uint i = thread_position_in_grid.x;\n((device float*)a)[i] = 1;\ny[i] = 0;",
        [mx.zeros((32,))],
    )
    assert any(f.kind in ("read-only", "strict", "compile") for f in done.findings), said(done)


@on_host
def test_what_nobody_wrote() -> None:
    done = launch("uint i = thread_position_in_grid.x;\nif (i != 7) y[i] = 1;")
    found = only(done, "unwritten")
    assert "1 of the 32 elements of 'y'" in found.message
    assert "element 7" in found.message
    done = launch("threadgroup float t[32];\nuint i = thread_position_in_grid.x;\ny[i] = t[i];")
    assert only(done, "uninitialised").line == 3
    done = launch("float t[4];\nuint i = thread_position_in_grid.x;\ny[i] = t[a[0] % 4] * 2;",
                  [mx.arange(32)])  # fmt: skip
    assert only(done, "uninitialised").line == 3


@on_host
def test_a_store_to_components_is_no_read() -> None:
    body = """\
        uint i = thread_position_in_grid.x;
        device float4* v = (device float4*)y;
        v[i].xy = float2(1, 2);
        v[i].z = 3;
        v[i][3] = OP;
        """
    done = launch(body.replace("OP", "4"), n=8, group=8, out=(32,))
    assert done.ok, said(done)
    assert done.outputs[0].tolist() == [1.0, 2.0, 3.0, 4.0] * 8
    done = launch("y[thread_position_in_grid.x] += 1;")
    assert "uninitialised" in {f.kind for f in done.findings}, said(done)


# ---- threads ------------------------------------------------------------------------------------

EXCHANGE = """\
threadgroup float t[64];
uint i = thread_position_in_threadgroup.x;
t[i] = i;
BARRIER
y[thread_position_in_grid.x] = t[63 - i];
"""


@on_host
@pytest.mark.parametrize(
    ("barrier", "kind"),
    [
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", None),
        ("threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);", None),
        ("threadgroup_barrier(mem_flags::mem_none);", "race"),
        ("threadgroup_barrier(mem_flags::mem_device);", "race"),
        ("simdgroup_barrier(mem_flags::mem_threadgroup);", "race"),
        ("simd_sum(1.0f);", "race"),
    ],
)
def test_only_a_barrier_that_fences_orders(barrier: str, kind: str | None) -> None:
    done = launch(EXCHANGE.replace("BARRIER", barrier), n=64, group=64)
    kinds = {f.kind for f in done.findings} - {"uninitialised"}
    assert kinds == ({kind} if kind else set()), said(done)
    if kind:
        [found] = [f for f in done.findings if f.kind == "race"]
        assert found.other is not None
        assert {found.line, found.other.line} == {3, 5}
        assert found.threadgroup == (0, 0, 0)
        assert "the other side is here" in str(found)


@on_host
def test_a_simdgroup_barrier_orders_one_simdgroup() -> None:
    body = EXCHANGE.replace("BARRIER", "simdgroup_barrier(mem_flags::mem_threadgroup);")
    done = launch(body.replace("63 - i", "i / 32 * 32 + 31 - i % 32"), n=64, group=64)
    assert done.ok, said(done)


@on_host
def test_threadgroups_race_through_device_memory() -> None:
    done = launch("y[0] = threadgroup_position_in_grid.x;\ny[1 + thread_position_in_grid.x] = 0;",
                  n=31, group=1, out=(32,))  # fmt: skip
    found = only(done, "race")
    assert found.line == 1
    assert "of threadgroup" in found.message
    atomic = """
        device atomic_uint* n = (device atomic_uint*)y;
        atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);
        """
    done = launch(atomic, n=64, group=16, out=(1,), dtype=mx.uint32, init_value=0)
    assert done.ok, said(done)
    assert done.outputs[0].tolist() == [64]


@on_host
@pytest.mark.parametrize("seed", range(6))
def test_a_lucky_order_hides_no_race(seed: int) -> None:
    body = """\
        threadgroup float t[1];
        if (simdgroup_index_in_threadgroup == 0) t[0] = 1;
        float v = 0;
        if (simdgroup_index_in_threadgroup == 1) v = t[0];
        y[thread_position_in_grid.x] = v;
        """
    done = launch(body, n=64, group=64, seed=seed)
    races = [f for f in done.findings if f.kind == "race"]
    assert races, said(done)
    assert all({f.line, f.other.line} <= {2, 4} for f in races if f.other), said(done)


@on_host
def test_seeds_turn_the_order_and_nothing_else() -> None:
    body = """
        device atomic_uint* n = (device atomic_uint*)y;
        uint k = atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);
        atomic_store_explicit(n + 1 + k, thread_position_in_grid.x, memory_order_relaxed);
        """
    orders = set()
    for seed in range(8):
        done = launch(body, n=96, group=32, out=(97,), dtype=mx.uint32, init_value=0, seed=seed)
        assert done.ok, said(done)
        order = tuple(done.outputs[0].tolist()[1:])
        assert sorted(order) == list(range(96))
        orders.add(order)
        again = launch(body, n=96, group=32, out=(97,), dtype=mx.uint32, init_value=0, seed=seed)
        assert tuple(again.outputs[0].tolist()[1:]) == order
    assert len(orders) > 4


@on_host
def test_divergence_is_found_once_and_the_launch_goes_on() -> None:
    body = """\
        uint i = thread_position_in_grid.x;
        float v = 0;
        if (i < 8) {
          v = simd_sum(1.0f);
        }
        y[i] = v;
        """
    done = launch(body)
    found = only(done, "divergent-collective")
    assert found.line == 4
    assert not found.fatal
    assert done.outputs[0].tolist() == [8.0] * 8 + [0.0] * 24
    body = "if (simdgroup_index_in_threadgroup == 0)\n  threadgroup_barrier(mem_flags::mem_none);\n"
    done = launch(body + "y[thread_position_in_grid.x] = 1;", n=64, group=64)
    found = only(done, "divergent-barrier")
    assert found.line == 2
    assert "has returned" in found.message


# ---- isolation ----------------------------------------------------------------------------------


@on_host
@pytest.mark.parametrize("sanitize", [True, False])
def test_an_endless_loop_ends_at_the_time_limit(sanitize: bool) -> None:
    body = "uint i = 1;\nwhile (i != 0) {\n  i = i * 3 | 1;\n}\ny[thread_position_in_grid.x] = i;"
    done = launch(body, time_limit=0.5, sanitize=sanitize)
    found = only(done, "time-limit")
    assert found.line in (2, 3)
    assert done.outputs == []


@on_host
@pytest.mark.parametrize("sanitize", [True, False])
def test_a_wild_pointer_harms_nobody(sanitize: bool) -> None:
    body = (
        "uint i = thread_position_in_grid.x;\n"
        "*(device float*)(0x123456789000ul + 4 * i) = 1;\ny[i] = 1;"
    )
    done = launch(body, sanitize=sanitize)
    found = only(done, "out-of-bounds" if sanitize else "fault")
    assert found.line == 2


@on_host
def test_limits_of_size() -> None:
    body = "threadgroup float t[9000];\nuint i = thread_position_in_grid.x;\nt[i] = 0; y[i] = t[i];"
    found = only(launch(body), "threadgroup-memory")
    assert "32768" in found.message
    assert "1025" in only(launch("y[0] = 1;", n=1025, group=1025), "threadgroup-size").message
    a = mx.zeros((1 << 20,))
    done = launch("y[thread_position_in_grid.x] = a[0];", [a], memory_limit=1 << 20)
    assert "1048576" in only(done, "memory-limit").message


@on_host
def test_launches_from_many_threads_at_once() -> None:
    body = "y[thread_position_in_grid.x] = a[0] + thread_position_in_grid.x;"
    inputs = [np.full(8, k, np.float32) for k in range(8)]
    results: dict[int, Any] = {}

    def work(k: int) -> None:
        results[k] = launch(body, [inputs[k]]).outputs[0].tolist()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {k: [k + i for i in range(32)] for k in range(8)}


@on_host
def test_no_file_stays_open() -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")
    body = "y[thread_position_in_grid.x] = 1;"
    launch(body)
    before = len(list(folder.iterdir()))
    for _ in range(10):
        launch(body)
    assert len(list(folder.iterdir())) <= before


@on_host
@pytest.mark.parametrize(
    "header",
    [
        '#include "/etc/passwd"',
        "#include <../../etc/passwd>",
        "#in\\\nclude </etc/passwd>",
        "#in\\ \nclude </etc/passwd>",
        "//\r#include </etc/passwd>",
        "/**/ # /**/ include </etc/passwd>",
        "/*\n*/ #include </etc/passwd>",
        "%:include </etc/passwd>",
        "#define F </etc/passwd>\n#include F",
        "constant char q = '\"'; /* \" */\n#include </etc/passwd>",
        "#import </etc/passwd>",
        "#embed </etc/passwd>",
        '#line 1 "<entry>"\nasm("");',
        '# 1 "<entry>"\nasm("");',
        "#pragma redefine_extname f system",
        "#pragma clang attribute push",
        '_Pragma("weak f = system")',
        '#define P "weak f = system"\n_Pragma(P)',
        'asm(".incbin \\"/etc/passwd\\"");',
        '#define J(a, b) a##b\nJ(as, m)(".incbin \\"/etc/passwd\\"");',
        'constant char q = \'"\'; // "/*"\nasm(""); constant char r = \'"\'; // "*/"',
        'extern "C" int system(const char*);',
        "#define J(a, b) a##b\nJ(ext, ern) int system(int);",
        'int f() __attribute__((alias("system")));',
        "[[gnu::weak]] int f();",
        "#define J(a, b) a##b\nint f() { return J(__builtin_, trap)(), 0; }",
        "namespace mh { int f(); }",
        "#define J(a, b) a##b\nint f() { J(m, h)::finish(); return 0; }",
    ],
)
def test_no_way_out_of_the_sandbox(header: str) -> None:
    done = launch("y[thread_position_in_grid.x] = 1;", header=header)
    assert {f.kind for f in done.findings} == {"sandbox"}, said(done)
    assert len(done.findings) == 1, said(done)
    assert "root:" not in said(done)


# ---- counters -----------------------------------------------------------------------------------


def counted(body: str, inputs: list[Any] | None = None, **options: Any) -> Counters:
    done = launch(body, inputs, count=True, **options)
    assert done.ok, said(done)
    assert done.counters is not None
    return done.counters


@on_host
def test_bytes_and_lines() -> None:
    a = mx.arange(1024).astype(mx.float32)
    c = counted("uint i = thread_position_in_grid.x; y[i] = a[i] + a[i];", [a], n=1024, group=256)
    assert (c.device_read_bytes, c.compulsory_read_bytes) == (4096, 4096)
    assert (c.device_write_bytes, c.compulsory_write_bytes) == (4096, 4096)
    assert (c.read_lines, c.write_lines, c.line_efficiency) == (32, 32, 1.0)
    c = counted("uint i = thread_position_in_grid.x; y[i] = a[i * 32];", [a])
    assert (c.device_read_bytes, c.read_lines, c.read_useful_bytes) == (128, 32, 128)
    c = counted("uint i = thread_position_in_grid.x; y[i] = a[0];", [a])
    assert (c.device_read_bytes, c.compulsory_read_bytes, c.read_lines) == (128, 4, 1)
    # Four neighbours of one thread are one access.
    c = counted(
        "uint i = thread_position_in_grid.x; float s = 0;\n"
        "for (int k = 0; k < 4; k++) s += a[4 * i + k];\ny[i] = s;", [a])  # fmt: skip
    assert (c.read_accesses, c.read_lines, c.device_read_bytes) == (1, 4, 512)


@on_host
def test_bank_conflicts_barriers_and_simd_operations() -> None:
    body = """
        threadgroup float t[1024];
        uint i = thread_position_in_threadgroup.x;
        t[i * STEP] = i;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[thread_position_in_grid.x] = simd_sum(t[i * STEP]) + simd_shuffle_xor(1.0f, 1);
        """
    for step, conflicts in ((1, 0), (2, 1), (32, 31)):
        c = counted(body, n=64, group=32, template=[("STEP", step)])
        # Two threadgroups, each one store and one load.
        assert c.bank_conflicts == 4 * conflicts
        assert c.threadgroup_accesses == 4
        assert (c.barriers, c.simd_reductions, c.simd_shuffles, c.simd_ops) == (2, 2, 2, 4)
        assert c.threadgroup_memory == 4096
        assert (c.threadgroups, c.threads) == (2, 64)


@on_host
def test_flops_and_divergence() -> None:
    a = mx.arange(32).astype(mx.float32)
    c = counted("uint i = thread_position_in_grid.x; y[i] = fma(a[i], 2.0f, 1.0f) * a[i];", [a])
    assert c.flops == 3 * 32
    assert c.divergence == 0
    c = counted(
        """
        uint i = thread_position_in_grid.x;
        float v = a[i];
        for (uint k = 0; k < i; ++k) v = v * v + 1.0f;
        y[i] = v;
        """,
        [a],
        math_mode="safe",
    )
    assert c.flops == 2 * sum(range(32))
    assert 0.3 < c.divergence < 0.6


def test_flops_are_read_off_the_ir() -> None:
    ir = "\n".join([
        "define void @f(float %x) {",
        "  call void @__sanitizer_cov_trace_pc_guard(ptr @g)",
        "  %1 = fadd contract <4 x float> %a, %b",
        "  %2 = tail call float @llvm.fmuladd.f32(float %x, float %x, float %x)",
        "  br label %3",
        "",
        "3:                                                ; preds = %0",
        "  call void @__sanitizer_cov_trace_pc_guard(ptr @h)",
        "  %4 = fneg float %x",
        "  ret void",
        "}",
    ])  # fmt: skip
    counted_ir = count_blocks(ir)
    assert "call void @mh_block(i32 0, i32 3, i32 6)" in counted_ir
    assert "call void @mh_block(i32 1, i32 2, i32 0)" in counted_ir
    assert "trace_pc_guard" not in counted_ir


def test_the_roofline_is_a_model() -> None:
    c = Counters(compulsory_read_bytes=546_000_000, flops=10**9)
    r = roofline(c, "apple-m4-max-40")
    assert r.modelled_seconds == r.memory_seconds == pytest.approx(1e-3)
    r = roofline(Counters(flops=10**12), "apple-m4-max-40")
    assert r.modelled_seconds == r.compute_seconds
    assert all("modelled" in key for key in r.to_dict() if key != "chip")
    assert roofline(c, "apple-m5-max-40").compute_seconds is None
    with pytest.raises(UsageError, match="apple-m1-8"):
        roofline(c, "apple-m9")


def test_every_figure_of_a_chip_has_its_source() -> None:
    assert {c.name.split()[1] for c in chips().values()} == {"M1", "M2", "M3", "M4", "M5"}
    for chip in chips().values():
        assert chip.slug.endswith(f"-{chip.gpu_cores}")
        needed = {"gpu_cores", "bandwidth_gb_s"}
        needed |= {"fp32_gflops"} if chip.fp32 else set()
        needed |= {"fp16_gflops"} if chip.fp16 else set()
        assert set(chip.sources) == needed
        assert all(len(s) > 20 for s in chip.sources.values())


# ---- findings -----------------------------------------------------------------------------------


def test_a_finding_reads_like_a_compilers_message() -> None:
    f = Finding("race", "two writes", 3, "k", "y[0] = 1;", Place("k", 5, "y[0] = 2;"), 1, (0, 0, 0))
    assert str(f).splitlines() == [
        "k:3: race: two writes",
        "     3 | y[0] = 1;",
        "k:5: note: the other side is here",
        "     5 | y[0] = 2;",
    ]
    data = f.to_dict()
    assert data["other"] == {"file": "k", "line": 5, "text": "y[0] = 2;"}
    assert data["threadgroup"] == [0, 0, 0]
    assert str(Finding("sandbox", "too long")) == "kernel: sandbox: too long"
    assert len(unique([f, f, Finding("race", "other words", 3, "k", "", f.other)])) == 1


@on_host
def test_launches_as_plain_data() -> None:
    data = launch("y[thread_position_in_grid.x] = 1;", count=True).to_dict()
    assert data["ok"] is True
    assert data["counters"]["device_write_bytes"] == 128
    assert data["run_seconds"] > 0


def test_rules_that_need_no_compiler() -> None:
    assert [f.kind for f in check_source("y[0] = 1; // caf\u00e9")] == ["non-ascii"]
    assert [f.kind for f in check_source('#include "/etc/passwd"')] == ["sandbox"]
    assert [f.kind for f in check_source("y[0] = 1;", threadgroup=(64, 64, 1))] == [
        "threadgroup-size"
    ]
    assert check_source("y[0] = 1;", threadgroup=(32, 32, 1)) == ()


# ---- compiler, cache, targets -------------------------------------------------------------------


def test_wrong_use_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match="at least one output"):
        metal_kernel("k", [], [], "")
    with pytest.raises(UsageError, match="C identifier"):
        metal_kernel("a b", [], ["y"], "")
    with pytest.raises(UsageError, match="safe, relaxed, fast"):
        metal_kernel("k", [], ["y"], "", math_mode="wild")


@on_host
def test_wrong_arguments_are_one_clear_line() -> None:
    with pytest.raises(UsageError, match="takes 1 inputs, not 0"):
        metal_kernel("k", ["x"], ["y"], "")(
            [],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[mx.float32],
        )
    with pytest.raises(UsageError, match="complex64"):
        launch("y[0] = 1;", [mx.zeros((8,), mx.complex64)])
    with pytest.raises(UsageError, match="three numbers"):
        launch("y[0] = 1;", group=(1, 1))  # type: ignore[arg-type]


def test_the_compiler_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", "no-such-compiler")
    available, why = compiler_available()
    assert not available
    assert "no-such-compiler" in why
    with pytest.raises(BackendError):
        launch("y[0] = 1;")


@on_host
def test_a_clang_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain command line of a clang driver serves: here the same clang behind a script."""
    chain = toolchain()
    tool = chain.clang[0]
    if not tool.endswith("zig"):
        pytest.skip("a clang of the user's own is in use already")
    script = tmp_path / "my-clang++"
    script.write_text(
        '#!/bin/sh\ncase " $* " in *-nostdinc*|*" -x ir "*|*--version*) '
        f'exec "{tool}" clang "$@";;\n'
        f'*" -lm "*) exec {" ".join(chain.link)} "$1" "$2" "-femit-bin=$4";; esac\n'
        f'exec "{tool}" c++ "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", str(script))
    assert compiler_available()[0], compiler_available()
    done = launch("y[thread_position_in_grid.x] = 41;")
    assert done.ok, said(done)
    assert done.outputs[0].tolist() == [41.0] * 32


@on_host
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_conversions_without_the_cpus_help(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an old x86 the runtime's own conversions serve: every value, rounding and special."""
    monkeypatch.setattr("mlx_lm_openevolve.metalhost.toolchain._has_avx2", lambda: False)
    halves = mx.arange(65536).astype(mx.uint16).view(dtype)
    rng = np.random.default_rng(1)
    floats = mx.array(rng.integers(0, 2**32, 65536, np.uint32).view(np.float32))
    body = """
        uint i = thread_position_in_grid.x;
        y[i] = T(i < 65536 ? float(a[i]) : b[i - 65536]);
        """
    done = launch(body, [halves, floats], n=131072, group=1024, dtype=dtype,
                  template=[("T", dtype)], sanitize=False)  # fmt: skip
    assert done.ok, said(done)
    expected = mx.concatenate([halves, floats.astype(dtype)])
    same = (done.outputs[0] == expected) | (mx.isnan(done.outputs[0]) & mx.isnan(expected))
    assert mx.all(same).item()


@on_host
def test_two_installations_share_one_cache(tmp_path: Path) -> None:
    """A precompiled header names its sources by path: the second must not use the first's."""
    program = (
        "import mlx.core as mx\n"
        "from mlx_lm_openevolve.metalhost import metal_kernel\n"
        "kernel = metal_kernel('probe', ['a'], ['y'],\n"
        "    'uint i = thread_position_in_grid.x; y[i] = a[i] + {value};')\n"
        "done = kernel([mx.zeros((32,))], None, grid=(32, 1, 1), threadgroup=(32, 1, 1),\n"
        "    output_shapes=[(32,)], output_dtypes=[mx.float32])\n"
        "assert done.ok, done.findings\n"
    )
    package = Path(metalhost.__file__).parents[1]
    environment = {**os.environ, "MLX_LM_OPENEVOLVE_HOME": str(tmp_path / "fresh")}
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):  # with modification times of their own
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, place / package.name, ignore=skipped, copy_function=shutil.copy)
    for value, place in enumerate((first, second, second)):
        if value == 2:
            shutil.rmtree(first)
        done = subprocess.run(
            [sys.executable, "-c", program.format(value=value)], check=False,
            capture_output=True, text=True, env=environment, cwd=place,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_the_store_builds_once_and_stays_small(tmp_path: Path) -> None:
    built = []

    def build(key: str, size: int = 100) -> Any:
        def fill(work: Path) -> None:
            built.append(key)
            (work / "data").write_bytes(b"x" * size)

        return fill

    store = Store(tmp_path, limit=250)
    keys = [f"{k:02d}key" for k in range(4)]
    for age, key in enumerate(keys[:2]):
        folder = store.get(key, build(key))
        os.utime(folder, (age, age))
    store.get(keys[0], build(keys[0]))
    assert built == keys[:2]
    store.get(keys[2], build(keys[2]))
    left = {f.parent.name for f in tmp_path.glob("*/*/data")}
    assert left == {keys[0], keys[2]}
    with pytest.raises(RuntimeError):
        store.get(keys[3], lambda work: (_ for _ in ()).throw(RuntimeError("no")))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(("new-", "old-"))]


@on_host
@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-macos", "aarch64-linux-gnu.2.28"])
def test_the_runtime_builds_for_other_machines(target: str, tmp_path: Path) -> None:
    tool = toolchain().runtime[0]
    if not tool.endswith("zig"):
        pytest.skip("needs zig, which brings the libraries of other systems")
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text('extern "C" void mh_signature() {}\nextern "C" void mh_entry() {}\n')
    objects = []
    for source in (kernel, RUNTIME / "metalhost.cpp"):
        objects.append(str(tmp_path / f"{source.stem}.o"))
        done = subprocess.run(
            [tool, "c++", "-target", target, "-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti",
             "-fno-sanitize=all", "-Wall", "-Wextra", "-Werror", "-c", str(source),
             "-o", objects[-1]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[:2000]
    done = subprocess.run(
        [tool, "build-exe", "-target", target, "-lc", "-fno-compiler-rt", "-fno-ubsan-rt", *objects,
         f"-femit-bin={tmp_path / 'program'}", "--cache-dir", str(tmp_path / "zig")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:2000]
    magic = (tmp_path / "program").read_bytes()[:4]
    assert magic == (b"\xcf\xfa\xed\xfe" if "macos" in target else b"\x7fELF")


@on_host
def test_lines_of_a_mach_o_object(tmp_path: Path) -> None:
    unit = tmp_path / "unit.cpp"
    unit.write_text(
        '# 1 "kernel"\nvoid touch(int*);\nextern "C" void mh_entry() {\n  int i = 0;\n\n'
        "  touch(&i);\n}\n"
    )
    out = tmp_path / "unit.o"
    command = [*toolchain().clang, "-target", "arm64-apple-macos", "-gline-tables-only"]
    command += ["-gdwarf-4", "-O1", "-c", str(unit), "-o", str(out)]
    assert subprocess.run(command, check=False).returncode == 0
    table = LineTable(out)
    lines = {table.find(d) for d in range(4, 40, 4)}
    assert ("kernel", 5) in lines


def test_the_shim_and_the_runtime_are_ascii() -> None:
    for path in [*SHIM.glob("*.h"), *RUNTIME.iterdir()]:
        assert path.read_bytes().isascii(), path


def test_importing_metalhost_imports_no_mlx() -> None:
    code = "import sys, mlx_lm_openevolve.metalhost as m; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
