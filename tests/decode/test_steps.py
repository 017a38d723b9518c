"""Whole steps at run time: served where a verdict of this chip accepts a model's structure."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import queue
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as llama
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from samples import of_mlx_lm_032
from serving import close

import mlx_lm_openevolve as package
from mlx_lm_openevolve.bench import worker
from mlx_lm_openevolve.decode import layer as layer_module
from mlx_lm_openevolve.decode import steps as steps_module
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import rows_of, slug, structure
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import ALL, COMPILED, STEP, Verdict, gate_version
from mlx_lm_openevolve.runtime import session
from mlx_lm_openevolve.runtime.patch import installed

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


def test_an_accepted_model_is_compiled_at_its_first_token(home: Path, model: Any) -> None:
    stock = said(model)
    accept(home, model, 1, 4)
    methods = {cls: vars(cls)["__call__"] for cls in (llama.Model, llama.TransformerBlock)}
    info = enable()
    assert info["models"] == {}
    assert vars(llama.TransformerBlock)["__call__"] is methods[llama.TransformerBlock], "not yet"
    assert same(said(model), stock)
    found = row(model)
    assert found["model"] == "mlx_lm.models.llama.Model"
    assert (found["compiled"], found["merged"]) == (2, 4)
    assert (found["rows"], found["separate"], found["reason"]) == ([1, 3, 4], {}, "")
    package.disable_optimizations()
    assert {cls: vars(cls)["__call__"] for cls in methods} == methods
    assert "__init_subclass__" not in vars(nn.Module)
    assert package.get_optimization_info()["models"] == {}
    assert same(said(model), stock)


def test_without_a_verdict_that_counts_nothing_is_compiled(home: Path, model: Any) -> None:
    stock = said(model)
    accept(home, architectures.build("qwen3"), 1)  # of another structure
    accept(home, model, 1, gate="1.1")  # of an older gate
    enable()
    assert same(said(model), stock)
    assert row(model)["compiled"] == 0
    assert "no verdict" in row(model)["reason"]
    # One that is correct alone serves where faster is asked for as little as a kernel's does.
    accept(home, model, 1)
    package.enable_optimizations(ops=("step",))
    assert same(said(model), stock)
    assert row(model)["compiled"] == 0


def test_steps_are_switched_as_a_family_is(
    home: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(home, model, 1)
    for ops, variable, on in (
        (None, "", True),  # a verdict accepts something
        (("attention",), "", False),
        (None, "attention", False),
        (None, "attention,step", True),
        (("step",), "attention", False),
    ):
        monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", variable)
        package.enable_optimizations(require_faster=False, gate="stored", ops=ops)
        said(model, 1)
        info = package.get_optimization_info()
        assert bool(info["models"] and row(model)["compiled"]) is on
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
    # The model that it contains is no other model: what it does not know stays as it is.
    assert same(said(later), stock)
    assert row(later)["compiled"] == 2


def test_a_model_in_a_model(home: Path, model: Any) -> None:
    """As language models in others: both are accepted, and each layer is compiled once."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language_model, self.layers, self.args = model, model.layers, model.args

        def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
            out: mx.array = self.language_model(inputs, cache)
            return out

    outer = Model()
    outer.eval()
    stock = said(model, 4)
    accept(home, model, 1)
    accept(home, outer, 1)
    enable()
    memory = mx.get_active_memory()
    for one in (outer, model, outer):
        assert same(said(one, 4), stock)
        assert row(one)["compiled"] == 2
        gc.collect()
    assert mx.get_active_memory() - memory < model.layers[0].mlp.up_proj.weight.nbytes / 2


def test_a_layer_that_is_as_it_was_in_a_model_that_is_not(model: Any, steps: Steps) -> None:
    """What was accepted is the whole."""
    said(model, 2)
    assert [bool(layer.splits) for layer in steps.layers.values()] == [True, True]
    nn.quantize(model.layers[0], 32, 4)  # type: ignore[attr-defined]
    for _ in range(2):
        said(model, 2)
        assert not any(layer.splits for layer in steps.layers.values())


