"""What the body of a kernel sees: its signature, shapes, strides, attributes, template values."""

from __future__ import annotations

import inspect
import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_kernels import generated
from probe import launch, messages, on_host

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.metalhost import MetalKernel, metal_function, metal_kernel
from mlx_lm_openevolve.metalhost import kernel as kernel_module
from mlx_lm_openevolve.metalhost.signature import _ATTRIBUTES, ArgumentType, generate


def test_the_signature_declares_what_the_body_mentions() -> None:
    source = generate(
        "k",
        "y[0] = x_shape[0] + s_ndim + thread_index_in_simdgroup;",
        "// header",
        [("x", ArgumentType("float", 64, 2)), ("s", ArgumentType("int32_t", 3, 1)),
         ("z", ArgumentType("bfloat16_t", 1, 0))],
        [("y", "float")],
        [("T", mx.float16), ("N", 4)],
    )  # fmt: skip
    flat = " ".join(source.text.split())
    assert "const device float* x [[buffer(0)]], const constant int* x_shape [[buffer(1)]]" in flat
    assert (
        "const constant int32_t* s [[buffer(2)]], const constant int& s_ndim [[buffer(3)]]" in flat
    )
    assert "const constant bfloat16_t& z [[buffer(4)]], device float* y [[buffer(5)]]" in flat
    assert "uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]" in flat
    assert "template <typename T, int N>" in flat
    assert "x_strides" not in flat
    assert "threads_per_grid" not in flat


SOURCES: dict[str, dict[str, Any]] = {
    "plain": {"body": "y[thread_position_in_grid.x] = a[0];", "inputs": [mx.zeros((32,))]},
    "header without a line break": {"body": "y[0] = a[0];", "header": "// cut off"},
    "shapes": {"body": "// a_shape a_strides a_ndim b_ndim thread_position_in_grid",
               "inputs": [mx.zeros((2, 3, 4)), mx.zeros((7,), mx.bfloat16)]},
    "small, scalar": {"body": "grid_size;",
                      "inputs": [mx.zeros((7,)), mx.array(1, mx.int8), mx.zeros((8,), mx.bool_)]},
    "numbers": {"body": "y[0] = a + b + c;", "inputs": [3, 2.5, True]},
    "template": {"body": "grid_size;", "header": "typedef int I;\n",
                 "template": [("T", mx.bfloat16), ("N", 3), ("M", -3), ("F", True), ("G", False)]},
    "several outputs": {"body": "threads_per_grid;", "outputs": ["y", "z"]},
    "several outputs, no attribute": {"body": "y[0] = 1;", "outputs": ["y", "z"]},
    "several outputs behind shapes": {"body": "a_shape[0];", "outputs": ["y", "z"]},
    "every attribute": {"body": " ".join(_ATTRIBUTES)},
    "atomic": {"body": "thread_index_in_simdgroup", "atomic_outputs": True},
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES.values(), ids=SOURCES)
def test_the_source_is_mlxs_to_the_letter(
    case: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = case.get("inputs", [mx.zeros((32,))])
    outputs = case.get("outputs", ["y"])
    made = ("k", list("abc"[: len(inputs)]), outputs, case["body"], case.get("header", ""))
    atomic = case.get("atomic_outputs", False)
    call = {"inputs": inputs, "template": case.get("template", []),
            "output_dtypes": [mx.float16, mx.float32][: len(outputs)]}  # fmt: skip
    sizes = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)] * len(outputs)}
    expected = generated(capfd, mx.fast.metal_kernel(*made, atomic_outputs=atomic), **call, **sizes)
    assert metal_kernel(*made, atomic_outputs=atomic).generated(**call).text == expected


@on_host
def test_a_header_that_swallows_the_signature_is_refused() -> None:
    """MLX puts nothing between header and signature."""
    body = "y[thread_position_in_grid.x] = 1;"
    for header, template in [
        ("// ends here", None),
        ("// ends here", [("T", mx.float32)]),
        ("#define ONE 1", None),
        ("#if 1\n#endif", None),
        ("constant int one = 1; // \\\n", None),
    ]:
        done = launch(body, header=header, template=template)
        assert {f.kind for f in done.findings} == {"compile"}, header
        assert launch(body, header=header + "\n", template=template).ok or "\\" in header
    done = launch(body, header="constant int one = 1;")
    assert done.ok, messages(done)


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
    assert done.ok, messages(done)
    assert np.array_equal(np.array(done.outputs[0]), np.array(a).reshape(-1) + 200)


