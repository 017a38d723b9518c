"""Wrong products that the gate must reject: the right one with one slip each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..base import Call
from ..encoding import Float, decode, download, encode, upload
from .reference import PackedWeights, rows_of
from .workload import Workload

__all__ = ["MUTANTS", "Product", "ProductMutant", "applicable", "correct"]

Array = npt.NDArray[Any]
Rule = Callable[[Workload], bool]


@dataclass(frozen=True, eq=False)
class Product:
    """One call as float64 arrays: x [rows, K], numbers [N, K], scales and biases [N, K / group].
    `state` outlives a call. With experts N is that of all, one below the other, and `indices`
    [rows] says whose row each is; without, it is nought."""

    x: Float
    numbers: Float
    scales: Float
    biases: Float
    workload: Workload
    indices: Array
    state: dict[str, Array] = field(default_factory=dict)

    def weights(self) -> Float:
        """[N, K]."""
        scales, biases = (
            part.repeat(self.workload.group, -1) for part in (self.scales, self.biases)
        )
        return self.numbers * scales + biases

    def out(self) -> Float:
        """[rows, N] of each row's own matrix."""
        matrices = self.weights().reshape(-1, self.workload.n, self.workload.k)
        out = np.empty((len(self.x), self.workload.n))
        for expert in np.unique(self.indices):
            rows = self.indices == expert
            out[rows] = self.x[rows] @ matrices[expert].T
        return out


@dataclass(frozen=True)
class ProductMutant:
    """`wrong(product)` is its answer; it can show where `shows` says."""

    name: str
    wrong: Callable[[Product], Float]
    shows: Rule = lambda w: True

    def build(self, workload: Any) -> Call:
        w: Workload = workload
        state: dict[str, Array] = {}

        def call(x: mx.array, *given: Any) -> mx.array:
            parts = [None if part is None else download(part) for part in given]
            indices = parts.pop(0) if w.experts else np.zeros(w.rows, np.int64)
            flat = [None if p is None else p.reshape(w.outputs, -1) for p in parts]
            packed = PackedWeights(*flat)  # type: ignore[arg-type]
            rows = rows_of(w, decode(download(x), w.dtype))
            chosen = indices.reshape(-1).astype(np.int64)  # type: ignore[union-attr]
            product = Product(rows, packed.numbers(w), *packed.shared(w), w, chosen, state)
            with np.errstate(over="ignore", invalid="ignore"):
                out = encode(self.wrong(product), w.dtype)
            return upload(out.reshape(w.shape), w.dtype)

        return call


def _without(part: Callable[[Workload], slice]) -> Callable[[Product], Float]:
    """x is not read there."""

    def wrong(p: Product) -> Float:
        x = p.x.copy()
        x[:, part(p.workload)] = 0
        return replace(p, x=x).out()

    return wrong


def _numbers(change: Callable[[Float], Float]) -> Callable[[Product], Float]:
    return lambda p: replace(p, numbers=change(p.numbers)).out()


def _swapped(step: int) -> Callable[[Float], Float]:
    """Each number where another of its word belongs."""
    return lambda numbers: numbers[:, np.arange(numbers.shape[1]) ^ step]


def _shared(name: str, change: Callable[[Float], Float]) -> Callable[[Product], Float]:
    def wrong(p: Product) -> Float:
        changed: dict[str, Any] = {name: change(getattr(p, name))}
        return replace(p, **changed).out()

    return wrong


def _replayed(p: Product) -> Float:
    """The first answer, for ever."""
    return p.state.setdefault("out", p.out())


def _rounded(p: Product, dtype: str) -> Float:
    """Sums of 32 products, added up in a dtype."""
    w = p.workload
    matrices = p.weights().reshape(-1, w.n, w.k)[p.indices]  # [rows, N, K]
    parts = (p.x[:, None] * matrices).reshape(len(p.x), w.n, -1, 32).sum(-1)
    total = np.zeros(parts.shape[:2])
    for at in range(parts.shape[-1]):
        total = decode(encode(total + parts[..., at], dtype), dtype)
    return total


