"""What `enable_optimizations(gate="stored")` costs a process that has imported mlx-lm.

    python benchmarks/start_up.py [--processes 9] [--backend host] [--output FILE]

Fresh processes take turns, stock and enabled; the first of each is not counted, so that files lie
in the page cache and bytecode is written. Inside a process the clock runs around `import mlx_lm`,
`import mlx_lm_openevolve`, the call, and three small attention calls, which would show work that
was only put off; the start and the end of the process are left out. The user's registry is empty.

Prints milliseconds, median [least, most], and what was imported beyond mlx-lm: our modules, and
others by package with the time that importing them takes, from one more process. That one is
slowed down by what it records: compare its figures with each other alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.device import BACKENDS

OURS = "mlx_lm_openevolve"
ARMS = ("stock", "enabled")
PARTS = ("import mlx_lm", f"import {OURS}", "enable_optimizations", "first calls")
# What a process does; it prints seconds by part, and the modules that it imported beyond mlx-lm.
PROGRAM = """
import json, sys, time
clock = [time.perf_counter()]
import mlx_lm
clock.append(time.perf_counter())
before = set(sys.modules)
if {enabled}:
    import mlx_lm_openevolve
clock.append(time.perf_counter())
if {enabled}:
    mlx_lm_openevolve.enable_optimizations(gate="stored", backend={backend!r})
clock.append(time.perf_counter())
modules = [name for name in sys.modules if name not in before]

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache
cache = KVCache()
q, k = mx.zeros((1, 8, 1, 64), mx.bfloat16), mx.zeros((1, 2, 1, 64), mx.bfloat16)
mx.eval(q, k)
more = time.perf_counter()
for _ in range(3):
    keys, values = cache.update_and_fetch(k, k)
    mx.eval(base.scaled_dot_product_attention(q, keys, values, cache, scale=0.125, mask=None))
calls = time.perf_counter() - more
parts = [b - a for a, b in zip(clock, clock[1:])]
print(json.dumps({{"seconds": [*parts, calls], "modules": modules}}))
"""
_IMPORTED = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)")


def process(enabled: bool, backend: str | None, home: str, *flags: str) -> tuple[Any, str]:
    """What one fresh process prints, and its standard error."""
    code = PROGRAM.format(enabled=enabled, backend=backend)
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        env={**os.environ, "MLX_LM_OPENEVOLVE_HOME": home},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def imported(backend: str | None, home: str) -> dict[str, float]:
    """Milliseconds that each module beyond mlx-lm takes to import, what it imports left out."""
    found, told = process(True, backend, home, "-X", "importtime")
    beyond = set(found["modules"])
    rows = _IMPORTED.findall(told)
    return {name: int(microseconds) / 1e3 for microseconds, name in rows if name in beyond}


def figures(samples: list[list[float]]) -> list[str]:
    """Median [least, most] of each part, and of all parts of ours together, in milliseconds."""
    columns = [*zip(*samples, strict=True), [sum(sample[1:3]) for sample in samples]]
    return [
        f"{statistics.median(c) * 1e3:7.1f} [{min(c) * 1e3:.1f}, {max(c) * 1e3:.1f}]"
        for c in columns
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=9, help="of each arm, at least 3")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU that MLX runs on")
    parser.add_argument("--output", type=Path, help="JSON file with every sample")
    options = parser.parse_args()
    if options.processes < 3:
        parser.error("--processes: at least 3")

    samples: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as home:
        for turn in range(options.processes + 1):
            for arm in ARMS:
                found, _ = process(arm == "enabled", options.backend, home)
                if turn:
                    samples[arm].append(found["seconds"])
        modules = imported(options.backend, home)

    print(f"{'milliseconds':24s}{'stock':>24s}{'enabled':>24s}")
    rows = [figures(samples[arm]) for arm in ARMS]
    for part, stock, ours in zip((*PARTS, "import and enable"), *rows, strict=True):
        print(f"{part:24s}{stock if 'mlx_lm_open' not in part else '':>24s}{ours:>24s}")
    heaviest = sorted(modules, key=lambda name: -modules[name])
    own = [name for name in heaviest if name.split(".")[0] == OURS]
    spent = sum(modules[name] for name in own)
    print(f"\n{len(own)} modules of ours, {spent:.0f} ms under -X importtime:")
    for name in own:
        print(f"{modules[name]:8.1f}  {name}")
    others: dict[str, list[float]] = {}
    for name in heaviest:
        if name not in own:
            others.setdefault(name.split(".")[0], []).append(modules[name])
    spent = sum(map(sum, others.values()))
    print(f"{sum(map(len, others.values()))} modules of others, {spent:.0f} ms, the heaviest:")
    for package in sorted(others, key=lambda package: -sum(others[package]))[:12]:
        print(f"{sum(others[package]):8.1f}  {package} ({len(others[package])})")
    if options.output:
        record = {
            "machine": platform.platform(),
            "python": platform.python_version(),
            "backend": options.backend,
            "parts": PARTS,
            "seconds": samples,
            "modules": modules,
        }
        options.output.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