@on_host
def test_broadcast_and_reversed_views_keep_their_strides() -> None:
    wide = mx.broadcast_to(mx.array([3.0, 4.0, 5.0, 6.0])[:, None], (4, 8))
    body = (
        "uint i = thread_position_in_grid.x; y[i] = a[i / 8 * a_strides[0] + i % 8 * a_strides[1]];"
    )
    done = launch(body, [wide], contiguous=False)
    assert done.ok, messages(done)
    assert np.array_equal(np.array(done.outputs[0]), np.array(wide).reshape(-1))
    back = np.arange(32, dtype=np.float32)[::-1]
    body = "uint i = thread_position_in_grid.x; y[i] = a[int(i) * int(a_strides[0])];"
    done = launch(body, [back], contiguous=False)
    assert done.ok, messages(done)
    assert np.array_equal(np.array(done.outputs[0]), back)


@on_host
def test_contiguous_rows_are_made_when_asked_for() -> None:
    a = mx.arange(32).astype(mx.float32).reshape(4, 8).T
    done = launch("uint i = thread_position_in_grid.x; y[i] = a[i];", [a])
    assert done.ok, messages(done)
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
    assert done.ok, messages(done)
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
    assert done.ok, messages(done)
    assert set(np.array(done.outputs[0])) == {11.0}


@on_host
def test_several_outputs_and_an_initial_value() -> None:
    kernel = metal_kernel("two", ["a"], ["p", "q"], "uint i = thread_position_in_grid.x;\n"
                          "p[i] = a[i] + 1; if (i < 4) q[i] = bfloat16_t(i);")  # fmt: skip
    a = mx.arange(8).astype(mx.float32)
    done = kernel([a], grid=(8, 1, 1), threadgroup=(8, 1, 1), output_shapes=[(2, 4), (8,)],
                  output_dtypes=[mx.float32, mx.bfloat16], init_value=2.5)  # fmt: skip
    assert done.ok, messages(done)
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
    assert done.ok, messages(done)
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
        assert done.ok, messages(done)
        expected = 10 * (8 + (np.arange(32) + 5) % 32)
        assert np.array_equal(np.array(done.outputs[0]), expected)


@on_host
@pytest.mark.parametrize("name", ["plain", "float_one", "float_two", "scale"])
def test_host_names_in_every_spelling(name: str) -> None:
    source = """
    #include <metal_stdlib>
    using namespace metal;
    [[host_name("plain")]] kernel void scale(
        device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = 1; }
    template <typename T> kernel void fill(
        device T* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = 1; }
    template [[host_name("float_one")]] kernel void fill<float>(device float*, uint);
    template [[host_name("float_" "two")]] [[kernel]] decltype(fill<float>) fill<float>;
    """
    done = metal_function(source, name)([mx.zeros((32,))], grid=(32, 1, 1), threadgroup=(32, 1, 1))
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == [1.0] * 32


