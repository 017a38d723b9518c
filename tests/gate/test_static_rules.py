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
    assert not [s.file for s in specs if keeps_state(s.header) or keeps_state(s.source)]