def _held(p: Product, dtype: str, *names: str) -> Float:
    """With these of a product as a dtype holds them."""
    held: dict[str, Any] = {n: decode(encode(getattr(p, n), dtype), dtype) for n in names}
    return replace(p, **held).out()


def _placed(change: Callable[[Float], Float]) -> Callable[[Product], Float]:
    return lambda p: change(p.out())


def _rows_from(choose: Callable[[Array], Array]) -> Callable[[Product], Float]:
    """Row i is the answer to row choose(i)."""
    return lambda p: p.out()[choose(np.arange(len(p.x)))]


def _set(out: Float, at: Any, value: Any) -> Float:
    out = out.copy()
    out[at] = value
    return out


def _routed(change: Callable[[Array, Product], Array]) -> Callable[[Product], Float]:
    """The rows go to other experts."""
    return lambda p: replace(p, indices=change(p.indices, p)).out()


def _first_routing(p: Product) -> Float:
    """Where the first call's rows went, for ever."""
    return replace(p, indices=p.state.setdefault("indices", p.indices)).out()


def _first_of_each(p: Product) -> Array:
    """Of each row the first one that goes to the same expert."""
    first: Array = (p.indices[:, None] == p.indices[None]).argmax(-1)
    return first


def _shifted(part: Float, p: Product) -> Float:
    """What outputs share, of the next expert."""
    return np.roll(part, -p.workload.n, 0)


def _tokens(p: Product) -> Array:
    """Rows as [batch, length]."""
    return np.arange(len(p.x)).reshape(p.workload.batch, p.workload.length)


def _affine(w: Workload) -> bool:
    return w.mode == "affine"


def _experts(w: Workload) -> bool:
    return w.experts > 1


def _shared_experts(w: Workload) -> bool:
    """Some rows go to one expert in some cases, and to several in others."""
    return w.experts > 1 and w.rows > 1


def _wide(w: Workload) -> bool:
    """The dtype holds numbers that half precision does not."""
    return w.dtype != "float16"


def _groups(w: Workload) -> bool:
    return w.k > w.group


def _several(w: Workload) -> bool:
    return w.rows > 1


def _mixed(w: Workload) -> bool:
    return w.batch > 1 and w.length > 1


correct = ProductMutant("correct", Product.out)

