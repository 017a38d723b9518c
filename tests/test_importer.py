"""Reading an OpenEvolve program by its syntax alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from programs import PROGRAM

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.gate.host_check import check_on_host
from mlx_lm_openevolve.gate.static_rules import static_rules
from mlx_lm_openevolve.importer import import_program, read_program
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.workload import Workload

# Strided, masked by kind, the KV length read in the kernel: this one is right.
RIGHT = '''
import math
import mlx.core as mx

SOURCE = """
const int d = thread_position_in_grid.x;
const int row = thread_position_in_grid.y;
const int head = thread_position_in_grid.z % HEADS;
const int batch = thread_position_in_grid.z / HEADS;
const int n = keys_shape[2];
const device T* a = q + batch * q_strides[0] + head * q_strides[1] + row * q_strides[2];
const device T* b = keys + batch * keys_strides[0] + head / GROUP * keys_strides[1];
const device T* c = values + batch * values_strides[0] + head / GROUP * values_strides[1];
float top = -1e38f, sum = 0.0f, total = 0.0f;
for (int j = 0; j < n; ++j) {
  float score = 0.0f;
  for (int i = 0; i < WIDTH; ++i) {
    score += float(a[i * q_strides[3]]) * float(b[j * keys_strides[2] + i * keys_strides[3]]);
  }
  score *= scale;
  float next = max(top, score), fade = exp(top - next), weight = exp(score - next);
  sum = sum * fade + weight;
  total = total * fade + weight * float(c[j * values_strides[2] + d * values_strides[3]]);
  top = next;
}
out[((batch * HEADS + head) * q_shape[2] + row) * OUT + d] = T(total / sum);
"""


class Attention:
    def __init__(self):
        self.kernel = mx.fast.metal_kernel(
            name="right",
            input_names=["q", "keys", "values", "scale"],
            output_names=["out"],
            source=SOURCE,
            ensure_row_contiguous=False,
        )

    def __call__(self, q, k, v, scale, mask=None):
        if mask is not None:
            raise ValueError("no masks")
        b, h, rows, width = q.shape
        (out,) = self.kernel(
            inputs=[q, k, v, mx.array(scale)],
            template=[("T", q.dtype), ("WIDTH", width), ("OUT", v.shape[-1]), ("HEADS", h),
                      ("GROUP", h // k.shape[1])],
            grid=(v.shape[3], rows, b * h),
            threadgroup=(32, 1, math.ceil(h / 64)),
            output_shapes=[(b, h, rows, v.shape[-1])],
            output_dtypes=[q.dtype],
        )
        return out
'''


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


def test_a_program_becomes_a_kernel_folder_without_being_run(tmp_path):
    kernel = import_program(write(tmp_path, PROGRAM), tmp_path / "folder")
    assert Kernel.load(tmp_path / "folder") == kernel
    assert kernel.name == "evolved_gqa"
    assert kernel.origin == "imported"
    workload = Workload(2, 8, 4, 16, 64, 64, 64, "bfloat16", "bool")
    assert kernel.applies_to(workload)
    for mask in ("none", "causal", "additive"):  # made by Python there, not handed over
        assert not kernel.applies_to(replace(workload, mask=mask))
    assert not kernel.applies_to(replace(workload, v_head_dim=32))
    (launch,) = kernel.launches(workload, {})
    assert launch.grid == (16, 8, 2)
    assert launch.threadgroup == (16, 1, 1)
    assert dict(launch.template) == {
        "T": "bfloat16",
        "HEADS": 8,
        "KV_HEADS": 4,
        "LENGTH": 16,
        "WIDTH": 64,
        "PER_KV": 2,
        "USE_MASK_VALUE": 1,
    }
    assert launch.spec.inputs == ("queries", "keys", "values", "mask", "scale")
    assert launch.outputs == (("out", (2, 8, 16, 64), "bfloat16"),)
    source = launch.spec.source
    assert "USE_MASK_VALUE > 0" in source
    assert "float(keys[kv0" in source
    assert "out[q0 + d]" in source
    assert "T factor = T(scale[0]);" in source
    assert "k[kv0" not in source.replace("keys[kv0", "")


def test_the_gate_says_what_is_wrong_with_it(tmp_path):
    kernel = read_program(write(tmp_path, PROGRAM))
    workload = Workload(1, 4, 2, 8, 64, 64, 64, "float32", "bool").bucket()
    assert "keys_shape[2]" in static_rules(kernel, {}, workload)


def test_a_right_program_passes_the_gate(tmp_path):
    kernel = read_program(write(tmp_path, RIGHT))
    workload = Workload(2, 4, 2, 8, 64, 64, 32, "float32")
    assert kernel.applies_to(workload)
    assert not kernel.applies_to(replace(workload, mask="causal"))
    (launch,) = kernel.launches(workload, {})
    assert launch.grid == (32, 8, 8)
    assert launch.spec.inputs == ("queries", "keys", "values", "scale")
    assert "queries_strides[2]" in launch.spec.source
    assert "score *= scale[0]" in launch.spec.source
    if not backends.get("host").unavailable():
        check = check_on_host(kernel, {}, workload)
        assert check["ok"], check["reason"]


def change(old: str, new: str, program: str = RIGHT) -> str:
    assert old in program
    return program.replace(old, new)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x = 1", "no mx.fast.metal_kernel"),
        ("def f(:", "not Python"),
        (change("source=SOURCE", 'source=f"{SOURCE}"'), "source: an f-string on line"),
        (change("source=SOURCE", "source=SOURCE.format(1)"), "computed by SOURCE.format(...)"),
        (change("source=SOURCE", "source=open('x').read()"), "computed by open('x').read(...)"),
        (change("source=SOURCE,", "source=SOURCE, header='int f();',"), "header= is not carried"),
        (change('["q", "keys"', '[*names, "keys"'), "input_names: not a list of constants"),
        (change('("WIDTH", width)', '("WIDTH", k.shape[2])'), "exact KV length (kv_len)"),
        (change("grid=(v.shape[3]", "grid=(2 * k.shape[2]"), "grid: uses the exact KV length"),
        (change("threadgroup=(32, 1", "threadgroup=(pick(), 1"), "computed by pick(...)"),
        (change("inputs=[q, k, v,", "inputs=[q * 2, k, v,"), "`q * 2` on line"),
        (change("inputs=[q, k, v,", "inputs=[q, k.transpose(0, 1, 3, 2), v,"), "k.transpose(...)"),
        (change("return out", "return out.transpose(0, 2, 1, 3)"), "unchanged"),
        (change("output_dtypes=[q.dtype]", "output_dtypes=[mx.int32]"), "output_dtypes"),
        (change("output_dtypes=", "init_value=0, output_dtypes="), "init_value"),
        (change("inputs=[q, k, v, mx", "**more, inputs=[q, k, v, mx"), "without * or **"),
        (
            change("        (out,) =", "        for _ in range(2):\n          (out,) ="),
            "inside `for`",
        ),
        (
            change("        (out,) =", "        if rows > 4:\n          (out,) ="),
            "under an `if` on rows > 4",
        ),
        (
            change("        (out,) =", "        for h in (1, 2): pass\n        (out,) ="),
            "`h` is set inside `for` on line",
        ),
        (change("[q, k, v, mx", "[q, k, k, mx"), "handed over twice"),
        (change("self.kernel(\n            inputs=", "other(\n            inputs="), "nothing is"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, text, word):
    path = write(tmp_path, text)
    with pytest.raises(KernelError) as caught:
        import_program(path, tmp_path / "folder")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert word in message
    assert "\n" not in message
    assert not (tmp_path / "folder").exists()


def test_lines_are_named(tmp_path):
    text = change("threadgroup=(32, 1", "threadgroup=(pick(), 1")
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "self.kernel(" in row)
    with pytest.raises(KernelError, match=rf"program\.py:{line}: "):
        read_program(write(tmp_path, text))


def test_two_launches_become_two_stages(tmp_path):
    text = """
