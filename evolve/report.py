"""Report: a run as one HTML page that needs nothing beside it, and its pictures as PNG files.

report.html     speed-up, workloads, lineage of the best kernel, effect of each change, failures
*.png           the page's pictures (see plots)
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.errors import OpenEvolveError

from . import plots
from .archive import Archive
from .candidate import Candidate
from .ncu import describe
from .prompt import effect

__all__ = ["FAST", "pass_at", "summary", "write"]

FAST = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)  # the p of fast_p

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2330}
body{max-width:1120px;margin:2em auto;padding:0 1em}
h1{margin-bottom:0}h2{margin-top:2em;border-bottom:1px solid #d5dae1}
.t{overflow-x:auto;margin:1em 0}table{border-collapse:collapse;font-size:13px}
td,th{padding:3px 9px;text-align:left;border-bottom:1px solid #e4e8ee;vertical-align:top}
td,th{white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums}
.w{white-space:normal;min-width:16em}img{max-width:100%}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:1em 0}.card{border:1px solid #d5dae1;
border-radius:6px;padding:8px 14px}.card b{display:block;font-size:20px}.m{color:#a4540a}
@media(max-width:1150px){table{font-size:11px}td,th{padding:3px 5px}}
@media(max-width:860px){table{font-size:9px}td,th{padding:2px 3px}}
@media print{.t{overflow:visible}}
"""
_NUMBER = re.compile(r"[-+]?\d[\d.]*[x%]?|-?")
_PROSE = ("params", "GPU profile", "change", "finding", "reason")  # columns whose text may wrap


def pass_at(valid: int, of: int, k: int) -> float:
    """The chance that at least one of k proposals is valid, drawn from `of` of which `valid` are:
    the unbiased pass@k of HumanEval. NaN where k exceeds `of`."""
    if k > of:
        return math.nan
    return 1 - math.comb(of - valid, k) / math.comb(of, k)


def _new_sources(archive: Archive) -> tuple[int, int]:
    """(valid, all) among the finished candidates that brought new source."""
    done = [
        archive.done[n]
        for n, c in archive.candidates.items()
        if n in archive.done and c.proposer not in ("params", "seed")
    ]
    return sum(not d.cause for d in done), len(done)


def summary(archive: Archive) -> list[str]:
    """A run in four lines for a person: how it stands, candidates, failures, end."""
    spent = archive.spent()
    fast = ", ".join(f"fast_{p:g} {archive.fast_p(p):.0%}" for p in FAST[:4] if archive.timed)
    failed = ", ".join(f"{cause} {count}" for cause, count in archive.failures().items())
    return [
        f"{archive.folder.name}: {archive.standing()} over "
        f"{len(archive.slugs)} workloads on {archive.device.get('name', archive.config.backend)}",
        f"{len(archive.done)} candidates in {archive.elapsed / 60:.1f} min, "
        f"{archive.valid_share():.0%} valid{'; ' + fast if fast else ''}",
        f"failures: {failed or 'none'}; {spent['tokens']:.0f} tokens, ${spent['money']:.2f}",
        f"stopped: {archive.ended or 'not ended'}",
    ]


def write(archive: Archive, folder: Path) -> list[Path]:
    """Write report.html and its pictures into a folder, which is made; returns the files, the page
    first. Raises OpenEvolveError where a file cannot be written."""
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
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>',
        f"<style>{_STYLE}</style><h1>{name}</h1>",
        f"<p>{html.escape(_about(archive))}</p>",
        _cards(archive),
    ]
    if not archive.timed:
        parts.append(
            '<p class="m">There was no GPU: nothing is timed, and nothing of this is published. '
            "Kernels that are right are ranked by the bytes that they move on a small shape, which "
            "is not their speed.</p>"
        )
    if not pictures:
        parts.append("<p>No pictures: matplotlib is not installed (extra <i>report</i>).</p>")
    sections = [  # heading, picture, text below it
        ("", "trajectory", ""),
        ("Workloads", "workloads", _workloads(archive)),
        ("Chips" if archive.elsewhere else "", "", _chips(archive)),
        ("fast_p and pass@k" if archive.timed else "pass@k", "", _shares(archive)),
        ("Roofline" if archive.timed else "", "roofline", ""),
        ("Archive", "archive", ""),
        ("Lineage of the best kernel", "", _lineage(archive)),
        ("Effect of each change", "", _changes(archive)),
        ("Failures", "failures", _failures(archive)),
        ("Published", "", _published(archive)),
    ]
    for heading, picture, text in sections:
        title = f"<h2>{heading}</h2>" if heading else ""
        parts += [title, _picture(pictures, picture), text]
    return "\n".join([*filter(None, parts), "</html>"])


def _cards(archive: Archive) -> str:
    """The figures of the whole run."""
    spent, minutes = archive.spent(), archive.elapsed / 60
    rate = len(archive.done) / max(minutes, 1e-9)
    cards = [
        ("speed-up" if archive.timed else "bytes moved", *archive.standing().split(" ", 1)),
        ("candidates", str(len(archive.done)), f"{rate:.1f}/min"),
        ("valid", f"{archive.valid_share():.0%}", f"{len(archive.kernels)} kernels"),
        ("time", f"{minutes:.1f} min", html.escape(archive.ended or "not ended")),
        ("cost", f"${spent['money']:.2f}", f"{spent['tokens']:.0f} tokens"),
    ]
    made = [f'<div class="card">{title}<b>{value}</b>{more}</div>' for title, value, more in cards]
    return '<div class="cards">' + "".join(made) + "</div>"


