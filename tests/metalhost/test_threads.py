"""Barriers, races, schedules, divergence."""

from __future__ import annotations

import mlx.core as mx
import pytest
from probe import launch, messages, on_host, only

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
    assert kinds == ({kind} if kind else set()), messages(done)
    if kind:
        [finding] = [f for f in done.findings if f.kind == "race"]
        assert finding.other is not None
        assert {finding.line, finding.other.line} == {3, 5}
        assert finding.threadgroup == (0, 0, 0)
        assert "the other side is here" in str(finding)


@on_host
def test_a_simdgroup_barrier_orders_one_simdgroup() -> None:
    body = EXCHANGE.replace("BARRIER", "simdgroup_barrier(mem_flags::mem_threadgroup);")
    done = launch(body.replace("63 - i", "i / 32 * 32 + 31 - i % 32"), n=64, group=64)
    assert done.ok, messages(done)


@on_host
def test_threadgroups_race_through_device_memory() -> None:
    done = launch("y[0] = threadgroup_position_in_grid.x;\ny[1 + thread_position_in_grid.x] = 0;",
                  n=31, group=1, out=(32,))  # fmt: skip
    finding = only(done, "race")
    assert finding.line == 1
    assert "of threadgroup" in finding.message
    atomic = """
        device atomic_uint* n = (device atomic_uint*)y;
        atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);
        """
    done = launch(atomic, n=64, group=16, out=(1,), dtype=mx.uint32, init_value=0)
    assert done.ok, messages(done)
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
    assert races, messages(done)
    assert all({f.line, f.other.line} <= {2, 4} for f in races if f.other), messages(done)


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
        assert done.ok, messages(done)
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
    finding = only(done, "divergent-collective")
    assert finding.line == 4
    assert not finding.fatal
    assert done.outputs[0].tolist() == [8.0] * 8 + [0.0] * 24
    body = "if (simdgroup_index_in_threadgroup == 0)\n  threadgroup_barrier(mem_flags::mem_none);\n"
    done = launch(body + "y[thread_position_in_grid.x] = 1;", n=64, group=64)
    finding = only(done, "divergent-barrier")
    assert finding.line == 2
    assert "has returned" in finding.message


HELPERS = {
    "two calls on one line": ("", "simd_sum(v)"),
    "an inline helper": ("inline float total(float v) { return simd_sum(v); }\n", "total(v)"),
    "a helper that is not inlined": (
        "float total(float v, int n) { return n ? total(v, n - 1) : simd_sum(v); }\n",
        "total(v, 3)",
    ),
    "a method": (
        "struct Sum { float v; float of() const thread { return simd_sum(v); } };\n",
        "Sum{v}.of()",
    ),
    "a lambda": ("", "[](float x) { return simd_sum(x); }(v)"),
    "a macro": ("#define TOTAL simd_sum(v)\n", "TOTAL"),
}


@on_host
@pytest.mark.parametrize("sanitize", [True, False])
@pytest.mark.parametrize(("header", "call"), HELPERS.values(), ids=HELPERS)
def test_the_lanes_of_each_branch_are_alone(header: str, call: str, sanitize: bool) -> None:
    body = "uint i = thread_position_in_grid.x;\nfloat v = i;\n"
    body += f"if (i < 16) v = {call}; else v = {call};\n"
    done = launch(body + "y[i] = v;", header=header, sanitize=sanitize)
    only(done, "divergent-collective")
    assert done.outputs[0].tolist() == [120.0] * 16 + [376.0] * 16
    done = launch(body.replace("i < 16", "i < 32") + "y[i] = v;", header=header, sanitize=sanitize)
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == [496.0] * 32


@on_host
@pytest.mark.parametrize("unroll", ["", "#pragma unroll", "#pragma nounroll"])
def test_collectives_in_uniform_loops_are_no_divergence(unroll: str) -> None:
    body = f"""
        uint i = thread_position_in_grid.x;
        float v = 0;
        {unroll}
        for (int k = 0; k < 7; ++k) {{
          float part = i % 3 == 0 ? 1 : 2;
          if (i & 1) part *= a[k];
          v += simd_sum(part);
          if (simd_any(v > 1e6f)) break;
          threadgroup_barrier(mem_flags::mem_threadgroup);
        }}
        y[i] = v;
        """
    done = launch(body, [mx.ones((8,))], n=64, group=64)
    assert done.ok, messages(done)
    expected = 7 * sum(1 if i % 3 == 0 else 2 for i in range(32))
    assert done.outputs[0].tolist()[:32] == [expected] * 32


@on_host
@pytest.mark.parametrize("modulo", [0, 1, 3, 33, 64])
@pytest.mark.parametrize("name", ["simd_shuffle_and_fill_up", "simd_shuffle_and_fill_down"])
def test_a_modulo_that_metal_does_not_define(name: str, modulo: int) -> None:
    body = "uint i = thread_position_in_grid.x;\n"
    body += f"y[i] = {name}(float(i), -1.0f, ushort(1), ushort({modulo}));"
    finding = only(launch(body), "bad-modulo")
    assert finding.line == 2
    assert f"modulo {modulo}," in finding.message
