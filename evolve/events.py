"""The events of a run, as they stand in its journal: what happened, in the order it happened.

On disk an event is an object with its kind as "event", "t" (seconds since the run began, of all
sessions together) and the fields below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .candidate import Candidate
from .config import Config
from .evaluation import Evaluation
from .record import Record


@dataclass(frozen=True)
class Event(Record):
    """The base of all events; `t` is set when it is written."""

    kind: ClassVar[str]
    t: float = field(default=0.0, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """The object on disk."""
        return {"event": self.kind, "t": self.t, **super().to_json()}


@dataclass(frozen=True)
class Started(Event):
    """The first event: all that the run was asked, and the device's facts."""

    kind = "start"
    config: Config
    device: Mapping[str, Any] = field(default_factory=dict)
    format: int = 1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Started:
        """What `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        return super().from_json({**data, "config": Config.from_json(data["config"])})


@dataclass(frozen=True)
class MeasuredOn(Event):
    """The device that leads the search from now on: a fleet's, after another one's."""

    kind = "device"
    device: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed(Event):
    """A new session; pending: numbers of the candidates that were in flight when the last ended."""

    kind = "resume"
    pending: tuple[int, ...] = ()


@dataclass(frozen=True)
class Baseline(Event):
    """SDPA on one workload: its seconds, the floor below which no implementation goes and what
    bounds it ("memory", "compute" or "launch"), the device's bandwidth in bytes a second and the
    seconds of a launch."""

    kind = "baseline"
    workload: str
    seconds: float
    floor: float
    bound: str
    bandwidth: float = 0.0
    launch: float = 0.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Baseline:
        """What `to_json` wrote. Raises ValueError where an earlier release modelled its times."""
        if data.get("modelled"):
            raise ValueError("its times are modelled, which says nothing: begin a new run")
        return super().from_json(data)


@dataclass(frozen=True)
class Proposed(Event):
    """A candidate, before anything is done with it."""

    kind = "proposed"
    candidate: Candidate

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proposed:
        """What `to_json` wrote."""
        return super().from_json({**data, "candidate": Candidate.from_json(data["candidate"])})


@dataclass(frozen=True)
class Evaluated(Event):
    """What came of the candidate of that number: `done` on disk as well."""

    kind = "done"
    number: int
    done: Evaluation = field(default_factory=Evaluation)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluated:
        """What `to_json` wrote."""
        return super().from_json({**data, "done": Evaluation.from_json(data.get("done", {}))})


@dataclass(frozen=True)
class EndedWorker(Event):
    """A kernel that ended its worker; key: its id, the workload and the params, in words."""

    kind = "poison"
    key: str
    reason: str = ""


@dataclass(frozen=True)
class Profiled(Event):
    """The GPU profile (see ncu) of a kernel with params on a workload."""

    kind = "profile"
    kernel: str
    workload: str
    params: Mapping[str, int] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unprofiled(Event):
    """Why there are no GPU profiles."""

    kind = "unprofiled"
    reason: str = ""


@dataclass(frozen=True)
class Published(Event):
    """What the gate said of a workload's winner. searched: its speed-up in the search; correct and
    the gate's own ratio and interval: None where it gave no verdict, or timed nothing."""

    kind = "published"
    workload: str
    kernel: str
    params: Mapping[str, int] = field(default_factory=dict)
    searched: float = 0.0
    device: str = ""
    accepted: bool = False
    reason: str = ""
    correct: bool | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Ended(Event):
    """A session came to its end; why."""

    kind = "end"
    reason: str = ""


_KINDS: Mapping[str, type[Event]] = {cls.kind: cls for cls in Event.__subclasses__()}


def parse(data: Any) -> Event | None:
    """The event of an object on disk, None for a kind of a newer release. Raises ValueError,
    KeyError or TypeError where it is no event."""
    if not isinstance(data, dict) or not isinstance(data.get("event"), str):
        raise ValueError("no event")
    cls = _KINDS.get(data["event"])
    return cls.from_json(data) if cls is not None else None
