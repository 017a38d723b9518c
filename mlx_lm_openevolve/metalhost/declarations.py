"""What a Metal source declares that C++ has no word for: kernels with their parameters' attributes,
host names, function constants. Each is read, and taken out of the text or put into C++."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from .brackets import blank, close, split_top

__all__ = [
    "Declarations",
    "KernelFunction",
    "Parameter",
    "TranslationError",
    "read_declarations",
]


class TranslationError(Exception):
    """The text cannot be a Metal source; `position` is a place in the preprocessed text."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its attribute (`buffer`, `thread_position_in_grid`, ...), the
    attribute's index, and the function constant that must be true for it."""

    name: str
    attribute: str
    index: int | None
    condition: str | None
    text: str = ""


@dataclass(frozen=True)
class KernelFunction:
    name: str
    parameters: tuple[Parameter, ...]


@dataclass
class Declarations:
    """kernels: by name. host_names: the call expression `f<args>` of each. constants: the id of
    each function constant."""

    kernels: dict[str, KernelFunction] = field(default_factory=dict)
    host_names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)


def read_declarations(text: str, constants: Mapping[int, object]) -> tuple[str, Declarations]:
    """The text without them, and what it declares. `constants`: function constants by id."""
    declared = Declarations()
    text = _host_names(text, declared)
    text = _kernels(text, declared)
    text = _function_constants(text, declared, constants)
    return re.sub(r"\[\[[^\[\]]*\]\]", lambda m: blank(m.group()), text), declared


_HOST_NAME = re.compile(r'(template\s*)?\[\[\s*host_name\s*\(\s*((?:"[^"]*"\s*)+)\)\s*\]\]')


def _host_names(text: str, declared: Declarations) -> str:
    """Of instantiations, which are taken out, and of plain kernels."""
    out, done = [], 0
    for m in _HOST_NAME.finditer(text):
        if m.start() < done:
            continue
        name = "".join(re.findall(r'"([^"]*)"', m.group(2)))
        end = text.find(";", m.end(), m.end() + 4096)
        statement = text[m.end() : end if end >= 0 else m.end() + 4096]
        k = statement.find("decltype")
        function = re.search(r"\bvoid\s+([A-Za-z_]\w*(?:\s*<[^;{}]*?>)?)\s*\(", statement)
        if m.group(1) and k >= 0:
            closing = close(statement, statement.find("(", k), "()")
            declared.host_names.setdefault(name, " ".join(statement[closing + 1 :].split()))
        elif function:
            declared.host_names.setdefault(name, function[1])
        if m.group(1) and end >= 0:
            out += [text[done : m.start()], blank(text[m.start() : end + 1])]
            done = end + 1
    return "".join([*out, text[done:]])


_KERNEL = re.compile(
    r"(?:\[\[\s*kernel\b[^\[\]]*\]\]|\bkernel\b)"
    r"(?=\s+(?:\[\[[^\[\]]*\]\]\s*){0,8}void\s+([A-Za-z_]\w*)\s*(\())"
)


def _kernels(text: str, declared: Declarations) -> str:
    for m in reversed(list(_KERNEL.finditer(text))):
        closing = close(text, m.start(2), "()")
        if closing < 0:
            raise TranslationError("the kernel's parameter list is not closed", m.start(2))
        parts = split_top(text[m.end(2) : closing])
        parameters = _numbered([_parameter(p) for p in parts if p.strip()])
        always = [p.index for p in parameters if p.attribute == "buffer" and not p.condition]
        twice = next((n for n in always if always.count(n) > 1), None)
        if twice is not None:
            raise TranslationError(f"two arguments at buffer index {twice}", m.start())
        declared.kernels[m.group(1)] = KernelFunction(m.group(1), parameters)
        text = text[: m.start()] + blank(m.group()) + text[m.end() :]
    return text


_ATTRIBUTE = re.compile(r"\[\[(.*?)\]\]", re.S)


def _parameter(text: str) -> Parameter:
    plain = _ATTRIBUTE.sub(" ", text)
    names = re.findall(r"[A-Za-z_]\w*", plain)
    attribute, index, condition = "", None, None
    for body in _ATTRIBUTE.findall(text):
        for word, argument in re.findall(r"([A-Za-z_]\w*)\s*(?:\(\s*([^()]*)\s*\))?", body):
            if word == "function_constant":
                condition = argument.strip()
            elif word in ("buffer", "threadgroup"):
                attribute = word
                index = int(argument) if argument.strip().isdigit() else None
            elif not attribute:
                attribute = word
    name = names[-1] if names else ""
    return Parameter(name, attribute, index, condition, " ".join(plain.split()))


def _numbered(parameters: list[Parameter]) -> tuple[Parameter, ...]:
    """Pointers and references without an attribute are buffers, at the free indices in order."""
    used = {p.index for p in parameters if p.attribute == "buffer"}
    free = (i for i in count() if i not in used)
    return tuple(
        replace(p, attribute="buffer", index=next(free))
        if not p.attribute and ("*" in p.text or "&" in p.text)
        else p
        for p in parameters
    )


def _function_constants(text: str, declared: Declarations, values: Mapping[int, object]) -> str:
    pattern = re.compile(
        r"\bconstant\s+((?:[A-Za-z_]\w*\s+){0,8}?[A-Za-z_]\w*)\s+([A-Za-z_]\w*)\s*"
        r"\[\[\s*function_constant\s*\(\s*(\d+)\s*\)\s*\]\]\s*;"
    )

    def define(m: re.Match[str]) -> str:
        kind, name, number = m.group(1), m.group(2), int(m.group(3))
        declared.constants[name] = number
        value = values.get(number, 0)
        spelled = str(int(value)) if isinstance(value, (bool, int)) else repr(value)
        lines = "\n" * m.group().count("\n")
        return f"static constexpr {kind} {name} = {kind}({spelled});{lines}"

    text = pattern.sub(define, text)

    def defined(m: re.Match[str]) -> str:
        return "true" if declared.constants.get(m.group(1), -1) in values else "false"

    return re.sub(r"\bis_function_constant_defined\s*\(\s*(\w+)\s*\)", defined, text)
