"""The gate for a whole model: its decode steps with compiled layers against its own.

    model, batch -> prompt -> STEPS greedy tokens of stock
      right:  logits and caches, stock's and the compiled ones', from a float32 run on the same
              tokens; the same of known-wrong layers, which must be rejected
      faster: steps in turns in this process, in blocks whose order is drawn; the interval must lie
              above FASTER, and above stock against itself

What is promised: on long inputs the bits of stock; on as many rows as a verdict says an error from
float32 that is no larger than stock's own, as rounding goes. Bits may differ there: a wider product
may be summed in another order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from ..bench.worker import distance, empty_cache, in_float32, vocabulary
from ..device import Device, fingerprint
from ..errors import GateTimeout
from ..gate import timing
from ..gate.speed import even
from ..kernels.verdict import ALL, FASTER, STEP, Verdict, gate_version
from ..runtime.patch import installed
from .split import Split
from .steps import Steps
from .structure import slug, structure

__all__ = ["MULTIPLE", "judge"]

STEPS = 20
# How much further from float32 than stock's own logits or caches: both are rounding noise of the
# same size, averaged over thousands of numbers.
MULTIPLE = 1.5
# What float32 itself leaves open, of a model that is in float32.
_ROUNDING = 1e-6
_CHUNK = 2048  # tokens of a prompt that are read at once, of all sequences
_SHORT = 64  # tokens of the prompt after which logits and caches are compared
_WARM, _SAME = 0.1, 0.4  # of the seconds: warming up, and stock against itself
# Steps last milliseconds: what a chain's ends cost is little, and of short ones more fit, between
# which the clock has less time to drift.
_SHORT_CHAINS = {"chain": 4, "most": 2000}

Outcome = tuple[mx.array, list[mx.array], list[Any]]  # logits, caches, and the tokens fed


def judge(
    model: Any,
    batch: int,
    device: Device,
    seconds: float,
    what: str = ALL,
    *,
    length: int = 1024,
    seed: int = 0,
) -> Verdict | None:
    """The verdict on decoding `batch` sequences of `length` tokens in `what` of WAYS; None where
    no layer of the model can be compiled. On the host nothing is timed. The model is as it was
    afterwards. Raises what the model raises, and GateTimeout where `seconds` hold too few steps,
    or uneven ones."""
    name = slug(structure(model), batch)
    steps = Steps({name: what})
    prompt = np.random.default_rng(seed).integers(0, vocabulary(model), (batch, length))
    with installed([steps]):
        _decode(model, mx.array(prompt[:, -2:]), count=2)
        if not any(layer.splits for layer in steps.layers.values()):
            return None
        errors, killed, reason = _right(model, steps, mx.array(prompt[:, -_SHORT:]), seed)
        correct, faster = not reason, None
        timed, samples = dict[str, Any](), dict[str, Any]()
        if correct and device.backend != "host":
            faster, reason, timed, samples = _faster(model, steps, mx.array(prompt), seconds, seed)
    return Verdict(
        kernel=what,
        params={},
        workload=name,
        correct=correct,
        faster=faster,
        reason=reason or "correct; nothing is timed on the CPU",
        fingerprint=fingerprint(device, gate_version(STEP)),
        errors=errors,
        timing=timed,
        mutants=killed,
        kind=STEP,
        raw=samples,
    )


def _right(
    model: Any, steps: Steps, prompt: mx.array, seed: int
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(errors, mutants, what is wrong)."""
    with steps.switched(on=False):
        stock = _decode(model, prompt)
        with installed(in_float32()):
            exact = _decode(model, prompt, stock[2])
    own = _errors(stock, exact)
    limit = {key: MULTIPLE * error + _ROUNDING for key, error in own.items()}
    free, forced = _decode(model, prompt), _decode(model, prompt, stock[2])
    errors = _errors(forced, exact)
    equal = [a == b for a, b in zip(free[2], stock[2], strict=True)]
    evidence = {
        "compiled": errors,
        "stock": own,
        "same_bits": bool(mx.array_equal(forced[0], stock[0]).item()),
        "same_tokens": equal.index(False) if False in equal else len(equal),
        "tokens": len(equal),
    }
    # Asked this way round, so that NaN is no agreement.
    wrong = [key for key in limit if not errors[key] <= limit[key]]
    if wrong:
        return evidence, {}, f"{' and '.join(wrong)} are further from float32 than stock's own"
    rng = np.random.default_rng(seed)
    survivors = []
    layers = [layer for layer in steps.layers.values() if layer.splits]
    for mutant, spoil in MUTANTS.items():
        layer = layers[int(rng.integers(len(layers)))]
        right = dict(layer.splits)
        for key, (split, joined) in right.items():
            layer.splits[key] = spoil(split), joined
        layer.written()
        try:
            found = _errors(_decode(model, prompt, stock[2]), exact)
        finally:
            layer.splits.update(right)
            layer.written()
        if all(found[key] <= limit[key] for key in limit):
            survivors.append(mutant)
    of = len(MUTANTS)
    killed = {"killed": of - len(survivors), "of": of, "survivors": survivors}
    return evidence, killed, f"it cannot tell {survivors[0]}" if survivors else ""


