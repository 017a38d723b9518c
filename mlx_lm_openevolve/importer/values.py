"""What a program's values are to the importer.

A value is a launch expression over the workload (Number), an array that the caller passed (Array),
the scale, a number that is handed over as an array (Scalar), a dtype, a kernel, a string, None, a
tuple of values, or Unknown with the reason. An Unknown is no error until a launch needs it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

# Nothing grows beyond what a kernel can hold: `n = n + n` forty times is a terabyte of text.
MAX_EXPRESSION = 500  # characters of a launch expression
MAX_TEXT = 1 << 20  # characters of a string
MAX_ITEMS = 64  # of a tuple; a tuple in a tuple holds no further one


class Unreadable(Exception):
    """A construct that cannot be followed; `line` is 0 where there is none."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True)
class Number:
    """An integer or truth value as a launch expression. exact: it depends on the exact KV length,
    which a launch does not see."""

    text: str
    exact: bool = False

    @property
    def constant(self) -> int | None:
        """Its value where it is a constant."""
        if self.text in ("True", "False"):
            return int(self.text == "True")
        return int(self.text) if re.fullmatch(r"-?[0-9]+", self.text) else None


@dataclass(frozen=True)
class Dtype:
    """A dtype by its name in mlx; "dtype" is the workload's."""

    name: str


@dataclass(frozen=True)
class Array:
    """An array by its role in the family, or an earlier launch's output by name. shape and dtype
    are those of the family's inputs. For a scale: shaped, it has an axis; rounded, it was made in
    the workload's dtype."""

    name: str
    shape: tuple[Number, ...] | None = None
    dtype: Dtype | None = None
    shaped: bool = True
    rounded: bool = False


@dataclass(frozen=True)
class Scale:
    """The scale as the caller passes it: a number, which is no constant."""

    def __str__(self) -> str:
        return "the scale is a number; hand it over as an array"


@dataclass(frozen=True)
class Scalar:
    """An array that holds one number."""

    number: Number


@dataclass(frozen=True)
class Unknown:
    """A value that is not followed, and why. With a node, {code} and {line} in the reason are its
    own; they are looked up only where the reason is shown, since code can be long."""

    reason: str
    node: ast.expr | None = None

    def __str__(self) -> str:
        if self.node is None:
            return self.reason
        return self.reason.format(code=code_of(self.node), line=self.node.lineno)


def code_of(node: ast.expr) -> str:
    """The beginning of an expression's code, for a message."""
    try:
        return ast.unparse(node)[:60]
    except ValueError:  # a hexadecimal number that is too long for a decimal text
        return "..."


def opaque(node: ast.expr) -> Unknown:
    """The value of an expression that is not followed."""
    return Unknown("`{code}` on line {line} is not followed", node)


def number(text: str, exact: bool, node: ast.expr) -> Number | Unknown:
    """The number that a node makes, if its expression is not too long."""
    if len(text) > MAX_EXPRESSION:
        reason = f"an expression of more than {MAX_EXPRESSION} characters on line {{line}}"
        return Unknown(reason, node)
    return Number(text, exact)


def truth_of(value: Any) -> bool | None:
    """Whether a value is true, None where that is not known."""
    if value is None:
        return False
    if isinstance(value, Number):
        return None if value.constant is None else bool(value.constant)
    return bool(value) if isinstance(value, str | tuple) else None


def why(value: Any) -> str:
    """Why a value is not what was needed."""
    known = isinstance(value, Unknown | Scale)
    return str(value) if known else "a construct that is not followed"
