"""The few calls of PyObjC's `Metal` module that compute programs use, on metalhost."""

from __future__ import annotations

import types


def module() -> types.ModuleType:
    """A module to stand in for `Metal`."""
    return types.ModuleType("Metal")
