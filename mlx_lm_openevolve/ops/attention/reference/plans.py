"""What the gate asks of a bucket, drawn from a seed: every axis by its strata, in an order of its
own, so that a few questions meet them all and no two seeds ask the same.

    plans(bucket, seed) -> [(exact workload, CasePlan)] --inputs.py--> Case
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ...draws import spread
from ..workload import Q_LEN_BUCKETS, Bucket, Workload
from .layouts import KEYS, NARROW

__all__ = ["CasePlan", "counts", "plans"]

X = TypeVar("X")

# Contents (see contents.py). The first question of all is of needles, the second peaked.
_BRIEF = ("needles", "peaked", "crowd", "even", "strong", "flat", "needles", "large")
_MORE = ("needles", "peaked", "crowd", "even", "strong", "needles", "crowd", "peaked")
# Those in which every row points at keys of its own.
_SHARP = ("needles", "peaked", "crowd")

# Forms of masks (see inputs.py), and which axes of [B, Hq, L] theirs have.
_FORMS = ("padding", "window", "blocks", "some", "blocks", "window", "some", "one")
_MORE_FORMS = ("padding", "window", "blocks", "some", "ends", "window", "ends", "one")
# How keys are hidden, by form, the first always asked: what skips whole tiles may skip only those
# of infinities.
_HIDDEN = {
    "blocks": ("infinity", "lowest"),
    "ends": ("lowest", "infinity"),
    "": ("ten thousand", "lowest", "infinity"),
}
_AXES = ("BHL", "H", "HL", "BH", "BHL", "L", "BL", "")
_QUERIES = ("rows", "whole", "rows", "fused", "rows", "apart", "odd", "longer")
# Lengths that are asked beside the cases proper, and the numbers of a cache that limit them.
_MORE_LENGTHS, _MORE_NUMBERS = 24, 1 << 24
# Lengths at which keys are counted, and products of all of these.
_COUNTS, _COUNT_PRODUCTS = 64, 1 << 30
# Contents whose keys and values have a magnitude, and which of these leaves half's range.
_FAR = ("keys above", "keys below", "values above", "values below")


@dataclass(frozen=True)
class CasePlan:
    """How a case is made: its contents, its scale, the form of its mask and the axes that it has,
    how that lies in memory and hides keys, what an additive one adds, and how keys, values and
    queries lie.

    far: which operand is "above" or "below" all that half precision holds; where it is the keys,
    queries are on the other side of that. padded=False leaves the last sequence without padding.
    aligned: quantised operands start at multiples of 16 bytes."""

    kind: str
    scale: float
    form: str = "padding"
    axes: str = "BHL"
    mask: str = "whole"
    hidden: str = "lowest"
    bias: str = "normal"
    keys: str = "window"
    values: str = "window"
    queries: str = "rows"
    far: str = ""
    padded: bool = True
    aligned: bool = False


def plans(bucket: Bucket | Workload, seed: int, brief: bool) -> list[tuple[Workload, CasePlan]]:
    """The cases of a bucket: 8 where they must be `brief`, else 16 that ask every q_len and batch
    of a small bucket, and as many more lengths as are cheap, over a cache as models have it: what
    reads 16 bytes at once must be right at each."""
    rng = np.random.default_rng([seed, 0])
    kinds = _BRIEF if brief else _BRIEF + _MORE
    count = len(kinds)
    shapes = _shapes(rng, bucket, kinds, brief)
    scales = _scales(rng, bucket.head_dim, kinds)
    columns: dict[str, list[Any]] = {
        "mask": _after(rng, "whole", ("whole", "slice", "turned", "heads"), count),
        "queries": _after(rng, "rows", _QUERIES, count),
        "aligned": _after(rng, True, (True, False), count),
    }
    columns["form"] = _forms(rng, kinds)
    columns["axes"] = _axes(rng, kinds, columns["form"])
    columns["hidden"] = _hidden(rng, columns["form"])
    columns["far"] = _far(rng, bucket, kinds)
    keys, values = _apart(rng, count)
    biases = _biases(rng, kinds, bucket.sinks)
    made = []
    for i, kind in enumerate(kinds):
        drawn = {name: column[i] for name, column in columns.items()}
        decided = bucket.mask == "additive" and biases[i] in ("below", "above")
        if drawn["form"] == "one" and decided:  # no key alone decides
            drawn["form"] = "some"
        if drawn["form"] == "window" and kind == "crowd":  # no row sees the first keys
            drawn["form"] = "padding"
        if drawn["mask"] == "turned" and "L" not in drawn["axes"]:  # rows side by side
            drawn["axes"] += "L"
        plan = CasePlan(kind, scales[i], bias=biases[i], keys=keys[i], values=values[i], **drawn)
        made.append((shapes[i], plan))
    # The first is what a model asks most: its cache, its scale, the longest context.
    usual = CasePlan(
        "needles", bucket.head_dim**-0.5, keys="cache", values="cache", padded=False, aligned=True
    )
    asked = [(shapes[0], usual), *made[1:]]
    if brief:
        return asked
    more = _other_rows(rng, bucket, asked, _other_lengths(rng, asked))
    # At the usual scale, nearly that, one of the other ranges, and nearly the usual one again.
    near = _near(rng, usual.scale, len(more) // 2)
    far = spread(rng, [*_ranges(usual.scale).values()], len(more))
    for i, w in enumerate(more):
        scale = (
            near[i // 2] if i % 2 else float(rng.uniform(*far[i // 4])) if i % 4 else usual.scale
        )
        asked.append((w, replace(usual, scale=scale)))
    return asked


def counts(bucket: Bucket | Workload, seed: int) -> list[tuple[Workload, CasePlan]]:
    """Cases of "count" beside those of `plans`, in which keys are counted too: each residue of a
    length modulo 64 that is missing there where 16 bytes can be read at once, which makes all
    lengths of a small bucket, or as many as are cheap. Of the fewest rows that are asked elsewhere:
    nothing has to be compiled for them."""
    rng = np.random.default_rng([seed, 98])
    asked = plans(bucket, seed, brief=False)
    w = min((w for w, _ in asked), key=lambda w: w.batch * w.q_len)
    products = w.batch * w.q_heads * w.q_len * bucket.kv_len * (w.head_dim + w.v_head_dim)
    most = min(_COUNTS, max(4, _COUNT_PRODUCTS // products))
    low = min(max(bucket.kv_len // 2 + 1, w.q_len, _few(w, w.batch)), bucket.kv_len)
    drawn = {int(n) % _COUNTS: int(n) for n in rng.permutation(np.arange(low, bucket.kv_len + 1))}
    for x, plan in asked:
        if {plan.keys, plan.values}.isdisjoint(NARROW):
            drawn.pop(x.kv_len % _COUNTS, None)
    lengths = list(drawn.values())[:most]
    forms = spread(rng, ("padding", "blocks", "window"), len(lengths))
    usual = CasePlan(
        "count",
        w.head_dim**-0.5,
        bias="zero",
        hidden="both",
        keys="cache",
        values="cache",
        aligned=True,
    )
    return [
        (w.exact(kv_len=n), replace(usual, form=f)) for n, f in zip(lengths, forms, strict=True)
    ]


def _far(rng: np.random.Generator, bucket: Bucket | Workload, kinds: Sequence[str]) -> list[str]:
    """Which operand is beyond half's range, each in turn where one key decides, but not in the
    first case. MLX quantises nothing as small as half's least."""
    places = [i for i, kind in enumerate(kinds) if kind in _SHARP][1:]
    names = [name for name in _FAR if not (bucket.kv_bits and "below" in name)]
    far = [""] * len(kinds)
    if bucket.dtype != "float16":
        for i, name in zip(places, rng.permutation(names), strict=False):
            far[i] = str(name)
    return far


