"""benchmarks/server_rate.py: its folder of a model, its prompts and figures; both servers once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import server_rate
from mlx_lm import load
from samples import TINY, needs_clang

from mlx_lm_openevolve.bench import model_configs


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the shapes there is a small one."""
    monkeypatch.setitem(model_configs.SHAPES, "tiny", {**TINY, "vocab_size": 512})


@needs_clang
def test_both_servers_answer_two_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rich", "openai"):  # a machine with a GPU may have mlx-lm alone
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    words = "--shape tiny --backend host --clients 2 --tokens 3 --shortest 4 --longest 30"
    words += f" --rounds 1 --warm-up 1 --seconds 1 --total 120 --output {tmp_path / 'found.json'}"
    assert server_rate.main(words.split()) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    stock, patched = found["rows"]
    assert (stock["arm"], patched["arm"]) == ("stock", "patched")
    for row in (stock, patched):
        assert row["errors"] == []
        assert len(row["requests"]) >= 2
        assert all(4 <= prompt <= 30 for prompt, _, _ in row["requests"])
        assert all(0 < first <= last for _, first, last in row["requests"])
        assert 0 < row["tokens_per_second"] * row["seconds"] <= 3 * len(row["requests"])
    assert patched["hits"] > 0
    assert found["ratio"]["ratio"] == pytest.approx(
        patched["tokens_per_second"] / stock["tokens_per_second"]
    )
    assert sum(hits for hits, _, _ in patched["workloads"].values()) == patched["hits"]
    begin = "python benchmarks/server_rate.py --shape tiny --clients 2 --tokens 3"
    assert found["command"].startswith(begin)
    assert str(tmp_path) not in found["command"]  # where it was written is nobody's business


@pytest.mark.parametrize("bits", ["", "4"])
def test_mlx_lm_loads_the_folder(bits: str, tmp_path: Path) -> None:
    server_rate.write_model(tmp_path, "tiny", bits)
    model, tokenizer = load(str(tmp_path))
    assert getattr(model.layers[0].mlp.up_proj, "bits", None) == (int(bits) if bits else None)
    assert tokenizer.encode("w7 w511 w0") == [7, 511, 0]
    assert tokenizer.eos_token_ids == {512}  # no token of the model
    detokenizer = tokenizer.detokenizer
    for token in range(512):
        detokenizer.add_token(token)
        assert detokenizer.last_segment == f"w{token}"


def test_prompts_are_the_same_ones_each_time_and_of_mixed_length() -> None:
    prompts = server_rate.Prompts(1000, 50, 3000)
    made = [prompts(i) for i in range(400)]
    assert made == [server_rate.Prompts(1000, 50, 3000)(i) for i in range(400)]
    assert len({tuple(prompt) for prompt in made}) == 400
    lengths = sorted(map(len, made))
    assert 50 <= lengths[0] < 60
    assert 2700 < lengths[-1] <= 3000
    assert lengths[200] == pytest.approx((50 * 3000) ** 0.5, rel=0.2)
    assert {token for prompt in made for token in prompt} == set(range(1000))


def row(arm: str, rate: float, *errors: str) -> dict[str, Any]:
    first = {"median": 1 / rate, "p90": 2 / rate}
    return {"arm": arm, "tokens_per_second": rate, "errors": errors, "first": first}


def test_the_ratio_is_of_medians_and_leaves_out_processes_with_errors() -> None:
    rows = [row("stock", 100), row("patched", 120), row("patched", 110), row("stock", 80)]
    rows.append(row("patched", 1, "the server ended with -6"))
    found = server_rate.ratio(rows, lambda row: row["tokens_per_second"])
    assert found == pytest.approx({"ratio": 115 / 90, "low": 1.1, "high": 1.5})
    assert server_rate.ratio(rows[:1] + rows[-1:], lambda row: 1.0) is None


def test_first_tokens_are_a_median_and_what_nine_in_ten_do_not_exceed() -> None:
    requests = [[100, 0.1 * i, 5.0] for i in range(11)]
    assert server_rate.first_tokens(requests) == pytest.approx({"median": 0.5, "p90": 0.9})
    assert server_rate.first_tokens([]) == {}
