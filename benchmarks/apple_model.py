"""What a modelled time is worth: how a model orders kernels beside how a chip did.

A model takes what one launch did (its grid, its threadgroup, its counters) to seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_lm_openevolve.evolve import cost_model
from mlx_lm_openevolve.ops.base import NominalChip

Launch = Mapping[str, Any]
Model = Callable[[Launch], float]

# Bandwidth and flops as the record has them; the caches' bandwidth in the nominal chip's ratio.
M1_PRO = NominalChip(200e9, 800e9, 4500e9, 1.296e9, 4e-6, 14, 1024)
APART = 1.1  # the times of a pair that counts differ by more than this factor


def evolve_model(launch: Launch) -> float:
    """The model of `evolve --backend host`, with an M1 Pro's figures."""
    x, y, z = launch["grid"]
    return cost_model.launch_seconds(cost_model.traffic(launch["counters"]), x * y * z, M1_PRO)


def modelled(launches: Sequence[Launch], model: Model) -> float:
    """Seconds of launches one after another."""
    return sum(launch["repeats"] * model(launch) for launch in launches)


def ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Ranks, those of equal values averaged."""
    a = np.asarray(values)
    return np.array([(a < x).sum() + ((a == x).sum() - 1) / 2 for x in a], float)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one of them does not vary."""
    x, y = ranks(a), ranks(b)
    if len(x) < 2 or not x.std() or not y.std():
        return None
    return float(np.corrcoef(x, y)[0, 1])


def ordered_alike(seconds: Sequence[float], model: Sequence[float]) -> tuple[float, int]:
    """Of the pairs that are APART: how many the model orders alike (a tie is half), and how many
    there are."""
    alike, pairs = 0.0, 0
    for (s, m), (t, n) in itertools.combinations(zip(seconds, model, strict=True), 2):
        if max(s, t) > APART * min(s, t):
            pairs += 1
            alike += 0.5 if m == n else (m < n) == (s < t)
    return alike, pairs


def table(rows: Sequence[Mapping[str, Any]], model: Model) -> Iterator[dict[str, Any]]:
    """For each task and size: the kernels right on the chip, and how the model orders them."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for size in row.get("sizes", ()):
            if size["chip_right"] and size["right"]:
                point = size["chip_seconds"], modelled(size["launches"], model)
                groups.setdefault((row["task"], size["size"]), []).append(point)
    for (task, label), points in groups.items():
        seconds, model_seconds = zip(*points, strict=True)
        alike, pairs = ordered_alike(seconds, model_seconds)
        yield {
            "task": task, "size": label, "kernels": len(points),
            "spearman": spearman(model_seconds, seconds), "pairs": pairs,
            "alike": alike / pairs if pairs else None,
            "chip_spread": max(seconds) / min(seconds),
            "model_spread": max(model_seconds) / min(model_seconds),
        }  # fmt: skip


MODELS: dict[str, Model] = {"evolve": evolve_model}


def worth(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of each model, and the share of all pairs that it orders alike."""
    found = {}
    for name, model in MODELS.items():
        lines = list(table(rows, model))
        pairs = sum(line["pairs"] for line in lines)
        alike = sum(line["alike"] * line["pairs"] for line in lines if line["pairs"])
        found[name] = {"pairs": pairs, "alike": alike / pairs if pairs else None, "rows": lines}
    return {"chip": "Apple M1 Pro", "models": found}
