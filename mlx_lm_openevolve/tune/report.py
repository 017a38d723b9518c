"""`tune --report FILE`: what a chip gave, in one file that can be attached to an issue."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import backends
from ..bench import cases
from ..device import Device, fingerprint
from ..kernels.verdict import gate_versions
from .decide import Row

__all__ = ["conditions", "measured", "record"]

PROMPT, GENERATED, BLOCKS = 512, 128, 2


def conditions(device: Device) -> list[str]:
    """What about this machine changes what `tune` can do or say, a sentence each."""
    lines = []
    if power() == "battery":
        lines.append("It runs on battery: clocks may change, and more comes out as noise.")
    if absent := backends.get("host").unavailable():
        lines.append(f"No kernel can be checked on the CPU ({absent}): shipped ones need no check.")
    if 0 < device.memory <= 8 << 30:
        lines.append("It has 8 GB or less: what does not fit beside a model is left undecided.")
    return lines


def power() -> str:
    """ "battery", "mains" or "" where it is not known."""
    if sys.platform == "darwin":
        try:
            done = subprocess.run(
                ["pmset", "-g", "batt"], capture_output=True, timeout=2, errors="replace", text=True
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return "battery" if "Battery Power" in done.stdout else "mains" * bool(done.stdout)
    states = []
    for path in Path("/sys/class/power_supply").glob("*/online"):
        try:
            states.append(path.read_text().strip())
        except OSError:
            return ""
    return ("mains" if "1" in states else "battery") if states else ""


def measured(
    model: str | None,
    weights: dict[str, Any],
    wanted: Sequence[str] | None,
    device: Device,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Tokens a second of a model, or of a shape with its bits (weights), stock and tuned, in
    processes that alternate: see cases.compared. `step` hears which arm is through. Raises
    OpenEvolveError."""
    settings = {"backend": device.backend, "gate": "stored", "ops": wanted}
    task = cases.task_of(PROMPT, GENERATED, settings, model=model, **weights)
    rows: dict[str, list[dict[str, Any]]] = {"stock": [], "patched": []}
    for arm, row in cases.processes(task, BLOCKS):
        rows[arm].append(row)
        step(arm)
    hits = [sum(w["hits"] for w in row["info"]["workloads"].values()) for row in rows["patched"]]
    named = {"model": Path(model).name if model else None}  # no path of the user's
    return {**task, **named, **cases.compared(rows), "hits": hits}


def record(
    device: Device,
    rows: Sequence[Row],
    more: dict[str, Any],
    bench: dict[str, Any] | None,
) -> dict[str, Any]:
    """All of it as JSON can hold it."""
    return {
        "machine": fingerprint(device, gate_versions()),
        "date": time.strftime("%Y-%m-%d"),
        "power": power(),
        "conditions": conditions(device),
        **more,
        "workloads": [
            {
                "workload": row.bucket.slug,
                "calls": row.use.calls,
                "state": row.state,
                "reason": row.reason,
                "verdict": {**row.verdict.to_json(), "raw": dict(row.verdict.raw)}
                if row.verdict
                else None,
            }
            for row in rows
        ],
        "bench": bench,
    }
