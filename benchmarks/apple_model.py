"""What a modelled time is worth: how a model orders kernels beside how a chip did.

A model takes what one launch did (its grid, its threadgroup, its counters) and a chip to seconds.
There are three: the one by which `evolve` ranked kernels without a GPU until this was known, one
fitted to the record, and the bytes that the simdgroups' 128-byte lines hold.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class NominalChip:
    """A chip in seven numbers: bytes a second from memory and from its cache, flops and cycles a
    second, seconds of a launch, cores, and threads that fill a core."""

    bandwidth: float
    cache: float
    flops: float
    clock: float
    launch: float
    cores: int
    threads: int


Launch = Mapping[str, Any]
Row = Mapping[str, Any]
Model = Callable[[Launch, NominalChip], float]
Floats = NDArray[np.float64]

# Bandwidth and flops as the record has them; the caches' bandwidth in the nominal chip's ratio.
M1_PRO = NominalChip(200e9, 800e9, 4500e9, 1.296e9, 4e-6, 14, 1024)
APART = 1.1  # the times of a pair that counts differ by more than this factor


def evolve_model(launch: Launch, chip: NominalChip) -> float:
    """Seconds of a launch: the largest of memory, cache and flops at the chip's rates, of which a
    core that lacks threads to hide latency has a share; barriers and bank conflicts stall a
    threadgroup, and the cores take threadgroups side by side."""
    c = launch["counters"]
    moved = c["compulsory_read_bytes"] + c["compulsory_write_bytes"]
    seconds = max(moved / chip.bandwidth, bytes_moved(launch, chip), c["flops"] / chip.flops)
    filled = min(1.0, math.prod(launch["grid"]) / (chip.cores * chip.threads))
    stalled = (c["barriers"] * 40 + c["threadgroup_cycles"]) / (chip.cores * chip.clock)
    return chip.launch + seconds / (0.1 + 0.9 * filled) + stalled


def bytes_moved(launch: Launch, chip: NominalChip) -> float:
    """What `evolve` ranks by without a GPU, over the caches' bandwidth: seconds."""
    lines = launch["counters"]["read_lines"] + launch["counters"]["write_lines"]
    return float(128 * lines / chip.cache)


# ---- how a model orders kernels ----------------------------------------------------------------


def ranks(values: Sequence[float]) -> Floats:
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
            alike += 0.5 if math.isclose(m, n, rel_tol=1e-9) else (m < n) == (s < t)
    return alike, pairs


Groups = dict[tuple[str, str], list[tuple[float, Sequence[Launch]]]]


def groups(rows: Sequence[Row]) -> Groups:
    """By task and size: the chip's seconds and the launches of the kernels that are right both
    there and here."""
    found: Groups = {}
    for row in rows:
        for size in row.get("sizes", ()):
            if size["chip_right"] and size["right"]:
                point = size["chip_seconds"], size["launches"]
                found.setdefault((row["task"], size["size"]), []).append(point)
    return found


def modelled(launches: Sequence[Launch], model: Model, chip: NominalChip = M1_PRO) -> float:
    """Seconds of launches one after another."""
    return sum(launch["repeats"] * model(launch, chip) for launch in launches)


def table(found: Groups, model: Model) -> Iterator[dict[str, Any]]:
    """For each task and size, how a model orders its kernels."""
    for (task, label), points in found.items():
        seconds = [s for s, _ in points]
        ours = [modelled(launches, model) for _, launches in points]
        alike, pairs = ordered_alike(seconds, ours)
        rho = spearman(ours, seconds)
        yield {
            "task": task, "size": label, "kernels": len(points),
            "spearman": None if rho is None else round(rho, 3), "pairs": pairs,
            "alike": round(alike / pairs, 3) if pairs else None,
            "chip_spread": round(max(seconds) / min(seconds), 2),
            "modelled_spread": round(max(ours) / min(ours), 2),
        }  # fmt: skip


