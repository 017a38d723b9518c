"""What of mlx-lm is reached, and what is left alone, with models loaded as mlx-lm loads them."""

from __future__ import annotations

import functools
import gc
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.base as base
import mlx_lm.models.llama as llama
import own_code
import pytest
from mlx_lm.models.cache import make_prompt_cache
from serving import attention, close, enable, hits

import mlx_lm_openevolve
from mlx_lm_openevolve.kernels.kernel import Kernel

NAME = "scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def models_of_other_tests_are_gone() -> None:
    """They hold the function for as long as they live."""
    gc.collect()


def step(model: Any) -> tuple[mx.array, int]:
    """Logits of a decode step, and how many of its attention calls a kernel served."""
    cache = make_prompt_cache(model)
    model(mx.arange(19)[None], cache=cache)
    before = hits()
    out = model(mx.array([[7]]), cache=cache)
    mx.eval(out)
    return out, hits() - before


def unreached() -> list[str]:
    """Who holds the original, other than tests in variables of their own."""
    names = mlx_lm_openevolve.get_optimization_info()["ops"]["attention"]["unreached"]
    return [name for name in names if " tests." not in name]


@pytest.mark.parametrize("way", own_code.CODE)
def test_own_code_is_served_loaded_before_and_after(
    proven: Kernel, way: str, tmp_path: Path
) -> None:
    code = own_code.CODE[way]
    before = own_code.load(code, tmp_path / "before")
    want, _ = step(before)
    enable()
    after = own_code.load(code, tmp_path / "after")
    for _ in range(2):
        for model in (before, after):
            found, served = step(model)
            assert served == 2, "both layers"
            assert close(found, want)
        mlx_lm_openevolve.disable_optimizations()
        for model in (before, after):
            found, served = step(model)
            assert served == 0
            assert mx.array_equal(found, want)
        enable()


def test_own_code_gets_the_function_back_that_it_held(tmp_path: Path) -> None:
    stock = [base.scaled_dot_product_attention]
    models = {way: own_code.load(code, tmp_path / way) for way, code in own_code.CODE.items()}
    enable()
    models["late"] = own_code.load(own_code.CODE["star"], tmp_path / "late")
    mlx_lm_openevolve.disable_optimizations()
    for way in ("name", "star", "late"):
        assert own_code.globals_of(models[way])[NAME] is stock[0]
    assert type(models["class attribute"].layers[0].self_attn).attend is stock[0]
    for attend in (
        own_code.globals_of(models["closure"])["attend"],
        models["closure of a layer"].layers[0].self_attn.attend,
    ):
        assert attend.__closure__[0].cell_contents is stock[0]


def test_an_alias_of_own_code_is_left_alone_and_named(tmp_path: Path) -> None:
    """`as` gives the function another name, as a variable that remembers it has."""
    code = own_code.CODE["name"].replace(f"import {NAME}", f"import {NAME} as sdpa")
    model = own_code.load(code.replace(f"= {NAME}(", "= sdpa("), tmp_path)
    stock = [base.scaled_dot_product_attention]
    enable()
    assert own_code.globals_of(model)["sdpa"] is stock[0]
    assert "custom_model.sdpa" in unreached()


HELD = {
    "an instance": (
        own_code._KEPT.replace(f"attention_of(base.{NAME})", "base.{}"),
        "an object of custom_model.Attention",
    ),
    "a default": ("def f(*, function=base.{}): pass\n", "a default of custom_model.f"),
    "a positional default": ("def f(function=base.{}): pass\n", "a default of custom_model.f"),
    "a table": ("table = {{'sdpa': base.{}}}\n", "custom_model.table"),
    "a list in a table": ("table = {{'sdpa': [base.{}]}}\n", "custom_model.table"),
    "a set": ("known = {{base.{}}}\n", "custom_model.known"),
    "a partial": (
        "import functools\npart = functools.partial(base.{})\n",
        "an object of functools.partial",
    ),
    "a closure over a list": (
        "def f(some):\n    return lambda: some\ng = f([base.{}])\n",
        "a closure of custom_model.f.<locals>.<lambda>",
    ),
}


