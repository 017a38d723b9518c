"""Whole steps at run time: served where a verdict of this chip accepts a model's structure."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as llama
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from samples import of_mlx_lm_032

import mlx_lm_openevolve as package
from mlx_lm_openevolve.bench import worker
from mlx_lm_openevolve.decode.steps import ALL, GATE_UP, MAX_DECIDED, Steps
from mlx_lm_openevolve.decode.structure import rows_of, slug, structure
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import STEP, Verdict, gate_version
from mlx_lm_openevolve.runtime import session

PROMPT = mx.arange(1, 20)


def accept(home: Path, model: Any, *batches: int, what: str = ALL, gate: str | None = None) -> None:
    """Verdicts that say "correct" of a model's structure on the host."""
    device = detect("host")
    for batch in batches:
        stamp = fingerprint(device, gate or gate_version(STEP))
        name = slug(structure(model), batch)
        verdict = Verdict(what, {}, name, True, None, "correct", stamp, kind=STEP)
        Registry(home).publish(device.slug, verdict)


def enable(**kwargs: Any) -> Any:
    return package.enable_optimizations(require_faster=False, ops=("step",), **kwargs)


def said(model: Any, tokens: int = 20) -> tuple[list[int], list[mx.array]]:
    """Greedy tokens after a prompt, and the caches afterwards."""
    cache = make_prompt_cache(model)
    made = [t for t, _ in generate_step(PROMPT, model, max_tokens=tokens, prompt_cache=cache)]
    trim_prompt_cache(cache, 3)
    made += [t for t, _ in generate_step(PROMPT[:1], model, max_tokens=4, prompt_cache=cache)]
    return made, [c.state[0] for c in cache]


def same(a: tuple[list[int], list[mx.array]], b: tuple[list[int], list[mx.array]]) -> bool:
    return a[0] == b[0] and all(map(mx.array_equal, a[1], b[1]))


def row(model: Any) -> Any:
    return package.get_optimization_info()["models"][structure(model)]


@pytest.fixture
def model() -> Any:
    return architectures.build("llama")


def test_an_accepted_model_is_merged_at_its_first_call(home: Path, model: Any) -> None:
    stock = said(model)
    accept(home, model, 1, 4)
    methods = {cls: vars(cls)["__call__"] for cls in (llama.Model, llama.Attention, llama.MLP)}
    info = enable()
    assert info["models"] == {}
    assert vars(llama.Attention)["__call__"] is methods[llama.Attention], "not called yet"
    assert same(said(model), stock)
    found = row(model)
    assert found["model"] == "mlx_lm.models.llama.Model"
    assert found["recognised"] == found["merged"] == {"Attention": 2, "MLP": 2}
    assert (found["rows"], found["separate"], found["reason"]) == ([1, 3, 4], {}, "")
    package.disable_optimizations()
    assert {cls: vars(cls)["__call__"] for cls in methods} == methods
    assert "__init_subclass__" not in vars(nn.Module)
    assert package.get_optimization_info()["models"] == {}
    assert same(said(model), stock)


def test_without_a_verdict_that_counts_nothing_is_merged(home: Path, model: Any) -> None:
    stock = said(model)
    accept(home, architectures.build("qwen3"), 1)  # of another structure
    accept(home, model, 1, gate="1.1")  # of an older gate
    enable()
    assert same(said(model), stock)
    assert row(model)["merged"] == {}
    assert row(model)["recognised"] == {"Attention": 2, "MLP": 2}
    assert "no verdict" in row(model)["reason"]
    # One that is correct alone serves where faster is asked for as little as a kernel's does.
    accept(home, model, 1)
    package.enable_optimizations(ops=("step",))
    assert same(said(model), stock)
    assert row(model)["merged"] == {}