def test_a_kernel_serves_between_the_halves(home: Path, tiny_model: Any, proven: Any) -> None:
    tiny_model.eval()
    stock = said(tiny_model, 4)
    accept(home, tiny_model, 1)
    package.enable_optimizations(
        backend="host", require_faster=False, gate="stored", ops=("attention", "linear", "step")
    )
    found = said(tiny_model, 4)
    assert row(tiny_model)["compiled"] == 2
    assert all(map(functools.partial(close, limit=0.02), found[1], stock[1]))
    rows = package.get_optimization_info()["workloads"].values()
    assert sum(r["hits"] for r in rows) >= 2 * 4


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
    assert row(model)["compiled"] == row(other)["compiled"] == 2, (row(model), row(other))


@pytest.fixture
def steps(model: Any) -> Iterator[Steps]:
    made = Steps({slug(structure(model), 1): ALL})
    made.install()
    yield made
    made.restore()


def compiled(steps: Steps) -> int:
    return sum(row["compiled"] for row in steps.info().values())


@pytest.mark.slow
def test_a_step_that_the_user_traces_is_right_before_and_after(
    model: Any, steps: Steps, tmp_path: Path
) -> None:
    tokens, x = mx.array([[3]]), mx.random.normal((1, 1, 256))
    want = model(tokens)
    assert not compiled(steps), "no cache, as in training"

    def step(x: mx.array, tokens: mx.array = tokens) -> mx.array:
        more = {"input_embeddings": x} if x.ndim == 3 else {}
        out: mx.array = model(tokens, cache=make_prompt_cache(model), **more)
        return out

    first = mx.compile(lambda x: step(x, x))
    assert mx.allclose(first(tokens), want, rtol=0, atol=1e-5)
    for _ in range(2):
        assert mx.allclose(mx.compile(lambda x: step(x, x))(tokens), want, rtol=0, atol=1e-5)
    assert compiled(steps) == 2
    file = str(tmp_path / "step.mlxfn")
    turns: list[Any] = [
        lambda: mx.grad(lambda x: step(x).sum())(x),
        lambda: mx.jvp(step, [x], [x])[1][0],
        lambda: mx.vmap(step)(mx.stack([x, 2 * x])),
        lambda: mx.grad(mx.checkpoint(lambda x: step(x).sum()))(x),
        lambda: mx.export_function(file, step, x) or mx.import_function(file)(x)[0],
    ]
    ours = [turn() for turn in turns]
    mx.eval(ours)  # before the file is another one
    assert compiled(steps) == 2
    with steps.switched(on=False):
        for a, turn in zip(ours, turns, strict=True):
            assert mx.allclose(a, turn(), rtol=1e-4, atol=1e-5)


def test_a_model_in_training_is_left_alone(model: Any, steps: Steps) -> None:
    model.train()
    model(mx.array([[3]]), cache=make_prompt_cache(model))
    assert not steps.info()[structure(model)]["rows"]
    loss = nn.value_and_grad(model, lambda x: model(x).sum())  # type: ignore[attr-defined]
    want = loss(mx.array([[3]]))[1]["model"]["layers"][0]["mlp"]["up_proj"]["weight"]
    model.eval()
    said(model, 1)
    assert compiled(steps) == 2
    got = loss(mx.array([[3]]))[1]["model"]["layers"][0]["mlp"]["up_proj"]["weight"]
    assert mx.array_equal(got, want)
    said(model, 1)
    assert compiled(steps) == 2


