"""Progress: what a run is doing, on the terminal, while it does it."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .archive import Archive

__all__ = ["ProgressDisplay", "line", "picture"]


class ProgressDisplay:
    """A live view of an archive on a terminal, single lines elsewhere. Use it as a context."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._shown = 0
        self._began = time.monotonic()
        self._first = -1

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line for people."""
        self._console.print(text, markup=False)

    def __call__(self, archive: Archive) -> None:
        """Show an archive as it is now."""
        if self._first < 0:
            self._first = len(archive.done) - 1
        if self._console.is_terminal:
            self._live.update(picture(archive, self.rate(archive)))
        elif len(archive.done) != self._shown:
            self._shown = len(archive.done)
            self._console.print(line(archive, self.rate(archive)), markup=False)

    def rate(self, archive: Archive) -> float:
        """Candidates a minute in this session."""
        minutes = (time.monotonic() - self._began) / 60
        return (len(archive.done) - max(self._first, 0)) / minutes if minutes > 0 else 0.0


def line(archive: Archive, rate: float) -> str:
    """The state of a run in one line."""
    number = max(archive.done, default=0)
    candidate = archive.candidates.get(number)
    note = f"{candidate.proposer} {candidate.note}" if candidate is not None else ""
    outcome = archive.done.get(number, "")
    return (
        f"#{number} {note}: {outcome} | best {archive.standing()} | {rate:.1f}/min | "
        f"valid {archive.valid_share():.0%}"
    )


def picture(archive: Archive, rate: float) -> RenderableType:
    """The state of a run as a small page."""
    spent, budget = archive.spent(), archive.config.budget
    faster = archive.timed and archive.fitness()[1] > 1
    head = Text.assemble(
        (f"{archive.folder.name}  ", "bold"),
        (archive.standing(), "bold green" if faster else "bold"),
        f"   {len(archive.done)} candidates, "
        f"{rate:.1f} a minute, {archive.valid_share():.0%} valid, "
        f"{spent['tokens']:.0f} tokens, ${spent['money']:.2f}",
    )
    share = max(
        len(archive.done) / budget.candidates if budget.candidates else 0.0,
        spent["seconds"] / budget.seconds if budget.seconds else 0.0,
        spent["tokens"] / budget.tokens if budget.tokens else 0.0,
        spent["money"] / budget.money if budget.money else 0.0,
    )
    times = (f"{archive.stock} us", "floor us", "best us", "speed-up")
    columns = times if archive.timed else ("moved", "over the least")
    table = Table("workload", *columns, "kernel", box=None)
    for slug in archive.slugs:
        base, best = archive.baseline.get(slug), archive.best.get(slug)
        row = [slug.removeprefix("attention-")]
        if archive.timed:
            row += [f"{base.seconds * 1e6:.1f}", f"{base.floor * 1e6:.1f}"] if base else ["", ""]
        if best is not None:
            kernel, r, number = best
            if archive.timed:
                row += [f"{r.seconds * 1e6:.1f}", f"{r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}]"]
            else:
                row += [str(r.counters["moved_bytes"]), f"{1 / r.score:.2f}x"]
            row.append(f"{kernel} #{number}")
        table.add_row(*row)
    causes = "  ".join(f"{cause} {count}" for cause, count in archive.failures().items())
    return Group(
        head,
        Text(_bar(min(1.0, share)), style="blue"),
        table,
        Text(f"failures  {causes or 'none'}", style="dim"),
    )


def _bar(share: float, width: int = 60) -> str:
    """How much of the budget is spent."""
    full = round(share * width)
    return "\u2501" * full + "\u2500" * (width - full) + f" {share:.0%} of the budget"
