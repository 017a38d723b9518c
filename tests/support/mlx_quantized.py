"""MLX's quantised products on metalhost, launched as MLX's host code launches them.

A Product is one call of a kernel of quantized.h or fp_quantized.h; the host code that this mirrors
is mlx/backend/metal/quantized.cpp. Weights are drawn as words, and unpacked here in float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx_kernels as mlx
import numpy as np
from mlx_kernels import DTYPES, Floats, Out, launch, packed, wide

from mlx_lm_openevolve.metalhost import LaunchResult

# Magnitudes of the 4-bit floats of mxfp4; the eighth bit pattern is their sign.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# The kernels of fp_quantized.h that leave a place for nvfp4's global scale in front of x.
GLOBAL_SCALE = ("qmv", "qmv_fast", "qvm", "qmm_t", "gather_qmv", "gather_qmv_fast")
HEADERS = "".join(
    f'#include "{mlx.KERNELS}/{name}"\n'
    for name in ("utils.h", "steel/gemm/gemm.h", "quantized_utils.h")
)


@dataclass(frozen=True)
class Product:
    """x [m, k] times weights [n, k], or [k, n] where the kernel takes them so (qvm, qmm_n).

    mode: affine or mxfp4. experts: of a gathered product, whose `m` rows take one each.
    """

    kernel: str
    m: int
    n: int
    k: int
    dtype: str = "bfloat16"
    bits: int = 4
    group: int = 64
    mode: str = "affine"
    experts: int = 0

    @property
    def transposed(self) -> bool:
        return not self.kernel.startswith(("qvm", "qmm_n"))

    @property
    def row_vectors(self) -> int:
        """Rows of x that one threadgroup of qmv_wide takes: as few tiles as 5 rows each allow."""
        return -(-self.m // -(-self.m // 5))

    @property
    def split(self) -> int:
        """Parts of K that are summed in a second launch."""
        if self.kernel == "qvm_split_k":
            return 32 if self.k > 8192 else 8
        if self.kernel != "qmm_t_splitk":
            return 1
        align = max(self.group, 32)
        parts = min(512 // (-(-self.n // 32) * -(-self.m // 32)), self.k // align)
        return next(s for s in range(parts, 0, -1) if self.k % (s * align) == 0)

    def __str__(self) -> str:
        kind = self.mode if self.mode != "affine" else f"{self.bits}bit-group{self.group}"
        return f"{self.kernel}-{self.dtype}-{kind}-{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Operands:
    """The arrays of a product. weights: [experts, n, k] or [experts, k, n]; chosen: each row's."""

    x: mx.array
    words: mx.array
    scales: mx.array
    biases: mx.array | None
    chosen: list[int]
    expected: Floats

    @property
    def weights(self) -> dict[str, mx.array]:
        """What the weights consist of, by the kernel's names."""
        arrays = {"w": self.words, "scales": self.scales, "biases": self.biases}
        return {name: a for name, a in arrays.items() if a is not None}


