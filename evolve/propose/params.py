"""The proposer `params`: turns the numeric knobs of kernels and their structural switches, without
a model and without a network.

For one workload at a time, the one with the most to win: first every kernel's defaults, then
neighbours of the best settings (one knob moved), children of two good ones, what won at similar
workloads, and a few settings at random. The surrogate says which of these to try first.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_lm_openevolve.backends.metal import fitting, those_that_fit
from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.spec import MATH_MODES
from mlx_lm_openevolve.ops import Bucket

from ..archive import Archive
from ..candidate import Candidate
from ..evaluation import WorkloadResult
from . import surrogate

__all__ = ["ParamsProposer", "headroom", "launch_key", "switches"]

Params = dict[str, int]
_POOL = 160
# Share of turns that flip a structural switch of a kernel instead of a knob.
_SWITCH = 0.05


def headroom(archive: Archive, slug: str) -> float:
    """Best time so far over the floor: what is left to win at a workload, at least 1; 2 where
    nothing is timed."""
    base = archive.baseline.get(slug)
    if base is None:
        return 2.0
    best = base.seconds
    if slug in archive.best:
        best = min(best, best / archive.best[slug].result.ratio)
    return max(1.0, best / base.floor)


def switches(kernel: Kernel, backend: str) -> list[tuple[str, Kernel]]:
    """Kernels that differ in one structural switch, with what was switched: the math mode, which
    only a Metal compiler hears of."""
    if backend == "cuda":
        return []
    made = []
    current = {spec.math_mode for spec in kernel.specs}
    for mode in MATH_MODES:
        if current == {mode}:
            continue
        launches = [{**spec, "math_mode": mode} for spec in kernel.meta["launches"]]
        meta = {**kernel.meta, "launches": launches, "origin": f"tuned from {kernel.id}"}
        made.append((f"math_mode {mode}", Kernel.from_parts(meta, kernel.sources)))
    return made


class ParamsProposer:
    """The proposer of knobs. `kernels` are the seeds; `only` limits it to one kernel; `points`
    lists the settings of a kernel where not all may be tried."""

    def __init__(
        self,
        kernels: Sequence[Kernel],
        *,
        only: str = "",
        points: Callable[[Kernel, Bucket], Sequence[Params]] | None = None,
    ) -> None:
        self.seeds, self.only, self._points = list(kernels), only, points

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """Up to `count` settings for the workload with the most to win; before that, every
        kernel's defaults at the workloads that have no row yet."""
        first = archive.next_number()
        rng = random.Random(f"{archive.config.seed} {first}")
        made: list[Candidate] = []
        for slug in self._workloads(archive):
            fresh = archive.tries(slug) == 0
            if made and not fresh:
                break
            settings = self._for(archive, slug, count - len(made), rng, defaults=fresh)
            for kernel, params, parent, note in settings:
                number = first + len(made)
                island = number % archive.config.search.islands
                if kernel.id in archive.kernels:
                    island = archive.kernels[kernel.id].island
                made.append(
                    Candidate(
                        number=number,
                        proposer="params",
                        kernel=kernel.id,
                        workloads=(slug,),
                        params=params,
                        parent=parent,
                        note=note,
                        island=island,
                    )
                )
            if len(made) == count:
                break
        return made

    def _workloads(self, archive: Archive) -> list[str]:
        """Workloads by what one more candidate may win there, saturated ones left out."""
        bar = archive.config.search.saturated

        def gain(slug: str) -> float:
            tries = archive.tries(slug)
            if tries == 0:  # a row for every workload comes first
                return 1e9 + archive.weights[slug] * headroom(archive, slug)
            since = tries - archive.tries_at_best(slug)
            return archive.weights[slug] * math.log(headroom(archive, slug)) / (4 + tries + since)

        open_ = [slug for slug in archive.slugs if headroom(archive, slug) > bar]
        return sorted(open_, key=gain, reverse=True)

    def _kernels(self, archive: Archive, workload: Bucket) -> list[Kernel]:
        """Kernels that may be tuned for a workload: seeds, and those that were correct."""
        measured = [archive.registry.kernel(id) for id in archive.kernel_best]
        known = {k.id: k for k in (*self.seeds, *measured) if k is not None}
        kept = [k for k in known.values() if k.applies_to(workload) and k.id not in archive.banned]
        return [k for k in kept if not self.only or k.id == self.only]

    def _for(
        self, archive: Archive, slug: str, count: int, rng: random.Random, *, defaults: bool
    ) -> list[tuple[Kernel, Params, str, str]]:
        """Up to `count` settings for a workload, none but the kernels' defaults where so asked."""
        workload = archive.workload(slug)
        kernels = self._kernels(archive, workload)
        made: list[tuple[Kernel, Params, str, str]] = []
        taken: set[Any] = set()
        # Given points were measured already, and CUDA's threadgroups may hold more.
        limited = self._points is None and archive.config.backend != "cuda"

        def take(kernel: Kernel, params: Params, note: str, parent: str = "") -> None:
            key = launch_key(kernel, workload, params)
            if key is None or key in taken:
                return
            if limited and not fitting(kernel, workload, [params]):
                return
            if key in {launch_key(kernel, workload, p) for p in archive.tried(kernel.id, slug)}:
                return
            taken.add(key)
            archive.registry.add(kernel)
            made.append((kernel, params, parent or archive.parent(kernel.id), note))

        def switch(kernel: Kernel) -> None:
            best = archive.kernel_best.get(kernel.id, {}).get(slug)
            if best is None or self.only or self._points is not None:
                return
            for note, other in switches(kernel, archive.config.backend):
                if other.id not in archive.kernels:
                    take(other, dict(best.params), note, parent=kernel.id)
                    break

        for kernel in kernels:  # a kernel's own defaults come before anything made from them
            if not archive.tried(kernel.id, slug):
                try:
                    own = archive.defaults(kernel, slug)
                except KernelError:
                    continue
                if self._points is not None:
                    points = self._points(kernel, workload)
                    if not points:
                        continue
                    own = _nearest(kernel, workload, own, points)
                take(kernel, own, "defaults")
        del made[count:]
        if defaults and made:
            return made
        tries = 0
        while len(made) < count and tries < 4 * count and kernels:
            tries += 1
            kernel = _choose(archive, kernels, slug, rng)
            before = len(made)
            if rng.random() < _SWITCH:
                switch(kernel)
            ranked = self._ranked(archive, kernel, workload, slug, rng)
            fit = those_that_fit(kernel, workload, ranked, lambda item: item[0])
            for params, note in fit if limited else ranked:
                if len(made) > before:
                    break
                take(kernel, params, note)
        for kernel in kernels if not made else ():  # all settings are tried
            switch(kernel)
        return made[:count]

    def _ranked(
        self, archive: Archive, kernel: Kernel, workload: Bucket, slug: str, rng: random.Random
    ) -> list[tuple[Params, str]]:
        """Settings worth trying, the most promising first."""
        pool = self._pool(archive, kernel, workload, slug, rng)
        if not pool:
            return []
        known = surrogate.observations(archive, kernel)
        if len(known) < 3:  # too few to learn from: mostly one knob moved from the best
            rng.shuffle(pool)
            return sorted(pool, key=lambda item: item[1] == "random")
        points = np.array([surrogate.point(kernel, workload, params) for params, _ in pool])
        return [pool[i] for i in np.argsort(surrogate.scores(points, known), kind="stable")]

    def _pool(
        self, archive: Archive, kernel: Kernel, workload: Bucket, slug: str, rng: random.Random
    ) -> list[tuple[Params, str]]:
        trials = archive.tried(kernel.id, slug)
        good = sorted(
            (p for p in trials if math.isfinite(archive.cost(kernel.id, slug, p))),
            key=lambda p: archive.cost(kernel.id, slug, p),
        )[:4]
        pool: list[tuple[Params, str]] = []
        for rank, base in enumerate(good):
            for param in kernel.params:
                at = param.values.index(base[param.name])
                reach = len(param.values) if rank == 0 else 1
                for j, value in enumerate(param.values):
                    if j != at and abs(j - at) <= reach:
                        note = f"{param.name} {base[param.name]} -> {value}"
                        pool.append(({**base, param.name: value}, note))
        if len(good) > 1:
            for _ in range(24):
                a, b = rng.sample(good, 2)
                child = {name: rng.choice((a, b))[name] for name in a}
                if rng.random() < 0.5:
                    param = rng.choice(kernel.params)
                    child[param.name] = rng.choice(param.values)
                pool.append((child, "child of two"))
        for other, results in _similar(archive, kernel, workload, slug):
            pool.append((dict(results.params), f"best of {other}"))
        if self._points is not None:
            allowed = {tuple(p.items()) for p in self._points(kernel, workload)}
            pool = [item for item in pool if tuple(item[0].items()) in allowed]
            pool += [(dict(key), "random") for key in rng.sample(sorted(allowed), len(allowed))]
        else:
            for _ in range(max(_POOL - len(pool), 40)):
                pool.append(({p.name: rng.choice(p.values) for p in kernel.params}, "random"))
        seen = {launch_key(kernel, workload, p) for p in trials} | {None}
        kept = []
        for params, note in pool:
            key = launch_key(kernel, workload, params)
            if key not in seen:
                seen.add(key)
                kept.append((params, note))
        return kept


