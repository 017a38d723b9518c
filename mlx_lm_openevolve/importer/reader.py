"""Symbols: follows a Python function that launches Metal kernels, without running it.

Values are launch expressions over the workload (Number), arrays as the caller passed them (Array),
numbers handed over as arrays (Scalar), kernels, strings, tuples, or Unknown with the reason why.
An Unknown is no error until a launch needs it.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .symbols import (
    Array,
    Dtype,
    KernelMade,
    Launched,
    Number,
    Scalar,
    Unknown,
    Unreadable,
    are_numbers,
    is_a,
    is_launch,
    launches_kernel,
    makes,
    makes_kernel,
    number_of,
    opaque,
    truth_of,
    tuple_of,
    unknown,
    why,
)

__all__ = ["MASK_KINDS", "Reader"]

MASK_KINDS = ("none", "causal", "bool", "additive")

# Names under which programs hand over the family's inputs.
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
_DTYPES = ("float16", "bfloat16", "float32")
_OTHER_DTYPES = ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.FloorDiv: "//", ast.Mod: "%"}
_COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_MAX_STEPS = 100_000


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class _Raise(Exception):
    """The path ends in `raise`: it is not taken."""


@dataclass
class Reader:
    """Follows a module for one kind of mask. `launches` fills as kernels are called."""

    mask: str
    launches: list[Launched] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    problem: Unreadable | None = None

    def read(self, tree: ast.Module) -> Any:
        """What the attention function returns. Raises Unreadable."""
        functions: list[ast.FunctionDef] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef) and launches_kernel(node):
                raise Unreadable("an async function launches the kernel", node.lineno)
            if isinstance(node, ast.FunctionDef):
                functions.append(node)
        made = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and makes_kernel(n)]
        if not made:
            raise Unreadable("no mx.fast.metal_kernel(...) in it", 0)
        self._quietly([n for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign)])
        for function in functions:
            if function.name == "__init__":
                self._quietly(function.body)
        entry = next((f for f in functions if launches_kernel(f)), None)
        if entry is None:
            raise Unreadable("no function launches the kernel with inputs=...", made[0].lineno)
        self._bind(entry.args)
        try:
            self._block(entry.body)
        except _Return as done:
            return done.value
        except _Raise:
            raise Unreadable(f"{entry.name} raises for mask {self.mask!r}", entry.lineno) from None
        return None

    def _quietly(self, body: Sequence[ast.stmt]) -> None:
        """Follow statements for the names they bind; launches there do not count."""
        for statement in body:
            try:
                self._statement(statement)
            except Unreadable as problem:  # of importance only if nothing is launched in the end
                self.problem = self.problem or problem
            except (_Return, _Raise):
                continue
        self.launches.clear()

    def _bind(self, args: ast.arguments) -> None:
        for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs):
            role = _ROLE_OF.get(arg.arg)
            if arg.arg == "self":
                continue
            if role == "mask":
                masks = {"none": None, "causal": "causal"}
                self.names[arg.arg] = masks.get(self.mask, Array("mask"))
            elif role == "scale":
                self.names[arg.arg] = Unknown("the scale is a number; hand it over as an array")
                self._scale = arg.arg
            elif role:
                self.names[arg.arg] = Array(role)
            else:
                self.names[arg.arg] = Unknown(f"argument {arg.arg} is none of the family's inputs")

    _scale = ""

    # Statements

    def _block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise Unreadable("too long to follow", node.lineno)
        match node:
            case ast.Assign(targets=targets, value=value):
                found = self._value(value)
                for target in targets:
                    self._assign(target, found)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, self._value(value))
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                left = ast.copy_location(ast.Name(id=name, ctx=ast.Load()), target)
                both = ast.copy_location(ast.BinOp(left=left, op=op, right=value), node)
                self._assign(target, self._value(both))
            case ast.Return(value=value):
                raise _Return(None if value is None else self._value(value))
            case ast.Raise():
                raise _Raise
            case ast.Expr(value=value):
                self._value(value)
            case ast.If(test=test, body=body, orelse=orelse):
                self._if(node, test, body, orelse)
            case ast.Try(body=body, finalbody=final):
                self._block([*body, *final])
            case ast.With(body=body):
                self._block(body)
            case ast.For() | ast.While():
                word = "for" if isinstance(node, ast.For) else "while"
                if any(is_launch(n) or makes(n) for n in ast.walk(node)):
                    raise Unreadable(f"the kernel is made or launched inside `{word}`", node.lineno)
                self._forget(node, f"set inside `{word}` on line {node.lineno}")
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                self.names[name] = Unknown(f"{name} is defined on line {node.lineno}")
            case _:
                pass

    def _if(
        self, node: ast.If, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]
    ) -> None:
        taken = truth_of(self._value(test))
        if taken is not None:
            self._block(body if taken else orelse)
            return
        before, ends = dict(self.names), []
        for branch in (body, orelse):
            self.names = dict(before)
            count = len(self.launches)
            try:
                self._block(branch)
                ends.append(self.names)
            except _Raise:
                pass
            except _Return as done:
                if len(self.launches) > count or isinstance(done.value, Array):
                    raise Unreadable(
                        f"the kernel is launched under an `if` on {ast.unparse(test)[:60]}",
                        node.lineno,
                    ) from None
            if len(self.launches) > count:
                raise Unreadable(
                    f"the kernel is launched under an `if` on {ast.unparse(test)[:60]}", node.lineno
                )
        if not ends:
            raise _Raise
        reason = f"set differently by the branches of `if` on line {node.lineno}"
        first = ends[0]
        self.names = {
            name: value
            if all(name in end and end[name] == value for end in ends)
            else Unknown(f"`{name}` is {reason}")
            for name, value in {**ends[-1], **first}.items()
        }

    def _forget(self, node: ast.stmt, reason: str) -> None:
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                self.names[child.id] = Unknown(f"`{child.id}` is {reason}")

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self.names[name] = value
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self.names[f"self.{name}"] = value
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                parts = value if isinstance(value, tuple) and len(value) == len(elts) else None
                for i, part in enumerate(elts):
                    self._assign(part, parts[i] if parts else unknown(value, "unpacked"))

    # Expressions

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() as value):
                return Number(str(value), truth=isinstance(value, bool))
            case ast.Constant(value=None | str() as value):
                return value
            case ast.Name(id=name):
                return self.names.get(name, Unknown(f"`{name}` is not known"))
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return tuple(self._value(part) for part in elts)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Subscript(value=value, slice=index):
                return self._subscript(node, self._value(value), index)
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, self._value(left), op, self._value(right))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truth = truth_of(self._value(operand))
                return opaque(node) if truth is None else Number(str(not truth), truth=True)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self._value(operand)
                known = isinstance(value, Number)
                return Number(f"-{value.text}", value.exact) if known else opaque(node)
            case ast.BoolOp(op=op, values=values):
                truths = [truth_of(self._value(part)) for part in values]
                stop = isinstance(op, ast.Or)
                if stop in truths:
                    return Number(str(stop), truth=True)
                return opaque(node) if None in truths else Number(str(not stop), truth=True)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._compare(node, self._value(left), op, self._value(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._choice(node, self._value(test), body, orelse)
            case ast.Call():
                return self._call(node)
            case ast.JoinedStr():
                return Unknown(f"an f-string on line {node.lineno}")
            case _:
                return opaque(node)

    def _attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.names.get(f"self.{node.attr}", Unknown(f"self.{node.attr} is not known"))
        if isinstance(node.value, ast.Name) and node.value.id in ("mx", "mlx"):
            if node.attr in _DTYPES or node.attr in _OTHER_DTYPES:
                return Dtype(node.attr)
            return opaque(node)
        value = self._value(node.value)
        if isinstance(value, Array) and value.name in _SHAPES:
            if node.attr == "shape":
                return tuple(Number(n, exact=n == "kv_len") for n in _SHAPES[value.name])
            if node.attr == "dtype":
                return Dtype("dtype")
            if node.attr == "ndim":
                return Number("4")
        return opaque(node)

    def _subscript(self, node: ast.Subscript, value: Any, index: ast.expr) -> Any:
        at = self._value(index)
        if isinstance(value, tuple) and isinstance(at, Number) and at.known is not None:
            i = int(at.text)
            return value[i] if -len(value) <= i < len(value) else opaque(node)
        if value == Array("mask") and set(ast.unparse(index)) <= set("None:., ()"):
            return value  # new axes for a broadcast, which the family does itself
        return unknown(value, f"subscripted on line {node.lineno}")

    def _binary(self, node: ast.BinOp, left: Any, op: ast.operator, right: Any) -> Any:
        if isinstance(left, str) and isinstance(right, str) and isinstance(op, ast.Add):
            return left + right
        if isinstance(left, Number) and isinstance(right, Number) and type(op) in _OPERATORS:
            exact = left.exact or right.exact
            return Number(f"({left.text} {_OPERATORS[type(op)]} {right.text})", exact)
        return unknown(left, "") if isinstance(left, Unknown) else opaque(node)

    def _compare(self, node: ast.Compare, left: Any, op: ast.cmpop, right: Any) -> Any:
        plain = (type(None), str, Array)
        if isinstance(left, plain) and isinstance(right, plain):
            same = type(left) is type(right) and left == right
            if isinstance(op, ast.Eq | ast.Is | ast.NotEq | ast.IsNot):
                return Number(str(same == isinstance(op, ast.Eq | ast.Is)), truth=True)
        if isinstance(left, Number) and isinstance(right, Number) and type(op) in _COMPARE:
            if left.known is not None and left.text == right.text and isinstance(op, ast.Eq):
                return Number("True", truth=True)
            text = f"({left.text} {_COMPARE[type(op)]} {right.text})"
            return Number(text, left.exact or right.exact, truth=True)
        return opaque(node)

    def _choice(self, node: ast.IfExp, test: Any, body: ast.expr, orelse: ast.expr) -> Any:
        taken = truth_of(test)
        if taken is not None:
            return self._value(body if taken else orelse)
        a, b = self._value(body), self._value(orelse)
        if all(isinstance(x, Number) for x in (test, a, b)):
            text = f"({a.text} if {test.text} else {b.text})"
            return Number(text, a.exact or b.exact or test.exact)
        return a if a == b else opaque(node)

    # Calls

    def _call(self, node: ast.Call) -> Any:
        if makes_kernel(node):
            return self._make(node)
        made = self._value(node.func) if not isinstance(node.func, ast.Call) else None
        if isinstance(node.func, ast.Call):
            made = self._value(node.func)
        if isinstance(made, KernelMade):
            return self._launch(node, made)
        name = ast.unparse(node.func)
        args = [self._value(arg) for arg in node.args if not isinstance(arg, ast.Starred)]
        if name in ("min", "max", "abs", "int", "bool") and args and are_numbers(args):
            exact = any(arg.exact for arg in args)
            text = ", ".join(arg.text for arg in args)
            return args[0] if name in ("int", "bool") else Number(f"{name}({text})", exact)
        if name == "math.ceil" and isinstance(node.args[0], ast.BinOp):
            quotient = node.args[0]
            parts = [self._value(quotient.left), self._value(quotient.right)]
            if isinstance(quotient.op, ast.Div) and are_numbers(parts):
                exact = any(part.exact for part in parts)
                return Number(f"ceil_div({parts[0].text}, {parts[1].text})", exact)
        if name == "isinstance" and len(args) == 2 and isinstance(args[0], None | str | Array):
            return Number(str(is_a(args[0], ast.unparse(node.args[1]))), truth=True)
        if name == "len" and args and isinstance(args[0], tuple):
            return Number(str(len(args[0])))
        if name == "mx.array" and node.args:
            return self._array(node)
        if name in ("mx.contiguous", "mx.broadcast_to", "mx.expand_dims", "mx.stop_gradient"):
            kept = args and isinstance(args[0], Array)
            if kept and (name in ("mx.contiguous", "mx.stop_gradient") or args[0].name == "mask"):
                return args[0]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "astype" and args:
            return self._astype(node, self._value(node.func.value), args[0])
        return Unknown(f"computed by {name}(...) on line {node.lineno}")

    def _array(self, node: ast.Call) -> Any:
        """mx.array of one number: the scale, or a scalar that becomes a template argument."""
        inner, shaped = node.args[0], False
        if isinstance(inner, ast.List | ast.Tuple) and len(inner.elts) == 1:
            inner, shaped = inner.elts[0], True
        if isinstance(inner, ast.Name) and inner.id == self._scale:
            dtype = [self._value(k.value) for k in node.keywords if k.arg == "dtype"]
            return Array("scale", shaped, dtype == [Dtype("dtype")])
        value = self._value(inner)
        if isinstance(value, Number):
            return Scalar(value)
        return Unknown(f"an array made from {ast.unparse(inner)[:60]} on line {node.lineno}")

    def _astype(self, node: ast.Call, value: Any, dtype: Any) -> Any:
        same = {"bool": "bool_"}.get(self.mask, "dtype")
        if isinstance(value, Array) and isinstance(dtype, Dtype):
            if value.name == "mask" and dtype.name == same:
                return value
            if value.name in _SHAPES and dtype.name == "dtype":
                return value
            return Unknown(f"{value.name} is converted by astype on line {node.lineno}")
        return opaque(node)

    def _make(self, node: ast.Call) -> KernelMade:
        given = self._keywords(node)
        for name in ("name", "input_names", "output_names", "source"):
            if name not in given:
                raise Unreadable(f"metal_kernel without {name}=", node.lineno)
        for name in ("name", "source"):
            if not isinstance(given[name], str):
                raise Unreadable(f"metal_kernel: {name}: {why(given[name])}", node.lineno)
        if given.get("header", "") != "":
            raise Unreadable("metal_kernel: a header= is not carried", node.lineno)
        lists = []
        for name in ("input_names", "output_names"):
            value = given[name]
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise Unreadable(f"metal_kernel: {name}: not a list of constants", node.lineno)
            lists.append(value)
        return KernelMade(given["name"], lists[0], lists[1], given["source"])

    def _launch(self, node: ast.Call, kernel: KernelMade) -> Any:
        line, given = node.lineno, self._keywords(node)
        for name in ("inputs", "grid", "threadgroup", "output_shapes", "output_dtypes"):
            if not isinstance(given.get(name), tuple):
                reason = why(given[name]) if name in given else "missing"
                raise Unreadable(f"launch: {name}: {reason}", line)
        if given.get("init_value") is not None:
            raise Unreadable("launch: init_value is not carried: write every element", line)
        template: list[tuple[str, Number | str]] = []
        for item in given.get("template", ()):
            if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
                raise Unreadable(f"launch: template: {why(item)}", line)
            name, value = item
            if isinstance(value, Dtype) and value.name in ("dtype", *_DTYPES):
                template.append((name, value.name))
            else:
                template.append((name, number_of(value, f"template argument {name}", line)))
        shapes = [
            tuple(
                number_of(n, "output_shapes", line) for n in tuple_of(shape, "output_shapes", line)
            )
            for shape in given["output_shapes"]
        ]
        dtypes = [
            dtype.name if isinstance(dtype, Dtype) else "" for dtype in given["output_dtypes"]
        ]
        if not all(dtype in ("dtype", *_DTYPES) for dtype in dtypes):
            raise Unreadable("launch: output_dtypes: not a float dtype that is known", line)
        sizes = {len(kernel.outputs), len(shapes), len(dtypes)}
        if len(sizes) != 1 or len(kernel.inputs) != len(given["inputs"]):
            raise Unreadable("launch: as many inputs and outputs as names are needed", line)
        taken = {name for launch in self.launches for name in launch.outputs}
        outputs = tuple(
            name if name not in taken else f"{name}{len(self.launches)}" for name in kernel.outputs
        )
        self.launches.append(
            Launched(
                kernel=kernel,
                inputs=given["inputs"],
                outputs=outputs,
                shapes=tuple(shapes),
                dtypes=tuple(dtypes),
                template=tuple(template),
                grid=tuple(number_of(n, "grid", line) for n in given["grid"]),
                threadgroup=tuple(number_of(n, "threadgroup", line) for n in given["threadgroup"]),
                line=line,
            )
        )
        return tuple(Array(name) for name in outputs)

    def _keywords(self, node: ast.Call) -> dict[str, Any]:
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise Unreadable("only keyword arguments are read, without * or **", node.lineno)
        return {str(keyword.arg): self._value(keyword.value) for keyword in node.keywords}
