"""Expressions: the values of a program's expressions, which are never run.

Each node is looked at once, and no value grows without bound, so that the work is in proportion to
the program's length whatever is in it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from .launches import FLOATS, Launched, MadeKernel, launched, made, makes_kernel
from .values import (
    MAX_ITEMS,
    MAX_TEXT,
    Array,
    Dtype,
    Number,
    Scalar,
    Scale,
    Unknown,
    Unreadable,
    code_of,
    number,
    opaque,
    truth_of,
)

_OTHER_DTYPES = ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}
_COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
# What these return holds what their first argument holds.
_SAME = ("mx.contiguous", "mx.stop_gradient")
_SAME_MASK = (*_SAME, "mx.broadcast_to", "mx.expand_dims")


@dataclass
class Expressions:
    """Values of expressions, with the names that are known. `scopes`: the names of the program and,
    while a branch is followed, those that it has set. `launches` fills as kernels are called."""

    scopes: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    launches: list[Launched] = field(default_factory=list)

    def named(self, name: str) -> Any:
        """What a name holds."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return Unknown(f"`{name}` is not known")

    def value(self, node: ast.expr) -> Any:
        """What an expression gives. Raises Unreadable where a kernel is made or launched in a way
        that cannot be carried."""
        match node:
            case ast.Constant(value=bool() | int() as value):
                # Longer ones have no decimal text, and no launch takes them.
                return Number(str(value)) if value.bit_length() < 64 else opaque(node)
            case ast.Constant(value=None | str() as value):
                return value
            case ast.Name(id=name):
                return self.named(name)
            case ast.NamedExpr(target=ast.Name(id=name), value=inner):
                self.scopes[-1][name] = self.value(inner)
                return self.scopes[-1][name]
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return _tuple(node, tuple(self.value(part) for part in elts))
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                return self.named(f"self.{attr}")
            case ast.Attribute(value=ast.Name(id="mx" | "mlx"), attr=attr):
                return Dtype(attr) if attr in (*FLOATS, *_OTHER_DTYPES) else opaque(node)
            case ast.Attribute(value=owner, attr=attr):
                return _attribute(node, self.value(owner), attr)
            case ast.Subscript(value=inner, slice=index):
                return _subscript(node, self.value(inner), self.value(index))
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(node, self.value(left), op, self.value(right))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truth = truth_of(self.value(operand))
                return opaque(node) if truth is None else Number(str(not truth))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _negative(node, self.value(operand))
            case ast.BoolOp(op=op, values=values):
                return _boolean(node, isinstance(op, ast.Or), [self.value(v) for v in values])
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _compare(node, self.value(left), op, self.value(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._choice(node, self.value(test), body, orelse)
            case ast.Call():
                return self._call(node)
            case ast.JoinedStr():
                return Unknown(f"an f-string on line {node.lineno}")
            case _:
                return opaque(node)

    def _choice(self, node: ast.IfExp, test: Any, body: ast.expr, orelse: ast.expr) -> Any:
        taken = truth_of(test)
        if taken is not None:
            return self.value(body if taken else orelse)
        a, b = self.value(body), self.value(orelse)
        if _are_numbers(test, a, b):
            text = f"({a.text} if {test.text} else {b.text})"
            return number(text, a.exact or b.exact or test.exact, node)
        return a if a == b else opaque(node)

    def _call(self, node: ast.Call) -> Any:
        if makes_kernel(node):
            return made(self._keywords(node), node.lineno)
        match node:
            case ast.Call(func=ast.Attribute(value=owner, attr="astype"), args=[dtype]):
                return _astype(node, self.value(owner), self.value(dtype))
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="math"), attr="ceil"),
                args=[ast.BinOp(left=left, op=ast.Div(), right=right)],
            ):
                return _function(node, "ceil_div", [self.value(left), self.value(right)])
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="mx"), attr="array"), args=[inner, *rest]
            ):
                rest += [k.value for k in node.keywords if k.arg == "dtype"]
                return self._array(inner, [self.value(dtype) for dtype in rest])
        callee = self.value(node.func)
        if isinstance(callee, MadeKernel):
            launch = launched(callee, self._keywords(node), self.launches, node.lineno)
            self.launches.append(launch)
            return tuple(Array(name) for name in launch.outputs)
        name = _dotted(node.func)
        args = [self.value(arg) for arg in node.args]
        first = args[0] if args else None
        if name in ("int", "bool") and len(args) == 1 and _are_numbers(*args):
            return first
        if name in ("min", "max", "abs") and args:
            return _function(node, name, args)
        if name == "len" and isinstance(first, tuple):
            return Number(str(len(first)))
        if name == "isinstance" and len(args) == 2 and isinstance(first, None | str | Array):
            word = {str: "str", Array: "array"}.get(type(first), "type(None)")
            return Number(str(word in code_of(node.args[1])))
        if isinstance(first, Array) and name in (_SAME_MASK if first.name == "mask" else _SAME):
            return first
        return _computed(node)

    def _array(self, inner: ast.expr, dtype: list[Any]) -> Any:
        """mx.array of one number: the scale, or a scalar that becomes a template argument."""
        shaped = isinstance(inner, ast.List | ast.Tuple) and len(inner.elts) == 1
        value = self.value(inner)
        if shaped and isinstance(value, tuple):
            (value,) = value
        if isinstance(value, Scale):
            return Array("scale", shaped=shaped, rounded=dtype == [Dtype("dtype")])
        if isinstance(value, Number):
            return Scalar(value)
        made_from = Unknown("an array made from {code} on line {line}", inner)
        return _first_unknown(value) or made_from

    def _keywords(self, node: ast.Call) -> dict[str, Any]:
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise Unreadable("only keyword arguments are read, without * or **", node.lineno)
        return {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, Number) for value in values)


