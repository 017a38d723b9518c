"""Bounds, alignment, permission and initialisation of memory."""

from __future__ import annotations

import mlx.core as mx
import pytest
from probe import launch, messages, on_host, only


@on_host
@pytest.mark.parametrize(
    ("index", "words"),
    [("i + 1", "byte 128 of 'a', which has 128 bytes"), ("int(i) - 1", "before 'a' (128 bytes)"),
     ("i * 1000", "byte 4000 of 'a'")],
)  # fmt: skip
def test_reads_outside_a_buffer(index: str, words: str) -> None:
    done = launch(f"uint i = thread_position_in_grid.x;\n\ny[i] = a[{index}];", [mx.zeros((32,))])
    finding = only(done, "out-of-bounds")
    assert (finding.line, finding.file) == (3, "probe")
    assert words in finding.message
    assert finding.text == f"y[i] = a[{index}];"
    assert finding.fatal
    assert done.outputs == []


@on_host
def test_the_gap_between_a_views_rows_is_not_readable() -> None:
    a = mx.arange(64).astype(mx.float32).reshape(4, 16)[:, :8]
    body = "uint i = thread_position_in_grid.x; y[i] = a[i];"
    done = launch(body, [a], n=8, group=8, contiguous=False)
    assert done.ok, messages(done)
    finding = only(launch(body, [a], n=9, group=9, contiguous=False), "out-of-bounds")
    assert "between the elements" in finding.message


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
    assert [f.line for f in outside] == [6], messages(done)
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
    assert any(f.kind in ("read-only", "strict", "compile") for f in done.findings), messages(done)


@on_host
@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "read",
    ["vec<uint, 4> v = ((const device uint4*)a)[i]; y[i] = v.x;",
     "bfloat4 v = ((const device bfloat4*)a)[i]; y[i] = v.y;",
     "y[i] = ((const device W*)a)[i].v.y;"],
)  # fmt: skip
def test_a_slice_lies_as_far_off_a_boundary_as_on_a_gpu(offset: int, read: str) -> None:
    """The compiler reads what is used of a vector alone: the rule is the pointer's."""
    whole = mx.arange(256).astype(mx.bfloat16)
    body = f"struct W {{ float4 v; }};\nuint i = thread_position_in_grid.x;\n{read}"
    done = launch(body, [whole[offset : offset + 128]], n=4, group=4, contiguous=False)
    size = 8 if "bfloat4" in read else 16
    if 2 * offset % size:
        assert only(done, "misaligned").line == 3
    else:
        assert done.ok, messages(done)


@on_host
def test_the_end_of_a_misaligned_slice_is_its_end() -> None:
    part = mx.arange(64).astype(mx.float32)[3:35]
    body = "uint i = thread_position_in_grid.x;\ny[i] = a[int(i) + {}];"
    done = launch(body.format(0), [part], contiguous=False)
    assert done.outputs[0].tolist() == [float(n) for n in range(3, 35)], messages(done)
    for off, words in ((1, "byte 128 of 'a', which has 128 bytes"), (-1, "before 'a'")):
        done = launch(body.format(off), [part], contiguous=False)
        assert words in only(done, "out-of-bounds").message


@on_host
def test_what_nobody_wrote() -> None:
    done = launch("uint i = thread_position_in_grid.x;\nif (i != 7) y[i] = 1;")
    finding = only(done, "unwritten")
    assert "1 of the 32 elements of 'y'" in finding.message
    assert "element 7" in finding.message
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
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == [1.0, 2.0, 3.0, 4.0] * 8
    done = launch("y[thread_position_in_grid.x] += 1;")
    assert "uninitialised" in {f.kind for f in done.findings}, messages(done)
