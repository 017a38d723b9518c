"""Cases of a quantised product, drawn from a seed, with their float64 answer and what a kernel's
may err.

An answer errs in units of the sum of |x| (|w| + step), step being what one more in a packed number
means: what rounding in float32 can do to it, whatever its sum comes to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..base import Question
from ..draws import spread
from ..encoding import Array, Float, decode, download, encode, smallest, upload
from .call import stock
from .routings import ROUTINGS, routing
from .workload import Bucket, Workload

__all__ = [
    "MULTIPLE",
    "PackedWeights",
    "ProductCase",
    "ProductQuestion",
    "cases",
    "drawn_weights",
    "exact",
    "floors",
    "in_float32",
    "rows_of",
]

Float32 = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint32]

# A kernel may err so many times as much as rounding explains. What MLX's own product errs is no
# measure: on Metal it sums in float32, on the CPU and on CUDA (0.32.4) in the dtype of x, and its
# sums overflow.
MULTIPLE, AVERAGE = 4.0, 2.0
# Numbers of a matrix for which float64 answers are affordable; of a larger one some outputs.
_NUMBERS = 4 << 20
_DRAWN = 1031  # outputs that are drawn; further ones are as these, in turns: no tile divides it
_PART = 16 << 20  # numbers that are unpacked at a time on the device
_SUSPECTS = 16  # of the others, outputs that differ most from MLX's

# The values of a 4-bit float (E2M1), by its bits.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)
_E2M1 = np.concatenate([_E2M1, -_E2M1])

_BRIEF = ("dense", "needles", "cancelling", "rows", "quantised", "needles")
_MORE = ("dense", "needles", "cancelling", "quantised", "needles", "rows")
# How x [batch, length, K] lies: alone; the last tokens of longer sequences; the token's axis
# outermost; rows with others between, at a multiple of 16 bytes or off it; every second element.
_LAYOUTS = ("whole", "last", "turned", "wide", "odd", "apart")


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Weights [N, K] as MLX packs them: words uint32 [N, K * bits / 32], scales and biases
    [N, K / group] as `encode` stores them, or exponents uint8 and no biases. Those of experts lie
    one below the other: N is w.outputs. Where fewer outputs are here, they come again in turns."""

    words: Array
    scales: Array
    biases: Array | None

    def numbers(self, w: Workload, rows: Any = slice(None)) -> Float:
        """The packed numbers [rows, K], for mxfp4 the values that they name."""
        words = np.ascontiguousarray(self.words[self._held(w, rows)])
        each = np.arange(32 // w.bits, dtype=np.uint32) * w.bits
        plain = words[..., None] >> each & ((1 << w.bits) - 1)
        flat = plain.reshape(len(words), -1)
        return _E2M1[flat] if w.mode == "mxfp4" else flat.astype(np.float64)

    def shared(self, w: Workload, rows: Any = slice(None)) -> tuple[Float, Float]:
        """Scales and biases [rows, K / group]."""
        rows = self._held(w, rows)
        if self.biases is None:
            scales = np.ldexp(1.0, self.scales[rows].astype(np.int64) - 127)
            return scales, np.zeros_like(scales)
        return decode(self.scales[rows], w.dtype), decode(self.biases[rows], w.dtype)

    def _held(self, w: Workload, rows: Any) -> Any:
        """Where outputs `rows` lie."""
        held = len(self.words)
        return rows if held == w.outputs else np.arange(w.outputs)[rows] % held

    def decoded(self, w: Workload, rows: Any = slice(None)) -> tuple[Float, Float]:
        """The float64 values [rows, K], and their step."""
        scales, biases = (part.repeat(w.group, -1) for part in self.shared(w, rows))
        return self.numbers(w, rows) * scales + biases, np.abs(scales)

    def upload(self, w: Workload) -> tuple[mx.array, mx.array, mx.array | None]:
        """The arrays that a layer holds."""
        parts = [mx.array(self.words)]
        if self.biases is None:
            parts.append(mx.array(self.scales))
        else:
            parts += [upload(self.scales, w.dtype), upload(self.biases, w.dtype)]
        if len(self.words) < w.outputs:
            turns = mx.arange(w.outputs) % len(self.words)
            parts = [part[turns] for part in parts]
        if w.experts:
            parts = [part.reshape(w.experts, w.n, -1) for part in parts]
        words, scales, *biases = parts
        return words, scales, biases[0] if biases else None


@dataclass(frozen=True, eq=False)
class ProductCase:
    """One call: x [batch, length, K] in float64, as a dtype holds it, and how it lies; with experts
    x [batch, 1, K] and indices [batch, length]."""

    name: str
    workload: Workload
    x: Float
    layout: str
    weights: PackedWeights
    indices: Indices | None = None


def floors(w: Workload, size: Float) -> tuple[float, float]:
    """Errors (max, root mean square) that rounding explains: of results, whose `size` is in units
    of errors, and of sums in float32."""
    eps, single = float(mx.finfo(getattr(mx, w.dtype)).eps), float(np.finfo(np.float32).eps)
    sums = single * (4 + w.k**0.5 / 4)
    worst, mean = float(size.max()), float(np.sqrt((size * size).mean()))
    return eps / 2 * worst + sums, eps / 4 * mean + sums / 4


class ProductQuestion(Question):
    """A case on the device. `answer` is that of float32, [batch, length, N]."""

    workload: Workload

    def __init__(self, case: ProductCase, seed: int) -> None:
        w = case.workload
        self.case, self.workload, self.name = case, w, case.name
        self._buffer, x = _laid_out(case, np.random.default_rng([seed, 5]))
        weights = case.weights.upload(w)
        chosen, others = _indices(case)
        self.arguments = (x, *chosen, *weights)
        self.other = (-x, *others, *weights)
        self.shape, self.dtype = w.shape, x.dtype
        mx.eval(*(part for part in self.arguments if part is not None))
        self.answer = in_float32(w, *self.arguments)
        self.outputs = _some(w, seed)
        self.want, self.mass = self._exact(self.outputs)
        least = floors(w, np.abs(self.want) / self.mass)
        by_mlx = stock(w, *self.arguments).reshape(w.shape)
        self.own = self.error(np.array(by_mlx.astype(mx.float32)))
        self.limits = (MULTIPLE * least[0], AVERAGE * least[1])
        self._before = self._held()

    def _exact(self, outputs: Any) -> tuple[Float, Float]:
        """(result, unit of errors) of some outputs, as the result lies."""
        case, w = self.case, self.workload
        made = exact(w, case.weights, rows_of(w, case.x), case.indices, outputs)
        want, mass = (part.reshape(*self.shape[:-1], -1) for part in made)
        return want, mass

    def least_bytes(self) -> int:
        """The experts that the rows choose, each once."""
        w, indices = self.workload, self.case.indices
        fewer = 0 if indices is None else w.chosen - len(np.unique(indices))
        return w.moved_bytes() - fewer * w.matrix_bytes

    def error(self, got: Float32) -> tuple[float, float]:
        """In units of the sum of |x| (|w| + step)."""
        off = _off(got[..., self.outputs], self.want, self.mass)
        return float(off.max()), float(np.sqrt((off * off).mean()))

    def fault(self, got: Float32) -> str:
        """An output that no float64 result was computed for: those furthest from float32's."""
        if len(self.outputs) == self.workload.n:
            return ""
        off = np.abs(got - self.answer).reshape(-1, self.workload.n)
        worst = np.where(np.isfinite(off), off, np.inf).max(0)
        chosen = np.sort(np.argsort(-worst)[:_SUSPECTS])
        errors = _off(got[..., chosen], *self._exact(chosen)).reshape(-1, len(chosen)).max(0)
        if errors.max() <= self.limits[0]:
            return ""
        at = int(errors.argmax())
        return f"output {chosen[at]}: error {errors[at]:.3g}, allowed {self.limits[0]:.3g}"

    def changed(self) -> bool:
        return self._held() != self._before

    def _held(self) -> tuple[int, ...]:
        """Sums of the bits of what a call reads, and of what lies around x."""
        bits = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}
        parts = [part for part in (self._buffer, *self.arguments[1:]) if part is not None]
        sums = [mx.sum(part.view(bits[part.itemsize]).astype(mx.uint32)) for part in parts]
        mx.eval(sums)
        return tuple(int(np.array(total)) for total in sums)


