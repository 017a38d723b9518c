"""Where kernels are looked for: the user's registry and the shipped one."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable
from pathlib import Path

from ..errors import UsageError
from .kernel import Kernel
from .registry import Registry, tuned_root, user_root

__all__ = ["in_order", "named", "registries", "shipped"]


def shipped() -> Registry:
    """The registry that comes with the package."""
    return Registry(tuned_root(), writable=False)


def registries() -> list[Registry]:
    """The user's registry and the shipped one, in the order they are asked."""
    return [Registry(user_root()), shipped()]


def in_order(kernels: Iterable[Kernel], own: Container[str] = ()) -> list[Kernel]:
    """Kernels in the order in which they are tried; own: ids of those that a user added. Launches
    written for this backend first: they suit it best. The first that is accepted serves: of those
    that ship, what a search fitted to one workload comes after the others."""

    def fitted(kernel: Kernel) -> bool:
        return kernel.origin != "handwritten" and kernel.id not in own

    return sorted(kernels, key=lambda kernel: (not kernel.native, fitted(kernel)))


def named(what: str) -> Kernel:
    """The kernel in a folder, or the known one of that id or name. Raises KernelError where the
    folder holds none, UsageError where nothing bears the name."""
    if Path(what).exists() or "/" in what:
        return Kernel.load(what)
    known = {kernel.id: kernel for registry in registries() for kernel in registry.kernels()}
    matches = [kernel for kernel in known.values() if what in (kernel.id, kernel.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = ", ".join(kernel.id for kernel in matches)
        raise UsageError(f"{what} is the name of several kernels; choose from {ids}")
    names = sorted({kernel.name for kernel in known.values()})
    near = difflib.get_close_matches(what, [*names, *known], n=3)
    text = (
        f"did you mean {' or '.join(near)}?" if near else f"kernels: {', '.join(names) or 'none'}"
    )
    raise UsageError(
        f"{what[:80]!r} is neither a stored kernel's id or name nor a workload; {text}"
    )
