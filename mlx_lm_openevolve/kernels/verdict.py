"""Verdict: what the gate found for one kernel, its params, a workload and a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..ops.attention.workload import Workload
from .kernel import KERNEL_ID

__all__ = ["Verdict", "binding", "describe"]


def binding(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What of a fingerprint (see device.fingerprint) must match for a verdict to count."""
    return {key: fingerprint.get(key) for key in ("device", "architecture", "mlx", "gate")}


@dataclass(frozen=True)
class Verdict:
    """What the gate found for one (kernel, params), workload and device, with its evidence.

    `correct` and `faster` are kept apart; `status` is "accepted" where both hold. `timing["ratio"]`
    is SDPA's time over the kernel's. `fingerprint` comes from device.fingerprint.
    """

    kernel: str
    params: Mapping[str, int]
    workload: str
    correct: bool
    faster: bool
    reason: str
    fingerprint: Mapping[str, Any]
    errors: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    mutants: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Correct and faster."""
        return self.correct and self.faster

    @property
    def status(self) -> str:
        """ "accepted" or "rejected"."""
        return "accepted" if self.accepted else "rejected"

    @property
    def ratio(self) -> float:
        """SDPA's time over the kernel's; 0.0 where it was not measured."""
        return float(self.timing.get("ratio", 0.0))

    def counts_for(self, fingerprint: Mapping[str, Any]) -> bool:
        """Whether this verdict was made on such a device, by this gate and version of mlx."""
        return binding(self.fingerprint) == binding(fingerprint)

    def to_json(self) -> dict[str, Any]:
        """The record as it is stored."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**record, "status": self.status}

    @classmethod
    def from_json(cls, record: Any) -> Verdict:
        """Read a record; ValueError where anything about it is not as the gate writes it."""
        if not isinstance(record, dict):
            raise ValueError("a verdict is no object")
        record = dict(record)
        status = record.pop("status", None)
        verdict = cls(**record)  # TypeError on a missing or foreign field
        for f in fields(cls):
            value = getattr(verdict, f.name)
            wanted = {"bool": bool, "str": str}.get(str(f.type), dict)
            if type(value) is not wanted:
                raise ValueError(f"{f.name} is {type(value).__name__}")
        if not KERNEL_ID.fullmatch(verdict.kernel) or status != verdict.status:
            raise ValueError("kernel or status is malformed")
        if not all(type(v) is int for v in verdict.params.values()):
            raise ValueError("params are not integers")
        ratio = verdict.timing.get("ratio", 0.0)
        if not isinstance(ratio, float | int) or not 0 <= ratio < 1e6:
            raise ValueError("ratio is out of range")
        Workload.parse(verdict.workload)
        return verdict


def describe(verdict: Verdict) -> list[str]:
    """A verdict in a few lines for a person."""
    errors, times, mutants = verdict.errors, verdict.timing, verdict.mutants
    params = ", ".join(f"{name}={value}" for name, value in verdict.params.items())
    word = "correct" if verdict.correct and not verdict.faster else verdict.status
    lines = [
        f"{verdict.workload}",
        f"  kernel   {verdict.kernel}" + (f" ({params})" if params else ""),
        f"  verdict  {word}: {verdict.reason}",
    ]
    if mutants:
        lines.append(
            f"  mutants  {mutants['killed']} of {mutants['of']} killed, "
            f"and {mutants['source']['killed']} of the source"
        )
    if errors:
        own = errors["sdpa"]
        lines.append(
            f"  error    max {errors['max_difference']:.3g} (SDPA {own['max_difference']:.3g}), "
            f"average {errors['avg_difference']:.3g} (SDPA {own['avg_difference']:.3g}), "
            f"margin {errors['margin']:.0%}"
        )
    for name, found in (("speed", times), ("sealed", times.get("sealed", {}))):
        if found:
            a, b = found["baseline"], found["candidate"]
            lines.append(
                f"  {name:8} {found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}], "
                f"{b['mean'] * 1e6:.1f} us against {a['mean'] * 1e6:.1f} us, "
                f"{b['trials']} trials, kv_len {found['kv_len']}"
            )
    return lines
