"""Operations of a layer that one launch makes together, found while the layer is traced.

    h = x + y;  rms_norm(h)                    -> add_norm.metal   h and its norm
    rope(rms_norm(q)), rope(rms_norm(k))       -> norm_rope.metal  both, normed where they are

What a layer calls is watched, not what it is: sums, norms, transpositions and rotations, as they
come. The first of two keeps its own result until the second shows that a kernel makes both, which
then takes its place; who read it before that has read the same. On the CPU MLX's own operations
stand for the kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx

from .. import backends
from ..backends import Run
from ..kernels.kernel import Launch
from ..kernels.spec import LaunchSpec

__all__ = ["Fusing", "Norm", "Rope", "add_norm", "norm_rope"]

_TYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
_WIDTH = 32
_EACH = 4  # numbers of a row that a thread takes, at least
_THREADS = 1024  # of a row at most
_LEAST = 8  # numbers of an array: of fewer Metal makes another address space
_SWAPPED = (0, 2, 1, 3)
# Below what is put over them during a trace.
_STOCK: Any = SimpleNamespace(rms_norm=mx.fast.rms_norm, rope=mx.fast.rope)


class Norm(NamedTuple):
    """An RMS norm: of `x` over its last axis, times `weight` [D]."""

    x: mx.array
    weight: mx.array
    eps: float


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
        # By the id of a result, which is held with them, so that no two have one id.
        self._sums: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
        self._norms: dict[int, tuple[mx.array, Norm]] = {}
        self._swapped: dict[int, tuple[mx.array, mx.array]] = {}
        self._turned: tuple[mx.array, mx.array, Rope] | None = None
        self.places: list[tuple[Any, str, Callable[..., Any]]] = [
            (mx.array, "__add__", self._add),
            (mx.array, "transpose", self._transpose),
            (mx.array, "swapaxes", self._swapaxes),
            (mx.fast, "rms_norm", self._norm),
            (mx.fast, "rope", self._rope),
        ]

    def _add(self, original: Any, x: mx.array, y: Any) -> Any:
        out = original(x, y)
        if isinstance(y, mx.array) and x.shape == y.shape == out.shape and x.dtype == y.dtype:
            self._sums[id(out)] = out, x, y
        return out

    def _transpose(self, original: Any, x: mx.array, *axes: Any) -> Any:
        out = original(x, *axes)
        if axes in (_SWAPPED, (_SWAPPED,), ([*_SWAPPED],)):
            self._swapped[id(out)] = out, x
        return out

    def _swapaxes(self, original: Any, x: mx.array, *axes: Any) -> Any:
        out = original(x, *axes)
        if x.ndim == 4 and sorted(axes) == [1, 2]:
            self._swapped[id(out)] = out, x
        return out

    def _norm(self, original: Any, *args: Any, **named: Any) -> Any:
        if named or len(args) != 3 or not _fits(*args):
            return original(*args, **named)
        x, weight, eps = args
        known = self._sums.get(id(x))
        if known is not None and x.ndim == 3 and x.shape[1] == 1:
            del self._sums[id(x)]
            both, normed = add_norm(known[1], known[2], weight, eps)
            x[...] = both
            return normed
        out = original(x, weight, eps)
        self._norms[id(out)] = out, Norm(x, weight, eps)
        return out

    def _rope(self, original: Any, a: mx.array, dims: int, **named: Any) -> Any:
        out = original(a, dims, **named)
        first, self._turned = self._turned, None
        offset = named.get("offset")
        if named.keys() - {*Rope._fields} or not isinstance(offset, mx.array):
            return out
        rope = Rope(
            dims,
            named["traditional"],
            named.get("base"),
            named["scale"],
            offset,
            named.get("freqs"),
        )
        if not _turns(a, rope):
            return out
        if first is None or not (first[2].like(rope) and _beside(first[1], a)):
            self._turned = out, a, rope
            return out
        of_q, of_k = self._normed(first[1]), self._normed(a)
        if of_q is not None and of_k is not None:
            made = norm_rope(of_q.x, of_k.x, (of_q, of_k), rope)
        else:
            made = norm_rope(first[1], a, None, rope)
        first[0][...] = made[0]
        return made[1]

    def _normed(self, x: mx.array) -> Norm | None:
        """The norm whose result this is, or is a transposition of."""
        _, source = self._swapped.get(id(x), (x, x))
        known = self._norms.get(id(source))
        if known is None:
            return None
        norm = known[1]
        return norm if source is x else norm._replace(x=norm.x.transpose(*_SWAPPED))


def _fits(x: Any, weight: Any, eps: Any) -> bool:
    if not (isinstance(x, mx.array) and isinstance(weight, mx.array) and type(eps) is float):
        return False
    return x.dtype in _TYPES and x.dtype == weight.dtype and weight.size >= _LEAST


def _turns(x: mx.array, rope: Rope) -> bool:
    if x.ndim != 4 or x.shape[2] != 1 or x.dtype not in _TYPES or x.shape[3] < _LEAST:
        return False
    numbers = type(rope.scale) in (int, float) and type(rope.base) in (int, float, type(None))
    offsets = rope.offset.shape in ((), (x.shape[0],))
    freqs = rope.freqs is None or rope.freqs.shape == (rope.dims // 2,)
    return numbers and offsets and freqs and rope.dims % 2 == 0 < rope.dims <= x.shape[3]


def _beside(q: mx.array, k: mx.array) -> bool:
    return q.dtype == k.dtype and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]


def add_norm(x: mx.array, y: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """(x + y, its RMS norm), of [B, 1, N] and a weight [N] of one dtype."""
    backend = _backend()
    if not backend:
        both = mx.add(x, y)
        return both, _STOCK.rms_norm(both, weight, eps)
    both, normed = _add_norm(backend, x.shape, x.dtype, eps)([x, y, weight])
    return both, normed


def norm_rope(
    q: mx.array, k: mx.array, norms: tuple[Norm, Norm] | None, rope: Rope
) -> tuple[mx.array, mx.array]:
    """Queries [B, Hq, 1, D] and keys [B, Hkv, 1, D] of one dtype, turned; normed over D before
    that, by the weights and eps of `norms`, where these are given."""
    backend = _backend()
    if not backend:
        if norms is not None:
            q, k = (_STOCK.rms_norm(x, n.weight, n.eps) for x, n in zip((q, k), norms, strict=True))
        dims, named = (
            rope.dims,
            {key: value for key, value in rope._asdict().items() if key != "dims"},
        )
        return _STOCK.rope(q, dims, **named), _STOCK.rope(k, dims, **named)
    eps = (norms[0].eps, norms[1].eps) if norms else None
    shape, heads = (q.shape[0], q.shape[1], q.shape[3]), k.shape[1]
    varied, given = rope.offset.ndim == 1, rope.freqs is not None
    run = _norm_rope(backend, shape, heads, q.dtype, eps, rope[:4], varied, given)
    weights = [norm.weight for norm in norms] if norms else [q, k]
    offset = rope.offset.reshape(-1)
    q, k = run([q, k, *weights, offset, offset if rope.freqs is None else rope.freqs])
    return q, k


def _backend() -> str:
    """Whose kernels serve here, "" on the CPU."""
    if mx.default_device() != mx.gpu:
        return ""
    return "metal" if mx.metal.is_available() else "cuda"


@functools.lru_cache(64)
def _add_norm(backend: str, shape: tuple[int, ...], dtype: mx.Dtype, eps: float) -> Run:
    rows, _, width = shape
    threads = min(_THREADS, -(-width // (_EACH * _WIDTH)) * _WIDTH)
    kernel = _Kernel("add_norm", ("x", "y", "weight"), {"sum": shape, "normed": shape})
    numbers = {"N": width, "THREADS": threads, "EACH": -(-width // threads)}
    return kernel.on(backend, dtype, {"EPS": eps}, numbers, (threads * rows, 1), threads)


@functools.lru_cache(64)
def _norm_rope(
    backend: str,
    shape: tuple[int, int, int],
    heads: int,
    dtype: mx.Dtype,
    eps: tuple[float, float] | None,
    rope: tuple[int, bool, float | None, float],
    varied: bool,
    given: bool,
) -> Run:
    """shape: batch, heads of queries, head size; heads: of keys; varied: an offset for each
    sequence; given: frequencies are."""
    (batch, of_q, size), (dims, pairs, base, scale) = shape, rope
    kernel = _Kernel(
        "norm_rope",
        ("q", "k", "q_weight", "k_weight", "offset", "freqs"),
        {"q_out": (batch, of_q, 1, size), "k_out": (batch, heads, 1, size)},
    )
    q_eps, k_eps = eps or (0.0, 0.0)
    turn = math.log2(base) if base else 0.0
    constants = {"Q_EPS": q_eps, "K_EPS": k_eps, "SCALE": scale, "LOG2_BASE": turn}
    numbers = {"HQ": of_q, "HK": heads, "D": size, "DIMS": dims, "PAIRS": pairs}
    numbers |= {"NORMS": eps is not None, "OFFSETS": varied, "FREQS": given}
    grid = _WIDTH * (of_q + heads), batch
    return kernel.on(backend, dtype, constants, numbers, grid, _WIDTH)


class _Kernel(NamedTuple):
    """NAME.metal beside this file: its inputs, which are strided views, and its outputs' shapes."""

    name: str
    inputs: tuple[str, ...]
    outputs: dict[str, tuple[int, ...]]

    def on(
        self,
        backend: str,
        dtype: mx.Dtype,
        constants: Mapping[str, float],
        numbers: Mapping[str, int],
        grid: tuple[int, int],
        threads: int,
    ) -> Run:
        """It as a launch of a grid of threads, `threads` of them in a threadgroup."""
        text = Path(__file__).with_name(f"{self.name}.metal").read_text("ascii")
        lines = [f"constexpr float {key} = {float(value)!r}f;" for key, value in constants.items()]
        spec = LaunchSpec(
            file=f"{self.name}.metal",
            source="\n".join([*lines, text]),
            header="",
            language="metal",
            inputs=self.inputs,
            outputs=(),
            template=(),
            grid=(),
            threadgroup=(),
            math_mode="safe",
            when=None,
        )
        kind = _TYPES[dtype]
        outputs = tuple((name, shape, kind) for name, shape in self.outputs.items())
        launch = Launch(spec, (("T", kind), *numbers.items()), (*grid, 1), (threads, 1, 1), outputs)
        made: Run = backends.get(backend).single(launch, self.name, list(self.inputs))
        return made
