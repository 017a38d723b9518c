"""Numbers as people write them: 90s, 10m, 32k."""

from __future__ import annotations

import re

from .errors import UsageError

__all__ = ["seconds_of", "tokens_of"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)", re.ASCII)
_TOKENS = re.compile(r"(\d{1,9})\s*(k?)", re.ASCII | re.IGNORECASE)


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 90, 90s, 10m or 2h. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not 0 < float(match[1]) < 1e9:
        raise UsageError(f"{text!r} is no duration; write 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def tokens_of(text: str) -> int:
    """A number of tokens such as 4096 or 32k (1024 each). Raises UsageError."""
    match = _TOKENS.fullmatch(text.strip())
    count = int(match[1]) * (1024 if match[2] else 1) if match else 0
    if not 0 < count <= 1 << 24:
        raise UsageError(f"{text!r} is no number of tokens; write 4096 or 32k")
    return count
