"""The atomic writer: whole files or none, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from mlx_lm_openevolve.files import write_atomic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_a_file_is_created_and_replaced(folder: Path) -> None:
    path = folder / "x.json"
    for data in (b"old", b"a longer one", b""):
        write_atomic(path, data, durable=True)
        assert path.read_bytes() == data
    assert list(folder.iterdir()) == [path]


def test_who_may_read_is_what_the_user_says(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(folder / "x", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "x").stat().st_mode) == 0o640


def test_what_fails_leaves_the_old_file_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "x"
    write_atomic(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # the disk takes no more
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new", durable=True)
    with pytest.raises(FileNotFoundError):
        write_atomic(folder / "nowhere" / "x", b"")
    with pytest.raises(OSError, match="directory"):
        write_atomic(folder, b"")
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]


def test_a_reader_never_sees_a_part(folder: Path) -> None:
    path, size = folder / "x", 1 << 20
    write_atomic(path, b"a" * size)

    def write() -> None:
        for i in range(40):
            write_atomic(path, bytes([97 + i % 26]) * size)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert len(data) == size
        assert data == data[:1] * size
    assert list(folder.iterdir()) == [path]
