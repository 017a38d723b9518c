"""What a command returns: its exit code and what --json prints."""

from __future__ import annotations

from typing import Any

__all__ = ["Result"]

Result = tuple[int, dict[str, Any]]
