"""Operations of a layer that one launch makes together, found while the layer is traced.

    h = x + y;  rms_norm(h)               -> add_norm.metal   h and its norm
    rope(rms_norm(q)), rope(rms_norm(k))  -> norm_rope.metal  both, normed where they are, from the
                                             product that holds them: no views of it are made

What a layer calls is watched, not what it is: sums, norms, views and rotations, as they come. The
first of two keeps its own result until the second shows that a kernel makes both, which then takes
its place; who read it before that has read the same. On the CPU MLX's own operations stand for the
kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx

from ..backends import Run
from . import launches
from .launches import TYPES, OwnKernel

__all__ = ["CHANGES", "Fusing", "Heads", "Rope", "add_norm", "norm_rope"]

_WIDTH = 32
_EACH = 4  # numbers of a row that a thread takes, at least
_THREADS = 1024  # of a row at most
_LEAST = 8  # numbers of an array: of fewer Metal makes another address space
_SWAPPED = ((0, 2, 1, 3), ((0, 2, 1, 3),), ([0, 2, 1, 3],))  # axes, as transpose takes them
# What changes an array in place.
CHANGES = (
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__imatmul__", "__itruediv__",
    "__ifloordiv__", "__imod__", "__ipow__", "__ilshift__", "__irshift__", "__iand__", "__ior__",
    "__ixor__",
)  # fmt: skip
# Below what is put over them during a trace.
_STOCK: Any = SimpleNamespace(
    rms_norm=mx.fast.rms_norm, rope=mx.fast.rope, put=mx.array.__setitem__
)


class Heads(NamedTuple):
    """Heads [B, H, 1, D] of a token: from number `first` on of a row of `whole` [B, 1, N]; normed
    over D, times a weight [D] of one dtype with it, where `norm` is (weight, eps)."""

    whole: mx.array
    first: int
    heads: int
    size: int
    norm: tuple[mx.array, float] | None = None


class Rope(NamedTuple):
    """What two rotations have in common, as mx.fast.rope takes it; offset: a scalar, or [B]."""

    dims: int
    traditional: bool
    base: float | None
    scale: float
    offset: mx.array
    freqs: mx.array | None

    def like(self, other: Rope) -> bool:
        """Whether both turn alike."""
        same = self.offset is other.offset and self.freqs is other.freqs
        return same and self[:4] == other[:4]


class Fusing:
    """What one trace has called so far. `places`: what to put over what while it goes on, each a
    holder, a name and a function that is called with the original before its arguments."""

    def __init__(self) -> None:
        # By the id of a result, which is held with them, so that no two have one id: the operands
        # of a sum; what heads are made of, first of all the place of a product's part in a whole.
        self._sums: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
        self._heads: dict[int, tuple[mx.array, Heads]] = {}
        self._turned: tuple[mx.array, Heads, Rope] | None = None
        self.places: list[tuple[Any, str, Callable[..., Any]]] = [
            (mx.array, "__add__", self._add),
            (mx.array, "reshape", self._reshape),
            (mx.array, "transpose", self._transpose),
            (mx.array, "swapaxes", self._swapaxes),
            (mx.fast, "rms_norm", self._norm),
            (mx.fast, "rope", self._rope),
            *((mx.array, name, self._changed) for name in CHANGES),
        ]

    def part(self, part: mx.array, whole: mx.array, first: int) -> None:
        """Say that a product [B, 1, n] stands in the rows of a whole from a number on."""
        if part.ndim == 3 and part.shape[1] == 1 and part.dtype in TYPES:
            self._heads[id(part)] = part, Heads(whole, first, 1, part.shape[2])

    def _changed(self, original: Any, x: mx.array, *given: Any) -> Any:
        """What was seen so far may have been made of it, or be it."""
        self._sums.clear()
        self._heads.clear()
        self._turned = None
        return original(x, *given)

    def _add(self, original: Any, x: mx.array, y: Any) -> Any:
        out = original(x, y)
        if isinstance(y, mx.array) and x.shape == y.shape == out.shape and x.dtype == y.dtype:
            self._sums[id(out)] = out, x, y
        return out

    def _known(self, x: mx.array) -> Heads | None:
        found = self._heads.get(id(x))
        return found[1] if found else None

    def _reshape(self, original: Any, x: mx.array, *shape: Any, **named: Any) -> Any:
        out, heads = original(x, *shape, **named), self._known(x)
        if heads is not None and x.ndim == 3 and out.ndim == 4 and out.shape[:2] == x.shape[:2]:
            self._heads[id(out)] = out, heads._replace(heads=out.shape[2], size=out.shape[3])
        return out

    def _transpose(self, original: Any, x: mx.array, *axes: Any, **named: Any) -> Any:
        return self._view(original(x, *axes, **named), x, axes in _SWAPPED and not named)

    def _swapaxes(self, original: Any, x: mx.array, *axes: Any, **named: Any) -> Any:
        return self._view(original(x, *axes, **named), x, sorted(axes) == [1, 2] and not named)

    def _view(self, out: mx.array, x: mx.array, swapped: bool) -> mx.array:
        """Axes 1 and 2 of heads, of which one is 1 long: their numbers stay in their order."""
        heads = self._known(x)
        if heads is not None and swapped and x.ndim == 4:
            self._heads[id(out)] = out, heads
        return out

    def _norm(self, original: Any, *args: Any, **named: Any) -> Any:
        if named or len(args) != 3 or not _fits(*args):
            return original(*args, **named)
        x, weight, eps = args
        known = self._sums.get(id(x))
        if known is not None and x.ndim == 3 and x.shape[1] == 1:
            del self._sums[id(x)]
            both, normed = add_norm(known[1], known[2], weight, eps)
            _STOCK.put(x, ..., both)
            return normed
        out, heads = original(x, weight, eps), self._known(x)
        if heads is not None and heads.norm is None and x.ndim == 4:
            self._heads[id(out)] = out, heads._replace(norm=(weight, eps))
        return out

    def _rope(self, original: Any, a: mx.array, dims: int, **named: Any) -> Any:
        out, heads = original(a, dims, **named), self._known(a)
        first, self._turned = self._turned, None
        offset = named.get("offset")
        if named.keys() - {*Rope._fields} or not isinstance(offset, mx.array) or heads is None:
            return out
        base, freqs = named.get("base"), named.get("freqs")
        rope = Rope(dims, named["traditional"], base, named["scale"], offset, freqs)
        if not _turns(a, rope):
            return out
        if first is None or not (first[2].like(rope) and _beside(first[1], heads)):
            self._turned = out, heads, rope
            return out
        q, k = norm_rope(first[1], heads, rope)
        _STOCK.put(first[0], ..., q)
        return k


def _fits(x: Any, weight: Any, eps: Any) -> bool:
    if not (isinstance(x, mx.array) and isinstance(weight, mx.array) and type(eps) is float):
        return False
    return x.dtype in TYPES and x.dtype == weight.dtype and weight.size >= _LEAST


def _turns(x: mx.array, rope: Rope) -> bool:
    if x.ndim != 4 or x.shape[2] != 1 or x.dtype not in TYPES or x.shape[3] < _LEAST:
        return False
    numbers = type(rope.scale) in (int, float) and type(rope.base) in (int, float, type(None))
    offsets = rope.offset.shape in ((), (x.shape[0],))
    freqs = rope.freqs is None or rope.freqs.shape == (rope.dims // 2,)
    return numbers and offsets and freqs and rope.dims % 2 == 0 < rope.dims <= x.shape[3]


def _beside(q: Heads, k: Heads) -> bool:
    alike = (q.norm is None) == (k.norm is None)
    return alike and q.whole is k.whole and q.size == k.size


def add_norm(x: mx.array, y: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """(x + y, its RMS norm), of [B, 1, N] and a weight [N] of one dtype."""
    backend = launches.backend()
    if not backend:
        both = mx.add(x, y)
        return both, _STOCK.rms_norm(both, weight, eps)
    both, normed = _add_norm(backend, x.shape, x.dtype, eps)([x, y, weight])
    return both, normed


def norm_rope(q: Heads, k: Heads, rope: Rope) -> tuple[mx.array, mx.array]:
    """The queries [B, Hq, 1, D] and keys [B, Hkv, 1, D] of a token, both normed or neither, turned.
    Of one `whole`."""
    backend = launches.backend()
    if not backend:
        return _turned(q, rope), _turned(k, rope)
    shape, dtype = q.whole.shape[::2], q.whole.dtype
    places = (q.first, q.heads, k.first, k.heads, q.size)
    weights = [heads.norm[0] for heads in (q, k) if heads.norm]
    eps = tuple(heads.norm[1] for heads in (q, k) if heads.norm)
    varied, freqs = rope.offset.ndim == 1, [rope.freqs] if rope.freqs is not None else []
    run = _norm_rope(backend, shape, dtype, places, eps, rope[:4], varied, bool(freqs))
    made_q, made_k = run([q.whole, *weights, rope.offset, *freqs])
    return made_q, made_k


def _turned(heads: Heads, rope: Rope) -> mx.array:
    """In MLX's own operations."""
    x = heads.whole[..., heads.first : heads.first + heads.heads * heads.size]
    x = mx.reshape(x, (x.shape[0], heads.heads, 1, heads.size))
    if heads.norm is not None:
        x = _STOCK.rms_norm(x, *heads.norm)
    dims, *others = rope
    turned: mx.array = _STOCK.rope(x, dims, **dict(zip(Rope._fields[1:], others, strict=True)))
    return turned


