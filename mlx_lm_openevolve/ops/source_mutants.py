"""Source mutants: one change of a kernel's text, and what such changes are made of.

They change what a family's contract fixes by name (X_shape, X_strides, scale[0], out, grids) and
what Metal does (barriers, simd functions, exponentials), so they fit any kernel of the family. One
is left out only where its predicate over the workload says so, or where the text that is launched
does not name the thing at all. gate/source_mutants.py applies them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Rewrite",
    "SourceMutant",
    "always",
    "first_argument",
    "of_any_kernel",
    "replaced",
    "strides",
    "without_comments",
    "wrapped",
]

Rewrite = Callable[[str], str]


@dataclass(frozen=True)
class SourceMutant:
    """One change of a kernel: of the bodies it launches (`headers`: of their headers too), or of
    its kernel.json: an axis of the grids halved, or the template arguments that depend on a field
    of the workload `fixed` at their value for another (field, value)."""

    name: str
    breaks: str
    applies: Callable[[Any], bool]
    rewrite: Rewrite | None = None
    headers: bool = False
    grid_axis: int | None = None
    fixed: tuple[str, str | int] | None = None


def without_comments(source: str) -> str:
    """The source without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)


def replaced(pattern: str, to: str) -> Rewrite:
    """Replaces every match of `pattern`."""
    return lambda source: re.sub(pattern, to, source)


def _calls(source: str, pattern: str, brackets: str) -> Iterator[tuple[int, int, int]]:
    """(start, start of the argument, end) of every `pattern(...)`, the innermost last."""
    opening, closing = brackets[0], brackets[1]
    for match in re.finditer(pattern + r"\s*" + re.escape(opening), source):
        depth, at = 1, match.end()
        while depth and at < len(source):
            depth += (source[at] == opening) - (source[at] == closing)
            at += 1
        yield match.start(), match.end(), at


def wrapped(pattern: str, to: Callable[[str], str], brackets: str = "()") -> Rewrite:
    """Replaces each `pattern(argument)` by `to(argument)`, from the innermost outwards."""

    def rewrite(source: str) -> str:
        for start, inner, end in reversed(list(_calls(source, pattern, brackets))):
            source = source[:start] + to(source[inner : end - 1]) + source[end:]
        return source

    return rewrite


def first_argument(arguments: str) -> str:
    """The first of a call's arguments."""
    depth = 0
    for at, c in enumerate(arguments):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            return f"({arguments[:at]})"
    return f"({arguments})"


def strides(array: str, changed: Mapping[int, str], arrays: Sequence[str]) -> Rewrite:
    """Shadows the strides of a body's `arrays` by copies, some of one array's changed."""

    def rewrite(source: str) -> str:
        if not re.search(rf"\b{array}_strides\b", source):
            return source
        copies = []
        for name in arrays:
            if re.search(rf"\b{name}_strides\b", source):
                values = [f"{name}_strides[{axis}]" for axis in range(4)]
                for axis, text in changed.items() if name == array else ():
                    values[axis] = text
                copies.append(f"const int64_t {name}_steps[4] = {{{', '.join(values)}}};\n")
                source = re.sub(rf"\b{name}_strides\b", f"{name}_steps", source)
        return "".join(copies) + source

    return rewrite


def always(workload: Any) -> bool:
    """What can show on every workload."""
    return True


def _half_written(source: str) -> str:
    """Every second element of `out` goes where the one before goes; of a pointer into it, every
    second pair, as it may be stored in pairs."""
    source = re.sub(r"\bout\s*\+(?![+=])([^;]+);", r"out + ((\1) & ~2);", source)
    return wrapped(r"\bout(?=\s*\[)", lambda at: f"out[({at}) & ~1]", "[]")(source)


def of_any_kernel(headers_write: bool = False) -> Iterator[SourceMutant]:
    """Mutants of what any family's kernels do in Metal. headers_write: `out` is written in headers
    too, under that name."""
    calls: dict[str, tuple[str, Rewrite]] = {
        "shuffles-lost": ("lanes", wrapped(r"\bsimd_shuffle(_xor|_down)?", first_argument)),
        "sums-lost": ("lanes", wrapped(r"\bsimd_sum", first_argument)),
        "maxima-lost": ("lanes", wrapped(r"\bsimd_max", first_argument)),
        "barriers-lost": (
            "order in a threadgroup",
            wrapped(r"\bthreadgroup_barrier", lambda x: "(void)0"),
        ),
    }
    for name, (breaks, rewrite) in calls.items():
        yield SourceMutant(name, breaks, always, rewrite, headers=True)
    yield SourceMutant(
        "half-written",
        "every second element of the result",
        always,
        _half_written,
        headers=headers_write,
    )
    for axis in range(3):
        yield SourceMutant(f"grid-{'xyz'[axis]}-halved", "threadgroups", always, grid_axis=axis)
