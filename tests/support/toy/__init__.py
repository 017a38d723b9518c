"""A second family for the tests: rows times a scale plus a shift. One folder, one line in ops."""

from __future__ import annotations

from .op import OP

__all__ = ["OP"]
