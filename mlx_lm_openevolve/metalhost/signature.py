"""The kernel source that mx.fast.metal_kernel generates around a body, by MLX's rules
(mlx/backend/common/metal_kernel.cpp, mlx 0.32.4): what the body's text mentions is declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MLX_ATTRIBUTES", "ArgumentType", "generate"]

# An input of fewer elements is passed in the constant address space.
CONSTANT_BELOW = 8

MLX_ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}


@dataclass(frozen=True)
class ArgumentType:
    """What the signature needs of an input array: its Metal type, size and rank."""

    metal: str
    size: int
    ndim: int


def mentions(source: str, name: str) -> tuple[bool, bool, bool]:
    """Whether shape, strides and rank of an input are passed: their names occur in the body."""
    return (f"{name}_shape" in source, f"{name}_strides" in source, f"{name}_ndim" in source)


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
    parameters += [f"{kind} {a} [[{a}]]" for a, kind in MLX_ATTRIBUTES.items() if a in body]
    lines = ['#line 1 "<signature>"', "using namespace metal;", f'#line 1 "{files[0]}"', header]
    lines.append('#line 1 "<signature>"')
    if template:
        lines.append("template <" + ", ".join(f"{kind} {n}" for n, kind in template) + ">")
    lines.append(f"[[kernel]] void {name}(" + ", ".join(parameters) + ") {")
    lines += [f'#line 1 "{files[1]}"', body, '#line 1 "<signature>"', "}", ""]
    return "\n".join(lines)
