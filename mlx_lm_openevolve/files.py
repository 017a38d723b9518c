"""Writing files so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace the file at `path` by one that holds `data`, or create it.

    The data goes to a temporary file in the same folder first, which then takes the file's place.
    durable: the data has reached the disk before it does. Raises OSError, where the folder does not
    exist too; the file is then as it was, and nothing is left beside it.
    """
    temporary = path.with_name(f".new-{os.urandom(6).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
