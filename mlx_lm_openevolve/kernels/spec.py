"""LaunchSpec: a launch of a kernel as kernel.json writes it, read and checked.

    parsed JSON --Fields, read_param, read_launch--> Param, LaunchSpec     (faults: KernelError)

The expressions that shape a launch stay expressions here; kernel.py evaluates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..device import FACTS
from ..errors import KernelError
from .expressions import MAX_DEFAULT, Expression, Value

__all__ = [
    "LAUNCH_KEYS",
    "MATH_MODES",
    "MAX_SOURCE_BYTES",
    "SOURCE_NAME",
    "Fields",
    "LaunchSpec",
    "Output",
    "Param",
    "read_launch",
    "read_param",
]

LANGUAGES = ("metal", "cuda")
MATH_MODES = ("safe", "relaxed", "fast")
MAX_SOURCE_BYTES = 256 << 10

LAUNCH_KEYS = frozenset(
    {"source", "header", "language", "inputs", "outputs", "template", "grid", "threadgroup"}
    | {"math_mode", "when"}
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}\.(metal|cu)")


@dataclass(frozen=True)
class Param:
    """A numeric knob: the integers it may take and its default over the workload and the chip."""

    name: str
    default: Expression
    values: tuple[int, ...]

    def chosen(self, facts: Mapping[str, Value]) -> int:
        """What the default comes to: of one that follows the chip, whose writer cannot know all
        chips, the nearest of the values, of two as near the one named first. Raises KernelError."""
        wanted = self.default.integer(facts)
        if not self.default.used & FACTS:
            return wanted
        return min(self.values, key=lambda value: abs(value - wanted))


@dataclass(frozen=True)
class Output:
    """An array that a launch writes: shape in elements, dtype by name."""

    name: str
    shape: tuple[Expression, ...]
    dtype: Expression


@dataclass(frozen=True)
class LaunchSpec:
    """One launch as written: the body, the functions before it (`header`, "" where there are
    none) and the expressions that shape it."""

    file: str
    source: str
    header: str
    language: str
    inputs: tuple[str, ...]
    outputs: tuple[Output, ...]
    template: tuple[tuple[str, Expression], ...]
    grid: tuple[Expression, ...]
    threadgroup: tuple[Expression, ...]
    math_mode: str
    when: Expression | None


def _shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    return repr(value)[:80]


class Fields:
    """Checks fields of a parsed kernel.json; every message begins with the file and the field."""

    def __init__(self, where: str) -> None:
        self.where = where

    def known(self, value: Any, field: str, allowed: frozenset[str] | set[str]) -> None:
        unknown = sorted(set(value) - allowed) if isinstance(value, Mapping) else [value]
        if unknown:
            raise KernelError(f"{self.where}: {field or 'top level'}: unknown {_shown(unknown[0])}")

    def name(self, value: Any, field: str) -> str:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise KernelError(f"{self.where}: {field}: expected an identifier, got {_shown(value)}")
        return value

    def choice(self, value: Any, field: str, choices: tuple[str, ...]) -> str:
        if not isinstance(value, str) or value not in choices:
            known = ", ".join(choices)
            raise KernelError(f"{self.where}: {field}: {_shown(value)} is none of {known}")
        return value

    def source(self, file: Any, field: str, sources: Mapping[str, str]) -> str:
        text = sources.get(file) if isinstance(file, str) and SOURCE_NAME.fullmatch(file) else None
        if text is None:
            raise KernelError(f"{self.where}: {field}: no such file {_shown(file)}")
        if not text.isascii() or len(text) > MAX_SOURCE_BYTES or not text.strip():
            raise KernelError(f"{self.where}: {field}: {file} is empty, too long or not ASCII")
        return text

    def expressions(
        self, value: Any, field: str, names: frozenset[str], length: int | None = None
    ) -> tuple[Expression, ...]:
        if (
            not isinstance(value, list)
            or not 0 < len(value) <= 8
            or len(value) != (length or len(value))
        ):
            raise KernelError(f"{self.where}: {field}: expected a list of {length or 'up to 8'}")
        return tuple(Expression(item, names, f"{self.where}: {field}") for item in value)


def read_param(read: Fields, key: Any, raw: Any, names: frozenset[str]) -> Param:
    """A param of kernel.json, its default over the workload's fields `names` and the chip's facts.
    Raises KernelError naming the field."""
    field = f"params.{key}"
    name = read.name(key, field)
    if name in names or not isinstance(raw, Mapping):
        raise KernelError(f"{read.where}: {field}: expected an object under a name of its own")
    read.known(raw, field, {"default", "values", "description"})
    values = raw.get("values")
    if (
        not isinstance(values, list)
        or not 0 < len(values) <= 64
        or not all(type(v) is int and 0 <= v < 1 << 20 for v in values)
    ):
        raise KernelError(f"{read.where}: {field}.values: expected a list of integers")
    where = f"{read.where}: {field}.default"
    default = Expression(raw.get("default"), names | FACTS, where, MAX_DEFAULT)
    return Param(name, default, tuple(values))


def read_launch(
    read: Fields,
    field: str,
    raw: Any,
    sources: Mapping[str, str],
    names: frozenset[str],
    arrays: set[str],
    taken: set[str],
) -> LaunchSpec:
    """A launch of kernel.json: `arrays` are what it may read, `taken` what it may not write again,
    `names` what its expressions may use. Raises KernelError naming the field."""
    where = read.where
    if not isinstance(raw, Mapping):
        raise KernelError(f"{where}: {field}: expected an object")
    read.known(raw, field, LAUNCH_KEYS)
    source = read.source(raw.get("source"), f"{field}.source", sources)
    header = raw.get("header")
    inputs = raw.get("inputs")
    if (
        not isinstance(inputs, list)
        or not inputs
        or not all(isinstance(name, str) and name in arrays for name in inputs)
    ):
        raise KernelError(f"{where}: {field}.inputs: expected names of {sorted(arrays)}")
    raw_outputs = raw.get("outputs")
    if not isinstance(raw_outputs, list) or not 0 < len(raw_outputs) <= 8:
        raise KernelError(f"{where}: {field}.outputs: expected 1 to 8 outputs")
    outputs = []
    for i, item in enumerate(raw_outputs):
        at = f"{field}.outputs[{i}]"
        read.known(item, at, {"name", "shape", "dtype"})
        outputs.append(
            Output(
                read.name(item.get("name"), f"{at}.name"),
                read.expressions(item.get("shape"), f"{at}.shape", names),
                Expression(item.get("dtype"), names, f"{where}: {at}.dtype"),
            )
        )
    written = [output.name for output in outputs]
    if len(set(written) | taken) != len(written) + len(taken):
        raise KernelError(f"{where}: {field}.outputs: a name is taken twice in {written}")
    template = raw.get("template", {})
    if not isinstance(template, Mapping):
        raise KernelError(f"{where}: {field}.template: expected an object")
    when = raw.get("when")
    return LaunchSpec(
        file=raw["source"],
        source=source,
        header="" if header is None else read.source(header, f"{field}.header", sources),
        language=read.choice(raw.get("language", "metal"), f"{field}.language", LANGUAGES),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        template=tuple(
            (
                read.name(key, f"{field}.template"),
                Expression(value, names, f"{where}: {field}.template.{key}"),
            )
            for key, value in template.items()
        ),
        grid=read.expressions(raw.get("grid"), f"{field}.grid", names, 3),
        threadgroup=read.expressions(raw.get("threadgroup"), f"{field}.threadgroup", names, 3),
        math_mode=read.choice(raw.get("math_mode", "safe"), f"{field}.math_mode", MATH_MODES),
        when=None if when is None else Expression(when, names, f"{where}: {field}.when"),
    )
