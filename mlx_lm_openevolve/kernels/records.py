"""Records: JSON objects in files, with a checksum; what a person changed by hand serves nobody."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import read_regular, write_atomic

__all__ = ["checksum", "plain", "read", "text", "write"]

MAX_BYTES = 8 << 20


def read(path: Path) -> dict[str, Any]:
    """A record whose checksum holds. Raises OSError where there is no file to read, ValueError
    where it holds no such record."""
    data = read_regular(path, MAX_BYTES)
    if len(data) > MAX_BYTES:
        raise ValueError("too long")
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise ValueError("not an object")
        if record.pop("checksum", None) != checksum(record):
            raise ValueError("the checksum does not match")
    except (RecursionError, TypeError) as error:
        raise ValueError(str(error)) from None
    return record


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Replace a record. Raises OSError."""
    write_atomic(path, text(record), durable=True)


def text(record: Mapping[str, Any]) -> bytes:
    """A record as `read` takes it; what is a list in it has a line for each item."""
    record = plain(record)
    fields = []
    for key, value in {**record, "checksum": checksum(record)}.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(item) for item in value)
            fields.append(f"{json.dumps(key)}: [\n  {lines}\n ]")
        else:
            fields.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return ("{\n " + ",\n ".join(fields) + "\n}\n").encode()


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of what a record says, whatever its layout. Raises ValueError where a number is not
    finite."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
