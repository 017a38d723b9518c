"""What several tests use: small kernels, verdicts, a tiny model's config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops.attention.workload import Workload


def kernel_meta(**changes: Any) -> dict[str, Any]:
    """A small, valid kernel.json: one thread a head copies V[0]. No attention, on purpose."""
    meta: dict[str, Any] = {
        "format": 1,
        "name": "copy_first",
        "family": "attention",
        "origin": "handwritten",
        "applies": "q_len == 1 and head_dim == v_head_dim and mask == 'none' and not sinks",
        "params": {"threads": {"default": "min(32, head_dim)", "values": [16, 32, 64]}},
        "stages": [
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
        timing={"ratio": 1.5},
    )
    return replace(made, **changes)


def shipped_in_metal() -> list[Kernel]:
    """The shipped kernels that the host can run: those without a stage native to another
    backend."""
    shipped = Registry(tuned_root(), writable=False).kernels()
    return [k for k in shipped if all(stage.language == "metal" for stage in k.stages)]


def store_correct(home: Path, kernel: Kernel, buckets: list[Workload]) -> None:
    """Verdicts "correct, not faster" for this machine's host, as the gate would store them."""
    from mlx_lm_openevolve.gate.judge import GATE_VERSION

    registry = Registry(home)
    for bucket in buckets:
        registry.publish(
            "host",
            Verdict(
                kernel=kernel.id,
                params=kernel.default_params(bucket),
                workload=bucket.slug,
                correct=True,
                faster=False,
                reason="stored by a test",
                fingerprint=fingerprint(detect("host"), GATE_VERSION),
            ),
        )
