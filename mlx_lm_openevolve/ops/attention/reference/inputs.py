"""Cases of a bucket: what plans.py draws, made of contents and masks, laid out in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from ...encoding import Array, Bool, encode, lowest, upload
from ..workload import Bucket, Workload
from . import plans as planned
from .contents import CONTENTS, Draw, signs
from .float64 import Case, causal, visible
from .layouts import Placed, Placing, cut, keys_layout, mask_layout, pack, pack_signs, query_layout
from .plans import CasePlan, plans

__all__ = ["KINDS", "case", "cases", "counts", "mask"]

KINDS = tuple(CONTENTS)

# Values of a cache above which keys are counted beside every other case alone.
_COUNTED_ELEMENTS = 4 << 20
# Elements of a mask of its own for every head.
_MASK_ELEMENTS = 16 << 20


def cases(bucket: Bucket | Workload, seed: int, brief: bool = False) -> Iterator[Case]:
    """The cases of a bucket, made one at a time: 8 where they must be `brief`, else 16."""
    for turn, (workload, plan) in enumerate(plans(bucket, seed, brief)):
        yield _case(plan, workload, seed, turn)


def counts(bucket: Bucket | Workload, seed: int) -> Iterator[Case]:
    """The cases in which nothing but keys is counted, see question.Counted, made one at a time."""
    for turn, (workload, plan) in enumerate(planned.counts(bucket, seed)):
        yield _case(plan, workload, seed, 100 + turn)


def case(kind: str, workload: Workload, seed: int, **plan: Any) -> Case:
    """One case of a kind (see KINDS) for an exact workload; `plan`: the rest of its CasePlan."""
    usual = CasePlan(kind, workload.head_dim**-0.5)
    return _case(replace(usual, **plan), workload, seed, 99)


def mask(workload: Workload, seed: int) -> mx.array | None:
    """An array mask to time a workload with, every key seen that causality allows: a batch of
    equal lengths. Padding would be work that a kernel may skip: it is not timed. A bias
    of its own for every head where the mask is additive; None where there is no array mask."""
    w = workload
    if w.mask in ("none", "causal"):
        return None
    seen = np.broadcast_to(causal(w.q_len, w.kv_len), (w.batch, 1, w.q_len, w.kv_len))
    if w.mask == "bool":
        return upload(np.ascontiguousarray(seen), w.dtype)
    heads = w.q_heads if seen.size * w.q_heads <= _MASK_ELEMENTS else 1
    rng = np.random.default_rng([seed, 99])
    bias = rng.standard_normal((w.batch, heads, w.q_len, w.kv_len), np.float32)
    return upload(encode(np.where(seen, bias, np.float32(lowest(w.dtype))), w.dtype), w.dtype)


def _case(plan: CasePlan, w: Workload, seed: int, turn: int) -> Case:
    rng = np.random.default_rng([seed, 1 + turn])
    scale = float(np.float32(plan.scale))
    masking, seen = _mask(rng, w, plan)
    keys_at, values_at = (keys_layout(rng, name) for name in (plan.keys, plan.values))
    if plan.keys == plan.values:  # as a cache's are
        values_at = replace(keys_at)
    content = CONTENTS[plan.kind](Draw(rng, w, scale, seen, keys_at, values_at, plan.far))
    queries = cut(
        encode(content.queries, w.dtype),
        query_layout(rng, plan.queries),
        encode(np.array([np.nan]), w.dtype),
    )
    placed = {"queries": queries, "keys": content.keys, "values": content.values}
    operands: dict[str, Any] = {name: array.view for name, array in placed.items()}
    if masking is not None:
        placed["mask"] = masking
    if w.kv_bits:
        for operand, name in (("keys", plan.keys), ("values", plan.values)):
            apart = name in ("columns", "apart")  # else rows whose elements are neighbours
            at = [keys_layout(rng, name) if apart else _beside(rng, plan) for _ in range(3)]
            signs = plan.kind == "count" and operand == "values"
            packed = pack_signs if signs else pack
            operands[operand] = packed(operands[operand], w.dtype, w.kv_bits, w.kv_group, at)
    elements = w.batch * w.kv_heads * w.kv_len * w.v_head_dim
    counted = plan.kind != "count" and (turn % 2 == 0 or elements <= _COUNTED_ELEMENTS)
    name = f"{plan.kind} batch={w.batch} q_len={w.q_len} kv_len={w.kv_len} scale={scale:.3g}"
    name += f" queries={plan.queries} keys={plan.keys}"
    name += f" {plan.far} half's range" if plan.far else ""
    name += "" if w.latent else f" values={plan.values}"
    if masking is not None:
        shape = "x".join(str(n) for n in masking.view.shape)
        name += f" mask={shape} {plan.mask}"
    if w.mask == "additive":
        name += f" bias={plan.bias} hidden={plan.hidden}"
    return Case(
        name=name,
        workload=w,
        scale=scale,
        **operands,
        mask=None if masking is None else masking.view,
        sinks=encode(content.sinks, w.dtype) if w.sinks else None,
        seed=seed,
        placed=placed,
        beside=functools.partial(_counting, plan, w, seed, turn) if counted else None,
    )


def _counting(plan: CasePlan, w: Workload, seed: int, turn: int) -> Case:
    """The case in which the keys of a plan's call are counted: queries are zero, so that all
    weights are equal; keys are those of the call, and not made again."""
    plan = replace(plan, kind="count", bias="zero", hidden="both")
    rng = np.random.default_rng([seed, 1 + turn])
    masking, _ = _mask(rng, w, plan)
    layout = keys_layout(rng, plan.keys if w.latent else plan.values)
    stored = signs(rng, w)
    values: Any
    if w.kv_bits:
        apart = plan.values in ("columns", "apart")
        at = [keys_layout(rng, plan.values) if apart else _beside(rng, plan) for _ in range(3)]
        values = pack_signs(stored, w.dtype, w.kv_bits, w.kv_group, at)
        placed = {}
    else:
        placed = {"values": cut(stored, layout, encode(np.array([np.nan]), w.dtype))}
        values = placed["values"].view
    if masking is not None:
        placed["mask"] = masking
    return Case(
        name="count",
        workload=w,
        scale=float(np.float32(plan.scale)),
        queries=np.zeros((w.batch, w.q_heads, w.q_len, w.head_dim), stored.dtype),
        keys=values,
        values=values,
        mask=None if masking is None else masking.view,
        sinks=encode(np.zeros(w.q_heads), w.dtype) if w.sinks else None,
        seed=seed,
        placed=placed,
    )


def _beside(rng: np.random.Generator, plan: CasePlan) -> Placing:
    """A part of a quantised operand, [B, Hkv, N, ...]: `aligned`, as in mlx-lm's caches, which the
    fast paths of kernels are for, or at any address, rows with others in between."""
    lead, tail = (int(n) for n in rng.integers(1, 4, 2))
    if plan.aligned:
        return Placing(lead=(0, 0, 8 * lead, 0), tail=(0, 0, 8 * tail, 0))
    return Placing(lead=(0, 0, 2 * lead + 1, 0), tail=(0, 0, tail, int(rng.integers(4))))


# Masks

# What an additive mask holds where it hides, by CasePlan.hidden; "both" hides some keys of a row by
# infinities: where it hides all, these have no weight, and the others are alike.
_HIDDEN: dict[str, Callable[[Workload, np.random.Generator, tuple[int, ...]], Any]] = {
    "lowest": lambda w, rng, shape: np.float32(lowest(w.dtype)),
    "infinity": lambda w, rng, shape: np.float32(-np.inf),
    "ten thousand": lambda w, rng, shape: np.float32(-1e4),
    "both": lambda w, rng, shape: np.where(
        rng.random(shape) < 0.5, np.float32(lowest(w.dtype)), np.float32(-np.inf)
    ),
}


def _mask(
    rng: np.random.Generator, w: Workload, plan: CasePlan
) -> tuple[Placed | None, Bool | None]:
    """An array mask as a plan says, None where there is none, and which keys rows see: see
    float64.visible."""
    if w.mask in ("none", "causal"):
        return None, visible(w, None)
    seen, axes = _seen(rng, w, plan)
    layout = mask_layout(rng, plan.mask)
    if w.mask == "bool":
        around = rng.random(layout.buffer(seen.shape)) < 0.5
        return cut(seen, layout, around, axes), seen
    hidden = _HIDDEN[plan.hidden](w, rng, seen.shape)
    stored = encode(np.where(seen, _bias(rng, w, seen, plan.bias), hidden), w.dtype)
    return cut(stored, layout, encode(np.array([np.nan]), w.dtype), axes), seen


def _seen(rng: np.random.Generator, w: Workload, plan: CasePlan) -> tuple[Bool, int]:
    """Which keys rows see, four axes of which each may be 1, and how many of them are passed."""
    form = plan.form
    n = w.kv_len
    sizes = (w.batch, w.q_heads, w.q_len)
    lead = tuple(
        size if letter in plan.axes else 1 for letter, size in zip("BHL", sizes, strict=True)
    )
    if form in ("some", "blocks", "ends") and int(np.prod(lead)) * n > _MASK_ELEMENTS:
        form = "padding"
    # A mask of -1e4 leaves even a row with every key masked an answer, which half precision, where
    # MLX's own adds it, loses.
    dead = w.mask == "bool" or plan.hidden != "ten thousand" or w.dtype == "float32"
    below = causal(w.q_len, n)[None, None]
    if form == "padding":  # BatchKVCache: [B, 1, L, N], each sequence padded on its left
        pads = rng.integers(1, max(2, n // 2), w.batch)
        if w.batch > 1 or not plan.padded:
            pads[-1] = 0  # the longest sequence has none
        seen = below & (np.arange(n) >= pads[:, None, None, None])
        if not dead:
            seen = seen | (np.arange(n) == np.arange(n - w.q_len, n)[:, None])
        elif w.q_len > 1:
            seen[_any_but_last(rng, (w.batch, 1, w.q_len))] = False
        return seen, 4
    if form == "window":  # RotatingKVCache: [N] when decoding, [L, N] in prefill
        rows = np.arange(n - w.q_len, n)[:, None]
        seen = below & (np.arange(n) > rows - max(1, n // 3))
        return seen, 1 if w.q_len == 1 else 2
    axes = 4 if "B" in plan.axes or rng.random() < 0.5 else 3
    if form == "one":  # rows that see every key or none
        seen = np.arange(np.prod(lead)).reshape(*lead, 1) % 5 != 4
        return seen if dead else np.ones_like(seen), axes
    if form == "some":
        seen = rng.random((*lead, n)) < 0.7
    else:
        seen = (_ends if form == "ends" else _runs)(rng, lead, n)
    seen = seen & below if lead[2] == w.q_len else seen
    seen[..., 0] |= ~seen.any(-1)
    if plan.kind != "needles" and form != "ends":  # a single row may be all that shows the ends
        seen[-1, -1, -1, [0, -1]] = True
    if dead and np.prod(lead) > 2:
        seen[_any_but_last(rng, lead)] = False
    return seen, axes


def _any_but_last(rng: np.random.Generator, lead: tuple[int, ...]) -> tuple[int, ...]:
    """A place of a mask, no last row, which alone sees the last key; where there is one row no last
    head or sequence."""
    batch, head, row = (int(n) for n in rng.integers(0, lead))
    if lead[2] > 1:
        return batch, head, min(row, lead[2] - 2)
    at = int(rng.integers(lead[0] * lead[1] - 1))
    return at // lead[1], at % lead[1], 0


def _runs(rng: np.random.Generator, lead: tuple[int, ...], n: int) -> Bool:
    """Keys that are seen, hidden, seen again, hidden and seen again [*lead, N]; by row. The same
    tile is hidden from all rows, its size the largest power of two that leaves keys behind it."""
    at, tile = np.arange(n), _tile(n)
    first = tile - rng.integers(0, tile // 2 + 1, (*lead, 1))
    second = 2 * tile + rng.integers(0, max(1, (n - 2 * tile + 1) // 2), first.shape)
    third = second + (n - second) * rng.random(first.shape)
    fourth = third + (n - third) * rng.random(first.shape)
    seen: Bool = (at < first) | ((at >= second) & (at < third)) | (at >= fourth)
    return seen


def _ends(rng: np.random.Generator, lead: tuple[int, ...], n: int) -> Bool:
    """Keys of which the first tile is hidden and all behind the second [*lead, N]; by row."""
    at, tile = np.arange(n), _tile(n)
    first = tile + rng.integers(0, tile // 4 + 1, (*lead, 1))
    last = 2 * tile - rng.integers(0, tile // 4 + 1, first.shape)
    seen: Bool = (at >= first) & (at < last)
    return seen


def _tile(n: int) -> int:
    """The largest power of two of which more than two fit into `n` keys."""
    return 1 << max(0, ((n - 1) // 2).bit_length() - 1)


def _bias(rng: np.random.Generator, w: Workload, seen: Array, kind: str) -> Array:
    """What an additive mask adds to the keys that are seen: noise; ALiBi, whose slopes fall from
    head to head; or one key's far above the others', all of them "below" or "above" zero."""
    shape = seen.shape
    if kind == "alibi":
        slopes = 2.0 ** (-8.0 * (np.arange(shape[1]) + 0.5) / shape[1])  # about 1/16 where one
        away = np.arange(w.kv_len)[-shape[3] :] - (w.kv_len - 1)
        return np.broadcast_to(slopes[:, None, None] * away, shape).astype(np.float32)
    if kind == "zero":
        return np.zeros(shape, np.float32)
    if kind == "normal" or shape[3] == 1:
        return rng.standard_normal(shape, np.float32)
    rows = (*shape[:3], 1)
    # The last row has the largest: a mask may have one row, or the first hide every key.
    sizes = np.array([2500.0, *rng.permutation([40.0, 300.0])])
    size = np.resize(sizes, rows)[::-1, ::-1, ::-1] * rng.uniform(0.8, 1.2, rows)
    top = size if kind == "above" else -size
    gap = np.maximum(24.0, size / 4)
    # The key that decides lies behind a tile, a half, or among the last.
    keys = np.unique(np.clip([0, w.kv_len // 2, w.kv_len - 2, w.kv_len - 1], 0, None))
    chosen = rng.choice(keys, (*shape[:3], 1))
    chosen[-1, -1, -1] = w.kv_len - 1
    chosen = np.where(np.take_along_axis(seen, chosen, -1), chosen, seen.argmax(-1)[..., None])
    bias = top - gap * rng.uniform(1, 2, shape)
    np.put_along_axis(bias, chosen, top, -1)
    return bias.astype(np.float32)
