"""The part of docs/coverage.md about linear layers; model_coverage.py writes the page.

models.json has the sizes of some models under `linear`: hidden, intermediate (none where experts
take the feed-forward's place) and vocabulary; and under `experts` how many there are, how many a
token chooses, hidden, intermediate, and `mode` where they are published as mxfp4. All else is
packed as mlx-lm packs it where nothing is named: four bits in groups of 64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_lm_openevolve.ops.linear import Bucket

ROWS = (1, 2, 4, 8, 16, 32)
SEQUENCES = (1, 4, 8, 32)
BITS, GROUP = 4, 64

# A bucket and a backend -> (the kernel that is tried first, "" for none, its default params).
Serve = Callable[[Bucket, str], tuple[str, Mapping[str, int]]]


def matrices(row: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a model's projections, by name; {} where its sizes are not known."""
    sizes = row.get("linear")
    if not sizes:
        return {}
    (layer, *_) = row["attention"]
    hidden, wide = sizes["hidden"], sizes.get("intermediate")
    queries = layer.q_heads * layer.head_dim
    found = {
        "q": (queries, hidden),
        "k": (layer.kv_heads * layer.head_dim, hidden),
        "v": (layer.kv_heads * layer.v_head_dim, hidden),
        "o": (hidden, layer.q_heads * layer.v_head_dim),
    }
    if wide:
        found |= {"gate, up": (wide, hidden), "down": (hidden, wide)}
    return {**found, "vocabulary": (sizes["vocab"], hidden)}


def distinct(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The (outputs, inputs) of all models, each once."""
    return sorted({shape for row in rows for shape in matrices(row).values()})


def bucket(shape: tuple[int, int], rows: int) -> Bucket:
    """So many rows times such a matrix, packed. Raises WorkloadError where it cannot be."""
    return Bucket(rows, 1, *shape, "bfloat16", BITS, GROUP)


def experts(row: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a model's experts, by name; {} where it has none that were read."""
    sizes = row.get("experts")
    if not sizes:
        return {}
    hidden, wide = sizes["hidden"], sizes["intermediate"]
    return {"gate, up": (wide, hidden), "down": (hidden, wide)}


def expert_bucket(row: Mapping[str, Any], shape: tuple[int, int], sequences: int) -> Bucket:
    """The rows that a token of so many sequences gives to the experts of a model."""
    sizes = row["experts"]
    mode = sizes.get("mode", "affine")
    packing: Any = {"group": 32 if mode == "mxfp4" else GROUP, "variant": f"{mode}_experts"}
    packing |= {"bits": BITS, "experts": sizes["count"]}
    return Bucket(sequences * sizes["chosen"], 1, *shape, "bfloat16", **packing).bucket()


def lines(rows: Sequence[Mapping[str, Any]], serve: Serve, backends: Sequence[str]) -> list[str]:
    """The section, line by line."""
    shapes = distinct(rows)
    known = [row for row in rows if matrices(row)]
    made = ["## Linear layers", "", _INTRODUCTION.format(models=len(known), matrices=len(shapes))]
    made += ["| rows | " + " | ".join(backends) + " |", "|---|" + "---|" * len(backends)]
    for n in ROWS:
        counts = [sum(bool(serve(bucket(s, n), b)[0]) for s in shapes) for b in backends]
        cells = [f"{count} of {len(shapes)}" for count in counts]
        made.append(f"| {n} | {' | '.join(cells)} |")
    made += ["", "| matrices | " + " | ".join(backends) + " |", "|---|" + "---|" * len(backends)]
    alike: dict[tuple[str, ...], list[str]] = {}
    for shape in shapes:
        cells = tuple(cell(shape, backend, serve) for backend in backends)
        alike.setdefault(cells, []).append(f"{shape[0]} x {shape[1]}")
    for texts, those in alike.items():
        made.append(f"| {', '.join(those)} | {' | '.join(texts)} |")
    made += ["", "| model | outputs x inputs |", "|---|---|"]
    for row in known:
        by_shape: dict[tuple[int, int], list[str]] = {}
        for name, shape in matrices(row).items():
            by_shape.setdefault(shape, []).append(name)
        texts = [f"{', '.join(names)} {n} x {k}" for (n, k), names in by_shape.items()]
        made.append(f"| {row['name']} | {'; '.join(texts)} |")
    return [*made, "", *expert_lines(rows, serve, backends)]


def expert_lines(
    rows: Sequence[Mapping[str, Any]], serve: Serve, backends: Sequence[str]
) -> list[str]:
    """The section about experts, line by line."""
    known = [row for row in rows if experts(row)]
    shapes = sum(len(experts(row)) for row in known)
    made = ["### Experts", "", _EXPERTS.format(models=len(known), matrices=shapes)]
    made += ["| model | experts | outputs x inputs | " + " | ".join(backends) + " |"]
    made += ["|---|---|---|" + "---|" * len(backends)]
    for row in known:
        sizes = row["experts"]
        count = f"{sizes['chosen']} of {sizes['count']}"
        for name, (n, k) in experts(row).items():
            cells = []
            for backend in backends:
                buckets = {m: expert_bucket(row, (n, k), m) for m in SEQUENCES}
                cells.append(runs([(m, *serve(b, backend)) for m, b in buckets.items()]))
            packed = " (mxfp4)" if sizes.get("mode") == "mxfp4" else ""
            made.append(f"| {row['name']} | {count}{packed} | {name} {n} x {k} | "
                        f"{' | '.join(cells)} |")  # fmt: skip
    return [*made, ""]


def cell(shape: tuple[int, int], backend: str, serve: Serve) -> str:
    """What each number of rows runs on first."""
    return runs([(n, *serve(bucket(shape, n), backend)) for n in ROWS])


def runs(found: Sequence[tuple[int, str, Mapping[str, int]]]) -> str:
    """Numbers, each with a kernel and its params: those in a row that have the same as one."""
    texts = []
    for (kernel, params), run in itertools.groupby(found, lambda one: (one[1], dict(one[2]))):
        numbers = [n for n, *_ in run]
        which = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        said = ", ".join([f"**{kernel}**", *(f"{k} {v}" for k, v in params.items())])
        texts.append(f"{which}: {said if kernel else 'none (MLX)'}")
    return "; ".join(texts)


_INTRODUCTION = """\
Products of quantised layers (`linear`).
Four bits in groups of 64, bfloat16, by rows of x (sequences times tokens of a step). The sizes of
{models} models were read, {matrices} matrices in all; a tied embedding serves as the vocabulary's.
More than 32 rows are left to MLX. Matrices for which a kernel applies:
"""
_EXPERTS = """\
Products of experts (mlx-lm's `QuantizedSwitchLinear`), up to 256 rows: sequences times the experts
that a token chooses. The sizes of {models} models were read, {matrices} matrices of an expert. What
1, 4, 8 and 32 sequences run on first:
"""