def _by_matrix(w: Workload, indices: Any) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Each matrix that is read, and the rows of the result that it makes."""
    flat = np.zeros(w.rows, np.uint32) if indices is None else indices.reshape(-1)
    for expert in np.unique(flat):
        yield int(expert), np.flatnonzero(flat == expert)


def rows_of(w: Workload, x: Float) -> Float:
    """The row of a call's x that each row of the result is made of, [rows, K]."""
    apart = x.reshape(w.batch, -1, w.k)
    return np.broadcast_to(apart, (w.batch, w.length, w.k)).reshape(w.rows, w.k)


def exact(
    w: Workload, weights: PackedWeights, x: Float, indices: Any, outputs: Any
) -> tuple[Float, Float]:
    """(result, unit of errors) in float64 of some outputs [rows, outputs], of x [rows, K]."""
    want, mass = (np.empty((w.rows, len(outputs))) for _ in range(2))
    for expert, rows in _by_matrix(w, indices):
        values, steps = weights.decoded(w, expert * w.n + outputs)
        want[rows] = x[rows] @ values.T
        mass[rows] = np.abs(x[rows]) @ (np.abs(values) + steps).T
    return want, np.maximum(mass, smallest(w.dtype))


def in_float32(w: Workload, x: mx.array, *given: Any) -> Float32:
    """The product with unpacked weights, in float32, as the result lies: what a Call takes."""
    indices = np.array(given[0]) if w.experts else None
    weights = [part for part in given[1 if w.experts else 0 :] if part is not None]
    if w.mode == "affine":  # MLX unpacks in the dtype of the scales
        weights[1:] = [part.astype(mx.float32) for part in weights[1:]]
    rows = x.astype(mx.float32).reshape(w.batch, -1, w.k)
    rows = mx.broadcast_to(rows, (w.batch, w.length, w.k)).reshape(w.rows, w.k)
    out = np.empty((w.rows, w.n), np.float32)
    for expert, at in _by_matrix(w, indices):
        parts = [part[expert] for part in weights] if w.experts else weights
        out[at] = _times(w, rows[mx.array(at)], parts)
    return out.reshape(w.shape)