def _after(rng: np.random.Generator, first: X, values: Sequence[X], count: int) -> list[X]:
    """The same, beginning with `first`: what the usual case has is asked there."""
    drawn = spread(rng, values, max(count, len(values)))
    at = drawn.index(first)
    drawn[0], drawn[at] = drawn[at], drawn[0]
    return drawn[:count]


def _forms(rng: np.random.Generator, kinds: Sequence[str]) -> list[str]:
    """Forms of masks. Hidden tiles go where a lost key shows."""
    count = len(kinds)
    names = _FORMS if count <= len(_FORMS) else _FORMS + _MORE_FORMS
    forms = _after(rng, "padding", names, count)
    clear = [i for i, kind in enumerate(kinds) if kind in ("peaked", "crowd", "even")]
    clear = [i for i in rng.permutation(clear) if forms[i] not in ("blocks", "ends")]
    for i, kind in enumerate(kinds):
        if forms[i] in ("blocks", "ends") and kind in ("large", "strong"):
            forms[i], forms[clear[0]] = forms[clear[0]], forms[i]
            clear.pop(0)
    return forms


def _axes(rng: np.random.Generator, kinds: Sequence[str], forms: Sequence[str]) -> list[str]:
    """Axes of masks whose form leaves them open, each in turn where a key of another row shows."""
    drawn = spread(rng, _AXES, len(kinds))
    fixed = [
        kind == "large" or form in ("padding", "window")
        for kind, form in zip(kinds, forms, strict=True)
    ]
    return ["BHL" if is_fixed else drawn.pop() for is_fixed in fixed]


