"""Static rules: CUDA text keeps nothing between launches."""

from __future__ import annotations

import pytest

from mlx_lm_openevolve.gate.static_rules import keeps_state
from mlx_lm_openevolve.kernels.lookup import shipped


@pytest.mark.parametrize(
    "text",
    [
        "__device__ int x;",
        "__device__\nint\nx = 0;",
        "__device__ float table[64];",
        "int __device__ x;",
        "static int x;",
        "void f() { static __device__ int x = 0; ++x; }",
        "struct S { static inline int n; };",
        "static const int* p;",
        "__managed__ int x;",
        "__device__ __managed__ int x;",
        "sta\\\ntic int x;",
        "#define S sta##tic\nS int x;",
        "template <class T> __device__ T last{};",
        'asm volatile(".global .align 4 .u32 kept;");',
        'asm(".glo" "bal\\t.u32 kept;");',
    ],
)
def test_data_that_outlive_a_launch_are_refused(text: str) -> None:
    assert keeps_state(text)


@pytest.mark.parametrize(
    "text",
    [
        "__device__ float f(float x) { return x; }",
        "static __device__ __forceinline__ int f();",
        "static constexpr int N = 4;",
        "static const int* const p = nullptr;",
        "__constant__ float table[4] = {1, 2, 3, 4};",
        "__device__ const float table[4] = {1, 2, 3, 4};",
        "__shared__ float tile[32];",
        "extern __shared__ char memory[];",
        "static_assert(sizeof(int) == 4);",
        "auto f = [] __device__ (int x) { return x; };",
    ],
)
def test_constants_functions_and_shared_memory_are_not(text: str) -> None:
    assert keeps_state(text) == ""


def test_what_is_shipped_keeps_none() -> None:
    specs = [s for k in shipped().kernels() for s in k.specs if s.language == "cuda"]
    assert specs
    assert not [
        s.file for s in specs if keeps_state(s.header, namespace=True) or keeps_state(s.source)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "int x;",
        "int x = 0;",
        "int x{0};",
        "float table[64];",
        "namespace n {\nint x;\n}",
        "namespace { struct S { int y; }; S kept; }",
        "struct S { int y; } kept;",
        "struct { int y; } kept[2];",
        'extern "C" { int x; }',
        "__device__ int f() { return 1; }\nunsigned counter(0);",
        "alignas(16) float x[4];",
        "const float* p;",
        "volatile int seen;",
        "int one, two;",
        "auto kept = f(1);",
        "inline int x = [] { return 1; }();",
        "template <class T> struct S {}; S<int> kept;",
    ],
)
def test_data_of_a_namespace_outlive_a_launch(text: str) -> None:
    assert keeps_state(text, namespace=True)


@pytest.mark.parametrize(
    "text",
    [
        "const int x = 4;",
        "constexpr float table[2] = {1, 2};",
        "const int* const p = nullptr;",
        "__constant__ int x;",
        "__device__ int f(int x);",
        "__device__ int f(int x) { int y = x; { y += 1; } return y; }",
        "template <int N> struct S { int y[N]; };",
        "struct S { int y; S(int x) : y(x) {} };",
        "struct S;",
        "enum class Mode : int { A, B };",
        "using T = float;",
        "typedef float T;",
        "namespace n { using T = float; __device__ T f() { T x; return x; } }",
        "namespace m = n;",
        "static_assert(sizeof(int) == 4);",
        "template <class T> __device__ auto f(T x) -> decltype(x + 1) { return x + 1; }",
        "__device__ __launch_bounds__(128) void f(const float* x) {}",
        "#define KEPT int x;\n#include <cuda_fp16.h>\n",
        "template <> struct S<int> { static constexpr int n = 1; };",
        "__device__ bool operator<(S a, S b) { return true; }",
        "using namespace cooperative_groups;",
        "extern __shared__ char memory[];",
    ],
)
def test_constants_types_and_functions_of_a_namespace_are_none(text: str) -> None:
    assert keeps_state(text, namespace=True) == ""