MUTANTS = (
    ProductMutant("zeros", _placed(np.zeros_like)),
    ProductMutant("replayed-output", _replayed),
    ProductMutant("output-doubled", _placed(lambda out: 2 * out)),
    # Numbers
    ProductMutant("neighbours-swapped", _numbers(_swapped(1))),
    ProductMutant("halves-of-a-word-swapped", _numbers(_swapped(2))),
    ProductMutant("words-reversed", lambda p: replace(
        p, numbers=p.numbers[:, np.arange(p.workload.k) ^ (32 // p.workload.bits - 1)]).out()),
    ProductMutant("words-swapped", lambda p: replace(
        p, numbers=p.numbers[:, np.arange(p.workload.k) ^ (32 // p.workload.bits)]).out()),
    ProductMutant("top-bit-lost", lambda p: replace(
        p, numbers=np.where(p.numbers >= 1 << p.workload.bits - 1,
                            p.numbers - (1 << p.workload.bits - 1), p.numbers)).out(), _affine),
    ProductMutant("numbers-signed", lambda p: replace(
        p, numbers=np.where(p.numbers >= 1 << p.workload.bits - 1,
                            p.numbers - (1 << p.workload.bits), p.numbers)).out(), _affine),
    ProductMutant("signs-lost", _numbers(np.abs), lambda w: w.mode == "mxfp4"),
    ProductMutant("half-as-one", _numbers(lambda x: np.where(np.abs(x) == 0.5, 2 * x, x)),
                  lambda w: w.mode == "mxfp4"),
    ProductMutant("six-as-four", _numbers(lambda x: np.clip(x, -4, 4)),
                  lambda w: w.mode == "mxfp4"),
    # What groups share
    ProductMutant("scales-ignored", _shared("scales", np.ones_like)),
    ProductMutant("scales-squared", _shared("scales", np.square)),
    ProductMutant("scales-positive", _shared("scales", np.abs), _affine),
    ProductMutant("scales-of-the-next-group", _shared("scales", lambda s: np.roll(s, -1, 1)),
                  _groups),
    ProductMutant("scales-of-the-group-before", _shared("scales", lambda s: np.roll(s, 1, 1)),
                  _groups),
    ProductMutant("scales-of-the-next-output", _shared("scales", lambda s: np.roll(s, -1, 0))),
    ProductMutant("scales-of-the-first-group", _shared(
        "scales", lambda s: np.broadcast_to(s[:, :1], s.shape)), _groups),
    ProductMutant("biases-ignored", _shared("biases", np.zeros_like), _affine),
    ProductMutant("biases-subtracted", _shared("biases", np.negative), _affine),
    ProductMutant("biases-of-the-next-group", _shared("biases", lambda b: np.roll(b, -1, 1)),
                  lambda w: _affine(w) and _groups(w)),
    ProductMutant("biases-of-the-next-output", _shared("biases", lambda b: np.roll(b, -1, 0)),
                  _affine),
    ProductMutant("biases-from-scales", lambda p: replace(
        p, biases=-p.scales * (1 << p.workload.bits - 1)).out(), _affine),
    ProductMutant("scales-and-biases-swapped", lambda p: replace(
        p, scales=p.biases, biases=p.scales).out(), _affine),
    # The end of a row
    ProductMutant("first-number-lost", _without(lambda w: slice(0, 1))),
    ProductMutant("last-number-lost", _without(lambda w: slice(w.k - 1, w.k))),
    ProductMutant("last-word-lost", _without(lambda w: slice(w.k - 32 // w.bits, w.k))),
    ProductMutant("last-group-lost", _without(lambda w: slice(w.k - w.group, w.k))),
    ProductMutant("first-group-lost", _without(lambda w: slice(0, w.group))),
    ProductMutant("rest-of-a-tile-lost", _without(lambda w: slice(w.k // 512 * 512, w.k)),
                  lambda w: w.k % 512 != 0),
    ProductMutant("numbers-of-the-next-output", _numbers(lambda x: np.roll(x, -1, 0))),
    # Outputs
    ProductMutant("last-output-lost", _placed(lambda out: _set(out, (slice(None), -1), 0))),
    ProductMutant("outputs-shifted", _placed(lambda out: np.roll(out, 1, -1))),
    ProductMutant("odd-outputs-copied", _placed(
        lambda out: out[:, np.arange(out.shape[1]) // 2 * 2])),
    ProductMutant("outputs-beyond-tiles-lost", lambda p: _set(
        p.out(), (slice(None), slice(p.workload.n // 64 * 64, None)), 0), lambda w: w.n % 64 != 0),
    # Rows
    ProductMutant("first-row-for-all", _rows_from(np.zeros_like), _several),
    ProductMutant("last-row-lost", _placed(lambda out: _set(out, -1, 0)), _several),
    ProductMutant("odd-rows-copied", _rows_from(lambda i: i // 2 * 2), _several),
    ProductMutant("rows-reversed", _rows_from(lambda i: i[::-1]), _several),
    ProductMutant("sequences-and-tokens-swapped", lambda p: replace(p, x=np.ascontiguousarray(
        p.x.reshape(p.workload.length, p.workload.batch, -1).swapaxes(0, 1)
    ).reshape(len(p.x), -1)).out(), _mixed),
    # Experts
    ProductMutant("first-expert-for-all", _routed(lambda i, p: np.zeros_like(i)), _experts),
    ProductMutant("first-rows-expert-for-all", _routed(
        lambda i, p: np.broadcast_to(i[:1], i.shape)), _shared_experts),
    ProductMutant("next-expert", _routed(lambda i, p: (i + 1) % p.workload.experts), _experts),
    ProductMutant("expert-before", _routed(lambda i, p: (i - 1) % p.workload.experts), _experts),
    ProductMutant("last-expert-never", _routed(
        lambda i, p: np.minimum(i, p.workload.experts - 2)), _experts),
    ProductMutant("upper-experts-as-lower", _routed(
        lambda i, p: i % -(-p.workload.experts // 2)), _experts),
    ProductMutant("experts-reversed", _routed(lambda i, p: p.workload.experts - 1 - i), _experts),
    ProductMutant("expert-of-the-next-row", _routed(lambda i, p: np.roll(i, -1)), _shared_experts),
    ProductMutant("experts-in-another-order", _routed(lambda i, p: np.sort(i)), _shared_experts),
    ProductMutant("indices-transposed", _routed(
        lambda i, p: i[_tokens(p).reshape(p.workload.length, -1).T.reshape(-1)]),
                  lambda w: _experts(w) and _mixed(w)),
    ProductMutant("first-expert-of-a-token", _routed(
        lambda i, p: i[_tokens(p)[:, :1].repeat(p.workload.length, 1).reshape(-1)]),
                  lambda w: _experts(w) and _mixed(w)),
    ProductMutant("first-routing-for-ever", _first_routing, _experts),
    ProductMutant("rows-of-an-expert-alike", lambda p: replace(
        p, x=p.x[_first_of_each(p)]).out(), _shared_experts),
    ProductMutant("first-row-of-an-expert-alone", lambda p: np.where(
        (_first_of_each(p) == np.arange(len(p.x)))[:, None], p.out(), 0), _shared_experts),
    ProductMutant("second-row-of-an-expert-lost", lambda p: np.where(
        (_first_of_each(p) == np.arange(len(p.x)) - 1)[:, None], 0, p.out()), _shared_experts),
    ProductMutant("numbers-of-the-next-expert", lambda p: replace(
        p, numbers=_shifted(p.numbers, p)).out(), _experts),
    ProductMutant("scales-of-the-next-expert", lambda p: replace(
        p, scales=_shifted(p.scales, p)).out(), _experts),
    ProductMutant("biases-of-the-next-expert", lambda p: replace(
        p, biases=_shifted(p.biases, p)).out(), lambda w: _experts(w) and _affine(w)),
    ProductMutant("scales-of-the-first-expert", lambda p: replace(p, scales=np.resize(
        p.scales[: p.workload.n], p.scales.shape)).out(), _experts),
    ProductMutant("x-by-the-place-among-experts", lambda p: replace(
        p, x=p.x[_tokens(p)[:, 0]][np.arange(len(p.x)) % p.workload.batch]).out(),
                  lambda w: _experts(w) and _mixed(w)),
    # Precision
    ProductMutant("sums-in-half", lambda p: _rounded(p, "float16"), lambda w: w.k > 64),
    ProductMutant("sums-in-bfloat16", lambda p: _rounded(p, "bfloat16"), lambda w: w.k > 64),
    ProductMutant("x-in-bfloat16", lambda p: _held(p, "bfloat16", "x"),
                  lambda w: w.dtype == "float32"),
    ProductMutant("x-in-half", lambda p: _held(p, "float16", "x"), _wide),
    ProductMutant("scales-in-half", lambda p: _held(p, "float16", "scales", "biases"), _wide),
    ProductMutant("scales-of-at-most-64", lambda p: replace(
        p, scales=np.clip(p.scales, -64, 64), biases=np.clip(p.biases, -64, 64)).out(), _wide),
    ProductMutant("results-no-larger-than-half", _placed(
        lambda out: np.clip(out, -65504, 65504)), _wide),
    ProductMutant("negative-x-dropped", lambda p: replace(p, x=np.maximum(p.x, 0)).out()),
)  # fmt: skip


def applicable(w: Workload) -> list[ProductMutant]:
    """The mutants that can show on a workload, or on one of its bucket."""
    asked = w.bucket()
    # Rows are split into sequences and tokens in every way: what shows in one shows.
    mixed = asked.exact(batch=2, length=2) if asked.rows >= 4 else asked.exact()
    return [m for m in MUTANTS if m.shows(w) or m.shows(mixed)]
