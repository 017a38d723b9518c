"""`mlx-lm-openevolve export` and `import`: what one machine found, for another to try."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..device import detect
from ..errors import UsageError
from ..kernels import shared
from ..kernels.lookup import named, registries
from ..kernels.registry import Registry, user_root
from ..runtime.planner import tune_on
from .result import Result

__all__ = ["export", "take_in"]

SUFFIX = ".json"


def export(options: argparse.Namespace, out: Console) -> Result:
    """Write the kernels and verdicts of a chip into one file."""
    if options.file.suffix != SUFFIX:  # by which `import` knows it
        raise UsageError(f"{options.file}: its name must end in {SUFFIX}")
    found = shared.collect(registries(), options.device or detect().slug)
    shared.save(options.file, found)
    return _told(found, out, f"wrote {options.file}", f"import {options.file}")


def take_in(options: argparse.Namespace, out: Console) -> Result:
    """Turn a program into a kernel folder, or store what `export` wrote."""
    if options.program.suffix == SUFFIX:
        if options.out or options.kernel or options.params:
            raise UsageError("--out, --kernel and --params are for a program")
        found = shared.load(options.program)
        shared.store(found, Registry(user_root()))
        then = tune_on(detect().backend)
        return _told(found, out, "candidates from now on, none believed", then)
    if options.out is None:
        raise UsageError("name the kernel's folder with --out FOLDER")
    from .. import importer

    if options.kernel:
        whose = named(options.kernel)
        kernel = importer.import_heuristic(options.program, whose, options.out, options.params)
    else:
        kernel = importer.import_program(options.program, options.out)
    out.print(f"wrote {options.out} (kernel {kernel.id}); judge it: ", end="")
    out.print(f"mlx-lm-openevolve check {options.out}")
    return 0, {"kernel": kernel.id, "folder": str(options.out)}


def _told(found: shared.Shared, out: Console, what: str, then: str) -> Result:
    accepted = sum(verdict.accepted for verdict in found.verdicts)
    result = {
        "device": found.device,
        "kernels": [kernel.id for kernel in found.kernels],
        "verdicts": len(found.verdicts),
        "accepted": accepted,
    }
    counts = f"{len(found.kernels)} kernels, {len(found.verdicts)} verdicts ({accepted} accepted)"
    out.print(f"{found.device}: {counts}: {what}; next: mlx-lm-openevolve {then}", markup=False)
    return 0, result
