"""Operations of a layer that one launch makes together.

    h = x + y;  rms_norm(h)               -> add_norm.metal   h and its norm
    rope(rms_norm(q)), rope(rms_norm(k))  -> norm_rope.metal  both, normed where they are, from the
                                             product that holds them: no views of it are made
    the k largest of softmax(x)           -> route.metal      of a token's experts
    (y * scores).sum(-2)                  -> mix.metal        what they returned

On the CPU MLX's own operations stand for the kernels.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx

from ..backends import Run
from . import launches
from .launches import OwnKernel

__all__ = ["LEAST", "STOCK", "Heads", "Rope", "Routed", "add_norm", "mix", "norm_rope", "route"]

_WIDTH = 32
_EACH = 4  # numbers of a row that a thread takes, at least
_THREADS = 1024  # of a row at most
_MIXED = 128  # threads that share a threadgroup and nothing else
LEAST = 8  # numbers of an array: of fewer Metal makes another address space
# Below what is put over them during a trace.
STOCK: Any = SimpleNamespace(
    rms_norm=mx.fast.rms_norm,
    rope=mx.fast.rope,
    softmax=mx.softmax,
    argpartition=mx.argpartition,
    take_along_axis=mx.take_along_axis,
    sum=mx.sum,
    stop_gradient=mx.stop_gradient,
    put=mx.array.__setitem__,
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


def add_norm(x: mx.array, y: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """(x + y, its RMS norm), of [B, 1, N] and a weight [N] of one dtype."""
    backend = launches.backend()
    if not backend:
        both = mx.add(x, y)
        return both, STOCK.rms_norm(both, weight, eps)
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


class Routed(NamedTuple):
    """To which experts a token goes: where the k largest of a softmax are, as uint32, what they
    are, and each over their sum, all [.., k]; twice: the indices, and then the same plus the number
    of experts, [.., 2 k]."""

    indices: mx.array
    scores: mx.array
    shares: mx.array
    twice: mx.array


def route(x: mx.array, k: int, first: bool) -> Routed:
    """The k largest of softmax(x [.., E]), the largest first or last. E <= 1024."""
    backend = launches.backend()
    if backend:
        return Routed(*_route(backend, x.shape, x.dtype, k, first)([x]))
    scores = STOCK.softmax(x, -1, precise=True)
    kth, part = (k - 1, slice(k)) if first else (-k, slice(-k, None))
    indices = STOCK.argpartition(-scores if first else scores, kth)[..., part]
    scores = STOCK.take_along_axis(scores, indices, -1)
    shares = scores / STOCK.sum(scores, -1, keepdims=True)
    return Routed(indices, scores, shares, mx.concatenate([indices, indices + x.shape[-1]], -1))


def mix(y: mx.array, scores: mx.array) -> mx.array:
    """The sum [.., N] of y [.., K, N] times scores [.., K, 1] over K."""
    backend = launches.backend()
    if not backend:
        out: mx.array = STOCK.sum(mx.multiply(y, scores), -2)
        return out
    (made,) = _mix(backend, y.shape, y.dtype)([y, scores])
    return made


def _turned(heads: Heads, rope: Rope) -> mx.array:
    """In MLX's own operations."""
    x = heads.whole[..., heads.first : heads.first + heads.heads * heads.size]
    x = mx.reshape(x, (x.shape[0], heads.heads, 1, heads.size))
    if heads.norm is not None:
        x = STOCK.rms_norm(x, *heads.norm)
    dims, *others = rope
    turned: mx.array = STOCK.rope(x, dims, **dict(zip(Rope._fields[1:], others, strict=True)))
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


@functools.lru_cache(64)
def _route(backend: str, shape: tuple[int, ...], dtype: mx.Dtype, k: int, first: bool) -> Run:
    *rows, width = shape
    made = (*rows, k)
    outputs = {"indices": made, "scores": made, "shares": made, "twice": (*rows, 2 * k)}
    kernel = OwnKernel("route", ("logits",), outputs, words=("indices", "twice"))
    threads = -(-width // _WIDTH) * _WIDTH
    numbers = {"E": width, "K": k, "FIRST": first, "THREADS": threads}
    return kernel.on(backend, dtype, {}, numbers, (threads, math.prod(rows)), threads)


@functools.lru_cache(64)
def _mix(backend: str, shape: tuple[int, ...], dtype: mx.Dtype) -> Run:
    *rows, k, width = shape
    kernel = OwnKernel("mix", ("y", "scores"), {"out": (*rows, width)})
    threads = min(_MIXED, -(-width // _WIDTH) * _WIDTH)
    grid = -(-width // threads) * threads, math.prod(rows)
    return kernel.on(backend, dtype, {}, {"K": k, "N": width}, grid, threads)
