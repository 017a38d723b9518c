"""What proposers of new source share: parents, repair turns, and knobs in between.

After every structural proposal that works `params` turns its numeric knobs for a while; a proposal
that failed is handed back once, with the exact finding.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mlx_lm_openevolve.errors import OpenEvolveError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import Bucket

from .. import prompt
from ..archive import Archive
from ..candidate import Candidate
from .params import ParamsProposer

__all__ = [
    "ModelQuestion",
    "ProfileParent",
    "Structural",
    "WithParams",
    "choose_parent",
    "fitting",
    "no_profile",
    "to_repair",
]

# Failures that a repair turn with the finding can mend; not those of the endpoint itself.
_NOT_REPAIRED = ("endpoint", "duplicate", "lost", "empty", "hang", "crash", "memory", "error")


# Profiles a parent before it is written about, such as ncu.Profiler.
ProfileParent = Callable[[Archive, Kernel], None]


def no_profile(archive: Archive, parent: Kernel) -> None:
    """What is known is enough."""


def fitting(workloads: Sequence[Bucket], kernel: Kernel) -> tuple[str, ...]:
    """The slugs of the workloads that a kernel says it can serve."""
    kept = []
    for workload in workloads:
        try:
            if kernel.applies_to(workload):
                kept.append(workload.slug)
        except OpenEvolveError:
            continue
    return tuple(kept)


def choose_parent(archive: Archive, seeds: Sequence[Kernel], number: int) -> tuple[Kernel, int]:
    """A parent and its island. Islands take turns; within one the elites by rank, at the rate of
    `explore` any kernel that works, or another island's best (a migrant)."""
    rng = random.Random(f"parent {archive.config.seed} {number}")
    island = number % archive.config.search.islands
    elites = archive.elites(island)
    outside = [kernel for kernel in archive.kernel_best if kernel not in elites]
    if rng.random() < archive.explore():
        pool = outside + archive.elites()
        chosen = rng.choice(pool) if pool else ""
    else:
        weights = [0.6**rank for rank in range(len(elites))]
        chosen = rng.choices(elites, weights)[0] if elites else ""
    kernel = archive.registry.kernel(chosen) if chosen else None
    return kernel or seeds[number % len(seeds)], island


def to_repair(archive: Archive, proposer: str, latest: int = 1) -> list[Candidate]:
    """Those of the latest proposals that failed and had no repair turn yet, the newest first; one
    that was a repair gets none."""
    repaired = {candidate.repairs for candidate in archive.candidates.values()}
    done = [n for n in sorted(archive.done, reverse=True)
            if archive.candidates[n].proposer == proposer]  # fmt: skip
    return [
        archive.candidates[n]
        for n in done[:latest]
        if not archive.candidates[n].repairs
        and n not in repaired
        and archive.done[n].cause not in ("", *_NOT_REPAIRED)
    ]


@dataclass(frozen=True)
class ModelQuestion:
    """What is asked for a candidate: a child of `parent`, or where `failed` is one its repair."""

    number: int
    parent: Kernel
    island: int
    failed: Candidate | None
    text: str


class Structural(ABC):
    """A proposer of new source; `name` stands in its candidates."""

    name: ClassVar[str]

    def __init__(self, seeds: Sequence[Kernel], profile: ProfileParent = no_profile) -> None:
        self._seeds, self._profile = list(seeds), profile

    @abstractmethod
    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """Up to `count` new kernels."""

    def questions(
        self, archive: Archive, numbers: Sequence[int], context: int = 0
    ) -> Iterator[ModelQuestion]:
        """What to ask next: repairs, then children of parents that differ with the number;
        `context` is what the model takes, in tokens (0: no limit)."""
        failures = to_repair(archive, self.name, len(numbers))
        for number in numbers:
            failed = failures.pop(0) if failures else None
            if failed is None:
                parent, island = choose_parent(archive, self._seeds, number)
            else:
                kernel = archive.registry.kernel(failed.kernel or failed.parent)
                parent, island = kernel or self._seeds[0], failed.island
            self._profile(archive, parent)
            asked = prompt.build(archive, parent, failed=failed, context=context)
            yield ModelQuestion(number, parent, island, failed, asked.text)

    def candidate(
        self,
        archive: Archive,
        question: ModelQuestion,
        kernel: Kernel | None,
        note: str,
        cause: str,
        error: str,
        cost: Mapping[str, Any],
    ) -> Candidate:
        """The candidate that an answer comes to, its kernel now in the run's registry; without a
        kernel cause and error say why."""
        if kernel is not None:
            archive.registry.add(kernel)
        return Candidate(
            number=question.number,
            proposer=self.name,
            kernel=kernel.id if kernel is not None else "",
            workloads=fitting(archive.config.workloads, kernel) if kernel is not None else (),
            parent=question.parent.id,
            note=note,
            cause=cause,
            error=error,
            repairs=question.failed.number if question.failed is not None else 0,
            island=question.island,
            cost=cost,
        )


class WithParams:
    """A structural proposer, with some turns of `params` after each of its kernels that works."""

    def __init__(self, structural: Structural, seeds: Sequence[Kernel]) -> None:
        self._structural, self._seeds = structural, list(seeds)

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """Seeds first, then knobs of new kernels, then new structure."""
        for kernel in self._seeds:
            if kernel.id not in archive.kernels:
                archive.registry.add(kernel)
                return [
                    Candidate(
                        number=archive.next_number(),
                        proposer="seed",
                        kernel=kernel.id,
                        workloads=fitting(archive.config.workloads, kernel),
                        note="a seed with its defaults",
                    )
                ]
        for kernel, room in self._untuned(archive):
            made = ParamsProposer([kernel], only=kernel.id).propose(archive, min(room, count))
            if made:
                return made
        return self._structural.propose(archive, count)

    @staticmethod
    def _untuned(archive: Archive) -> Iterator[tuple[Kernel, int]]:
        """Structural proposals that work and have turns of `params` left, with how many."""
        turns = [c.kernel for c in archive.candidates.values() if c.proposer == "params"]
        for number, candidate in archive.candidates.items():
            done = archive.done.get(number)
            if candidate.proposer in ("params", "seed") or done is None or done.cause:
                continue
            room = archive.config.search.tune_after - turns.count(candidate.kernel)
            kernel = archive.registry.kernel(candidate.kernel) if room > 0 else None
            if kernel is not None and kernel.params:
                yield kernel, room
