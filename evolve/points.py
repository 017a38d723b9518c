"""Points that were measured before: tables of times, and how good default params are there.

    {"device": name, "date": "...", "copy_bytes_per_second": ..., "facts": {"device_cores": ...},
     "points": [{"workload": slug, "id": kernel, "params": {...}, "us": 12.3}, ...]}

benchmarks/gpu_time.py writes such a file. A point without `us` did not run there. A table of before
there were ids names kernels (`kernel`). `facts` are those that defaults may see of the chip
(Device.facts); without them they see the workload alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.errors import KernelError, OpenEvolveError, UsageError
from mlx_lm_openevolve.kernels.expressions import Expression
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.spec import Param
from mlx_lm_openevolve.ops.base import Value

__all__ = ["Setting", "Shape", "choice", "kernels_of", "read", "score", "share", "split", "value"]

Setting = tuple[int, ...]  # values of a kernel's params, in the kernel's order


@dataclass(frozen=True)
class Shape:
    """A workload on a device: what a default sees there (`values`: the fields of the workload's
    bucket, as at run time, and the facts), and the microseconds of each setting that was measured,
    infinite where it did not run."""

    device: str
    workload: str
    values: Mapping[str, Value]
    us: Mapping[Setting, float]

    @cached_property
    def ran(self) -> dict[Setting, float]:
        """The settings that ran."""
        return {setting: us for setting, us in self.us.items() if us < math.inf}

    def best(self) -> Setting:
        """The fastest setting."""
        return min(self.us, key=lambda setting: (self.us[setting], setting))

    def share(self, setting: Setting) -> float:
        """The best measured time over that of a setting, 1 at most. One that was not measured
        counts as the slowest that was; one that did not run is 0."""
        least, most = self._ends
        return least / self.us.get(setting, most)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The fastest time that was measured, and the slowest."""
        return min(self.ran.values()), max(self.ran.values())


def _contents(paths: Iterable[Path]) -> list[tuple[Path, Mapping[str, Any]]]:
    found = []
    for path in paths:
        try:
            data = json.loads(path.read_text())
            for point in data["points"]:
                if _kernel_of(point):
                    ops.parse(point["workload"])
                    dict(point["params"])
            data["device"].strip()
            dict(data.get("facts", {}))
        except OpenEvolveError as error:
            raise UsageError(f"{path}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: no table of points: {error!r}") from None
        found.append((path, data))
    return found


def _kernel_of(point: Mapping[str, Any]) -> str:
    """The id, or the name, of a point's kernel; "" for what is none of ours."""
    return str(point.get("id") or point.get("kernel") or "")


def kernels_of(paths: Iterable[Path]) -> list[str]:
    """The kernels that tables hold points of. Raises UsageError where a file is no table."""
    found = {_kernel_of(point) for _, data in _contents(paths) for point in data["points"]}
    return sorted(found - {""})


def read(paths: Sequence[Path], kernel: Kernel, which: str) -> list[Shape]:
    """The shapes at which several settings of the kernel `which` (see kernels_of) ran, from one or
    more tables; `kernel` is it, or has the same params. A point that was measured again counts with
    its median. Raises UsageError."""
    found: dict[tuple[str, str], dict[Setting, list[float]]] = {}
    facts: dict[str, Mapping[str, Value]] = {}
    for path, data in _contents(paths):
        device, chip = data["device"], data.get("facts", {})
        if facts.setdefault(device, chip) != chip:
            raise UsageError(f"{path}: other facts of {device} than in another table")
        for point in data["points"]:
            if _kernel_of(point) != which:
                continue
            try:
                setting = tuple(kernel.check_params(point["params"]).values())
                measured = float(point.get("us", math.inf))
            except (KernelError, ValueError, TypeError) as error:
                raise UsageError(f"{path}: {point['workload']}: {error}") from None
            if not measured > 0:
                raise UsageError(f"{path}: {point['workload']}: {measured:g} us")
            times = found.setdefault((device, point["workload"]), {})
            times.setdefault(setting, []).append(measured)
    shapes = []
    for (device, slug), times in found.items():
        values = {**ops.parse(slug).bucket().fields(), **facts[device]}
        us = {setting: statistics.median(rows) for setting, rows in times.items()}
        shape = Shape(device, slug, values, us)
        if len(shape.ran) > 1:
            shapes.append(shape)
    return sorted(shapes, key=lambda shape: (shape.device, shape.workload))


def split(shapes: Sequence[Shape]) -> tuple[list[Shape], list[Shape]]:
    """(seen, sealed): a third of the workloads is sealed, those whose names have the least SHA-256,
    on every device alike: nothing that was measured has a say in it. Raises UsageError where too
    few are left to do so."""
    slugs = sorted({s.workload for s in shapes}, key=lambda s: hashlib.sha256(s.encode()).digest())
    if len(slugs) < 3:
        raise UsageError(f"{len(slugs)} workloads with several settings measured; 3 are needed")
    sealed = set(slugs[: math.ceil(len(slugs) / 3)])
    return (
        [shape for shape in shapes if shape.workload not in sealed],
        [shape for shape in shapes if shape.workload in sealed],
    )


def choice(kernel: Kernel, defaults: Sequence[Expression], shape: Shape) -> Setting | None:
    """What default expressions, one for each of the kernel's params, choose at a shape; None where
    they give no value that the param has."""
    pairs = zip(kernel.params, defaults, strict=True)
    values = [value(replace(param, default=default), shape) for param, default in pairs]
    setting = tuple(value for value in values if value is not None)
    return setting if len(setting) == len(values) else None


def value(param: Param, shape: Shape) -> int | None:
    """What a param's default comes to at a shape; None where that is no value of the param."""
    try:
        found = param.chosen(shape.values)
    except KernelError:
        return None
    return found if found in param.values else None


def share(kernel: Kernel, defaults: Sequence[Expression], shape: Shape) -> float:
    """Shape.share of what defaults choose; 0 where they choose nothing."""
    setting = choice(kernel, defaults, shape)
    return 0.0 if setting is None else shape.share(setting)


def score(shares: Iterable[float]) -> float:
    """Their geometric mean, 0 where one is 0."""
    found = list(shares)
    return statistics.geometric_mean(found) if found and min(found) > 0 else 0.0
