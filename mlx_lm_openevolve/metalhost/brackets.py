"""Brackets in source text: where they close, and what they separate."""

from __future__ import annotations

import re
import sys

__all__ = ["blank", "close", "close_angle", "enclosing_braces", "split_top"]


def blank(text: str) -> str:
    """Spaces in place of a text, its line breaks kept."""
    return re.sub(r"[^\n]+", lambda m: " " * len(m.group()), text)


def close(text: str, at: int, pair: str, within: int = sys.maxsize) -> int:
    """Position of the bracket that closes the one at `at`; -1 without one, or where it is further
    than `within` characters away."""
    depth = 0
    end = min(len(text), at + within)
    for m in re.compile(f"[{re.escape(pair)}]").finditer(text, at, end):
        depth += 1 if m.group() == pair[0] else -1
        if depth == 0:
            return m.start()
    return -1


def close_angle(text: str, at: int) -> int:
    """Position of the `>` that closes the `<` at `at`; parentheses hide what they hold. -1 when
    it is not near: arguments of a vector type are short, and a hostile text is long."""
    depth = 0
    i = at
    while i < min(len(text), at + 200):
        c = text[i]
        if c == "(":
            i = close(text, i, "()")
            if i < 0:
                return -1
        elif c in "<>":
            depth += 1 if c == "<" else -1
            if depth == 0:
                return i
        elif c in ";{}":
            return -1
        i += 1
    return -1


def split_top(text: str, separator: str = ",") -> list[str]:
    """Splits at separators that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and text[i - 1] != "-"):
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def enclosing_braces(text: str) -> tuple[list[int], list[int]]:
    """Positions of the braces, and for each the position of the `{` that encloses what follows it
    (-1: none)."""
    positions, enclosing, stack = [], [], [-1]
    for m in re.finditer(r"[{}]", text):
        if m.group() == "{":
            stack.append(m.start())
        elif len(stack) > 1:
            stack.pop()
        positions.append(m.start())
        enclosing.append(stack[-1])
    return positions, enclosing