def _shares(archive: Archive) -> str:
    """fast_p: the share of workloads at least p times as fast (KernelBench); pass@k."""
    valid, proposed = _new_sources(archive)
    fast = [[f"{p:g}x", f"{archive.fast_p(p):.0%}"] for p in FAST]
    passed = [
        [str(k), f"{pass_at(valid, proposed, k):.0%}"] for k in (1, 3, 5, 10) if k <= proposed
    ]
    title = f"pass@k ({valid} of {proposed} candidates with new source were valid)"
    shares = _table(["at least", "share of workloads"], fast) if archive.timed else ""
    return shares + _table(["k", title], passed)


def _about(archive: Archive) -> str:
    config = archive.config
    device = archive.device.get("name") or config.backend
    return (
        f"Proposer {config.proposer}, backend {config.backend} on {device}, suite "
        f"{config.suite or 'named workloads'}, seed {config.seed}."
        + (
            f" Speed-up is {archive.stock}'s time over the kernel's; intervals are those of paired "
            "timing."
            if archive.timed
            else " Bytes are those of the 128-byte lines that simdgroups touch; the least: every "
            "input that counts once, every output once."
        )
        + (f" No GPU profiles: {archive.unprofiled}." if archive.unprofiled else "")
    )


def _picture(pictures: dict[str, Path], name: str) -> str:
    if name not in pictures:
        return ""
    data = base64.b64encode(pictures[name].read_bytes()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table: columns of numbers are aligned to the right, prose wraps, nothing else does."""
    texts = [[str(value) for value in row] for row in rows]
    kinds = []
    for i, title in enumerate(head):
        numbers = all(_NUMBER.fullmatch(row[i]) for row in texts)
        kinds.append("w" if title in _PROSE else "n" if numbers else "")

    def line(tag: str, row: Sequence[str]) -> str:
        cells = []
        for text, kind in zip(row, kinds, strict=True):
            marked = f" class={kind}" if kind == "n" or (kind == "w" and tag == "td") else ""
            cells.append(f"<{tag}{marked}>{html.escape(text)}</{tag}>")
        return "<tr>" + "".join(cells) + "</tr>"

    lines = [line("th", head), *(line("td", row) for row in texts)]
    return '<div class="t"><table>' + "\n".join(lines) + "</table></div>"


def _workloads(archive: Archive) -> str:
    """Each workload's times and speed-up, or bytes, and in a second table the kernel that made
    it."""
    figures, kernels = [], []
    times = ["bound by", "floor us", f"{archive.stock} us", "best us", "speed-up", "interval"]
    head = ["workload", "weight", *(times if archive.timed else ["moved", "least", "times"])]
    for slug in archive.slugs:
        base, best = archive.baseline.get(slug), archive.best.get(slug)
        row = [slug, f"{archive.weights[slug]:.2f}"]
        if archive.timed:
            us = [f"{t * 1e6:.1f}" for t in (base.floor, base.seconds)] if base else ["", ""]
            row += [base.bound if base else "", *us]
        if best is None:
            figures.append(row + [""] * (len(head) - len(row)))
            continue
        kernel, r, number = best
        if archive.timed:
            row += [f"{r.seconds * 1e6:.1f}", f"{r.ratio:.3f}", _interval(r.low, r.high)]
        else:
            row += [str(r.counters[name]) for name in ("moved_bytes", "least_bytes")]
            row.append(f"{1 / r.score:.2f}x")
        figures.append(row)
        params = " ".join(f"{k}={v}" for k, v in r.params.items())
        spread = [f"{r.spread:.1%}"] if archive.timed else []
        row = [slug, kernel, f"#{number}", *spread, f"{r.margin:.0%}", params]
        kernels.append([*row, describe(r.profile)])
    text = _table(head, figures)
    if not kernels:
        return text
    spread = ["spread"] if archive.timed else []
    head = ["workload", "best kernel", "candidate", *spread, "margin", "params", "GPU profile"]
    shown = len(head) if any(row[-1] for row in kernels) else len(head) - 1
    return text + "\n" + _table(head[:shown], [row[:shown] for row in kernels])


def _chips(archive: Archive) -> str:
    """The best speed-up on each chip of a fleet, a column each, and the kernel that has it."""
    elsewhere = archive.best_elsewhere()
    if not elsewhere:
        return ""
    lead = {
        slug: {"kernel": b.kernel, "ratio": b.result.ratio, "low": b.result.low,
               "high": b.result.high}
        for slug, b in archive.best.items()
    }  # fmt: skip
    columns = {str(archive.device.get("slug", "")): lead, **elsewhere}

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return "-"
        return f"{row['ratio']:.3f} {_interval(row['low'], row['high'])} {row['kernel']}"

    rows = [[slug, *(cell(of.get(slug)) for of in columns.values())] for slug in archive.slugs]
    return _table(["workload", *columns], rows)


def _interval(low: float, high: float) -> str:
    return f"[{low:.3f}, {high:.3f}]"


def _fittest(archive: Archive) -> str:
    """The fittest kernel over the suite, "" where there is none."""
    kernels = [kernel for kernel in archive.kernel_best if archive.kernel_best[kernel]]
    return max(kernels, key=archive.kernel_fitness, default="")


def _lineage(archive: Archive) -> str:
    kernel, rows = _fittest(archive), list[list[str]]()
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
        _fitness(archive, candidate.kernel),
    ]


def _fitness(archive: Archive, kernel: str) -> str:
    fitness = archive.kernel_fitness(kernel)
    if archive.timed:
        return f"{fitness:.3f}x"
    return f"{1 / fitness:.2f}x the least" if archive.kernel_best.get(kernel) else "-"


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
