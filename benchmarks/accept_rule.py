"""The accept rule on an invented clock: how often the gate calls a kernel faster that is not.

    python benchmarks/accept_rule.py [--runs 10000] [--call 10 40 400] [--kinds drift ...] [-o FILE]

A run is a contender of known speed before the gate at first use, in process after process, until it
is accepted, firmly rejected, or was asked for the last time. Samples are invented: an exact time
and one kind of noise. What is drawn, compared and decided is the gate's own code (gate/timing.py,
gate/speed.py), on thousands of runs at once. No GPU is needed, and nothing here says how fast
anything is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_lm_openevolve.gate import speed, timing
from mlx_lm_openevolve.kernels.verdict import FASTER, MAX_ASKED
from mlx_lm_openevolve.runtime.planner import BUDGETS, MAX_TIMEOUTS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# Seconds of a sample of every run: of (time at its start, exact time, place in the block, whether
# the arm before was another).
Noise = Callable[[Floats, Floats, int, Bools], Floats]

# Of what a workload has at first use, this much is left when timing begins.
LEFT = 0.75
SHORTER = 0.75  # a call at the sealed length, in calls at the upper end
CHUNK = 2000  # runs at once
RATIOS = (0.97, 1.0, 1.02, 1.1)
# At 1.10 these must be accepted in 90% of runs.
POWER = ("white-1%", "white-5%", "drift", "throttling", "pulses-120Hz", "pulses-60Hz")


# Noise


def kinds(rng: np.random.Generator, runs: int) -> dict[str, Noise]:
    """Every kind of noise for so many runs; all but the white ones have 1% of white noise too."""

    def normal() -> Floats:
        return rng.standard_normal(runs)

    def white(level: float) -> Noise:
        return lambda t, exact, place, turned: exact * np.maximum(0.2, 1 + level * normal())

    base = white(0.01)

    def scaled(factor: Callable[[Floats], Floats]) -> Noise:
        return lambda t, exact, place, turned: base(t, exact * factor(t), place, turned)

    slope, phase, period = rng.uniform(-0.2, 0.2, runs), rng.random(runs), rng.uniform(1, 5, runs)

    def drift(t: Floats) -> Floats:
        wave = 0.05 * np.sin(2 * np.pi * (phase + t / period))
        return np.asarray(np.maximum(0.5, 1 + slope * t + wave))

    level = rng.uniform(1, 1.3, runs)

    def steps(t: Floats) -> Floats:
        """Clock rates that hold for 50 samples on average."""
        moved = rng.random(runs) < 0.02
        level[moved] = rng.uniform(1, 1.3, int(moved.sum()))
        return level

    cycle = rng.uniform(0.1, 1, runs)

    def throttling(t: Floats) -> Floats:
        return np.where((phase + t / cycle) % 1 < 0.5, 1.0, 1.25)

    def pulses(hertz: float, seconds: float = 2e-4) -> Noise:
        """A display that takes the GPU in every frame."""

        def noise(t: Floats, exact: Floats, place: int, turned: Bools) -> Floats:
            own = base(t, exact, place, turned)
            before = np.floor(t * hertz + phase)
            return own + seconds * (np.floor((t + own) * hertz + phase) - before)

        return noise

    def spikes(t: Floats) -> Floats:
        return 1 + (rng.random(runs) < 0.03) * rng.exponential(1, runs)

    def bursts() -> Noise:
        """Another program, that takes half of the GPU for 20 ms, five times a second."""
        until = np.zeros(runs)

        def factor(t: Floats) -> Floats:
            began = rng.random(runs) < 5 * 2.5e-3
            until[began] = t[began] + rng.exponential(0.02, int(began.sum()))
            return np.where(t < until, 2.0, 1.0)

        return scaled(factor)

    state = normal()

    def autocorrelated(t: Floats) -> Floats:
        state[:] = 0.95 * state + math.sqrt(1 - 0.95**2) * normal()
        return np.maximum(0.5, 1 + 0.05 * state)

    def first_slower(t: Floats, exact: Floats, place: int, turned: Bools) -> Floats:
        return base(t, exact * (1.05 if place == 0 else 1.0), place, turned)

    def switch_slower(t: Floats, exact: Floats, place: int, turned: Bools) -> Floats:
        return base(t, exact * np.where(turned, 1.05, 1.0), place, turned)

    return {
        "white-1%": white(0.01),
        "white-5%": white(0.05),
        "white-20%": white(0.2),
        "drift": scaled(drift),
        "steps": scaled(steps),
        "throttling": scaled(throttling),
        "pulses-120Hz": pulses(120),
        "pulses-60Hz": pulses(60),
        "spikes": scaled(spikes),
        "heavy-tail": scaled(lambda t: np.maximum(0.5, 1 + 0.02 * rng.standard_t(1.5, runs))),
        "autocorrelated": scaled(autocorrelated),
        "bursts": bursts(),
        "first-sample-slower": first_slower,
        "switch-slower": switch_slower,
    }


KINDS = tuple(kinds(np.random.default_rng(0), 1))


# The gate, on an array of runs


def paired(
    noise: Noise,
    clock: Floats,
    seconds: tuple[float, float],
    budget: float,
    rng: np.random.Generator,
    fixed: bool = False,
) -> tuple[Floats, Floats]:
    """The interval (low, high) of every run, as timing.paired: two arms of calls that take exactly
    `seconds`. Moves `clock` [runs] on. fixed: A B B A without gaps, as before both were drawn."""
    calls, blocks = timing.size(max(seconds), budget)
    assert blocks >= timing.MIN_BLOCKS
    runs = len(clock)
    swapped = rng.random((runs, blocks)) < (0.0 if fixed else 0.5)
    gaps = rng.random((runs, blocks)) * (0.0 if fixed else timing.GAP_SECONDS)
    times = np.empty((runs, blocks, 4))
    before = np.zeros(runs, np.bool_)
    for block in range(blocks):
        clock += gaps[:, block]
        for place, inner in enumerate((False, True, True, False)):
            is_b = swapped[:, block] ^ inner
            exact = calls * np.where(is_b, seconds[1], seconds[0])
            times[:, block, place] = noise(clock, exact, place, is_b != before)
            clock += times[:, block, place]
            before = is_b
    _, low, high = timing.compared(*timing.by_arm(times, swapped), 0)
    return low, high


def ask(
    kind: str, ratio: float, call: float, budget: float, rng: np.random.Generator, runs: int,
    fixed: bool = False,
) -> tuple[Bools, Bools, Bools]:  # fmt: skip
    """One verdict for each of `runs` as speed.compare makes it: (accepted; rejected by noise;
    unsteady, without a verdict). What is none of them is firmly rejected."""
    noise, clock = kinds(rng, runs)[kind], np.zeros(runs)
    top, sealed = (budget * share for share in (speed.TOP, speed.SEALED))

    def twice() -> tuple[Bools, Floats]:
        low, high = paired(noise, clock, (call, call), speed.SAME * top, rng, fixed)
        first = speed.even(low, high)
        if first.all():
            return first, high
        low, again = paired(noise, clock, (call, call), speed.SAME * top, rng, fixed)
        return first | speed.even(low, again), np.where(first, high, again)

    steady, same = twice()
    bar = np.maximum(FASTER, same)
    low, high = paired(noise, clock, (call, call / ratio), speed.PAIR * top, rng, fixed)
    passed, open_ = steady & (low > bar), steady & (low <= bar) & (high >= FASTER)
    if not passed.any():
        return passed, open_, ~steady
    at = SHORTER * call
    low, high = paired(noise, clock, (at, at / ratio), speed.PAIR * sealed, rng, fixed)
    accepted = passed & (low > FASTER)
    return accepted, open_ | (passed & ~accepted & (high >= FASTER)), ~steady


def runs_of(
    kind: str, ratio: float, call: float, budget: float, runs: int, seed: int, fixed: bool = False
) -> dict[str, Any]:
    """What became of `runs` contenders that are `ratio` times as fast as the original."""
    rng = np.random.default_rng([seed, KINDS.index(kind), round(1000 * ratio)])
    counts = dict.fromkeys(("accepted", "firm", "noise", "unsteady", "first", "asked"), 0)
    for start in range(0, runs, CHUNK):
        size = min(CHUNK, runs - start)
        asked, late = np.zeros(size, int), np.zeros(size, int)
        waiting, won = np.ones(size, np.bool_), np.zeros(size, np.bool_)
        while waiting.any():
            index = np.flatnonzero(waiting)
            accepted, noise, unsteady = ask(kind, ratio, call, budget, rng, len(index), fixed)
            if not asked.any() and not late.any():
                counts["first"] += int(accepted.sum())
            asked[index] += ~unsteady
            late[index] += unsteady
            won[index] = accepted
            more = (noise & (asked[index] < MAX_ASKED)) | (unsteady & (late[index] < MAX_TIMEOUTS))
            done = ~accepted & ~more
            counts["noise"] += int((done & noise).sum())
            counts["unsteady"] += int((done & unsteady).sum())
            counts["firm"] += int((done & ~noise & ~unsteady).sum())
            waiting[index] = more
        counts["accepted"] += int(won.sum())
        counts["asked"] += int((asked + late).sum())
    counts["asked"] /= runs  # type: ignore[assignment]
    return {
        "call_seconds": call,
        "kind": kind,
        "ratio": ratio,
        "runs": runs,
        **{name: value for name, value in counts.items() if name not in ("first", "asked")},
        "accepted_at_first_asking": counts["first"],
        "processes": round(counts["asked"], 3),
        **({"upper": round(upper(counts["accepted"], runs), 5)} if ratio <= FASTER else {}),
    }


def upper(hits: int, runs: int, confidence: float = 0.95) -> float:
    """Upper bound of a probability after `hits` in `runs` (Clopper and Pearson, one-sided)."""
    low, high = hits / runs, 1 - 1e-12
    for _ in range(60):  # the probability at which so few hits are as rare as 1 - confidence
        middle = (low + high) / 2
        logs = [
            math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1)
            + k * math.log(middle) + (runs - k) * math.log1p(-middle)
            for k in range(hits + 1)
        ]  # fmt: skip
        if sum(map(math.exp, logs)) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def faults(found: Sequence[dict[str, Any]]) -> list[str]:
    """What of the promise does not hold."""
    said = []
    for x in found:
        name = f"{x['call_seconds'] * 1e6:g} us, {x['kind']} at {x['ratio']}"
        if x["ratio"] <= 1 and x["accepted"]:
            said.append(f"{name}: {x['accepted']} accepted")
        if x["ratio"] == FASTER and x["upper"] > 0.001 and x["runs"] >= 10_000:
            said.append(f"{name}: accepted in up to {x['upper']:.2%}")
        if x["ratio"] == 1.1 and x["kind"] in POWER and x["accepted"] < 0.9 * x["runs"]:
            said.append(f"{name}: only {x['accepted'] / x['runs']:.1%} accepted")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="a fifth of it where sure")
    parser.add_argument(
        "--call", type=float, nargs="+", default=(10, 40, 400), help="microseconds of a call"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--fixed", action="store_true", help="A B B A without gaps, as it was")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    budget = LEFT * 0.9 * BUDGETS["cuda"].workload
    found = []
    began = time.monotonic()
    for call, kind, ratio in itertools.product(options.call, options.kinds, options.ratios):
        # At 0.97 and 1.10 nothing is close: they need fewer.
        runs = options.runs if 1 <= ratio <= FASTER else -(-options.runs // 5)
        given = (runs, options.seed, options.fixed)
        x = runs_of(kind, ratio, call * 1e-6, budget, *given)
        found.append(x)
        print(
            f"{call:4g} us  {kind:19} {ratio:5.2f}  accepted {x['accepted']:6} (first asked"
            f" {x['accepted_at_first_asking']}), firm {x['firm']}, noise {x['noise']}, unsteady"
            f" {x['unsteady']}, {x['processes']:.2f} processes",
            flush=True,
        )
    missed = faults(found)
    print(*missed or ["all that was promised holds"], sep="\n")
    if options.output:
        record = {
            "command": "python benchmarks/accept_rule.py " + " ".join(sys.argv[1:]),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "seconds": round(time.monotonic() - began, 1),
            "budget_seconds": budget,
            "asked_at_most": MAX_ASKED,
            "faults": missed,
            "runs": found,
        }
        text = json.dumps(record, indent=1)
        options.output.write_text(text + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
