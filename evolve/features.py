"""What a kernel does, read from its text, counted on the host or profiled on the GPU; the
axes of the archive.

Code length and character difference say nothing about a kernel; its strategy, speed, steadiness
and margin do.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.kernels.kernel import Kernel

__all__ = ["SPEED_TIERS", "Strategy", "code", "digest", "memory", "strategy", "tier"]

# Upper ends of the tiers; the last tier is open.
SPEED_TIERS = (0.5, 0.9, 1.0, 1.1, 1.3, 1.7, 2.5)
VARIANCE_TIERS = (0.02, 0.05, 0.15)
MARGIN_TIERS = (0.25, 0.5, 0.75)
# Share of DRAM's peak, or of hits, from which on memory or a cache is what a kernel lives on.
_BUSY = 0.6

_VECTOR = re.compile(
    r"\b(?:float|half|bfloat|uint|int|short|ushort|uchar|char|packed_float|packed_half)([248])\b"
    r"|\bvec\s*<[^<>]+,\s*([248])\s*>"
)
_WIDE = re.compile(r"alignas\s*\(\s*16\s*\)")


def tier(value: float, ends: tuple[float, ...]) -> int:
    """Index of the tier that a value falls into: 0 up to len(ends)."""
    return bisect.bisect_right(ends, value)


def code(source: str) -> str:
    """A source without comments, and with single blanks: what a compiler sees."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    lines = (" ".join(line.split()) for line in source.splitlines())
    return "\n".join(line for line in lines if line)


def digest(kernel: Kernel) -> str:
    """Equal for kernels that differ in comments, blanks, name or origin alone."""
    meta = {k: v for k, v in kernel.meta.items() if k not in ("name", "origin", "description")}
    sources = {name: code(source) for name, source in kernel.sources.items()}
    text = json.dumps([meta, sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Strategy:
    """vector: elements of the widest vector type (1: none). passes: "online", "2-pass" or
    "3-pass" over the length. split: whether there are several launches. memory: where a GPU was
    profiled "streaming", "cached" or "waiting" (see `memory`), else "coalesced", "strided" or
    "random" by counted line efficiency, "" where nothing was counted. matrix: whether simdgroup
    matrices or tensor cores are used."""

    vector: int
    passes: str
    split: bool
    memory: str
    matrix: bool

    def __str__(self) -> str:
        parts = [
            f"vec{self.vector}",
            self.passes,
            "split" if self.split else "single",
            "matrix" if self.matrix else "",
            self.memory,
        ]
        return " ".join(part for part in parts if part)

    @property
    def key(self) -> str:
        """One word for each axis: a cell's strategy."""
        return "/".join(str(part) for part in astuple(self))


def memory(profile: Mapping[str, Any]) -> str:
    """What a GPU profile says of the memory: "streaming" where DRAM is busy, "cached" where L1 or
    L2 serve most requests, "waiting" where neither: on latency, launches or arithmetic."""
    if profile.get("dram", 0.0) >= _BUSY:
        return "streaming"
    hits = max(profile.get("l1_hits", 0.0), profile.get("l2_hits", 0.0))
    return "cached" if hits >= _BUSY else "waiting"


def strategy(
    kernel: Kernel,
    counters: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> Strategy:
    """The strategy of a kernel, as far as its text, its counters and its GPU profile show it."""
    text = "\n".join(code(source) for source in kernel.sources.values())
    widths = [int(a or b) for a, b in _VECTOR.findall(text)]
    vector = max([1, *widths, *([8] if _WIDE.search(text) else [])])
    length = ops.get(kernel.op).search.length
    loops = len(re.findall(rf"\b(?:for|while)\s*\([^{{;]*;[^;]*(?:{length})", text))
    # The mark of an online softmax is a weight that fades what was summed before.
    online = re.search(r"exp2?\s*\(\s*[\w.\[\]]*(?:max|top|old|prev|m)\w*[\w.\[\]]*\s*-", text)
    passes = "online" if online or loops <= 1 else "2-pass" if loops == 2 else "3-pass"
    efficiency = (counters or {}).get("line_efficiency")
    seen = ""
    if profile:
        seen = memory(profile)
    elif efficiency is not None:
        seen = "coalesced" if efficiency >= 0.7 else "strided" if efficiency >= 0.25 else "random"
    return Strategy(
        vector=vector,
        passes=passes,
        split=len(kernel.specs) > 1,
        memory=seen,
        matrix="simdgroup_matrix" in text or "mma" in text or "simdgroup_float8x8" in text,
    )
