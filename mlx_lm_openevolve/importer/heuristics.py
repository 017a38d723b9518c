"""A tile heuristic of an OpenEvolve program, `choose_tile_size(M, N, K, device_info)`, as default
expressions of a kernel's params. Like all of the importer it reads, and never runs.

    function --Reader--> values: fractions of two launch expressions --> expressions, one a param

Both branches of an `if` are followed, and what they set becomes `a if test else b`. Numbers keep
the range in which they lie: a product has at most 32 rows, so much of a heuristic for large
matrices folds away. Decimal fractions are exact here, where Python rounds them.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..kernels.expressions import MAX_DEFAULT
from ..ops.linear.workload import MOST_ROWS
from .values import Unreadable, code_of

__all__ = ["FUNCTION", "choices", "find"]

FUNCTION = "choose_tile_size"
_MAX_TEXT = 4 * MAX_DEFAULT  # of what is not yet simplified
_MAX_STEPS = 2_000  # statements that are followed, those behind an `if` that returns twice
_MAX_SIZE = 1 << 31
_COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_DIVIDED = "divides by what may be 0 or negative"


@dataclass(frozen=True)
class Ratio:
    """num / den, two launch expressions, den a positive one; low and high are its bounds."""

    num: str
    den: str = "1"
    low: float = -math.inf
    high: float = math.inf

    @property
    def constant(self) -> Fraction | None:
        """Its value, where it is a constant."""
        try:
            return Fraction(int(self.num), int(self.den))
        except ValueError:
            return None


@dataclass(frozen=True)
class Text:
    """A string as a launch expression."""

    text: str


@dataclass(frozen=True)
class Test:
    """A condition as a launch expression."""

    text: str


@dataclass(frozen=True)
class DeviceInfo:
    """The argument device_info."""


_DEVICE: Mapping[str, Any] = {
    "chip": Text("device_name"),
    "memory_gb": Ratio(f"(device_memory // {1 << 30})", low=0),
    "gpu_cores": Ratio("device_cores", low=0),
}
_SIZES = (
    Ratio("rows", low=1, high=MOST_ROWS),
    Ratio("n", low=1, high=_MAX_SIZE),
    Ratio("k", low=1, high=_MAX_SIZE),
)


def find(tree: ast.Module) -> ast.FunctionDef | None:
    """The program's heuristic; of several the last, which is what a caller would get."""
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == FUNCTION]
    return found[-1] if found else None


def choices(tree: ast.Module, function: ast.FunctionDef) -> list[tuple[str, str]]:
    """What the heuristic returns: (key, expression) each, the key "" in a tuple. Raises Unreadable
    with the line of what cannot be carried."""
    args = function.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    if len(names) != 4 or args.vararg or args.kwonlyargs or args.kwarg:
        reason = f"{FUNCTION} takes ({', '.join(names)}), expected (M, N, K, device_info)"
        raise Unreadable(reason, function.lineno)
    reader = _Reader()
    known: dict[str, Any] = {}
    for node in tree.body:  # constants of the module; what else it holds matters where it is used
        if isinstance(node, ast.Assign | ast.AnnAssign):
            try:
                reader.block([node], known)
            except Unreadable:
                continue
    known |= dict(zip(names, (*_SIZES, DeviceInfo()), strict=True))
    returned = reader.block(function.body, known)
    line = function.lineno
    if isinstance(returned, Mapping):
        return [(key, _integer(value, key, line)) for key, value in returned.items()]
    values = returned if isinstance(returned, tuple) else (returned,)
    return [("", _integer(value, f"value {i + 1}", line)) for i, value in enumerate(values)]


def _integer(value: Any, what: str, line: int) -> str:
    if not isinstance(value, Ratio) or value.den != "1":
        word = "a fraction: int(...) it" if isinstance(value, Ratio) else "no number"
        raise Unreadable(f"{FUNCTION} returns {what}, {word}", line)
    text = ast.unparse(ast.parse(value.num, mode="eval"))
    if len(text) > MAX_DEFAULT:
        reason = f"{what} takes {len(text)} characters as an expression, at most {MAX_DEFAULT}"
        raise Unreadable(reason, line)
    return text


