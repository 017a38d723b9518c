"""Plots: the pictures of a report, as PNG files. Needs matplotlib (extra `report`).

Each function draws one picture of a run into matplotlib's axes. Speed-ups are SDPA's time over the
kernel's, times are in seconds. Where nothing was timed the least bytes over those moved take the
place of speed-ups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import features
from .archive import Archive
from .evaluation import geomean

__all__ = ["PICTURES", "draw"]

_BLUE, _ORANGE, _GREY, _RED, _GREEN = "#2563a8", "#d9822b", "#8a8f98", "#b3372f", "#3b8a4e"


def label(slug: str) -> str:
    """A workload's slug without what most have in common."""
    return slug.removeprefix("attention-").replace("-bfloat16", " bf16").replace("-none", "")


def trajectory(archive: Archive, axes: Any) -> None:
    """The suite's best score after each candidate with its interval; each candidate a point."""
    xs, ys = [], []
    for number, done in archive.done.items():
        if done.results:
            results = list(done.results.values())
            xs.append(number)
            ys.append(geomean(results, [1.0] * len(results))[0])
    axes.scatter(xs, ys, s=10, color=_GREY, label="a candidate, on its own workloads", zorder=2)
    failed = [number for number, done in archive.done.items() if done.cause]
    if failed:
        low = min([*ys, 1.0]) * 0.9
        axes.scatter(failed, [low] * len(failed), s=14, marker="x", color=_RED, label="failed")
    steps = [*archive.history]
    if archive.timed:
        steps.insert(0, {"number": 0, "ratio": 1.0, "low": 1.0, "high": 1.0})
    steps += [{**step, "number": max(archive.done, default=0)} for step in steps[-1:]]
    numbers = [step["number"] for step in steps]
    axes.step(
        numbers,
        [s["ratio"] for s in steps],
        where="post",
        color=_BLUE,
        label="best over the suite",
        zorder=3,
    )
    axes.fill_between(
        numbers,
        [s["low"] for s in steps],
        [s["high"] for s in steps],
        step="post",
        color=_BLUE,
        alpha=0.2,
        label="its interval",
    )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("candidate")
    axes.set_ylabel(_score(archive))
    axes.set_title("Best so far")
    axes.legend(fontsize=8)


def workloads(archive: Archive, axes: Any) -> None:
    """Score of the best kernel of each workload with its interval."""
    slugs = list(reversed([slug for slug in archive.slugs if slug in archive.best]))
    scores = [geomean([archive.best[slug].result], [1.0]) for slug in slugs]
    axes.barh(
        range(len(slugs)),
        [ratio for ratio, _, _ in scores],
        xerr=[[r - low for r, low, _ in scores], [high - r for r, _, high in scores]],
        color=[_GREEN if archive.timed and low > 1 else _GREY for _, low, _ in scores],
        ecolor="black",
        capsize=3,
    )
    axes.set_yticks(range(len(slugs)), [label(slug) for slug in slugs], fontsize=8)
    axes.set_ylim(-0.7, len(slugs) - 0.3)
    axes.axvline(1, color="black", linewidth=0.8)
    for i, (ratio, _, high) in enumerate(scores):
        axes.text(high, i, f" {ratio:.2f}", va="center", fontsize=8)
    axes.set_xlabel(_score(archive))
    axes.set_title("Best kernel of each workload")


