"""Launch expressions: the little language in which a kernel.json states shapes and grids.

An expression is Python syntax over named integers, booleans and strings, walked node by node from
a whitelist. Nothing is ever handed to `eval`: no attribute, subscript, lambda or foreign call can
be written, and integers are bounded, so that no expression can take long or allocate much.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import KernelError
from ..ops.base import DTYPES, Value, next_pow2

__all__ = ["MAX_DEFAULT", "MAX_LENGTH", "Expression", "Value"]

_LIMIT = 1 << 62
# Characters of an expression, and of a param's default, which is evaluated once for a bucket.
MAX_LENGTH, MAX_DEFAULT = 500, 4000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "ceil_div": lambda a, b: -(-a // b),
    "next_pow2": next_pow2,
}
_CONSTANTS: dict[str, Value] = {name: name for name in DTYPES}


def _int(value: Any) -> int:
    if not isinstance(value, int) or not -_LIMIT < value < _LIMIT:
        raise ValueError(f"{str(value)[:40]!r} is no integer in range")
    return value


# Kernels repeat the same few expressions: each is parsed, and kept, once.
@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[ast.expr, frozenset[str]]:
    """An expression, and the names that stand in it, of functions too. Raises SyntaxError and
    ValueError."""
    tree = ast.parse(text, mode="eval").body
    used: set[str] = set()
    _check(tree, used)
    return tree, frozenset(used)


def _check(node: ast.expr, used: set[str]) -> None:
    match node:
        case ast.Constant(value=bool() | int() | str() as value):
            if type(value) is int:
                _int(value)
            return
        case ast.Name(id=name):
            used.add(name)
            return
        case ast.Tuple(elts=children) | ast.BoolOp(values=children):
            pass
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            children = [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            children = [operand]
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(
            type(op) in _COMPARE for op in ops
        ):
            children = [left, *rest]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            children = [test, body, orelse]
        case ast.Call(func=ast.Name(id=function), args=children, keywords=[]):
            if function not in _FUNCTIONS:
                known = ", ".join(sorted(_FUNCTIONS))
                raise ValueError(f"unknown function {function!r}; known: {known}")
            used.add(function)
        case _:
            raise ValueError(f"{type(node).__name__} is not allowed in an expression")
    for child in children:
        _check(child, used)


class Expression:
    """One parsed expression.

    `Expression(text, names, where)` checks it against the names it may use; `where` (file and
    field) begins every error message. Calling it with the names' values gives its value. Raises
    KernelError in both cases. `used`: the names that stand in it.
    """

    __slots__ = ("_tree", "text", "used", "where")

    def __init__(
        self, text: Any, names: frozenset[str], where: str, longest: int = MAX_LENGTH
    ) -> None:
        # JSON may hold the number or the boolean itself where the expression is a constant.
        if isinstance(text, bool | int):
            text = str(text)
        if not isinstance(text, str) or not text or len(text) > longest:
            raise KernelError(f"{where}: expected an expression, got {str(text)[:60]!r}")
        self.text, self.where = text, where
        try:
            self._tree, self.used = _parse(text.strip())
            for name in sorted(self.used - names - _CONSTANTS.keys() - _FUNCTIONS.keys()):
                raise ValueError(f"unknown name {name!r}; known: {', '.join(sorted(names))}")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise KernelError(f"{where}: {text!r}: {reason}") from None

    def __call__(self, values: Mapping[str, Value]) -> Value:
        try:
            result: Value = self._value(self._tree, values)
        except (ValueError, TypeError, ZeroDivisionError, KeyError, RecursionError) as error:
            raise KernelError(f"{self.where}: {self.text!r}: {error}") from None
        return result

    def integer(self, values: Mapping[str, Value]) -> int:
        """The value as a plain integer; KernelError where it is none."""
        value = self(values)
        if type(value) is not int:
            raise KernelError(f"{self.where}: {self.text!r} is {value!r}, expected an integer")
        return value

    def boolean(self, values: Mapping[str, Value]) -> bool:
        """The value as a boolean; KernelError where it is none."""
        value = self(values)
        if type(value) is not bool:
            raise KernelError(f"{self.where}: {self.text!r} is {value!r}, expected true or false")
        return value

    def _value(self, node: ast.expr, values: Mapping[str, Value]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return values[name] if name in values else _CONSTANTS[name]
            case ast.Tuple(elts=elts):
                return tuple(self._value(child, values) for child in elts)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = _int(self._value(left, values)), _int(self._value(right, values))
                if isinstance(op, ast.Pow) and not 0 <= b <= 62:
                    raise ValueError(f"exponent {b} is out of range")
                return _int(_BINARY[type(op)](a, b))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_int(self._value(operand, values))
            case ast.UnaryOp(operand=operand):
                return not self._value(operand, values)
            case ast.BoolOp(op=ast.And(), values=children):
                return all(self._value(child, values) for child in children)
            case ast.BoolOp(values=children):
                return any(self._value(child, values) for child in children)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                terms = [self._value(child, values) for child in (left, *rest)]
                return all(
                    _COMPARE[type(op)](a, b)
                    for op, a, b in zip(ops, terms[:-1], terms[1:], strict=True)
                )
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._value(body if self._value(test, values) else orelse, values)
            case ast.Call(func=ast.Name(id=function), args=args):
                return _int(_FUNCTIONS[function](*(_int(self._value(a, values)) for a in args)))
        raise ValueError(f"{type(node).__name__} is not allowed")  # _check lets none through
