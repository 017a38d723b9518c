"""Source mutants of attention kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from ...source_mutants import Rewrite, SourceMutant, of_any_kernel, replaced, strides, wrapped
from ..signature import INPUTS
from ..workload import Workload
from .base import Rule, always, batched, many_kv_heads, many_rows, masked

__all__ = ["SOURCE_MUTANTS"]

# Arrays that are indexed by their strides.
_ARRAYS = tuple(
    sorted({name for names in INPUTS.values() for name in names} - {"scale", "sinks", "length"})
)


def _heads(w: Workload) -> bool:
    return w.q_heads > 1


def _own_values(w: Workload) -> bool:
    """In a latent cache the values are the keys, and only a fully masked row reads them as such."""
    return not w.latent


def _both(*rules: Rule) -> Rule:
    return lambda w: all(rule(w) for rule in rules)


def _strides(array: str, changed: Mapping[int, str]) -> Rewrite:
    return strides(array, changed, _ARRAYS)


_KV_LEN = r"\bkeys_shape\s*\[\s*2\s*\]"
_SCALE = r"\bscale\s*\[\s*0\s*\]"
_EXP = r"\b(?:metal::)?(?:fast::|precise::)?exp2?"


def _mutants() -> Iterator[SourceMutant]:
    body = functools.partial(SourceMutant)
    yield body("length-one-less", "the last key", always, replaced(_KV_LEN, "(keys_shape[2] - 1)"))
    yield body("length-one-more", "reads on", always, replaced(_KV_LEN, "(keys_shape[2] + 1)"))
    yield body(
        "length-of-queries",
        "the query length for the key length",
        lambda w: w.kv_len > 2 * w.q_len,
        replaced(_KV_LEN, "queries_shape[2]"),
    )
    yield body(
        "length-in-tiles",
        "the keys after the last whole tile",
        lambda w: w.kv_len >= 64,
        replaced(_KV_LEN, "(keys_shape[2] / 32 * 32)"),
    )
    rules: dict[str, tuple[Rule, Rule, Rule]] = {
        "queries": (batched, _heads, many_rows),
        "keys": (batched, many_kv_heads, always),
        "values": (_both(_own_values, batched), _both(_own_values, many_kv_heads), _own_values),
        **{
            f"{operand}_{part}": (batched, many_kv_heads, always)
            for operand in ("key", "value")
            for part in ("scales", "biases")
        },
        "mask": (_both(masked, batched), _both(masked, _heads), _both(masked, many_rows)),
    }
    for array, axes in rules.items():
        for axis, rule in enumerate(axes):
            word = ("batch", "head", "row")[axis]
            yield body(
                f"{array}-{word}-stride-zero",
                f"{array}_strides[{axis}]",
                rule,
                _strides(array, {axis: "0"}),
            )
    yield body("mask-key-stride-zero", "mask_strides[3]", masked, _strides("mask", {3: "0"}))
    for array, own in (("keys", always), ("values", _own_values)):
        yield body(
            f"{array}-contiguous",
            "the spare rows of a cache's buffer",
            many_kv_heads,
            _strides(array, {1: f"{array}_shape[2] * {array}_strides[2]"}),
        )
        yield body(
            f"{array}-row-stride-doubled",
            "every second row",
            own,
            _strides(array, {2: f"2 * {array}_strides[2]"}),
        )
        yield body(
            f"{array}-columns-adjacent",
            "rows whose elements lie apart",
            own,
            _strides(array, {3: "1"}),
        )
    yield body(
        "queries-contiguous",
        "the transposed layout of queries",
        _both(many_rows, _heads),
        _strides(
            "queries", {1: "queries_shape[2] * queries_shape[3]", 2: "int64_t(queries_shape[3])"}
        ),
    )
    yield body(
        "values-by-the-keys-strides",
        "values that lie otherwise than keys do",
        _own_values,
        _strides("values", {axis: f"keys_strides[{axis}]" for axis in range(4)}),
    )
    adjacent = "(mask_strides[3] == 0 ? 0 : 1)"
    yield body("mask-keys-adjacent", "mask_strides[3]", masked, _strides("mask", {3: adjacent}))
    end = "(mask_strides[2] == 0 ? 0 : int64_t(keys_shape[2]))"
    yield body(
        "mask-rows-end-to-end",
        "mask_strides[2]",
        _both(masked, many_rows),
        _strides("mask", {2: end}),
    )
    yield body("scale-clamped", "scale", always, replaced(_SCALE, "metal::min(scale[0], 1.0f)"))
    yield body("scale-unsigned", "scale", always, replaced(_SCALE, "metal::fabs(scale[0])"))
    yield body("scale-ignored", "scale", always, replaced(_SCALE, "1.0f"))
    yield body("scale-twice", "scale", always, replaced(_SCALE, "(scale[0] * scale[0])"))
    yield body(
        "sink-of-first-head",
        "sinks",
        lambda w: w.sinks and w.q_heads > 1,
        wrapped(r"\bsinks", lambda at: "sinks[0]", "[]"),
    )
    yield body(
        "sinks-twice",
        "sinks",
        lambda w: w.sinks,
        wrapped(r"\bsinks", lambda at: f"(sinks[{at}] + sinks[{at}])", "[]"),
    )
    both = functools.partial(SourceMutant, headers=True)
    yield both(
        "exponentials-are-one", "softmax", always, wrapped(_EXP, lambda x: f"(1.0f + 0.0f * ({x}))")
    )
    yield both(
        "exponents-halved", "softmax", always, wrapped(_EXP, lambda x: f"metal::exp2(0.5f * ({x}))")
    )
    yield from of_any_kernel()
    yield SourceMutant(
        "mask-not-asked-for", "the mask", lambda w: w.mask != "none", fixed=("mask", "none")
    )


SOURCE_MUTANTS = tuple(_mutants())
