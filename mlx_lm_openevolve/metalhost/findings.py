"""Findings: one for each defect of a kernel, printed the way a compiler prints an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["BENIGN", "Finding", "Place", "excerpt"]

BENIGN = "benign"


@dataclass(frozen=True)
class Place:
    """A line of the kernel's source. `text` is that line, or "" when it is not known."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """One defect of a kernel.

    kind: compile, strict, lint, sandbox, out-of-bounds, read-only, misaligned, race,
        divergent-barrier, divergent-collective, uninitialised, unwritten, division-by-zero,
        missing-return, bad-modulo, threadgroup-memory, threadgroup-size, non-ascii, time-limit,
        memory-limit, stack-overflow, fault, runtime; or benign, for what does no harm though Metal
        does not promise it: several threads store one value, a collective alone orders a store
        behind a read, an uninitialised value is read and discarded.
    line: of the kernel's body (1 is its first line), or of `file` for a header; None if unknown.
    other: the other side of a race or of divergent flow.
    thread, threadgroup: index in the threadgroup, and the threadgroup's position in the grid.
    """

    kind: str
    message: str
    line: int | None = None
    file: str = ""
    text: str = ""
    other: Place | None = None
    thread: int | None = None
    threadgroup: tuple[int, int, int] | None = None
    fatal: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def benign(self) -> bool:
        """Whether it is no defect, but only worth to be known."""
        return self.kind == BENIGN

    def __str__(self) -> str:
        where = self.file or "kernel"
        if self.line is not None:
            where += f":{self.line}"
        lines = [f"{where}: {self.kind}: {self.message}"]
        if self.text:
            lines.append(excerpt(self.line, self.text))
        if self.other is not None:
            lines.append(f"{self.other}: note: the other side is here")
            if self.other.text:
                lines.append(excerpt(self.other.line, self.other.text))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        group = None if self.threadgroup is None else list(self.threadgroup)
        return {**asdict(self), "threadgroup": group, "details": dict(self.details)}


def excerpt(line: int | None, text: str) -> str:
    """The source line below a message, with its number."""
    number = "" if line is None else str(line)
    return f"{number:>6} | {text.strip()}"


class Sources:
    """The texts that findings quote, by the file names in line markers."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._lines = {name: re.split(r"\r\n|[\r\n]", text) for name, text in texts.items()}

    def place(self, file: str, line: int) -> Place:
        lines = self._lines.get(file, [])
        text = lines[line - 1] if 0 < line <= len(lines) else ""
        return Place(file, line, text.strip())

    def finding(self, kind: str, message: str, file: str, line: int) -> Finding:
        """A finding at a line of the source."""
        return Finding(kind, message, line, file, self.place(file, line).text)

    def known(self, file: str) -> bool:
        return file in self._lines


def unique(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Without repeats of one kind at one line, in order."""
    seen: set[tuple[str, frozenset[Any]]] = set()
    kept = []
    for f in findings:
        sides = frozenset({(f.file, f.line), f.other and (f.other.file, f.other.line)})
        key = (f.kind, sides)
        if f.line is None or key not in seen:
            seen.add(key)
            kept.append(f)
    return tuple(kept)


_MARKER = re.compile(r'#[ \t]*(?:line[ \t]+)?(\d+)[ \t]+"([^"\n]*)"')


def position(text: str, at: int) -> tuple[str, int]:
    """File and line that line markers, each at the beginning of a line, give to a position."""
    end = at
    while True:
        start = text.rfind("\n#", 0, end) + 1  # 0: perhaps the first line
        m = _MARKER.match(text, start, at)
        if m is not None:
            return m.group(2), int(m.group(1)) + text.count("\n", m.end(), at) - 1
        if not start:
            return "", text.count("\n", 0, at) + 1
        end = start
