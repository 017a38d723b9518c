"""A candidate: something to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .record import Record

__all__ = ["RENAMED", "Candidate"]

RENAMED = {"tune": "params"}  # what runs of 0.1 call a proposer


@dataclass(frozen=True)
class Candidate(Record):
    """A kernel to try on workloads, with params or (None) its defaults.

    kernel is an id in the run's registry, "" where a proposal held none: `error` then says why and
    `cause` is one word for it. workloads are slugs. parent is the kernel it was made from. repairs
    is the number of the candidate that this one repairs, 0 for none. cost: tokens_in, tokens_out,
    money, model, seconds, answer; each where it is known.
    """

    number: int
    proposer: str
    kernel: str = ""
    workloads: tuple[str, ...] = ()
    params: Mapping[str, int] | None = None
    parent: str = ""
    note: str = ""
    cause: str = ""
    error: str = ""
    repairs: int = 0
    island: int = 0
    cost: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """What `to_json` wrote. Raises TypeError where a field is missing."""
        made = super().from_json(data)
        return replace(made, proposer=RENAMED.get(made.proposer, made.proposer))
