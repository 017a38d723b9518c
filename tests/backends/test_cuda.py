"""What of the CUDA backend needs no GPU: the rewrite, the refusals, what MLX is handed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.backends import cuda
from mlx_lm_openevolve.backends.cuda import UnsupportedOnCuda, minify, translate
from mlx_lm_openevolve.errors import BackendError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.workload import Workload

TUNED = Path(__file__).resolve().parents[2] / "tuned" / "v2" / "kernels"
DECODE = Workload(2, 8, 2, 1, 1000, 64, 64, "bfloat16")


def tuned(name: str) -> Kernel:
    kernels = [Kernel.load(path.parent) for path in TUNED.glob("*/kernel.json")]
    return next(kernel for kernel in kernels if kernel.name == name)


# --- minify


def test_minify_drops_comments_and_blanks_and_keeps_every_line_where_it_is() -> None:
    source = "// top\nint  a = 1 ;  /* two\nlines */ int b;\n\n  a  +=  + b;\n"
    assert minify(source) == "\nint a=1;\nint b;\n\na+= +b;"
    # A backslash makes the next line one of the comment: it never becomes a directive.
    assert minify('// a \\\n#import "x.h"\nint a = 1;') == "\n\nint a=1;"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a - -b", "a- -b"),
        ("a + ++b", "a+ ++b"),
        ("x / *p", "x/ *p"),
        ("a > > b", "a> >b"),
        ("return x", "return x"),
        ('"a  // b"', '"a  // b"'),
        ("#define F(x) (x + 1)\nF (2)", "#define F(x) (x + 1)\nF(2)"),
        ("#define F (1)", "#define F (1)"),
        ("1.0e-5f - 2", "1.0e-5f-2"),
        ("case 1 : x", "case 1:x"),
        ('f ("a" NAME "b" , "c" )', 'f("a" NAME "b","c")'),
    ],
)
def test_minify_keeps_the_tokens(source: str, expected: str) -> None:
    assert minify(source) == expected
    assert minify(expected) == expected


# --- translate


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("const device float* p;", "const  float* p;"),
        ("threadgroup float x[4];", "__shared__ float x[4];"),
        ("threadgroup vec<T, 4> x[A][B];", "__shared__ vec<T, 4> x[A][B];"),
        ("threadgroup float* p = x;", " float* p = x;"),
        ("f((threadgroup T*)x, 1)", "f(( T*)x, 1)"),
        ("const constant int& n", "const  int& n"),
        ("constant constexpr float A = 1.0f;", " constexpr float A = 1.0f;"),
        ("void f(constant int* n)", "void f(const int* n)"),
        ("thread State& s", " State& s"),
        ("v.xy + v.wzyx", "v.swizzle<0,1>() + v.swizzle<3,2,1,0>()"),
        ("v.x + v.rgb", "v.x + v.swizzle<0,1,2>()"),
        ("v.xy()", "v.xy()"),
        ("x * 0.5 + 1e-3 - 2.", "x * 0.5f + 1e-3f - 2.f"),
        ("0.5f + 1 + 3u + 0x1F + 1.h", "0.5f + 1 + 3u + 0x1F + half(1.f)"),
        ("2h + 1.5bf", "half(2.f) + bfloat(1.5f)"),
        ("using namespace metal;", ""),
        ("#include <metal_simdgroup>", ""),
        ("#pragma clang loop unroll(full)", "#pragma unroll"),
        ("keys_strides[2] + keys_shape[2]", "keys_strides.data()[2] + keys_shape.data()[2]"),
        ("f(mask_strides)", "f(mask_strides)"),
    ],
)
def test_translate(source: str, expected: str) -> None:
    assert translate(source, ("keys",)) == expected


def test_attributes_become_variables_once_each() -> None:
    text = translate("x = thread_index_in_simdgroup + thread_index_in_simdgroup;")
    assert text.count("const uint thread_index_in_simdgroup =") == 1
    assert text.endswith("x = thread_index_in_simdgroup + thread_index_in_simdgroup;")
    assert "threadgroup_position_in_grid" not in text


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("int a;\nsimdgroup_float8x8 m;", 2, "simdgroup matrices"),
        ("simdgroup_multiply_accumulate(a, b, c, d);", 1, "simdgroup matrices"),
        ("atomic_fetch_add_explicit(p, 1, memory_order_relaxed);", 1, "atomics"),
        ("x = quad_sum(x);", 1, "quad functions"),
        ("x = simd_prefix_inclusive_sum(x);", 1, "simd function"),
        ("texture2d<float> t;", 1, "textures"),
        ("\n\nv.xy = w;", 3, "swizzle"),
        ("v.xy += w;", 1, "swizzle"),
        ('#include "other.h"', 1, "include"),
        ("threadgroup float f();", 1, "threadgroup"),
        ('asm("trap;");', 1, "reserved"),
        ("__syncthreads();", 1, "reserved"),
    ],
)
def test_what_the_header_cannot_carry_is_refused_with_line_and_reason(
    source: str, line: int, reason: str
) -> None:
    with pytest.raises(UnsupportedOnCuda, match=rf"line {line}: .*{reason}"):
        translate(source)


@pytest.mark.parametrize("member", ["s.atomic", "p->texture2d"])
def test_a_member_may_have_a_refused_name(member: str) -> None:
    assert translate(member) == member


@pytest.mark.parametrize(
    "path", sorted(path.parent for path in TUNED.glob("*/kernel.json")), ids=lambda path: path.name
)
def test_every_tuned_metal_stage_translates_line_by_line(path: Path) -> None:
    stages = [stage for stage in Kernel.load(path).specs if stage.language == "metal"]
    text = "".join(stage.header + stage.source for stage in stages)
    if "simdgroup_matrix" in text:
        with pytest.raises(UnsupportedOnCuda, match="simdgroup matrices"):
            translate(minify(text))
        return
    for stage in stages:
        for text in (stage.source, stage.header):
            done = translate(minify(text), stage.inputs)
            assert done.count("\n") == minify(text).count("\n")
            # nothing of Metal is left (`threadgroup_...` and `thread_index_...` are other words)
            assert not re.search(r"\b(device|threadgroup|thread|constant)\b", done)


# --- sources


def test_template_arguments_and_absent_inputs_stand_in_the_source() -> None:
    kernel = tuned("gqa_decode")
    launch = kernel.launches(DECODE, kernel.default_params(DECODE))[0]
    header, source = cuda.sources(launch, {"mask": "bool", "sinks": "__nv_bfloat16"})
    assert "using T = __nv_bfloat16;" in source
    assert "constexpr int D = 64;" in source
    assert "const bool* const mask = reinterpret_cast<const bool*>(absent_input);" in source
    assert "mask_ndim" not in source
    assert header.count("absent_input") == 1
    # the compiler counts the stage's own lines
    body = source.partition(f'#line 1 "{launch.spec.file}"\n')[2]
    assert (
        body.split("\n")[0]
        == translate(minify(launch.spec.source), launch.spec.inputs).split("\n")[0]
    )


def test_a_mask_that_is_passed_is_broadcast_by_its_strides() -> None:
    kernel = tuned("gqa_decode")
    workload = Workload(2, 8, 2, 1, 1000, 64, 64, "bfloat16", "bool")
    launch = kernel.launches(workload, kernel.default_params(workload))[0]
    _, source = cuda.sources(launch, {"sinks": "__nv_bfloat16"})
    assert "mask_ndim" in source
    assert "#define mask_strides mask_steps" in source


def test_a_native_stage_is_handed_over_as_it_is() -> None:
    kernel = tuned("gqa_decode_mma")
    launch = kernel.launches(DECODE, kernel.default_params(DECODE))[0]
    assert launch.spec.language == "cuda"
    header, source = cuda.sources(launch, {"mask": "bool", "sinks": "__nv_bfloat16"})
    assert launch.spec.source in source
    assert launch.spec.header in header
    assert cuda._header() not in header


@pytest.mark.parametrize(
    "line",
    [
        '#include "/etc/passwd"',
        "#include </etc/passwd>",
        "#include <cuda/../../../../etc/passwd>",
        "%:include </etc/passwd>",
        "#inc\\\nlude </etc/passwd>",
        "/**/ # /**/ include </etc/passwd>",
        "#define F </etc/passwd>\n#include F",
        '#include_next "x.h"',
        '#import "x.h"',
        '#embed "/etc/passwd"',
        '#if __has_include("/etc/passwd")\n#endif',
        '\f#import "x.h"',
        "#\vinclude </etc/passwd>",
        'int a;\r#import "x.h"',
        '// a backslash with a blank behind it \\ \n#import "x.h"',
    ],
)
@pytest.mark.parametrize("part", ["source", "header"])
def test_a_stage_reads_no_file_but_known_headers(line: str, part: str) -> None:
    kernel = tuned("gqa_decode_mma")
    launch = kernel.launches(DECODE, kernel.default_params(DECODE))[0]

    def within(text: str) -> Any:
        spec = replace(launch.spec, **{part: f"{text}\n{getattr(launch.spec, part)}"})
        return replace(launch, spec=spec)

    cuda.sources(within("#include <cuda_fp16.h>\n#include <cuda/std/cstdint>\n"), {})
    with pytest.raises(cuda.UnsupportedOnCuda, match="not available"):
        cuda.sources(within(line), {})


# --- build, with the GPU's part recorded instead of run


class Recorder:
    """Stands where mx.fast.cuda_kernel is and keeps what it is handed."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.called: list[dict[str, Any]] = []

    def __call__(self, **made: Any) -> Callable[..., list[mx.array]]:
        self.made.append(made)

        def run(**called: Any) -> list[mx.array]:
            self.called.append(called)
            return [
                mx.zeros(shape, dtype)
                for shape, dtype in zip(
                    called["output_shapes"], called["output_dtypes"], strict=True
                )
            ]

        return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(cuda, "unavailable", lambda: "")
    monkeypatch.setattr(mx.fast, "cuda_kernel", recorder)
    return recorder


