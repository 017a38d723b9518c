"""What a program's values are to the importer. An Unknown is no error until a launch needs it."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
    truth: bool = False

    @property
    def known(self) -> bool | None:
        """Its truth where it is a constant."""
        if re.fullmatch(r"-?\d+|True|False", self.text):
            return self.text not in ("0", "False")
        return None


@dataclass(frozen=True)
class Array:
    """An array by its role in the family, or an earlier launch's output by name. For a scale:
    shaped, it has an axis; rounded, it was made in the workload's dtype."""

    name: str
    shaped: bool = True
    rounded: bool = False


@dataclass(frozen=True)
class Scalar:
    """An array that holds one number."""

    number: Number


@dataclass(frozen=True)
class Dtype:
    """A dtype by its name; "dtype" is the workload's."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """A value that is not followed, and why."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class KernelMade:
    """What mx.fast.metal_kernel was told."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Launched:
    """One launch: values of its inputs, keys of its outputs, and its launch expressions."""

    kernel: KernelMade
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[Number, ...], ...]
    dtypes: tuple[str, ...]
    template: tuple[tuple[str, Number | str], ...]
    grid: tuple[Number, ...]
    threadgroup: tuple[Number, ...]
    line: int


def number_of(value: Any, what: str, line: int) -> Number:
    if not isinstance(value, Number):
        raise Unreadable(f"launch: {what}: {why(value)}", line)
    if value.exact:
        raise Unreadable(
            f"launch: {what}: uses the exact KV length ({value.text}), which a launch does not see",
            line,
        )
    return value


def tuple_of(value: Any, what: str, line: int) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return value
    raise Unreadable(f"launch: {what}: {why(value)}", line)


def are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Number) for value in values)


def truth_of(value: Any) -> bool | None:
    if value is None:
        return False
    if isinstance(value, Number):
        return value.known
    return bool(value) if isinstance(value, str | tuple) else None


def is_a(value: str | Array | None, types: str) -> bool:
    word = {type(None): "type(None)", str: "str", Array: "array"}[type(value)]
    return word in types


def why(value: Any) -> str:
    return str(value) if isinstance(value, Unknown) else "a construct that is not followed"


def unknown(value: Any, reason: str) -> Unknown:
    return value if isinstance(value, Unknown) else Unknown(reason or "not followed")


def opaque(node: ast.expr) -> Unknown:
    return Unknown(f"`{ast.unparse(node)[:60]}` on line {node.lineno} is not followed")


def makes_kernel(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == "metal_kernel"


def makes(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and makes_kernel(node)


def is_launch(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "output_shapes" in {k.arg for k in node.keywords}


def launches_kernel(function: ast.AST) -> bool:
    return any(is_launch(node) for node in ast.walk(function))
