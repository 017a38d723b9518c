"""Publishing: what the gate is told of the kernel that serves already; its answer is scripted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evolve_kernels
import pytest
from samples import judged, timed

from mlx_lm_openevolve.evolve import publish, worker
from mlx_lm_openevolve.evolve.evaluation import Request
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Verdict

BUCKET = evolve_kernels.DECODE
KNOWN, FOUND = evolve_kernels.kernel(), evolve_kernels.kernel("// found\n" + evolve_kernels.BODY)
SERVES = judged(KNOWN, BUCKET, faster=True, timing=timed(4.0))


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the gate was told to time each winner beside."""
    told: list[Any] = []

    def judge(kernel: Any, params: Any, bucket: Any, backend: str, **options: Any) -> Verdict:
        told.append(options["rival"])
        times = {**timed(4.8), "beside": {"standing": 3.6}}
        return judged(kernel, bucket, params=params, faster=True, timing=times)

    monkeypatch.setattr(publish, "judge_in_worker", judge)
    monkeypatch.setattr(publish, "check_on_host", lambda *_: {"ok": True, "params": {}})
    return told


def test_a_winner_is_judged_beside_what_serves_in_that_registry(
    rivals: list[Any], home: Path, tmp_path: Path
) -> None:
    user = Registry(tmp_path / "user")
    user.add(KNOWN)
    user.publish("host", SERVES)
    for registry in (user, Registry(home)):
        publish.judged_here(FOUND, {"step": 1}, BUCKET, "host", registry)
    assert rivals == [(KNOWN, SERVES), None]


def test_each_chip_of_a_fleet_judges_beside_what_serves_there(
    rivals: list[Any], home: Path
) -> None:
    user = Registry(home)
    user.add(KNOWN)
    user.publish("host", SERVES)
    request = Request("gate", BUCKET.slug, 0, FOUND, {"step": 1}, "host")
    answer = worker.answer(request.to_json())
    assert rivals == [(KNOWN, SERVES)]
    # Where it was judged it is stored, and the order is that of the turns.
    assert answer["verdict"]["timing"]["beside"] == {"standing": 3.6}
    assert [v.kernel for v in user.verdicts("host", BUCKET)] == [KNOWN.id, FOUND.id]
