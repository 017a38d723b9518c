"""Planner: what a bucket runs on, and why.

    bucket -> stored verdicts (user's registry, then tuned/) -> the gate, where it may run -> Plan

A plan is made once for each bucket in a process. It names a kernel only where a verdict that
counts on this device says so. The gate is handed in: a process whose verdicts are stored never
loads it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .. import ops
from ..device import Device, fingerprint
from ..errors import GateMemory, GateTimeout, KernelError, RegistryError, WorkloadError, interrupted
from ..kernels.kernel import Kernel
from ..kernels.lookup import in_order
from ..kernels.registry import Registry
from ..kernels.verdict import STEP, UNTIMED, WAYS, Poisoned, Verdict, gate_version
from ..ops import Bucket

__all__ = [
    *("BUDGETS", "GATE_MODES", "Contender", "GateBudget", "Judges", "Plan", "Planner"),
    *("advised", "begun", "serving", "tune_command", "tune_on"),
]

log = logging.getLogger("mlx_lm_openevolve")

GATE_MODES = ("auto", "stored")
MAX_CANDIDATES = 4
PENDING = "pending: the gate's time in this process is spent"
BUSY = "pending: another thread is at work with the patch"
DEFERRED = "pending: in the first process what comes with every token is gated alone"
MAX_TIMEOUTS = 3
UNDECIDED = "undecided: the gate's time at first use is too short for it; `tune` takes longer"
STORED_ALONE = "no stored verdict, and gate='stored' makes none"
UNNAMED = "no stored verdict, and a family that was not named makes none at first use"
FAILED = "undecided: {} processes could not gate it ({}); `tune` tries again"
NEVER_FASTER = "no GPU here: on the CPU no kernel is faster than {}"


class Judges(NamedTuple):
    """The gate: gate.judge.judge, and gate.worker.judge_in_worker for kernels of unknown origin."""

    here: Callable[..., Verdict]
    in_worker: Callable[..., Verdict]


def begun(verdict: Verdict) -> bool:
    """Whether a verdict waits for its second half: the kernel is correct, its speed unknown."""
    return verdict.correct and verdict.faster is None


def _served(verdict: Verdict) -> str:
    """Why a verdict lets its kernel serve."""
    if verdict.accepted:
        return "accepted"
    return UNTIMED if verdict.untimed else "correct; faster was not asked for"


def _refused(verdict: Verdict) -> str:
    """Why it does not: what is right and was not timed is not rejected."""
    return verdict.text if verdict.untimed else f"rejected: {verdict.reason}"


def advised(text: str, backend: str) -> str:
    """A text that names `tune`, as it works on this backend: without a GPU it must be told to."""
    return text.replace("`tune`", f"`{tune_on(backend)}`")


def tune_on(backend: str) -> str:
    """The words of `tune` for a backend."""
    return "tune --backend host" if backend == "host" else "tune"


def tune_command(argv: Sequence[str], backend: str) -> str:
    """The command that decides what a process meets before it meets it, for the model that its
    command line names."""
    given = [word.partition("=")[2] for word in argv if word.startswith("--model=")]
    given += [after for word, after in itertools.pairwise(argv) if word == "--model"]
    model = shlex.quote(given[0]) if given else "MODEL"
    return f"mlx-lm-openevolve {tune_on(backend)} --model {model}"


_AT_WORK = 1.0  # seconds for which a thread counts as being at work


@dataclass(frozen=True)
class GateBudget:
    """Seconds that gating may take of a user's process: for one workload, and in all."""

    workload: float
    process: float


# On a GPU gating is a guest in someone's generation. The host backend is for checking: there the
# gate is the purpose, and a kernel runs far slower than MLX.
BUDGETS = {"metal": GateBudget(2, 2), "cuda": GateBudget(2, 2), "host": GateBudget(120, 600)}


@dataclass(frozen=True)
class Plan:
    """What a bucket runs on: a kernel with its params and verdict, or the original (None)."""

    bucket: Bucket
    reason: str
    kernel: Kernel | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Contender:
    """A kernel with params that may be judged."""

    kernel: Kernel
    params: dict[str, int]
    trusted: bool  # shipped, or accepted on this device before: may be gated in this process
    asked: int = 0  # how often it was judged already, and rejected by noise
    proven: Verdict | None = None  # correct already, by a process that had no time for speed