def arrays(w: Workload) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    dtype = backends.dtype_of(w.dtype)
    return (
        mx.zeros((w.batch, w.q_heads, w.q_len, w.head_dim), dtype),
        mx.zeros((w.batch, w.kv_heads, w.kv_len, w.head_dim), dtype),
        mx.zeros((w.batch, w.kv_heads, w.kv_len, w.v_head_dim), dtype),
        mx.array([0.125], mx.float32),
    )


def included(text: str) -> str:
    (path,) = re.findall(r'#include "([^"]+)"', text)
    return Path(path).read_text("ascii")


@pytest.mark.parametrize("name", ["gqa_decode", "gqa_decode_mma"])
def test_mlx_gets_a_few_bytes_of_text_and_only_the_inputs_there_are(
    gpu: Recorder, name: str
) -> None:
    kernel = tuned(name)
    call = cuda.build(kernel, kernel.default_params(DECODE), DECODE)
    out = call(*arrays(DECODE), None, None)
    assert out.shape == (2, 8, 1, 64)
    for made, called in zip(gpu.made, gpu.called, strict=True):
        assert len(made["header"]) + len(made["source"]) < 600
        assert not {"mask", "sinks"} & set(made["input_names"])
        assert len(called["inputs"]) == len(made["input_names"])
        assert "template" not in called
        text = included(made["source"])
        for array in made["input_names"]:
            for suffix in ("shape", "strides", "ndim"):
                wanted = re.search(rf"\b{array}_{suffix}\b", text) is not None
                assert (f"{array}_{suffix}" in made["source"]) == wanted


