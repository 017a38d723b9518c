"""What the parts of a search are worth, by replay of kept runs.

    python benchmarks/ablations.py RUN ... [-o FILE]

RUN is a run of mailbox_run.py, a folder or packed. Of its prompts:

arms: what was answered to prompts with everything, without the history and without the GPU's
profile, which were drawn by the prompt's number.

policies: what other ways to choose parents would have come to. Each prompt's parent was drawn with
known probabilities, from the archive as it was then. An answer counts for another policy as much
more or less as that one would have chosen its parent more or less often (self-normalised importance
weights; Swaminathan and Joachims, 2015). `effective` is how many answers these are worth: where it
is small the run cannot tell. Answers to repairs are left out. What a policy would have changed in
the answers that came later is not seen.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mailbox_run import arm, without

from mlx_lm_openevolve.evolve import events, packed, prompt
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.propose.mailbox import first_line

BETTER = 1.02  # times the best until then, to be called an improvement
Chances = dict[str, float]  # kernel -> probability to be the parent


@dataclass(frozen=True)
class Answer:
    """What came of a prompt. score: the kernel's fitness at the end, 0 where it failed; best: the
    best fitness when the prompt was written; parent_score, parent: those of its parent; chances:
    how likely each policy chose it."""

    number: int
    repair: bool
    valid: bool
    score: float
    best: float
    parent_score: float
    chances: dict[str, float]

    @property
    def improved(self) -> bool:
        return self.score > BETTER * self.best

    @property
    def gain(self) -> float:
        """Of log speed-up over the best until then."""
        return max(0.0, math.log(self.score / self.best)) if self.score else 0.0


# Ways to choose parents: (islands, probabilities in the archive as it was, for an island)
def as_is(archive: Archive, island: int, explore: float | None = None) -> Chances:
    """`choose_parent`'s probabilities."""
    share = archive.explore() if explore is None else explore
    elites = archive.elites(island)
    pool = [k for k in archive.kernel_best if k not in elites] + archive.elites()
    weights = [0.6**rank for rank in range(len(elites))]
    chances: Chances = defaultdict(float)
    for kernel, weight in zip(elites, weights, strict=True):
        chances[kernel] += (1 - share) * weight / sum(weights)
    for kernel in pool:
        chances[kernel] += share / len(pool)
    return chances


def by_rank(archive: Archive, _: int) -> Chances:
    """All kernels that work, by rank; no cells."""
    ranked = sorted(archive.kernel_best, key=lambda k: (-archive.kernel_fitness(k), k))
    weights = [0.6**rank for rank in range(len(ranked))]
    return {k: w / sum(weights) for k, w in zip(ranked, weights, strict=True)}


def best_first(archive: Archive, _: int) -> Chances:
    """The best alone."""
    return {max(archive.kernel_best, key=lambda k: (archive.kernel_fitness(k), k)): 1.0}


Policy = Callable[[Archive, int], Chances]
POLICIES: dict[str, tuple[int, Policy]] = {
    "as it was: islands, MAP-Elites, adaptive exploration": (0, as_is),
    "one population": (1, as_is),
    "one population by rank, without MAP-Elites": (1, by_rank),
    "best-first": (1, best_first),
    "exploration 0": (0, lambda a, i: as_is(a, i, 0.0)),
    "exploration 0.3": (0, lambda a, i: as_is(a, i, 0.3)),
    "exploration 1": (0, lambda a, i: as_is(a, i, 1.0)),
}


def until(run: Archive, candidates: int, islands: int) -> Archive:
    """The archive as it was after so many candidates, on so many islands (0: as many as it had)."""
    search = run.config.search
    config = replace(run.config, search=replace(search, islands=islands or search.islands))
    archive = Archive(run.journal, config)
    for event in run.journal.events:
        number = getattr(event, "number", 0)
        if isinstance(event, events.Proposed):
            number = event.candidate.number
        # A profile, too, was there or not; when it came is not known to the candidate.
        if number <= candidates:
            archive._apply(event)
    return archive