class _Reader:
    """Follows statements and expressions; `known` are the names that are set."""

    def __init__(self) -> None:
        self._steps = 0

    def block(self, body: Sequence[ast.stmt], known: dict[str, Any]) -> Any:
        """What statements return, None where they return nothing."""
        for i, node in enumerate(body):
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise Unreadable(f"more than {_MAX_STEPS} statements to follow", node.lineno)
            match node:
                case ast.Return(value=ast.expr() as value):
                    return self.value(value, known)
                case ast.Assign(targets=targets, value=value):
                    found = self.value(value, known)
                    for target in targets:
                        _assign(target, found, known)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    _assign(target, self.value(value, known), known)
                case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                    left = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), target)
                    both = ast.copy_location(ast.BinOp(left=left, op=op, right=value), node)
                    known[name] = self.value(both, known)
                case ast.If(test=test, body=then, orelse=orelse):
                    truth = self.truth(test, known)
                    returns = any(isinstance(n, ast.Return) for n in ast.walk(node))
                    rest = body[i + 1 :] if returns or isinstance(truth, bool) else []
                    if isinstance(truth, bool):
                        return self.block([*(then if truth else orelse), *rest], known)
                    ways = dict(known), dict(known)
                    ends = [
                        self.block([*way, *rest], names)
                        for way, names in zip((then, orelse), ways, strict=True)
                    ]
                    if returns:
                        return _either(truth, ends[0], ends[1], node)
                    for name in ways[0].keys() & ways[1].keys():
                        a, b = ways[0][name], ways[1][name]
                        known[name] = a if a == b else _either(truth, a, b, node)
                case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Import() | ast.ImportFrom():
                    pass
                case _:
                    raise Unreadable(f"`{type(node).__name__.lower()}` is not read", node.lineno)
        return None

    def truth(self, node: ast.expr, known: Mapping[str, Any]) -> bool | Test:
        """A condition."""
        value = self.value(node, known)
        if isinstance(value, Ratio):
            return _compare(value, ast.NotEq(), Ratio("0", low=0, high=0), node)
        if isinstance(value, bool | Test):
            return value
        raise _unreadable(node)

    def value(self, node: ast.expr, known: Mapping[str, Any]) -> Any:
        """What an expression gives: a number, text, condition, tuple or dict."""
        match node:
            case ast.Constant(value=bool() | str() as value):
                return value if isinstance(value, bool) else Text(repr(value))
            case ast.Constant(value=int() | float() as value) if math.isfinite(value):
                return _constant(Fraction(str(value)), node)
            case ast.Name(id=name):
                if name not in known:
                    raise Unreadable(f"`{name}` is not known", node.lineno)
                return known[name]
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return tuple(self.value(part, known) for part in elts)
            case ast.Dict(keys=keys, values=values):
                if not all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys):
                    raise _unreadable(node)
                words = [str(key.value) for key in keys if isinstance(key, ast.Constant)]
                return {k: self.value(v, known) for k, v in zip(words, values, strict=True)}
            case ast.Subscript(value=inner, slice=ast.Constant(value=int() | str() as at)):
                return _item(self.value(inner, known), at, node)
            case ast.Call(func=ast.Attribute(value=inner, attr="get"), keywords=[]) if node.args:
                key = node.args[0]
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    return _item(self.value(inner, known), key.value, node)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self.value(left, known), self.value(right, known)
                if isinstance(a, Ratio) and isinstance(b, Ratio):
                    return _arithmetic(a, op, b, node)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                zero = Ratio("0", low=0, high=0)
                return _arithmetic(zero, ast.Sub(), self.value(operand, known), node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truth = self.truth(operand, known)
                return not truth if isinstance(truth, bool) else Test(f"(not {truth.text})")
            case ast.BoolOp(op=op, values=values):
                return _joined(op, [self.truth(part, known) for part in values], node)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                terms = [self.value(part, known) for part in (left, *rest)]
                pairs = zip(terms[:-1], ops, terms[1:], strict=True)
                return _joined(ast.And(), [_compare(a, op, b, node) for a, op, b in pairs], node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                truth = self.truth(test, known)
                if isinstance(truth, bool):
                    return self.value(body if truth else orelse, known)
                a, b = self.value(body, known), self.value(orelse, known)
                return a if a == b else _either(truth, a, b, node)
            case ast.Call(func=function, args=[_, *_] as args, keywords=[]):
                return _call(code_of(function), [self.value(a, known) for a in args], node)
        raise _unreadable(node)


def _unreadable(node: ast.expr) -> Unreadable:
    return Unreadable(f"`{code_of(node)}` is not read", node.lineno)


def _bounded(text: str, node: ast.expr | ast.If) -> str:
    """A text that is no longer than may be."""
    if len(text) > _MAX_TEXT:
        raise Unreadable(f"an expression of more than {_MAX_TEXT} characters", node.lineno)
    return text


def _assign(target: ast.expr, value: Any, known: dict[str, Any]) -> None:
    match target:
        case ast.Name(id=name):
            known[name] = value
        case ast.Tuple(elts=elts) if isinstance(value, tuple) and len(value) == len(elts):
            for part, item in zip(elts, value, strict=True):
                _assign(part, item, known)
        case _:
            raise _unreadable(target)


def _item(value: Any, at: int | str, node: ast.expr) -> Any:
    """value[at], or value.get(at, ...) of what is known of a device."""
    if isinstance(value, DeviceInfo):
        if at not in _DEVICE:
            known = ", ".join(_DEVICE)
            raise Unreadable(f"device_info has {known}, and no {at!r}", node.lineno)
        return _DEVICE[str(at)]
    if isinstance(value, tuple) and isinstance(at, int) and -len(value) <= at < len(value):
        return value[at]
    if isinstance(value, Mapping) and at in value:
        return value[at]
    raise _unreadable(node)


def _constant(value: Fraction, node: ast.expr) -> Ratio:
    if max(abs(value.numerator), value.denominator) >= 1 << 62:
        raise _unreadable(node)
    return Ratio(str(value.numerator), str(value.denominator), float(value), float(value))


def _made(num: str, den: str, bounds: Sequence[float], node: ast.expr | ast.If) -> Ratio:
    _bounded(num + den, node)
    clean = [bound for bound in bounds if not math.isnan(bound)]  # inf * 0 and the like
    sure = len(clean) == len(bounds)
    return Ratio(num, den, *((min(clean), max(clean)) if sure else (-math.inf, math.inf)))


def _times(a: str, b: str) -> str:
    if a.isdigit() and b.isdigit():
        return str(int(a) * int(b))
    return a if b == "1" else b if a == "1" else f"({a} * {b})"


def _over_one(a: Ratio, b: Ratio) -> tuple[str, str, str]:
    """Both numerators over one denominator."""
    if a.den == b.den:
        return a.num, b.num, a.den
    return _times(a.num, b.den), _times(b.num, a.den), _times(a.den, b.den)


def _arithmetic(a: Ratio, op: ast.operator, b: Ratio, node: ast.expr) -> Ratio:
    x, y = a.constant, b.constant
    if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and not b.low > 0:
        raise Unreadable(f"`{code_of(node)}` {_DIVIDED}", node.lineno)
    match op:
        case ast.Add() | ast.Sub():
            if x is not None and y is not None:
                return _constant(x + y if isinstance(op, ast.Add) else x - y, node)
            left, right, den = _over_one(a, b)
            if isinstance(op, ast.Add):
                return _made(f"({left} + {right})", den, (a.low + b.low, a.high + b.high), node)
            return _made(f"({left} - {right})", den, (a.low - b.high, a.high - b.low), node)
        case ast.Mult():
            if x is not None and y is not None:
                return _constant(x * y, node)
            ends = [p * q for p in (a.low, a.high) for q in (b.low, b.high)]
            return _made(_times(a.num, b.num), _times(a.den, b.den), ends, node)
        case ast.Div():
            if x is not None and y is not None:
                return _constant(x / y, node)
            ends = [p / q for p in (a.low, a.high) for q in (b.low, b.high)]
            return _made(_times(a.num, b.den), _times(a.den, b.num), ends, node)
        case ast.FloorDiv():
            return _floor(_arithmetic(a, ast.Div(), b, node), node)
        case ast.Mod() if a.den == b.den == "1":
            if x is not None and y is not None:
                return _constant(x % y, node)
            return _made(f"({a.num} % {b.num})", "1", (0, b.high), node)
    raise _unreadable(node)


def _floor(a: Ratio, node: ast.expr) -> Ratio:
    if a.den == "1":
        return a
    if a.constant is not None:
        return _constant(Fraction(math.floor(a.constant)), node)
    bounds = [math.floor(end) if math.isfinite(end) else end for end in (a.low, a.high)]
    return _made(f"({a.num} // {a.den})", "1", bounds, node)


def _call(name: str, args: list[Any], node: ast.expr) -> Any:
    numbers = [arg for arg in args if isinstance(arg, Ratio)]
    if len(numbers) == len(args):
        match name, numbers:
            case "float", [a]:
                return a
            case ("int", [a]) if a.low >= 0:  # int rounds towards 0
                return _floor(a, node)
            case "math.floor", [a]:
                return _floor(a, node)
            case "math.ceil", [a]:
                zero = Ratio("0", low=0, high=0)
                down = _floor(_arithmetic(zero, ast.Sub(), a, node), node)
                return _arithmetic(zero, ast.Sub(), down, node)
            case "min" | "max", [first, *rest]:
                found = first
                for other in rest:
                    found = _extreme(name, found, other, node)
                return found
    raise _unreadable(node)


def _extreme(name: str, a: Ratio, b: Ratio, node: ast.expr) -> Ratio:
    """min or max of two."""
    first = _compare(a, ast.LtE() if name == "min" else ast.GtE(), b, node)
    if isinstance(first, bool):
        return a if first else b
    pick = min if name == "min" else max
    bounds = pick(a.low, b.low), pick(a.high, b.high)
    left, right, den = _over_one(a, b)
    return _made(f"{name}({left}, {right})", den, bounds, node)


def _compare(a: Any, op: ast.cmpop, b: Any, node: ast.expr) -> bool | Test:
    if isinstance(a, Ratio) and isinstance(b, Ratio) and type(op) in _COMPARE:
        match op:  # what the bounds decide
            case ast.Lt() | ast.LtE():
                below = a.high < b.low or (isinstance(op, ast.LtE) and a.high <= b.low)
                above = a.low > b.high or (isinstance(op, ast.Lt) and a.low >= b.high)
                if below or above:
                    return below
            case ast.Gt() | ast.GtE():
                return _compare(b, ast.Lt() if isinstance(op, ast.Gt) else ast.LtE(), a, node)
            case _:
                equal = isinstance(op, ast.Eq)
                if a == b or (a.constant is not None and a.constant == b.constant):
                    return equal
                if a.high < b.low or a.low > b.high:
                    return not equal
        left, right, _ = _over_one(a, b)
        return Test(_bounded(f"({left} {_COMPARE[type(op)]} {right})", node))
    words = isinstance(a, Text) and isinstance(b, Text)
    if words and isinstance(op, ast.In | ast.NotIn | ast.Eq | ast.NotEq):
        word = {ast.In: "in", ast.NotIn: "not in"}.get(type(op)) or _COMPARE[type(op)]
        return Test(_bounded(f"({a.text} {word} {b.text})", node))
    raise _unreadable(node)


def _joined(op: ast.boolop, parts: Sequence[bool | Test], node: ast.expr) -> bool | Test:
    is_or = isinstance(op, ast.Or)
    if any(part is is_or for part in parts):
        return is_or
    texts = [part.text for part in parts if isinstance(part, Test)]
    if not texts:
        return not is_or
    text = (" or " if is_or else " and ").join(texts)
    return Test(_bounded(text if len(texts) == 1 else f"({text})", node))


def _either(test: Test, a: Any, b: Any, node: ast.expr | ast.If) -> Any:
    """`a if test else b`."""
    match a, b:
        case Ratio(), Ratio():
            left, right, den = _over_one(a, b)
            bounds = min(a.low, b.low), max(a.high, b.high)
            num = left if left == right else f"({left} if {test.text} else {right})"
            return _made(num, den, bounds, node)
        case Text(), Text():
            return Text(_bounded(f"({a.text} if {test.text} else {b.text})", node))
        case (bool() | Test(), bool() | Test()):
            left, right = (part.text if isinstance(part, Test) else str(part) for part in (a, b))
            return Test(_bounded(f"({left} if {test.text} else {right})", node))
        case tuple(), tuple() if len(a) == len(b):
            pairs = zip(a, b, strict=True)
            return tuple(x if x == y else _either(test, x, y, node) for x, y in pairs)
        case dict(), dict() if a.keys() == b.keys():
            return {k: a[k] if a[k] == b[k] else _either(test, a[k], b[k], node) for k in a}
    word = "return" if a is None or b is None else "give"
    raise Unreadable(f"the branches on `{test.text[:60]}` {word} different kinds", node.lineno)
