"""The loop: the whole search on one page.

    propose -> check (host) -> check (GPU) -> measure -> archive -> publish

Everything that a candidate can do wrong happens in a worker (see evaluator); everything that is
learnt is an event (see journal); what to try next follows from the events alone (see propose). The
shape, a model that proposes programs to an evaluator and sees the best of them again, is that of
FunSearch (Romera-Paredes et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from . import events
from .archive import MAX_DEATHS, Archive
from .candidate import Candidate
from .evaluation import Evaluation
from .propose import Proposer
from .propose.params import headroom

__all__ = ["Evaluator", "evolve", "propose", "refused", "why_stop"]

Watch = Callable[[Archive], None]


class Evaluator(Protocol):
    """What runs candidates: workers here (evaluator.LocalEvaluator), or a table of points that were
    measured before (replay.Table)."""

    def baselines(self, archive: Archive) -> Iterable[events.Baseline]:
        """SDPA's time and floor for each workload that has none yet."""
        ...

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterable[tuple[int, Evaluation]]:
        """What came of each candidate, with its number, as it becomes known."""
        ...


def evolve(archive: Archive, proposer: Proposer, evaluator: Evaluator, watch: Watch) -> str:
    """Search until something says stop; returns what did. `watch` is called after every step.
    Raises OpenEvolveError where the journal cannot be written, or a workload cannot be run."""
    for baseline in evaluator.baselines(archive):
        archive.add(baseline)
    while not (reason := why_stop(archive)):
        # What a killed run left unfinished comes first.
        batch = archive.pending()[: archive.config.search.batch]
        if not batch:
            batch = propose(archive, proposer)
        if not batch:
            reason = archive.broken or "nothing is left to try"
            break
        for candidate in refused(archive, batch):
            batch.remove(candidate)
        for number, evaluation in evaluator.run(archive, batch):
            archive.add(events.Evaluated(number, evaluation))
            watch(archive)
        watch(archive)
    archive.add(events.Ended(reason))
    return reason


def propose(archive: Archive, proposer: Proposer) -> list[Candidate]:
    """New candidates, on record before anything is done with them."""
    room = archive.config.search.batch
    if archive.config.budget.candidates:
        room = min(room, archive.config.budget.candidates - len(archive.candidates))
    batch = []
    for candidate in proposer.propose(archive, room):
        candidate = replace(candidate, number=archive.next_number())
        twin = archive.duplicate(candidate)
        if twin and not candidate.error:
            candidate = replace(candidate, cause="duplicate", error=f"the same as #{twin}")
        archive.add(events.Proposed(candidate))
        batch.append(candidate)
    return batch


def refused(archive: Archive, batch: list[Candidate]) -> list[Candidate]:
    """Candidates that are done before they start, now on record: no kernel, a duplicate, or one
    that took the main process down with it again and again."""
    gone = []
    for candidate in batch:
        if candidate.error:
            evaluation = Evaluation(candidate.cause or "answer", candidate.error)
        elif archive.deaths[candidate.number] >= MAX_DEATHS:
            evaluation = Evaluation("lost", "in flight at two deaths of the main process")
        else:
            continue
        archive.add(events.Evaluated(candidate.number, evaluation))
        gone.append(candidate)
    return gone


def why_stop(archive: Archive) -> str:
    """The budget, target or saturation that ends the run, "" where it goes on."""
    config, spent = archive.config, archive.spent()
    budget, unfinished = config.budget, len(archive.pending())
    if budget.candidates and spent["candidates"] - unfinished >= budget.candidates:
        return f"{budget.candidates} candidates are done"
    for name in ("seconds", "tokens", "money"):
        limit = getattr(budget, name)
        if limit and spent[name] >= limit:
            return f"the budget is spent: {spent[name]:.6g} of {limit:.6g} {name}"
    if config.search.targets and all(archive.fast_p(p) >= n for p, n in config.search.targets):
        return "reached " + ", ".join(f"fast_{p:g} = {n:g}" for p, n in config.search.targets)
    if archive.baseline and all(
        headroom(archive, slug) <= config.search.saturated for slug in archive.slugs
    ):
        return "every workload is within reach of its floor"
    return archive.broken
