"""The configuration of a run; its first event keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.ops import Bucket

from .candidate import RENAMED
from .options import PROPOSERS
from .record import Record

__all__ = [
    "PROPOSERS",
    "Budget",
    "Config",
    "LanguageModel",
    "LlmConfig",
    "Search",
    "Work",
]


@dataclass(frozen=True)
class Budget(Record):
    """What a run may spend; 0 is no limit."""

    candidates: int = 0
    seconds: float = 0.0
    tokens: int = 0
    money: float = 0.0


@dataclass(frozen=True)
class LanguageModel(Record):
    """A model of the endpoint: how often it is asked, and its prices for a million tokens."""

    name: str
    weight: float = 1.0
    price_in: float = 0.0
    price_out: float = 0.0

    @classmethod
    def parse(cls, text: str) -> LanguageModel:
        """NAME[,WEIGHT[,PRICE_IN,PRICE_OUT]]. Raises UsageError."""
        name, *numbers = text.split(",")
        try:
            model = cls(name, *(float(number) for number in numbers))
        except (TypeError, ValueError):
            raise UsageError(f"{text!r} is no NAME[,WEIGHT[,PRICE_IN,PRICE_OUT]]") from None
        prices = (model.price_in, model.price_out)
        if not (name and 0 < model.weight < math.inf and all(0 <= p < math.inf for p in prices)):
            raise UsageError(f"{text!r}: a name, a weight above 0 and prices of at least 0")
        return model


@dataclass(frozen=True)
class LlmConfig(Record):
    """How the endpoint is asked. context is in tokens, timeout in seconds; `failures` in a row
    end the run."""

    models: tuple[LanguageModel, ...] = ()
    context: int = 32768
    answer: int = 8192
    timeout: float = 300.0
    retries: int = 4
    failures: int = 5


@dataclass(frozen=True)
class Search(Record):
    """How parents are chosen. explore: share of parents outside the elites; negative is adaptive.
    tune_after: knob settings tried after a structural proposal. saturated: a workload whose best
    time is within this factor of its floor is left alone. targets: (speed-up, share of workloads)
    at which to stop."""

    islands: int = 3
    explore: float = -1.0
    batch: int = 4
    tune_after: int = 6
    saturated: float = 1.1
    targets: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Work(Record):
    """Worker processes: how many, and the seconds (a host check of one workload: check_seconds)
    and bytes after which one is killed."""

    jobs: int = 2
    seconds: float = 120.0
    check_seconds: float = 30.0
    memory: int = 8 << 30
    measure_seconds: float = 0.6


@dataclass(frozen=True)
class Config(Record):
    """One run. weights: use of each workload, in the order of `workloads`, adding up to 1. profile:
    whether ncu looks at the kernels that a prompt or a report shows. seeds: ids of the kernels that
    it was told to begin with, which are in its registry; none: all known ones."""

    backend: str
    workloads: tuple[Bucket, ...]
    weights: tuple[float, ...]
    proposer: str = "params"
    suite: str = ""
    seed: int = 0
    profile: bool = False
    seeds: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    search: Search = field(default_factory=Search)
    work: Work = field(default_factory=Work)
    llm: LlmConfig = field(default_factory=LlmConfig)

    def __post_init__(self) -> None:
        if self.proposer not in PROPOSERS:
            raise UsageError(f"proposer {self.proposer!r} is none of {', '.join(PROPOSERS)}")
        if not self.workloads or len(self.workloads) != len(self.weights):
            raise UsageError("there is no workload to search for")

    def to_json(self) -> dict[str, Any]:
        """Plain data, workloads by slug."""
        return {**asdict(self), "workloads": [w.slug for w in self.workloads]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """What `to_json` wrote; fields of a newer release are ignored. Raises KeyError, TypeError
        or ValueError on anything else."""
        search, llm = data["search"], data["llm"]
        models = tuple(map(LanguageModel.from_json, llm["models"]))
        sections = {
            "workloads": tuple(ops.parse(slug).bucket() for slug in data["workloads"]),
            "seeds": tuple(data.get("seeds", ())),
            "budget": Budget.from_json(data["budget"]),
            "search": Search.from_json({**search, "targets": tuple(map(tuple, search["targets"]))}),
            "work": Work.from_json(data["work"]),
            "llm": LlmConfig.from_json({**llm, "models": models}),
        }
        proposer = data.get("proposer", "")
        sections["proposer"] = RENAMED.get(proposer, proposer or cls.proposer)
        return super().from_json({**data, **sections})
