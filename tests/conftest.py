"""Shared fixtures: a home for every test, small kernels, and a real tiny mlx-lm model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.qwen3 as qwen3
import platformdirs
import pytest
from mlx.utils import tree_map

import mlx_lm_openevolve
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops.attention.workload import Workload


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty registry for each test, and mlx-lm left as it was found."""
    # What is compiled is content-addressed: all tests and runs share it.
    cache = Path(platformdirs.user_cache_dir("mlx-lm-openevolve"))
    cache.mkdir(parents=True, exist_ok=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").symlink_to(cache)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLX_LM_OPENEVOLVE", raising=False)
    yield tmp_path / "home"
    mlx_lm_openevolve.disable_optimizations()


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


@pytest.fixture
def copy_first() -> Kernel:
    """A kernel that is no attention: it returns the first value row."""
    return Kernel.from_parts(kernel_meta(), {"copy.metal": COPY_FIRST})


@pytest.fixture
def copy_first_folder(copy_first: Kernel, tmp_path: Path) -> Path:
    """The same kernel as a folder."""
    copy_first.save(tmp_path / "copy_first")
    return tmp_path / "copy_first"


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


@pytest.fixture
def tiny_model() -> qwen3.Model:
    """A Qwen3 model of mlx-lm with random bfloat16 weights: 4 query heads, 2 KV heads, D 64."""
    mx.random.seed(0)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(TINY))
    model.update(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters()))
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that `mlx_lm.load` opens: that of examples/tiny_model.py, untrained."""
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root / "examples"))
    try:
        import tiny_model
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("model")
    tiny_model.make(folder, tiny_model.corpus(root), steps=0)
    return folder


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
