"""What stands in front of a body: the same names, types and values as MLX's own utils.h."""

from __future__ import annotations

import re

import mlx.core as mx
import mlx_kernels
import numpy as np
from probe import launch, messages, on_host

from mlx_lm_openevolve.metalhost import metal_function
from mlx_lm_openevolve.metalhost.toolchain import SHIM

HEADERS = ("utils.h", "bf16.h", "bf16_math.h", "complex.h", "defines.h", "logging.h")
DECLARED = re.compile(
    r"^(?:template <.*> )?(?:struct (\w+)|.*\bconstexpr (?:constant )?\w+ (\w+)(?: =|;)"
    r"|(?:METAL_FUNC|inline) (?:\w+|\w+<[^>]*>) (\w+)\(|using (\w+) =|typedef \w+ (\w+);"
    r"|\s*METAL_FUNC otype (\w+)\()",
    re.M,
)
# Each line gives one float; both preludes must agree on all of them.
VALUES = """
log1p(0.25f)
log1p(1e-9f)
log1p(bfloat16_t(0.25f))
log1p(complex64_t(0.5f, 0.25f)).real
log1p(complex64_t(0.5f, 0.25f)).imag
log1p(complex64_t(0.1f, 0.1f)).real
hypot(3.0f, 4.0f)
hypot(2.0f, 2.0f)
ceildiv(7, 2u)
ceildiv(8l, 4)
cast_to<bool>(-0.0f)
cast_to<bool>(NAN)
cast_to<bool>(bfloat16_t(0.0f))
cast_to<bool>(complex64_t(0.0f, 2.0f))
cast_to<int>(2.9f)
is_same_v<ConditionalType<true, int, float>::type, int>
is_same_v<ConditionalType<false, int, float>::type, int>
Limits<float>::max
Limits<half>::finite_min
Limits<bfloat16_t>::min
Limits<uint8_t>::max
Limits<int16_t>::finite_min
Limits<bool>::max
Limits<complex64_t>::min.imag
WorkPerThread<half>::n
REDUCE_N_READS + RMS_LOOPED_LIMIT + SOFTMAX_N_READS
(complex64_t(1, 2) * complex64_t(3, 4)).real
(complex64_t(1, 2) * complex64_t(3, 4)).imag
(complex64_t(1, 2) / complex64_t(3, 4)).real
(complex64_t(1, 2) / complex64_t(4, 3)).imag
(complex64_t(5, -7) % complex64_t(3, 4)).real
(complex64_t(5, -7) % complex64_t(3, 4)).imag
(1.0f - complex64_t(3, 4)).imag
(complex64_t(3, 4) + 1.5f).real
(-complex64_t(3, 4)).real
complex64_t(3, 4) < complex64_t(3, 5)
complex64_t(3, 4) >= complex64_t(3, 5)
complex64_t(3, 4) == complex64_t(3, 4)
float(complex64_t(3, 4))
float2(complex64_t(3, 4)).y
complex64_t(float2(3, 4)).imag
complex32_t(complex64_t(3, 4)).imag
elem_to_loc<int64_t>(11, shape, strides, 3)
elem_to_loc<int64_t>(uint3(1, 2, 1), shape, strides, 3)
elem_to_loc_1<int64_t>(3u, strides[0])
elem_to_loc_2<int64_t>(uint2(3, 1), strides)
elem_to_loc_3<int64_t>(uint3(3, 1, 1), strides)
elem_to_loc_2_nd<int64_t>(uint3(1, 2, 1), shape, strides, strides + 1, 3).y
elem_to_loc_3_nd<int64_t>(uint3(1, 2, 1), shape, strides, strides + 1, strides, 3).z
walk.location()
steps.location()
row.location()
simd_shuffle(int64_t(lane) << 40, ushort(3)) >> 40
simd_shuffle_down(uint64_t(lane) << 40, ushort(2)) >> 40
simd_shuffle_up(lane > 4, ushort(2))
simd_shuffle(complex64_t(lane, 1), ushort(9)).real
simd_shuffle_down(complex64_t(lane, -lane), ushort(1)).imag
simd_shuffle_and_fill_up(int64_t(lane), int64_t(-1), ushort(31))
simd_shuffle_and_fill_up(lane > 3, true, ushort(31))
simd_sum(bfloat16_t(lane))
simd_max(bfloat16_t(lane))
max(bfloat16_t(1.5f), bfloat16_t(2.5f))
fast::exp(bfloat16_t(1.0f))
precise::max(bfloat16_t(1.0f), bfloat16_t(3.0f))
isnan(bfloat16_t(1.0f))
bfloat16_to_uint16(bfloat16_t(1.0f))
uint16_to_bfloat16(0x3f80)
tile
found.x + 100 * found.y + 10000 * found.z
""".strip().splitlines()

