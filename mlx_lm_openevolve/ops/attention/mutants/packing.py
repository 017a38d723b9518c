"""Mutants that unpack quantised keys or values wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..workload import Workload
from .base import MUTANTS, Array, Attention, Mutant, Numbers, Rule, always, many_kv_heads


def _packed(rule: Rule) -> Rule:
    return lambda w: w.kv_bits > 0 and rule(w)


def _many_groups(w: Workload) -> bool:
    return min(w.head_dim, w.v_head_dim) > w.kv_group


def _unpack(
    name: str, breaks: str, change: Callable[[Numbers], Numbers], rule: Rule = always
) -> None:
    """Two mutants: keys unpacked wrongly, and values."""

    def keys(x: Attention) -> Array:
        assert x.packed is not None
        return replace(x, k=change(x.packed[0]).floats()).out()

    def values(x: Attention) -> Array:
        assert x.packed is not None
        return replace(x, v=change(x.packed[1]).floats()).out()

    MUTANTS.append(Mutant(f"key-{name}", f"keys: {breaks}", _packed(rule), keys))
    MUTANTS.append(Mutant(f"value-{name}", f"values: {breaks}", _packed(rule), values))


def _reversed_words(x: Numbers) -> Numbers:
    """Eight numbers at a time: a word of 4-bit ones."""
    rows = x.numbers.reshape(*x.numbers.shape[:-1], -1, 8)[..., ::-1]
    return replace(x, numbers=rows.reshape(x.numbers.shape))


_unpack("scales-ignored", "scales are 1", lambda x: replace(x, scales=np.ones_like(x.scales)))
_unpack("biases-ignored", "biases are 0", lambda x: replace(x, biases=np.zeros_like(x.biases)))
_unpack("biases-negated", "zero points subtracted", lambda x: replace(x, biases=-x.biases))
_unpack(
    "first-group-for-all",
    "the scale and bias of a row's first group",
    lambda x: replace(
        x,
        scales=np.broadcast_to(x.scales[..., :1], x.scales.shape),
        biases=np.broadcast_to(x.biases[..., :1], x.biases.shape),
    ),
    _many_groups,
)
_unpack(
    "groups-shifted",
    "the next group's scale",
    lambda x: replace(x, scales=np.roll(x.scales, 1, -1)),
    _many_groups,
)
_unpack(
    "scales-of-next-row",
    "scales and biases read one key late",
    lambda x: replace(x, scales=np.roll(x.scales, 1, 2), biases=np.roll(x.biases, 1, 2)),
)
_unpack(
    "scales-of-first-head",
    "scales and biases of KV head 0",
    lambda x: replace(
        x,
        scales=np.broadcast_to(x.scales[:, :1], x.scales.shape),
        biases=np.broadcast_to(x.biases[:, :1], x.biases.shape),
    ),
    many_kv_heads,
)
_unpack("words-reversed", "numbers taken from the high end of a word", _reversed_words)
_unpack(
    "neighbours-swapped",
    "the two numbers of a byte exchanged",
    lambda x: replace(
        x,
        numbers=x.numbers.reshape(*x.numbers.shape[:-1], -1, 2)[..., ::-1].reshape(x.numbers.shape),
    ),
)
_unpack(
    "top-bit-lost",
    "one bit too few is kept of a number",
    lambda x: replace(x, numbers=np.where(x.numbers > x.numbers.max() / 2, 0, x.numbers)),
)


def _swapped(x: Attention) -> Array:
    assert x.packed is not None
    keys, values = x.packed
    k = replace(keys, scales=values.scales, biases=values.biases).floats()
    v = replace(values, scales=keys.scales, biases=keys.biases).floats()
    return replace(x, k=k, v=v).out()


MUTANTS.append(
    Mutant(
        "scales-of-keys-and-values-exchanged",
        "the scales and biases of the other operand",
        _packed(lambda w: w.head_dim == w.v_head_dim),
        _swapped,
    )
)
