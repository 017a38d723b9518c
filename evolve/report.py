"""Report: a run as one HTML file that needs nothing beside it, and its pictures as PNGs."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.errors import OpenEvolveError

from . import plots
from .archive import Archive
from .candidate import Candidate
from .ncu import describe
from .prompt import effect

__all__ = ["FAST", "pass_at", "summary", "write"]

FAST = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1c2330}
h1{margin-bottom:0}h2{margin-top:2em;border-bottom:1px solid #d5dae1}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}
td,th{padding:3px 9px;text-align:left;border-bottom:1px solid #e4e8ee;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td:first-child{white-space:nowrap}img{max-width:100%}pre{background:#f5f7fa;padding:8px;overflow-x:auto;font-size:12px}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:1em 0}.card{border:1px solid #d5dae1;
border-radius:6px;padding:8px 14px}.card b{display:block;font-size:20px}.m{color:#a4540a}
"""


def pass_at(valid: int, of: int, k: int) -> float:
    """Chance that at least one of k proposals, drawn from `of` with `valid` good ones, is good."""
    if k > of:
        return math.nan
    return 1 - math.comb(of - valid, k) / math.comb(of, k)


def _structural(archive: Archive) -> tuple[int, int]:
    """(valid, all) among finished proposals of new source."""
    done = [
        archive.done[n]
        for n, c in archive.candidates.items()
        if n in archive.done and c.proposer not in ("tune", "seed")
    ]
    return sum(not d.cause for d in done), len(done)


def summary(archive: Archive) -> list[str]:
    """A run in a few lines for a person."""
    ratio, low, high = archive.fitness()
    modelled = " (modelled)" if archive.config.backend == "host" else ""
    spent = archive.spent()
    fast = ", ".join(f"fast_{p:g} {archive.fast_p(p):.0%}" for p in FAST[:4])
    failed = ", ".join(f"{cause} {count}" for cause, count in archive.failures().items())
    return [
        f"{archive.folder.name}: {ratio:.3f}x [{low:.3f}, {high:.3f}]{modelled} over "
        f"{len(archive.slugs)} workloads on {archive.device.get('name', archive.config.backend)}",
        f"{len(archive.done)} candidates in {archive.elapsed / 60:.1f} min, "
        f"{archive.valid_share():.0%} valid; {fast}",
        f"failures: {failed or 'none'}; {spent['tokens']:.0f} tokens, ${spent['money']:.2f}",
        f"stopped: {archive.ended or 'not ended'}",
    ]


