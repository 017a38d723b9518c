"""Kernels for the tests of the search: one that is right, and cheats made from it by one edit."""

from __future__ import annotations

from typing import Any

from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.workload import Bucket

CAUSAL = Bucket(1, 4, 2, 8, 64, 64, 64, "float32", "causal")
DECODE = Bucket(1, 4, 2, 1, 128, 64, 64, "bfloat16")
MASKED = Bucket(1, 4, 2, 1, 64, 64, 64, "float32", "bool")

# One simdgroup a query row, a lane every 32nd column.
BODY = """
const int lane = thread_index_in_simdgroup;
const int row = threadgroup_position_in_grid.x;
const int head = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z;
const int kv_len = keys_shape[2];
const device T* q = queries + batch * queries_strides[0] + head * queries_strides[1]
    + row * queries_strides[2];
const device T* k = keys + batch * keys_strides[0] + head / GROUP * keys_strides[1];
const device T* v = values + batch * values_strides[0] + head / GROUP * values_strides[1];
float acc[D / 32];
float top = -1e38f;
float sum = 0.0f;
for (int e = 0; e < D / 32; ++e) {
  acc[e] = 0.0f;
}
for (int j = 0; j < kv_len; ++j) {
  float score = 0.0f;
  for (int i = lane; i < D; i += 32) {
    score += float(q[i * queries_strides[3]])
        * float(k[j * keys_strides[2] + i * keys_strides[3]]);
  }
  score = simd_sum(score) * scale[0];
  if (KIND == 1 && j > kv_len - L + row) {
    continue;
  }
  if (KIND == 2 && !mask[batch * mask_strides[0] + head * mask_strides[1]
                         + row * mask_strides[2] + j * mask_strides[3]]) {
    continue;
  }
  const float next = max(top, score);
  const float fade = exp(top - next);
  const float weight = exp(score - next);
  sum = sum * fade + weight;
  for (int e = 0; e < D / 32; ++e) {
    const int at = (lane + 32 * e) * values_strides[3];
    acc[e] = acc[e] * fade + weight * float(v[j * values_strides[2] + at]);
  }
  top = next;
}
for (int e = 0; e < D / 32; ++e) {
  const float result = sum > 0.0f ? acc[e] / sum : 0.0f;
  out[((batch * HEADS + head) * L + row) * D + lane + 32 * e] = T(result);
}
"""


def kernel(body: str = BODY, *, header: str = "", **changes: Any) -> Kernel:
    """The kernel around a body; `changes` replace fields of its stage."""
    stage: dict[str, Any] = {
        "source": "plain.metal",
        "inputs": ["queries", "keys", "values", "mask", "scale"],
        "outputs": [
            {
                "name": "out",
                "shape": ["batch", "q_heads", "q_len", "v_head_dim"],
                "dtype": "dtype",
            }
        ],
        "template": {
            "T": "dtype",
            "D": "head_dim",
            "L": "q_len",
            "GROUP": "group",
            "HEADS": "q_heads",
            "KIND": "0 if mask == 'none' else 1 if mask == 'causal' else 2",
            "STEP": "step",
        },
        "grid": ["32 * q_len", "q_heads", "batch"],
        "threadgroup": ["32", "1", "1"],
    }
    meta = {
        "format": 2,
        "name": "plain",
        "op": "attention",
        "variants": ["float"],
        "origin": "handwritten",
        "applies": "q_len <= 8 and head_dim == v_head_dim and head_dim % 32 == 0 and not sinks"
        " and mask != 'additive' and kv_bits == 0",
        "params": {"step": {"default": "1", "values": [1, 2, 4]}},
        "launches": [stage | changes],
    }
    return Kernel.from_parts(meta, {"plain.metal": body})


def edited(*edits: tuple[str, str]) -> str:
    """BODY with edits, each of a text that stands in it once."""
    body = BODY
    for old, new in edits:
        assert body.count(old) == 1, old
        body = body.replace(old, new)
    return body


# Right, with 32768 bytes of threadgroup memory at STEP 1, Metal's limit, and 16 more at STEP 2.
THREADGROUP_MEMORY = edited(
    (
        "float sum = 0.0f;",
        """threadgroup float zeros[8188 + 4 * STEP];
zeros[lane] = 0.0f;
float sum = zeros[lane];""",
    )
)

_STORE = "out[((batch * HEADS + head) * L + row) * D + lane + 32 * e] = T(result);"
_WEIGHT = "const float weight = exp(score - next);"
_MASK = """  if (KIND == 2 && !mask[batch * mask_strides[0] + head * mask_strides[1]
                         + row * mask_strides[2] + j * mask_strides[3]]) {
    continue;
  }
"""

