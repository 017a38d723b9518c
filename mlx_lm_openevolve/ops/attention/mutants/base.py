"""What mutants are made of: the right answer in parts, a mutant, and where it can show."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..workload import Workload

__all__ = [
    "MUTANTS",
    "Attention",
    "Mutant",
    "Numbers",
    "applicable",
    "correct",
    "divide",
    "mutant",
]

Array = npt.NDArray[Any]
Rule = Callable[[Workload], bool]


@dataclass(frozen=True, eq=False)
class Numbers:
    """Quantised keys or values, repeated for the query heads: numbers [B, Hq, N, D], and scales
    and biases [B, Hq, N, D / group], all float32."""

    numbers: Array
    scales: Array
    biases: Array

    def floats(self) -> Array:
        """What they stand for."""
        each = self.numbers.shape[-1] // self.scales.shape[-1]
        scales, biases = self.scales.repeat(each, -1), self.biases.repeat(each, -1)
        return np.asarray(self.numbers * scales + biases)


@dataclass(frozen=True, eq=False)
class Attention:
    """One call as float32 arrays: q [B, Hq, L, D], k [B, Hq, N, D] and v [B, Hq, N, Dv] already
    repeated for the query heads, mask [B, Hq, L, N] (bool or additive, causal made explicit) or
    None, sinks [Hq] or None. `state` outlives a call; `packed` holds quantised keys and values,
    of which k and v are the floats."""

    q: Array
    k: Array
    v: Array
    scale: float
    mask: Array | None
    sinks: Array | None
    workload: Workload
    state: dict[str, Array] = field(default_factory=dict)
    packed: tuple[Numbers, Numbers] | None = None

    def scores(self) -> Array:
        """Masked logits [B, Hq, L, N]."""
        scores = self.q @ self.k.swapaxes(-1, -2) * np.float32(self.scale)
        if self.mask is None:
            return scores
        if self.mask.dtype == np.bool_:
            return np.where(self.mask, scores, np.float32(-np.inf))
        return scores + self.mask

    def parts(self, scores: Array) -> tuple[Array, Array, Array]:
        """(maximum, sum of exponentials, unnormalised output) of some keys' scores."""
        top = scores.max(-1, keepdims=True)
        if self.sinks is not None:
            top = np.maximum(top, self.sinks[:, None, None])
        top = np.maximum(top, np.finfo(np.float32).min)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        if self.sinks is not None:
            total = total + np.exp(self.sinks[:, None, None] - top)
        return top, total, weights @ self.v

    def out(self) -> Array:
        """Attention as it should be, [B, Hq, L, Dv]; zeros where every key is masked."""
        _, total, out = self.parts(self.scores())
        return divide(out, total)

    def kept(self, keys: Array) -> Attention:
        """With the keys at these positions alone, in this order."""
        mask = None if self.mask is None else self.mask[..., keys]
        return replace(self, k=self.k[:, :, keys], v=self.v[:, :, keys], mask=mask)

    def halves(self) -> tuple[Attention, Attention]:
        """The first and the second half of the keys; neither knows the sinks."""
        keys = np.arange(self.k.shape[2])
        plain = replace(self, sinks=None)
        return plain.kept(keys[: len(keys) // 2]), plain.kept(keys[len(keys) // 2 :])


def divide(out: Array, total: Array) -> Array:
    """out / total, and zero where no key had any weight."""
    return np.asarray(out / np.where(total == 0, np.float32(1), total))


def _float(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32))


def _numbers(w: Workload, operand: Any) -> Numbers:
    words, scales, biases = operand
    raw = np.ascontiguousarray(np.array(words))
    bits = np.unpackbits(raw.view(np.uint8), axis=-1, bitorder="little")
    digits = bits.reshape(*raw.shape[:3], -1, w.kv_bits)
    numbers = digits @ (1 << np.arange(w.kv_bits)).astype(np.float32)
    parts = (numbers, _float(scales), _float(biases))
    return Numbers(*(part.repeat(w.group, 1) for part in parts))


# What calls that are still asked were handed, by the identity of their arrays: every mutant is
# asked the same, and to read that takes longer than to answer.
_READ: dict[tuple[Any, ...], tuple[tuple[weakref.ref[mx.array], ...], Attention]] = {}


def _read(w: Workload, state: dict[str, Array], args: tuple[Any, ...]) -> Attention:
    """The arguments of a call as numbers; they are read once while they live."""
    packed = itertools.chain(*(x if isinstance(x, tuple) else (x,) for x in args))
    arrays = tuple(x for x in packed if x is not None)
    key = (w, *map(id, arrays))
    known = _READ.get(key)
    if known is None or any(ref() is not x for ref, x in zip(known[0], arrays, strict=True)):
        known = (tuple(map(weakref.ref, arrays)), _numbered(w, args))
        _READ[key] = known
        weakref.finalize(arrays[0], _READ.pop, key, None)
    return replace(known[1], state=state)


def _numbered(w: Workload, args: tuple[Any, ...]) -> Attention:
    queries, keys, values, scale, mask, sinks = args
    q = _float(queries)
    packed = (_numbers(w, keys), _numbers(w, values)) if w.kv_bits else None
    if packed is None:
        k, v = (_float(x).repeat(w.group, 1) for x in (keys, values))
    else:
        k, v = packed[0].floats(), packed[1].floats()
    n = k.shape[2]
    shape = (*q.shape[:3], n)
    full: Array | None = None
    if w.mask == "causal":
        full = np.broadcast_to(np.arange(n) <= np.arange(n - q.shape[2], n)[:, None], shape)
    elif mask is not None:
        raw = np.array(mask) if mask.dtype == mx.bool_ else _float(mask)
        full = np.broadcast_to(raw, shape)
    for array in (q, k, v):
        array.flags.writeable = False
    return Attention(
        q=q,
        k=k,
        v=v,
        scale=float(scale.item()),
        mask=full,
        sinks=None if sinks is None else _float(sinks),
        workload=w,
        packed=packed,
    )


@dataclass(frozen=True)
class Mutant:
    """A wrong implementation: its name, what it breaks, where that can show, and how."""

    name: str
    breaks: str
    applies: Rule
    run: Callable[[Attention], Array]

    def build(self, workload: Workload) -> Callable[..., mx.array]:
        """The mutant as a Call for an exact workload."""
        state: dict[str, Array] = {}

        def call(*args: Any) -> mx.array:
            attention = _read(workload, state, args)
            with np.errstate(all="ignore"):
                out = np.ascontiguousarray(self.run(attention), np.float32)
            return mx.array(out).astype(args[0].dtype)

        return call


MUTANTS: list[Mutant] = []
correct = Mutant("correct", "nothing: the unchanged implementation", lambda w: True, Attention.out)


def applicable(workload: Workload) -> list[Mutant]:
    """The mutants that can show on a workload."""
    return [mutant for mutant in MUTANTS if mutant.applies(workload)]


def always(w: Workload) -> bool:
    """Anywhere."""
    return True


def batched(w: Workload) -> bool:
    """More than one sequence."""
    return w.batch > 1


def many_kv_heads(w: Workload) -> bool:
    """More than one KV head."""
    return w.kv_heads > 1


def many_rows(w: Workload) -> bool:
    """More than one query."""
    return w.q_len > 1


def causal(w: Workload) -> bool:
    """A causal mask."""
    return w.mask == "causal"


def masked(w: Workload) -> bool:
    """An array mask."""
    return w.mask in ("bool", "additive")


def additive(w: Workload) -> bool:
    """An additive mask."""
    return w.mask == "additive"


def with_sinks(w: Workload) -> bool:
    """Sinks."""
    return w.sinks


def long(n: int) -> Rule:
    """A bucket of at least n keys."""
    return lambda w: w.kv_len >= n


def mutant(breaks: str, applies: Rule = always) -> Callable[..., Callable[[Attention], Array]]:
    """Declare a mutant; its name is the function's."""

    def declare(run: Callable[[Attention], Array]) -> Callable[[Attention], Array]:
        MUTANTS.append(Mutant(run.__name__.strip("_").replace("_", "-"), breaks, applies, run))
        return run

    return declare
