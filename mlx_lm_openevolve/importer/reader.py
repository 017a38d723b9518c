"""Reader: follows the function that launches a program's kernels, statement by statement.

A branch whose test is known is taken or not; the branches of one that is not known are both
followed, and what they set differently is Unknown afterwards. Loops are not followed.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .expressions import Expressions
from .launches import Launched, launches_kernel, makes_kernel
from .values import Array, Dtype, Number, Scale, Unknown, Unreadable, code_of, truth_of

__all__ = ["MASK_KINDS", "EvolvedProgram", "read", "scan"]

MASK_KINDS = ("none", "causal", "bool", "additive")

# Names under which programs hand over the family's inputs, and the shapes that these have.
_ROLES = {
    "queries": ("queries", "query", "q"),
    "keys": ("keys", "key", "k"),
    "values": ("values", "value", "v"),
    "scale": ("scale", "sm_scale", "softmax_scale"),
    "mask": ("mask", "attention_mask", "attn_mask"),
    "sinks": ("sinks", "sink"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_SHAPES = {
    "queries": ("batch", "q_heads", "q_len", "head_dim"),
    "keys": ("batch", "kv_heads", "kv_len", "head_dim"),
    "values": ("batch", "kv_heads", "kv_len", "v_head_dim"),
}


@dataclass(frozen=True)
class EvolvedProgram:
    """The parts of a program that are followed: the module's assignments, its constructors, and
    the function that launches."""

    assignments: list[ast.stmt]
    constructors: list[ast.FunctionDef]
    entry: ast.FunctionDef


def scan(tree: ast.Module) -> EvolvedProgram:
    """Find the parts of a program. Raises Unreadable where no kernel is made or launched."""
    functions: dict[ast.AST, ast.AST | None] = {}  # each with the one that it stands in
    launching: set[ast.AST] = set()
    made = None
    queue: deque[tuple[ast.AST, ast.AST | None]] = deque([(tree, None)])
    while queue:  # breadth first: of nested functions the outermost is the one that is called
        node, inside = queue.popleft()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions[node] = inside
            inside = node
        if makes_kernel(node):
            made = made or node
        holder = inside if launches_kernel(node) else None
        while holder is not None and holder not in launching:
            launching.add(holder)
            holder = functions[holder]
        queue.extend((child, inside) for child in ast.iter_child_nodes(node))
    for function in functions:
        if isinstance(function, ast.AsyncFunctionDef) and function in launching:
            raise Unreadable("an async function launches the kernel", function.lineno)
    if made is None:
        raise Unreadable("no mx.fast.metal_kernel(...) in it", 0)
    plain = [function for function in functions if isinstance(function, ast.FunctionDef)]
    entry = next((function for function in plain if function in launching), None)
    if entry is None:
        line = getattr(made, "lineno", 0)
        raise Unreadable("no function launches the kernel with inputs=...", line)
    return EvolvedProgram(
        [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)],
        [function for function in plain if function.name == "__init__"],
        entry,
    )


def read(program: EvolvedProgram, mask: str) -> tuple[str, list[Launched]]:
    """The output that the function returns for one kind of mask, of the last launch, and what it
    launches. Raises Unreadable."""
    statements = _Statements()
    statements.prepare(program.assignments)
    for function in program.constructors:
        statements.prepare(function.body)
    args = program.entry.args
    for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs):
        statements.bind(arg.arg, mask)
    result = None
    try:
        statements.block(program.entry.body)
    except _Return as done:
        result = done.value
    except _Raise:
        name, line = program.entry.name, program.entry.lineno
        raise Unreadable(f"{name} raises for mask {mask!r}", line) from None
    launches = statements.launches
    if not launches:
        reason = "nothing is launched: no call of a kernel made by metal_kernel"
        raise statements.problem or Unreadable(reason, 0)
    if not isinstance(result, Array) or result.name not in launches[-1].outputs:
        reason = "the function does not return an output of its last launch unchanged"
        raise statements.problem or Unreadable(reason, launches[-1].line)
    return result.name, launches


class _Return(Exception):
    """The path ends in `return`."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Raise(Exception):
    """The path ends in `raise`: it is not taken."""


