"""Shared fixtures: a home for every test, small kernels, and a real tiny mlx-lm model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.qwen3 as qwen3
import platformdirs
import pytest
from mlx.utils import tree_map
from samples import COPY_FIRST, TINY, kernel_meta, shipped_in_metal, store_correct
from serving import BUCKETS

import mlx_lm_openevolve
from mlx_lm_openevolve.bench import cases, worker
from mlx_lm_openevolve.gate import correctness
from mlx_lm_openevolve.kernels.kernel import Kernel


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty registry for each test, and mlx-lm left as it was found."""
    # What is compiled is content-addressed: all tests and runs share it.
    cache = Path(platformdirs.user_cache_dir("mlx-lm-openevolve"))
    cache.mkdir(parents=True, exist_ok=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").symlink_to(cache)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(correctness, "_drawn", lambda: 0)  # a failure comes again
    for name in ("MLX_LM_OPENEVOLVE", "MLX_LM_OPENEVOLVE_OPS"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "home"
    mlx_lm_openevolve.disable_optimizations()


@pytest.fixture
def decode_kernel() -> Kernel:
    """The shipped kernel that serves the tiny model's decode."""
    return next(k for k in shipped_in_metal() if all(k.applies_to(w) for w in BUCKETS))


@pytest.fixture
def proven(home: Path, decode_kernel: Kernel) -> Kernel:
    """Verdicts "correct" on the host for every bucket of the tiny model's decode."""
    store_correct(home, decode_kernel, BUCKETS)
    return decode_kernel


@pytest.fixture
def copy_first() -> Kernel:
    """A kernel that is no attention: it returns the first value row."""
    return Kernel.from_parts(kernel_meta(), {"copy.metal": COPY_FIRST})


@pytest.fixture
def copy_first_folder(copy_first: Kernel, tmp_path: Path) -> Path:
    """The same kernel as a folder."""
    copy_first.save(tmp_path / "copy_first")
    return tmp_path / "copy_first"


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


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arms of `bench` are run by this process, which has loaded mlx-lm already. That each is a
    process of its own is seen where the commands of docs/command-line.md run."""

    def ask(task: Mapping[str, Any], arm: str) -> dict[str, Any]:
        try:
            return worker.answer({**task, "arm": arm})
        finally:
            mlx_lm_openevolve.disable_optimizations()

    monkeypatch.setattr(cases, "ask", ask)


def pytest_collection_finish() -> None:
    """What patches mlx-lm asks which objects hold its functions: of all there are but those that
    were made while the tests were collected, a million in a run of them all."""
    gc.collect()
    gc.freeze()
