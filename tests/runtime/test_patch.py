from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import mlx_lm.models.base as base
import mlx_lm.models.llama as llama
import mlx_lm.models.qwen3 as qwen3
import pytest

from mlx_lm_openevolve.runtime.patch import Patch

NAME = "scaled_dot_product_attention"


class Stock:
    """Holds mlx-lm's own function where the patch, which looks at modules, does not find it."""

    function = staticmethod(base.scaled_dot_product_attention)


def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return ("replaced", original(*args, **kwargs))

    return replacement


@pytest.fixture
def patch() -> Iterator[Patch]:
    made = Patch(base, NAME, wrap)
    yield made
    made.restore()


@pytest.fixture
def custom_model() -> Iterator[types.ModuleType]:
    """A module that defines a model outside mlx_lm, and remembers the function as `stock` too."""
    module = types.ModuleType("custom_model")
    exec("import mlx.nn as nn\nclass Model(nn.Module):\n    def __call__(self): ...", vars(module))
    setattr(module, NAME, Stock.function)
    module.stock = Stock.function  # type: ignore[attr-defined]
    sys.modules["custom_model"] = module
    yield module
    del sys.modules["custom_model"]


def test_every_module_that_holds_the_function_is_rebound(
    patch: Patch, custom_model: types.ModuleType
) -> None:
    patch.install()
    replaced = base.scaled_dot_product_attention
    assert replaced is not Stock.function
    assert llama.scaled_dot_product_attention is replaced
    assert qwen3.scaled_dot_product_attention is replaced
    assert vars(custom_model)[NAME] is replaced
    assert custom_model.stock is Stock.function, "a variable that remembers it"
    assert "custom_model.stock" in patch.unreached()


def test_no_module_keeps_the_stock_function_but_the_replacement_can_reach_it(patch: Patch) -> None:
    patch.install()
    holders = [
        m
        for m in list(sys.modules.values())
        if getattr(m, "__dict__", {}).get(NAME) is Stock.function
    ]
    assert holders == []
    assert inspect.unwrap(base.scaled_dot_product_attention) is Stock.function


def test_the_signature_is_kept(patch: Patch) -> None:
    before = inspect.signature(Stock.function)
    patch.install()
    assert inspect.signature(base.scaled_dot_product_attention) == before


def test_restore_gives_everything_back_also_to_modules_imported_since(
    patch: Patch, custom_model: types.ModuleType
) -> None:
    patch.install()
    sys.modules.pop("mlx_lm.models.phi", None)
    import mlx_lm.models.phi as late

    assert late.scaled_dot_product_attention is base.scaled_dot_product_attention
    patch.restore()
    for module in (base, llama, qwen3, late):
        assert module.scaled_dot_product_attention is Stock.function
    assert vars(custom_model)[NAME] is custom_model.stock is Stock.function


def test_install_and_restore_are_idempotent(patch: Patch) -> None:
    patch.install()
    replaced = base.scaled_dot_product_attention
    patch.install()
    assert base.scaled_dot_product_attention is replaced
    patch.restore()
    patch.restore()
    assert base.scaled_dot_product_attention is Stock.function


def test_a_foreign_wrapper_is_chained_and_survives(
    patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def foreign(*args: Any, **kwargs: Any) -> Any:
        return "foreign"

    monkeypatch.setattr(base, NAME, foreign)
    patch.install()
    assert base.scaled_dot_product_attention() == ("replaced", "foreign")
    # Modules imported before the foreign patch still hold mlx-lm's own: it is replaced too.
    assert inspect.unwrap(llama.scaled_dot_product_attention) is Stock.function
    assert llama.scaled_dot_product_attention is not Stock.function
    patch.restore()
    assert base.scaled_dot_product_attention is foreign
    assert llama.scaled_dot_product_attention is Stock.function


def test_a_wrapper_put_over_ours_is_left_alone(patch: Patch) -> None:
    patch.install()

    def foreign() -> Any:
        return "foreign"

    setattr(base, NAME, foreign)
    try:
        patch.restore()
        assert base.scaled_dot_product_attention is foreign
        assert llama.scaled_dot_product_attention is Stock.function
    finally:
        setattr(base, NAME, Stock.function)


def test_a_failing_install_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(type):
        def __setattr__(cls, name: str, value: Any) -> None:
            raise RuntimeError("no")

    attend = {"attend": staticmethod(Stock.function), "__module__": llama.__name__}
    monkeypatch.setattr(llama, "Stubborn", Stubborn("Stubborn", (), attend), raising=False)
    patch = Patch(base, NAME, wrap)
    with pytest.raises(RuntimeError):
        patch.install()
    assert not patch.installed
    assert base.scaled_dot_product_attention is Stock.function
    assert llama.scaled_dot_product_attention is Stock.function
