"""What several tests use: small kernels, verdicts, a tiny model's config."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_lm_openevolve import metalhost
from mlx_lm_openevolve.device import detect, fingerprint, release, version_of
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict, gate_version
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.workload import Workload

HOST, DESCRIPTION = metalhost.compiler_available()
# As on a machine with a GPU alone: kernels run on the CPU where a clang compiles them.
needs_clang = pytest.mark.skipif(not HOST, reason=f"no compiler for metalhost: {DESCRIPTION}")


def kernel_meta(**changes: Any) -> dict[str, Any]:
    """A small, valid kernel.json: one thread a head copies V[0]. No attention, on purpose."""
    meta: dict[str, Any] = {
        "format": 2,
        "name": "copy_first",
        "op": "attention",
        "variants": ["float"],
        "origin": "handwritten",
        "applies": "q_len == 1 and head_dim == v_head_dim and mask == 'none' and not sinks",
        "params": {"threads": {"default": "min(32, head_dim)", "values": [16, 32, 64]}},
        "launches": [
            {
                "source": "copy.metal",
                "inputs": ["values"],
                "outputs": [
                    {
                        "name": "out",
                        "shape": ["batch", "q_heads", "q_len", "v_head_dim"],
                        "dtype": "dtype",
                    }
                ],
                "template": {"D": "v_head_dim", "GROUP": "group", "THREADS": "threads"},
                "grid": ["threads", "q_heads", "batch"],
                "threadgroup": ["threads", "1", "1"],
            }
        ],
    }
    return meta | changes


# The oldest that are served, of what can be installed: mlx-lm 0.31.0 was never published.
OLDEST = {"mlx": "0.32.0", "mlx-lm": "0.31.1"}

# What is so of the models of mlx-lm 0.32; Python 3.10 has 0.31 alone.
of_mlx_lm_032 = pytest.mark.skipif(
    release(version_of("mlx-lm")) < (0, 32), reason="about mlx-lm 0.32 and its models"
)

COPY_FIRST = """
    uint head = threadgroup_position_in_grid.y, b = threadgroup_position_in_grid.z;
    uint heads = threadgroups_per_grid.y;
    for (uint d = thread_position_in_threadgroup.x; d < D; d += THREADS) {
        out[(b * heads + head) * D + d] =
            values[b * values_strides[0] + (head / GROUP) * values_strides[1] + d];
    }
"""


TINY = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def timed(ratio: float) -> dict[str, Any]:
    """What a verdict holds of a comparison that the contender won."""
    return {"ratio": ratio, "low": 1.1, "high": ratio, "sealed": {"ratio": ratio, "low": 1.1}}


FINGERPRINT = {"device": "host", "architecture": "x86_64", "mlx": "0.32", "gate": 1, "also": {}}


def accepted(workload: Workload, **changes: Any) -> Verdict:
    """A verdict as a registry holds it, of no kernel that exists."""
    made = Verdict(
        kernel="0123456789ab",
        params={"threads": 32},
        workload=workload.slug,
        correct=True,
        faster=True,
        reason="accepted",
        fingerprint=FINGERPRINT,
        timing=timed(1.5),
    )
    return replace(made, **changes)


def questions(bucket: Any, seed: int = 0, brief: bool = False) -> list[Any]:
    """The gate's questions about a bucket of attention."""
    return [case() for case in OP.questions.cases(bucket, seed, brief)]


@functools.cache
def shipped() -> tuple[Kernel, ...]:
    """The kernels that ship with the package."""
    return tuple(Registry(tuned_root(), writable=False).kernels())


def shipped_in_metal() -> list[Kernel]:
    """The shipped kernels that the host can run: those without a stage native to another
    backend."""
    return [k for k in shipped() if all(stage.language == "metal" for stage in k.specs)]


