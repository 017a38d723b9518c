"""What a module's functions are asked for, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["counted"]


@contextlib.contextmanager
def counted(module: Any, *names: str) -> Iterator[list[str]]:
    """The names of these functions, call by call, in a list that grows."""
    calls: list[str] = []

    def through(name: str) -> Any:
        original = getattr(module, name)
        return lambda *args: calls.append(name) or original(*args)

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(module, name, through(name))
        yield calls
