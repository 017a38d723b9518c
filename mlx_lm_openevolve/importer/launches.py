"""Kernels that a program makes and launches, from the keywords of those two calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .values import Dtype, Number, Unreadable, why

FLOATS = ("float16", "bfloat16", "float32")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class MadeKernel:
    """What mx.fast.metal_kernel was given."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Launched:
    """One launch: values of its inputs, names of its outputs, and its launch expressions."""

    kernel: MadeKernel
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[Number, ...], ...]
    dtypes: tuple[str, ...]
    template: tuple[tuple[str, Number | str], ...]
    grid: tuple[Number, ...]
    threadgroup: tuple[Number, ...]
    line: int


def makes_kernel(node: ast.AST) -> bool:
    """Whether a node is a call of metal_kernel."""
    if not isinstance(node, ast.Call):
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr == "metal_kernel"


def launches_kernel(node: ast.AST) -> bool:
    """Whether a node is a call with the keywords of a launch."""
    return isinstance(node, ast.Call) and "output_shapes" in {k.arg for k in node.keywords}


def made(given: Mapping[str, Any], line: int) -> MadeKernel:
    """The kernel that metal_kernel makes of these keywords. Raises Unreadable."""
    for name in ("name", "input_names", "output_names", "source"):
        if name not in given:
            raise Unreadable(f"metal_kernel without {name}=", line)
    for name in ("name", "source"):
        if not isinstance(given[name], str):
            raise Unreadable(f"metal_kernel: {name}: {why(given[name])}", line)
    for name in ("input_names", "output_names"):
        value = given[name]
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise Unreadable(f"metal_kernel: {name}: not a list of constants", line)
        for item in value:
            if not _NAME.fullmatch(item):
                raise Unreadable(f"metal_kernel: {name}: {item[:60]!r} is no name", line)
    if given.get("header", "") != "":
        raise Unreadable("metal_kernel: a header= is not carried", line)
    return MadeKernel(given["name"], given["input_names"], given["output_names"], given["source"])


def launched(
    kernel: MadeKernel, given: Mapping[str, Any], earlier: list[Launched], line: int
) -> Launched:
    """The launch of a kernel with these keywords, after earlier ones. Raises Unreadable."""
    for name in ("inputs", "grid", "threadgroup", "output_shapes", "output_dtypes"):
        if not isinstance(given.get(name), tuple):
            reason = why(given[name]) if name in given else "missing"
            raise Unreadable(f"launch: {name}: {reason}", line)
    if given.get("init_value") is not None:
        raise Unreadable("launch: init_value is not carried: write every element", line)
    template = given.get("template") or ()
    if not isinstance(template, tuple):
        raise Unreadable(f"launch: template: {why(template)}", line)
    shapes = [_numbers(shape, "output_shapes", line) for shape in given["output_shapes"]]
    dtypes = [_float(dtype) for dtype in given["output_dtypes"]]
    if not all(dtypes):
        raise Unreadable("launch: output_dtypes: not a float dtype that is known", line)
    same = len(kernel.outputs) == len(shapes) == len(dtypes)
    if not same or len(kernel.inputs) != len(given["inputs"]):
        raise Unreadable("launch: as many inputs and outputs as names are needed", line)
    taken = {name for launch in earlier for name in launch.outputs}
    return Launched(
        kernel=kernel,
        inputs=given["inputs"],
        outputs=tuple(f"{n}{len(earlier)}" if n in taken else n for n in kernel.outputs),
        shapes=tuple(shapes),
        dtypes=tuple(dtypes),
        template=tuple(_argument(item, line) for item in template),
        grid=_numbers(given["grid"], "grid", line),
        threadgroup=_numbers(given["threadgroup"], "threadgroup", line),
        line=line,
    )


def _argument(item: Any, line: int) -> tuple[str, Number | str]:
    """A template argument."""
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], str):
        raise Unreadable(f"launch: template: {why(item)}", line)
    name, value = item
    return name, _float(value) or _number(value, f"template argument {name}", line)


def _float(value: Any) -> str:
    """The name of a float dtype, "" for what is none."""
    known = isinstance(value, Dtype) and value.name in ("dtype", *FLOATS)
    return value.name if known else ""


def _numbers(value: Any, what: str, line: int) -> tuple[Number, ...]:
    if not isinstance(value, tuple):
        raise Unreadable(f"launch: {what}: {why(value)}", line)
    return tuple(_number(item, what, line) for item in value)


def _number(value: Any, what: str, line: int) -> Number:
    if not isinstance(value, Number):
        raise Unreadable(f"launch: {what}: {why(value)}", line)
    if value.exact:
        raise Unreadable(
            f"launch: {what}: uses the exact KV length ({value.text}), which a launch does not see",
            line,
        )
    return value