def _hidden(rng: np.random.Generator, forms: Sequence[str]) -> list[str]:
    """How an additive mask hides keys: each form in each of its ways, the first case by the lowest
    number."""
    ways = {form: _after(rng, names[0], names, len(forms)) for form, names in _HIDDEN.items()}
    return ["lowest", *(ways[form if form in ways else ""].pop(0) for form in forms[1:])]


def _apart(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """Layouts of keys and of values, first a cache's. Later ones differ, and where one keeps a
    kernel from reading 16 bytes at once the other does not: what one of them hides the other
    then shows."""
    keys, values = _after(rng, "cache", KEYS, count), _after(rng, "cache", KEYS, count)

    def clash(key: str, value: str) -> bool:
        return key == value or (key in NARROW and value in NARROW)

    for i in range(1, count):
        if clash(keys[i], values[i]):
            for j in 1 + rng.permutation(count - 1):
                if not clash(keys[i], values[j]) and not clash(keys[j], values[i]):
                    values[i], values[j] = values[j], values[i]
                    break
    return keys, values


def _scales(rng: np.random.Generator, head_dim: int, kinds: Sequence[str]) -> list[float]:
    """Nearly 1/sqrt(D) where logits are even, or 0; elsewhere from tiny to large, and negative, one
    of each range in turn."""
    own = float(head_dim**-0.5)
    ranges = _ranges(own)
    scales = _near(rng, own, len(kinds))
    places: dict[str, list[int]] = {"even": [], "strong": [], "sharp": []}
    for i, kind in enumerate(kinds):
        name = "sharp" if kind in _SHARP else kind
        places.get(name, []).append(i)
    for i in places["even"][1:]:
        scales[i] = 0.0
    # Where one key takes all, only the sign shows; and at a tiny scale half precision holds no
    # logits of thousands.
    for i, scale in zip(places["strong"], (-scales[0], 1.0), strict=False):
        scales[i] = scale
    sharp = places["sharp"][1:]
    few = ["tiny", "large", str(rng.choice(("small", "between", "one", "low")))]
    names = few if len(sharp) <= 3 else [*ranges, "near"]
    for i, name in zip(sharp, spread(rng, names, len(sharp)), strict=True):
        if name != "near":
            scales[i] = float(rng.uniform(*ranges[name]))
    return scales


def _ranges(own: float) -> dict[str, tuple[float, float]]:
    """Ranges of scales that are not near `own`, 1/sqrt(D)."""
    return {
        "tiny": (10**-3.5, 10**-2.4),
        "small": (10**-2.4, 0.5 * own),
        "between": (1.5 * own, 0.95),
        "one": (1.0, 1.0),
        "large": (1.6, 16.0),
        "negative": (-1.0, -1.5 * own),
        "low": (-4.0, -1.0),
    }


def _near(rng: np.random.Generator, own: float, count: int) -> list[float]:
    """Scales from 4% to 50% off `own`, above it and below in turn."""
    first = int(rng.integers(2))
    found = []
    for i in range(count):
        off = 1 + 0.04 * 12.5 ** ((i + rng.random()) / count)
        found.append(own * off if (i + first) % 2 else own / off)
    return [found[i] for i in rng.permutation(count)]


def _biases(rng: np.random.Generator, kinds: Sequence[str], sinks: bool) -> list[str]:
    """What an additive mask adds: noise or, where few keys decide, ALiBi; where logits are even,
    one key's decides, far below zero or above. A sink above all of them would leave nothing to
    judge."""
    chosen = ["normal" for _ in kinds]
    even = [i for i, kind in enumerate(kinds) if kind in ("even", "flat")]
    few = [i for i, kind in enumerate(kinds) if kind in ("needles", "peaked", "strong")][1:]
    drawn = (even, ("above",) if sinks else ("below", "above")), (few, ("alibi", "normal"))
    for places, names in drawn:
        for i, name in zip(places, spread(rng, names, len(places)), strict=True):
            chosen[i] = name
    return chosen


# Shapes


def _shapes(
    rng: np.random.Generator, bucket: Bucket | Workload, kinds: Sequence[str], brief: bool
) -> list[Workload]:
    """Exact workloads of a bucket. What shows little of a shape ("large") gets one that was asked
    before, of the fewest rows: a contender that keeps a result then repeats it."""
    q_low, q_high = _q_range(bucket)
    sharp = len(kinds) - kinds.count("large")
    lengths = _lengths(rng, bucket.kv_len, brief)
    q_lens = _between(rng, q_low, q_high, brief and 3)
    batches = _between(rng, bucket.batch // 2 + 1, bucket.batch, brief and 4)
    rest = spread(rng, lengths[1:], sharp - 1)
    rows = spread(rng, q_lens, sharp - 1)
    sequences = spread(rng, batches, sharp - 1)
    shapes = {0: bucket.exact(q_len=q_high, kv_len=max(bucket.kv_len, q_high))}
    # Every q_len and batch first where rows differ most.
    order = sorted(range(1, len(kinds)), key=lambda i: kinds[i] not in _SHARP)
    for i in order:
        if kinds[i] == "large":
            continue
        batch, q_len, kv_len = sequences.pop(0), rows.pop(0), rest.pop(0)
        kv_len = min(max(kv_len, q_low, _few(bucket, batch)), bucket.kv_len)
        shapes[i] = bucket.exact(batch=batch, q_len=min(q_len, kv_len), kv_len=kv_len)
    few = min(shapes.values(), key=lambda w: w.batch * w.q_len)
    return [shapes.get(i, few) for i in range(len(kinds))]


def _few(bucket: Bucket | Workload, batch: int) -> int:
    """Keys below which a quantised cache has inputs of fewer than 8 elements, `constant` on Metal:
    these get a trial of their own at run time, and may be left to the original."""
    if not bucket.kv_bits:
        return 0
    groups = min(bucket.head_dim, bucket.v_head_dim) // bucket.kv_group
    return -(-8 // (batch * bucket.kv_heads * groups))


def _q_range(bucket: Bucket | Workload) -> tuple[int, int]:
    below = [n for n in Q_LEN_BUCKETS if n < bucket.q_len]
    low = below[-1] + 1 if below else 1
    return min(low, bucket.kv_len), min(bucket.q_len, bucket.kv_len)


def _other_lengths(
    rng: np.random.Generator, asked: Sequence[tuple[Workload, CasePlan]]
) -> list[Workload]:
    """The largest shape at lengths of other residues modulo 32: first of those not asked yet, then
    of those asked only where nothing can read 16 bytes at once."""
    w = asked[0][0]
    one = w.batch * w.kv_heads * w.kv_len * (w.head_dim + w.v_head_dim)
    low = max(w.kv_len // 2 + 1, w.q_len, _few(w, w.batch))
    lengths = [int(n) for n in rng.permutation(np.arange(low, w.kv_len))]
    by_residue = {n % 32: n for n in lengths}
    sharp = [(x.kv_len % 32, {plan.keys, plan.values}) for x, plan in asked if plan.kind != "large"]
    known = {residue for residue, _ in sharp}
    wide = {residue for residue, at in sharp if at.isdisjoint(NARROW)}
    order = sorted(by_residue, key=lambda residue: (residue in known) + (residue in wide))
    count = min(_MORE_LENGTHS, max(2, _MORE_NUMBERS // one))
    return [w.exact(kv_len=n) for n in (by_residue[residue] for residue in order[:count])]


def _other_rows(
    rng: np.random.Generator,
    bucket: Bucket | Workload,
    asked: Sequence[tuple[Workload, CasePlan]],
    more: Sequence[Workload],
) -> list[Workload]:
    """The same with query lengths and batches that were not asked yet, as far as these are left;
    the others keep the largest. A few that are drawn of many miss a tile's one remainder."""

    def left(low: int, high: int, known: list[int]) -> list[int]:
        rest = np.setdiff1d(np.arange(low, high + 1), known)
        return [*map(int, rng.permutation(rest)), *[high] * len(more)]

    q_lens = left(*_q_range(bucket), [w.q_len for w, _ in asked])
    batches = left(bucket.batch // 2 + 1, bucket.batch, [w.batch for w, _ in asked])
    return [
        w.exact(batch=batch, q_len=min(q_len, w.kv_len))
        for w, q_len, batch in zip(more, q_lens, batches, strict=False)
    ]


def _lengths(rng: np.random.Generator, high: int, brief: bool) -> list[int]:
    """Key lengths of a bucket: both ends and next to the upper one, then one of each residue that
    a vector path, a pair of rows, a tile or a split could treat apart."""
    classes = [(3, 8), (5, 8), (int(rng.choice((1, 7))), 8), (2, 8), (6, 8), (4, 16), (12, 16)]
    classes += [(8, 16), (16, 32), (32, 64), (64, 128)]
    low = high // 2 + 1
    firsts = [low + (residue - low) % modulus for residue, modulus in classes]
    if brief:  # one of each kind that is in the bucket
        parts = [
            [i for i in part if firsts[i] < high] or part
            for part in ([0, 1], [3, 4], [5, 6], [7, 8, 9, 10])
        ]
        classes = [classes[int(rng.choice(part))] for part in parts]
    found = [high, high // 2 + 1, high - 1]
    for residue, modulus in classes:
        first = low + (residue - low) % modulus
        count = (high - 1 - first) // modulus + 1
        found.append(
            first + modulus * int(rng.integers(count))
            if count > 0
            else int(rng.integers(low, high + 1))
        )
    return [min(max(n, high // 2 + 1), high) for n in found]


def _between(rng: np.random.Generator, low: int, high: int, most: int) -> list[int]:
    """Both ends of a range and values between: `most` in all, or (0) all of a small range and of
    another each residue modulo 8, two multiples of 8 among them. One at least is odd."""
    inner = list(range(low + 1, high))
    if not most and len(inner) <= 6:
        return [*dict.fromkeys((low, high)), *inner]
    if most:
        odd = [n for n in inner if n % 2]
        first = odd if odd and not (low % 2 or high % 2) else inner
        chosen = [int(rng.choice(first))] if first else []
        rest = [n for n in inner if n not in chosen]
        more = min(most - 2 - len(chosen), len(rest))
        chosen += [int(n) for n in rng.choice(rest, more, replace=False)] if more > 0 else []
        return [*dict.fromkeys((low, high)), *chosen]
    by_residue = [[n for n in inner if n % 8 == residue] for residue in range(8)]
    chosen = [int(rng.choice(part)) for part in by_residue if part]
    chosen += [int(rng.choice([n for n in by_residue[0] if n not in chosen] or chosen))]
    return [low, high, *dict.fromkeys(chosen)]
