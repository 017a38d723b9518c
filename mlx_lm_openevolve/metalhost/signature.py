"""The kernel source that mx.fast.metal_kernel generates around a body, by MLX's rules
(mlx/backend/common/metal_kernel.cpp, mlx 0.32.4): what the body's text mentions is declared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import metal_type

__all__ = ["ArgumentType", "generate", "mentions", "template_arguments"]

# An input of fewer elements is passed in the constant address space.
CONSTANT_BELOW = 8

# The attributes that a body may name, and the types of their parameters, in MLX's order.
_ATTRIBUTES = (
    *("dispatch_quadgroups_per_threadgroup", "dispatch_simdgroups_per_threadgroup"),
    *("dispatch_threads_per_threadgroup", "grid_origin", "grid_size"),
    *("quadgroup_index_in_threadgroup", "quadgroups_per_threadgroup"),
    *("simdgroup_index_in_threadgroup", "simdgroups_per_threadgroup", "thread_execution_width"),
    *("thread_index_in_quadgroup", "thread_index_in_simdgroup", "thread_index_in_threadgroup"),
    *("thread_position_in_grid", "thread_position_in_threadgroup"),
    *("threadgroup_position_in_grid", "threadgroups_per_grid", "threads_per_grid"),
    *("threads_per_simdgroup", "threads_per_threadgroup"),
)
_UINT3 = re.compile(
    r"dispatch_threads_\w+|grid_\w+|thread(?:group)?_position_\w+|thread(?:group)?s_per_(?!simd)\w+"
)


@dataclass(frozen=True)
class ArgumentType:
    """What the signature needs of an input array: its Metal type, size and rank."""

    metal: str
    size: int
    ndim: int


def mentions(source: str, name: str) -> tuple[bool, bool, bool]:
    """Whether shape, strides and rank of an input are passed: their names occur in the body."""
    return (f"{name}_shape" in source, f"{name}_strides" in source, f"{name}_ndim" in source)


def template_arguments(
    template: Sequence[tuple[str, Any]],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Template parameters as (name, kind), and their values as text."""
    parameters, values = [], []
    for name, value in template:
        kind = type(value).__name__ if isinstance(value, (bool, int)) else "typename"
        parameters.append((name, kind))
        values.append(metal_type(value) if kind == "typename" else str(value).lower())
    return parameters, values


def generate(
    name: str,
    body: str,
    header: str,
    inputs: Sequence[tuple[str, ArgumentType]],
    outputs: Sequence[tuple[str, str]],
    template: Sequence[tuple[str, str]],
    files: tuple[str, str],
) -> str:
    """The whole source. `outputs` are (name, Metal type); `template` is (name, kind of parameter);
    `files` are the names that line markers give to the header and to the body."""
    parameters: list[str] = []

    def add(text: str) -> None:
        parameters.append(f"{text} [[buffer({len(parameters)})]]")

    for input_name, kind in inputs:
        space = "constant" if kind.size < CONSTANT_BELOW else "device"
        add(f"const {space} {kind.metal}{'*' if kind.ndim else '&'} {input_name}")
        if kind.ndim:
            shape, strides, ndim = mentions(body, input_name)
            if shape:
                add(f"const constant int* {input_name}_shape")
            if strides:
                add(f"const constant int64_t* {input_name}_strides")
            if ndim:
                add(f"const constant int& {input_name}_ndim")
    for output_name, metal in outputs:
        add(f"device {metal}* {output_name}")
    for a in _ATTRIBUTES:
        if a in body:
            parameters.append(f"{'uint3' if _UINT3.fullmatch(a) else 'uint'} {a} [[{a}]]")
    lines = ['#line 1 "<signature>"', "using namespace metal;", f'#line 1 "{files[0]}"', header]
    lines.append('#line 1 "<signature>"')
    if template:
        lines.append("template <" + ", ".join(f"{kind} {n}" for n, kind in template) + ">")
    lines.append(f"[[kernel]] void {name}(" + ", ".join(parameters) + ") {")
    lines += [f'#line 1 "{files[1]}"', body, '#line 1 "<signature>"', "}", ""]
    return "\n".join(lines)