@functools.lru_cache(64)
def _add_norm(backend: str, shape: tuple[int, ...], dtype: mx.Dtype, eps: float) -> Run:
    rows, _, width = shape
    threads = min(_THREADS, -(-width // (_EACH * _WIDTH)) * _WIDTH)
    kernel = OwnKernel("add_norm", ("x", "y", "weight"), {"sum": shape, "normed": shape})
    numbers = {"N": width, "THREADS": threads, "EACH": -(-width // threads)}
    return kernel.on(backend, dtype, {"EPS": eps}, numbers, (threads * rows, 1), threads)


@functools.lru_cache(64)
def _norm_rope(
    backend: str,
    shape: tuple[int, int],
    dtype: mx.Dtype,
    places: tuple[int, int, int, int, int],
    eps: tuple[float, ...],
    rope: tuple[int, bool, float | None, float],
    varied: bool,
    given: bool,
) -> Run:
    """shape: batch, and width of the whole; places: first number and count of heads of queries,
    those of keys, head size; varied: an offset for each sequence; given: frequencies are."""
    (batch, width), (q_first, of_q, k_first, of_k, size) = shape, places
    dims, pairs, base, scale = rope
    weights = ("q_weight", "k_weight") if eps else ()
    kernel = OwnKernel(
        "norm_rope",
        ("whole", *weights, "offset", *(("freqs",) if given else ())),
        {"q_out": (batch, of_q, 1, size), "k_out": (batch, of_k, 1, size)},
    )
    q_eps, k_eps = eps or (0.0, 0.0)
    turn = math.log2(base) if base else 0.0
    constants = {"Q_EPS": q_eps, "K_EPS": k_eps, "SCALE": scale, "LOG2_BASE": turn}
    numbers = {"WIDTH": width, "HQ": of_q, "HK": of_k, "D": size, "DIMS": dims, "PAIRS": pairs}
    numbers |= {"Q_FIRST": q_first, "K_FIRST": k_first, "NORMS": bool(eps), "FREQS": given}
    # Metal hands a scalar over as a reference.
    of_batch = "offset[threadgroup_position_in_grid.y]"
    place = of_batch if varied else "offset[0]" if backend == "cuda" else "offset"
    lines = [f"const float OFFSET = float({place});"]
    if not weights:
        lines += ["const device T* q_weight = whole;", "const device T* k_weight = whole;"]
    if not given:
        lines += ["const float freqs[1] = {1.0f};"]
    grid = _WIDTH * (of_q + of_k), batch
    return kernel.on(backend, dtype, constants, numbers, grid, _WIDTH, lines)
