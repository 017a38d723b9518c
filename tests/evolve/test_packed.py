"""Packed runs: what is packed is what is read, the kept runs open, and nothing else gets out."""

from __future__ import annotations

import argparse
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import evolve_kernels
import pytest
from rich.console import Console

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import commands, options, packed
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Config

KEPT = Path(__file__).parents[2] / "benchmarks" / "runs"
# Candidates and kernels of each kept run.
RUNS = {
    **{"h100-grid": (72, 1), "h100-mailbox": (34, 28), "h100-tune": (116, 7)},
    **{"mailbox-eight-sequences": (133, 39), "mailbox-four-rows": (173, 41)},
    **{"mailbox-one-row": (198, 41), "mailbox-one-sequence": (103, 39)},
}


def report(*argv: object) -> tuple[dict[str, object], str]:
    parser = argparse.ArgumentParser()
    options.add_report_arguments(parser)
    out = Console(file=io.StringIO(), record=True, width=200)
    code, result = commands.report(parser.parse_args([str(a) for a in argv]), out)
    assert code == 0
    return result, out.export_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was begun, with a kernel, a lock and a report."""
    folder = tmp_path / "begun"
    archive = Archive.create(folder, Config("host", (evolve_kernels.DECODE,), (1.0,)), {})
    archive.registry.add(evolve_kernels.kernel())
    archive.close()
    (folder / "report.html").write_text("made anew")
    (folder / "v2" / "kernels" / ".lock").touch()
    return folder


FILES = sorted(path.name for path in KEPT.iterdir() if path.is_file())
IN_CI = "h100-mailbox"  # two reports each: drawing takes a second or two


@pytest.mark.parametrize("name", FILES)
def test_every_kept_run_opens(name: str) -> None:
    candidates, kernels = RUNS[packed.name_of(KEPT / name)]
    with packed.unpacked(KEPT / name) as folder:
        archive = Archive.open(folder, write=False)
        assert len(archive.registry.kernels()) == len(archive.kernels) == kernels
        assert len(archive.done) == candidates


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith(IN_CI) else pytest.mark.slow)
        for name in FILES
    ],
)
def test_the_report_of_a_kept_run_is_that_of_its_folder(name: str, tmp_path: Path) -> None:
    file = KEPT / name
    candidates, _ = RUNS[packed.name_of(file)]
    with packed.unpacked(file) as folder:
        direct, _ = report(folder, "--out", tmp_path / "direct")
        page = (tmp_path / "direct" / "report.html").read_text()
    got, said = report(file, "--out", tmp_path / "page")
    assert not folder.exists()
    assert got["candidates"] == candidates
    assert got["run"] == str(file)
    assert {**got, "run": "", "files": []} == {**direct, "run": "", "files": []}
    assert (tmp_path / "page" / "report.html").read_text() == page
    assert said.startswith(f"{folder.name}: ")


def test_the_kept_runs_are_small() -> None:
    assert sum(path.stat().st_size for path in KEPT.glob("*.tar.xz")) < 400_000


def test_a_run_is_packed_without_what_can_be_made_anew(run: Path, tmp_path: Path) -> None:
    packed.pack(run, tmp_path / "one.tar.xz")
    packed.pack(run, tmp_path / "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    with packed.unpacked(tmp_path / "one.tar.xz") as folder:
        assert folder.name == "one"
        files = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
        assert all((folder / f).read_bytes() == (run / f).read_bytes() for f in files)
    of_run = {p.relative_to(run) for p in run.rglob("*") if p.is_file()}
    left_out = {Path("report.html"), Path(".lock"), Path("v2/kernels/.lock")}
    assert files == of_run - left_out
    assert Path("report.html") in of_run
    # Any tar reads it.
    with tarfile.open(tmp_path / "one.tar.xz") as archive:
        assert set(archive.getnames()) == {f.as_posix() for f in files}


def test_a_report_lies_beside_the_file(run: Path, tmp_path: Path) -> None:
    packed.pack(run, tmp_path / "kept.tar.xz")
    got, _ = report(tmp_path / "kept.tar.xz")
    assert str(tmp_path / "kept" / "report.html") in got["files"]  # type: ignore[operator]
    assert json.loads((run / "events.jsonl").read_text().splitlines()[0])["event"] == "start"


def test_what_is_no_run_or_no_plain_file_is_not_packed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        packed.pack(tmp_path, tmp_path / "x.tar.xz")
    (run / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="link: not a plain file"):
        packed.pack(run, tmp_path / "x.tar.xz")
    (run / "link").unlink()
    (run / "a b").touch()
    with pytest.raises(UsageError, match="'a b': not a plain name"):
        packed.pack(run, tmp_path / "x.tar.xz")
    (run / "a b").rename(run / ("a" * 101))
    with pytest.raises(UsageError, match=r"'a+': not a plain name"):
        packed.pack(run, tmp_path / "x.tar.xz")
    assert not (tmp_path / "x.tar.xz").exists()


def tar(*members: tuple[str, bytes, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar file of (name, type, content)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content)
            member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def sized(size: bytes) -> bytes:
    """A tar file of one member that says it is of that size (its field, in the header)."""
    header = bytearray(tar(("events.jsonl", tarfile.REGTYPE, b"")))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


FILE, LONG = tarfile.REGTYPE, "a" * 300
EVENTS = ("events.jsonl", FILE, b"{}\n")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (lambda: tar(("../out", FILE, b"x")), "'../out': not a plain name"),
    "root": (lambda: tar(("/tmp/out", FILE, b"x")), "'/tmp/out': not a plain name"),
    "up later": (lambda: tar(("v1/../../out", FILE, b"x")), "not a plain name"),
    "hidden": (lambda: tar((".hidden", FILE, b"x")), "not a plain name"),
    "control": (lambda: tar(("a\x1b[31m", FILE, b"x")), r"'a\\x1b\[31m': not a plain name"),
    "link": (lambda: tar(("link", tarfile.SYMTYPE, b"")), "link: not a plain file"),
    "hard link": (lambda: tar(("hard", tarfile.LNKTYPE, b"")), "hard: not a plain file"),
    "FIFO": (lambda: tar(("pipe", tarfile.FIFOTYPE, b"")), "pipe: not a plain file"),
    "device": (lambda: tar(("device", tarfile.CHRTYPE, b"")), "device: not a plain file"),
    "sparse": (lambda: tar(("sparse", tarfile.GNUTYPE_SPARSE, b"")), "sparse: not a plain file"),
    "GNU": (lambda: tar((LONG, FILE, b"x"), format=tarfile.GNU_FORMAT), "not a plain"),
    "pax": (lambda: tar((LONG, FILE, b"x"), format=tarfile.PAX_FORMAT), "not a plain"),
    "twice": (lambda: tar(("a", FILE, b"x"), ("a", FILE, b"y")), "a: .*there twice"),
    "below a file": (lambda: tar(EVENTS, ("a", FILE, b"x"), ("a/b", FILE, b"y")), "a/b: "),
    "many": (lambda: tar(*((f"f{i}", FILE, b"") for i in range(10_001))), "at most 10000 files"),
    "size": (lambda: sized(b"77777777777\0"), "events.jsonl: ends too early"),
    "minus one": (lambda: sized(b"\xff" * 12), "events.jsonl: ends too early"),
    "no header": (lambda: b"\xff" * 1024, "not a packed run"),
    "cut": (lambda: tar(("a", FILE, b"x" * 600))[:1024], "a: ends too early"),
    "bomb": (lambda: bytes(packed.MAX_BYTES + 1), "at most 64 MiB"),
    "no events": (lambda: tar(("a", FILE, b"x")), "run.tar.xz holds no run"),
    "empty": (lambda: b"", "run.tar.xz holds no run"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_line(name: str, tmp_path: Path) -> None:
    content, says = HOSTILE[name]
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    file = folder / "run.tar.xz"
    file.write_bytes(lzma.compress(content(), preset=0))
    with pytest.raises(UsageError, match=says) as caught:
        report(file)
    assert "\n" not in str(caught.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_a_damaged_file_ends_in_one_line(run: Path, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "run.tar.xz"
    packed.pack(run, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UsageError, match="not a packed run"):
        report(file)
    file.write_bytes(b"no xz file at all")
    with pytest.raises(UsageError, match="not a packed run"):
        report(file)


def test_a_file_that_wants_much_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.tar.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    file.write_bytes(lzma.compress(tar(("a", FILE, b"x")), filters=filters))
    with pytest.raises(UsageError, match="not a packed run: Memory"):
        report(file)
