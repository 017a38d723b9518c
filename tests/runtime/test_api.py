"""What enable_optimizations() tells a person on a machine without a GPU."""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import base

import mlx_lm_openevolve
from mlx_lm_openevolve import errors
from mlx_lm_openevolve.runtime import api, session

LOG = "mlx_lm_openevolve"


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "told_idle", False)


def test_that_nothing_will_be_served_is_one_warning_a_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, LOG):
        for _ in range(2):
            with mlx_lm_openevolve.optimizations(backend="host"):
                pass
    (record,) = [r for r in caplog.records if "no GPU" in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert "\n" not in record.getMessage()


def test_where_results_are_compared_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOG):
        with mlx_lm_openevolve.optimizations(backend="host", require_faster=False):
            pass
        assert not caplog.records


def test_calls_without_a_cache_are_counted_and_told() -> None:
    q = mx.ones((1, 4, 8, 64), mx.bfloat16)
    with mlx_lm_openevolve.optimizations(backend="host"):
        for _ in range(3):
            base.scaled_dot_product_attention(q, q, q, cache=None, scale=1.0, mask=None)
        info = mlx_lm_openevolve.get_optimization_info()
        mlx_lm_openevolve.disable_optimizations()
    assert info["fallbacks"] == {"no cache, as in training": 3}
    line = session.summary(session.totals([{"problem": "", **info}]))
    assert line == (
        "0 attention calls on kernels, 3 attention calls on SDPA (no cache, as in training: 3),"
        " linear and step off (no GPU here, and on the CPU nothing is faster)"
    )


@pytest.mark.parametrize("path", [3, b"/nowhere", ["/nowhere"]])
def test_a_path_of_another_type_is_a_wrong_argument(path: Any) -> None:
    with pytest.raises(errors.UsageError, match="path is the path of a folder"):
        mlx_lm_openevolve.enable_optimizations(path)
