"""Files: written so that a reader sees the old content or the new one, never a part, and read so
that none holds a reader up."""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from pathlib import Path

__all__ = ["printable", "read_regular", "write_atomic"]


def printable(text: str) -> str:
    """Text that came from a file, for a terminal: its lines and tabs stay, what else is no
    character (an escape sequence, half a surrogate pair) becomes "?"."""
    return "".join(
        c if c.isprintable() or c in "\n\t" or unicodedata.category(c)[0] == "Z" else "?"
        for c in text
    )


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file, of which `limit` bytes and one more are read.

    Raises OSError, also where the path is a link, a FIFO, a device: what may lead elsewhere, block
    or never end is not opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return file.read(limit + 1)


def write_atomic(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace the file at `path` by one that holds `data`, or create it.

    The data goes to a temporary file in the same folder first, which then takes the file's place.
    durable: the data has reached the disk before it does. Raises OSError, where the folder does not
    exist too; the file is then as it was, and nothing is left beside it.
    """
    temporary = path.with_name(f".new-{os.urandom(6).hex()}")
    try:
        # Closed to others whatever the umask.
        made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(made, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
