"""Sharing: the kernels and verdicts of one chip in one file, for another machine to try.

    {"format": 1, "device": slug, "kernels": [{"meta", "sources"}], "verdicts": [...], "checksum"}

A file is data, and not believed: its verdicts are stored as those of the device `imported-SLUG`,
which no machine is. There they say in which order this machine's gate tries the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ops
from ..errors import OpenEvolveError, UsageError
from ..files import write_atomic
from . import records
from .kernel import Kernel
from .registry import DEVICE, Registry
from .verdict import Verdict

__all__ = ["IMPORTED", "Shared", "collect", "imported", "load", "save", "store"]

FORMAT = 1
IMPORTED = "imported-"


@dataclass(frozen=True)
class Shared:
    """What a file holds: the slug of a chip, and its verdicts on kernels that lie in the file."""

    device: str
    kernels: tuple[Kernel, ...]
    verdicts: tuple[Verdict, ...]


def imported(device: str) -> str:
    """The name under which a registry keeps what another machine with that chip said."""
    return f"{IMPORTED}{device}"[:80].rstrip("-")


def collect(registries: Sequence[Registry], device: str) -> Shared:
    """The verdicts on kernels for a device, of the first registry that has each. Raises UsageError
    where there are none, or where they are another machine's. Verdicts on rewritings, steps and
    settings are about no kernel, and stay."""
    if device.startswith(IMPORTED):
        raise UsageError(f"{device}: export it where it was measured; here it is another's word")
    kernels: dict[str, Kernel] = {}
    verdicts: dict[Any, Verdict] = {}
    for registry in registries:
        for bucket in registry.workloads(device):
            for verdict in registry.verdicts(device, bucket):
                found = (r.kernel(verdict.kernel) for r in registries)
                kernel = next((k for k in found if k is not None), None)
                if verdict.kind == "kernel" and kernel is not None:
                    kernels[kernel.id] = kernel
                    about = kernel.id, tuple(sorted(verdict.params.items())), verdict.workload
                    verdicts.setdefault(about, verdict)
    if not verdicts:
        known = sorted({name for registry in registries for name in registry.devices()})
        raise UsageError(
            f"no verdict on a kernel is stored for {device[:80]!r}; devices: {', '.join(known)}"
        )
    return Shared(device, tuple(kernels.values()), tuple(verdicts.values()))


def save(path: Path, shared: Shared) -> None:
    """Write a file. Raises UsageError where it cannot, or where it would be longer than `load`
    reads."""
    record = {
        "format": FORMAT,
        "device": shared.device,
        "kernels": [{"meta": k.meta, "sources": k.sources} for k in shared.kernels],
        "verdicts": [verdict.to_json() for verdict in shared.verdicts],
    }
    data = records.text(record)
    if len(data) > records.MAX_BYTES:
        raise UsageError(f"{path}: {len(data)} bytes, at most {records.MAX_BYTES} may be shared")
    try:
        write_atomic(path, data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def load(path: Path) -> Shared:
    """What a file holds. Raises UsageError where anything in it is not as `save` writes it."""
    try:
        record = records.read(path)
        if record.get("format") != FORMAT:
            raise ValueError(f"format {record.get('format')!r}, this release reads {FORMAT}")
        kernels = {}
        for item in record["kernels"]:
            kernel = Kernel.from_parts(item["meta"], item["sources"], "kernel.json")
            kernels[kernel.id] = kernel
        verdicts = tuple(map(Verdict.from_json, record["verdicts"]))
        for verdict in verdicts:
            _check(verdict, kernels)
        device = record["device"]
        if not DEVICE.fullmatch(device) or device.startswith(IMPORTED):
            raise ValueError(f"{device[:80]!r} is no chip's name")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (OpenEvolveError, AttributeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"{path}: no kernels and verdicts that were exported: {why}") from None
    return Shared(device, tuple(kernels.values()), verdicts)


def _check(verdict: Verdict, kernels: dict[str, Kernel]) -> None:
    """Raise OpenEvolveError or ValueError where a verdict is on nothing that can be tried."""
    if verdict.kind != "kernel" or verdict.kernel not in kernels:
        raise ValueError(f"a verdict on {verdict.kernel[:80]}, which is not in the file")
    bucket = ops.parse(verdict.workload).bucket()
    kernel = kernels[verdict.kernel]
    kernel.check_params(verdict.params)
    if bucket.slug != verdict.workload or not kernel.applies_to(bucket):
        raise ValueError(f"kernel {kernel.id} does not apply to {verdict.workload[:200]}")


def store(shared: Shared, registry: Registry) -> None:
    """Keep what another machine said in the user's registry. Raises RegistryError."""
    for kernel in shared.kernels:
        registry.add(kernel)
    registry.publish_all(imported(shared.device), shared.verdicts)