def _decode(
    model: Any, prompt: mx.array, tokens: list[Any] | None = None, count: int = STEPS
) -> Outcome:
    """Logits [B, count, V] after a prompt, the caches' arrays, and the tokens that were decoded:
    the greedy ones, or those given."""
    cache = empty_cache(model, prompt.shape[0])
    token, out, fed = _prefilled(model, cache, prompt), [], []
    for i in range(count):
        if tokens is not None:
            token = mx.array(tokens[i])
        fed.append(token.tolist())
        out.append(model(token[:, None], cache=cache)[:, -1].astype(mx.float32))
        token = mx.argmax(out[-1], -1)
    states = [a for c in cache for a in _arrays(c.state)]
    logits = mx.stack(out, 1)
    mx.eval(logits, states)
    return logits, states, fed


def _prefilled(model: Any, cache: list[Any], prompt: mx.array) -> mx.array:
    """The greedy token after a prompt [B, L], which the cache then holds."""
    # MLX's CUDA gather launches no more than 65535 rows, of which experts make several a token.
    chunk = max(1, _CHUNK // prompt.shape[0])
    for i in range(0, prompt.shape[1], chunk):
        last = model(prompt[:, i : i + chunk], cache=cache)[:, -1]
        mx.eval(last, [_arrays(c.state) for c in cache])
    return mx.argmax(last, -1)


def _arrays(state: Any) -> list[mx.array]:
    """The arrays of a cache's state that hold numbers of the model's."""
    leaves: Any = tree_flatten(state)
    arrays = (leaf for _, leaf in leaves if isinstance(leaf, mx.array))
    return [array for array in arrays if mx.issubdtype(array.dtype, mx.floating)]


def _errors(got: Outcome, exact: Outcome) -> dict[str, float]:
    """How far logits, and the caches that are furthest, lie from exact ones (bench's distance); inf
    where a cache has another shape."""
    pairs = list(zip(got[1], exact[1], strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return {"logits": float("inf"), "caches": float("inf")}
    caches = [distance(a.astype(mx.float32), b.astype(mx.float32)) for a, b in pairs if b.size]
    return {"logits": distance(got[0], exact[0]), "caches": max(caches, default=0.0)}


def _later(split: Split) -> Split:
    before = split.before
    return split.changed(before=lambda x, offset, *rest: before(x, offset + 1, *rest))


def _rolled(split: Split) -> Split:
    def rolled(*given: Any) -> Any:
        queries, keys, values = split.before(*given)
        return queries, mx.roll(keys, 1, -1), values

    return split.changed(before=rolled)


def _lost(split: Split) -> Split:
    after = split.after

    def lost(x: mx.array, offset: mx.array, out: mx.array, *rest: Any) -> Any:
        return after(x, offset, mx.zeros_like(out), *rest)

    return split.changed(after=lost)


# What one layer does wrongly.
MUTANTS: dict[str, Callable[[Split], Split]] = {
    "offset-one-off": _later,
    "one-element-off": _rolled,
    "attention-lost": _lost,
}


class _Arm:
    """Decode steps of one kind, as gate/timing.py times them: each waits for the one before."""

    def __init__(self, model: Any, cache: list[Any], token: mx.array, switched: Any) -> None:
        self._model, self._cache, self._token, self._switched = model, cache, token, switched

    def seconds(self, calls: int) -> float:
        """Wall time of one of so many steps, handed over one ahead as mlx-lm's loop does."""
        model, cache, token = self._model, self._cache, self._token
        with self._switched():
            mx.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                before = token
                token = mx.argmax(model(token[:, None], cache=cache)[:, -1], -1)
                mx.async_eval(token)  # type: ignore[no-untyped-call]
                mx.eval(before)
            mx.eval(token)
            elapsed = time.perf_counter() - start
        if can_trim_prompt_cache(cache):  # else it grows, for both alike
            trim_prompt_cache(cache, calls)
        return elapsed / calls


def _faster(
    model: Any, steps: Steps, prompt: mx.array, seconds: float, seed: int
) -> tuple[bool, str, dict[str, Any], dict[str, Any]]:
    """(faster, why, timing, samples). Raises GateTimeout."""
    cache = empty_cache(model, prompt.shape[0])
    token = _prefilled(model, cache, prompt)
    stock = _Arm(model, cache, token, lambda: steps.switched(on=False))
    compiled = _Arm(model, cache, token, lambda: steps.switched(on=True))
    step = timing.warm_up((stock, compiled), _WARM * seconds)
    same = timing.paired(stock, stock, step, _SAME * seconds, seed, **_SHORT_CHAINS)
    left = (1 - _WARM - _SAME) * seconds
    pair = timing.paired(stock, compiled, step, left, seed, **_SHORT_CHAINS)
    if same is None or pair is None:
        raise GateTimeout(f"{seconds:.3g} s hold too few steps of {1e3 * step:.3g} ms")
    evidence = {**pair.to_json(), "on": f"{prompt.shape[0]}x{prompt.shape[1]}"}
    evidence["same"] = {"ratio": same.ratio, "low": same.low, "high": same.high}
    if not even(same.low, same.high):
        raise GateTimeout(
            f"the clock is unsteady: stock against itself {same.low:.3f} to {same.high:.3f}"
        )
    bar = max(FASTER, same.high)
    if pair.low <= bar:
        reason = f"not faster: {pair}, the lower end must be above {bar:.3f}"
        return False, reason, evidence, pair.samples()
    return True, f"correct and faster: {pair}", evidence, pair.samples()