def roofline(archive: Archive, axes: Any) -> None:
    """Every measured candidate below the device's memory bandwidth: Gflop/s over the flops for each
    byte that must move at least once."""
    points: dict[str, tuple[list[float], list[float]]] = {"valid": ([], []), "best": ([], [])}
    for number, done in archive.done.items():
        for slug, result in done.results.items():
            workload = archive.workload(slug)
            work = workload.flops()
            kind = "best" if archive.best.get(slug, ("", None, 0))[2] == number else "valid"
            points[kind][0].append(work / workload.moved_bytes())
            points[kind][1].append(work / result.seconds / 1e9)
    axes.scatter(*points["valid"], s=10, color=_GREY, label="a candidate")
    axes.scatter(*points["best"], s=28, color=_ORANGE, label="best of a workload")
    sdpa: tuple[list[float], list[float]] = ([], [])
    for slug, base in archive.baseline.items():
        workload = archive.workload(slug)
        sdpa[0].append(workload.flops() / workload.moved_bytes())
        sdpa[1].append(workload.flops() / base.seconds / 1e9)
    axes.scatter(*sdpa, s=30, marker="_", color=_RED, label=archive.stock)
    width = max((base.bandwidth for base in archive.baseline.values()), default=0.0)
    xs = [x for x in (*points["valid"][0], *points["best"][0], *sdpa[0]) if x > 0]
    if width and xs:
        left, right = min(xs) / 2, max(xs) * 2
        axes.plot(
            [left, right],
            [left * width / 1e9, right * width / 1e9],
            color=_BLUE,
            label=f"memory, {width / 1e9:.0f} GB/s",
        )
    if xs:  # else there is nothing that could be scaled
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("flops for a byte that must move")
    axes.set_ylabel("Gflop/s")
    axes.set_title("Roofline, every candidate")
    axes.legend(fontsize=8)


def cells(archive: Archive, axes: Any) -> None:
    """The archive's cells (MAP-Elites), all islands in one: strategies over tiers of the score, in
    each the score of its fittest kernel."""
    strategies = sorted({cell.split(" ", 1)[1] for c in archive.cells for cell in c})
    columns = len(features.SPEED_TIERS) + 1
    grid = [[math.nan] * columns for _ in strategies]
    for island in archive.cells:
        for cell, kernel in island.items():
            tiers, text = cell.split(" ", 1)
            row, column = strategies.index(text), int(tiers.split("-")[0])
            value = archive.kernel_fitness(kernel)
            if not grid[row][column] >= value:
                grid[row][column] = value
    if strategies:
        axes.imshow(grid, aspect="auto", cmap="YlGn")
    known = [value for values in grid for value in values if not math.isnan(value)]
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if not math.isnan(value):
                dark = value > (min(known) + max(known)) / 2  # the colours go from light to dark
                color = "white" if dark else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    ends = ["0", *(f"{end:g}" for end in features.SPEED_TIERS), ""]
    names = [f"{a}-{b}" if b else f">{a}" for a, b in itertools.pairwise(ends)]
    axes.set_xticks(range(columns), names, fontsize=8)
    axes.set_yticks(range(len(strategies)), [_strategy(text) for text in strategies], fontsize=8)
    axes.set_xlabel(f"tier of {_score(archive)}")
    axes.set_title("Archive: the fittest kernel of each cell")


def failures(archive: Archive, axes: Any) -> None:
    """Failed candidates by cause."""
    found = archive.failures()
    names = list(reversed(found))
    axes.barh(names, [found[name] for name in names], color=_RED)
    axes.set_xlabel("candidates")
    axes.set_title(f"Failures by cause ({archive.valid_share():.0%} of all candidates are valid)")


def _strategy(key: str) -> str:
    """A strategy's key (see features) in words."""
    vector, passes, split, memory, matrix = (key.split("/") + [""] * 5)[:5]
    parts = [f"vec{vector}", passes, "split" if split == "True" else "single", memory]
    return " ".join(p for p in [*parts, "matrix" if matrix == "True" else ""] if p)


def _score(archive: Archive) -> str:
    """What kernels are ranked by."""
    return f"speed-up over {archive.stock}" if archive.timed else "least bytes over bytes moved"


PICTURES: dict[str, Callable[[Archive, Any], None]] = {
    "trajectory": trajectory,
    "workloads": workloads,
    "roofline": roofline,
    "archive": cells,
    "failures": failures,
}


def draw(archive: Archive, folder: Path) -> dict[str, Path]:
    """Write the pictures into a folder that exists: their files by name; {} where matplotlib is not
    installed. Raises OSError where a file cannot be written."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    files = {}
    for name, picture in PICTURES.items():
        if name == "roofline" and not archive.timed:
            continue
        height = 3.0 + 0.28 * (len(archive.slugs) if name == "workloads" else 4)
        figure = Figure(figsize=(8.5, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        picture(archive, axes)
        files[name] = folder / f"{name}.png"
        figure.savefig(files[name], dpi=110)
    return files