@pytest.mark.parametrize("way", HELD)
def test_who_holds_it_by_another_way_is_left_alone_and_named(way: str, tmp_path: Path) -> None:
    before, name = HELD[way]
    code = own_code._code(before.format(NAME), f"base.{NAME}")
    if way == "an instance":
        code = own_code._code("", "self.attend", before.format(NAME))
    model = own_code.load(code, tmp_path)
    enable()
    assert unreached() == [name]
    del model


def test_a_class_in_a_class_is_reached(proven: Kernel, tmp_path: Path) -> None:
    inside = f"""class Attention(qwen3.Attention):
    class Inner:
        attend = staticmethod(base.{NAME})
    Inner.outer = Inner
"""
    model = own_code.load(own_code._code("", "self.Inner.attend", inside), tmp_path)
    stock = [base.scaled_dot_product_attention]
    enable()
    assert step(model)[1] == 2
    mlx_lm_openevolve.disable_optimizations()
    assert type(model.layers[0].self_attn).Inner.attend is stock[0]


AB = """
import mlx.nn
import mlx_lm_openevolve
from mlx_lm.models import base, llama
stock = base.scaled_dot_product_attention
from mlx_lm.models.base import scaled_dot_product_attention
class Harness:
    function = staticmethod(stock)
def arms(function):
    return lambda *call: function(*call)
arm = arms(stock)
def inside():
    stock = base.scaled_dot_product_attention
    return lambda: stock
inner = inside()
MORE
mlx_lm_openevolve.enable_optimizations(backend="host", gate="stored")
ours = base.scaled_dot_product_attention
assert ours is llama.scaled_dot_product_attention is not stock
assert stock is Harness.function is ours.__wrapped__
assert scaled_dot_product_attention is (ours if models else stock)
assert stock is inner() is arm.__closure__[0].cell_contents
info = mlx_lm_openevolve.get_optimization_info()
print(*info["ops"]["attention"]["unreached"], sep="|")
mlx_lm_openevolve.disable_optimizations()
assert base.scaled_dot_product_attention is llama.scaled_dot_product_attention is stock
assert scaled_dot_product_attention is stock is inner() is Harness.function
assert ours is not stock, "what remembers the patched function keeps it"
"""


@pytest.mark.parametrize("models", [False, True])
def test_a_program_that_compares_stock_with_patched_keeps_both(
    models: bool, tmp_path: Path
) -> None:
    """Also one that defines a model: of it nothing but the global of that very name is replaced."""
    more = f"models = {models}\n" + ("class Model(mlx.nn.Module):\n    def f(self): ...\n" * models)
    script = tmp_path / "compare.py"
    script.write_text(AB.replace("MORE", more))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.strip().split("|"))
    assert {"__main__.stock", "a class __main__.Harness"} <= found
    assert (f"__main__.{NAME}" in found) is not models
    assert "a closure of __main__.arms.<locals>.<lambda>" in found
    assert "a closure of __main__.inside.<locals>.<lambda>" in found


@pytest.fixture
def base_again() -> Iterator[None]:
    """mlx-lm's base as it was, whatever a test loads anew or puts into it."""
    before = list(vars(base).items())
    yield
    mlx_lm_openevolve.disable_optimizations()
    vars(base).update(before)


@pytest.mark.usefixtures("base_again")
def test_a_reload_of_base_is_named_and_reached_by_the_next_enable(proven: Kernel) -> None:
    first = [base.scaled_dot_product_attention]
    enable()
    importlib.reload(base)
    second = [base.scaled_dot_product_attention]
    assert second[0] is not first[0]
    assert unreached() == [f"mlx_lm.models.base.{NAME} (changed since)"]
    llama.scaled_dot_product_attention(**attention())
    assert hits() == 1, "what was loaded before is still served"
    enable()
    assert unreached() == []
    for module in (base, llama):
        before = hits()
        module.scaled_dot_product_attention(**attention())
        assert hits() == before + 1
    mlx_lm_openevolve.disable_optimizations()
    assert base.scaled_dot_product_attention is second[0]
    assert llama.scaled_dot_product_attention is first[0]


