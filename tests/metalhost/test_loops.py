"""One place of a program, reached in different iterations of a loop: lanes that are not together
are told apart, and lanes that are together are not."""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np
import pytest
from probe import launch, messages, on_host, only

from mlx_lm_openevolve.metalhost.loops import count_iterations

LANE = "const uint l = thread_index_in_simdgroup; int v = 0;\n"
HALVES = [120] * 16 + [376] * 16
BRANCH = "if (i == int(l / 16)) v = simd_sum(int(l));"
HELPER = "int whole(int x) { return simd_sum(x); }\n"
APART = {
    "for": ("", f"for (int i = 0; i < 2; ++i) {BRANCH}", HALVES),
    "unknown count": ("", f"for (int i = 0; i < a[0]; ++i) {{ {BRANCH} }}", HALVES),
    "while": ("", f"int i = -1; while (++i < a[0]) {BRANCH}", HALVES),
    "do": ("", f"int i = 0; do {BRANCH} while (++i < a[0]);", HALVES),
    "one lane of two": (
        "", "for (int i = 0; i < 2; ++i) if (i == int(l & 1)) v = simd_sum(int(l));",
        [240, 256] * 16,
    ),
    "continue": (
        "",
        "for (int i = 0; i < 2; ++i) { if (i != int(l / 16)) continue; v = simd_sum(int(l)); }",
        HALVES,
    ),
    "helper": (
        HELPER,
        "for (int i = 0; i < a[0]; ++i) if (i == int(l / 16)) v = whole(int(l));",
        HALVES,
    ),
    "loop in a helper": (
        "int whole(int x, int n) { for (int i = 0; i < n; ++i) if (i == x / 16)"
        " return simd_sum(x); return 0; }\n",
        "v = whole(int(l), a[0]);",
        HALVES,
    ),
    "outer loop": (
        "",
        "for (int i = 0; i < a[0]; ++i) for (int j = 0; j < 1; ++j)"
        " if (i == int(l / 16)) v = simd_sum(int(l));",
        HALVES,
    ),
    "maximum": (
        "", "for (int i = 0; i < a[0]; ++i) if (i == int(l / 16)) v = simd_max(int(l));",
        [15] * 16 + [31] * 16,
    ),
    "ballot": (
        "",
        "for (int i = 0; i < a[0]; ++i) if (i == int(l / 16))"
        " v = int(ulong(simd_vote::vote_t(simd_ballot(true))));",
        [0xFFFF] * 16 + [-0x10000] * 16,
    ),
    "shuffle": (
        "",
        "for (int i = 0; i < a[0]; ++i) if (i == int(l / 16)) v = simd_shuffle_xor(int(l), 16);",
        None,
    ),
    "simdgroup_barrier": (
        "",
        "for (int i = 0; i < a[0]; ++i) if (i == int(l / 16))"
        " simdgroup_barrier(mem_flags::mem_none);",
        None,
    ),
}  # fmt: skip
TOGETHER = {
    "uniform": ("", "for (int i = 0; i < a[0]; ++i) v += simd_sum(int(l));", [992] * 32),
    "own counts before": (
        "",
        "for (int i = 0; i < int(l); ++i) v += max(a[0], i - 40) / a[0];\nv = simd_sum(v);",
        [496] * 32,
    ),
    "own breaks before": (
        "",
        "for (int j = 0; j < a[0]; ++j) { for (int i = 0;; ++i) if (min(i, 50) == int(l)) break;"
        " v += simd_sum(int(l)); }",
        [992] * 32,
    ),
    "own start": ("", "for (int i = int(l); i < int(l) + a[0]; ++i) v = simd_sum(1);", [32] * 32),
    "helper that returns": (
        "int first(int n) { for (int i = 0;; ++i) { if (min(i, 99) == n) return i; } }\n",
        "v = simd_sum(first(int(l)));",
        [496] * 32,
    ),
    "unrolled": (
        "", "int k = 0;\n#pragma unroll\nfor (int i = 0; i < 4; ++i) k += simd_sum(i);\nv = k;",
        [192] * 32,
    ),
    "constexpr": (
        "constexpr int twice(int n) { int k = 0; for (int i = 0; i < n; ++i) k += int(2);"
        " return k; }",
        "int t[twice(3)]; for (int i = 0; i < 6; ++i) t[i] = simd_sum(1); v = t[5];",
        [32] * 32,
    ),
}  # fmt: skip


@on_host
@pytest.mark.parametrize("name", APART)
def test_lanes_in_different_iterations_are_not_together(name: str) -> None:
    header, body, values = APART[name]
    done = launch(
        f"{LANE}{body}\ny[l] = v;", [np.array([2], np.int32)], dtype=mx.int32, header=header
    )
    only(done, "divergent-collective")
    if values is not None:
        assert np.array(done.outputs[0]).tolist() == values


@on_host
@pytest.mark.parametrize("name", TOGETHER)
def test_lanes_in_one_iteration_are_together(name: str) -> None:
    header, body, values = TOGETHER[name]
    done = launch(
        f"{LANE}{body}\ny[l] = v;", [np.array([2], np.int32)], dtype=mx.int32, header=header
    )
    assert not done.findings, messages(done)
    assert np.array(done.outputs[0]).tolist() == values


@on_host
def test_simdgroups_in_different_iterations_share_no_barrier() -> None:
    body = """\
    threadgroup int t[64];
    const int p = thread_position_in_threadgroup.x;
    t[p] = p;
    for (int i = 0; i < 2; ++i)
      if (i == p / 32) threadgroup_barrier(mem_flags::mem_threadgroup);
    y[p] = t[63 - p];
    """
    done = launch(body, n=64, group=64, dtype=mx.int32)
    assert "divergent-barrier" in {f.kind for f in done.findings}, messages(done)


@pytest.mark.parametrize(
    "piece",
    ["for(;;)", "for(;;)f(x);", "do ", "do x;while(a);", "while(a)", "if(a)f(x);else ", "#\n", "{"],
)
def test_loops_are_found_in_time_that_grows_with_the_text(piece: str) -> None:
    start = time.process_time()
    count_iterations(f"void f() {{ {piece * (250_000 // len(piece))} f(x); }}")
    assert time.process_time() - start < 3.0