def _times(w: Workload, x: mx.array, weights: Sequence[mx.array]) -> Float32:
    """x [rows, K] times one matrix, a part of its outputs at a time."""
    size = max(1, _PART // w.k)
    kind: Any = {"group_size": w.group, "bits": w.bits, "mode": w.mode, "dtype": mx.float32}
    parts = []
    for at in range(0, w.n, size):
        some: Any = [part[at : at + size] for part in weights]
        values = mx.dequantize(*some, **kind)
        parts.append(np.array(x @ values.T))
    return np.concatenate(parts, -1)


def _off(got: Float32, want: Float, mass: Float) -> Float:
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(got.astype(np.float64) - want) / mass
    return np.where(np.isfinite(off), off, np.inf)


def _some(w: Workload, seed: int) -> npt.NDArray[np.int64]:
    """The outputs that float64 results are computed for: all of a small matrix; else the first and
    the last 64 and others."""
    count = max(192, _NUMBERS // (w.k * w.chosen))
    if w.n <= count:
        return np.arange(w.n)
    inner = np.random.default_rng([seed, 6]).choice(np.arange(64, w.n - 64), count - 128, False)
    return np.sort(np.concatenate([np.arange(64), inner, np.arange(w.n - 64, w.n)]))


# Drawing


def cases(bucket: Bucket, seed: int, brief: bool) -> Iterator[ProductCase]:
    """The cases of a bucket: 6 where they must be `brief`, else 12."""
    kinds = _BRIEF if brief else _BRIEF + _MORE
    rng = np.random.default_rng([seed, 0])
    shapes = _shapes(rng, bucket, len(kinds))
    layouts = ["whole", *spread(rng, _LAYOUTS, len(kinds) - 1)]
    for turn, (kind, w, layout, routed) in enumerate(
        zip(kinds, shapes, layouts, itertools.cycle(ROUTINGS), strict=False)
    ):
        yield _case(kind, w, layout, routed, np.random.default_rng([seed, 1 + turn]))


def _case(
    kind: str, w: Workload, layout: str, routed: str, rng: np.random.Generator
) -> ProductCase:
    weights = _quantised(rng, w) if kind == "quantised" else drawn_weights(rng, w, kind)
    x = decode(encode(_CONTENTS[kind](rng, w) * _far(w, kind)[0], w.dtype), w.dtype)
    name = f"{kind} rows={w.batch}x{w.length} n={w.n} k={w.k} x={layout}"
    if not w.experts:
        return ProductCase(name, w, x.reshape(w.batch, w.length, w.k), layout, weights)
    name += f" experts={w.experts} {routed}"
    indices = routing(rng, w, routed)
    return ProductCase(name, w, x.reshape(w.batch, 1, w.k), layout, weights, indices)


def _far(w: Workload, kind: str) -> tuple[float, float]:
    """Factors of x and of what groups share that lead beyond what half precision holds, where the
    dtype holds it: a kernel that computes in it passes on numbers near 1."""
    wide = w.dtype != "float16"
    return (
        2.0**16 if wide and kind == "cancelling" else 1.0,
        {"rows": 2.0**-30, "needles": 2.0**20}.get(kind, 1.0) if wide else 1.0,
    )


def _shapes(rng: np.random.Generator, bucket: Bucket, count: int) -> list[Workload]:
    """Both ends of the range of rows and values between, as sequences of one token, as one
    sequence, and as several of several."""
    high, low = bucket.batch, bucket.batch // 2 + 1
    inner = list(range(low + 1, high))
    # So many turns have rows of their own: all of a small bucket's, where not few must do.
    own = count - count // 3 - 1
    some = [low, *map(int, rng.permutation(inner))][: 2 if count == len(_BRIEF) else own]
    rows = [high, *spread(rng, some, own)]
    made = []
    for turn in range(count):
        m = high if turn % 3 == 2 else rows.pop(0)  # the highest has divisors
        splits = [n for n in range(2, m) if m % n == 0]
        batch = (m, 1, int(rng.choice(splits)) if splits else m)[turn % 3]
        made.append(bucket.exact(batch=batch, length=m // batch))
    # One shape is asked twice: a contender that keeps a result then repeats it.
    return [*made[:-1], made[0]]


def drawn_weights(rng: np.random.Generator, w: Workload, kind: str = "dense") -> PackedWeights:
    """Weights whose every bit is drawn; their scales and biases have nothing to do with each other.
    Those of "cancelling" are positive and alike, so that half a sum is large and the whole is not.
    """
    alike = kind == "cancelling"
    drawn = min(w.outputs, _DRAWN)
    words = rng.integers(0, 1 << 32, (drawn, w.k * w.bits // 32), np.uint32)
    shared, far = (drawn, w.k // w.group), _far(w, kind)[1]
    if w.mode == "mxfp4":
        if alike:
            words &= np.uint32(0x77777777)
        shift = int(np.log2(far))
        low, high = (126 + shift, 127 + shift) if alike else (121 + shift, 130 + shift)
        return PackedWeights(words, rng.integers(low, high, shared, np.uint8), None)
    top = (1 << w.bits) - 1
    if alike:
        scales, biases = rng.uniform(0.95, 1.05, shared) / top, rng.uniform(0.19, 0.21, shared)
    else:
        scales = rng.uniform(0.5, 1.5, shared) / top * rng.choice((-1, 1), shared)
        biases = rng.standard_normal(shared) / 2
    scales, biases = far * scales, far * biases
    return PackedWeights(words, encode(scales, w.dtype), encode(biases, w.dtype))


def _quantised(rng: np.random.Generator, w: Workload) -> PackedWeights:
    """What MLX makes of normals."""
    drawn = rng.standard_normal((min(w.outputs, _DRAWN), w.k), np.float32) / 8
    plain = upload(encode(drawn, w.dtype), w.dtype)
    parts = mx.quantize(plain, group_size=w.group, bits=w.bits, mode=w.mode)
    mx.eval(parts)
    words, scales, *biases = (download(part) for part in parts)
    return PackedWeights(words, scales, biases[0] if biases else None)


def _given(w: Workload) -> int:
    """Rows of x."""
    return w.batch if w.experts else w.rows


def _dense(rng: np.random.Generator, w: Workload) -> Float:
    return rng.standard_normal((_given(w), w.k)) * 2.0 ** rng.integers(-4, 3)


def _rows(rng: np.random.Generator, w: Workload) -> Float:
    """Rows of very different sizes: nothing of a large one may reach a small one."""
    return rng.standard_normal((_given(w), w.k)) * 2.0 ** rng.uniform(-8, 3, (_given(w), 1))


def _needles(rng: np.random.Generator, w: Workload) -> Float:
    """Twelve elements of each row, the first and the last among them and others at the ends of
    words, groups and tiles: each is a good part of the answer."""
    edges = [0, w.k - 1, *(at for step in (8, w.group, 64, 128, 256, 512, 1024)
                           for at in (step - 1, step, w.k - step))]  # fmt: skip
    edges = sorted({at for at in edges if 0 <= at < w.k})
    x = np.zeros((_given(w), w.k))
    for row in x:
        at = np.concatenate([[0, w.k - 1], rng.choice(edges, 6), rng.integers(w.k, size=4)])
        row[at] = rng.uniform(0.5, 2, len(at)) * rng.choice((-1, 1), len(at))
    return x


def _cancelling(rng: np.random.Generator, w: Workload) -> Float:
    """The second half of a row takes away what the first adds: a sum kept in half precision
    overflows."""
    size = np.where(np.arange(w.k) < w.k // 2, 1.0, -1.0) * 4e5 / w.k
    x: Float = size * rng.uniform(0.9, 1.1, (_given(w), w.k))
    return x


_CONTENTS = {
    "dense": _dense,
    "quantised": _dense,
    "rows": _rows,
    "needles": _needles,
    "cancelling": _cancelling,
}


def _laid_out(case: ProductCase, rng: np.random.Generator) -> tuple[mx.array, mx.array]:
    """(buffer, x as a view into it, with experts [batch, 1, 1, K]); what lies around x is NaN."""
    w = case.workload
    batch, length, k = case.x.shape
    more = int(rng.integers(1, 4))
    shape, turned = {
        "whole": ((batch, length, k), False),
        "last": ((batch, length + more, k), False),
        "turned": ((length, batch, k), True),
        "wide": ((batch, length, k + 8 * more), False),
        "odd": ((batch, length, k + 2 * more + 1), False),
        "apart": ((batch, length, 2 * k), False),
    }[case.layout]

    def view(buffer: Any) -> Any:
        if turned:
            return buffer.transpose(1, 0, 2)
        step = 2 if case.layout == "apart" else 1
        return buffer[:, -length:, : k * step : step]

    stored = encode(case.x, w.dtype)
    buffer = np.full(shape, encode(np.array([np.nan]), w.dtype)[0], stored.dtype)
    view(buffer)[...] = stored
    held = upload(buffer, w.dtype)
    mx.eval(held)
    x = view(held)
    return held, mx.expand_dims(x, 1) if w.experts else x


def _indices(case: ProductCase) -> tuple[list[mx.array], list[mx.array]]:
    """The indices of a case's experts, and others; nothing where there are none. They lie as a
    model's do, of whose sorted experts the first are taken; what is behind them is no expert."""
    if case.indices is None:
        return [], []
    w = case.workload
    more = 0 if case.layout == "whole" else 3
    held = np.full((w.batch, w.length + more), 0xFFFFFFFF, np.uint32)
    held[:, : w.length] = case.indices
    indices = mx.array(held)[:, : w.length]
    return [indices], [(indices + 1) % w.experts]
