"""Static rules: CUDA text keeps nothing between launches."""

from __future__ import annotations

import time

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
    assert not [s.file for s in specs if keeps_state(s.source, header=s.header)]


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
        "struct S { mutable int y; }; constexpr S kept{};",
        "#define P(a, b) a##b\nstruct S { P(mut, able) int y; }; constexpr S kept{};",
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


@pytest.mark.parametrize(
    ("header", "source"),
    [
        ("", "static int counter(0);"),
        ("", "static int (counter);"),
        ("", "S s; static S t(1);"),
        ("", "char q = '\"'; static int c; char r = '\"';"),
        ("", 'asm("//"); static int c;'),
        ("", "if (x) static int c = 0;"),
        ("", "f([] { static int c; return c++; });"),
        ("int x(0);", ""),
        ("__device__ int x(0);", ""),
        ("constexpr int N = 0;\nint x(N);", ""),
        ("int (x){0};", ""),
        ("int x(int(0));", ""),
        ('extern "C++" { int x; }', ""),
        ("template <int I> int counter = 0;", ""),
        ("decltype(0) counter = 0;", ""),
        ("__typeof__(int) counter;", ""),
        ("alignas(((16))) int counter;", ""),
        ('int counter asm("c") = 0;', ""),
        ("float f(float x = 1.0f) { return x; }\nint counter;", ""),
        ("int f(int), counter;", ""),
        ("const int a = 1, *b = 0;", ""),
        ("const volatile int state = 0;", ""),
        ("int (*fp)(int) {nullptr};", ""),
        ("struct S { int a; }; S const s;", ""),
        ("static union { int a; };", ""),
        ("namespace <% int c; %>", ""),
        ("namespace ??< int c; ??>", ""),
        ("#define S static\n__device__ void f() {}", "S int c;"),
        ("#define X int counter;\nX\n", ""),
        ("#define ID(x) x\nID(int counter;)", ""),
        ("#define G(x) x\n#define F G\nF(int counter;)", ""),
        ("#if 0\n#define S\n#else\n#define S int x;\n#endif\nS", ""),
        ("#define STR(x) #x\n", "asm(STR(.global .u32 c;));"),
        ("", 'asm(".global.u32 c;");'),
        ("", 'asm(".global/**/.u32 c;");'),
        ("", 'asm(".\\x67lobal .u32 c;");'),
        ("", 'asm volatile("{.visible .global .align 4 .u32 c;}" : "=r"(x));'),
        ("for (;;) ", ""),
        ("}", ""),
    ],
)
def test_what_may_keep_data_is_refused_whatever_it_is_written_as(header: str, source: str) -> None:
    assert keeps_state(header, namespace=True) or keeps_state(source, header=header)


@pytest.mark.parametrize(
    ("header", "source"),
    [
        ("enum class E : int;", ""),
        ("#define CAT(a, b) a##b\n__device__ float CAT(f, 1)(float x) { return x; }", ""),
        ("#define HD __device__ __forceinline__\nHD float f(float x) { return x; }", ""),
        ("#define ARG int a\nfloat h(ARG);", ""),
        ("__device__ float g(float x = 1.0f) { return x; }\nfloat h();", ""),
        ("constexpr inline const int static a = 1;", ""),
        ("struct S { __device__ S(int); };\n__device__ S::S(int a) {}", ""),
        ("struct S { static __device__ S* make() { return 0; } };", ""),
        ("__device__ float (&rows(float (&x)[4]))[4] { return x; }", ""),
        ("template __device__ float f<int>(int);", ""),
        ("__global__ void __launch_bounds__(MAX(1, (2))) k(int a) {}", ""),
        ("struct B { unsigned a : 3; int b{1}; };", ""),
        ("", 'asm volatile("ld.global .u32 %0, [%1];" : "=r"(x) : "l"(p));'),
        ("", 'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(a), "l"(b));'),
        ("", 'printf("static int x; .global .u32");'),
        ("", "static const float t[4] = {1, 2, 3, 4};"),
        ("", "if constexpr (N > 0) { static constexpr int a[N] = {}; }"),
    ],
)
def test_right_text_passes(header: str, source: str) -> None:
    assert keeps_state(header, namespace=True) == keeps_state(source, header=header) == ""


N = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "(" * N + ")" * N,
        "/*" * N,
        "<" * N + ">" * N + ";",
        "unsigned " * (N // 9) + "!;",
        "static int f(" + "int a," * (N // 6) + "!);",
        'asm("' + ".visible " * (N // 9) + '");',
        "#define A0 x x\n"
        + "".join(f"#define A{i} A{i - 1} A{i - 1}\n" for i in range(1, 40))
        + "A39",
        "#define A B B\n#define B A A\nA",
    ],
)
def test_no_text_holds_the_rule_up(text: str) -> None:
    start = time.monotonic()
    keeps_state(text, namespace=True)
    keeps_state(text)
    assert time.monotonic() - start < 20