def _choose(archive: Archive, kernels: Sequence[Kernel], slug: str, rng: random.Random) -> Kernel:
    """A kernel to turn knobs of: the better it did here and the fewer were tried, the likelier."""

    def worth(kernel: Kernel) -> float:
        best = archive.kernel_best.get(kernel.id, {}).get(slug)
        score = best.score if best is not None else 0.5
        return float(score**6 / (3 + len(archive.tried(kernel.id, slug))))

    return rng.choices(list(kernels), [worth(kernel) for kernel in kernels])[0]


def _nearest(kernel: Kernel, workload: Bucket, wanted: Params, points: Sequence[Params]) -> Params:
    """The setting of `points` with the most knobs, and then the nearest, as wanted."""
    here = surrogate.point(kernel, workload, wanted)

    def apart(params: Params) -> tuple[int, float]:
        off = np.abs(surrogate.point(kernel, workload, params) - here)
        return int((off > 0).sum()), float(off.sum())

    return min(points, key=apart)


def launch_key(kernel: Kernel, workload: Bucket, params: Mapping[str, int]) -> Any:
    """What params come to in the launches of a workload: equal for settings that differ in name
    alone; None where they cannot be launched."""
    return _launch_key(kernel, workload, tuple(params.items()))


@functools.lru_cache(maxsize=1 << 14)
def _launch_key(kernel: Kernel, workload: Bucket, params: tuple[tuple[str, int], ...]) -> Any:
    try:
        launches = kernel.launches(workload, dict(params))
    except KernelError:
        return None
    return tuple((x.spec.file, x.template, x.grid, x.threadgroup, x.outputs) for x in launches)


def _similar(
    archive: Archive, kernel: Kernel, workload: Bucket, slug: str
) -> list[tuple[str, WorkloadResult]]:
    """The kernel's best at the three workloads most like this one."""
    here = surrogate.place(workload)

    def apart(other: str) -> tuple[float, str]:
        return float(np.abs(surrogate.place(archive.workload(other)) - here).sum()), other

    results = archive.kernel_best.get(kernel.id, {})
    others = sorted((other for other in results if other != slug), key=apart)
    return [(other, results[other]) for other in others[:3]]
