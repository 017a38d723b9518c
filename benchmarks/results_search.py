"""Tables of searches: runs, visits, winners, default params."""

from __future__ import annotations

import json

from results_source import (
    CHIP,
    H200,
    RESULTS,
    ROOT,
    TUNED,
    Source,
    Table,
    interval,
    tuned_caption,
)

from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.packed import unpacked
from mlx_lm_openevolve.ops import parse

HEURISTICS = {
    "h200-product-heuristic.json": "products of up to 8 rows, H200",
    "h200-decode-heuristic.json": "decoding, H200",
    "h100-product-heuristic.json": "products of up to 8 rows, H100",
    "h100-tiles-heuristic.json": "products of 9 to 32 rows, H100",
    "h100-decode-heuristic.json": "decoding, H100",
}


def heuristics() -> Table:
    """Default params: the share of the best measured speed, at shapes never seen by the search."""
    rows, below = [], []
    for name, what in HEURISTICS.items():
        data = json.loads((RESULTS / name).read_text())
        shares = (f"{row['sealed']:.0%}" for row in data["scores"].values())
        sealed = sum(shape["sealed"] for shape in data["shapes"])
        rows.append((what, f"{len(data['shapes'])}, {sealed} of them sealed", *shares))
        words = f"--points benchmarks/results/{data['points'][0]} --seed {data['seed']}"
        command = f"mlx-lm-openevolve evolve --proposer heuristic {words}"
        points = Source(data["points"][0], command)
        below.append(f"[{name}](benchmarks/results/{name}) over {points.caption()}")
    header = ("kernel", "shapes", *data["scores"])
    return Table(header, rows, below)


RUNS = {
    "h100-tune": "knobs of the native kernels, no model asked (`params`)",
    "h100-mailbox": "rewritten Metal kernels, proposed through `mailbox`",
    "h100-grid": "a prefill kernel at its defaults, the grid of OpenEvolve's SDPA example",
}


def runs() -> Table:
    """Runs of evolve kept in runs/: what the best of each workload came to."""
    rows, names = [], []
    for name, what in RUNS.items():
        with unpacked(ROOT / "benchmarks" / "runs" / f"{name}.tar.xz") as folder:
            archive = Archive.open(folder, write=False)
        ratios = [best.result.ratio for best in archive.best.values()]
        minutes = archive.spent()["seconds"] / 60
        rows.append(
            (what, str(int(archive.spent()["candidates"])), f"{minutes:.1f}", str(len(ratios)),
             f"{min(ratios):.2f} to {max(ratios):.2f}")
        )  # fmt: skip
        names.append(f"[{name}](benchmarks/runs/{name}.tar.xz)")
    header = ("run", "candidates", "minutes", "workloads", "best of each, MLX's time over its")
    command = "`mlx-lm-openevolve report benchmarks/runs/h100-tune.tar.xz` draws it"
    return Table(header, rows, [f"{CHIP}, 2026-11-21: {', '.join(names)}; {command}"])


VISITS = Source("mailbox-visits.json")


def visits() -> Table:
    """Searches from plain starters: how many kernels were written, and how they did."""
    rows = [
        (f"`{run['workloads'][0]}`", str(run["structural"]), f"{run['valid']:.0%}",
         str(run["candidates"]), f"{run['a_minute']:.0f}", f"{run['most_alike']:.0%}")
        for run in VISITS.data["rows"]
    ]  # fmt: skip
    header = ("workload", "kernels written", "of these right", "candidates", "a minute",
              "likest to a shipped")  # fmt: skip
    return Table(header, rows, [VISITS.caption()])


def winners() -> Table:
    """The best of each of these searches beside MLX and the kernel that was written by hand: at
    the gate, each in a run of its own, and in pairs of one run, in every visit or in the last."""
    rows = []
    gate = {event["workload"]: event for event in VISITS.data["gate"]}
    for run in VISITS.data["rows"]:
        (workload,) = run["workloads"]
        pairs = [visit[workload] for visit in run["beside"]]
        known = TUNED.verdicts(H200, parse(workload).bucket())
        by_hand = [v for v in known if v.accepted and v.kernel != gate[workload]["kernel"]]
        ships = TUNED.kernel(gate[workload]["kernel"])
        rows.append((
            f"`{workload}`", interval(gate[workload]),
            interval(by_hand[0].timing) if by_hand else "-",
            *("{:.2f} [{:.2f}, {:.2f}]".format(*pairs[-1][pair]["ratio"])
              for pair in ("stock/best", "stock/shipped")),
            # Before there was the winner, another kernel was the run's best.
            ", ".join(
                ("{:.2f}" if pair["best"] == gate[workload]["kernel"] else "({:.2f})").format(
                    pair["shipped/best"]["ratio"][0]
                )
                for pair in pairs
            ),
            f"`{ships.name}`" if ships else "no",
        ))  # fmt: skip
    header = ("workload", "the gate: MLX's time over the best", "over the handwritten kernel",
              "last visit: MLX's time over the best", "over the handwritten kernel",
              "handwritten kernel's time over the best, visit by visit (over an earlier best)",
              "ships")  # fmt: skip
    return Table(header, rows, [VISITS.caption(), tuned_caption(H200, "mlx-lm-openevolve tune")])