def test_weights_that_change_all_the_time_are_left_alone(
    model: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_lm_openevolve.decode.steps.MAX_DECIDED", 3)
    layer = model.layers[0].mlp.up_proj
    for _ in range(3):
        said(model, 1)
        assert compiled(steps) == 2
        layer.weight = layer.weight + 0
    said(model, 1)
    assert not compiled(steps)
    assert "changes all the time" in steps.info()[structure(model)]["reason"]


def scale(layer: Any) -> None:
    layer.self_attn.scale *= 2


def rope(layer: Any) -> None:
    layer.self_attn.rope.base = 99.0


def wrapper(layer: Any) -> None:
    class Twice(nn.Module):
        def __init__(self, of: Any) -> None:
            super().__init__()
            self.of = of

        def __call__(self, x: mx.array) -> mx.array:
            out: mx.array = 2 * self.of(x)
            return out

    layer.mlp = Twice(layer.mlp)
    layer.mlp.eval()


def past_its_methods(layer: Any) -> None:
    dict.__setitem__(layer.mlp.down_proj, "weight", 2 * layer.mlp.down_proj.weight)
    vars(layer.self_attn)["scale"] *= 2


def by_a_compiled_function(layer: Any) -> None:
    down = layer.mlp.down_proj
    double = mx.compile(
        lambda: down.update({"weight": 2 * down.weight}), inputs=down.state, outputs=down.state
    )
    double()
    double()  # traces no more: MLX alone writes


@pytest.mark.parametrize("change", [scale, rope, wrapper, past_its_methods, by_a_compiled_function])
def test_what_else_a_layer_is_made_of_is_seen_too(model: Any, steps: Steps, change: Any) -> None:
    """Numbers, layers in place of others; at the next prompt also what is written to modules past
    their methods."""
    fresh = architectures.build("llama")
    before = said(model, 2)
    assert compiled(steps) == 2
    for one in (model, fresh):
        change(one.layers[1])
    with steps.switched(on=False):
        stock = said(fresh, 2)
    assert not same(before, stock)
    assert same(said(model, 2), stock)
    assert same(said(model, 2), stock)


def test_a_method_in_the_place_of_one_that_tells(
    model: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another library's, which does not call what stood there: each layer looks for itself."""
    fresh = architectures.build("llama")
    said(model, 2)
    cache, plain = make_prompt_cache(model), make_prompt_cache(fresh)
    for i in range(6):
        if i == 4:
            monkeypatch.setattr(nn.Module, "__setitem__", dict.__setitem__)
            for one in (model, fresh):
                down = one.layers[1].mlp.down_proj
                down.update({"weight": 2 * down.weight})
        ours = model(mx.array([[i]]), cache=cache)
        with steps.switched(on=False):
            assert mx.array_equal(ours, fresh(mx.array([[i]]), cache=plain)).item(), i


def test_inputs_of_another_dtype(steps: Steps, model: Any) -> None:
    """As embeddings of images come."""
    x = mx.random.normal((1, 1, 256)).astype(mx.float16)
    with steps.switched(on=False):
        stock = [
            model(mx.array([[0]]), make_prompt_cache(model), a) for a in (x, x.astype(mx.float32))
        ]
    said(model, 1)
    ours = [model(mx.array([[0]]), make_prompt_cache(model), a) for a in (x, x.astype(mx.float32))]
    assert compiled(steps) == 2
    assert all(map(mx.array_equal, ours, stock))


def test_switched_on_and_off_while_another_thread_decodes(home: Path, model: Any) -> None:
    """Whatever it meets in a step, it is a right one."""
    stock, found, done = said(model), list[Any](), threading.Event()
    accept(home, model, 1)

    def work() -> None:
        try:
            while not done.is_set():
                found.append(said(model))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    other = architectures.build("llama", seed=1)
    for _ in range(6):
        enable()
        said(other, 2)
        package.disable_optimizations()
    done.set()
    thread.join()
    assert found
    assert all(same(one, stock) for one in found)


def test_what_one_thread_compiled_another_lets_go(model: Any, steps: Steps) -> None:
    """MLX traces a function anew in each thread: a new one must not meet an old one's trace."""
    other = architectures.build("llama", seed=1)
    with steps.switched(on=False):
        stock = {seed: said(one, 2) for seed, one in enumerate((model, other))}
    given, answers = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()

    def work() -> None:
        while given.get():
            answers.put(said(model, 2))

    mine = [dict(tree_flatten(one.parameters())) for one in (model, other)]
    thread = threading.Thread(target=work)
    thread.start()
    memory = []
    for turn in range(5):
        model.load_weights([(name, a + 0) for name, a in mine[turn % 2].items()])
        mx.eval(model.parameters())
        given.put(True)
        assert same(answers.get(), stock[turn % 2])
        gc.collect()
        memory.append(mx.get_active_memory())
    given.put(False)
    thread.join()
    assert max(memory[2:]) <= memory[1] * 1.01


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
    accepted = {slug("x", 1): ALL, slug("x", 8): COMPILED, slug("y", 2): ALL}
    assert rows_of("x", accepted) == {1: ALL, **dict.fromkeys((5, 6, 7, 8), COMPILED)}
    assert rows_of("y", accepted) == {2: ALL}
    assert rows_of("z", accepted) == {}


def test_what_serves_is_what_was_accepted_for_so_many_rows(home: Path, model: Any) -> None:
    accept(home, model, 1)
    accept(home, model, 2, what=COMPILED)
    enable()
    said(model)
    steps = package.runtime.api._active.steps  # type: ignore[union-attr]
    assert {tuple(layer.rows.items()) for layer in steps.layers.values()} == {
        ((1, ALL), (2, COMPILED))
    }
    # The best of several verdicts on one slug, those that do not serve aside.
    accept(home, model, 2)
    registry, device = Registry(home), detect("host")
    worse = registry.about(device.slug, STEP)[0]
    registry.publish(device.slug, replace(worse, workload=slug(structure(model), 1), correct=False))
    package.disable_optimizations()
    enable()
    said(model)
    assert row(model)["rows"] == [2]


def test_bench_and_run_tell_of_compiled_layers(home: Path) -> None:
    model = architectures.build("llama", mx.bfloat16)
    settings = {"backend": "host", "require_faster": False, "gate": "stored", "ops": ["step"]}
    task = {"kv_bits": 0, "settings": settings}
    prompt = [list(range(12))]
    assert worker.logits(model, prompt, task)["compiled"] is False
    accept(home, model, 1)
    found = worker.logits(model, prompt, task)
    assert found["compiled"] is True
    assert 1e-4 < found["patched"] <= 2 * found["stock"] < 0.1, "a whole model's rounding"
    enable()
    said(model, 2)
    info = package.get_optimization_info()
    told = session.totals([{"problem": "", **info}])
    assert told["models"] == info["models"]
    assert session.summary(told) == "2 layers compiled"
    # A command's model is gone when its process tells of it.
    del model
    gc.collect()
    assert package.get_optimization_info()["models"] == info["models"]


def test_what_goes_wrong_is_no_concern_of_the_call(
    model: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = said(model, 2)
    model.layers[0].mlp.up_proj.weight = model.layers[0].mlp.up_proj.weight + 0
    with monkeypatch.context() as patch:
        patch.setattr("mlx_lm_openevolve.decode.steps.Layer", lambda *_: 1 / 0)
        assert same(said(model, 2), stock)
    assert "division by zero" in steps.info()[structure(model)]["reason"]
    assert same(said(model, 2), stock)


class Times(nn.Module):
    """A layer times what is held beside it."""

    def __init__(self, of: Any, by: Any) -> None:
        super().__init__()
        self.of, self.by = of, by

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self.first() * self.of(x)
        return out

    def first(self) -> Any:
        return self.by[0]


class Plus(Times):
    def first(self) -> Any:
        return self.by[0] + 1


class Boxed(Times):
    def first(self) -> Any:
        return self.by.value


class Slotted(Times):
    __slots__ = ("number",)

    def first(self) -> Any:
        return self.number


class Direct(Times):
    def __setitem__(self, key: str, value: Any) -> None:
        dict.__setitem__(self, key, value)


def of_times(cls: type, *held: Any) -> Any:
    model = architectures.build("llama")
    for layer, by in zip(model.layers, held, strict=True):
        layer.mlp = cls(layer.mlp, by)
    model.eval()
    return model


@contextlib.contextmanager
def stepping(*models: Any, way: str = ALL) -> Iterator[Steps]:
    steps = Steps({slug(structure(model), 1): way for model in models})
    with installed([steps]):
        yield steps


def agrees(model: Any, steps: Steps) -> bool:
    """Whether it says what it says with the classes of its layers as they were."""
    ours = said(model, 4)
    with steps.switched(on=False):
        return same(ours, said(model, 4))


@pytest.mark.parametrize("kind", [list, tuple])
def test_numbers_in_lists_are_each_layer_s_own(kind: type) -> None:
    model = of_times(Times, kind([1.0]), kind([2.0]))
    with stepping(model) as steps:
        assert agrees(model, steps)
        assert compiled(steps) == 2
        cache, plain = make_prompt_cache(model), make_prompt_cache(model)
        for i in range(8):  # what is let go leaves its id to the next one
            for number in (i, i + 1):
                model.layers[1].mlp.by = kind([float(number)])
            ours = model(mx.array([[i]]), cache=cache)
            with steps.switched(on=False):
                assert mx.array_equal(ours, model(mx.array([[i]]), cache=plain)).item(), i


@pytest.mark.parametrize("kind", [list, tuple])
def test_arrays_in_lists_are_left_alone(kind: type) -> None:
    model = of_times(Times, *(kind([mx.array(float(i))]) for i in (1, 2)))
    with stepping(model) as steps:
        assert agrees(model, steps)
        model.layers[1].mlp.by = kind([mx.array(3.0)])
        assert agrees(model, steps)
        assert "in a list" in str(row_of(steps)["separate"])


def row_of(steps: Steps) -> Any:
    (found,) = steps.info().values()
    return found


def test_attributes_in_slots_are_left_alone() -> None:
    model = of_times(Slotted, [1.0], [1.0])
    model.layers[0].mlp.number, model.layers[1].mlp.number = 1.0, 2.0
    with stepping(model) as steps:
        assert agrees(model, steps)
        model.layers[1].mlp.number = 3.0
        assert agrees(model, steps)
        assert "slots" in str(row_of(steps)["separate"])


def test_a_class_that_is_written_to_in_a_way_of_its_own_is_left_alone() -> None:
    model = of_times(Direct, [1.0], [1.0])
    with stepping(model) as steps:
        assert agrees(model, steps)
        cache, plain = make_prompt_cache(model), make_prompt_cache(model)
        for i in range(6):
            model.layers[1].mlp["by"] = [float(i)]
            ours = model(mx.array([[i]]), cache=cache)
            with steps.switched(on=False):
                assert mx.array_equal(ours, model(mx.array([[i]]), cache=plain)).item(), i
        assert "a way of its own" in str(row_of(steps)["separate"])


def test_another_class_of_a_layer_is_seen() -> None:
    model = of_times(Times, [1.0], [1.0])
    with stepping(model) as steps:
        assert agrees(model, steps)
        assert compiled(steps) == 2
        model.layers[1].mlp.__class__ = Plus
        assert agrees(model, steps)


def test_a_module_that_only_holds_is_no_change() -> None:
    boxes = [nn.Module(), nn.Module()]
    for i, box in enumerate(boxes):
        box.value = mx.array(float(i + 1))
    model = of_times(Boxed, *boxes)
    with stepping(model) as steps:
        for _ in range(3):
            assert agrees(model, steps)
        assert compiled(steps) == 2
        (found,) = steps._models.values()
        assert found.times == 1


@pytest.mark.parametrize("way", [ALL, COMPILED])
def test_layers_that_hold_one_module_twice(way: str) -> None:
    model = architectures.build("llama")
    attention = model.layers[0].self_attn
    attention.v_proj = attention.k_proj
    with stepping(model, way=way) as steps:
        assert agrees(model, steps)
        assert compiled(steps) == 2


def test_arguments_that_are_given_twice_are_refused_as_ever(model: Any, steps: Steps) -> None:
    said(model, 2)
    cache = make_prompt_cache(model)[0]
    with pytest.raises(TypeError, match="multiple values"):
        model.layers[0](mx.zeros((1, 1, 256)), None, cache, mask=None)
    with pytest.raises(TypeError, match="multiple values"):
        model.layers[0](mx.zeros((1, 1, 256)), None, mask=None)


CLASSES = (nn.Module, llama.Model, llama.TransformerBlock)


def contents() -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(cls).items() if k != "__slotnames__"} for cls in CLASSES]


def test_who_still_calls_a_method_that_was_restored_changes_nothing(model: Any) -> None:
    stock, before = said(model, 2), contents()
    with stepping(model):
        said(model, 2)
        call = llama.Model.__call__
    assert contents() == before
    cache = make_prompt_cache(model)
    for token in (1, 2):
        call(model, mx.array([[token]]), cache=cache)
    assert contents() == before
    assert same(said(model, 2), stock)


@pytest.mark.parametrize("last", [0, 1])
def test_one_over_another_is_restored_in_any_order(model: Any, last: int) -> None:
    stock, before = said(model, 2), contents()
    both = [Steps({slug(structure(model), 1): ALL}) for _ in range(2)]
    for one in both:
        one.install()
        assert same(said(model, 2), stock)
    for one in (both[1 - last], both[last]):
        one.restore()
        assert same(said(model, 2), stock)
    assert contents() == before


def test_models_that_share_layers_are_both_looked_at_again(model: Any) -> None:
    other = llama.Model(model.args)
    other.update(model.parameters())
    other.model.layers = model.layers
    other.eval()
    with stepping(model, other) as steps:
        for one in (model, other):
            assert agrees(one, steps)
        layer = model.layers[1]
        layer.mlp.down_proj.weight = 2 * layer.mlp.down_proj.weight
        for _ in range(2):
            assert agrees(other, steps)
        assert all(layer.splits for layer in steps.layers.values())
        assert compiled(steps) >= 2


def test_nothing_stays_of_what_was_restored(model: Any) -> None:
    with stepping(model) as steps:
        said(model, 2)
    gone = weakref.ref(steps)
    del steps
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("way", "what", "turn"),
    [(ALL, "Split", 0), (ALL, "Merged", 1), (COMPILED, "Split", 0), (ALL, "Layer", 1)],
)
def test_an_interrupt_while_a_layer_is_looked_at(
    model: Any, way: str, what: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stepping(model, way=way) as steps:
        with monkeypatch.context() as patch:
            module: Any = steps_module if what == "Layer" else layer_module
            made, calls = getattr(module, what), itertools.count()

            def interrupted(*given: Any) -> Any:
                if next(calls) == turn:
                    raise KeyboardInterrupt
                return made(*given)

            patch.setattr(module, what, interrupted)
            with pytest.raises(KeyboardInterrupt):
                said(model, 2)
        for _ in range(2):
            assert agrees(model, steps)
            down = model.layers[1].mlp.down_proj
            down.weight = 2 * down.weight
        assert agrees(model, steps)
        assert compiled(steps) == 2
        assert row_of(steps)["merged"] == (0 if way == COMPILED else 4)


@pytest.mark.parametrize("before", [0, 2])
def test_a_model_whose_weights_were_traced_is_compiled_afterwards(
    model: Any, steps: Steps, before: int
) -> None:
    said(model, before)
    tokens = mx.array([[3]])
    step = mx.compile(lambda x: model(x, cache=make_prompt_cache(model)), inputs=model.state)
    for _ in range(2):
        ours = step(tokens)
        with steps.switched(on=False):
            assert mx.array_equal(ours, model(tokens, cache=make_prompt_cache(model)))
        down = model.layers[1].mlp.down_proj
        down.weight = 2 * down.weight
    del step
    gc.collect()
    for _ in range(2):
        assert agrees(model, steps)
    assert compiled(steps) == 2