def test_steps_are_switched_as_a_family_is(
    home: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(home, model, 1)
    for ops, variable, on in (
        (None, "", False),
        (("attention",), "", False),
        (None, "attention", False),
        (None, "attention,step", True),
        (("step",), "attention", False),
    ):
        monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", variable)
        package.enable_optimizations(require_faster=False, gate="stored", ops=ops)
        said(model, 1)
        info = package.get_optimization_info()
        assert bool(info["models"] and row(model)["merged"]) is on
    with pytest.raises(package.errors.UsageError, match="none of attention, linear, step"):
        package.enable_optimizations(ops=("steps",))


TEXT = """
import mlx_lm.models.llama as llama
class Model(llama.Model):
    def __call__(self, inputs, cache=None, input_embeddings=None):
        return super().__call__(inputs, cache, input_embeddings)
"""


def test_a_class_that_is_defined_later_is_reached(
    home: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "defined_later.py").write_text(TEXT)
    stock = said(model)
    import defined_later  # type: ignore[import-not-found]

    later = defined_later.Model(model.args)
    later.update(model.parameters())
    later.eval()
    accept(home, later, 1)
    enable()
    del sys.modules["defined_later"], later
    import defined_later

    later = defined_later.Model(model.args)
    later.update(model.parameters())
    later.eval()
    assert same(said(later), stock)
    assert row(later)["merged"] == {"Attention": 2, "MLP": 2}
    # The model that it contains is no other model: what it does not know stays as it is.
    assert same(said(later), stock)
    assert row(later)["merged"] == {"Attention": 2, "MLP": 2}


@of_mlx_lm_032  # before it a thread has no stream of its own
def test_two_models_and_two_threads(home: Path, model: Any) -> None:
    other = architectures.build("qwen3")
    stock, of_other = said(model), said(other)
    accept(home, model, 1)
    accept(home, other, 1)
    enable()
    found: list[tuple[Any, Any]] = []

    def work(which: Any, want: Any) -> None:
        for _ in range(3):
            found.append((said(which), want))

    threads = [
        threading.Thread(target=work, args=pair)
        for pair in ((model, stock), (other, of_other), (model, stock))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    assert all(same(got, want) for got, want in found)
    assert row(model)["merged"] == row(other)["merged"] == {"Attention": 2, "MLP": 2}


@pytest.fixture
def steps(model: Any) -> Iterator[Steps]:
    made = Steps({slug(structure(model), 1): ALL})
    made.install()
    yield made
    made.restore()


@pytest.mark.slow
def test_a_compiled_step_is_right_before_and_after_merging(model: Any, steps: Steps) -> None:
    tokens = mx.array([[3]])
    want = model(tokens)
    assert not steps.merges.of, "no cache, as in training"

    @mx.compile
    def step(x: mx.array) -> mx.array:
        out: mx.array = model(x, cache=make_prompt_cache(model))
        return out

    assert mx.allclose(step(tokens), want, rtol=0, atol=1e-5)
    assert len(steps.merges.of) == 4
    assert mx.array_equal(model(tokens, cache=make_prompt_cache(model)), want)


def test_a_model_in_training_is_left_alone(model: Any, steps: Steps) -> None:
    model.train()
    model(mx.array([[3]]), cache=make_prompt_cache(model))
    assert not steps.merges.of
    loss = nn.value_and_grad(model, lambda x: model(x).sum())  # type: ignore[attr-defined]
    want = loss(mx.array([[3]]))[1]["model"]["layers"][0]["mlp"]["up_proj"]["weight"]
    model.eval()
    said(model, 1)
    assert steps.merges.of
    got = loss(mx.array([[3]]))[1]["model"]["layers"][0]["mlp"]["up_proj"]["weight"]
    assert mx.array_equal(got, want)
    said(model, 1)
    assert len(steps.merges.of) == 4


def test_weights_that_change_all_the_time_are_left_alone(model: Any, steps: Steps) -> None:
    layer = model.layers[0].mlp.up_proj
    for _ in range(MAX_DECIDED):
        said(model, 1)
        layer.weight = layer.weight + 0
    assert len(steps.merges.of) == 3
    said(model, 1)
    assert not steps.merges.of
    assert "change all the time" in steps.info()[structure(model)]["reason"]


def test_weights_that_layers_share_are_left_alone(model: Any, steps: Steps) -> None:
    model.layers[0].mlp.up_proj.weight = model.layers[1].mlp.up_proj.weight
    said(model, 1)
    found = steps.info()[structure(model)]
    assert found["merged"] == {"Attention": 2}
    assert set(found["separate"]) == {"model.layers.0.mlp", "model.layers.1.mlp"}
    assert all("shares weights" in reason for reason in found["separate"].values())


def test_a_structure_is_all_but_the_values(model: Any) -> None:
    name = structure(model)
    assert name.startswith("llama-2layers-float32-")
    assert structure(architectures.build("llama", seed=1)) == name
    assert structure(architectures.build("llama", mx.bfloat16)) != name
    nn.quantize(model, 32, 4)  # type: ignore[attr-defined]
    packed = structure(model)
    assert packed.startswith("llama-2layers-q4g32-")
    other = architectures.build("llama")
    nn.quantize(other, 64, 4)  # type: ignore[attr-defined]
    assert structure(other) not in (name, packed)


def test_one_verdict_speaks_for_the_rows_above_the_next_lower_power() -> None:
    accepted = {slug("x", 1): ALL, slug("x", 8): GATE_UP, slug("y", 2): ALL}
    assert rows_of("x", accepted) == {1: ALL, **dict.fromkeys((5, 6, 7, 8), GATE_UP)}
    assert rows_of("y", accepted) == {2: ALL}
    assert rows_of("z", accepted) == {}


def test_what_is_merged_is_what_was_accepted_for_so_many_rows(home: Path, model: Any) -> None:
    accept(home, model, 1)
    accept(home, model, 2, what=GATE_UP)
    enable()
    said(model)
    steps = package.runtime.api._active.steps  # type: ignore[union-attr]
    sizes = {
        kind: steps.merges.of[id(getattr(model.layers[0], kind))].sizes
        for kind in ("self_attn", "mlp")
    }
    assert sizes == {"self_attn": {256}, "mlp": {256, 512}}
    # The best of several verdicts on one slug, those that do not serve aside.
    accept(home, model, 2)
    registry, device = Registry(home), detect("host")
    worse = registry.about(device.slug, STEP)[0]
    registry.publish(device.slug, replace(worse, workload=slug(structure(model), 1), correct=False))
    package.disable_optimizations()
    enable()
    said(model)
    assert row(model)["rows"] == [2]


def test_bench_and_run_tell_of_merged_products(home: Path) -> None:
    model = architectures.build("llama", mx.bfloat16)
    settings = {"backend": "host", "require_faster": False, "gate": "stored", "ops": ["step"]}
    task = {"kv_bits": 0, "settings": settings}
    prompt = [list(range(12))]
    assert worker.logits(model, prompt, task)["merged"] is False
    accept(home, model, 1)
    found = worker.logits(model, prompt, task)
    assert found["merged"] is True
    assert 1e-4 < found["patched"] <= 2 * found["stock"] < 0.1, "a whole model's rounding"
    enable()
    said(model, 2)
    info = package.get_optimization_info()
    told = session.totals([{"problem": "", **info}])
    assert told["models"] == info["models"]
    assert session.summary(told) == "the products of 4 layers merged"


def test_what_goes_wrong_while_merging_is_no_concern_of_the_call(
    model: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = said(model, 2)
    model.layers[0].mlp.up_proj.weight = model.layers[0].mlp.up_proj.weight + 0
    with monkeypatch.context() as patch:
        patch.setattr("mlx_lm_openevolve.decode.steps.layers", lambda *_: 1 / 0)
        assert same(said(model, 2), stock)
    assert "division by zero" in steps.info()[structure(model)]["reason"]
    assert same(said(model, 2), stock)
    assert steps.info()[structure(model)]["reason"] == ""