def counting(function: Any, seen: list[int]) -> Any:
    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return function(*args, **kwargs)

    return counted


def test_a_foreign_wrapper_in_a_models_module_stays_above(
    proven: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that model's way to the function: what it wraps is replaced, not the wrapper."""
    seen: list[int] = []
    stock = [base.scaled_dot_product_attention]
    foreign = counting(base.scaled_dot_product_attention, seen)
    monkeypatch.setattr(llama, NAME, foreign)
    enable()
    llama.scaled_dot_product_attention(**attention())
    assert (hits(), seen) == (1, [1])
    mlx_lm_openevolve.disable_optimizations()
    assert llama.scaled_dot_product_attention is foreign
    assert mx.array_equal(foreign(**attention()), stock[0](**attention()))


def test_a_foreign_wrapper_in_base_is_wrapped_and_not_counted_twice(
    proven: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(base, NAME, counting(base.scaled_dot_product_attention, seen))
    enable()
    base.scaled_dot_product_attention(**attention(q_len=40, kv_len=40))
    (row,) = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    assert (row["fallbacks"], seen) == (1, [1])


@pytest.mark.usefixtures("base_again")
def test_a_foreign_wrapper_over_ours_is_served_through_and_kept(proven: Kernel) -> None:
    seen: list[int] = []
    stock = [base.scaled_dot_product_attention]
    enable()
    foreign = counting(base.scaled_dot_product_attention, seen)
    setattr(base, NAME, foreign)
    base.scaled_dot_product_attention(**attention())
    assert (hits(), seen) == (1, [1])
    assert unreached() == [f"mlx_lm.models.base.{NAME} (changed since)"]
    mlx_lm_openevolve.disable_optimizations()
    assert base.scaled_dot_product_attention is foreign
    want = stock[0](**attention())
    assert mx.array_equal(base.scaled_dot_product_attention(**attention()), want)
    enable()
    base.scaled_dot_product_attention(**attention())
    assert hits() == 1


def test_who_puts_the_original_back_is_named(proven: Kernel) -> None:
    stock = [base.scaled_dot_product_attention]
    enable()
    setattr(llama, NAME, stock[0])
    assert unreached() == [f"mlx_lm.models.llama.{NAME} (changed since)"]
    enable()
    assert unreached() == []
    llama.scaled_dot_product_attention(**attention())
    assert hits() == 1
    mlx_lm_openevolve.disable_optimizations()
    assert llama.scaled_dot_product_attention is stock[0]


def test_a_module_whose_models_have_no_functions_is_reached(
    proven: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_model.py").write_text(
        f"import mlx_lm.models.llama\nfrom mlx_lm.models.base import {NAME}\n"
        "class Model(mlx_lm.models.llama.Model): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    bare = importlib.import_module("bare_model")
    enable()
    bare.scaled_dot_product_attention(**attention())
    assert hits() == 1
    mlx_lm_openevolve.disable_optimizations()
    assert bare.scaled_dot_product_attention is base.scaled_dot_product_attention
    del sys.modules["bare_model"]


def test_the_models_past_the_patch_are_those_that_status_names() -> None:
    """They call MLX's own function, which takes no cache: nothing would tell training from
    inference there, so that it is left to MLX."""
    from mlx_lm_openevolve.cli.architectures import callers

    assert set(callers().direct) == {"deepseek_v41", "muse_spark", "plamo2"}
    stock = [mx.fast.scaled_dot_product_attention]
    plamo2 = importlib.import_module("mlx_lm.models.plamo2")
    enable()
    assert plamo2.mx is mx
    assert mx.fast.scaled_dot_product_attention is stock[0]
