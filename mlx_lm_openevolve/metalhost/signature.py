"""The kernel source that mx.fast.metal_kernel generates around a body, by MLX's rules
(mlx/backend/common/metal_kernel.cpp, mlx 0.32.4): what the body's text mentions is declared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .arrays import metal_type

__all__ = ["ArgumentType", "Source", "generate", "mentions", "template_arguments"]

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

    @property
    def constant(self) -> bool:
        """Whether it is passed in the constant address space."""
        return self.size < CONSTANT_BELOW


def mentions(source: str, name: str) -> tuple[bool, bool, bool]:
    """Whether shape, strides and rank of an input are passed: their names occur in the body."""
    return (f"{name}_shape" in source, f"{name}_strides" in source, f"{name}_ndim" in source)


def template_arguments(
    template: Sequence[tuple[str, Any]],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Template parameters as (name, kind), and their values as text. Raises UsageError."""
    import mlx.core as mx

    parameters, values = [], []
    for parameter in template:
        match parameter:
            case [str(name), mx.Dtype() as dtype]:
                kind, text = "typename", metal_type(dtype)
            case [str(name), bool(value)]:
                kind, text = "bool", str(int(value))
            case [str(name), int(value)] if -(1 << 31) <= value < 1 << 31:
                kind, text = "int", str(value)
            case _:
                raise UsageError(
                    f"{parameter!r} is no template argument: a name with an mx.Dtype, a bool or an"
                    " int of 32 bits"
                )
        parameters.append((name, kind))
        values.append(text)
    return parameters, values


@dataclass(frozen=True)
class Source:
    """A generated source: `function` is its kernel's name, `head` ends where the parameters begin,
    `parameters` where the body does."""

    function: str
    head: str
    parameters: str
    body: str
    tail: str

    @property
    def text(self) -> str:
        """What MLX gives to Apple's compiler behind its own utilities, to the letter."""
        return self.head + self.parameters + self.body + self.tail

    def marked(self, header_file: str, body_file: str) -> str:
        """The same with line markers, each on a line of its own, that name header and body."""
        return (
            f'#line 1 "{header_file}"\n{self.head}#line 1 "<signature>"\n{self.parameters}'
            f'#line 1 "{body_file}"\n{self.body}{self.tail}'
        )


def generate(
    name: str,
    body: str,
    header: str,
    inputs: Sequence[tuple[str, ArgumentType]],
    outputs: Sequence[tuple[str, str]],
    template: Sequence[tuple[str, Any]] = (),
    atomic_outputs: bool = False,
) -> Source:
    """The source around a body. `outputs` are (name, Metal type), `template` is (name, value).

    As in MLX nothing stands between the header and the signature: a header that ends in a comment
    or in a directive takes the signature's first line with it.
    """
    attributes = [
        f"  {'uint3' if _UINT3.fullmatch(a) else 'uint'} {a} [[{a}]]"
        for a in _ATTRIBUTES
        if a in body
    ]
    lines = [""]

    def add(text: str, last: bool = False) -> None:
        lines[-1] += f"  {text} [[buffer({len(lines) - 1})]]{') {' if last else ','}\n"
        lines.append("")

    for input_name, kind in inputs:
        space = "constant" if kind.constant else "device"
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
        metal = f"atomic<{metal}>" if atomic_outputs else metal
        # MLX compares the slot with the number of arrays: behind inputs whose shapes are passed
        # too, the list ends after the first output. Such a source does not compile there either.
        ends = len(lines) - 1 >= len(inputs) + len(outputs) - 1 and not attributes
        add(f"device {metal}* {output_name}", ends)
    if attributes:
        lines.append(",\n".join(attributes) + ") {\n")

    parameters, values = template_arguments(template)
    function = f"custom_kernel_{name}"
    function += "__" + "_".join(values).replace("-", "_") if values else ""
    for _, kind in inputs:
        passed = "s" if kind.ndim == 0 else "c" if kind.constant else ""
        function += f"_{kind.metal}{passed}"
    function += "".join(f"_{metal}" for _, metal in outputs)
    head, tail = header, "\n}\n"
    if template:
        head += "template <" + ", ".join(f"{kind} {n}" for n, kind in parameters) + ">\n"
        call = f"{function}<{', '.join(values)}>"
        tail += f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({call}) {call};\n'
    head += f"[[kernel]] void {function}(\n"
    return Source(function, head, "".join(lines), body, tail)