def launched_in_metal() -> list[tuple[Kernel, dict[str, int], str]]:
    """(kernel, params, slug of a small workload) of every host check that ships in Metal, and of
    the launches that none of them has: those of a kernel whose work is not split."""
    tuned, found = Registry(tuned_root(), writable=False), []
    for kernel in shipped_in_metal():
        records = tuned.host_checks(kernel.id)
        checked = [(kernel, dict(record["params"]), str(record["on"])) for record in records]
        found += checked
        if all(params.get("splits", 1) > 1 for _, params, _ in checked):
            found += [(kernel, {**params, "splits": 1}, on) for _, params, on in checked[:1]]
    return found


def named(name: str) -> Kernel:
    """The shipped kernel of that name."""
    return next(k for k in shipped() if k.name == name)


def judged(kernel: Kernel, bucket: Any, **changes: Any) -> Verdict:
    """A verdict "correct, not faster" of this machine's host, with its default params."""
    made = Verdict(
        kernel=kernel.id,
        params=kernel.default_params(bucket),
        workload=bucket.slug,
        correct=True,
        faster=False,
        reason="stored by a test",
        fingerprint=fingerprint(detect("host"), gate_version(kernel.op)),
    )
    return replace(made, **changes)


def store_correct(home: Path, kernel: Kernel, buckets: Sequence[Any]) -> None:
    """Verdicts "correct, not faster" for this machine's host, as the gate would store them."""
    Registry(home).publish_all("host", [judged(kernel, bucket) for bucket in buckets])


# One thread a result: slow, short, right, and strided as a cache is.
NAIVE = """
const int d = thread_position_in_grid.x;
const int row = thread_position_in_grid.y;
const int head = thread_position_in_grid.z % HEADS;
const int batch = thread_position_in_grid.z / HEADS;
const int kv_len = keys_shape[2];
const device T* q = queries + batch * queries_strides[0] + head * queries_strides[1]
    + row * queries_strides[2];
const device T* k = keys + batch * keys_strides[0] + head / GROUP * keys_strides[1];
const device T* v = values + batch * values_strides[0] + head / GROUP * values_strides[1];
const auto m = mask + batch * mask_strides[0] + head * mask_strides[1] + row * mask_strides[2];
float top = -1e38f, sum = 0.0f, total = 0.0f;
for (int j = 0; j < kv_len; ++j) {
  float score = 0.0f;
  for (int i = 0; i < D; ++i) {
    score += float(q[i * queries_strides[3]]) * float(k[j * keys_strides[2] + i * keys_strides[3]]);
  }
  score *= scale[0];
  bool seen = true;
  if (KIND == 1) {
    seen = j <= kv_len - L + row;
  } else if (KIND == 2) {
    seen = m[j * mask_strides[3]];
  } else if (KIND == 3) {
    const float bias = float(m[j * mask_strides[3]]);
    seen = bias != -INFINITY;  // what an infinity hides has no weight, even where all is hidden
    score = max(score + bias, -1e38f);
  }
  if (seen) {
    const float next = max(top, score);
    const float fade = exp(top - next);
    const float weight = exp(score - next);
    sum = sum * fade + weight;
    total = total * fade + weight * float(v[j * values_strides[2] + d * values_strides[3]]);
    top = next;
  }
}
out[((batch * HEADS + head) * L + row) * DV + d] = T(sum > 0.0f ? total / sum : 0.0f);
"""


def naive(source: str = NAIVE, **changes: object) -> Kernel:
    kind = "0 if mask == 'none' else 1 if mask == 'causal' else 2 if mask == 'bool' else 3"
    meta = {
        "format": 2,
        "name": "naive",
        "op": "attention",
        "variants": ["float"],
        "origin": "handwritten",
        "applies": "not sinks and kv_bits == 0",
        "launches": [
            {
                "source": "naive.metal",
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
                    "DV": "v_head_dim",
                    "L": "q_len",
                    "HEADS": "q_heads",
                    "GROUP": "group",
                    "KIND": kind,
                },
                "grid": ["v_head_dim", "q_len", "batch * q_heads"],
                "threadgroup": ["32", "1", "1"],
            }
        ],
        **changes,
    }
    return Kernel.from_parts(meta, {"naive.metal": source})