def test_the_text_is_the_same_in_every_process_and_offered_once_for_keeping(
    gpu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cuda.cuda_modules, "keep", lambda *given: kept.append(given))
    kernel = tuned("gqa_quantized")
    workload = replace(DECODE, kv_bits=4, kv_group=64, mask="additive", kv_len=4096)
    packed = tuple(
        mx.zeros((2, 2, 4096, width), dtype)
        for width, dtype in ((8, mx.uint32), (1, mx.bfloat16), (1, mx.bfloat16))
    )
    queries, _, _, scale = arrays(workload)
    for _ in range(2):
        call = cuda.build(kernel, kernel.default_params(workload), workload)
        for _ in range(2):
            call(queries, packed, packed, scale, mx.zeros((4096,), mx.bfloat16), None)
    launches = len(kernel.launches(workload, kernel.default_params(workload)))
    assert len(kept) == 2 * launches > 2
    assert kept[:launches] == kept[launches:]
    for (name, header, source, inputs, outputs), made in zip(kept, gpu.made, strict=True):
        assert (name, header, source) == (made["name"], made["header"], made["source"])
        assert [n for n, _ in inputs] == made["input_names"]
        assert [n for n, _ in outputs] == made["output_names"]
    types = dict(kept[0][3])
    assert types["keys"] == mx.uint32
    assert types["key_scales"] == types["mask"] == mx.bfloat16
    assert types["scale"] == mx.float32