class _Statements(Expressions):
    """Follows statements, for the names that they set and the launches in them."""

    problem: Unreadable | None = None  # matters only where the end is not a launch

    def prepare(self, body: Sequence[ast.stmt]) -> None:
        """Follow statements for the names they set; launches there do not count."""
        for statement in body:
            try:
                self._statement(statement)
            except Unreadable as problem:
                self.problem = self.problem or problem
                self._forget(statement, f"not read: {problem}")
            except (_Return, _Raise):
                continue
        self.launches.clear()

    def bind(self, name: str, mask: str) -> None:
        """Set an argument of the function to the input that its name tells."""
        role = _ROLE_OF.get(name)
        value: Any = Unknown(f"argument {name} is none of the family's inputs")
        if role == "mask":
            dtype = Dtype("bool_" if mask == "bool" else "dtype")
            value = {"none": None, "causal": "causal"}.get(mask, Array("mask", dtype=dtype))
        elif role == "scale":
            value = Scale()
        elif role == "sinks":
            value = Array("sinks")
        elif role is not None:
            shape = tuple(Number(field, exact=field == "kv_len") for field in _SHAPES[role])
            value = Array(role, shape, Dtype("dtype"))
        self.scopes[-1][name] = value

    def block(self, body: Sequence[ast.stmt]) -> None:
        """Follow statements. Raises Unreadable, _Return and _Raise."""
        for statement in body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                found = self.value(value)
                for target in targets:
                    self._assign(target, found)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, self.value(value))
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                left = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), target)
                both = ast.copy_location(ast.BinOp(left=left, op=op, right=value), node)
                self._assign(target, self.value(both))
            case ast.Return(value=value):
                raise _Return(None if value is None else self.value(value))
            case ast.Raise():
                raise _Raise
            case ast.Expr(value=value):
                self.value(value)
            case ast.If(test=test, body=body, orelse=orelse):
                self._if(node, test, body, orelse)
            case ast.Try(body=body, orelse=orelse, finalbody=final):
                self.block([*body, *orelse, *final])
            case ast.With(items=items, body=body):
                for item in items:
                    self._forget(item, f"set by `with` on line {node.lineno}")
                self.block(body)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                reason = f"{node.name} is defined on line {node.lineno}"
                self.scopes[-1][node.name] = Unknown(reason)
            case ast.AnnAssign(value=None):
                pass
            case _:  # loops, and what sets nothing
                word = type(node).__name__.lower()
                if any(launches_kernel(n) or makes_kernel(n) for n in ast.walk(node)):
                    raise Unreadable(f"the kernel is made or launched inside `{word}`", node.lineno)
                self._forget(node, f"set inside `{word}` on line {node.lineno}")

    def _if(
        self, node: ast.If, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]
    ) -> None:
        taken = truth_of(self.value(test))
        if taken is not None:
            self.block(body if taken else orelse)
            return
        ends = [end for branch in (body, orelse) if (end := self._branch(node, branch)) is not None]
        if not ends:
            raise _Raise
        reason = f"set differently by the branches of `if` on line {node.lineno}"
        for name in {name for end in ends for name in end}:
            found = [end[name] if name in end else self.named(name) for end in ends]
            same = all(value == found[0] for value in found)
            self.scopes[-1][name] = found[0] if same else Unknown(f"`{name}` is {reason}")

    def _branch(self, node: ast.If, body: Sequence[ast.stmt]) -> dict[str, Any] | None:
        """What a branch sets; None where it does not go on. Raises Unreadable where it launches."""
        count, returned = len(self.launches), None
        self.scopes.append({})
        ended = True
        try:
            self.block(body)
            ended = False
        except _Raise:
            pass
        except _Return as done:
            returned = done.value
        finally:
            found = self.scopes.pop()
        if len(self.launches) > count or isinstance(returned, Array):
            code = code_of(node.test)
            raise Unreadable(f"the kernel is launched under an `if` on {code}", node.lineno)
        return None if ended else found

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self.scopes[-1][name] = value
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self.scopes[-1][f"self.{name}"] = value
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                parts = value if isinstance(value, tuple) and len(value) == len(elts) else None
                rest = value if isinstance(value, Unknown) else Unknown("unpacked")
                for i, part in enumerate(elts):
                    self._assign(part, parts[i] if parts else rest)

    def _forget(self, node: ast.AST, reason: str) -> None:
        """Make everything unknown that a statement sets."""
        for child in ast.walk(node):
            match child:
                case (
                    ast.Name(id=name, ctx=ast.Store() | ast.Del())
                    | ast.alias(asname=str(name))
                    | ast.MatchAs(name=str(name))
                    | ast.MatchStar(name=str(name))
                    | ast.MatchMapping(rest=str(name))
                ):
                    pass
                case ast.Attribute(value=ast.Name(id="self"), attr=attr, ctx=ast.Store()):
                    name = f"self.{attr}"
                case _:
                    continue
            self.scopes[-1][name] = Unknown(f"`{name}` is {reason}")
