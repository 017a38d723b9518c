"""Verdict: what the gate decided on one kernel, its params, a bucket and a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from .. import ops
from ..errors import OpenEvolveError
from . import records
from .kernel import KERNEL_ID

__all__ = [
    *("ALL", "COMPILED", "FASTER", "GATE_VERSION", "KINDS", "MAX_ASKED", "MERGED", "STEP"),
    *("TUNED_GATE", "UNTIMED", "WAYS", "Poisoned", "Verdict"),
    *("binding", "describe", "gate_version", "gate_versions"),
]

# Raised with any change of the gate after which an old verdict should not count; what changes for
# one family alone raises its version in ops.FAMILIES.
GATE_VERSION = 3

# The one exception: what ships in tuned/ was judged by this version of the gate, and serves until
# it is judged anew.
TUNED_GATE = "2.1"

# Of a verdict that was made on the CPU: its kernel serves only where faster is not asked for.
UNTIMED = "correct; speed was not measured (on the CPU nothing is)"

# The lower end of the interval of the original's time over the contender's must lie above this.
FASTER = 1.02
# How often a contender is judged in all where noise rejects it.
MAX_ASKED = 3

# What a verdict is about: a kernel by its id, or by name a rewriting in MLX's own operations, a
# whole decode step, or settings of MLX.
STEP = ops.STEP
KINDS = ("kernel", "rewriting", STEP, "settings")
# The ways in which a step is judged, the first before the next: compiled layers whose products of
# one input are one and that call the kernels of decode/fused.py, those without these kernels, and
# compiled layers alone. A verdict on a step has one in place of a kernel.
ALL, MERGED, COMPILED = "compiled-merged-fused", "compiled-merged", "compiled"
WAYS = (ALL, MERGED, COMPILED)
# Raised when old verdicts on steps should not count, as a family's version is for its own.
STEP_VERSION = 2


def gate_version(op: str) -> str:
    """The version of the gate for a family, or for STEP, as verdicts carry it."""
    return f"{GATE_VERSION}.{STEP_VERSION if op == STEP else ops.FAMILIES[op]}"


def gate_versions() -> dict[str, str]:
    """The version of the gate for each family."""
    return {name: gate_version(name) for name in ops.FAMILIES}


def binding(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What of a fingerprint (see device.fingerprint) must match for a verdict to count. The version
    of macOS is in those of Metal alone, and so in what they bind to."""
    bound = {key: fingerprint.get(key) for key in ("device", "architecture", "mlx", "gate")}
    if "macos" in fingerprint:
        bound["macos"] = fingerprint["macos"]
    return bound


