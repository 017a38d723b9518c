"""Content-addressed store of build results, shared by processes and bounded in size."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs

from ..errors import MachineError

__all__ = ["Store", "folder", "store"]

ABANDONED_SECONDS = 3600
LIMIT_BYTES = 512 * 1024 * 1024


class Store:
    """Folders by key. A folder appears whole or not at all (rename); readers take no lock."""

    def __init__(self, root: Path, limit: int = LIMIT_BYTES) -> None:
        self.root = root
        self.limit = limit

    def get(self, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of `key`; `build(folder)` fills it first where it is missing."""
        final = self.root / key[:2] / key
        if not final.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix="new-", dir=self.root))
            try:
                build(work)
                try:
                    work.rename(final)
                except OSError:
                    if not final.is_dir():
                        raise
            finally:
                shutil.rmtree(work, ignore_errors=True)
            self._prune(keep=final)
        with contextlib.suppress(OSError):
            os.utime(final)
        return final

    def _prune(self, keep: Path) -> None:
        """Removes the folders longest unused until the rest fits, and what a crash left."""
        for left in [*self.root.glob("new-*"), *self.root.glob("old-*")]:
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        entries = []
        for folder in self.root.glob("??/*"):
            with contextlib.suppress(OSError):
                size = sum(f.stat().st_size for f in folder.rglob("*"))
                entries.append((folder.stat().st_mtime, size, folder))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries, key=lambda e: e[0]):
            if total <= self.limit:
                break
            if folder != keep:
                # Renamed first: a reader never meets a folder that is half gone.
                gone = self.root / f"old-{os.getpid()}-{folder.name}"
                with contextlib.suppress(OSError):
                    folder.rename(gone)
                    shutil.rmtree(gone, ignore_errors=True)
                    total -= size


def store(kind: str = "metalhost", limit: int = LIMIT_BYTES) -> Store:
    """A store under MLX_LM_OPENEVOLVE_HOME, or under the user's cache folder."""
    root = folder() / kind
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{root}: {error.strerror}; set MLX_LM_OPENEVOLVE_HOME") from None
    return Store(root.resolve(), limit)


def folder() -> Path:
    """Where the stores lie, whether they were made yet or not."""
    home = os.environ.get("MLX_LM_OPENEVOLVE_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("mlx-lm-openevolve"))
