"""benchmarks/metal_counters.py: the shipped kernels and MLX's own, counted side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import metal_counters
import mlx_attention
import pytest
from samples import needs_clang

from mlx_lm_openevolve.ops.attention.workload import Workload

DECODE = Workload(1, 16, 8, 1, 512, 128, 128, "bfloat16")


@needs_clang
def test_the_subset_counts_what_the_kernels_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert metal_counters.main(["--subset", "--json", "--output", str(tmp_path / "f")]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert json.loads((tmp_path / "f").read_text()) == record
    assert "counted on the CPU" in said.err
    assert "nothing is timed" in record["about"]

    rows = {(row["workload"], row["implementation"]): row for row in record["rows"]}
    ours = rows[DECODE.slug, "gqa_decode"]
    assert ours["kv_reads"] == pytest.approx(1, abs=1e-3), "two query heads share one read"
    assert 1 < ours["distinct_ratio"] <= ours["merged_ratio"] <= ours["requested_ratio"] < 1.3
    assert ours["line_bytes"] >= ours["distinct_bytes"], "every line that is touched"

    if any("is absent" in note for note in record["notes"]):
        pytest.skip(f"without MLX's source: {record['notes']}")
    # Each of 16 heads reads its keys and values; 32 simdgroups read its query.
    theirs = rows[DECODE.slug, "MLX sdpa_vector"]
    row = DECODE.head_dim * 2
    assert theirs["requested_bytes"] == 16 * (2 * 512 * row + 32 * row + row)
    assert theirs["compulsory_bytes"] == ours["compulsory_bytes"] == 8 * 2 * 512 * row + 32 * row
    steel = [key for key in rows if key[1] == "MLX steel_attention"]
    assert [Workload.parse(slug).q_len for slug, _ in steel] == [16]


@needs_clang
def test_what_is_no_attention_is_not_counted(copy_first_folder: Path) -> None:
    with pytest.raises(AssertionError, match=r"copy_first on .* is off by"):
        metal_counters.main(["--kernel", str(copy_first_folder), "--workload", DECODE.slug])


@needs_clang
def test_without_mlx_source_the_shipped_kernels_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object) -> Any:
        pytest.skip("no network")

    monkeypatch.setattr(mlx_attention.mlx, "include_root", offline)
    rows, notes = metal_counters.measure([DECODE], shipped_kernels(), {})
    assert [row["implementation"] for row in rows] == ["gqa_decode"]
    assert notes == [f"{DECODE.slug}: MLX's own kernel is absent: no network"]


def shipped_kernels() -> list[Any]:
    from samples import shipped_in_metal

    return [kernel for kernel in shipped_in_metal() if kernel.name == "gqa_decode"]


@pytest.mark.parametrize(
    ("change", "letter", "expected"),
    [
        ({}, "s", ("sdpa_vector", 0, 0)),
        ({"kv_len": 2048}, "g", ("sdpa_vector", 0, 0)),
        ({"kv_len": 2048}, "s", ("sdpa_vector_2pass", 64, 0)),
        ({"kv_len": 4096}, "g", ("sdpa_vector_2pass", 32, 0)),
        ({"kv_len": 4096, "kv_heads": 16}, "g", ("sdpa_vector", 0, 0)),
        ({"kv_len": 16384, "kv_heads": 2}, "s", ("sdpa_vector_2pass_gqa", 256, 4)),
        ({"kv_len": 16384, "kv_heads": 2, "mask": "bool"}, "d", ("sdpa_vector_2pass", 512, 0)),
        ({"q_len": 64}, "g", ("steel_attention", 0, 0)),
        ({"head_dim": 192}, "g", ("sdpa_vector", 0, 0)),
        ({"head_dim": 512, "v_head_dim": 512}, "g", None),  # sdpa_blocked.h, which is not counted
        ({"head_dim": 80, "v_head_dim": 80}, "g", None),
        ({"q_len": 8, "kv_heads": 2}, "s", None),  # 64 rows a KV head
    ],
)
def test_the_routes_are_those_of_mlx(
    change: dict[str, Any], letter: str, expected: mlx_attention.Route | None
) -> None:
    assert mlx_attention.route(replace(DECODE, **change), letter) == expected


def test_a_miss_names_its_causes() -> None:
    needed = DECODE.moved_bytes()
    row = {
        "workload": DECODE.slug,
        "implementation": "k",
        "kernel": "0123456789ab",
        "compulsory_bytes": needed,
        "requested_ratio": 2.5,
        "between_launches_bytes": needed // 4,
        "kv_reads": 2.0,
        "line_efficiency": 0.96,
    }
    (found,) = metal_counters.misses([row])
    # Queries and result are 16 KB of 2.1 MB: keys read twice are 0.996 of what is needed.
    assert "read again +0.996, partial results +0.250, queries read again and the rest +0.254" in (
        found
    )
    assert metal_counters.misses([{**row, "requested_ratio": 1.049}]) == []
    (found,) = metal_counters.misses([{**row, "requested_ratio": 1.0, "line_efficiency": 0.94}])
    assert found.endswith("line efficiency 0.940")
    assert metal_counters.misses([{**row, "kernel": ""}]) == [], "MLX's own have no goal"
