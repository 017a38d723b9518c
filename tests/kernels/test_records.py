from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_lm_openevolve.kernels import records


def test_a_record_reads_back_with_a_line_for_each_item(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record = {"verdicts": [{"a": 1}, {"b": [2, 3]}], "note": "x\ny"}
    records.write(path, record)
    assert records.read(path) == record
    assert '  {"a": 1},\n' in path.read_text()


def test_the_checksum_is_of_what_is_said_and_not_of_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records.write(path, {"b": 1, "a": [1.5]})
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    assert records.read(path) == {"b": 1, "a": [1.5]}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"a": 1}', "[" * 100_000, '{"checksum": "0"}', "\x00"]
)
def test_anything_else_is_a_value_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        records.read(path)


def test_a_changed_value_does_not_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records.write(path, {"ratio": 1.25})
    path.write_text(path.read_text().replace("1.25", "2.25"))
    with pytest.raises(ValueError, match="checksum"):
        records.read(path)


def test_a_record_longer_than_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write(tmp_path / "a.json", {"a": "x" * 100})
    monkeypatch.setattr(records, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="too long"):
        records.read(tmp_path / "a.json")


def test_numbers_that_json_lacks_become_text() -> None:
    held: dict[Any, Any] = {1: (float("inf"), [float("nan")], {"x": 2.0})}
    assert records.plain(held) == {"1": ["inf", ["nan"], {"x": 2.0}]}
