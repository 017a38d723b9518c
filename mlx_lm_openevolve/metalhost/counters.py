"""Counters of a launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["Counters", "Reads"]


@dataclass(frozen=True)
class Reads:
    """Bytes read of one argument in device memory, as Counters has them of all."""

    device_bytes: int
    compulsory_bytes: int
    useful_bytes: int


@dataclass(frozen=True)
class Counters:
    """What one launch did, exactly, summed over all threads. Bytes are bytes.

    device_*_bytes: what the threads asked for; arguments in the constant space are left out.
    compulsory_*_bytes: distinct bytes among these: what a perfect cache would move.
    *_lines: 128-byte lines that each simdgroup's merged accesses touch; *_useful_bytes: distinct
        bytes that these accesses use of them.
    threadgroup_cycles, bank_conflicts: 32 banks of 4 bytes; conflicts are the cycles above the
        least possible.
    barriers: a threadgroup's barrier counts once. simd_*: a simdgroup's operation counts once.
    flops: floating-point operations outside of simdgroup reductions; a fused multiply-add is two,
        an 8x8 matrix multiply 1024, a transcendental function none.
    instructions, issue_slots: of the host's intermediate code; equal when lanes never diverge.
    reads: by the argument's name, of those in device memory that were read.
    """

    device_read_bytes: int = 0
    device_write_bytes: int = 0
    compulsory_read_bytes: int = 0
    compulsory_write_bytes: int = 0
    read_lines: int = 0
    write_lines: int = 0
    read_useful_bytes: int = 0
    write_useful_bytes: int = 0
    read_accesses: int = 0
    write_accesses: int = 0
    threadgroup_read_bytes: int = 0
    threadgroup_write_bytes: int = 0
    threadgroup_accesses: int = 0
    threadgroup_cycles: int = 0
    bank_conflicts: int = 0
    threadgroup_memory: int = 0
    barriers: int = 0
    simdgroup_barriers: int = 0
    simd_reductions: int = 0
    simd_shuffles: int = 0
    simd_votes: int = 0
    simd_scans: int = 0
    matrix_multiplies: int = 0
    flops: int = 0
    instructions: int = 0
    issue_slots: int = 0
    threadgroups: int = 0
    threads: int = 0
    truncated: int = 0
    reads: Mapping[str, Reads] = field(default_factory=dict)

    @classmethod
    def parse(cls, report: str, names: Mapping[int, str]) -> Counters:
        """From the `count` and `read` lines of a program's report. names: of arguments, by slot."""
        known = _numbers()
        values = {}
        reads = {}
        for line in report.splitlines():
            word, *rest = line.split("\t")
            if word == "count" and len(rest) == 2 and rest[0] in known:
                values[rest[0]] = int(rest[1])
            elif word == "read":
                slot, *numbers = map(int, rest)
                reads[names[slot]] = Reads(*numbers)
        return cls(**values, reads=reads)

    @property
    def moved_bytes(self) -> int:
        """Bytes of the 128-byte lines that loads and stores touch."""
        return 128 * (self.read_lines + self.write_lines)

    @property
    def simd_ops(self) -> int:
        """Operations of whole simdgroups: reductions, shuffles, votes, scans, matrix multiplies."""
        return (
            self.simd_reductions
            + self.simd_shuffles
            + self.simd_votes
            + self.simd_scans
            + self.matrix_multiplies
        )

    @property
    def line_efficiency(self) -> float:
        """Used share of the 128-byte lines that loads and stores touch, 0 to 1."""
        lines = self.read_lines + self.write_lines
        used = self.read_useful_bytes + self.write_useful_bytes
        return used / (128 * lines) if lines else 1.0

    @property
    def divergence(self) -> float:
        """Share of the lanes' issue slots that idle while other lanes run, 0 to 1."""
        return 1 - self.instructions / self.issue_slots if self.issue_slots else 0.0

    @property
    def read_amplification(self) -> float:
        """Requested over compulsory bytes of reads."""
        return self.device_read_bytes / max(self.compulsory_read_bytes, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the derived shares; without `reads`."""
        data: dict[str, Any] = {name: getattr(self, name) for name in _numbers()}
        data["simd_ops"] = self.simd_ops
        data["line_efficiency"] = self.line_efficiency
        data["divergence"] = self.divergence
        data["read_amplification"] = self.read_amplification
        return data


def _numbers() -> list[str]:
    return [f.name for f in fields(Counters) if f.name != "reads"]
