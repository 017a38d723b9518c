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


@dataclass(frozen=True)
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
    file, line = "", 0
    children: dict[int, int] = {}  # by depth: the latest child of the present parent
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
        places, rest = (f"{body}, {head}", tail) if _PLACE.fullmatch(head) else (body, rest)
        for place in _PLACE.finditer(places):
            if place[1]:
                line = int(place[1])
            elif place[3]:
                file, line = place[2], int(place[3])
            if not own[0] and sources.known(file):
                own = (file, line)
        yield Node(depth, m[2], *own, rest, children[depth], m[3])


def _split(text: str) -> tuple[str, str]:
    """The places between angle brackets, and what follows."""
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if depth == 0:
            return text[:i], text[i + 1 :].lstrip()
    return text, ""
