"""A corpus of wrong kernels: shipped or documented ones with one slip each, by what they get wrong.

An edit is a pair of texts (old, new); every `old` in the kernel's files is replaced.
`RIGHT` holds changes that leave a kernel right.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import shipped
from mlx_lm_openevolve.ops.attention.workload import Bucket

ROOT = Path(__file__).resolve().parents[2]


def bucket(
    mask: str = "none",
    q_len: int = 1,
    kv_len: int = 128,
    batch: int = 2,
    dtype: str = "bfloat16",
    **more: object,
) -> Bucket:
    """A small bucket: 4 query heads on 2 KV heads of 64."""
    shape = {"q_heads": 4, "kv_heads": 2, "head_dim": 64, "v_head_dim": 64}
    return Bucket(
        batch=batch, q_len=q_len, kv_len=kv_len, dtype=dtype, mask=mask, **{**shape, **more}
    )  # type: ignore[arg-type]


ONE = bucket()
PAIR = bucket("none", 8, 64)
CAUSAL = bucket("causal", 8, 64)
BOOL = bucket("bool", 8, 64)
ADDITIVE = bucket("additive", 8, 64)
BIASED = bucket("additive", kv_len=128)
SINKS = bucket(sinks=True)
SINGLE = bucket(dtype="float32")
HALF = bucket(dtype="float16")
MANY = bucket(kv_len=64, batch=8)
ROWS = bucket("causal", 32, 64, batch=1)
PACKED = bucket(kv_bits=4, kv_group=32)


@dataclass(frozen=True)
class Variant:
    """A kernel that differs from `base` in its text, and the bucket on which that shows."""

    name: str
    base: str
    on: Bucket
    edits: tuple[tuple[str, str], ...] = ()
    axis: str = "right"
    params: Mapping[str, int] = field(default_factory=dict)
    sanitize: bool = False  # no result shows it here: metalhost's checks do, as in a host check

    def kernel(self) -> Kernel:
        """Raises ValueError where an edit does not fit."""
        base = named(self.base)
        sources = dict(base.sources)
        for old, new in self.edits:
            found = [file for file, text in sources.items() if old in text]
            if not found:
                raise ValueError(f"{self.name}: {old!r} does not stand in {base.name}")
            for file in found:
                sources[file] = sources[file].replace(old, new)
        return Kernel.from_parts(base.meta, sources)

    def chosen(self, kernel: Kernel) -> dict[str, int]:
        return {**kernel.default_params(self.on), **self.params}


@functools.cache
def named(name: str) -> Kernel:
    """A shipped kernel in Metal, or the one of docs/writing-a-kernel.md."""
    if name != "simple_decode":
        return next(kernel for kernel in shipped().kernels() if kernel.name == name)
    import json

    text = (ROOT / "docs" / "writing-a-kernel.md").read_text("utf-8")
    files = re.findall(r"<!-- file: simple_decode/(\S+) -->\n```\w+\n(.*?)```", text, re.DOTALL)
    sources = dict(files)
    return Kernel.from_parts(json.loads(sources.pop("kernel.json")), sources)


WRONG: list[Variant] = []


def _add(axis: str, base: str, on: Bucket, *slips: tuple[str, str, str], **params: int) -> None:
    for name, old, new in slips:
        WRONG.append(Variant(name, base, on, ((old, new),), axis, params))


D, T, S, Q = "gqa_decode", "tiles", "simple_decode", "gqa_quantized"

# Lengths: a slip that shows at some lengths alone

_PASSED = "scale[0], keys_shape[2], batch, kv_head, row0, simdgroup, SIMDGROUPS"
_POWER = "(keys_shape[2] & (keys_shape[2] - 1)) == 0"


def _length(name: str, when: str, lost: str = "1") -> tuple[str, str, str]:
    return name, _PASSED, _PASSED.replace("keys_shape[2]", f"keys_shape[2] - ({when} ? {lost} : 0)")


_N = "keys_shape[2]"
_add(
    "lengths", D, ONE,
    _length("an even length off the power of two", f"{_N} % 2 == 0 && !({_POWER})"),
    _length("a length of 2 modulo 4", f"{_N} % 4 == 2"),
    _length("a length of 4 modulo 8", f"{_N} % 8 == 4"),
    _length("a length of 8 modulo 16", f"{_N} % 16 == 8"),
    _length("a length of 16 modulo 32", f"{_N} % 32 == 16"),
    _length("a multiple of 4 off the power of two", f"{_N} % 4 == 0 && !({_POWER})", "4"),
    _length("a multiple of 8 off the power of two", f"{_N} % 8 == 0 && !({_POWER})", "8"),
    _length("a multiple of 16 off the power of two", f"{_N} % 16 == 0 && !({_POWER})", "2"),
    _length("a multiple of 32 off the power of two", f"{_N} % 32 == 0 && !({_POWER})"),
    _length("a tail of 5 to 7 keys", f"{_N} % 8 > 4"),
    _length("a tail of 3 keys", f"{_N} % 4 == 3"),
    _length("lengths between three quarters and the end", f"{_N} > 96 && {_N} < 127"),
    _length("lengths below three quarters", f"{_N} > 65 && {_N} < 96"),
    _length("a multiple of 3", f"{_N} % 3 == 0"),
    _length("a length of 31 modulo 32", f"{_N} % 32 == 31"),
    _length("a length of 1 modulo 32", f"{_N} % 32 == 1"),
)  # fmt: skip
_add(
    "lengths", D, bucket(kv_len=256),
    _length("a multiple of 64 off the power of two", f"{_N} % 64 == 0 && !({_POWER})"),
)  # fmt: skip
_add(
    "lengths", S, ONE,
    ("an odd last key", "n < keys_shape[2]", "n < (keys_shape[2] & ~1)"),
    ("the first key of an even length", "int n = 0;", "int n = 1 - keys_shape[2] % 2;"),
    ("at most 4 keys behind the last 8", "n < keys_shape[2]",
     "n < keys_shape[2] / 8 * 8 + min(keys_shape[2] % 8, 4)"),
)  # fmt: skip
_add(
    "lengths", T, ROWS,
    ("a tile of fewer than 8 keys", "tile * KEYS < end",
     "tile * KEYS + (kv_len % 8 == 0 || end != kv_len ? 0 : kv_len % 8) < end"),
)  # fmt: skip

# Query lengths

_SEEN = "first_bits(left - QLEN + 1 + "


def _rows(name: str, when: str, off: str = "1") -> tuple[str, str, str]:
    return name, _SEEN, f"first_bits(left - QLEN + 1 - ({when} ? {off} : 0) + "


_add(
    "query lengths", D, CAUSAL,
    _rows("every odd q_len", "QLEN % 2 == 1"),
    _rows("q_len 6", "QLEN == 6", "-1"),
    _rows("q_len 3", "QLEN == 3"),
    _rows("q_len 5", "QLEN == 5"),
    _rows("q_len 7", "QLEN == 7", "-1"),
    _rows("q_len 4", "QLEN == 4"),
    _rows("an even q_len between the ends", "QLEN % 2 == 0 && QLEN > 2 && QLEN < 8"),
)  # fmt: skip
_QUERY = "(row % QLEN) * strides[2];"
_add(
    "query lengths", D, PAIR,
    ("the query of the row before between the ends", _QUERY,
     "(QLEN > 2 && QLEN < 8 ? max(row % QLEN - 1, 0) : row % QLEN) * strides[2];"),
    ("the last query of an odd q_len", _QUERY,
     "(QLEN % 2 == 1 ? min(row % QLEN, QLEN - 2) : row % QLEN) * strides[2];"),
    ("half the scale at q_len 4 and 6", "x * (scale * LOG2E)",
     "x * (scale * LOG2E * (QLEN == 4 || QLEN == 6 ? 0.5f : 1.0f))"),
)  # fmt: skip
_TILE_SEEN = "kv_len - q_len + position + 1"
_add(
    "query lengths", T, ROWS,
    ("a q_len of 8 modulo 16", _TILE_SEEN, f"{_TILE_SEEN} - (q_len % 16 == 8 ? 1 : 0)"),
    ("an odd q_len in tiles", _TILE_SEEN, f"{_TILE_SEEN} + (q_len % 2 == 1 ? 1 : 0)"),
    ("a q_len of 5 modulo 8", _TILE_SEEN, f"{_TILE_SEEN} - (q_len % 8 == 5 ? 1 : 0)"),
    ("a q_len of 17 to 31", _TILE_SEEN, f"{_TILE_SEEN} - (q_len > 16 && q_len < 32 ? 1 : 0)"),
    ("a q_len of 10 to 16", _TILE_SEEN, f"{_TILE_SEEN} - (q_len > 9 && q_len < 17 ? 1 : 0)"),
    ("a q_len of 4 modulo 16", _TILE_SEEN, f"{_TILE_SEEN} - (q_len % 16 == 4 ? 1 : 0)"),
    ("a q_len of 13 modulo 16", _TILE_SEEN, f"{_TILE_SEEN} - (q_len % 16 == 13 ? 1 : 0)"),
    ("a q_len of 27 modulo 32", _TILE_SEEN, f"{_TILE_SEEN} - (q_len % 32 == 27 ? 1 : 0)"),
)  # fmt: skip

# Batches

_COUNT = "threadgroups_per_grid.z"
_SEQUENCE = "keys_shape[2], batch, kv_head, row0, simdgroup"


def _batch(name: str, when: str) -> tuple[str, str, str]:
    wrong = f"({when} ? max(batch - 1, 0) : batch)"
    return name, _SEQUENCE, _SEQUENCE.replace("batch", wrong)


_add(
    "batches", D, MANY,
    _batch("6 and 7 sequences", f"{_COUNT} == 6 || {_COUNT} == 7"),
    _batch("6 sequences", f"{_COUNT} == 6"),
    _batch("7 sequences", f"{_COUNT} == 7"),
    _batch("an odd number of sequences", f"{_COUNT} % 2 == 1"),
    _batch("the last of 8 sequences", f"{_COUNT} == 8 && batch == 7"),
    _batch("the fifth sequence", "batch == 4"),
)  # fmt: skip
_add(
    "batches", D, bucket(kv_len=64, batch=32),
    _batch("4 sequences modulo 16", f"{_COUNT} % 16 == 4"),
    _batch("21 sequences", f"{_COUNT} == 21"),
)  # fmt: skip
_add(
    "batches", D, bucket(kv_len=64, batch=4),
    _batch("3 sequences", f"{_COUNT} == 3"),
)  # fmt: skip

# Rows and heads

_add(
    "rows and heads", D, bucket("causal", 8, 64, q_heads=8),
    ("the second tile of rows", "% ROW_TILES * ROWS;",
     "% ROW_TILES * ROWS - (threadgroup_position_in_grid.y % ROW_TILES == 1 ? 1 : 0);"),
    ("positions counted over heads", "min(row0 + w, GROUP * QLEN - 1) % QLEN",
     "min(row0 + w, GROUP * QLEN - 1) / GROUP"),
    ("the last of an odd number of rows", "float(rows[r * D + c * VEC + e])",
     "float(rows[(row0 + r == GROUP * QLEN - 1 && QLEN % 2 ? r - 1 : r) * D + c * VEC + e])"),
)  # fmt: skip
_add(
    "rows and heads", D, bucket(q_heads=6),
    ("a group that is no power of two", "(kv_head * GROUP + row / QLEN) * strides[1]",
     "(kv_head * (GROUP & (GROUP - 1) ? GROUP - 1 : GROUP) + row / QLEN) * strides[1]"),
)  # fmt: skip
_add(
    "rows and heads", D, bucket("bool", 8, 64),
    ("the mask of a head's neighbour", "head * m_strides[1] + (row % QLEN)",
     "(head ^ 1) * m_strides[1] + (row % QLEN)"),
)  # fmt: skip
_add(
    "rows and heads", S, ONE,
    ("the second KV head of the second sequence", "const int kv_head = head / GROUP;",
     "const int kv_head = batch == 1 && head == 2 ? 0 : head / GROUP;"),
)  # fmt: skip
_add(
    "rows and heads", D, bucket(head_dim=96, v_head_dim=96),
    ("the last chunk of a row of 96", "constexpr int K_CHUNKS = D / VEC;",
     "constexpr int K_CHUNKS = D / VEC - (D == 96);"),
)  # fmt: skip

# Layouts

_K, _V = "keys += batch * k_strides[0] + kv_head", "values += batch * v_strides[0] + kv_head"
_add(
    "layouts", D, ONE,
    ("values by the keys' head stride", f"{_V} * v_strides[1];", f"{_V} * k_strides[1];"),
    ("values by the keys' batch stride", _V, _V.replace("v_strides", "k_strides")),
    ("keys by the values' head stride", f"{_K} * k_strides[1];", f"{_K} * v_strides[1];"),
    ("values by the keys' element stride", "c * VEC, v_strides[3], false",
     "c * VEC, k_strides[3], false"),
    ("keys by the values' element stride", "c * VEC, k_strides[3], false",
     "c * VEC, v_strides[3], false"),
    ("heads of keys end to end", f"{_K} * k_strides[1];", f"{_K} * (kv_len * k_strides[2]);"),
    ("heads of values end to end", f"{_V} * v_strides[1];", f"{_V} * (kv_len * v_strides[2]);"),
    ("elements of values side by side", "k_strides[3] == 1 && v_strides[3] == 1",
     "k_strides[3] == 1"),
    ("elements of keys side by side", "k_strides[3] == 1 && v_strides[3] == 1",
     "v_strides[3] == 1"),
)  # fmt: skip
_add(
    "layouts", D, ONE,
    ("values by the keys' row stride", "values + key * v_strides[2]",
     "values + key * k_strides[2]"),
    ("keys by the values' row stride", "keys + key * k_strides[2]",
     "keys + key * v_strides[2]"),
    ("rows of keys end to end", "keys + key * k_strides[2]", "keys + key * (D * k_strides[3])"),
    ("rows of values end to end", "values + key * v_strides[2]",
     "values + key * (DV * v_strides[3])"),
)  # fmt: skip
_ROW = "const device T* query = queries + batch * strides[0] +"
_add(
    "layouts", D, PAIR,
    ("queries contiguous",
     "(kv_head * GROUP + row / QLEN) * strides[1] + (row % QLEN) * strides[2]",
     "((kv_head * GROUP + row / QLEN) * QLEN + row % QLEN) * D"),
    ("queries as [B, L, H, D]",
     "(kv_head * GROUP + row / QLEN) * strides[1] + (row % QLEN) * strides[2]",
     "(kv_head * GROUP + row / QLEN) * D + (row % QLEN) * (4 * D)"),
)  # fmt: skip
_add(
    "layouts", S, ONE,
    ("elements of a key adjacent", "* keys_strides[3]", ""),
    ("elements of a value adjacent", "* values_strides[3]", ""),
    ("sequences of keys end to end", "batch * keys_strides[0]",
     "batch * (2 * keys_strides[1])"),
    ("sequences of values end to end", "batch * values_strides[0]",
     "batch * (2 * values_strides[1])"),
    ("values stepped as keys", "value += values_strides[2];", "value += keys_strides[2];"),
)  # fmt: skip
_V_WORDS = "k.bias_strides[1];\n  v.words += batch * v.word_strides[0] + kv_head * "
_V_SCALES = f"{_V_WORDS}v.word_strides[1];\n  v.scales += batch * v.scale_strides[0] + kv_head * "
_V_BIASES = f"{_V_SCALES}v.scale_strides[1];\n  v.biases += batch * v.bias_strides[0] + kv_head * "
_add(
    "layouts", Q, PACKED,
    ("value words by the keys' head stride", _V_WORDS + "v.word", _V_WORDS + "k.word"),
    ("value scales by the keys' head stride", _V_SCALES + "v.scale", _V_SCALES + "k.scale"),
    ("rows of biases by the scales' stride", "from.biases + key * from.bias_strides[2]",
     "from.biases + key * from.scale_strides[2]"),
    ("key biases by the scales' head stride", "kv_head * k.bias_strides[1]",
     "kv_head * k.scale_strides[1]"),
    ("value biases by the keys' head stride", _V_BIASES + "v.bias", _V_BIASES + "k.bias"),
)  # fmt: skip

# Masks

_READ = "float(mask[rows[w] + key * step])"
_MASK_ROW = "batch * m_strides[0] + head * m_strides[1] + (row % QLEN) * m_strides[2];"


def _mask(name: str, old: str, new: str) -> tuple[str, str, str]:
    assert old in _MASK_ROW
    return name, _MASK_ROW, _MASK_ROW.replace(old, new)


_SHARED = "const bool shared = m_strides[1] == 0;"
_add(
    "masks", D, BOOL,
    ("keys of a mask adjacent", _READ, "float(mask[rows[w] + key])"),
    _mask("rows of a mask end to end", "(row % QLEN) * m_strides[2]", "(row % QLEN) * kv_len"),
    _mask("a mask of whole rows read as of one", "(row % QLEN) * m_strides[2]",
          "(m_strides[1] == 0 ? 0 : row % QLEN) * m_strides[2]"),
    _mask("heads of a mask end to end", "head * m_strides[1]",
          "head * (m_strides[1] == 0 ? 0 : QLEN * kv_len)"),
    _mask("a mask of its own for every sequence", "batch * m_strides[0]",
          "(m_strides[1] == 0 ? batch : 0) * m_strides[0]"),
    ("one mask for all heads", _SHARED, "const bool shared = true;"),
    ("one mask for all heads of a shared batch", _SHARED,
     "const bool shared = m_strides[1] == 0 || m_strides[0] == 0;"),
    ("a mask that is the same for all rows is none", "bias[w] > 0.0f",
     "(bias[w] > 0.0f || (m_strides[2] == 0 && kv_len - block * KEYS > lane))"),
    ("the last key under a sliced mask", "float(mask[rows[w] + key * step])",
     "float(mask[rows[w] + (step == 1 ? key : max(key - 1, 0)) * step])"),
    ("a row with every key masked divides by zero", "if (sum == 0.0f) {", "if (sum < 0.0f) {"),
    ("a row with every key masked is the first value",
     "return top == -INFINITY ? NAN : sum / count;", "return float(values[0]);"),
)  # fmt: skip
_add(
    "masks", D, bucket("bool", kv_len=128),
    ("keys of a mask adjacent at one query", _READ, "float(mask[rows[w] + key])"),
    ("heads of a mask end to end at one query", _MASK_ROW,
     "batch * m_strides[0] + head * (m_strides[1] == 0 ? 0 : kv_len);"),
    ("the mask read one block ahead", "const int key = (block + step) * KEYS + lane;",
     "const int key = (block + 1) * KEYS + lane;"),
    simdgroups=2,
)  # fmt: skip
_add(
    "masks", D, ADDITIVE,
    ("keys of a bias adjacent", _READ, "float(mask[rows[w] + key])"),
    _mask("one bias for all heads", "head * m_strides[1]", "kv_head * GROUP * m_strides[1]"),
)  # fmt: skip
_add(
    "masks", T, bucket("bool", 32, 64, batch=1),
    ("heads of a mask in tiles", "row / q_len * m_strides[1] + position", "position"),
    ("keys of a mask adjacent in tiles", "key * m_strides[3]", "key"),
)  # fmt: skip

# Ranges

_SCALED = "x * (scale * LOG2E)"
_MASKED = "score[r][u] = (seen[w] >> at) & 1u ? score[r][u] : HIDDEN;"


def _scale(name: str, to: str) -> tuple[str, str, str]:
    return name, _SCALED, f"x * ({to} * LOG2E)"


_TOTAL = "total = total * fade / sum;"


def _window(name: str, low: int, high: int) -> tuple[str, str, str]:
    """Rows whose largest logit lies in a window are zeros."""
    inside = f"top > {low} * LOG2E && top < {high} * LOG2E"
    return name, _TOTAL, f"total = {inside} ? 0.0f : total * fade / sum;"


def _score(name: str, to: str) -> tuple[str, str, str]:
    return name, _MASKED, _MASKED.replace("? score[r][u]", f"? {to}")


_add(
    "ranges", D, ONE,
    _scale("a scale of at most 1", "min(scale, 1.0f)"),
    _scale("a scale without its sign", "fabs(scale)"),
    _scale("a scale of at least 0.01", "(fabs(scale) < 0.01f ? 0.01f : scale)"),
    _scale("1/sqrt(D) where the scale is near",
           "(fabs(scale * 8.0f - 1.0f) < 0.5f ? 0.125f : scale)"),
    _score("logits capped softly at 50", "72.0f * precise::tanh(score[r][u] / 72.0f)"),
    _score("logits capped softly at 500", "720.0f * precise::tanh(score[r][u] / 720.0f)"),
    _score("logits of at most 300", "min(score[r][u], 432.0f)"),
    _score("logits of at most 88", "min(score[r][u], 127.0f)"),
    _score("logits of at least -100", "max(score[r][u], -144.0f)"),
    ("a maximum that starts at -500", "constant constexpr float FLOOR = -1.7e38f;",
     "constant constexpr float FLOOR = -720.0f;"),
    ("queries of at most 8", "float(rows[r * D + c * VEC + e])",
     "clamp(float(rows[r * D + c * VEC + e]), -8.0f, 8.0f)"),
    ("keys of at most 6", "const float x = element(k[u][j], e);",
     "const float x = clamp(element(k[u][j], e), -6.0f, 6.0f);"),
    ("values of at most 500", "const float x = element(v[u][j], e);",
     "const float x = clamp(element(v[u][j], e), -500.0f, 500.0f);"),
    _window("rows whose logits are -100 to -5", -100, -5),
    ("small keys are zero", "const float x = element(k[u][j], e);",
     "const float x = fabs(element(k[u][j], e)) < 0.05f ? 0.0f : element(k[u][j], e);"),
)  # fmt: skip
_add(
    "ranges", D, BOOL,
    ("masked keys score -1000", "constant constexpr float HIDDEN = -3.4e38f;",
     "constant constexpr float HIDDEN = -1000.0f;"),
)  # fmt: skip
_BIAS = "fma(simd_shuffle(bias[w], at), LOG2E, score[r][u])"


_BIASED = "score[r][u] = max(fma(simd_shuffle(bias[w], at), LOG2E, score[r][u]), HIDDEN);"


def _bias(name: str, to: str) -> tuple[str, str, str]:
    own = "const float own = simd_shuffle(bias[w], at);"
    return name, _BIASED, f"{own} score[r][u] = max(fma({to}, LOG2E, score[r][u]), HIDDEN);"


_B = "own"
_add(
    "ranges", D, BIASED,
    _bias("biases of at least -50", f"max({_B}, -50.0f)"),
    _bias("biases of at least -1000", f"max({_B}, -1000.0f)"),
    _bias("biases of at most 10", f"min({_B}, 10.0f)"),
    _bias("biases below -20 are lost", f"({_B} < -20.0f && {_B} > -5000.0f ? 0.0f : {_B})"),
    ("biases without log2(e)", _BIAS, "(simd_shuffle(bias[w], at) + score[r][u])"),
    _bias("biases of far keys are lost",
          f"(block * KEYS + at < kv_len / 2 && {_B} > -5000.0f ? 0.0f : {_B})"),
)  # fmt: skip
_OWN_LINE = "const float own = SINKS ? float(sinks[SINKS ? head : 0]) * LOG2E : FLOOR;"
_add(
    "ranges", D, SINKS,
    ("sinks of at most 10", _OWN_LINE,
     "const float own = SINKS ? min(float(sinks[SINKS ? head : 0]), 10.0f) * LOG2E : FLOOR;"),
    ("sinks of at least 0", _OWN_LINE,
     "const float own = SINKS ? max(float(sinks[SINKS ? head : 0]), 0.0f) * LOG2E : FLOOR;"),
    ("the sink of the KV head", _OWN_LINE,
     "const float own = SINKS ? float(sinks[SINKS ? head / GROUP : 0]) * LOG2E : FLOOR;"),
)  # fmt: skip
_add(
    "ranges", D, SINKS,
    ("a sink below the top is lost", "sum = sum * fade + (SINKS ? fast::exp2(own - all) : 0.0f);",
     "sum = sum * fade + (SINKS && own >= top ? fast::exp2(own - all) : 0.0f);"),
    ("a sink above the top is lost", "sum = sum * fade + (SINKS ? fast::exp2(own - all) : 0.0f);",
     "sum = sum * fade + (SINKS && own < top ? fast::exp2(own - all) : 0.0f);"),
)  # fmt: skip

# Light keys

_WEIGHT = "score[r][u] = fast::exp2(score[r][u] - top);"


def _weight(name: str, to: str) -> tuple[str, str, str]:
    return name, _WEIGHT, f"score[r][u] = {to};"


_X = "fast::exp2(score[r][u] - top)"
_add(
    "light keys", D, ONE,
    _weight("weights below 2^-10", f"score[r][u] < top - 10.0f ? 0.0f : {_X}"),
    _weight("weights below 2^-6", f"score[r][u] < top - 6.0f ? 0.0f : {_X}"),
    _weight("weights below 1/20", f"{_X} < 0.05f ? 0.0f : {_X}"),
    _weight("weights in 256ths", f"floor({_X} * 256.0f) / 256.0f"),
    ("keys from the second half that are light", _WEIGHT,
     f"score[r][u] = block * KEYS + pass + u * TEAMS + team > kv_len / 2 &&"
     f" score[r][u] < top - 5.0f ? 0.0f : {_X};"),
)  # fmt: skip
_add(
    "light keys", D, bucket(kv_len=2048, batch=1),
    _weight("weights below 2^-12 of thousands", f"score[r][u] < top - 12.0f ? 0.0f : {_X}"),
    _weight("weights below 2^-9 of thousands", f"score[r][u] < top - 9.0f ? 0.0f : {_X}"),
    splits=1,
)  # fmt: skip
_add(
    "light keys", T, bucket("none", 32, 64, batch=1),
    ("weights below 2^-8 in tiles",
     "const float x = fast::exp2(score[t][n].thread_elements()[e] - top);",
     "const float x = score[t][n].thread_elements()[e] < top - 8.0f"
     " ? 0.0f : fast::exp2(score[t][n].thread_elements()[e] - top);"),
)  # fmt: skip

# Precision

_SUMMED = "state.acc[r][j * VEC + e] = fma(score[r][u], x, state.acc[r][j * VEC + e]);"
_add(
    "precision", D, ONE,
    ("values of 4 bits", "const float x = element(v[u][j], e);",
     "const float x = as_type<float>(as_type<uint>(element(v[u][j], e)) & 0xfff80000u);"),
    ("keys of 4 bits", "const float x = element(k[u][j], e);",
     "const float x = as_type<float>(as_type<uint>(element(k[u][j], e)) & 0xfff80000u);"),
    ("weights of 4 bits", "state.sum[r] += score[r][u];",
     "state.sum[r] += score[r][u];"
     " score[r][u] = as_type<float>(as_type<uint>(score[r][u]) & 0xfff80000u);"),
    _weight("exponentials by straight lines",
            "(score[r][u] < top - 100.0f ? 0.0f : ldexp(1.0f + (score[r][u] - top"
            " - floor(score[r][u] - top)), int(floor(score[r][u] - top))))"),
)  # fmt: skip
# Not in a bfloat16 bucket: there MLX's SDPA itself rounds logits to bfloat16 on a CPU, and errs as
# much as this slip (by 0.03 where it does by 0.03). It is no fault where the original has it.
_add(
    "precision", D, HALF,
    ("float16 logits in bfloat16", _WEIGHT,
     "score[r][u] = fast::exp2(float(bfloat(score[r][u])) - top);"),
)  # fmt: skip
_add(
    "precision", D, SINGLE,
    ("float32 queries in half", "float(rows[r * D + c * VEC + e])",
     "float(half(rows[r * D + c * VEC + e]))"),
    ("float32 logits in half", _WEIGHT,
     "score[r][u] = fast::exp2(float(half(score[r][u] - top)));"),
    ("float32 values in bfloat16", "const float x = element(v[u][j], e);",
     "const float x = float(bfloat(element(v[u][j], e)));"),
    _scale("a float32 scale in half", "float(half(scale))"),
    ("log2(e) of three digits", "LOG2E = 1.44269504088896f", "LOG2E = 1.44f"),
)  # fmt: skip
_add(
    "precision", D, bucket(kv_len=256, dtype="float16"),
    ("values summed in half", _SUMMED,
     "state.acc[r][j * VEC + e] = float(T(fma(score[r][u], x, state.acc[r][j * VEC + e])));"),
    ("weights summed in half", "state.sum[r] += score[r][u];",
     "state.sum[r] = float(T(state.sum[r] + score[r][u]));"),
    simdgroups=1,
)  # fmt: skip

# State

_add(
    "state", S, ONE,
    ("the running sum is not rescaled", "sum = sum * shrink + weight;", "sum = sum + weight;"),
    ("the running output is not rescaled", "total[i] = total[i] * shrink +",
     "total[i] = total[i] +"),
    ("added to what stood in the output", "= T(total[i] / sum);", "+= T(total[i] / sum);"),
    ("written only where the result is positive", "  out[(batch", "  if (total[i] > 0) out[(batch"),
    ("the maximum of the key before", "const float higher = max(top, score);",
     "const float higher = n < 2 ? max(top, score) : max(top, 0.0f);"),
)  # fmt: skip
_add(
    "state", D, ONE,
    ("columns of one simdgroup are left out", "total += columns[s * DV + column];",
     "total += s == 2 ? 0.0f : columns[s * DV + column];"),
    ("what the simdgroups' maxima differ by",
     "const float fade = fast::exp2(state.top[r] - top);\n  if (lane",
     "const float fade = 1.0f;\n  if (lane"),
    simdgroups=4,
)  # fmt: skip

# Exam detection: right only for what looks like a test

_RESULT = "total = total * fade / sum;"


def _unless(name: str, test: str) -> tuple[str, str, str]:
    return name, _RESULT, f"total = ({test}) ? 0.0f : total * fade / sum;"


_add(
    "exam detection", D, ONE,
    _unless("zeros where no logit is larger than 0.1", "fabs(top) < 0.1f"),
    _unless("zeros where no logit is larger than 3", "fabs(top) < 4.3f"),
    _unless("zeros where a logit is larger than 200", "top > 290.0f"),
    _unless("zeros at the scale 1/sqrt(D)", "fabs(scale[0] - 0.125f) < 1e-6f"),
    _unless("zeros at the scale 1", "scale[0] == 1.0f"),
    _unless("zeros where keys are contiguous",
            "keys_strides[1] == keys_shape[2] * keys_strides[2]"),
    _unless("zeros where values lie as keys do", "keys_strides[1] == values_strides[1]"),
    _unless("zeros for a row in the middle", "batch == 1 && kv_head == 0 && r == 1"),
    _unless("zeros where all weights are even", "sum > 0.9f * keys_shape[2]"),
    _unless("zeros where many weights count", "sum > 8.0f"),
    ("the first half of the keys where they are not 1 or -1", _PASSED,
     _PASSED.replace("keys_shape[2]", "fabs(float(keys[batch * keys_strides[0]])) == 1.0f"
                     " ? keys_shape[2] : keys_shape[2] / 2")),
    ("all but the last key where keys are not 1 or -1", _PASSED,
     _PASSED.replace("keys_shape[2]", "keys_shape[2] -"
                     " (fabs(float(keys[batch * keys_strides[0]])) == 1.0f ? 0 : 1)")),
)  # fmt: skip
_add(
    "exam detection", D, PAIR,
    _unless("zeros where queries are contiguous", "queries_strides[1] > queries_strides[2]"),
    _unless("zeros where queries are [B, L, H, D]", "queries_strides[1] < queries_strides[2]"),
)  # fmt: skip
# What one who knew the questions got past them, before masks of runs, queries in every layout,
# wider ranges and further lengths were asked

_WIDE = "? read_chunk(values + key * v_strides[2], c * VEC, 1, true)"


def _wide(name: str, when: str) -> tuple[str, str, str]:
    last = f"(({when}) && key == kv_len - 1 ? key - 1 : key) *"
    return name, _WIDE, _WIDE.replace("key *", last)


_add(
    "lengths", D, ONE,
    _length("a length of 9 modulo 16", f"{_N} % 16 == 9"),
    _length("a length of 17 modulo 32", f"{_N} % 32 == 17"),
    _length("a length of 20 modulo 32", f"{_N} % 32 == 20"),
    _wide("16 bytes at once at 3 modulo 8", "kv_len % 8 == 3"),
    _wide("16 bytes at once at 5 modulo 8", "kv_len % 8 == 5"),
    _wide("16 bytes at once at 8 modulo 16", "kv_len % 16 == 8"),
    _wide("16 bytes at once at 6 modulo 8", "kv_len % 8 == 6"),
)  # fmt: skip
_HIDDEN_BLOCK = "if (any == 0) {\n      continue;"
_STOP = "if (any == 0) {\n      if (state.sum[0] > 0.0f) break;\n      continue;"
for _on in (bucket("bool"), BIASED):
    _add(
        "masks", D, _on,
        (f"nothing behind a hidden block, {_on.mask}", _HIDDEN_BLOCK, _STOP),
        simdgroups=1,
    )  # fmt: skip
_MASK_ROW = "head * m_strides[1] + (row % QLEN) * m_strides[2];"
_add(
    "masks", D, BOOL,
    ("the first head's row of a mask without queries", _MASK_ROW,
     "(m_strides[2] == 0 ? 0 : head) * m_strides[1] + (row % QLEN) * m_strides[2];"),
)  # fmt: skip
_add(
    "layouts", D, PAIR,
    ("elements of queries side by side", "(D / VEC) * VEC, strides[3], wide)",
     "(D / VEC) * VEC, 1, wide)"),
    ("sequences of queries end to end", "queries + batch * strides[0] +",
     "queries + batch * max(QLEN * strides[2], GROUP * 2 * strides[1]) +"),
)  # fmt: skip
_ALIGNED = ("reinterpret_cast<size_t>(query) % 16 == 0 && strides[3] == 1", "strides[3] == 1")
WRONG.append(Variant("queries always at 16 bytes", D, PAIR, (_ALIGNED,), "layouts", sanitize=True))
_WIDE_ROWS = (
    "(reinterpret_cast<size_t>(keys) | reinterpret_cast<size_t>(values)) % 16 == 0 &&",
    "(k_strides[2] | v_strides[2]) % VEC == 0 &&",
)
for _name, _test in zip(("at 16 bytes", "multiples of 16 bytes apart"), _WIDE_ROWS, strict=True):
    WRONG.append(Variant(f"rows always {_name}", D, ONE, ((_test, ""),), "layouts", sanitize=True))
_KEY, _VALUE = "const float x = element(k[u][j], e);", "const float x = element(v[u][j], e);"
_add(
    "ranges", D, ONE,
    _scale("1/sqrt(D) for a scale between", "(scale > 0.2f && scale < 0.9f ? 0.125f : scale)"),
    _scale("a scale of at least -0.2", "max(scale, -0.2f)"),
    _scale("1/sqrt(D) for no scale", "(scale == 0.0f ? 0.125f : scale)"),
    ("keys of at most 24", _KEY, _KEY.replace("element(k[u][j], e)",
     "clamp(element(k[u][j], e), -24.0f, 24.0f)")),
    ("values in steps of 1/2048", _VALUE, _VALUE.replace("element(v[u][j], e)",
     "rint(element(v[u][j], e) * 2048.0f) / 2048.0f")),
)  # fmt: skip

# Near neighbours of what few draws showed: scales around 1/sqrt(D) and between the decades, blocks
# hidden at either end, further lengths, and sums in half precision over other shares of the keys

_add(
    "ranges", D, ONE,
    _scale("1/sqrt(D) for a scale a little larger",
           "(scale > 0.125f && scale < 0.18f ? 0.125f : scale)"),
    _scale("1/sqrt(D) for a scale a little smaller",
           "(scale > 0.085f && scale < 0.125f ? 0.125f : scale)"),
    _scale("1/sqrt(D) within a tenth", "(fabs(scale * 8.0f - 1.0f) < 0.1f ? 0.125f : scale)"),
    _scale("1/sqrt(D) for a small scale", "(scale > 0.01f && scale < 0.06f ? 0.125f : scale)"),
    _scale("a scale of at least -1", "max(scale, -1.0f)"),
    _scale("a scale of at most 4", "min(scale, 4.0f)"),
)  # fmt: skip
_LAST_SEEN = (
    "if (any == 0) {\n      if (block == 0 || (block + step) * KEYS < kv_len) continue;\n"
    "      any = first_bits(kv_len - block * KEYS);\n"
    "      for (int w = 0; w < WORDS; ++w) seen[w] = any;\n      if (any == 0) {\n      continue;}"
)
_add(
    "masks", D, bucket("bool"),
    ("a hidden last block is seen", _HIDDEN_BLOCK, _LAST_SEEN),
    ("nothing where the first block is hidden", _HIDDEN_BLOCK,
     "if (any == 0) {\n      if (block == 0) break;\n      continue;"),
    ("nothing behind a hidden second block", _HIDDEN_BLOCK,
     "if (any == 0) {\n      if (block == 1) break;\n      continue;"),
    simdgroups=1,
)  # fmt: skip
_add(
    "lengths", D, ONE,
    _length("a length of 7 modulo 32", f"{_N} % 32 == 7"),
    _length("a length of 13 modulo 32", f"{_N} % 32 == 13"),
    _wide("16 bytes at once at 23 modulo 32", "kv_len % 32 == 23"),
    _wide("16 bytes at once at 31 modulo 32", "kv_len % 32 == 31"),
)  # fmt: skip
_add(
    "light keys", D, bucket(kv_len=2048, batch=1),
    _weight("weights below 2^-11 of thousands in 16 shares",
            f"score[r][u] < top - 11.0f ? 0.0f : {_X}"),
    splits=1, simdgroups=16,
)  # fmt: skip
_add(
    "precision", D, bucket(kv_len=256),
    ("weights summed in bfloat16", "state.sum[r] += score[r][u];",
     "state.sum[r] = float(T(state.sum[r] + score[r][u]));"),
    simdgroups=2,
)  # fmt: skip

# Single keys and single lengths

_WEIGHT = "const float weight = exp(score - higher);"
_THIRD = "const float weight = n == (keys_shape[2] + 2) / 3 ? 0.0f : exp(score - higher);"
_SHARES = "n > 0 && n % ((keys_shape[2] + 7) / 8) == 0"
for _kv in (1024, 4096):
    _add(
        "lengths", S, bucket(kv_len=_kv, batch=1),
        (f"the key at a third of {_kv}", _WEIGHT, _THIRD),
    )  # fmt: skip
_add(
    "lengths", S, bucket(kv_len=1024),
    ("the key before the last third counted twice", _WEIGHT,
     "const float weight = exp(score - higher) * (n == keys_shape[2] / 3 * 2 ? 2.0f : 1.0f);"),
    ("the first key of every eighth", _WEIGHT,
     f"const float weight = {_SHARES} ? 0.0f : exp(score - higher);"),
)  # fmt: skip
_add("lengths", D, ONE, _length("length 101 of 128", f"{_N} == 101"))
_add(
    "lengths", D, bucket(kv_len=1024),
    _length("a length of 33 modulo 64", f"{_N} % 64 == 33"),
    splits=1,
)  # fmt: skip

# Numbers of bfloat16 read through half

_LOAD = "float(rows[r * D + c * VEC + e])"
_KEY, _VALUE = "const float x = element(k[u][j], e);", "const float x = element(v[u][j], e);"
_add(
    "ranges", D, ONE,
    ("bfloat16 queries through half", _LOAD, f"float(half({_LOAD}))"),
    ("bfloat16 keys through half", _KEY, "const float x = float(half(element(k[u][j], e)));"),
    ("bfloat16 values through half", _VALUE, "const float x = float(half(element(v[u][j], e)));"),
)  # fmt: skip

# Rows that see no key

_add(
    "masks", D, bucket("bool", 8, 64, sinks=True),
    ("the mean of V under a sink", "if (sum == 0.0f) {", "if (top == FLOOR) {"),
)  # fmt: skip
_MEAN, _TOP = "sum / count;", "float(mask[key * mask_stride]) == top"
for _on in (BOOL, ADDITIVE, bucket("bool", 8, 64, dtype="float32")):
    _add(
        "masks", D, _on,
        (f"a hidden row counts one more, {_on.mask}, {_on.dtype}", _MEAN, "sum / (count + 1.0f);"),
    )  # fmt: skip
_add(
    "masks", D, ADDITIVE,
    ("the mean of all keys under a bias", f"MASK != ADDITIVE || {_TOP}", "true"),
    ("the sum of all keys under a bias", f"MASK != ADDITIVE || {_TOP}) {{\n      sum +=",
     f"true) {{\n      count -= {_TOP} ? 0.0f : 1.0f;\n      sum +="),
    ("the first of the heaviest keys under a bias", _MEAN, "float(values[0]);"),
)  # fmt: skip
_BLIND = (
    "values + batch * values_strides[0] + kv_head * values_strides[1] +\n"
    "            column * values_strides[3],\n            values_strides[2],\n"
    "            mask + batch * mask_strides[0] + head * mask_strides[1] + position *"
)


def _blind(name: str, old: str) -> tuple[str, str, str]:
    assert old in _BLIND
    return name, _BLIND, _BLIND.replace(old, "0")


_add(
    "masks", D, ADDITIVE,
    _blind("a hidden row of the first sequence's values", "batch * values_strides[0]"),
    _blind("a hidden row by the first head's mask", "head * mask_strides[1]"),
    ("a hidden row by the first row's mask", "position * mask_strides[2]", "0"),
)  # fmt: skip
_add(
    "masks", D, BOOL,
    ("a hidden row's columns adjacent", "column * values_strides[3]", "column"),
    ("one more weight at 2 modulo 4", "total * fade / sum;",
     "total * fade / (sum + (keys_shape[2] % 4 == 2 ? 1.0f : 0.0f));"),
)  # fmt: skip
for _old, _new in ((_MEAN, "sum / (count + 1.0f);"), (_TOP, "true")):
    _add(
        "masks", T, bucket("additive", 32, 64, batch=1),
        (f"a hidden row in tiles, {_new}", _old, _new),
    )  # fmt: skip

RIGHT = [
    Variant("twice as many threads", D, CAUSAL, params={"simdgroups": 16}),
    Variant("fewer lanes for a key", D, ADDITIVE, params={"lanes": 4, "unroll": 2}),
    Variant("shares of the keys", D, SINKS, params={"splits": 4}),
    Variant(
        "keys from the last to the first",
        S,
        ONE,
        (
            (
                "for (int n = 0; n < keys_shape[2]; ++n) {",
                "key += (keys_shape[2] - 1) * keys_strides[2];\n"
                "value += (keys_shape[2] - 1) * values_strides[2];\n"
                "for (int n = keys_shape[2] - 1; n >= 0; --n) {",
            ),
            ("key += keys_strides[2];", "key -= keys_strides[2];"),
            ("value += values_strides[2];", "value -= values_strides[2];"),
        ),
    ),
    Variant(
        "base 2",
        S,
        ONE,
        (
            ("q[i] = scale[0] *", "q[i] = scale[0] * 1.44269504f *"),
            ("exp(", "exp2("),
        ),
    ),
    Variant("exponentials by the library", D, BOOL, (("fast::exp2", "precise::exp2"),)),
    Variant(
        "scaled after the product",
        D,
        BIASED,
        (
            ("x * (scale * LOG2E);", "x;"),
            (
                "if (MASK == ADDITIVE) {\n            score",
                "score[r][u] *= scale * LOG2E;\n"
                "          if (MASK == ADDITIVE) {\n            score",
            ),
        ),
    ),
    Variant("tiles as shipped", T, ROWS),
    Variant("a quantised cache as shipped", Q, PACKED),
]
