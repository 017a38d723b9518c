"""Which families of operations are on in a process, and why the others are not.

    named: by ops=, by the variable, by a kernel that is the only one considered
           -> on; what has no verdict is gated at first use
    else:  attention -> on alike
           linear, step -> on where a verdict of this chip accepts something of them; never gated

Asking loads nothing of a family of which nothing is accepted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .. import ops
from ..errors import UsageError
from ..kernels.verdict import STEP
from ..switches import switched_off
from .planner import Planner, advised

__all__ = ["NAMES", "NO_VERDICT", "ON_GPU", "UNMET", "Choice", "Watch", "choose", "named"]

OPS = "MLX_LM_OPENEVOLVE_OPS"
NAMES = ops.NAMES
DEFAULT = ("attention",)
NOT_NAMED = "not among those that were named"
ONE_KERNEL = "one kernel alone is considered"
NO_VERDICT = "no accepted verdict on this chip; `tune` judges what a model has"
UNMET = "no accepted verdict on any layer that was met; `tune` judges what a model has"
ON_GPU = "whole steps are judged on a GPU alone"
NO_GPU = "no GPU here, and on the CPU nothing is faster"


class Choice(NamedTuple):
    """on: the families that are on, in the order of NAMES; unnamed: those of them that are on for
    their verdicts alone; off: the others, each with the reason."""

    on: list[str]
    unnamed: list[str]
    off: dict[str, str]


def named(wanted: Sequence[str] | None = None) -> list[str] | None:
    """The families that a person named: `wanted`, of which the variable keeps those that it names;
    without `wanted` those of the variable; None where neither names any. Raises UsageError."""
    if isinstance(wanted, str) or not isinstance(wanted, Iterable | None):
        raise UsageError(f'ops is a tuple of names such as ("{NAMES[0]}",), not {wanted!r}')
    wanted = None if wanted is None else tuple(wanted)
    given = [name.strip() for name in os.environ.get(OPS, "").split(",") if name.strip()]
    for source, some in (("ops", wanted or ()), (OPS, given)):
        for name in some:
            if name not in NAMES:
                raise UsageError(f"{source}: {name!r} is none of {', '.join(NAMES)}")
    asked = given if wanted is None else [n for n in wanted if not given or n in given]
    return [n for n in NAMES if n in asked] if given or wanted is not None else None


def choose(named: Sequence[str] | None, planner: Planner) -> Choice:
    """What is on where a person named these, or none (None); nothing where all is switched off."""
    if off := switched_off():
        return Choice([], [], dict.fromkeys(NAMES, off))
    only = planner.only
    asked = named if named is not None else (*DEFAULT, *([only.op] if only else []))
    found = Choice([], [], {})
    for name in NAMES:
        if name in asked and not (only and name == STEP):
            found.on.append(name)
        elif named is not None and name not in named:
            found.off[name] = NOT_NAMED
        elif only is not None:
            found.off[name] = ONE_KERNEL
        elif any(map(planner.runs, planner.counting(name))):
            found.on.append(name)
            found.unnamed.append(name)
        else:
            idle = planner.device.backend == "host" and planner.require_faster
            on_host = ON_GPU if name == STEP else advised(NO_VERDICT, "host")
            without = on_host if planner.device.backend == "host" else NO_VERDICT
            found.off[name] = NO_GPU if idle else without
    return found


class Watch:
    """Leaves a family that is on for its verdicts alone where these are about none of the layers
    that are met: a call that falls back costs little, but a model makes hundreds a token.

    Told of each layer and shape that is new. Once the first layer is met again, all were."""

    def __init__(self, name: str, planner: Planner, leave: Callable[[], None]) -> None:
        self._name, self._planner, self._leave = name, planner, leave
        self._first, self._over = 0, False

    @functools.cached_property
    def _layouts(self) -> set[str]:
        """Those that a verdict accepts something of; not asked before a layer is met."""
        served = filter(self._planner.serves, self._planner.counting(self._name))
        return {ops.parse(verdict.workload).bucket().layout for verdict in served}

    def __call__(self, layer: int, layout: str, again: bool) -> None:
        """layer: its id; layout: of its workloads, "" where it has none; again: it is known."""
        if self._over:
            return
        self._first = self._first or layer
        found = layout in self._layouts
        self._over = found or (again and layer == self._first)
        if self._over and not found:
            self._leave()