@functools.lru_cache(maxsize=8)
def operands(p: Product, seed: int = 0) -> Operands:
    """Random operands with the product in float64."""
    rng = np.random.default_rng(seed)
    dtype = getattr(mx, p.dtype)
    rows, columns = (p.n, p.k) if p.transposed else (p.k, p.n)
    shape = max(p.experts, 1), rows, columns
    words = mx.array(rng.integers(0, 1 << 32, (*shape[:2], columns * p.bits // 32), np.uint32))
    groups = (*shape[:2], columns // p.group)
    biases = None
    if p.mode == "mxfp4":
        scales = mx.array(rng.integers(125, 129, groups, np.uint8))
    else:
        scale = rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups)
        scales = mx.array((scale / (1 << p.bits)).astype(np.float32)).astype(dtype)
        offset = -scale * rng.uniform(0.3, 0.7, groups)  # the middle of a group is near zero
        biases = mx.array(offset.astype(np.float32)).astype(dtype)
    weights = unpack(words, scales, biases, p.bits)
    x = mx.array(rng.standard_normal((p.m, p.k)).astype(np.float32)).astype(dtype)
    chosen = sorted(rng.integers(0, shape[0], p.m).tolist())
    matrices = weights.swapaxes(1, 2) if p.transposed else weights
    expected = np.stack([row @ matrices[e] for row, e in zip(wide(x), chosen, strict=True)])
    return Operands(x, words, scales, biases, chosen, expected)


def unpack(words: mx.array, scales: mx.array, biases: mx.array | None, bits: int) -> Floats:
    """Weights in float64: the lowest bits of a word come first; without biases they are mxfp4."""
    fields = (np.array(words)[..., None] >> (bits * np.arange(32 // bits, dtype=np.uint32))) & (
        (1 << bits) - 1
    )
    fields = fields.reshape(*words.shape[:-1], -1)
    group = fields.shape[-1] // scales.shape[-1]
    if biases is None:
        values = np.where(fields & 8, -1.0, 1.0) * E2M1[fields & 7]
        return values * np.repeat(2.0 ** (wide(scales) - 127), group, -1)
    return fields * np.repeat(wide(scales), group, -1) + np.repeat(wide(biases), group, -1)


def source(mode: str) -> str:
    """The text of the kernels for a mode."""
    return mlx.text("quantized.h" if mode == "affine" else "fp_quantized.h")


def run(p: Product, text: str | None = None, **options: Any) -> tuple[LaunchResult, Floats]:
    """The launch, and its result [m, n] in float64, partial sums over K added up. text: to run in
    place of MLX's."""
    o = operands(p)
    done = launch(
        HEADERS + (text or source(p.mode)),
        f"{'affine' if p.mode == 'affine' else 'fp'}_{p.kernel}<{_template(p)}>",
        _buffers(p, o),
        **_grid(p),
        **options,
    )
    if not done.outputs:
        return done, np.zeros((0,))
    return done, wide(done.outputs[0]).reshape(p.split, p.m, p.n).sum(0)


def quantize(w: mx.array, bits: int, group: int, mode: str) -> LaunchResult:
    """Words (as bytes), scales and, for affine, biases of w [rows, columns]."""
    affine, t = mode == "affine", DTYPES[str(w.dtype).removeprefix("mlx.core.")]
    scales = Out((w.shape[0], w.shape[1] // group), w.dtype if affine else mx.uint8)
    buffers = {0: w, 1: Out((w.shape[0], w.shape[1] * bits // 8), mx.uint8), 2: scales}
    threads = w.size // max(group // 32, 1)
    return launch(
        HEADERS + source(mode),
        f"{'affine' if affine else 'fp'}_quantize<{t}, {group}, {bits}, false>",
        buffers | ({3: scales} if affine else {}),
        grid=(threads, 1, 1),
        threadgroup=(min(threads, 1024), 1, 1),
    )


def dequantize(p: Product) -> tuple[LaunchResult, Floats]:
    """The weights of a product unpacked by MLX's kernel, and in float64."""
    o = operands(p)
    affine = p.mode == "affine"
    count = o.words.size * 32 // p.bits
    threads = count * p.bits // 8
    done = launch(
        HEADERS + source(p.mode),
        f"{'affine' if affine else 'fp'}_dequantize<{DTYPES[p.dtype]}, {p.group}, {p.bits}, false>",
        {0: o.words, 1: o.scales, 2: o.biases, 3: Out((count,), o.x.dtype)},
        grid=(threads, 1, 1),
        threadgroup=(min(threads, 1024), 1, 1),
    )
    return done, unpack(o.words, o.scales, o.biases, p.bits).reshape(-1)


def _template(p: Product) -> str:
    partial = str(p.n % 8 != 0).lower()
    aligned = str(p.n % 32 == 0).lower()
    batched = "false"
    tails = {
        "qmv": f"{batched}, false, false, 4",
        "qmv_fast": f"{batched}, {partial}, false, 4",
        "qmv_quad": f"{p.k}, {batched}",
        "qmv_wide": f"{p.row_vectors}, {_lanes(p)}, {batched}",
        "qvm": f"{batched}, false",
        "qvm_split_k": f"{p.split}",
        "qmm_t": f"{aligned}, {batched}",
        "qmm_n": f"{batched}",
        "qmm_t_splitk": f"{aligned}",
        "gather_qmv": "false",
        "gather_qmv_fast": "false",
        "gather_qmm_rhs": "16, 32, 32, 1, 2, true",
    }
    return f"{DTYPES[p.dtype]}, {p.group}, {p.bits}, {tails[p.kernel]}"


def _lanes(p: Product) -> int:
    """Lanes that share a row of the weights in qmv_wide."""
    return 8 if p.mode == "affine" else 16


def _grid(p: Product) -> dict[str, Any]:
    def blocks(n: int, size: int) -> int:
        return -(-n // size)

    if p.kernel.startswith("qmm"):
        groups = blocks(p.n, 32), blocks(p.m, 32), p.split
        return {"groups": groups, "threadgroup": (32, 2, 2)}
    if p.kernel == "gather_qmm_rhs":
        # Every expert may end in a tile that it does not fill.
        groups = blocks(p.n, 32), blocks(p.m, 16) + p.experts - 1, 1
        constants = {200: p.m % 16 == 0, 201: p.n % 32 == 0, 202: p.k % 32 == 0}
        return {"groups": groups, "threadgroup": (32, 2, 1), "constants": constants}
    rows, columns = {
        "qmv_quad": (p.m, 64),
        "qmv_wide": (blocks(p.m, p.row_vectors), 2 * 32 // _lanes(p)),
        "qvm": (p.m, 64),
        "qvm_split_k": (p.m, 64),
    }.get(p.kernel, (1 if p.experts else p.m, 8))
    depth = p.m if p.experts else p.split
    simdgroups = 1 if p.kernel == "qmv_quad" else 2
    return {"groups": (rows, blocks(p.n, columns), depth), "threadgroup": (32, simdgroups, 1)}


def _buffers(p: Product, o: Operands) -> dict[int, Any]:
    if p.kernel == "gather_qmm_rhs":
        starts = np.searchsorted(o.chosen, np.arange(p.experts)).astype(np.int32)
        sizes = [packed("i", size) for size in (p.m, p.n, p.k, p.experts)]
        out = Out((p.m, p.n), o.x.dtype)
        arrays: list[Any] = [o.x, o.words, o.scales, o.biases, mx.array(starts)]
        return dict(enumerate([*arrays, out, *sizes]))
    arrays = [o.words, o.scales]
    if o.biases is not None or p.kernel in GLOBAL_SCALE:
        arrays.append(o.biases)
    arrays.append(o.x)
    if p.experts:
        arrays += [mx.arange(p.m, dtype=mx.uint32), mx.array(o.chosen, dtype=mx.uint32)]
    dtype = mx.float32 if p.kernel == "qmm_t_splitk" else o.x.dtype
    arrays.append(Out((p.split, p.m, p.n), dtype))
    depth = -(-p.k // p.split)
    sizes = [packed("i", depth if p.kernel == "qvm_split_k" else p.k), packed("i", p.n)]
    if p.kernel.startswith(("qmm", "qmv_wide")):
        sizes.append(packed("i", p.m))
    if p.kernel == "qmm_t_splitk":
        sizes += [packed("i", depth), packed("i", p.m * p.n)]
    if p.kernel == "qvm_split_k":
        last = packed("i", p.k - depth * (p.split - 1))
        sizes += [*_batch(o, (p.split, p.m, depth), depth), last]
    if p.experts:
        rows = packed("i", 1), packed("i", p.m), packed("q", 1), packed("q", 1)
        sizes += [*_batch(o, (p.m, 1, p.k), o.words.shape[1]), *rows]
    return dict(enumerate([*arrays, *sizes]))


def _batch(o: Operands, x: tuple[int, int, int], rows: int) -> list[bytes]:
    """How x, of that shape, and the weights, in matrices of `rows` rows, lie in one batch
    dimension: number of dimensions, shape and strides of x and words, strides of the others."""
    matrix = packed("3i", x[0], rows, o.words.shape[2])
    strides = [packed("3q", rows * a.shape[2], a.shape[2], 1) for a in o.weights.values()]
    one = packed("i", 1)
    return [one, packed("3i", *x), packed("3q", x[2], x[2], 1), one, matrix, *strides]
