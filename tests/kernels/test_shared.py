"""A chip's kernels and verdicts in one file: what was measured elsewhere is tried, not believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import COPY_FIRST, kernel_meta, timed

from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.device import Device, detect, fingerprint
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.kernels import records, shared
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Verdict, gate_version
from mlx_lm_openevolve.ops.attention import Bucket
from mlx_lm_openevolve.runtime.planner import Planner

BUCKET = Bucket(1, 8, 2, 1, 1024, 64, 64, "bfloat16")
CHIP = Device("metal", "apple-m9", "Apple M9", "applegpu_g19")
FIRST, SECOND = (
    Kernel.from_parts(kernel_meta(name=name), {"copy.metal": COPY_FIRST}) for name in ("a", "b")
)


def verdict(kernel: Kernel, threads: int, ratio: float, **changes: Any) -> Verdict:
    fields = {
        "kernel": kernel.id,
        "params": {"threads": threads},
        "workload": BUCKET.slug,
        "correct": True,
        "faster": True,
        "reason": "correct and faster",
        "fingerprint": fingerprint(CHIP, gate_version("attention")),
        "timing": timed(ratio),
    }
    return Verdict(**{**fields, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What a machine with that chip wrote."""
    registry = Registry(tmp_path / "elsewhere")
    for kernel in (FIRST, SECOND):
        registry.add(kernel)
    for made in (verdict(FIRST, 16, 1.2), verdict(SECOND, 64, 1.9), verdict(FIRST, 64, 1.5)):
        registry.publish(CHIP.slug, made)
    path = tmp_path / "chip.json"
    shared.save(path, shared.collect([registry], CHIP.slug))
    return path


def test_a_foreign_machines_verdicts_are_candidates_in_the_order_of_their_ratio(
    file: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["device"], told["verdicts"], told["accepted"]) == (CHIP.slug, 3, 3)
    # Even on a machine with the very same chip and versions: it is another machine's word.
    planner = Planner(CHIP, [Registry(home)])
    assert planner.stored(BUCKET) is None
    assert planner.verdicts(BUCKET) == []
    tried = [(c.kernel, c.params["threads"]) for c in planner.candidates(BUCKET)]
    assert tried[:3] == [(SECOND, 64), (FIRST, 64), (FIRST, 16)]
    assert not any(c.trusted for c in planner.candidates(BUCKET))
    # What this machine's own gate says counts, and is exported as its own.
    Registry(home).publish(CHIP.slug, verdict(FIRST, 16, 1.1))
    own = Planner(CHIP, [Registry(home)])
    assert own.stored(BUCKET) is not None
    assert {c.kernel for c in own.candidates(BUCKET) if c.trusted} == {FIRST}
    assert len(shared.collect([Registry(home)], CHIP.slug).verdicts) == 1
    main(["list", "--json"])
    rows = json.loads(capsys.readouterr().out)["verdicts"]
    elsewhere = [row["stale"] for row in rows if row["device"] == shared.imported(CHIP.slug)]
    assert elsewhere == ["made by another machine"] * 3


def test_a_file_says_what_the_registry_said(file: Path) -> None:
    found = shared.load(file)
    assert {kernel.id for kernel in found.kernels} == {FIRST.id, SECOND.id}
    assert [v.ratio for v in found.verdicts] == [1.9, 1.5, 1.2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(format=2), "format 2, this release reads 1"),
        (lambda r: r.pop("kernels"), "'kernels'"),
        (lambda r: r.update(device="../../x"), "is no chip's name"),
        (lambda r: r.update(device=7), "expected string"),
        (lambda r: r.update(device="imported-apple-m9"), "is no chip's name"),
        (lambda r: r["kernels"].pop(), "which is not in the file"),
        (lambda r: r["kernels"][0]["meta"].update(name="../x"), "name"),
        (lambda r: r["kernels"][0]["sources"].clear(), "copy.metal"),
        (lambda r: r["kernels"][0]["sources"].update({"../../../../x": "x"}), "no launch reads"),
        (lambda r: r["kernels"][0]["sources"].update({"x.metal": 7}), "no launch reads"),
        (lambda r: r["kernels"][0].update(sources=[]), "sources: expected an object"),
        (lambda r: r["verdicts"][0]["params"].update(threads=7), "param threads is 7"),
        (lambda r: r["verdicts"][0]["params"].update(threads=10**4000), "param threads is 1000"),
        (lambda r: r["verdicts"][0].update(workload="attention-x"), "attention-x"),
        (lambda r: r["verdicts"][0].update(faster=False), "does not follow from the evidence"),
        (lambda r: r["verdicts"].append(None), "a verdict is no object"),
    ],
)
def test_a_bad_file_is_one_line_and_stores_nothing(
    change: Callable[[Any], Any],
    words: str,
    file: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = json.loads(file.read_text())
    del record["checksum"]
    change(record)
    records.write(file, record)
    assert main(["import", str(file)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(file) in said[0]
    assert words in said[0]
    assert len(said[0]) < 1000
    assert not (home / "v2").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"[]", "not an object"),
        (b"[" * 100_000, "recursion"),
        (b" " * (records.MAX_BYTES + 1), "too long"),
        (b'{"format": 1}', "checksum does not match"),
        (b"\xff", "codec can't decode"),
    ],
)
def test_what_is_no_such_file_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        shared.load(tmp_path / "x.json")


def test_a_link_is_not_followed_and_another_machines_word_is_not_passed_on(
    file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link.json").symlink_to(file)
    assert main(["import", str(tmp_path / "link.json")]) == 2
    assert main(["import", str(file)]) == 0
    on_host = detect().backend == "host"  # where `tune` alone ends with code 2
    then = "next: mlx-lm-openevolve tune" + " --backend host" * on_host
    assert capsys.readouterr().out.rstrip().endswith(then)
    capsys.readouterr()
    assert main(["export", "--device", "imported-apple-m9", str(tmp_path / "y.json")]) == 2
    assert "export it where it was measured" in capsys.readouterr().err
    assert main(["export", "--device", CHIP.slug, str(tmp_path / "y.json")]) == 2
    assert "is stored for 'apple-m9'" in capsys.readouterr().err
    assert main(["export", "--device", CHIP.slug, str(tmp_path / "y.txt")]) == 2
    assert "must end in .json" in capsys.readouterr().err
    file.with_name("folder.json").mkdir()
    Registry(home).publish(CHIP.slug, verdict(FIRST, 16, 1.1))
    assert main(["export", "--device", CHIP.slug, str(file.with_name("folder.json"))]) == 2
    assert f"{file.with_name('folder.json')}: Is a directory" in capsys.readouterr().err
    assert main(["import", str(file), "--out", "x"]) == 2
    assert main(["import", str(tmp_path / "program.py")]) == 2
    assert "--out FOLDER" in capsys.readouterr().err


def test_a_layouts_file_is_written_once_however_many_verdicts_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = tuple(verdict(FIRST, 16, 1.2, fingerprint={"device": str(i)}) for i in range(200))
    written: list[Path] = []
    write = records.write
    monkeypatch.setattr(records, "write", lambda p, r: (written.append(p), write(p, r)))
    shared.store(shared.Shared(CHIP.slug, (FIRST,), many), Registry(tmp_path / "r"))
    assert len(written) == 1
    assert len(Registry(tmp_path / "r").verdicts(shared.imported(CHIP.slug), BUCKET)) == 200
