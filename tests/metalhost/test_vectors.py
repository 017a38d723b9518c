"""Vectors of different elements: no bits of one are read as the other, no integer as a bool."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from probe import launch, messages, on_host

ELEMENTS = [
    "bool",
    "char",
    "uchar",
    "short",
    "ushort",
    "int",
    "uint",
    "long",
    "ulong",
    "half",
    "bfloat",
    "float",
]
BINARY = ["+", "-", "*", "/", "%", "&", "|", "^", "&&", "||", "==", "!=", "<", ">", "<=", ">="]
COMPOUND = ["+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="]
LIMIT = 36  # what clang reports of one source, with room to spare

HELPERS = """\
template <class T> void use(T) {}
bool4 below(bool4 x, int4 v) { return v < 3; }
"""
VALUES = """\
int4 a = int4(0, 1, 2, 3), b = int4(2); bool4 m = a < b; float4 f = float4(1); bool z = true; \
packed_float4 p = packed_float4(1, 2, 3, 4); packed_int4 pi = packed_int4(1, 2, 3, 4);
"""


def refused(lines: Sequence[str], before: str = "") -> dict[str, str]:
    """The lines that are refused at compile time, with the reason."""
    body = before + "".join(f"{{ {line} }}\n" for line in lines) + "y[0] = 1;"
    done = launch(body, header=HELPERS, n=1, group=1)
    at = before.count("\n") + 1
    found = [f for f in done.findings if f.kind in ("compile", "strict")]
    assert all(f.line is not None for f in found), messages(done)
    return {lines[f.line - at]: f.message for f in found if f.line is not None}


def mixed(size: int) -> list[str]:
    """Every operation on vectors of two different elements."""
    lines = []
    for a, b in itertools.permutations(ELEMENTS, 2):
        both = f"{a}{size} a = {a}{size}(1); {b}{size} b = {b}{size}(1); bool k = true;"
        forms = [f"use(a {op} b);" for op in BINARY] + [f"a {op} b;" for op in COMPOUND]
        forms += ["use(k ? a : b);", "a = b;", f"{a}{size} r = b;", f"{a}{size} r = {{b}};"]
        forms += [f"auto f = []({b}{size} v) -> {a}{size} {{ return v; }}; use(f(b));"]
        if {a, b} & {"bool", "half", "bfloat", "float"}:  # integers may be shifted by any other
            forms += ["use(a << b);", "use(a >> b);", "a <<= b;", "a >>= b;"]
        lines += [f"{both} {form}" for form in forms]
    return lines


def all_refused(lines: Sequence[str]) -> None:
    """Each line is refused; what strictness finds shows once the others are gone."""
    left = list(lines)
    while left:
        found = refused(left)
        assert found, left
        left = [line for line in left if line not in found]


@on_host
@pytest.mark.parametrize("size", [2, 3, 4])
def test_vectors_of_different_elements_do_not_mix(size: int) -> None:
    all_refused(random.Random(size).sample(mixed(size), LIMIT))


@on_host
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_operation_mixes_elements(size: int) -> None:
    for part in itertools.batched(mixed(size), LIMIT):
        all_refused(part)


@on_host
def test_a_comparison_of_vectors_is_never_a_number() -> None:
    wrong = [
        "auto r = a < b;", "a = a < b;", "f = float4(a < b);", "a = int4(a < b);", "m = a;",
        "m = a & b;", "m & a;", "m = m == a;", "f = a ? f : f;", "int w = (a < b).x;",
        "f.x = (a < b)[0];", "f.x = float((a < b).x);", "a = !a;", "a = a & (a < b);",
        "a = -(a < b);", "a = a - (a < b);", "z = any((a < b) == a);", "use(a < b);",
        "m = z ? m : a;", "m = below(m, a) & b;", "f = float4(!a);", "f = f * float4(a && b);",
        "m = ~(a < b);", "a += (a < b);", "m = below(a, a);", "a = z ? a < b : a;",
        "f = (a < b) ? f : f;", "f = ((a < b) && (b < a)) ? f : f;",
    ]  # fmt: skip
    found = refused(wrong, VALUES)
    assert not set(wrong) - set(found)
    assert all("vector" in reason for reason in found.values()), found


@on_host
def test_packed_vectors_convert_where_it_is_written() -> None:
    wrong = ["p = pi;", "p += pi;", "packed_float4 q = pi;", "packed_float4 q = a;", "p += a;"]
    assert set(refused(wrong, VALUES)) == set(wrong)


@on_host
def test_what_metal_takes_is_taken() -> None:
    right = [
        "m = a < b;", "m = (a < b) & (b < a);", "m = m & (a < b);",
        "z = any(a < b);", "z = all(!(a < b));", "z = (a < b).x;", "z = (a < b)[1];",
        "m = z ? (a < b) : (b < a);", "f = select(f, f, a < b);", "f = select(f, f, m);",
        "m = static_cast<bool4>(a);", "m = (bool4)a;", "m = bool4(a);", "m = !a;", "m = a && b;",
        "if ((a < b).x && z) f.x = 1;", "m = m != (a < b);",
        "m = below(a < b, a);", "a = a << uint4(1);", "f = f + 1;", "p = packed_float4(a);",
        "f = p;", "p = f;", "p += f;", "p = packed_float4(pi);", "p = 1.0f;",
        "bool2 low = (a < b).xy;",
    ]  # fmt: skip
    assert refused(right, VALUES) == {}


@on_host
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("float4(bool4(a < b))", [1, 1, 0, 0]),
        ("float4(bool4(!a))", [1, 0, 0, 0]),
        ("select(float4(6), float4(5), a < b)", [5, 5, 6, 6]),
        ("float4(a << uchar4(1))", [0, 2, 4, 6]),
        ("float4(uchar4(a) << int4(3))", [0, 8, 16, 24]),
        ("float4(a) + 1", [1, 2, 3, 4]),
        ("float4(packed_float4(pi))", [1, 2, 3, 4]),
        ("select(float4(5), float4(6), a < b)", [6, 6, 5, 5]),
    ],
)
def test_values(value: str, expected: list[float]) -> None:
    body = f"{VALUES}float4 r = {value}; for (int i = 0; i < 4; ++i) y[i] = r[i];"
    done = launch(body, n=1, group=1, out=(4,))
    assert done.ok, messages(done)
    assert done.outputs[0].tolist() == expected
