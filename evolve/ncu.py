"""GPU profiles: what NVIDIA's ncu counts while a kernel runs: occupancy, memory traffic, hits of
caches.

    python -m mlx_lm_openevolve.evolve.ncu FOLDER WORKLOAD [NAME=VALUE ...]

ncu runs a child process that launches the kernel some times on the inputs of the timing, and
empties the caches before each launch: keys come from memory, as they do in a model whose layers
take turns. Each profile takes a process of its own, so only what a prompt or a report shows gets
one. Where ncu is absent or may not read the counters there are none, and the run goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.device import BACKENDS, detect
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.gate.limits import memory_for
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import Bucket
from mlx_lm_openevolve.processes import child_environment, kill_session

from . import events
from .archive import Archive
from .measure import gpu

__all__ = ["ProfileError", "Profiler", "describe", "find", "parse", "profile"]

# Metric of ncu -> key of a profile, and its words: scale, text. The first three add up over the
# launches of a call; of the others a profile has the mean, weighted by time.
METRICS = {
    "gpu__time_duration.sum": ("seconds", 1e6, "{:.1f} us on the GPU"),
    "dram__bytes_read.sum": ("read_bytes", 1e-6, "{:.4g} MB read from DRAM"),
    "dram__bytes_write.sum": ("write_bytes", 1e-6, "{:.4g} MB written to it"),
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("dram", 1, "{:.0%} of its peak"),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("occupancy", 1, "occupancy {:.0%}"),
    "l1tex__t_sector_hit_rate.pct": ("l1_hits", 1, "L1 hits {:.0%}"),
    "lts__t_sector_hit_rate.pct": ("l2_hits", 1, "L2 hits {:.0%}"),
    "launch__registers_per_thread": ("registers", 1, "{} registers a thread"),
    "launch__shared_mem_per_block": ("shared_bytes", 1, "{} B of shared memory a block"),
}
_SUMMED = ("seconds", "read_bytes", "write_bytes")
_WHOLE = ("read_bytes", "write_bytes", "registers", "shared_bytes")
# ncu picks a prefix for every column; of a unit such as byte/block the first part counts.
_UNITS = {
    "": 1.0, "%": 0.01, "register": 1.0,
    "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9,
    "second": 1.0, "msecond": 1e-3, "usecond": 1e-6, "nsecond": 1e-9,
    "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9,
    "Kibyte": 2.0**10, "Mibyte": 2.0**20, "Gibyte": 2.0**30,
}  # fmt: skip
# What MLX calls its custom kernels; other kernels of the child are not looked at.
_NAME = "custom_kernel_"
_PLACES = ("usr/local/cuda*/bin/ncu", "opt/nvidia/nsight-compute/*/ncu")
_SECONDS = 120.0
_WARM, _CALLS = 2, 3  # the profile is that of the last _CALLS calls
_AT_ONCE = 3  # profiles before one prompt


class ProfileError(OpenEvolveError):
    """There is no profile; the message says why in one line."""


def find(root: Path = Path("/")) -> str:
    """The path of ncu, "" where there is none."""
    on_path = shutil.which("ncu")
    places = (path for place in _PLACES for path in sorted(root.glob(place), reverse=True))
    return on_path or next((str(path) for path in places if os.access(path, os.X_OK)), "")


def profile(
    kernel: Kernel,
    params: Mapping[str, int],
    workload: Bucket,
    backend: str = "cuda",
    *,
    seconds: float = _SECONDS,
    seed: int = 0,
) -> dict[str, Any]:
    """One call of a kernel at a bucket's upper end as ncu sees it: seconds, read_bytes and
    write_bytes of DRAM, occupancy, dram (share of its peak), l1_hits and l2_hits as shares,
    registers of a thread, shared_bytes of a block, launches. Raises ProfileError."""
    ncu = find()
    if not ncu:
        raise ProfileError("ncu was not found; it is part of NVIDIA Nsight Compute")
    launches = len(kernel.launches(workload.largest(), params))
    with tempfile.TemporaryDirectory() as folder, gpu(detect(backend)):
        kernel.save(Path(folder) / "kernel")
        flags = ["--csv", "--page", "raw", "--clock-control", "none", "--graph-profiling", "node"]
        flags += ["--kernel-name", f"regex:{_NAME}", "--metrics", ",".join(METRICS)]
        child = [sys.executable, "-m", "mlx_lm_openevolve.evolve.ncu", "--launch"]
        child += ["--backend", backend, "--seed", str(seed), str(Path(folder) / "kernel")]
        child += [workload.slug, *(f"{name}={value}" for name, value in params.items())]
        text = _run([ncu, *flags, *child], seconds)
    return parse(text, launches)


def _run(command: Sequence[str], seconds: float) -> str:
    """What a command prints; it is killed with all its children after `seconds`."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        env=child_environment(LC_ALL="C"),  # numbers without a locale's marks
    ) as process:
        try:
            out, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise ProfileError(f"ncu took more than {seconds:g} s") from None
        finally:
            if process.poll() is None:
                kill_session(process)
    if "ERR_NVGPUCTRPERM" in out + said:
        raise ProfileError(
            "this user may not read the GPU's counters "
            "(https://developer.nvidia.com/ERR_NVGPUCTRPERM)"
        )
    if '"ID"' not in out:
        lines = [line.strip() for line in f"{out}\n{said}".splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith(("==ERROR==", "==WARNING=="))][:1]
        child = [line for line in lines if not line.startswith("==")][-1:]
        reason = "; ".join([*ours, *child]) or "it printed nothing"
        raise ProfileError(f"ncu ended with status {process.returncode}: {reason[:300]}")
    return out


