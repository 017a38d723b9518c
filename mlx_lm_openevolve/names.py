"""Names that the command line offers before anything is loaded."""

from __future__ import annotations

__all__ = ["BACKENDS"]

BACKENDS = ("metal", "cuda", "host")