def answers(folder: Path) -> Iterator[Answer]:
    """The answers to a run's prompts, where somebody was asked and something was measured."""
    run = Archive.open(folder, write=False)
    for number, candidate in sorted(run.candidates.items()):
        path = folder / "prompts" / f"{Path(candidate.cost.get('answer', '')).stem}.md"
        about = first_line(path) if candidate.proposer == "mailbox" and path.is_file() else None
        if about is None or number not in run.done or not int(about["after"]):
            continue
        after, island, parent = int(about["after"]), int(about["island"]), about["parent"]
        then = until(run, after, 0)
        if not then.kernel_best:
            continue
        chances = {
            name: policy(until(run, after, islands) if islands else then, island).get(parent, 0.0)
            for name, (islands, policy) in POLICIES.items()
        }
        valid = not run.done[number].cause
        yield Answer(
            number=int(path.stem),
            repair=about["repairs"] != "0",
            valid=valid,
            score=run.kernel_fitness(candidate.kernel) if valid else 0.0,
            best=max(map(then.kernel_fitness, then.kernel_best)),
            parent_score=then.kernel_fitness(parent) if parent in then.kernel_best else 0.0,
            chances=chances,
        )


def by_arm(found: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """How the answers did by what their prompts lacked."""
    rows = {}
    for name in ("", "history", "profile"):
        those = [a for a in found if arm(a.number) == name and not a.repair]
        own = [math.log(a.score / a.parent_score) for a in those if a.score and a.parent_score]
        rows[f"without {name}" if name else "everything"] = {
            "answers": len(those),
            "valid": share([a.valid for a in those]),
            "better than all before": share([a.improved for a in those]),
            "over the parent": round(math.exp(statistics.fmean(own)), 3) if own else None,
        }
    return rows


def by_policy(found: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """What each policy would have come to."""
    drawn = next(iter(POLICIES))
    those = [a for a in found if not a.repair and a.chances[drawn]]
    rows: dict[str, dict[str, Any]] = {}
    for name in POLICIES:
        weights = [a.chances[name] / a.chances[drawn] for a in those]
        total = sum(weights)
        rows[name] = {"answers": len(those), "effective": 0.0}
        if total:
            rows[name] |= {
                "effective": round(total**2 / sum(w * w for w in weights), 1),
                "valid": _mean(weights, [float(a.valid) for a in those]),
                "better than all before": _mean(weights, [float(a.improved) for a in those]),
                "gain": _mean(weights, [a.gain for a in those]),
            }
    return rows


def _mean(weights: Sequence[float], values: Sequence[float]) -> float:
    return round(math.fsum(map(math.prod, zip(weights, values, strict=True))) / sum(weights), 4)


def share(values: Sequence[bool]) -> list[float] | None:
    """A share with its 95% interval (Wilson)."""
    if not values:
        return None
    n, p, z = len(values), sum(values) / len(values), 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return [round(x, 3) for x in (p, (middle - half) / scale, (middle + half) / scale)]


def tokens(folder: Path) -> dict[str, float]:
    """Share of a run's prompts' tokens that history and profiles take, where they are in."""
    totals: Counter[str] = Counter()
    for path in sorted((folder / "prompts").glob("*.md")):
        text = path.read_text()
        if not arm(int(path.stem)):
            totals["all"] += prompt.tokens_of(text)
            for what in ("history", "profile"):
                totals[what] += prompt.tokens_of(text) - prompt.tokens_of(without(text, what))
    return {w: round(totals[w] / max(1, totals["all"]), 3) for w in ("history", "profile")}


def main() -> None:
    """Print all tables as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        folders = [
            stack.enter_context(packed.unpacked(run)) if packed.is_packed(run) else run
            for run in options.runs
        ]
        all_answers = [answer for folder in folders for answer in answers(folder)]
        found = {
            "runs": {folder.name: len(list(answers(folder))) for folder in folders},
            "arms": by_arm(all_answers),
            "policies": by_policy(all_answers),
            "tokens": {folder.name: tokens(folder) for folder in folders},
        }
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