def test_the_scale_is_copied_to_the_device_once(gpu: Recorder) -> None:
    kernel = tuned("gqa_decode_mma")
    call = cuda.build(kernel, kernel.default_params(DECODE), DECODE)
    inputs = arrays(DECODE)
    call(*inputs, None, None)
    call(*inputs, None, None)
    call(*inputs[:3], mx.array([0.5], mx.float32), None, None)
    at = gpu.made[0]["input_names"].index("scale")
    first, second, third = (called["inputs"][at] for called in gpu.called)
    assert first is second
    # more than 8 bytes: smaller arrays lie in memory on the host's side
    assert first.nbytes > 8
    assert first.tolist()[0] == 0.125
    assert third.tolist()[0] == 0.5


def test_a_mask_costs_no_operation_of_its_own(gpu: Recorder) -> None:
    kernel = tuned("gqa_decode_mma")
    workload = Workload(2, 8, 2, 1, 1000, 64, 64, "bfloat16", "bool")
    call = cuda.build(kernel, kernel.default_params(workload), workload)
    mask = mx.ones((2, 1, 1, 1000), mx.bool_)
    call(*arrays(workload), mask, None)
    at = gpu.made[0]["input_names"].index("mask")
    assert gpu.called[0]["inputs"][at] is mask
    call(*arrays(workload), mx.array(True), None)  # no axes: nothing to take strides from
    assert gpu.called[-1]["inputs"][at].shape == (2, 8, 1, 1000)


def test_an_additive_mask_is_cast_to_the_workload_s_dtype(gpu: Recorder) -> None:
    kernel = tuned("gqa_decode_mma")
    workload = Workload(2, 8, 2, 1, 1000, 64, 64, "bfloat16", "additive")
    call = cuda.build(kernel, kernel.default_params(workload), workload)
    call(*arrays(workload), mx.zeros((1000,), mx.float16), None)
    at = gpu.made[0]["input_names"].index("mask")
    assert gpu.called[0]["inputs"][at].dtype == mx.bfloat16


def test_a_grid_that_metal_would_cut_short_is_refused(gpu: Recorder) -> None:
    kernel = tuned("gqa_decode")
    meta = dict(kernel.meta)
    meta["launches"] = [{**stage, "grid": ["33", "1", "1"]} for stage in meta["launches"]]
    ragged = Kernel.from_parts(meta, kernel.sources)
    with pytest.raises(UnsupportedOnCuda, match="whole threadgroups"):
        cuda.build(ragged, ragged.default_params(DECODE), DECODE)


def test_without_a_gpu_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    assert "\n" not in cuda.unavailable()
    kernel = tuned("gqa_decode")
    with pytest.raises(BackendError, match="CUDA"):
        cuda.build(kernel, kernel.default_params(DECODE), DECODE)


@pytest.mark.parametrize(("arch", "usable"), [("sm_75", False), ("sm_80", True), ("sm_90", True)])
def test_a_card_too_old_is_named(monkeypatch: pytest.MonkeyPatch, arch: str, usable: bool) -> None:
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda _: {"architecture": arch})
    assert (cuda.unavailable() == "") == usable
    assert usable or arch in cuda.unavailable()


def test_a_driver_that_does_not_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> dict[str, Any]:
        raise RuntimeError("CUDA driver version is insufficient\nand more")

    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", fail)
    assert cuda.unavailable().endswith("CUDA driver version is insufficient")
