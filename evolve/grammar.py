"""Moves on the default expressions of a kernel's params, without a model.

    expressions, one a param --move--> others that differ in one thing

What an expression is made of follows from the shapes at hand: names whose values differ among them,
thresholds that these values have, and the values that the params took where they ran. A field that
is the same everywhere, such as a fact of the only device, says nothing and is left out; so is one
that is equal to another everywhere.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Sequence

from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.kernels.expressions import Expression
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.base import Value

from .points import Setting, Shape

__all__ = ["MAX_NODES", "Defaults", "Grammar", "nodes"]

MAX_NODES = 48  # of one expression
Defaults = tuple[str, ...]  # texts of default expressions, in the order of the kernel's params

_OPERATORS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)


def nodes(text: str) -> int:
    """The size of an expression: its constants, names and operations."""
    return sum(isinstance(node, ast.expr) for node in ast.walk(ast.parse(text, mode="eval")))


class Grammar:
    """The moves for a kernel over some shapes. Everything drawn comes from `rng`."""

    def __init__(self, kernel: Kernel, shapes: Sequence[Shape], rng: random.Random) -> None:
        self._shapes, self._rng = shapes, rng
        used = frozenset[str]().union(*(param.default.used for param in kernel.params))
        columns: dict[tuple[Value, ...], str] = {}
        for name in sorted(shapes[0].values, key=lambda name: (name not in used, name)):
            columns.setdefault(tuple(shape.values[name] for shape in shapes), name)
        differing = {name: column for column, name in columns.items() if len(set(column)) > 1}
        self._numbers = [n for n, column in differing.items() if type(column[0]) is int]
        self._words = {
            name: sorted(set(map(str, column)))
            for name, column in differing.items()
            if isinstance(column[0], str)
        }
        self._settings = sorted({setting for shape in shapes for setting in shape.ran})
        self._moves: list[Callable[[Defaults], Defaults]] = [self._branch, self._edit, self._edit]

    def move(self, defaults: Defaults, other: Defaults) -> Defaults:
        """Defaults that differ in one thing, or that have some of another's expressions. May be too
        long, or choose what no param has: whoever scores them sees that."""
        if defaults != other and self._rng.random() < 0.2:
            return tuple(self._rng.choice(pair) for pair in zip(defaults, other, strict=True))
        return self._rng.choice(self._moves)(defaults)

    def _branch(self, defaults: Defaults) -> Defaults:
        """One setting that ran somewhere, under one condition, in every param that it changes."""
        drawn: Setting = self._rng.choice(self._settings)
        setting = self._rng.choice([self._rng.choice(self._shapes).best(), drawn])
        test = ast.unparse(self._test())
        return tuple(
            text if text == str(value) else f"{value} if {test} else {text}"
            for text, value in zip(defaults, setting, strict=True)
        )

    def _edit(self, defaults: Defaults) -> Defaults:
        """One node of one expression."""
        at = self._rng.randrange(len(defaults))
        holder = ast.parse(defaults[at], mode="eval")
        places = list(_places(holder))
        node, kind, put = self._rng.choice(places)
        values = sorted({setting[at] for setting in self._settings})
        put(self._changed(node, kind, values))
        return (*defaults[:at], ast.unparse(holder), *defaults[at + 1 :])

    def _changed(self, node: ast.expr, kind: str, values: Sequence[int]) -> ast.expr:
        rng = self._rng
        if kind == "value":
            constant = ast.Constant(rng.choice(values))
            if isinstance(node, ast.IfExp):
                swapped = ast.IfExp(node.test, node.orelse, node.body)
                return rng.choice([node.body, node.orelse, swapped, constant])
            return rng.choice([constant, ast.IfExp(self._test(), constant, node)])
        if kind == "test":
            joined = ast.BoolOp(rng.choice([ast.And(), ast.Or()]), [node, self._test()])
            options: list[ast.expr] = [self._test(), joined]
            if isinstance(node, ast.BoolOp):
                options += node.values
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                options.append(ast.Compare(node.left, [rng.choice(_OPERATORS)()], node.comparators))
            return rng.choice(options)
        if isinstance(node, ast.Constant) and type(node.value) is int:
            near = [node.value * 2, node.value // 2, node.value + 1, max(0, node.value - 1)]
            return ast.Constant(rng.choice(near))
        return self._term()

    def _test(self) -> ast.expr:
        """A condition: a term against one of its own values at these shapes, or against another
        term; or a word."""
        rng = self._rng
        if self._words and (not self._numbers or rng.random() < 0.2):
            name = rng.choice(sorted(self._words))
            return _compared(ast.Name(name), ast.Eq(), ast.Constant(rng.choice(self._words[name])))
        left, op = self._term(), rng.choice(_OPERATORS[:4])()
        if rng.random() < 0.2:
            return _compared(left, op, self._term())
        values = rng.choice(self._shapes).values
        at = Expression(ast.unparse(left), frozenset(values), "grammar")
        try:
            bound = at.integer(values)
        except KernelError:  # too large
            bound = 1
        return _compared(left, op, ast.Constant(bound))

    def _term(self) -> ast.expr:
        rng = self._rng
        if not self._numbers:  # a condition on numbers that are the same everywhere
            return ast.Constant(1)
        if len(self._numbers) == 1 or rng.random() < 0.7:
            return ast.Name(rng.choice(self._numbers))
        left, right = rng.sample(self._numbers, 2)
        return ast.BinOp(ast.Name(left), rng.choice([ast.Mult(), ast.FloorDiv()]), ast.Name(right))


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> ast.Compare:
    return ast.Compare(left, [op], [right])


Place = tuple[ast.expr, str, Callable[[ast.expr], None]]


def _places(holder: ast.Expression) -> list[Place]:
    """The nodes of an expression that may be replaced, each with what it is ("value" of the param,
    "test" or "term") and how to put another in its place."""
    found: list[Place] = []

    def visit(parent: ast.AST, field: str, index: int | None, kind: str) -> None:
        held = getattr(parent, field)
        node: ast.expr = held if index is None else held[index]

        def put(new: ast.expr) -> None:
            if index is None:
                setattr(parent, field, new)
            else:
                held[index] = new

        found.append((node, kind, put))
        match node:
            case ast.IfExp():
                visit(node, "test", None, "test")
                visit(node, "body", None, kind)
                visit(node, "orelse", None, kind)
            case ast.BoolOp():
                for i in range(len(node.values)):
                    visit(node, "values", i, "test")
            case ast.UnaryOp(op=ast.Not()):
                visit(node, "operand", None, "test")
            case ast.Compare(comparators=[right]) if not isinstance(right, ast.Tuple):
                visit(node, "left", None, "term")
                visit(node, "comparators", 0, "term")
            case ast.BinOp():
                visit(node, "left", None, "term")
                visit(node, "right", None, "term")
            case ast.Call():
                for i in range(len(node.args)):
                    visit(node, "args", i, "term")

    visit(holder, "body", None, "value")
    return found
