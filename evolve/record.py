"""What is kept as JSON: frozen dataclasses that are written and read by their fields' names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

__all__ = ["Record"]

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """The base of all records. A subclass whose fields hold records extends `from_json`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data without empty texts, mappings and sequences."""
        data = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {name: value for name, value in data.items() if value not in ("", None, {}, [])}

    @classmethod
    def from_json(cls: type[R], data: Mapping[str, Any]) -> R:
        """What `to_json` wrote, lists as tuples; fields of a newer release are ignored. Raises
        TypeError where one is missing that has no default."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})

    def check_types(self) -> None:
        """Raise TypeError or ValueError where a field is not of its kind, or a number in it is not
        finite: this came from another machine."""
        for f in fields(self):
            kind = _KINDS.get(str(f.type), Mapping)
            if not isinstance(getattr(self, f.name), kind):
                raise TypeError(f"{f.name} is {type(getattr(self, f.name)).__name__}")
        json.dumps(self.to_json(), allow_nan=False)


_KINDS: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.to_json() if hasattr(value, "to_json") else value