def write(archive: Archive, folder: Path) -> list[Path]:
    """Write report.html and the PNGs into a folder. Raises OpenEvolveError where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = plots.draw(archive, folder)
        page = folder / "report.html"
        page.write_text(_page(archive, pictures), encoding="utf-8")
    except OSError as error:
        raise OpenEvolveError(f"{folder}: {error.strerror or error}") from None
    return [page, *pictures.values()]


def _page(archive: Archive, pictures: dict[str, Path]) -> str:
    name = html.escape(archive.folder.name)
    ratio, low, high = archive.fitness()
    spent = archive.spent()
    valid, proposed = _structural(archive)
    minutes = archive.elapsed / 60
    cards = [
        ("speed-up over the suite", f"{ratio:.3f}x", f"[{low:.3f}, {high:.3f}]"),
        ("candidates", str(len(archive.done)), f"{len(archive.done) / max(minutes, 1e-9):.1f}/min"),
        ("valid", f"{archive.valid_share():.0%}", f"{len(archive.kernels)} kernels"),
        ("time", f"{minutes:.1f} min", html.escape(archive.ended or "not ended")),
        ("cost", f"${spent['money']:.2f}", f"{spent['tokens']:.0f} tokens"),
    ]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>',
        f"<style>{_STYLE}</style><h1>{name}</h1>",
        f"<p>{html.escape(_about(archive))}</p>",
        '<div class="cards">',
        *(f'<div class="card">{t}<b>{v}</b>{s}</div>' for t, v, s in cards),
        "</div>",
    ]
    if archive.config.backend == "host":
        parts.append(
            '<p class="m">Times are modelled from counters of the host backend, not measured; '
            "nothing of this is published to a GPU.</p>"
        )
    if not pictures:
        parts.append("<p>No pictures: matplotlib is not installed (extra <i>report</i>).</p>")
    parts += [
        _picture(pictures, "trajectory"),
        "<h2>Workloads</h2>",
        _picture(pictures, "workloads"),
        _workloads(archive),
        "<h2>fast_p and pass@k</h2>",
        _table(
            ["at least", "share of workloads"],
            [[f"{p:g}x", f"{archive.fast_p(p):.0%}"] for p in FAST],
        ),
        _table(
            ["k", f"pass@k ({valid} of {proposed} structural proposals were valid)"],
            [
                [str(k), f"{pass_at(valid, proposed, k):.0%}"]
                for k in (1, 3, 5, 10)
                if k <= proposed
            ],
        ),
        "<h2>Roofline</h2>",
        _picture(pictures, "roofline"),
        "<h2>Archive</h2>",
        _picture(pictures, "archive"),
        "<h2>Lineage of the winner</h2>",
        _lineage(archive),
        "<h2>Effect of each change</h2>",
        _changes(archive),
        "<h2>Failures</h2>",
        _picture(pictures, "failures"),
        _failures(archive),
        "<h2>Published</h2>",
        _published(archive),
        "</html>",
    ]
    return "\n".join(parts)


def _about(archive: Archive) -> str:
    config = archive.config
    device = archive.device.get("name") or config.backend
    return (
        f"Proposer {config.proposer}, backend {config.backend} on {device}, suite "
        f"{config.suite or 'named workloads'}, seed {config.seed}. Speed-up is SDPA's time over "
        "the kernel's; intervals are those of paired timing."
        + (f" No GPU profiles: {archive.unprofiled}." if archive.unprofiled else "")
    )


def _picture(pictures: dict[str, Path], name: str) -> str:
    if name not in pictures:
        return ""
    data = base64.b64encode(pictures[name].read_bytes()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(tag: str, value: Any) -> str:
        text = str(value)
        number = text[:1].isdigit() and len(text) < 14
        return f"<{tag}{' class=n' if number else ''}>{html.escape(text)}</{tag}>"

    lines = ["<table><tr>" + "".join(cell("th", h) for h in head) + "</tr>"]
    lines += ["<tr>" + "".join(cell("td", v) for v in row) + "</tr>" for row in rows]
    return "\n".join(lines) + "</table>"


def _workloads(archive: Archive) -> str:
    rows = []
    for slug in archive.slugs:
        base, best = archive.baseline.get(slug), archive.best.get(slug)
        row = [slug, f"{archive.weights[slug]:.2f}"]
        row += [f"{t * 1e6:.1f}" for t in (base.seconds, base.floor)] if base else ["", ""]
        row.append(base.bound if base else "")
        if best is not None:
            kernel, r, number = best
            params = " ".join(f"{k}={v}" for k, v in r.params.items())
            row += [
                f"{r.seconds * 1e6:.1f}",
                f"{r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}]",
                f"{r.spread:.1%}",
                f"{r.margin:.0%}",
                f"{kernel} #{number}",
                params,
                describe(r.profile),
            ]
        rows.append(row)
    head = ["workload", "use", "SDPA us", "floor us", "bound", "best us", "speed-up", "spread"]
    head += ["margin", "kernel", "params"]
    if any(best[1].profile for best in archive.best.values()):
        head.append("GPU profile")
    return _table(head, [row[: len(head)] for row in rows])


def _winner(archive: Archive) -> str:
    """The kernel with the best geometric mean over the suite."""
    kernels = [kernel for kernel in archive.kernel_best if archive.kernel_best[kernel]]
    return max(kernels, key=archive.kernel_fitness, default="")


def _lineage(archive: Archive) -> str:
    kernel, rows = _winner(archive), list[list[str]]()
    while kernel and kernel in archive.kernels and len(rows) < 50:
        candidate = archive.kernels[kernel]
        rows.append(_change_row(archive, candidate))
        kernel = candidate.parent
    return _table(["kernel", "candidate", "by", "change", "over its parent", "suite"], rows)


def _change_row(archive: Archive, candidate: Candidate) -> list[str]:
    gain = effect(archive, candidate.kernel, candidate.parent) if candidate.parent else 0.0
    return [
        candidate.kernel,
        f"#{candidate.number}",
        candidate.proposer,
        candidate.note or "-",
        f"{gain:.3f}x" if gain else "-",
        f"{archive.kernel_fitness(candidate.kernel):.3f}x",
    ]


def _changes(archive: Archive) -> str:
    changed = [
        c for c in archive.kernels.values() if c.parent and archive.kernel_best.get(c.kernel)
    ]
    changed.sort(key=lambda c: -effect(archive, c.kernel, c.parent))
    if not changed:
        return "<p>No kernel of this run was made from another.</p>"
    head = ["kernel", "candidate", "by", "change", "over its parent", "suite"]
    return _table(head, [_change_row(archive, c) for c in changed[:60]])


def _failures(archive: Archive) -> str:
    rows = []
    for number, done in sorted(archive.done.items()):
        if done.cause:
            candidate = archive.candidates[number]
            first = done.finding.strip().splitlines()[0] if done.finding.strip() else ""
            rows.append([f"#{number}", candidate.proposer, done.cause, candidate.note, first[:240]])
    if not rows:
        return "<p>None.</p>"
    return _table(["candidate", "by", "cause", "change", "finding"], rows[:200])


def _published(archive: Archive) -> str:
    rows = [
        [
            e.workload,
            e.kernel,
            f"{e.searched:.3f}",
            f"{e.ratio:.3f} [{e.low:.3f}, {e.high:.3f}]" if e.ratio is not None else "-",
            "accepted" if e.accepted else "rejected",
            e.reason,
        ]
        for e in archive.published
    ]
    if not rows:
        return "<p>Nothing was put before the gate.</p>"
    head = ["workload", "kernel", "in the search", "before the gate", "verdict", "reason"]
    return _table(head, rows)