import mlx.core as mx
first = mx.fast.metal_kernel(name="first", input_names=["x", "keys"], output_names=["y"],
                             source="y[0] = x[0];")
second = mx.fast.metal_kernel(name="second", input_names=["y", "values"], output_names=["y2"],
                              source="y2[0] = y[0] + values[0]; int out = 0;")
def attention(q, k, v, scale, mask=None):
    b, h, n, d = q.shape
    kw = 8 if n == 1 else 16
    y = first(inputs=[q, k], output_shapes=[(b, h, n, kw)], output_dtypes=[mx.float32],
              grid=(kw, h, b), threadgroup=(kw, 1, 1), template=[("D", -d)])[0]
    return second(inputs=[y, v], output_shapes=[(b, h, n, d)], output_dtypes=[q.dtype],
                  grid=(d, h, b), threadgroup=(max(d, 8), 1, 1))[0]
"""
    kernel = read_program(write(tmp_path, text))
    workload = Workload(1, 4, 2, 1, 64, 64, 64, "float16")
    a, b = kernel.launches(workload, {})
    assert a.outputs == (("y", (1, 4, 1, 8), "float32"),)
    assert b.spec.inputs == ("y", "values")
    assert b.outputs[0][0] == "out"
    assert "out_local = 0" in b.spec.source
    assert dict(a.template) == {"D": -64}
    assert all(kernel.applies_to(replace(workload, q_len=4, mask=m)) for m in ("none", "causal"))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("")
    with pytest.raises(KernelError, match="not an empty folder"):
        import_program(write(tmp_path, RIGHT), folder)
    with pytest.raises(KernelError, match="No such file"):
        import_program(tmp_path / "absent.py", tmp_path / "other")


def put(*lines: str) -> str:
    """RIGHT with lines before its launch."""
    return change(
        "        (out,) =", "".join(f"        {line}\n" for line in lines) + "        (out,) ="
    )


def grown(line: str, start: str, used: str = "grid=(rows", of: str = "grid=(v.shape[3]") -> str:
    """RIGHT in which a value grows forty times and is used."""
    return put(start, *[line] * 40).replace(of, used)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (grown("rows = rows + rows", "pass"), "an expression of more than 500 characters"),
        (grown("rows += rows", "pass"), "an expression of more than 500 characters on line"),
        (grown("rows = max(rows, rows)", "pass"), "more than 500 characters"),
        (grown("rows = rows if rows > 1 else rows", "pass"), "more than 500 characters"),
        (grown("rows = -rows - rows", "pass"), "more than 500 characters"),
        (grown("s = s + s", "s = 'x'", "grid=(s"), "grid: a text of more than"),
        (grown("t = (t, t)", "t = (1, 2)", "grid=(t"), "grid: a list on line"),
        (
            grown("t = (t, t)", "t = (1, 2)", "grid=(1 if rows > 4 else t"),
            "grid: `1 if rows > 4 else t` on line",
        ),
        (
            change("grid=(v.shape[3]", f"grid=({'math.ceil(' * 40}1{' / 2)' * 40}"),
            "more than 500 characters",
        ),
        (change("inputs=[q", f"inputs=[q{'.astype(k.dtype)' * 60}.astype(mx.int8)"), "astype"),
        (change("mx.array(scale)", f"{'mx.array(' * 60}scale{')' * 60}"), "an array made from"),
        (change("inputs=[q", f"inputs=[{'f(' * 60}q{')' * 60}"), "input q: computed by f(...)"),
        (
            change("grid=(v.shape[3]", f"grid=({'1 + (' * 60}pick(){')' * 60}"),
            "computed by pick(...)",
        ),
    ],
    ids=[
        *("sum", "in place", "function", "choice", "sign", "text", "list", "list by choice"),
        *("ceil", "astype", "array", "calls", "right side"),
    ],
)
def test_what_grows_or_nests_ends_at_once(tmp_path, text, word):
    path = write(tmp_path, text)
    start = time.monotonic()
    with pytest.raises(KernelError) as caught:
        read_program(path)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert word in message
    assert "\n" not in message
    assert len(message) < 400


def test_what_grows_and_is_not_used_does_no_harm(tmp_path):
    grows = read_program(write(tmp_path, put("n = rows", *["n = n + n"] * 40)))
    assert grows == read_program(write(tmp_path, RIGHT))


@pytest.mark.parametrize("body", ["if UNKNOWN:\n            {}", "a{} = {}"])
def test_a_long_program_is_followed_in_little_time(tmp_path, body):
    """Names and branches by the thousand: nothing is copied for each branch."""
    lines = [f"n{i} = {i}" for i in range(8000)]
    lines += [body.format(*[f"n{i} = 0" if "if" in body else i] * 2) for i in range(8000)]
    start = time.monotonic()
    assert read_program(write(tmp_path, put(*lines))) == read_program(write(tmp_path, RIGHT))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (put("scale = scale * 2"), "`scale * 2` on line"),
        (change("mx.array(scale)", "scale"), "the scale is a number; hand it over as an array"),
        (
            put("if (h := 3) > 2:", "    pass").replace("b * h)", "b * (h := k))"),
            "output_shapes: a construct",
        ),
        (put("with open('x') as h:", "    pass"), "`h` is set by `with` on line"),
        (put("match h:", "    case h: pass"), "`h` is set inside `match` on line"),
        (put("for self.kernel in q:", "    pass"), "nothing is launched"),
        (change('["q", "keys"', '["(a+)+$", "keys"'), "'(a+)+$' is no name"),
        (change("template=[", "template=pick(["), "template"),
        (change("output_shapes=[(b, h, rows, v.shape[-1])]", "output_shapes=[()]"), "outputs"),
        (put("x = (1, 2)[True]", "h = math.ceil()", f"h = 0x{'f' * 9000}"), "is not followed"),
    ],
)
def test_no_stale_or_foreign_value_is_taken(tmp_path, text, word):
    text = text.replace(
        "k.shape[1])],", "k.shape[1])])," if "template=pick(" in text else "k.shape[1])],"
    )
    with pytest.raises(KernelError) as caught:
        read_program(write(tmp_path, text))
    assert word in str(caught.value)
    assert "not Python" not in str(caught.value)


def test_the_scale_may_have_a_default(tmp_path):
    text = put("if scale is None:", "    scale = q.shape[-1] ** -0.5")
    assert read_program(write(tmp_path, text)) == read_program(write(tmp_path, RIGHT))
