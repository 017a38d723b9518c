"""Content-addressed store of build results, shared by processes and bounded in size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs

from .errors import MachineError
from .home import HOME, misplaced

__all__ = ["Store", "folder", "intact", "store"]

ABANDONED_SECONDS = 3600
LIMIT_BYTES = 512 * 1024 * 1024
MANIFEST = "contents.json"  # of each folder: the digests of its files

_State = list[tuple[str, int, int, int]]


class Store:
    """Folders by key. A folder appears whole or not at all (rename); readers take no lock. One that
    does not hold what was built (a file is missing, cut short or changed) is built again."""

    def __init__(self, root: Path, limit: int = LIMIT_BYTES) -> None:
        self.root = root
        self.limit = limit

    def get(self, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of `key`; `build(folder)` fills it first where it is missing or damaged.

        Raises: MachineError where the store cannot be written, and what `build` raises.
        """
        final = self.root / key[:2] / key
        try:
            if not intact(final):
                self._make(final, build)
                # Looking through all takes longer than a build where much is stored: drawn, about
                # once in as many builds as fill a sixteenth of the limit.
                with contextlib.suppress(OSError):
                    if secrets.randbelow(self.limit) < 16 * _bytes(final):
                        self._prune(keep=final)
            with contextlib.suppress(OSError):
                os.utime(final)
        except MachineError:
            raise
        except OSError as error:
            where = Path(error.filename or final)
            where = self.root if self.root in where.parents else where  # no temporary name
            raise MachineError(f"{where}: {error.strerror}") from None
        return final

    def discard(self, folder: Path) -> None:
        """Removes what stands in the place of a folder. Renamed first: a reader never meets a
        folder that is half gone."""
        gone = self.root / f"old-{os.getpid()}-{time.monotonic_ns()}-{folder.name}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink(missing_ok=True)

    def _make(self, final: Path, build: Callable[[Path], None]) -> None:
        if final.parent.is_file():
            self.discard(final.parent)
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="new-", dir=self.root))
        try:
            build(work)
            (work / MANIFEST).write_text(json.dumps(_digests(work)), encoding="ascii")
            if not intact(final):  # another process may have been faster
                self.discard(final)
            try:
                work.rename(final)
            except OSError:
                if not intact(final):
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _prune(self, keep: Path) -> None:
        """Removes the folders longest unused until the rest fits, and what a crash left."""
        for left in [*self.root.glob("new-*"), *self.root.glob("old-*")]:
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        entries = []
        for entry in self.root.glob("??/*"):
            with contextlib.suppress(OSError):
                entries.append((entry.stat().st_mtime, _bytes(entry), entry))
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries, key=lambda e: e[0]):
            if total <= self.limit:
                break
            if entry != keep:
                with contextlib.suppress(OSError):
                    self.discard(entry)
                    total -= size


def _bytes(folder: Path) -> int:
    """What the files of a folder take. Raises OSError."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.name != MANIFEST)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


# What the files of a folder were when it was last found intact, as the system tells: a kernel's
# folder is looked at before each of its launches.
_INTACT: dict[Path, _State] = {}


def intact(folder: Path) -> bool:
    """Whether a store's folder holds the files that were built, unchanged. They are read again
    where the system says that one is another, or was written."""
    try:
        state = _state(folder)
        if state and _INTACT.get(folder) == state:
            return True
        listed = json.loads((folder / MANIFEST).read_text(encoding="ascii"))
        if listed != _digests(folder):
            return False
    except (OSError, ValueError):
        return False
    _INTACT[folder] = state
    return True


def _state(folder: str | Path) -> _State:
    """Path, inode, size and time of change of each file."""
    found: _State = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += _state(entry.path)
            else:
                of = entry.stat()
                found.append((entry.path, of.st_ino, of.st_size, of.st_ctime_ns))
    return sorted(found)


def store(kind: str = "metalhost", limit: int = LIMIT_BYTES) -> Store:
    """A store under MLX_LM_OPENEVOLVE_HOME, or under the user's cache folder."""
    root = folder() / kind
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = misplaced(root) or f"{root}: {error.strerror}; set {HOME}"
        raise MachineError(reason) from None
    return Store(root.resolve(), limit)


def folder() -> Path:
    """Where the stores lie, whether they were made yet or not."""
    home = os.environ.get(HOME)
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("mlx-lm-openevolve"))
