"""benchmarks/mailbox_run.py: runs that are begun without a GPU, and a visit to one that is
simulated. The starters are right, on the CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import cuda_on_cpu
import mailbox_run
import pytest

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.evolve import pool
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.gate import correctness
from mlx_lm_openevolve.gate.static_rules import static_rules
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import shipped

NAME = "one-row"
EDIT = "NOTE: {}\nEDIT multiply.cu\n<<<<<<< SEARCH\n{}\n=======\n{}\n>>>>>>> REPLACE\n"


@pytest.mark.skipif(bool(cuda_on_cpu.unavailable()), reason="no C++ compiler, or no Linux on x86")
@pytest.mark.parametrize(
    ("starter", "slug"),
    [
        ("attention_one_warp", "attention-b2-hq4-hkv2-lq1-lk64-d128-v128-bfloat16-bool"),
        ("product_one_warp", "linear-m1-n70-k320-bfloat16-q4g64"),
    ],
)
def test_a_starter_is_right(starter: str, slug: str) -> None:
    kernel, bucket = Kernel.load(mailbox_run.STARTERS / starter), ops.parse(slug).bucket()
    assert not static_rules(kernel, {}, bucket)
    cases = (case() for case in ops.of(bucket).questions.cases(bucket, 0, True))
    assert not correctness.passes(lambda w: cuda_on_cpu.build(kernel, {}, w, 1), cases).reason


def test_every_run_has_a_handwritten_bar_and_a_starter_far_from_it() -> None:
    for starter, slug in mailbox_run.RUNS.values():
        kernel, bucket = Kernel.load(mailbox_run.STARTERS / starter), ops.parse(slug).bucket()
        assert kernel.applies_to(bucket)
        assert any(v.accepted for v in shipped().verdicts(mailbox_run.CHIP, bucket))


def test_prompts_lack_what_their_arm_says() -> None:
    kernel = "## The parent: x\nslug: 1x\n  GPU profile: 3 us\nFILE a.cu\n"
    change, failed, best = (
        "## Change #2: a -> b\n-c\n",
        "## Failed #3 (d): e\n",
        "## One of the best\n",
    )
    text = f"rules\n{kernel}{change}{best}{failed}## History\n#1 seed\n"
    assert mailbox_run.without(text, "") == text
    assert mailbox_run.without(text, "history") == f"rules\n{kernel}{best}"
    assert mailbox_run.without(text, "profile") == text.replace("  GPU profile: 3 us\n", "")


def test_a_visit_takes_what_was_answered_and_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers get the place of their prompt, whatever their numbers; a prompt shows no shipped
    kernel; a second visit without answers asks for nothing new."""
    support = str(Path(__file__).parents[1] / "support")
    monkeypatch.setattr(pool, "WORKER", "simulated_chip")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([support, *sys.path]))
    settings: dict[str, Any] = {"chip": "simulated", "seconds": 0.0, "native": True}
    monkeypatch.setenv("SIMULATED_CHIP", json.dumps(settings))
    monkeypatch.setattr(mailbox_run, "_LAST", 0.0)
    mailbox_run.prepare(tmp_path, NAME, ahead=4)
    run = tmp_path / NAME
    assert [p.name for p in sorted((run / "prompts").iterdir())] == [
        f"000{i}.md" for i in (1, 2, 3, 4)
    ]
    for number, old, new in (
        (2, "sum = 0.0f;", "sum = 0;"),
        (3, "nowhere", ""),
        (4, "if (lane == 0) {", "if (!lane) {"),
    ):
        (run / f"answers/000{number}.md").write_text(EDIT.format(f"idea {number}", old, new))
    mailbox_run.search(run, 60.0, 4, gate=False)
    mailbox_run.search(run, 60.0, 4, gate=False)
    archive = Archive.open(run, write=False)
    taken = {c.cost["answer"]: c for c in archive.candidates.values() if c.proposer == "mailbox"}
    assert [taken[f"000{i}.md"].island for i in (2, 3, 4)] == [2, 0, 1]
    causes = [archive.done[taken[f"000{i}.md"].number].cause for i in (2, 3, 4)]
    assert causes == ["", "answer", ""]
    repair, *others = sorted((run / "prompts").iterdir())[4:]
    assert len(others) == 3
    text = repair.read_text()
    assert f"repairs {taken['0003.md'].number}\n" in text
    assert "## The answer that failed" in text
    assert "nowhere" in text.split("## The answer that failed")[1]
    for kernel in shipped().kernels():
        assert all(kernel.id not in p.read_text() for p in (repair, *others))
    (row,) = mailbox_run.summary(tmp_path)
    assert (row["structural"], row["valid"], row["visits"]) == (3, 0.667, 2)
    assert row["most_alike"] < 0.2
    assert len(row["open"]) == 5