def _first_unknown(*values: Any) -> Unknown | None:
    """The reason why something made of these values is not known."""
    return next((value for value in values if isinstance(value, Unknown)), None)


def _are_plain(*values: Any) -> bool:
    return all(isinstance(value, None | str | Array | Scale) for value in values)


def _computed(node: ast.Call) -> Unknown:
    return Unknown("computed by {code}(...) on line {line}", node.func)


def _dotted(node: ast.expr) -> str:
    """A function's name with what it is looked up in, "" where that is more than names."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return f"{owner}.{name}"
    return ""


def _function(node: ast.Call, name: str, args: list[Any]) -> Any:
    """A function of launch expressions."""
    if not _are_numbers(*args):
        return _first_unknown(*args) or _computed(node)
    text = ", ".join(arg.text for arg in args)
    return number(f"{name}({text})", any(arg.exact for arg in args), node)


def _tuple(node: ast.expr, parts: tuple[Any, ...]) -> Any:
    inner = [item for part in parts if isinstance(part, tuple) for item in part]
    if len(parts) > MAX_ITEMS or any(isinstance(item, tuple) for item in inner):
        return Unknown("a list on line {line} that is too long, or nested too deeply", node)
    return parts


def _attribute(node: ast.expr, owner: Any, attr: str) -> Any:
    if isinstance(owner, Array) and owner.shape is not None:
        known = {"shape": owner.shape, "ndim": Number(str(len(owner.shape))), "dtype": owner.dtype}
        return known.get(attr) or opaque(node)
    return opaque(node)


def _subscript(node: ast.Subscript, value: Any, at: Any) -> Any:
    if isinstance(value, tuple) and isinstance(at, Number) and at.constant is not None:
        i = at.constant
        return value[i] if -len(value) <= i < len(value) else opaque(node)
    if isinstance(value, Array) and value.name == "mask" and _adds_axes(node.slice):
        return value  # new axes for a broadcast, which the family does itself
    return _first_unknown(value) or Unknown(f"subscripted on line {node.lineno}")


def _adds_axes(index: ast.expr) -> bool:
    """Whether an index takes everything as it is, with new axes."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    whole = [p for p in parts if isinstance(p, ast.Slice) and not (p.lower or p.upper or p.step)]
    new = [p for p in parts if isinstance(p, ast.Constant) and p.value in (None, ...)]
    return len(whole) + len(new) == len(parts)


def _binary(node: ast.BinOp, left: Any, op: ast.operator, right: Any) -> Any:
    if unknown := _first_unknown(left, right):
        return unknown
    if isinstance(left, str) and isinstance(right, str) and isinstance(op, ast.Add):
        if len(left) + len(right) > MAX_TEXT:
            return Unknown(f"a text of more than {MAX_TEXT} characters on line {node.lineno}")
        return left + right
    if _are_numbers(left, right) and type(op) in _OPERATORS:
        text = f"({left.text} {_OPERATORS[type(op)]} {right.text})"
        return number(text, left.exact or right.exact, node)
    return opaque(node)


def _negative(node: ast.expr, value: Any) -> Any:
    if not isinstance(value, Number):
        return _first_unknown(value) or opaque(node)
    constant = value.constant
    return number(f"-{value.text}" if constant is None else str(-constant), value.exact, node)


def _boolean(node: ast.expr, is_or: bool, values: list[Any]) -> Any:
    truths = [truth_of(value) for value in values]
    if is_or in truths:
        return Number(str(is_or))
    return opaque(node) if None in truths else Number(str(not is_or))


def _compare(node: ast.expr, left: Any, op: ast.cmpop, right: Any) -> Any:
    alike = isinstance(op, ast.Eq | ast.Is)
    if (alike or isinstance(op, ast.NotEq | ast.IsNot)) and _are_plain(left, right):
        return Number(str((left == right) == alike))
    if _are_numbers(left, right) and type(op) in _COMPARE:
        if left.constant is not None and left.text == right.text and isinstance(op, ast.Eq):
            return Number("True")
        text = f"({left.text} {_COMPARE[type(op)]} {right.text})"
        return number(text, left.exact or right.exact, node)
    return opaque(node)


def _astype(node: ast.Call, value: Any, dtype: Any) -> Any:
    if isinstance(value, Array) and isinstance(dtype, Dtype):
        if value.dtype == dtype:
            return value
        return Unknown(f"{value.name} is converted by astype on line {node.lineno}")
    return opaque(node)
