"""Where a table of results comes from: a file of results/ or the verdicts of tuned/."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops import Bucket

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHIP = "nvidia-h100-80gb-hbm3"
H200 = "nvidia-h200"
# A verdict has no date of its own.
VERDICTS_OF = {
    CHIP: "2026-11-21 to 2026-11-28, those of gate 2.1 at commit ae6b0ff",
    H200: "2026-11-29",
}
TUNED = Registry(tuned_root(), writable=False)


@dataclass(frozen=True)
class Source:
    """A file of results/, and the command that made it where the file does not say."""

    name: str
    command: str = ""

    @cached_property
    def text(self) -> str:
        return (RESULTS / self.name).read_text()

    @cached_property
    def data(self) -> Any:
        return json.loads(self.text)

    @property
    def device(self) -> str:
        return machine_of(self.data).partition(",")[0]

    def caption(self) -> str:
        """Machine, versions and date, then file and command. Raises where the file lacks one."""
        if self.name.endswith(".log"):
            head = self.text.split("\n\n")[0]
            versions = re.match(r"([^,]+)((?:, (?:MLX|mlx-lm) [\d.]+)+)", head)
            date = re.search(r"\d{4}-\d\d-\d\d", head)
            if versions is None or date is None:
                raise ValueError(f"{self.name}: no machine or date")
            on = f"{versions[1].lower().replace(' ', '-')}{versions[2]}, {date[0]}"
        else:
            on = f"{machine_of(self.data)}, {self.data['date']}".removeprefix(", ")
            if "commit" in self.data:  # what it shows was measured of an older one
                on += f", at commit {self.data['commit']}"
        command = self.command or self.data["command"]
        return f"{on}: [{self.name}](benchmarks/results/{self.name}), `{command}`"


def machine_of(data: dict[str, Any]) -> str:
    machine = data.get("machine", data)
    also = machine.get("also", {})
    words = [machine.get("device", "").lower().replace(" ", "-")]
    if "cores" in machine:
        words.append(f"{machine['cores']} cores")
    for name, key in (("MLX", "mlx"), ("mlx-lm", "mlx_lm"), ("PyTorch", "torch")):
        version = also.get(key) or machine.get(key) or data.get(key)
        if version:
            words.append(f"{name} {version.split('+')[0]}")
    return ", ".join(words)


@dataclass(frozen=True)
class Table:
    """A table, and the sentences below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: Sequence[str]


def us(seconds: float) -> str:
    """Microseconds, as many digits as mean something."""
    value = 1e6 * seconds
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def interval(found: dict[str, Any], digits: int = 2) -> str:
    """ratio [low, high]"""
    middle, low, high = (f"{found[key]:.{digits}f}" for key in ("ratio", "low", "high"))
    return f"{middle} [{low}, {high}]"


def accepted(chip: str = CHIP) -> list[tuple[Bucket, Verdict]]:
    """What tuned/ accepts on a chip, the best verdict of each workload."""
    best: dict[str, tuple[Bucket, Verdict]] = {}
    for workload in TUNED.workloads(chip):
        for verdict in TUNED.verdicts(chip, workload):
            known = best.get(workload.slug)
            if verdict.accepted and (known is None or verdict.ratio > known[1].ratio):
                best[workload.slug] = workload, verdict
    return list(best.values())


def tuned_caption(chip: str = CHIP, command: str = "make verdicts DEVICE=cuda") -> str:
    found = [verdict.fingerprint["also"] for _, verdict in accepted(chip)]
    versions = sorted({f"MLX {row['mlx']}, mlx-lm {row['mlx_lm']}" for row in found})
    return (
        f"{chip}, {' and '.join(versions)}, {VERDICTS_OF[chip]}:"
        f" [verdicts](tuned/v2/devices/{chip}), `{command}`"
    )
