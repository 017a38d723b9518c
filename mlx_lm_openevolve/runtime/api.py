"""The public functions: enable, disable, and what was decided.

Importing this changes nothing and imports neither mlx_lm nor what serves calls.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .._version import __version__
from ..switches import switched_off
from .info import OpInfo, OptimizationInfo, WorkloadInfo

if TYPE_CHECKING:
    from ..decode.steps import Steps
    from .dispatch import Dispatcher
    from .patch import Replacement
    from .planner import Judges

__all__ = [
    "OpInfo",
    "OptimizationInfo",
    "WorkloadInfo",
    "disable_optimizations",
    "enable_optimizations",
    "get_optimization_info",
    "optimizations",
]

# The oldest releases that are served. Before MLX 0.32 an error on the GPU ends the process, as some
# derivatives do, and metal_kernel takes no compile options.
SUPPORTED = {"mlx": (0, 32), "mlx-lm": (0, 31)}

log = logging.getLogger("mlx_lm_openevolve")


class _Session(NamedTuple):
    """What is enabled: the patches by family, what they lead to, and why other families are off."""

    patches: dict[str, list[Replacement]]
    dispatcher: Dispatcher
    steps: Steps | None
    off: dict[str, str]


_lock = threading.RLock()
_active: _Session | None = None
# Whether a person was told that nothing will be served here: once in a process, and not by us where
# `run` tells it in its own line.
told_idle = False


def enable_optimizations(
    path: str | Path | None = None,
    *,
    backend: str | None = None,
    gate: str = "auto",
    require_faster: bool = True,
    ops: Sequence[str] | None = None,
) -> OptimizationInfo:
    """Let mlx-lm run on the best proven kernels, in this process, until disabled.

    Calling it again with other arguments replaces the first call. Where the environment says
    MLX_LM_OPENEVOLVE=0 (or off, false, no), nothing is changed.

    Args:
        path: A kernel folder (then only that kernel is considered) or a registry root (used in
            place of the user's); None for the user's registry.
        backend: "metal", "cuda" or "host"; None for the GPU that MLX runs on.
        gate: "auto" gates a workload without a verdict at first use; "stored" trusts stored
            verdicts alone. There is no way to run a kernel that no gate passed.
        require_faster: False accepts a kernel that is correct but not faster, for checking; on the
            host backend nothing is ever faster.
        ops: The families of operations to switch on, such as ("attention",), and "step" for whole
            decode steps. None for attention, and for each other of which a stored verdict accepts
            something on this chip: that one is used from stored verdicts alone, whatever `gate`
            says. The variable MLX_LM_OPENEVOLVE_OPS, names with commas between, names families
            where `ops` does not, and keeps of `ops` those that it names.

    Returns:
        What get_optimization_info() returns.

    Raises:
        UsageError: An argument is none of those above.
        KernelError: `path` holds a malformed kernel, or neither a kernel nor a registry.
        BackendError: The backend is not available on this machine. Without a GPU there is none to
            name: MLX serves everything, and a warning is logged once.
        UnsupportedVersionError: mlx or mlx-lm is missing or too old.
        All are raised before anything was changed.

    Example:
        >>> import mlx_lm_openevolve
        >>> info = mlx_lm_openevolve.enable_optimizations()
        >>> info["enabled"]
        True
    """
    global _active
    with _lock:
        if off := switched_off():
            log.info("%s: mlx-lm stays as it is", off)
            return get_optimization_info()
        session = _prepare(path, backend, gate, require_faster, ops)
        previous = _active
        disable_optimizations()
        try:
            _install(session)
        except BaseException:
            if previous is not None:
                _activate(previous)
            raise
        _active = session
        _tell_idle(session)
        return get_optimization_info()


def disable_optimizations() -> None:
    """Give every module the function back that it held before.

    Nothing happens where none was replaced. A function that mx.compile traced while enabled keeps
    its route.

    Example:
        >>> mlx_lm_openevolve.disable_optimizations()
        >>> mlx_lm_openevolve.get_optimization_info()["enabled"]
        False
    """
    global _active
    with _lock:
        if _active is not None:
            for patch in _all(_active):
                patch.restore()
            # Another library may have wrapped our replacement: what it holds steps aside.
            _active.dispatcher.switch(on=False)
            _active = None


@contextlib.contextmanager
def optimizations(
    path: str | Path | None = None,
    *,
    backend: str | None = None,
    gate: str = "auto",
    require_faster: bool = True,
    ops: Sequence[str] | None = None,
) -> Iterator[OptimizationInfo]:
    """enable_optimizations() for the length of a `with` block; what was active before returns.

    Args:
        path, backend, gate, require_faster, ops: As for enable_optimizations().

    Yields:
        What get_optimization_info() returned when the block began.

    Raises:
        What enable_optimizations() raises.

    Example:
        >>> with mlx_lm_openevolve.optimizations(gate="stored"):
        ...     text = mlx_lm.generate(model, tokenizer, prompt)
    """
    with _lock:
        previous = _active
    info = enable_optimizations(
        path, backend=backend, gate=gate, require_faster=require_faster, ops=ops
    )
    try:
        yield info
    finally:
        with _lock:
            disable_optimizations()
            if previous is not None:
                _activate(previous)


def get_optimization_info() -> OptimizationInfo:
    """Everything that was decided so far, as a plain dict.

    Returns:
        See OptimizationInfo, OpInfo and WorkloadInfo.

    Example:
        >>> info = mlx_lm_openevolve.get_optimization_info()
        >>> {slug: row["hits"] for slug, row in info["workloads"].items()}
        {'attention-b1-hq16-hkv8-lq1-lk1024-d128-v128-bfloat16-none': 896}
    """
    with _lock:
        active = _active
    info: OptimizationInfo = {
        "enabled": active is not None,
        "version": __version__,
        "backend": None,
        "device_info": {},
        "gate": None,
        "require_faster": None,
        "registry": [],
        "ops": {},
        "off": {},
        "workloads": {},
        "fallbacks": {},
        "models": {},
    }
    if active is not None:
        from dataclasses import asdict  # not at import: it is a third of what that takes

        dispatcher = active.dispatcher
        planner = dispatcher.planner
        info["backend"] = planner.device.backend
        info["device_info"] = asdict(planner.device)
        info["gate"] = planner.mode
        info["require_faster"] = planner.require_faster
        info["registry"] = [str(registry.root) for registry in planner.registries]
        for router in dispatcher.routers:
            unreached = [n for patch in active.patches[router.op.name] for n in patch.unreached()]
            info["ops"][router.op.name] = {
                "fallbacks": router.fallbacks(),
                "unreached": unreached,
            }
        info["off"] = dict(active.off)
        info["workloads"] = dispatcher.info()
        info["fallbacks"] = dispatcher.fallbacks()
        info["models"] = active.steps.info() if active.steps else {}
    return info


def _tell_idle(session: _Session) -> None:
    """Warn, once, where all calls will go to MLX whatever they are: on a machine without a GPU."""
    global told_idle
    planner = session.dispatcher.planner
    if planner.device.backend == "host" and planner.require_faster and not told_idle:
        told_idle = True
        log.warning(
            "no GPU is used here, and on the CPU no kernel is faster: mlx-lm runs as without"
            " enable_optimizations() (require_faster=False compares results)"
        )


def _activate(session: _Session) -> None:
    global _active
    session.dispatcher.switch(on=True)
    _install(session)
    _active = session


def _all(session: _Session) -> list[Replacement]:
    return [patch for patches in session.patches.values() for patch in patches]


def _install(session: _Session) -> None:
    """All or none."""
    try:
        for patch in _all(session):
            patch.install()
    except BaseException:
        for patch in _all(session):
            patch.restore()
        raise


def _prepare(
    path: str | Path | None,
    backend: str | None,
    gate: str,
    require_faster: bool,
    ops: Sequence[str] | None,
) -> _Session:
    """Check every argument and build what enabling needs; changes nothing."""
    from .. import errors

    try:
        import mlx.core  # noqa: F401
    except ModuleNotFoundError:
        raise errors.UnsupportedVersionError(errors.NO_MLX) from None
    from .. import backends, device
    from ..kernels import lookup, registry
    from ..kernels.kernel import Kernel
    from ..kernels.verdict import STEP
    from . import dispatch, families, planner
    from .patch import patches_of

    named = families.named(ops)
    if gate not in planner.GATE_MODES:
        raise errors.UsageError(f"gate {gate!r} is none of {', '.join(planner.GATE_MODES)}")
    _check_versions()
    if backend is not None:
        reason = backends.get(backend).unavailable()
        if reason:
            raise errors.BackendError(f"backend {backend!r}: {reason}")

    root, only = registry.user_root(), None
    if path is not None:
        if not isinstance(path, str | os.PathLike):
            raise errors.UsageError(f"path is the path of a folder, not {path!r}")
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
    plans = planner.Planner(
        device.detect(backend),
        [registry.Registry(root), lookup.shipped()],
        judges=_judges,
        mode=gate,
        require_faster=require_faster,
        only=only,
    )
    choice = families.choose(named, plans)
    plans.ungated = choice.unnamed
    dispatcher = dispatch.Dispatcher(plans, [name for name in choice.on if name != STEP])
    patches = {r.op.name: patches_of(r.op, r.wrap) for r in dispatcher.routers}
    steps = None
    if STEP in choice.on:
        from ..decode.steps import Steps

        found = filter(plans.serves, plans.counting(STEP))
        steps = Steps({verdict.workload: verdict.kernel for verdict in reversed([*found])})
        patches[STEP] = [steps]

    def left(name: str) -> None:
        for patch in patches[name]:
            patch.restore()
        choice.off[name] = planner.advised(families.UNMET, plans.device.backend)

    for router in dispatcher.routers:
        name = router.op.name
        if name in choice.unnamed:
            router.met = families.Watch(name, plans, functools.partial(left, name))
    return _Session(patches, dispatcher, steps, choice.off)


def _judges() -> Judges:
    """The gate, loaded when it is first needed."""
    from ..gate.judge import judge
    from ..gate.worker import judge_in_worker
    from .planner import Judges

    return Judges(judge, judge_in_worker)


def _check_versions() -> None:
    from ..device import release, version_of
    from ..errors import UnsupportedVersionError

    for package, oldest in SUPPORTED.items():
        wanted = ".".join(map(str, oldest))
        version = version_of(package)
        if not version:
            raise UnsupportedVersionError(
                f"{package} is not installed; {wanted} or newer is needed"
            )
        if release(version) < oldest:
            raise UnsupportedVersionError(f"{package} {version} is older than {wanted}")