def parse(text: str, launches: int) -> dict[str, Any]:
    """The profile of a call of so many launches, from what ncu --csv --page raw prints: names,
    units and then a row a launch, behind lines of its own. Raises ProfileError."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = list(csv.reader(line for line in lines[start:] if line.startswith('"')))
    if len(table) < 2 or "Kernel Name" not in table[0]:
        raise ProfileError("ncu printed no table")
    units = dict(zip(*table[:2], strict=False))
    rows = [dict(zip(table[0], cells, strict=False)) for cells in table[2:]]
    rows = [row for row in rows if _NAME in row.get("Kernel Name", "")]
    if not rows or len(rows) % launches:
        raise ProfileError(f"ncu saw {len(rows)} launches, a call has {launches}")
    rows = rows[-_CALLS * launches :]
    columns = {key: _column(rows, metric, units) for metric, (key, *_) in METRICS.items()}
    times = columns["seconds"]
    if any(time is None or time <= 0 for time in times):
        raise ProfileError("ncu measured no time")
    totals: dict[str, Any] = {"launches": launches}
    for key, values in columns.items():
        known = [(v, t) for v, t in zip(values, times, strict=True) if v is not None and t]
        if not known:  # this chip does not count it
            continue
        if key in _SUMMED:
            value = math.fsum(v for v, _ in known) * launches / len(rows)
        else:
            value = math.fsum(v * t for v, t in known) / math.fsum(t for _, t in known)
        totals[key] = round(value) if key in _WHOLE else float(f"{value:.4g}")
    return totals


def _column(
    rows: Sequence[Mapping[str, str]], metric: str, units: Mapping[str, str]
) -> list[float | None]:
    """A metric of each launch in seconds, bytes and shares; None where ncu has no number."""
    unit = units.get(metric, "").split("/")[0]
    if unit not in _UNITS:
        raise ProfileError(f"ncu gives {metric} in {units[metric]!r}")
    column: list[float | None] = []
    for row in rows:
        try:
            value = float(row.get(metric, "").replace(",", ""))
        except ValueError:
            value = math.nan
        column.append(value * _UNITS[unit] if math.isfinite(value) else None)
    return column


def describe(profile: Mapping[str, Any]) -> str:
    """A profile in one line for a person or a model."""
    known = [
        (text, scale * profile[key]) for key, scale, text in METRICS.values() if key in profile
    ]
    return ", ".join(text.format(value) for text, value in known)


class Profiler:
    """Profiles what a prompt or a report is about to show: the parent, and the best kernel of each
    workload. What keeps it from that is an event and a line, once, and then it rests."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._rests = say, False

    def __call__(self, archive: Archive, parent: Kernel | None = None) -> None:
        """Add the profiles that are missing; before a prompt (parent) a few of them."""
        wanted = [(best.kernel, slug) for slug, best in archive.best.items()]
        if parent is not None:
            wanted = [(parent.id, slug) for slug in archive.kernel_best.get(parent.id, ())] + wanted
        known = archive.kernel_best
        wanted = [(k, slug) for k, slug in dict.fromkeys(wanted) if not known[k][slug].profile]
        for kernel, slug in wanted[: _AT_ONCE if parent is not None else None]:
            if self._rests:
                return
            params = dict(archive.kernel_best[kernel][slug].params)
            asked = archive.load(kernel), params, archive.workload(slug), archive.config.backend
            try:
                counted = profile(*asked, seed=archive.config.seed)
            except (OpenEvolveError, OSError) as error:
                self._rests, reason = True, str(error)
                self._say(f"no GPU profiles: {reason}")
                if reason != archive.unprofiled:
                    archive.add(events.Unprofiled(reason))
                return
            archive.add(events.Profiled(kernel, slug, params, counted))


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile a kernel's folder and print what ncu counted; --launch is what ncu runs."""
    parser = argparse.ArgumentParser(prog="python -m mlx_lm_openevolve.evolve.ncu")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("workload", metavar="WORKLOAD")
    parser.add_argument("params", nargs="*", metavar="NAME=VALUE", help="default: the kernel's own")
    parser.add_argument("--backend", choices=BACKENDS, default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launch", action="store_true", help="launch the kernel, nothing else")
    options = parser.parse_intermixed_args(arguments)
    try:
        kernel, workload = Kernel.load(options.folder), ops.parse(options.workload).bucket()
        try:
            given = {name: int(value) for name, value in (p.split("=") for p in options.params)}
        except ValueError:
            raise UsageError(f"{' '.join(options.params)}: expected NAME=VALUE ...") from None
        defaults = kernel.default_params(workload, detect(options.backend))
        params = kernel.check_params({**defaults, **given})
        if options.launch:
            _launch(kernel, params, workload, options.backend, options.seed)
            return
        counted = profile(kernel, params, workload, options.backend, seed=options.seed)
    except OpenEvolveError as error:
        sys.exit(str(error))
    print(describe(counted), json.dumps(counted), sep="\n")


def _launch(
    kernel: Kernel, params: Mapping[str, int], workload: Bucket, backend: str, seed: int
) -> None:
    os.dup2(2, 1)  # what a kernel prints cannot pass for ncu's words
    exact = workload.largest()
    memory = memory_for(detect(backend))
    inputs = ops.of(exact).questions.timing_inputs(exact, 0, memory, seed)
    call = backends.get(backend).build(kernel, params, exact)
    timing.Arm(inputs, call).seconds(_WARM + _CALLS)


if __name__ == "__main__":
    main()
