"""MLX's own Metal attention, run on the CPU, under the gate: it must never be rejected."""

from __future__ import annotations

import itertools

import mlx.core as mx
import mlx_kernels as mlx
import numpy as np
import pytest

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.gate import correctness
from mlx_lm_openevolve.ops import DTYPES
from mlx_lm_openevolve.ops.attention import MASKS, OP, Workload

pytestmark = pytest.mark.skipif(
    bool(backends.get("host").unavailable()), reason="no clang on this machine"
)

_TYPES = {"float16": "float16_t", "bfloat16": "bfloat16_t", "float32": "float"}
_SETTINGS = list(itertools.product(DTYPES, MASKS))


def strides(array: mx.array) -> tuple[int, ...]:
    """Strides in elements; bfloat16 is looked at through its bits."""
    bits = array if array.dtype == mx.float32 else array.view(mx.uint16)
    return tuple(s // bits.itemsize for s in np.asarray(bits).strides)


def sdpa_vector(w: Workload):
    """sdpa_vector.h as a Call, with the arguments of MLX's host code."""
    kind = _TYPES[w.dtype]
    name = f"sdpa_vector<{kind}, {w.head_dim}, {w.v_head_dim}>"
    source = f'#include "{mlx.KERNELS}/utils.h"\n' + mlx.text("sdpa_vector.h")
    constants = {20: w.mask in ("bool", "additive"), 21: False, 22: w.mask == "causal"}
    constants |= {23: w.mask == "bool", 24: w.mask == "additive", 25: w.sinks}

    def call(queries, keys, values, scale, mask, sinks):
        rows = (w.batch, w.q_heads, w.q_len)
        buffers = {
            0: mx.contiguous(queries),
            1: keys,
            2: values,
            3: mlx.Out((*rows, w.v_head_dim), queries.dtype),
            4: mlx.packed("i", w.group),
            5: mlx.packed("i", w.kv_len),
            10: mlx.packed("f", scale.item()),
        }
        for at, slot in ((1, 6), (2, 8)):
            steps = strides(buffers[at])
            # MLX copies what its kernels cannot walk: `kv_copy_unless` in
            # mlx/backend/metal/scaled_dot_product_attention.cpp.
            if steps[3] != 1 or (w.batch > 1 and steps[0] != w.kv_heads * steps[1]):
                buffers[at] = mx.contiguous(buffers[at])
                steps = strides(buffers[at])
            buffers |= {slot: mlx.packed("Q", steps[1]), slot + 1: mlx.packed("Q", steps[2])}
        if mask is not None:
            slot = 11 if w.mask == "bool" else 12
            buffers[slot] = mx.contiguous(mx.broadcast_to(mask, (*rows, w.kv_len)))
            for i, step in enumerate((1, w.kv_len, w.q_len * w.kv_len)):
                buffers[13 + i] = mlx.packed("i", step)
        if sinks is not None:
            buffers |= {16: sinks, 17: mlx.packed("i", w.q_heads)}
        mx.eval([b for b in buffers.values() if isinstance(b, mx.array)])
        launch = mlx.launch(
            source,
            name,
            buffers,
            groups=(w.batch * w.q_heads, w.q_len, 1),
            threadgroup=(1024, 1, 1),
            constants=constants,
        )
        assert launch.ok, launch.findings
        return launch.outputs[0]

    return call


def judged(seed: int, dtype: str, mask: str, count: int) -> str:
    bucket = Workload(1, 4, 2, 8, 64, 64, 64, dtype, mask, sinks=bool(seed % 2))
    cases = itertools.islice(OP.questions.cases(bucket, seed, brief=True), count)
    found = (case() for case in cases)
    return correctness.passes(sdpa_vector, found).reason


# In CI every dtype and every mask once: each setting is a compilation.
IN_CI = (0, 5, 7, 10)


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=[] if n in IN_CI else pytest.mark.slow) for n in range(20)]
)
def test_sdpa_vector_is_never_rejected(seed):
    assert judged(seed, *_SETTINGS[seed % len(_SETTINGS)], count=2) == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("dtype", "mask"), _SETTINGS)
def test_sdpa_vector_is_never_rejected_in_any_setting(seed, dtype, mask):
    assert judged(seed, dtype, mask, count=8) == ""
