from __future__ import annotations

import pytest

from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.kernels.expressions import MAX_DEFAULT, Expression, Value

VALUES: dict[str, Value] = {"n": 7, "dtype": "bfloat16", "flag": True}


def evaluate(text: object) -> Value:
    return Expression(text, frozenset(VALUES), "kernel.json: test")(VALUES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n", 7),
        (12, 12),
        ("2 * n + 1", 15),
        ("-n // 2", -4),
        ("2 ** n % 100", 28),
        ("ceil_div(n, 2)", 4),
        ("next_pow2(n)", 8),
        ("max(n, 9) - min(n, 9)", 2),
        ("abs(-n)", 7),
        ("1 if n > 8 else 2", 2),
        ("n in (1, 7)", True),
        ("dtype == 'bfloat16' and not n == 8", True),
        ("float32", "float32"),
        ("flag or n == 1", True),
        ("1 < n <= 7", True),
    ],
)
def test_what_an_expression_may_say(text: object, value: Value) -> None:
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "n.real",
        "n[0]",
        "__import__('os')",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "open('x')",
        "unknown",
        "n / 2",
        "1.5",
        "f'{n}'",
        "n if",
        "2 ** 9999",
        str(1 << 62),
        "0x" + "f" * 490,
        "9 ** 60 * 9 ** 60",
        "1 // 0",
        "'a' + 'b'",
        "'a' * 1000000000",
        "n << 100",
        "(" * 400,
        "n +" * 400 + "n",
        "min()",
        "min(n, key=n)",
        "ceil_div(1, 0)",
        "n in 5",
        None,
        ["n"],
    ],
)
def test_anything_else_is_refused_with_file_and_field(text: object) -> None:
    with pytest.raises(KernelError, match=r"^kernel\.json: test"):
        evaluate(text)


def test_numbers_that_python_cannot_write_and_depths_that_it_cannot_walk_are_refused() -> None:
    with pytest.raises(KernelError, match=r"^kernel\.json: test"):  # 4800 decimal digits
        Expression("0x" + "f" * 3990, frozenset(), "kernel.json: test", MAX_DEFAULT)
    depths = [Expression("-" * n + "1", frozenset(), "deep", MAX_DEFAULT) for n in (10, 700)]

    def below(frames: int, expression: Expression) -> Value:
        return expression({}) if not frames else below(frames - 1, expression)

    assert below(500, depths[0]) == 1
    with pytest.raises(KernelError, match=r"^deep: "):
        below(500, depths[1])