def share(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of pairs ordered alike over the lines of a table."""
    pairs = sum(line["pairs"] for line in lines)
    alike = sum(line["alike"] * line["pairs"] for line in lines if line["pairs"])
    return round(alike / pairs, 3) if pairs else None


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table with its shares: over all pairs, and of each task."""
    tasks = dict.fromkeys(line["task"] for line in lines)
    by_task = {t: share([line for line in lines if line["task"] == t]) for t in tasks}
    pairs = sum(line["pairs"] for line in lines)
    return {"pairs": pairs, "alike": share(lines), "by_task": by_task, "rows": list(lines)}


# ---- a model fitted to the record --------------------------------------------------------------

RESIDENT_THREADS, RESIDENT_BYTES = 2048, 65536  # of threadgroups that a core holds at once
BARRIER, DEPENDENT, ISSUE = 30, 4, 4  # cycles of a barrier, of an instruction; simdgroups a cycle


def costs(launch: Launch, chip: NominalChip) -> Floats:
    """What may bound a launch, in seconds each: the launch itself; bytes from memory; lines from
    the caches; accesses; instructions; those lost to divergence; threadgroup memory; operations of
    simdgroups; one simdgroup's chain of instructions and one threadgroup's barriers, for each wave
    of threadgroups that the cores hold; and memory and instructions again, for the share of a core
    that is left empty. Registers are not known here."""
    c, threads = launch["counters"], math.prod(launch["threadgroup"])
    count = max(1.0, math.prod(launch["grid"]) / threads)
    fits = RESIDENT_BYTES // max(1, int(c["threadgroup_memory"]))
    resident = max(1, min(RESIDENT_THREADS // threads, fits))
    waves = math.ceil(count / (chip.cores * resident))
    cycle = 1 / (min(count, chip.cores) * chip.clock)
    slots = c["issue_slots"] / 32
    memory = (c["compulsory_read_bytes"] + c["compulsory_write_bytes"]) / chip.bandwidth
    issue = slots * cycle / ISSUE
    empty = 1 - min(1.0, min(resident, count / chip.cores) * threads / RESIDENT_THREADS)
    return np.array([
        chip.launch,
        memory,
        bytes_moved(launch, chip),
        (c["read_accesses"] + c["write_accesses"]) * cycle,
        issue,
        (c["issue_slots"] - c["instructions"]) / 32 * cycle / ISSUE,
        c["threadgroup_cycles"] * cycle,
        c["simd_ops"] * cycle,
        slots / (count * math.ceil(threads / 32)) * DEPENDENT * waves / chip.clock,
        c["barriers"] / count * BARRIER * waves / chip.clock,
        (memory + issue) * empty,
    ])  # fmt: skip


def fit(found: Groups, steps: int = 1000) -> Floats:
    """Weights of `costs`, none negative, whose sum orders the pairs that are APART as the chip did:
    logistic regression on the logarithms, by gradient descent (Adam); each task counts alike."""
    tasks = [task for task, _ in found]
    data = []
    for (task, _), points in found.items():
        seconds = np.log([s for s, _ in points])
        parts = np.array([
            np.sum([x["repeats"] * costs(x, M1_PRO) for x in launches], axis=0)
            for _, launches in points
        ])  # fmt: skip
        i, j = np.triu_indices(len(points), 1)
        apart = np.abs(seconds[i] - seconds[j]) > math.log(APART)
        i, j = i[apart], j[apart]
        if len(i):
            data.append((parts, i, j, np.sign(seconds[i] - seconds[j]), 1 / tasks.count(task)))
    logs = np.zeros(len(costs(next(iter(found.values()))[0][1][0], M1_PRO)))
    mean, square = np.zeros_like(logs), np.zeros_like(logs)
    for step in range(1, steps + 1):
        gradient, weights = np.zeros_like(logs), np.exp(logs)
        for parts, i, j, sign, weight in data:
            total = parts @ weights
            slope = parts * weights / total[:, None]  # of log(total) in the weights' logarithms
            margin = 8 * sign * np.log(total[i] / total[j])
            pull = -8 * sign / (1 + np.exp(margin))
            gradient += weight * (pull[:, None] * (slope[i] - slope[j])).mean(axis=0)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        move = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
        logs = np.clip(logs - 0.05 * move, -12, 6)
    return np.exp(logs)


def weighted(weights: Floats, launch: Launch, chip: NominalChip) -> float:
    """The fitted model."""
    return float(weights @ costs(launch, chip))


def left_out(found: Groups) -> Iterator[dict[str, Any]]:
    """The table in which each task is ordered by weights that were fitted to the others."""
    for task in dict.fromkeys(task for task, _ in found):
        others = {key: points for key, points in found.items() if key[0] != task}
        mine = {key: points for key, points in found.items() if key[0] == task}
        yield from table(mine, functools.partial(weighted, fit(others)))


# ---- what a perfect model could do -------------------------------------------------------------


def at_best(seconds: Sequence[float], noise: float) -> float | None:
    """The share of pairs that the kernels' true times would order as the chip's single measurements
    did, where both these and their errors are normal in the logarithm and the errors deviate by
    `noise`; None without pairs."""
    logs = np.log(seconds)
    kept = max(0.0, 1 - noise**2 / max(float(logs.var()), 1e-12))  # the true times' share of it
    gaps = [abs(a - b) for a, b in itertools.combinations(logs, 2) if abs(a - b) > math.log(APART)]
    if not gaps or not noise:
        return 1.0 if gaps else None
    sure = [0.5 + 0.5 * math.erf(math.sqrt(kept) * gap / (2 * noise)) for gap in gaps]
    return sum(sure) / len(sure)


def perfect(found: Groups, noise: Mapping[str, float]) -> dict[str, Any]:
    """`at_best` over all pairs and of each task."""
    lines = []
    for (task, _), points in found.items():
        seconds = [s for s, _ in points]
        _, pairs = ordered_alike(seconds, seconds)
        lines.append({"task": task, "pairs": pairs, "alike": at_best(seconds, noise[task])})
    return {key: summary(lines)[key] for key in ("pairs", "alike", "by_task")}


def worth(rows: Sequence[Row], noise: Mapping[str, float]) -> dict[str, Any]:
    """How the models order the kernels of the record. noise: of each task, the deviation of the
    logarithm of a kernel's time from run to run."""
    found = groups(rows)
    models = {
        "evolve": summary(list(table(found, evolve_model))),
        "bytes moved": summary(list(table(found, bytes_moved))),
        "perfect": perfect(found, noise),
    }
    if len({task for task, _ in found}) > 1:
        weights = fit(found)
        lines = list(table(found, functools.partial(weighted, weights)))
        models["fitted to all"] = {"weights": weights.round(4).tolist(), **summary(lines)}
        models["fitted to the other tasks"] = summary(list(left_out(found)))
    return {"chip": "Apple M1 Pro", "apart": APART, "models": models}