# name -> (kernel, workload, the cause it must fail with, words that its finding must hold)
CHEATS: dict[str, tuple[Kernel, Bucket, str, str]] = {
    "writes nothing": (kernel(edited((_STORE, ""))), CAUSAL, "unwritten", "out"),
    "writes half of the columns": (
        kernel(edited((_STORE, "if (e == 0) " + _STORE))),
        CAUSAL,
        "unwritten",
        "out",
    ),
    "replays what stood in the output": (
        kernel(edited(("T(result)", "out[0]"))),
        CAUSAL,
        "uninitialised",
        "",
    ),
    "zeros": (kernel(edited(("T(result)", "T(0.0f * result)"))), CAUSAL, "wrong", "error"),
    "mean of the values": (kernel(edited((_WEIGHT, "const float weight = 1.0f;"))),
                           CAUSAL, "wrong", "error"),
    "takes the query length for the key length": (
        kernel(edited(("j < kv_len; ++j", "j < min(L, kv_len); ++j"))),
        CAUSAL,
        "wrong",
        "error",
    ),
    "the last key is dropped": (
        kernel(edited(("j < kv_len; ++j", "j < kv_len - 1; ++j"))),
        CAUSAL,
        "wrong",
        "",
    ),
    "every head reads the first KV head": (
        kernel(edited(("keys_strides[0] + head / GROUP * keys_strides[1]", "keys_strides[0]"))),
        CAUSAL,
        "wrong",
        "",
    ),
    "causal, one late": (
        kernel(edited(("j > kv_len - L + row", "j > kv_len - L + row + 1"))),
        CAUSAL,
        "wrong",
        "",
    ),
    "the scale is assumed": (
        kernel(edited(("* scale[0]", "* (scale[0] > 0 ? 0.1f : 0.0f)"))),
        CAUSAL,
        "wrong",
        "",
    ),
    "no maximum": (
        kernel(edited(("const float next = max(top, score);", "const float next = 0.0f;"))),
        CAUSAL,
        "wrong",
        "",
    ),
    "right for the benched length alone": (
        kernel(edited(("j < kv_len; ++j", "j < kv_len / 32 * 32; ++j"))),
        CAUSAL,
        "wrong",
        "",
    ),
    "the mask is never read": (
        kernel(edited((_MASK, "")), inputs=["queries", "keys", "values", "scale"]),
        MASKED,
        "static",
        "no launch reads mask",
    ),
    "the mask is read and ignored": (
        kernel(edited(("!mask[", "mask[0] && !mask[0] && mask["))),
        MASKED,
        "wrong",
        "",
    ),
    "the key length is compiled in": (
        kernel(edited(("keys_shape[2]", "64"))),
        CAUSAL,
        "static",
        "keys_shape[2]",
    ),
    "no queries": (
        kernel(inputs=["keys", "values", "mask", "scale"]),
        CAUSAL,
        "static",
        "queries",
    ),
    "reads beyond the cache's length": (
        kernel(edited(("j < kv_len; ++j", "j < kv_len + 2; ++j"))),
        MASKED,
        "out-of-bounds",
        "",
    ),
    "looks for the reference in memory": (
        kernel(edited(("float top = -1e38f;", "float top = -1e38f + 0.0f * float(q[-4096]);"))),
        CAUSAL,
        "out-of-bounds",
        "",
    ),
    "depends on who comes first": (
        kernel(edited(("top = next;\n", "top = next;\n  out[0] = T(float(lane));\n"))),
        CAUSAL,
        "race",
        "",
    ),
    "uninitialised threadgroup memory": (
        kernel(edited(("float sum = 0.0f;", "threadgroup float old[32];\nfloat sum = old[lane];"))),
        CAUSAL,
        "uninitialised",
        "",
    ),
    "writes into its inputs": (
        kernel(edited(("float sum = 0.0f;", "float sum = 0.0f;\nkeys[0] = T(0.0f);"))),
        CAUSAL,
        "compile",
        "",
    ),
    "a barrier for some": (
        kernel(
            edited(
                (
                    "  top = next;\n}\n",
                    "  top = next;\n}\n"
                    "if (lane < 7) threadgroup_barrier(mem_flags::mem_threadgroup);\n",
                )
            )
        ),
        CAUSAL,
        "divergent-barrier",
        "",
    ),
    "a shape that broadcasts": (
        kernel(
            edited(("* L + row) * D", ") * D")),
            outputs=[
                {"name": "out", "shape": ["batch", "q_heads", "1", "v_head_dim"], "dtype": "dtype"}
            ],
            grid=["32", "q_heads", "batch"],
        ),
        CAUSAL,
        "wrong",
        "the output is",
    ),
    "another dtype": (
        kernel(
            edited(("T(result)", "result")),
            outputs=[
                {
                    "name": "out",
                    "shape": ["batch", "q_heads", "q_len", "v_head_dim"],
                    "dtype": "float32",
                }
            ],
        ),
        DECODE,
        "wrong",
        "the output is",
    ),
    "a file of the machine": (
        kernel('#include "/etc/passwd"\n' + BODY),
        CAUSAL,
        "sandbox",
        "",
    ),
    "bfloat16 as float": (
        kernel(edited(("T(result)", "result"))),
        DECODE,
        "strict",
        "",
    ),
    "more threads than a GPU takes": (
        kernel(grid=["2048 * q_len", "q_heads", "batch"], threadgroup=["2048", "1", "1"]),
        CAUSAL,
        "static",
        "threads",
    ),
}  # fmt: skip
