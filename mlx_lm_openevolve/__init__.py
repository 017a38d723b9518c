"""Attention kernels for mlx-lm, proven right and faster on this very chip; else MLX's own SDPA.

    import mlx_lm_openevolve
    mlx_lm_openevolve.enable_optimizations()

Importing this package changes nothing and does not import mlx_lm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime.dispatch import Dispatcher
    from .runtime.patch import Patch

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "disable_optimizations",
    "enable_optimizations",
    "get_optimization_info",
    "optimizations",
]

SUPPORTED = {"mlx": (0, 31), "mlx-lm": (0, 31)}

log = logging.getLogger("mlx_lm_openevolve")
_lock = threading.RLock()
_active: tuple[Patch, Dispatcher] | None = None


def enable_optimizations(
    path: str | Path | None = None,
    *,
    backend: str | None = None,
    gate: str = "auto",
    require_faster: bool = True,
) -> dict[str, Any]:
    """Let mlx-lm's attention run on the best proven kernel, in this process, until disabled.

    path: a kernel folder (then only that kernel is considered) or a registry root (used in place
        of the user's); None for the user's registry.
    backend: "metal", "cuda" or "host"; None for the GPU that MLX runs on.
    gate: "auto" gates a workload without a verdict at first use; "stored" trusts stored verdicts
        alone. There is no way to run a kernel that no gate passed.
    require_faster: False accepts a kernel that is correct but not faster, for checking; on the
        host backend nothing is ever faster.

    Returns get_optimization_info(). Where the environment says MLX_LM_OPENEVOLVE=0, nothing is
    changed. Raises UsageError, KernelError, BackendError or UnsupportedVersionError, each before
    anything was changed. Calling it again with other arguments replaces the first call.
    """
    global _active
    with _lock:
        if os.environ.get("MLX_LM_OPENEVOLVE") == "0":
            log.info("MLX_LM_OPENEVOLVE=0: mlx-lm stays as it is")
            return get_optimization_info()
        patch, dispatcher = _prepare(path, backend, gate, require_faster)
        previous = _active
        disable_optimizations()
        try:
            patch.install()
        except BaseException:
            if previous is not None:
                _activate(*previous)
            raise
        _active = (patch, dispatcher)
        return get_optimization_info()


def disable_optimizations() -> None:
    """Give every mlx-lm module its own attention function back. Nothing happens where none was
    replaced. A function that mx.compile traced while enabled keeps its route."""
    global _active
    with _lock:
        if _active is not None:
            patch, dispatcher = _active
            patch.restore()
            # Another library may have wrapped our replacement: what it holds steps aside.
            dispatcher.off.append(True)
            _active = None


@contextlib.contextmanager
def optimizations(
    path: str | Path | None = None,
    *,
    backend: str | None = None,
    gate: str = "auto",
    require_faster: bool = True,
) -> Iterator[dict[str, Any]]:
    """enable_optimizations() for the length of a `with` block; what was active before returns."""
    with _lock:
        previous = _active
    info = enable_optimizations(path, backend=backend, gate=gate, require_faster=require_faster)
    try:
        yield info
    finally:
        with _lock:
            disable_optimizations()
            if previous is not None:
                _activate(*previous)


def get_optimization_info() -> dict[str, Any]:
    """Everything that was decided so far, as a plain dict.

    enabled, version, backend, device_info (facts of the chip), gate, require_faster, registry
    (roots in the order they are asked), workloads (slug -> kernel or None, params, verdict,
    reason, hits, fallbacks) and fallbacks (calls that no workload describes: reason -> count).
    """
    with _lock:
        active = _active
    info: dict[str, Any] = {
        "enabled": active is not None,
        "version": __version__,
        "backend": None,
        "device_info": {},
        "gate": None,
        "require_faster": None,
        "registry": [],
        "workloads": {},
        "fallbacks": {},
    }
    if active is not None:
        from dataclasses import asdict  # not at import: it is a third of what that takes

        dispatcher = active[1]
        planner = dispatcher.planner
        info |= {
            "backend": planner.device.backend,
            "device_info": asdict(planner.device),
            "gate": planner.mode,
            "require_faster": planner.require_faster,
            "registry": [str(registry.root) for registry in planner.registries],
            "workloads": dispatcher.info(),
            "fallbacks": dispatcher.fallbacks(),
        }
    return info


def _activate(patch: Patch, dispatcher: Dispatcher) -> None:
    global _active
    dispatcher.off.clear()
    patch.install()
    _active = (patch, dispatcher)


def _prepare(
    path: str | Path | None, backend: str | None, gate: str, require_faster: bool
) -> tuple[Patch, Dispatcher]:
    """Check every argument and build what enabling needs; changes nothing."""
    from . import backends, device, errors
    from .kernels import registry
    from .kernels.kernel import Kernel
    from .runtime import dispatch
    from .runtime import planner as plan
    from .runtime.patch import Patch

    if gate not in plan.GATE_MODES:
        raise errors.UsageError(f"gate {gate!r} is none of {', '.join(plan.GATE_MODES)}")
    _check_versions()
    if backend is not None:
        reason = backends.get(backend).unavailable()
        if reason:
            raise errors.BackendError(f"backend {backend!r}: {reason}")

    root, only = registry.user_root(), None
    if path is not None:
        path = Path(path)
        if path.suffix == ".py":
            raise errors.UsageError(
                f"{path} is a program, not a kernel: read it with "
                f"`mlx-lm-openevolve import {path} --out FOLDER`, then enable that folder"
            )
        if (path / "kernel.json").exists():
            only = Kernel.load(path)
        elif (path / registry.VERSION).is_dir():
            root = path
        else:
            raise errors.KernelError(
                f"{path}: neither a kernel folder (no kernel.json) nor a registry root "
                f"(no {registry.VERSION}/)"
            )
    planner = plan.Planner(
        device.detect(backend),
        [registry.Registry(root), registry.Registry(registry.tuned_root(), writable=False)],
        mode=gate,
        require_faster=require_faster,
        only=only,
    )
    dispatcher = dispatch.Dispatcher(planner)
    # By `from`: this works while that module's import is just being finished, too.
    from mlx_lm.models import base

    return Patch(base, dispatcher.wrap), dispatcher


def _check_versions() -> None:
    from .device import version_of
    from .errors import UnsupportedVersionError

    for package, oldest in SUPPORTED.items():
        wanted = ".".join(map(str, oldest))
        found = version_of(package)
        if not found:
            raise UnsupportedVersionError(
                f"{package} is not installed; {wanted} or newer is needed"
            )
        numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
        if numbers < oldest:
            raise UnsupportedVersionError(f"{package} {found} is older than {wanted}")
