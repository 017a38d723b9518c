"""The preprocessor's directives in a text, as a compiler reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["MAX_OPERAND", "directives", "joined"]

_BLOCK = r"/\*(?:[^*\n]|\*(?!/))*\*/"
# Comments are not removed first: a quote in them could hide a directive from the removal. What
# stands before a directive is taken whether one follows or not: it is never looked at twice.
_DIRECTIVE = re.compile(
    rf"(?:^|\*/)(?:[ \t]|{_BLOCK})*"
    rf"(?:(?:\#|%:|\?\?=)(?:[ \t]|{_BLOCK})*([^\s/\"<]*)([^\n]*))?",
    re.M,
)
MAX_OPERAND = 1000  # characters of an #include or a #pragma
# A backslash that joins two lines.
_SPLICE = re.compile(r"(\\[ \t]*(?:\r\n|\n\r|[\r\n]))")


def joined(body: str) -> str:
    """As long as the text was, its lines where they were: a carriage return ends a line, and what
    a backslash joins stands together, with blanks behind it."""
    out, owed = [], 0
    for k, part in enumerate(_SPLICE.split(body)):
        if k % 2:
            owed += len(part)
            continue
        line, end, rest = part.replace("\r", "\n").partition("\n")
        if end:
            out += [line, " " * owed, end, rest]
            owed = 0
        else:
            out.append(line)
    return "".join(out) + " " * owed


def directives(body: str) -> Iterator[tuple[str, str, int]]:
    """Word, operand and position of each directive; one of more than MAX_OPERAND characters as it
    stands, comments and all."""
    for m in _DIRECTIVE.finditer(joined(body)):
        if m.group(1) is None:  # a comment that no directive follows
            continue
        text = m.group(2)
        if len(text) <= MAX_OPERAND:
            text = re.sub(r"//.*|/\*.*?\*/", "", text).strip()
        yield m.group(1), text, m.start(1)
