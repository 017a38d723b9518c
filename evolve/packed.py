"""Packed runs: a finished run of `evolve` as one .tar.xz file, to be kept as evidence.

    python -m mlx_lm_openevolve.evolve.packed RUN [FILE]      RUN.tar.xz beside the run's folder

The file holds what the run's folder held, except locks and the report, which can be made anew.
Packing is reproducible: the same run gives the same bytes. `report` opens a packed run as it opens
a folder.
"""

from __future__ import annotations

import argparse
import io
import lzma
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_lm_openevolve.errors import OpenEvolveError, UsageError

__all__ = ["SUFFIX", "is_packed", "name_of", "pack", "unpacked"]

SUFFIX = ".tar.xz"
MAX_BYTES = 64 << 20  # of a run, unpacked
MAX_FILES = 10_000
_MAX_DECODER_BYTES = 128 << 20  # xz -9, the largest preset, needs half of it
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
# The report and locks.
_LEFT_OUT = re.compile(r"report\.html|[a-z]+\.png|.*\.lock")


def is_packed(path: Path) -> bool:
    """Whether a path is a file that is named as packed runs are."""
    return path.name.endswith(SUFFIX) and path.is_file()


def name_of(path: Path) -> str:
    """The run's name: that of its packed file, without the suffix."""
    return path.name.removesuffix(SUFFIX)


def pack(run: Path, file: Path) -> None:
    """Pack the run in a folder. Raises UsageError where the folder holds none, or holds what
    `unpacked` would refuse, and OpenEvolveError where a file cannot be read or written."""
    if not (run / "events.jsonl").is_file():
        raise UsageError(f"{run} holds no run (no events.jsonl)")
    data = io.BytesIO()
    try:
        with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path in sorted(run.rglob("*")):
                inside = path.relative_to(run).as_posix()
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise UsageError(f"{path}: not a plain file")
                if path.is_dir() or _LEFT_OUT.fullmatch(inside):
                    continue
                _check_name(inside, run)
                # Owner, time and mode are TarInfo's defaults: the bytes depend on the run alone.
                member, content = tarfile.TarInfo(inside), path.read_bytes()
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        _members(data.getvalue(), run)
        file.write_bytes(lzma.compress(data.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    except OSError as error:
        raise OpenEvolveError(f"{error.filename}: {error.strerror or error}") from None


@contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """The run in a packed file as a folder of its name, which is gone afterwards.

    Raises UsageError where the file is damaged, holds anything but plain files below one folder, or
    is larger than a run may be. Nothing is written then.
    """
    members = _members(_decompressed(file), file)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / name_of(file)
        try:
            for name, content in members.items():
                (run / name).parent.mkdir(parents=True, exist_ok=True)
                with (run / name).open("xb") as written:
                    written.write(content)
        except OSError as error:
            raise UsageError(f"{file}: {name}: {error.strerror or error}") from None
        yield run


def _decompressed(file: Path) -> bytes:
    """The tar file within. Raises UsageError where it is damaged or too large."""
    try:
        with file.open("rb") as packed:
            data = packed.read(MAX_BYTES + 1)
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_DECODER_BYTES)
        content = decoder.decompress(data, max_length=MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None
    except (lzma.LZMAError, EOFError) as error:
        raise UsageError(f"{file}: not a packed run: {error}") from None
    if len(content) > MAX_BYTES:
        raise UsageError(f"{file}: a run is at most {MAX_BYTES >> 20} MiB")
    if not decoder.eof:
        raise UsageError(f"{file}: not a packed run: it ends too early")
    return content


def _check_name(name: str, source: Path) -> None:
    plain = all(map(_PLAIN_NAME.fullmatch, name.split("/")))
    if not plain or len(name) > tarfile.LENGTH_NAME:
        raise UsageError(f"{source}: {name[:80]!a}: not a plain name")


def _members(data: bytes, source: Path) -> dict[str, bytes]:
    """The files of a tar file by their names. Raises UsageError for what may not be in it.

    Headers are read one by one, not by TarFile, which follows extended headers: sizes and names of
    their own, sparse files of any size, links.
    """
    found: dict[str, bytes] = {}
    at = 0
    while any(header := data[at : at + tarfile.BLOCKSIZE]):
        try:
            member = tarfile.TarInfo.frombuf(header, "ascii", "replace")
        except tarfile.TarError as error:
            raise UsageError(f"{source}: not a packed run: {error}") from None
        at += tarfile.BLOCKSIZE
        _check_name(member.name, source)
        if member.type == tarfile.DIRTYPE:
            continue
        if member.type != tarfile.REGTYPE or member.name in found:
            raise UsageError(f"{source}: {member.name}: not a plain file, or there twice")
        if not 0 <= member.size <= len(data) - at:
            raise UsageError(f"{source}: {member.name}: ends too early")
        found[member.name] = data[at : at + member.size]
        at += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if len(found) > MAX_FILES:
            raise UsageError(f"{source}: a run has at most {MAX_FILES} files")
    if "events.jsonl" not in found:
        raise UsageError(f"{source} holds no run (no events.jsonl)")
    return found


def main() -> None:
    """Pack a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE")
    options = parser.parse_args()
    run = options.run.resolve()
    pack(run, options.file or run.with_name(run.name + SUFFIX))


if __name__ == "__main__":
    main()
