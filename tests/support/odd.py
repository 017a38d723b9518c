"""What no writer of ours puts into a file, and where: parsed JSON with any one part replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 0.5, 1e308, math.nan, math.inf, 1 << 70, 10**400),
    *("", "x", "x" * 10_000, "\x00", "\x1b[31m", "\ud800", "../../x", "[/red]"),
    *([], {}, [[]], [None], [{}], {"a": 1}, {"": None}, {"x": ["y"]}, ["a", ["b"]], [0] * 100),
]


def changed(value: Any, odd: Any) -> Iterator[Any]:
    """`value` with any one part of it, at any depth, replaced by `odd` or left out."""
    yield odd
    if isinstance(value, dict):
        for key, part in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: new} for new in changed(part, odd))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield value[:i] + value[i + 1 :]
            yield from ([*value[:i], new, *value[i + 1 :]] for new in changed(part, odd))
