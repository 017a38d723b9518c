"""Writes the tables of README.md and docs/results.md, and two pictures, from what was measured.

    python benchmarks/results_page.py

The tables are made in results_models.py (whole models), results_calls.py (single calls) and
results_search.py (searches). A table stands in a page between the comments `table: NAME` and
`end`. tests/benchmarks/test_results_page.py holds that pages and pictures are what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import results_calls as calls
import results_models as models
import results_search as search
from results_source import ROOT, Table, interval

TABLES: dict[str, Callable[[], Table]] = {
    "tokens": models.tokens, "tokens-h100": lambda: models.tokens(models.ON_H100),
    "memory": models.memory, "prompts": models.prompts, "first-token": models.first,
    "server": models.server, "kv-bits": models.kv_bits, "kv-steps": models.kv_steps,
    "step": models.step, "compiled": models.compiled, "settings": models.settings,
    "presets": models.presets, "step-verdicts": models.step_verdicts,
    "calls": calls.calls, "verdicts": calls.verdicts, "gate-3": calls.gate_3,
    "tuned": calls.tuned, "gpu-time": calls.gpu_time, "products": calls.products,
    "products-verdicts": calls.products_verdicts, "experts": calls.experts,
    "overhead": calls.overhead, "overhead-gpu": calls.overhead_gpu,
    "sanitizer": calls.sanitizer, "accept-rule": calls.accept,
    "runs": search.runs, "visits": search.visits, "winners": search.winners,
    "heuristics": search.heuristics,
}  # fmt: skip
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("results", "gate")))
_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lines(table: Table, page: Path) -> list[str]:
    """Markdown; links lead from the page."""
    up = "" if page.parent == ROOT else "../"
    found = ["| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    found += ["| " + " | ".join(row) + " |" for row in table.rows]
    below = dict.fromkeys(table.below)
    found += ["", *(f"{text.replace('](', f']({up}')}<br>" for text in below)]
    found[-1] = found[-1].removesuffix("<br>")
    return found


def written(page: Path) -> str:
    """The page with its tables made anew."""

    def one(match: re.Match[str]) -> str:
        table = TABLES[match[2]]()
        return "\n".join([match[1], *lines(table, page), "", match[3]])

    return _PLACE.sub(one, page.read_text())


# Pictures, readable on light and dark paper

_STYLE = """\
  <style>
    text { font: 14px system-ui, sans-serif; fill: #1c2330; }
    .small { font-size: 12px; fill: #4a5568; }
    .right { text-anchor: end; }
    .stock { fill: #9aa7b8; }
    .ours { fill: #2f7d43; }
    .pale { opacity: 0.6; }
    .paper { fill: #ffffff; }
    @media (prefers-color-scheme: dark) {
      text { fill: #eef1f5; }
      .small { fill: #b9c3d0; }
      .stock { fill: #76859a; }
      .ours { fill: #58b26d; }
      .paper { fill: #11151c; }
    }
  </style>"""


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img">',
        f"  <title>{title}</title>", _STYLE,
        f'  <rect class="paper" width="760" height="{height}" rx="12"/>', *parts, "</svg>\n",
    ])  # fmt: skip


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'  <text{mark} x="{x:.0f}" y="{y:.0f}">{text}</text>'


def _bar(x: float, y: float, width: float, kind: str) -> str:
    return f'  <rect class="{kind}" x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="14"/>'


def tokens_picture() -> str:
    """Bars of stock and patched for each case, the least ratio first."""
    rows = models.decodings()
    scale = 270 / max(max(row.stock, row.patched) for row in rows)
    parts = [
        _text(20, 30, "Tokens a second of decoding, stock and patched, H200; worst first"),
        _text(20, 50, "model, weights, sequences x keys", "small"),
    ]
    for i, row in enumerate(rows):
        y = 66 + 42 * i
        parts.append(_text(250, y + 20, row.name, "right small"))
        for j, (kind, rate) in enumerate((("stock", row.stock), ("ours", row.patched))):
            parts.append(_bar(262, y + 15 * j, scale * rate, kind))
            says = f"{rate:.0f} stock" if kind == "stock" else (
                f"{rate:.0f} patched, {interval(row.found)}"
            )  # fmt: skip
            parts.append(_text(268 + scale * rate, y + 15 * j + 12, says, "small"))
    return _svg(72 + 42 * len(rows), "Tokens a second by model", parts)


def step_picture() -> str:
    """What the host and the GPU do in one decode step, before and after."""
    found = models.steps()
    scale = 480 / max(row.build + row.hand_over for row in found.values())
    model, case = models.STEP_OF.split()
    batch, keys = case.split("x")
    parts = [
        _text(20, 30, f"One decode step of {model}, {batch} sequences of {keys} keys, H100, ms"),
        _text(20, 50, "host and GPU work at the same time: the longer of the two is the step",
              "small"),
    ]  # fmt: skip
    for i, (arm, row) in enumerate(found.items()):
        y, kind = 70 + 76 * i, "stock" if arm == "stock" else "ours"
        parts += [
            _text(20, y + 26, "before" if arm == "stock" else "after"),
            _text(130, y + 12, "host", "right small"),
            _bar(140, y, scale * row.build, f"{kind} pale"),
            _bar(140 + scale * row.build, y, scale * row.hand_over, kind),
            _text(148 + scale * (row.build + row.hand_over), y + 12,
                  f"{row.build:.2f} + {row.hand_over:.2f}", "small"),
            _text(130, y + 34, "GPU", "right small"),
            _bar(140, y + 22, scale * row.busy, kind),
            _text(148 + scale * row.busy, y + 34, f"{row.busy:.2f}, {row.kernels} kernels",
                  "small"),
        ]  # fmt: skip
    parts.append(_text(140, 226, "pale: the host builds the graph; full: it hands kernels over",
                       "small"))  # fmt: skip
    return _svg(244, "One decode step before and after", parts)


PICTURES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "tokens-a-second.svg": tokens_picture,
    ROOT / "docs" / "decode-step.svg": step_picture,
}


def main() -> None:
    for page in PAGES:
        page.write_text(written(page))
    for path, picture in PICTURES.items():
        path.write_text(picture())


if __name__ == "__main__":
    main()