class Planner:
    """Plans buckets for one device. Thread-safe: plans are made under one lock and kept.

    registries are asked in order; the first must be the user's, where verdicts are published.
    judges: gives the gate when it is first needed; None where nothing may be gated.
    only: the one kernel to consider, where the user named one.
    """

    def __init__(
        self,
        device: Device,
        registries: Sequence[Registry],
        *,
        judges: Callable[[], Judges] | None = None,
        mode: str = "auto",
        require_faster: bool = True,
        only: Kernel | None = None,
    ) -> None:
        self.device, self.mode, self.require_faster, self.only = device, mode, require_faster, only
        self.registries = list(registries)
        self.user = self.registries[0]
        self.budget = BUDGETS[device.backend]
        self.plans: dict[Bucket, Plan] = {}
        # Not empty while every call goes to the original: switched off, or a gate at work, whose
        # baseline may be the very function that is replaced.
        self.off: list[str] = []
        # Families of which nothing is gated: those that came on by themselves, see families.py.
        self.ungated: Collection[str] = ()
        self.unstored: list[str] = []  # why verdicts were not stored, one for each
        self._judges = judges
        self._stamps: dict[str, dict[str, Any]] = {}  # by family
        self._lock = threading.RLock()
        self._threads: dict[int, float] = {}  # when each last met a call of a new shape
        self._spent = 0.0
        self._gated = self._warned = False

    def stamp(self, family: str) -> dict[str, Any]:
        """What a verdict of a family, or on whole steps (STEP), must share with this process to
        count."""
        known = self._stamps.get(family)
        if known is None:
            version = gate_version(family)
            known = self._stamps[family] = fingerprint(self.device, version, evidence=False)
        return known

    def counting(self, family: str) -> Iterator[Verdict]:
        """The verdicts on kernels of a family, or on whole steps (STEP), that count here: one for
        each (workload, kernel, params), the user's first, of a workload the best first. Files are
        read as they are reached, and nothing of the family is loaded."""
        kind, seen = STEP if family == STEP else "kernel", set[Any]()
        for registry in self.registries:
            for verdict in registry.of(self.device.slug, family):
                about = verdict.workload, verdict.kernel, tuple(sorted(verdict.params.items()))
                counts = verdict.counts_for(self.stamp(family), shipped=not registry.writable)
                known = family != STEP or verdict.kernel in WAYS  # a newer release may know more
                if verdict.kind == kind and known and counts and about not in seen:
                    seen.add(about)
                    yield verdict

    def seen(self) -> None:
        """Take note that this thread is at work: it met a call of a new shape."""
        self._threads[threading.get_ident()] = time.monotonic()

    def _others(self) -> bool:
        """Whether another thread is at work, which would wait for the gate, and disturb it."""
        mine, since = threading.get_ident(), time.monotonic() - _AT_WORK
        return any(at > since and thread != mine for thread, at in [*self._threads.items()])

    def plan(self, bucket: Bucket) -> Plan:
        """The plan for a bucket: stored verdicts first, then the gate where it may run."""
        with self._lock:
            plan = self.plans.get(bucket)
            if plan is None:
                plan = self._plan(bucket)
                self.plans[bucket] = plan
                if plan.kernel is None:
                    # A person sees once what the gate did not decide, or refused, just now; the
                    # rest is for a log.
                    seen = self._gated and not self._warned
                    self._warned = self._warned or seen
                    log.log(
                        logging.WARNING if seen else logging.INFO,
                        "%s runs on %s: %s (`%s` decides beforehand)",
                        bucket.slug,
                        ops.of(bucket).stock,
                        plan.reason,
                        tune_command(sys.argv, self.device.backend),
                    )
            return plan

    def _plan(self, bucket: Bucket) -> Plan:
        verdicts = self.verdicts(bucket)
        best = self._best(bucket, verdicts)
        if best is not None:
            return best
        ungated = bucket.op in self.ungated
        candidates = [] if ungated else self.candidates(bucket)
        if not candidates:
            if verdicts:
                return Plan(bucket, _refused(verdicts[0]), verdict=verdicts[0])
            return Plan(bucket, UNNAMED if ungated else "no kernel applies")
        if self.mode == "auto" and self.device.backend == "host" and self.require_faster:
            return Plan(bucket, NEVER_FASTER.format(ops.of(bucket).stock))
        if self.mode != "auto" or self._judges is None:
            return Plan(bucket, STORED_ALONE)
        self._gated = True
        return self._gate(bucket)

    def stored(self, bucket: Bucket) -> Plan | None:
        """The plan that the stored verdicts give; None where none of them is accepted."""
        return self._best(bucket, self.verdicts(bucket))

    def verdicts(self, bucket: Bucket) -> list[Verdict]:
        """Verdicts that count here, one for each (kernel, params), the user's own first."""
        verdicts: dict[Any, Verdict] = {}
        stamp = self.stamp(bucket.op)
        for registry in self.registries:
            for verdict in registry.verdicts(self.device.slug, bucket):
                key = (verdict.kernel, tuple(sorted(verdict.params.items())))
                counts = verdict.counts_for(stamp, shipped=not registry.writable)
                if verdict.kind == "kernel" and counts:
                    verdicts.setdefault(key, verdict)
        return sorted(verdicts.values(), key=lambda v: v.rank, reverse=True)

    def serves(self, verdict: Verdict) -> bool:
        """Whether a verdict lets its kernel serve."""
        return verdict.accepted or (verdict.correct and not self.require_faster)

    def runs(self, verdict: Verdict) -> bool:
        """Whether a verdict that counts here lets something run: its kernel is there and whole. Of
        a family nothing is loaded but for a verdict that serves."""
        if verdict.kind == STEP or not self.serves(verdict):
            return self.serves(verdict)
        try:
            return self.stored(ops.parse(verdict.workload).bucket()) is not None
        except WorkloadError:  # of a newer release
            return False

    def _best(self, bucket: Bucket, verdicts: Sequence[Verdict]) -> Plan | None:
        for verdict in verdicts:
            if not self.serves(verdict):
                continue
            if self.only is not None and verdict.kernel != self.only.id:
                continue
            kernel = self.kernel(verdict.kernel)
            if kernel is not None and self._applies(kernel, bucket):
                return Plan(bucket, _served(verdict), kernel, verdict)
        return None

    def kernel(self, id: str) -> Kernel | None:
        """The kernel of that id, where a registry has it whole."""
        if self.only is not None and self.only.id == id:
            return self.only
        return next((k for k in (r.kernel(id) for r in self.registries) if k is not None), None)

    def _applies(self, kernel: Kernel, bucket: Bucket) -> bool:
        # A launch is written in Metal, which every backend carries, or for one backend alone.
        if kernel.native and not kernel.native <= {self.device.backend}:
            return False
        try:
            return kernel.applies_to(bucket)
        except KernelError:
            return False

    def candidates(self, bucket: Bucket) -> list[Contender]:
        """Kernels that apply and were not judged here yet, most promising first: with the params
        that won elsewhere, or here under another version; that won at neighbouring lengths here;
        with their defaults; at last what noise rejected here, to be asked again in this process,
        which is a later one."""

        def contender(
            id: str, params: dict[str, int], asked: int = 0, proven: Verdict | None = None
        ) -> Contender:
            return Contender(kernels[id], params, id in shipped or id in here, asked, proven)

        op = bucket.op
        shipped = {k.id: k for r in self.registries if not r.writable for k in r.kernels(op)}
        own = {k.id: k for r in self.registries if r.writable for k in r.kernels(op)}
        kernels = {**own, **shipped} if self.only is None else {self.only.id: self.only}
        poisoned = set().union(*(r.poisoned(self.device.slug) for r in self.registries))
        kernels = {
            id: kernel
            for id, kernel in kernels.items()
            if id not in poisoned and self._applies(kernel, bucket)
        }
        winners = sorted(
            (
                verdict
                for registry in self.registries
                for device in registry.devices()
                for verdict in registry.verdicts(device, bucket)
                if verdict.accepted and verdict.kernel in kernels
            ),
            key=lambda v: v.rank,
            reverse=True,
        )
        # By where a verdict lies, not by what it says: one that was imported is nobody's word.
        lying = (v for r in self.registries for v in r.verdicts(self.device.slug, bucket))
        here = {verdict.kernel for verdict in lying if verdict.accepted}
        near = [v for other in bucket.neighbours() for v in self.verdicts(other)]
        winners += [v for v in near if v.accepted and v.kernel in kernels]
        proposals = [(v.kernel, dict(v.params)) for v in winners]
        for kernel in in_order(kernels.values(), own.keys() - shipped.keys()):
            try:
                proposals.append((kernel.id, kernel.default_params(bucket, self.device)))
            except KernelError as error:
                log.warning("%s", error)
        verdicts = self.verdicts(bucket)
        known = [v for v in verdicts if v.kernel in kernels]
        halves = [v for v in known if begun(v)]
        again = [v for v in known if v.ask_again]
        judged = [(v.kernel, dict(v.params)) for v in verdicts]
        fresh = [p for i, p in enumerate(proposals) if p not in (*judged, *proposals[:i])]
        return [
            *(contender(v.kernel, dict(v.params), v.asked - 1, v) for v in halves),
            *(contender(id, params) for id, params in fresh),
            *(contender(v.kernel, dict(v.params), v.asked) for v in again),
        ]

    def _gate(self, bucket: Bucket) -> Plan:
        start = time.monotonic()
        seconds = min(self.budget.workload, self.budget.process - self._spent)
        if seconds <= 0:
            return Plan(bucket, PENDING)
        if self._others():
            return Plan(bucket, BUSY)
        # What was tried again and again would cost its time in every process to come.
        about = self.device.slug, bucket, self.stamp(bucket.op)
        if self.user.timeouts(*about) >= MAX_TIMEOUTS:
            said = self.user.trouble(*about)
            reason = FAILED.format(MAX_TIMEOUTS, said) if said else UNDECIDED
            return Plan(bucket, advised(reason, self.device.backend))
        # A prompt comes first, and what comes with every token would find no time left.
        later = not bucket.steady and self.device.backend != "host"
        if later and not self.user.timeouts(*about):
            with contextlib.suppress(RegistryError):
                self.user.timed_out(*about)
                return Plan(bucket, DEFERRED)
        made: list[Verdict] = []
        try:
            with self.user.gating(self.device.slug, bucket, seconds) as ours:
                waited = time.monotonic() - start  # for another process, which says nothing of ours
                # Another process may have judged while this one waited.
                verdicts = self.verdicts(bucket)
                best = self._best(bucket, verdicts)
                if best is not None:
                    return best
                if not ours:
                    return Plan(bucket, "pending: another process is gating it")
                candidates = self.candidates(bucket)[:MAX_CANDIDATES]
                short = ""
                for candidate in candidates:
                    left = seconds - (time.monotonic() - start)
                    try:
                        made.append(self.judge(candidate, bucket, left, wait=left))
                    except GateTimeout as error:
                        short = str(error) if isinstance(error, GateMemory) else ""
                        break
                    if self.serves(made[-1]) or begun(made[-1]):
                        break
                whole = seconds == self.budget.workload and waited < seconds / 10
                if candidates and not made and (whole or short):
                    with contextlib.suppress(RegistryError):
                        self.user.timed_out(*about, trouble=short)
        except Exception as error:  # a full disk or a full GPU, say: nothing more was decided
            if interrupted(error):
                raise KeyboardInterrupt from None
            best = self._best(bucket, made)
            if best is not None:
                return best
            with contextlib.suppress(OSError):
                self.user.timed_out(*about, trouble=str(error) or type(error).__name__)
            stock = ops.of(bucket).stock
            log.warning("%s was not gated: %s; it runs on %s", bucket.slug, error, stock)
            return Plan(bucket, f"pending: {error}")
        finally:
            self._spent += time.monotonic() - start
        best = self._best(bucket, made)
        if best is not None:
            return best
        if len(made) < len(candidates) or any(map(begun, made)):
            return Plan(bucket, f"pending: {short}" if short else PENDING)
        worst = (made or verdicts)[0]
        return Plan(bucket, _refused(worst), verdict=worst)

    def judge(
        self, candidate: Contender, bucket: Bucket, seconds: float, wait: float = math.inf
    ) -> Verdict:
        """The gate's verdict on a candidate, which is stored; `wait`: seconds that may pass in all,
        compilation included. Raises GateTimeout where they do not suffice, and MachineError."""
        # On the host a kernel always runs in a process of its own: metalhost sees to that.
        alone = candidate.trusted or self.device.backend == "host"
        if seconds <= 0:
            raise GateTimeout(f"{bucket.slug}: no time is left")
        assert self._judges is not None
        judges = self._judges()
        judge = judges.here if alone else judges.in_worker
        self.off.append("gate")
        try:
            verdict = judge(
                candidate.kernel,
                candidate.params,
                bucket,
                self.device.backend,
                seconds=seconds,
                turn=candidate.asked,  # each time other questions and another sealed workload
                brief=wait < math.inf,
                staged=True,
                wait=wait,
                proven=candidate.proven,
                rival=serving(self.device, self.registries, bucket),
            )
            verdict = replace(verdict, asked=candidate.asked + 1)
        except Poisoned as error:
            try:
                self.user.poison(self.device.slug, candidate.kernel.id, str(error))
            except RegistryError as problem:
                log.warning("%s", problem)
            verdict = error.verdict
        finally:
            self.off.remove("gate")
        self._publish(candidate.kernel, verdict)
        return verdict

    def _publish(self, kernel: Kernel, verdict: Verdict) -> None:
        try:
            if all(registry.kernel(kernel.id) is None for registry in self.registries):
                self.user.add(kernel)
            self.user.publish(self.device.slug, verdict)
        except RegistryError as error:
            self.unstored.append(str(error))
            log.warning("the verdict is kept for this process only: %s", error)


def serving(
    device: Device, registries: Sequence[Registry], bucket: Bucket
) -> tuple[Kernel, Verdict] | None:
    """The kernel that the accepted verdicts let serve a bucket on a device, and the first of these
    verdicts; None where none does."""
    plan = Planner(device, registries).stored(bucket)
    return (plan.kernel, plan.verdict) if plan and plan.kernel and plan.verdict else None
