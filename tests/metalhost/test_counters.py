"""Counters."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from probe import launch, messages, on_host

from mlx_lm_openevolve.metalhost import Counters, Reads
from mlx_lm_openevolve.metalhost.flops import count_blocks


def counted(body: str, inputs: list[Any] | None = None, **options: Any) -> Counters:
    done = launch(body, inputs, count=True, **options)
    assert done.ok, messages(done)
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
def test_reads_are_counted_by_argument() -> None:
    """Two simdgroups read 32 values of `a` each, all of them the same one of `b` twice."""
    a, b = mx.arange(64).astype(mx.float32), mx.arange(16).astype(mx.float16)
    body = """
        uint i = thread_position_in_grid.x;
        float first = b[3];
        simdgroup_barrier(mem_flags::mem_none);
        y[i] = a[i] + first + float(b[3]);
        """
    c = counted(body, [a, b], n=64, group=64)
    assert c.reads == {"a": Reads(256, 256, 256), "b": Reads(256, 2, 8)}
    assert c.device_read_bytes == sum(r.device_bytes for r in c.reads.values())
    assert c.compulsory_read_bytes == sum(r.compulsory_bytes for r in c.reads.values())
    assert c.read_useful_bytes == sum(r.useful_bytes for r in c.reads.values())
    assert "reads" not in c.to_dict()


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
