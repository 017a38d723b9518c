from __future__ import annotations

from pathlib import Path

import pytest

from mlx_lm_openevolve.cli.architectures import Callers, callers, models_folder

DIRECT = [
    "import mlx.core as mx\n\n\ndef f(q):\n    return mx.fast.scaled_dot_product_attention(q)\n",
    "import mlx.core\n\n\n\nmlx.core.fast.scaled_dot_product_attention\n",
    "from mlx.core import fast\n\n\n\nf = fast.scaled_dot_product_attention\n",
    "def f():\n    from mlx.core.fast import scaled_dot_product_attention as a\n\n\n    a(1)\n",
    "import mlx.core.fast as fast\n\n\n\nfast.scaled_dot_product_attention(1)\n",
]
PATCHED = [
    "from .base import scaled_dot_product_attention\n\n\n\nscaled_dot_product_attention(1)\n",
    "from mlx_lm.models.base import (\n    scaled_dot_product_attention,\n)\n\n"
    "scaled_dot_product_attention(1)\n",
    "from . import base\n\n\n\nbase.scaled_dot_product_attention(1)\n",
]
ALIASED = "from mlx_lm.models.base import (\n    scaled_dot_product_attention as a,\n)\n\na(1)\n"
NEITHER = [
    "# mx.fast.scaled_dot_product_attention\n",
    "import mlx.core as mx\n\n\ndef scaled_dot_product_attention(): ...\n",
    "import other as mx\n\n\n\nmx.fast.scaled_dot_product_attention(1)\n",
    "from .base import scaled_dot_product_attention\n\n\n",
    "scaled_dot_product_attention(\n",
]


@pytest.mark.parametrize("source", DIRECT)
def test_a_call_past_the_patch_is_found_with_its_line(source: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(source)
    assert callers(tmp_path) == Callers({}, {"model": (5,)})


@pytest.mark.parametrize("source", PATCHED)
def test_a_call_that_the_patch_reaches_is_told_apart(source: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(source)
    assert callers(tmp_path) == Callers({"model": (5,)}, {})


def test_a_call_under_another_name_is_not_reached_and_named(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(ALIASED)
    assert callers(tmp_path) == Callers({}, {}, {"model": (5,)})


@pytest.mark.parametrize("source", NEITHER)
def test_what_calls_no_attention_is_not_named(source: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(source)
    assert callers(tmp_path) == Callers({}, {})


def test_a_module_may_call_both_and_may_lie_deeper(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(DIRECT[0])  # mlx-lm's own function: neither
    (tmp_path / "family").mkdir()
    relative = PATCHED[0].replace(".base", "..base")
    (tmp_path / "family" / "model.py").write_text(relative + DIRECT[0])
    assert callers(tmp_path) == Callers({"family.model": (5,)}, {"family.model": (10,)})


def test_without_a_folder_the_installed_models_are_read() -> None:
    folder = models_folder()
    assert folder is not None
    assert (folder / "base.py").exists()
    assert callers() == callers(folder)


def test_without_mlx_lm_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert models_folder() is None
    assert callers() == Callers({}, {})