@dataclass(frozen=True)
class Verdict:
    """What the gate decided on one (kernel, params), bucket and device, with its evidence.

    kernel: the kernel's id, or for another kind (see KINDS) the name of what was judged.
    workload: slug of the bucket.  correct, faster: kept apart; faster is None where speed was not
    measured yet.  status: "accepted" where both hold.  timing["ratio"]: the original's time over
    the kernel's; timing["beside"]: in turns with what served then, see `standing`.  fingerprint: of
    device.fingerprint.  asked: how often it was judged; above 1 where noise had rejected it.  raw:
    samples in seconds and the single cases, stored compressed beside the record.
    """

    kernel: str
    params: Mapping[str, int]
    workload: str
    correct: bool
    faster: bool | None
    reason: str
    fingerprint: Mapping[str, Any]
    errors: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    mutants: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "kernel"
    asked: int = 1
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def accepted(self) -> bool:
        """Correct and faster."""
        return self.correct and self.faster is True

    @property
    def status(self) -> str:
        """ "accepted" or "rejected"."""
        return "accepted" if self.accepted else "rejected"

    @property
    def untimed(self) -> bool:
        """Whether its kernel is right, and was judged on the CPU, where nothing is timed."""
        on_host = self.fingerprint.get("device") == "host"
        return self.correct and not self.accepted and not self.timing and on_host

    @property
    def text(self) -> str:
        """Outcome and reason for a person, the same wherever it is told. A kernel that is right and
        not faster is "correct": it serves where faster is not asked for."""
        if self.accepted:
            return "accepted"
        if self.untimed:
            return f"{UNTIMED}: it serves with --any-correct alone"
        return f"{'correct' if self.correct else self.status}: {self.reason}"

    @property
    def ratio(self) -> float:
        """The original's time over the kernel's; 0.0 where it was not measured."""
        return float(self.timing.get("ratio", 0.0))

    @property
    def ask_again(self) -> bool:
        """Whether noise alone rejected it, fewer than MAX_ASKED times: the interval that decided
        (the sealed one, where that was reached) ends above FASTER, and begins below what it had to
        lie above. Where it does not, the fault was another: a wrong result, say."""
        if not self.correct or self.faster is not False or self.asked >= MAX_ASKED:
            return False
        try:
            decided = self.timing.get("sealed") or self.timing
            bar = max(FASTER, (decided.get("same") or {}).get("high", 0))
            return bool(decided["low"] <= bar and decided["high"] >= FASTER)
        except (AttributeError, KeyError, TypeError):  # not timed, or timed by another release
            return False

    @property
    def standing(self) -> float:
        """What orders the accepted verdicts of a bucket: `ratio`, or where another kernel served,
        the standing of that one times what was proven in turns with it: the lower end of its time
        over this one's, a hundredth where nothing was."""
        return float(self.timing.get("beside", {}).get("standing", self.ratio))

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """Orders verdicts: the higher, the better. Of the accepted ones of a bucket the first
        serves."""
        return self.accepted, self.correct, self.standing

    def counts_for(self, fingerprint: Mapping[str, Any], *, shipped: bool = False) -> bool:
        """Whether this verdict was made on such a device, by this gate, version of mlx and, on
        Metal, of macOS. shipped: whether it lies in tuned/, see TUNED_GATE."""
        own, asked = binding(self.fingerprint), binding(fingerprint)
        return own == asked or (shipped and own == {**asked, "gate": TUNED_GATE})

    def to_json(self) -> dict[str, Any]:
        """The short record, without `raw`, as JSON can hold it: what is not finite is text."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "raw"}
        return {**cast(dict[str, Any], records.plain(record)), "status": self.status}

    @classmethod
    def from_json(cls, record: Any, *, load: bool = True) -> Verdict:
        """Read a record; fields of a newer release are ignored. ValueError where anything else
        about it is not as the gate writes it. load: False loads no family, and so does not ask
        whether the workload is one."""
        if not isinstance(record, dict):
            raise ValueError("a verdict is no object")
        known = {f.name: f for f in fields(cls)}
        try:
            verdict = cls(**{name: value for name, value in record.items() if name in known})
        except TypeError as error:  # a field is missing
            raise ValueError(str(error)) from None
        kinds = {"bool": (bool,), "bool | None": (bool, type(None)), "str": (str,), "int": (int,)}
        for name, f in known.items():
            value = getattr(verdict, name)
            if type(value) not in kinds.get(str(f.type), (dict,)):
                raise ValueError(f"{name} is {type(value).__name__}")
        if record.get("status") != verdict.status or not _founded(verdict):
            raise ValueError("the status does not follow from the evidence")
        if verdict.kind not in KINDS:
            raise ValueError("an unknown kind")
        if verdict.kind == "kernel" and not KERNEL_ID.fullmatch(verdict.kernel):
            raise ValueError("kernel is malformed")
        if load and verdict.kind in ("kernel", "rewriting"):
            ops.parse(verdict.workload)
        if not all(type(v) is int for v in verdict.params.values()):
            raise ValueError("params are not integers")
        beside = verdict.timing.get("beside", {})
        if not isinstance(beside, dict):
            raise ValueError("beside is malformed")
        times = [verdict.timing.get(name, 0.0) for name in ("ratio", "low", "high")]
        standing = beside.get("standing", 1.0)
        if not all(map(_is_time, (*times, standing))) or not standing or verdict.asked < 1:
            raise ValueError("a number is out of range")
        return verdict


def _is_time(value: Any) -> bool:
    """Whether a value can be how often one time goes into another."""
    return type(value) in (int, float) and 0 <= value < 1e6


def _founded(verdict: Verdict) -> bool:
    """Whether the evidence carries what a verdict says: on correctness it may be absent and must
    not speak against it, on speed it must be there."""
    margin, of = verdict.errors.get("margin", 0.0), verdict.mutants.get("of")
    wrong = type(margin) not in (int, float) or not margin >= 0
    survived = verdict.mutants.get("survivors") or verdict.mutants.get("killed") != of
    if verdict.correct and (wrong or survived):
        return False
    if verdict.kind != "kernel" or not verdict.accepted:
        return True
    compared = verdict.timing, verdict.timing.get("sealed")
    lows = [timed.get("low", 0.0) if isinstance(timed, dict) else 0.0 for timed in compared]
    ratio, high = (verdict.timing.get(name, 0.0) for name in ("ratio", "high"))
    if not all(map(_is_time, (*lows, ratio, high))):
        return False
    return min(lows) > FASTER and lows[0] <= ratio <= high


class Poisoned(OpenEvolveError):
    """A kernel ended its worker process; `verdict` is its rejection."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def describe(verdict: Verdict) -> list[str]:
    """A verdict in a few lines for a person."""
    params = ", ".join(f"{name}={value}" for name, value in verdict.params.items())
    of_op = verdict.kind in ("kernel", "rewriting")
    stock = ops.of_slug(verdict.workload).stock if of_op else "stock"
    lines = [
        f"{verdict.workload}",
        f"  {verdict.kind:8} {verdict.kernel}" + (f" ({params})" if params else ""),
        f"  verdict  {verdict.text}" + (f": {verdict.reason}" if verdict.accepted else ""),
    ]
    evidence: tuple[tuple[str, Callable[[Any], str], Any], ...] = (
        ("mutants", _mutants, verdict.mutants),
        ("error", lambda errors: _errors(errors, stock), verdict.errors),
        ("speed", _timing, verdict.timing),
        ("sealed", _timing, verdict.timing.get("sealed")),
        ("beside", _beside, verdict.timing.get("beside")),
    )
    for name, words, found in evidence:
        # Evidence of another release, or of another kind of verdict, may be of another form.
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            if found:
                lines.append(f"  {name:8} {words(found)}")
    return lines


def _mutants(mutants: Mapping[str, Any]) -> str:
    killed = f"{mutants['killed']} of {mutants['of']} killed"
    passed = ", ".join(mutants.get("survivors", ()))
    text = f"{killed}, and {mutants['source']['killed']} of the source"
    return text + (f"; not {passed}" if passed else "")


def _errors(errors: Mapping[str, Any], stock: str) -> str:
    own = errors["stock"]
    return (
        f"max {float(errors['max_difference']):.3g} ({stock} {own['max_difference']:.3g}), "
        f"average {float(errors['avg_difference']):.3g} ({stock} {own['avg_difference']:.3g}), "
        f"margin {float(errors['margin']):.0%}"
    )


def _timing(timed: Mapping[str, Any]) -> str:
    a, b = timed["baseline"], timed["candidate"]
    return (
        f"{timed['ratio']:.3f} [{timed['low']:.3f}, {timed['high']:.3f}], "
        f"{b['mean'] * 1e6:.1f} us against {a['mean'] * 1e6:.1f} us, "
        f"{b['trials']} trials, on {timed['on']}"
    )


def _beside(timed: Mapping[str, Any]) -> str:
    return f"{_timing(timed)}, kernel {timed['kernel']}"
