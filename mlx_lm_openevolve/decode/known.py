"""What is known of arrays while a layer is traced, and what makes it untrue."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

__all__ = ["CHANGES", "Known"]

# What changes an array in place.
CHANGES = (
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__imatmul__", "__itruediv__",
    "__ifloordiv__", "__imod__", "__ipow__", "__ilshift__", "__irshift__", "__iand__", "__ior__",
    "__ixor__",
)  # fmt: skip
_Fact = TypeVar("_Fact")


class Known:
    """One fact of each array, which is held with it, so that no two have one id."""

    def __init__(self) -> None:
        self._facts: dict[int, tuple[mx.array, Any]] = {}

    def note(self, array: mx.array, fact: Any) -> None:
        self._facts[id(array)] = array, fact

    def of(self, array: Any, kind: type[_Fact]) -> _Fact | None:
        """The fact of an array where it is of a kind."""
        fact = self._facts.get(id(array), (None, None))[1]
        return fact if isinstance(fact, kind) else None

    def drop(self, array: mx.array) -> None:
        """Forget one array."""
        del self._facts[id(array)]

    def clear(self, but: type | None = None) -> None:
        """Forget all, where one was changed in place: what was seen may have been made of it. but:
        facts of a kind that cannot have been."""
        kept = {key: known for key, known in self._facts.items() if but and type(known[1]) is but}
        self._facts = kept