KERNEL = """
[[kernel]] void values(device float* y [[buffer(0)]], constant int* shape [[buffer(1)]],
                       constant int64_t* strides [[buffer(2)]],
                       const device int* offsets [[buffer(3)]],
                       uint i [[thread_position_in_grid]]) {
  const int lane = int(i % 32);
  LoopedElemToLoc<3, int64_t> walk(3);
  for (int k = 0; k < 7; ++k) walk.next(shape, strides);
  LoopedElemToLoc<2, int64_t> steps(3);
  steps.next(5, shape, strides);
  steps.next(4, shape, strides);
  LoopedElemToLoc<1, int64_t, false> row(1);
  row.next(1, shape, strides);
  int3 found = int3(0);
  short rows = 0;
  int first = 0, group = 0;
  const bool tile = schedule_row_tile<4>(offsets, 3, 20, 3, uint(lane), first, group, rows);
  found.x = first;
  found.y = group;
  found.z = rows;
  LINES
}
"""


def declared(header: str) -> set[str]:
    """The names that one of MLX's headers declares at its outer level."""
    return {
        name for m in DECLARED.finditer(mlx_kernels.text(header)) for name in m.groups() if name
    }


def test_every_name_of_mlxs_utilities_is_there() -> None:
    ours = " ".join((SHIM / name).read_text() for name in ("mlx_utilities.h", "mlx_macros.h"))
    ours += (SHIM / "simd.h").read_text() + (SHIM / "math.h").read_text()
    words = set(re.findall(r"\w+", ours))
    for prefix in ("simd_", "simd_prefix_", "simd_shuffle_"):  # named by a macro in simd.h
        words |= {prefix + word for word in words}
    names = {header: declared(header) for header in HEADERS}
    assert {"log1p", "ceildiv", "ConditionalType", "LoopedElemToLoc", "hypot"} <= names["utils.h"]
    assert {"simd_sum", "fmax3", "simd_shuffle_and_fill_up"} <= names["bf16_math.h"]
    for header, listed in names.items():
        assert listed - words == set(), header


@on_host
def test_values_are_those_of_mlxs_utilities() -> None:
    lines = "\n".join(f"  if (i < 32) y[{k} * 32 + i] = float({v});" for k, v in enumerate(VALUES))
    kernel = KERNEL.replace("LINES", lines)
    shape, strides = mx.array([2, 3, 4], mx.int32), mx.array([50, 10, 2, 1], mx.int64)
    results = []
    for include in (f'#include "{mlx_kernels.KERNELS}/utils.h"\n', ""):
        function = metal_function(
            include + kernel, "values", include_root=str(mlx_kernels.include_root()),
            utilities=not include,
        )  # fmt: skip
        done = function(
            [mx.zeros((len(VALUES), 32)), shape, strides, mx.array([0, 5, 11], mx.int32)],
            grid=(32, 1, 1), threadgroup=(32, 1, 1),
        )  # fmt: skip
        assert done.ok, messages(done)
        results.append(np.array(done.outputs[0]))
    theirs, ours = results
    for line, a, b in zip(VALUES, theirs, ours, strict=True):
        assert np.allclose(a, b, rtol=3e-7, atol=0, equal_nan=True), (line, a[:8], b[:8])
    assert theirs[VALUES.index("ceildiv(7, 2u)")][0] == 4


@on_host
def test_the_language_is_that_of_metal_3_1() -> None:
    """C++14, as Apple's compiler takes it: what C++17 brought is refused, or an extension."""
    body = "y[thread_position_in_grid.x] = 1;"
    for header in (
        "template <auto N> struct Constant {};\n",
        "template <class T> struct Box { Box(T) {} }; struct User { void f() { Box b(1); } };\n",
        "float own() { float a[] = {1}; auto f = [=]() constexpr { return 1; }; return f(); }\n"
        'static_assert([] { return 1; }() == 1, "");\n',
    ):
        done = launch(body, header=header)
        assert {f.kind for f in done.findings} == {"compile"}, header
    done = launch(body, header="inline float log1p(float x) { return x; }\n")
    assert {f.kind for f in done.findings} == {"compile"}, "MLX has defined it"
