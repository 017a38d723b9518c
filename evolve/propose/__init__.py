"""Proposers: what to try next, decided from the archive alone.

Each is `propose(archive, count) -> list[Candidate]`: new candidates, whose kernels it has added to
the run's registry; an empty list means that it has nothing left to try. A proposer keeps nothing
that a replay of the events would not give back, apart from its connection or its files.
"""

from __future__ import annotations

from typing import Protocol

from ..archive import Archive
from ..candidate import Candidate

__all__ = ["Proposer"]


class Proposer(Protocol):
    """What the loop asks for candidates."""

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """Up to `count` candidates, numbered from archive.next_number() on."""
        ...
