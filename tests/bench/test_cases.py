"""The cases of `bench`: the arithmetic of blocks, what is wrong with a case, and withdrawal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import judged, shipped_in_metal, timed

from mlx_lm_openevolve.bench import cases
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import STEP, TUNED_GATE, Verdict, gate_version
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.runtime.planner import Planner

BUCKET = Workload(1, 4, 2, 1, 16, 64, 64, "bfloat16")


def arm(rates: list[float], tokens: list[int], memory: float = 1.0) -> dict[str, Any]:
    rows = [{"prompt_tps": 10 * r, "generation_tps": r, "peak_memory": memory} for r in rates]
    return {"trials": rows, "tokens": tokens, "kv_bits": 0}


def test_a_blocks_ratio_is_that_of_its_means_and_drift_cancels() -> None:
    # The machine slows down by a third from block to block; patched is 1.5 times as fast.
    rows: dict[str, list[dict[str, Any]]] = {"stock": [], "patched": []}
    for speed in (90.0, 60.0, 40.0):
        rows["stock"] += [arm([speed - 2], [1, 2, 3, 4]), arm([speed + 2], [1, 2, 3, 4])]
        rows["patched"] += [arm([1.5 * speed], [1, 2, 9, 4], 2.0)] * 2
    found = cases.compared(rows)
    assert found["blocks"] == pytest.approx([1.5, 1.5, 1.5])
    assert (found["ratio"], found["low"], found["high"]) == pytest.approx((1.5, 1.5, 1.5))
    assert found["prompt_ratio"] == pytest.approx(1.5)
    assert found["memory_ratio"] == pytest.approx(2.0)
    assert found["equal_tokens"] == 2


def test_the_interval_spans_the_blocks_that_disagree() -> None:
    rows = {
        "stock": [arm([100.0], [1])] * 6,
        "patched": [arm([r], [1]) for r in (90.0, 90.0, 100.0, 100.0, 130.0, 130.0)],
    }
    found = cases.compared(rows)
    assert (found["low"], found["ratio"], found["high"]) == pytest.approx((0.9, 1.0, 1.3))


def case(**changes: Any) -> dict[str, Any]:
    logits = {"hits": 8, "stock": 1e-3, "patched": 1e-3, "difference": 1e-3}
    found = {"hits": 5, "blocks": [1.0, 1.1, 1.2], "ratio": 1.1, "low": 1.0, "high": 1.2}
    return found | {"logits": logits} | changes


@pytest.mark.parametrize(
    ("changes", "faster", "says"),
    [
        ({}, True, ""),
        ({"hits": 0}, True, "stock with stock"),
        ({"ratio": 0.98, "high": 0.985}, True, "slower than stock: 0.980x"),
        ({"ratio": 0.98, "high": 1.05}, True, "not told from noise"),
        ({"ratio": 0.98, "high": 0.98, "blocks": [0.98]}, True, "not told from noise"),
        ({"ratio": 0.01, "high": 0.02}, False, ""),
        ({"logits": {"hits": 8, "stock": 1e-3, "patched": 3e-3}}, True, "logits"),
        ({"logits": {"hits": 8, "stock": float("nan"), "patched": 0.0}}, True, "logits"),
        ({"logits": {"hits": 0, "stock": 1e-3, "patched": 1e-3}}, True, "without a kernel"),
        (
            {"hits": 0, "logits": {"hits": 0, "compiled": True, "stock": 1e-3, "patched": 1e-3}},
            True,
            "",
        ),
    ],
)
def test_what_is_wrong_with_a_case_is_said(
    changes: dict[str, Any], faster: bool, says: str
) -> None:
    found = cases.problems(case(**changes), faster)
    assert bool(found) == bool(says)
    assert says in " ".join(found)


@pytest.mark.parametrize("ships", [False, True], ids=["user's", "shipped by the gate before"])
def test_a_withdrawn_verdict_serves_no_longer_and_is_not_gated_again(
    home: Path, tmp_path: Path, ships: bool
) -> None:
    kernel = next(k for k in shipped_in_metal() if k.applies_to(BUCKET))
    stamp = fingerprint(detect("host"), TUNED_GATE if ships else gate_version("attention"))
    accepted = {"faster": True, "reason": "accepted", "timing": timed(1.3)}
    verdict = judged(kernel, BUCKET, fingerprint=stamp, **accepted)
    user = Registry(home)
    Registry(tmp_path / "tuned" if ships else home).publish("host", verdict)

    def planner() -> Planner:
        tuned = Registry(tmp_path / "tuned" if ships else tuned_root(), writable=False)
        return Planner(detect("host"), [Registry(home), tuned], only=kernel)

    assert planner().plan(BUCKET.bucket()).kernel == kernel
    other = replace(BUCKET, kv_len=32).slug
    found = case(
        ratio=0.9,
        averages={},
        routes={
            BUCKET.slug: {"hits": 3, "verdict": verdict.to_json()},
            other: {"hits": 0, "verdict": replace(verdict, workload=other).to_json()},
        },
    )
    assert cases.withdraw("code_generation", found, user, "host") == [BUCKET.slug]
    plan = planner().plan(BUCKET.bucket())
    assert plan.kernel is None
    assert plan.reason == "rejected: withdrawn: code_generation ran at 0.900x of stock end to end"
    (kept,) = Registry(home).verdicts("host", BUCKET)
    assert kept.correct
    assert kept.evidence["end_to_end"]["ratio"] == 0.9
    assert kept.timing == timed(1.3)


def test_a_whole_step_is_withdrawn_as_a_kernel_is(home: Path) -> None:
    user, stamp = Registry(home), fingerprint(detect("host"), gate_version(STEP))
    slugs = [f"step-b{batch}-llama-2layers-float32-0123456789ab" for batch in (1, 4)]
    for slug in slugs:
        took = {"ratio": 1.3, "low": 1.1, "high": 1.4}
        made = Verdict("compiled", {}, slug, True, True, "faster", stamp, timing=took, kind=STEP)
        user.publish("host", made)
    slower = case(ratio=0.9, averages={}, routes={})
    assert cases.withdraw("code_generation", slower, user, "host", {slugs[1]}) == [slugs[1]]
    found = {v.workload: v for v in Registry(home).about("host", STEP)}
    assert [found[slug].accepted for slug in slugs] == [True, False]
    assert not found[slugs[1]].ask_again, "`tune` judges it no more"
