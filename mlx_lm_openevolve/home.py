"""Home: the folder of all that this library stores, and why nothing can be stored there."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["HOME", "misplaced", "unwritable", "user_root"]

HOME = "MLX_LM_OPENEVOLVE_HOME"


def user_root() -> Path:
    """Root of the user's registry: MLX_LM_OPENEVOLVE_HOME, else the user data folder."""
    home = os.environ.get(HOME)
    return Path(home) if home else Path(platformdirs.user_data_dir("mlx-lm-openevolve", False))


def misplaced(folder: Path) -> str:
    """Why no folder can be there, "" where one can: it, or what it lies in, is a file."""
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            return f"{part} is a file, not a folder{_named()}"
    return ""


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder that may have to be made, "" where it can."""
    there = next((part for part in (folder, *folder.parents) if part.exists()), folder)
    closed = f"{there} cannot be written{_named()}"
    return misplaced(folder) or ("" if os.access(there, os.W_OK | os.X_OK) else closed)


def _named() -> str:
    return f" ({HOME})" if os.environ.get(HOME) else ""