@on_host
def test_what_mlx_takes_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's numbers, atomic outputs, a stream, verbose, compile options, all by MLX's names."""
    kernel = metal_kernel(
        name="count", input_names=["x", "step", "on"], output_names=["y"],
        source="if (on) atomic_fetch_add_explicit(&y[thread_position_in_grid.x % 2], "
        "int(x[0] * step), memory_order_relaxed);",
        atomic_outputs=True, compile_options={"math_mode": "fast"},
    )  # fmt: skip
    assert kernel.math_mode == "fast"
    call = {"inputs": [mx.full((8,), 2.0), 1.5, True], "output_dtypes": [mx.int32]}
    done = kernel(
        **call, grid=(64, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(2,)], init_value=4,
        verbose=True, stream=mx.gpu,
    )  # fmt: skip
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == [100, 100]
    printed = capsys.readouterr().out
    text = kernel.generated(**call).text
    assert printed == f"Generated source code for `count`:\n```\n{text}\n```\n"
    with pytest.raises(UsageError, match="compile_options has no speed"):
        metal_kernel("k", [], ["y"], "", compile_options={"speed": "high"})
    with pytest.raises(UsageError, match="complex64"):
        metal_kernel("k", ["x"], ["y"], "").generated([1j], output_dtypes=[mx.float32])


MADE: dict[str, Any] = {
    "name": "k", "input_names": ["x"], "output_names": ["y"], "source": "y[0] = x[0];",
}  # fmt: skip
CALLED: dict[str, Any] = {
    "inputs": [mx.zeros((4,))], "output_shapes": [(4,)], "output_dtypes": [mx.float32],
    "grid": (4, 1, 1), "threadgroup": (4, 1, 1),
}  # fmt: skip
CALL = {*CALLED, "template", "init_value", "verbose", "stream"}
# What is tried in place of each argument, of the making and of the call.
TRIED: dict[str, list[Any]] = {
    "name": ["k2", 1, None],
    "input_names": [("x",), "x", [1], None, []],
    "output_names": [("y",), "y", [], [None]],
    "source": ["", 1, None],
    "header": ["//", 1, None],
    "ensure_row_contiguous": [False, 1, None],
    "atomic_outputs": [True, 1, None],
    "compile_options": [None, {}, {"math_mode": "relaxed"}, {"math_mode": "x"}, {"x": "y"}, "fast"],
    "inputs": [[1], [1.5], [True], [1 << 40], [np.zeros(4, np.float32)], [np.float32(1)],
               [np.int64(3)], [np.array(2)], (1,), [[1, 2]], ["x"], [None], [], [1, 2], 1],
    "template": [None, [], [("T", mx.float32)], [("N", 3)], [("N", -3)], [("F", True)], [["N", 3]],
                 (("N", 3),), [("N", 1 << 40)], [("T", "float32")], [("T", np.float32)], "x",
                 [("N", 1.5)], [("N", np.int64(3))], [("N",)], [(1, 2)], {"N": 3}],
    "output_shapes": [[[4]], ((4,),), [()], [(np.int64(4),)], [4], [(4.0,)], [], [(4,)] * 2, 4],
    "output_dtypes": [[mx.bool_], [mx.uint64], (mx.bfloat16,), [None], [], mx.float32],
    "grid": [[4, 1, 1], (np.int64(4), 1, 1), (True, 1, 1), (4, 1), 4, (4.0, 1, 1), None],
    "threadgroup": [[4, 1, 1], (4, 1), 4, (4.0, 1, 1), None],
    "init_value": [None, 0, -1.5, True, float("nan"), np.float32(1), 1 << 70, "1"],
    "verbose": [False, 1, None, "x"],
    "stream": [None, mx.gpu, mx.Device(mx.gpu, 0), "gpu"],
}  # fmt: skip


def test_the_parameters_are_those_of_mlx() -> None:
    """Of mx.fast.metal_kernel in its order, and of what it makes by name."""
    documented = str(mx.fast.metal_kernel.__doc__).partition(")")[0].partition("(")[2]
    theirs = re.findall(r"(\w+): [^:]*?(?:, (?=\w+:)|$)", documented)
    ours = inspect.signature(metal_kernel).parameters.values()
    assert [p.name for p in ours if p.kind is not p.KEYWORD_ONLY] == theirs
    assert set(TRIED) == {*theirs, *CALL}
    assert set(inspect.signature(MetalKernel.__call__).parameters) > CALL


@pytest.mark.parametrize(
    ("argument", "value"), [(name, value) for name, tried in TRIED.items() for value in tried]
)
def test_what_mlx_takes_is_taken_and_what_it_refuses_is_refused(
    argument: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against mx.fast.metal_kernel itself, which takes a call apart before it looks for a
    GPU; on a Mac too, where nothing is evaluated."""
    monkeypatch.setattr(kernel_module, "build", lambda request: None)
    monkeypatch.setattr(kernel_module, "run", lambda *arguments: None)

    def taken(maker: Any, refusals: Any) -> bool:
        made, called = dict(MADE), dict(CALLED)
        (called if argument in CALL else made)[argument] = value
        try:
            maker(**made)(**called)
        except refusals:
            return False
        except RuntimeError as error:
            return "No Metal back-end" in str(error)
        return True

    ours = taken(metal_kernel, UsageError)
    assert ours == taken(mx.fast.metal_kernel, (TypeError, ValueError))


def test_a_stream_of_the_cpu_is_refused() -> None:
    """As by MLX where it has a GPU: "Only supports the GPU"."""
    for stream in (mx.cpu, mx.Device(mx.cpu, 0), mx.default_stream(mx.cpu)):
        with pytest.raises(UsageError, match="runs on the GPU"):
            metal_kernel(**MADE)(**CALLED, stream=stream)


@on_host
@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.uint8, mx.float16, mx.bool_])
def test_an_initial_value_is_cast_to_the_outputs_dtype(dtype: mx.Dtype) -> None:
    kernel = metal_kernel("k", [], ["y"], "threads_per_grid;")
    done = kernel(
        [], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(3,)], output_dtypes=[dtype],
        init_value=2.5,
    )  # fmt: skip
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == mx.full((3,), 2.5).astype(dtype).tolist()


@on_host
def test_an_output_that_is_not_atomic_takes_no_atomics() -> None:
    body = "atomic_fetch_add_explicit(&y[0], 1, memory_order_relaxed);"
    assert {f.kind for f in launch(body, dtype=mx.int32).findings} == {"compile"}
