"""Clang's syntax tree as it prints it: nodes with their places, types and operators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .findings import Sources

__all__ = ["Node", "nodes"]

_LINE = re.compile(
    r"([ |`-]*)([A-Z]\w+) (0x[0-9a-f]+) (?:(?:prev|parent|first) 0x[0-9a-f]+ )*<(.*)"
)
_PLACE = re.compile(
    r"(?:^|[<, ])(?:line:(\d+):\d+|col:\d+|([^\s,<>]*|<[\w -]+>):(\d+):\d+)(?=[,> ]|$)"
)
_TYPE = re.compile(r"'([^']*)'(?::'([^']*)')?")
_OPERATOR = re.compile(r"'[^']*'(?::'[^']*')?[^']* '([^']+)'")
_Places = list[tuple[str | None, int]]  # file and line; None, -1: that of the place before


@dataclass(slots=True)  # frozen takes long to make, and there are thousands
class Node:
    depth: int
    kind: str
    file: str  # of the first of its places that lies in the user's sources, else ""
    line: int
    rest: str  # what follows the places: names, types, flags
    index: int  # among its parent's children
    id: str  # of a declaration: what references to it name

    @property
    def type(self) -> str:
        """The canonical type."""
        m = _TYPE.search(self.rest)
        return "" if m is None else m[2] or m[1]

    @property
    def operator(self) -> str:
        """Which operator an expression is, "" where it is none."""
        if self.kind not in ("BinaryOperator", "UnaryOperator"):
            return ""
        m = _OPERATOR.search(self.rest)
        return "" if m is None else m[1]

    def has(self, flag: str) -> bool:
        return flag in self.rest


def nodes(tree: str, sources: Sources) -> Iterator[Node]:
    """The nodes in order. Clang prints of each place only what differs from the one before."""
    file, line, known = "", 0, sources.known("")
    children: dict[int, int] = {}  # by depth: the latest child of the present parent
    read: dict[str, _Places] = {}  # many nodes lie at the same places
    for text in tree.splitlines():
        m = _LINE.match(text)
        if m is None:
            continue
        depth = len(m[1]) // 2
        children[depth], children[depth + 1] = children.get(depth, -1) + 1, -1
        body, rest = _split(m[4])
        own = ("", 0)
        # A declaration's name has its place behind the range.
        head, _, tail = rest.partition(" ")
        if ":" in head and _PLACE.fullmatch(head):
            body, rest = f"{body}, {head}", tail
        places = read.get(body)
        if places is None:
            places = read[body] = [(p[2], int(p[1] or p[3] or -1)) for p in _PLACE.finditer(body)]
        for named, number in places:
            if named is not None:
                file, known = named, sources.known(named)
            if number >= 0:
                line = number
            if known and not own[0]:
                own = (file, line)
        yield Node(depth, m[2], *own, rest, children[depth], m[3])


def _split(text: str) -> tuple[str, str]:
    """The places between angle brackets, and what follows."""
    places, closed, rest = text.partition(">")
    if closed and "<" not in places:
        return places, rest.lstrip()
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if depth == 0:
            return text[:i], text[i + 1 :].lstrip()
    return text, ""
