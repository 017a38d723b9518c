"""A layer in two halves: what a run on stand-ins shows, and what is left alone for which reason."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import base
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import BatchKVCache, KVCache
from routes import Routes

from mlx_lm_openevolve.decode import look
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, COMPILED
from mlx_lm_openevolve.ops.linear import call as linear
from mlx_lm_openevolve.runtime.patch import MethodPatch, Patch, installed

HEADS, WIDTH = 2, 64
Odd = Callable[[Any], Any]


def nothing(step: Any) -> None:
    """What a plain layer does beside its work."""


class Layer(nn.Module):
    """A layer as mlx-lm's are; what is odd about one happens before its update, before its
    attention, or after it: to all that the layer knows at that point."""

    def __init__(
        self, early: Odd = nothing, middle: Odd = nothing, late: Odd = nothing, **held: Any
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.rope, self.scale = nn.RoPE(WIDTH // HEADS), 0.25
        self.early, self.middle, self.late = early, middle, late
        for name, value in held.items():
            setattr(self, name, value)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        step = SimpleNamespace(layer=self, x=x, mask=mask, cache=cache, scale=self.scale)
        step.offset = cache.offset
        self.early(step)
        step.attend = scaled_dot_product_attention
        q, k, v = (
            layer(step.x).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        step.q, k = (self.rope(a, offset=cache.offset) for a in (q, k))
        step.k = k
        step.keys, step.values = cache.update_and_fetch(k, v)
        self.middle(step)
        out = step.attend(
            step.q, step.keys, step.values, cache=cache, scale=step.scale, mask=step.mask
        )
        step.out = x + self.o(out.swapaxes(1, 2).reshape(x.shape))
        self.late(step)
        return step.out


class Model(nn.Module):
    """Layers after an embedding, under a mask where one is asked for. between: called after each
    layer with it and its cache."""

    def __init__(
        self, *layers: Any, masked: bool = False, between: Callable[[Any, Any], None] | None = None
    ) -> None:
        super().__init__()
        self.embed, self.layers, self.masked = nn.Embedding(16, WIDTH), [*layers], masked
        self.between = between
        self.eval()
        mx.eval(self.parameters())

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        x = self.embed(tokens)
        for layer, one in zip(self.layers, cache, strict=True):
            mask = mx.zeros((tokens.shape[0], 1, 1, one._idx + 1)) if self.masked else None
            x = layer(x, mask, cache=one)
            if self.between is not None:
                self.between(layer, one)
        return mx.concatenate(x) if isinstance(x, tuple) else x


class InPlace(BatchKVCache):
    """Counts in place, as `offset += 1` does and caches of older releases did."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        offset = self.offset
        fetched = super().update_and_fetch(keys, values)
        offset += keys.shape[2]
        self.offset = offset
        return fetched


def decode(model: Model, batch: int = 1) -> list[mx.array]:
    """What comes out of six steps, and the caches."""
    some = [InPlace([0] * batch) if model.masked else KVCache() for _ in model.layers]
    tokens = [mx.array([[i + b] for b in range(batch)]) for i in range(6)]
    out = [model(token, cache=some) for token in tokens]
    out += [a for cache in some for a in cache.state[:2]]
    mx.eval(out)
    return out


def compiled(model: Model, batch: int = 1, way: str = COMPILED) -> tuple[list[mx.array], Any]:
    """The same with compiled layers, and what is said of the model."""
    steps = Steps({slug(structure(model), batch): way})
    with installed([steps]):
        return decode(model, batch), next(iter(steps.info().values()))


def same(a: list[mx.array], b: list[mx.array]) -> bool:
    return len(a) == len(b) and all(map(mx.array_equal, a, b))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", [COMPILED, ALL])
def test_a_layer_is_cut_at_its_cache_and_its_attention(masked: bool, way: str) -> None:
    model = Model(Layer(), Layer(), masked=masked)
    stock = decode(model, 2)
    out, info = compiled(model, 2, way)
    assert same(out, stock)
    assert (info["compiled"], info["separate"]) == (2, {})
    assert info["merged"] == (0 if way == COMPILED else 2)


def a_weight(layer: Any) -> None:
    layer.k.weight = layer.k.weight * 2


def a_number(layer: Any) -> None:
    layer.rope.base = 9.0


def a_layer(layer: Any) -> None:
    layer.v = nn.Linear(WIDTH, WIDTH)


@pytest.mark.parametrize("change", [a_weight, a_number, a_layer])
@pytest.mark.parametrize("way", [COMPILED, ALL])
def test_what_changes_between_two_layers_is_seen_by_the_second(change: Any, way: str) -> None:
    """Whose beginning was made with the end of the first."""

    def made() -> Model:
        mx.random.seed(1)
        layers = [Layer(), Layer()]

        def between(layer: Any, cache: Any) -> None:
            if layer is layers[0] and cache.offset == 4:
                change(layers[1])

        return Model(*layers, between=between)

    assert same(compiled(made(), way=way)[0], decode(made()))


def test_conversations_in_turns_begin_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are called with another cache than the last time; one that is called twice."""
    layer, ahead = Layer(), list[bool]()
    model = Model(Layer(), layer, layer)
    begin, following = Steps._begin, Steps._next

    def begun(*args: Any) -> Any:
        ahead.append(False)
        return begin(*args)

    def known(*args: Any) -> Any:
        found = following(*args)
        ahead.extend([True] if found[0] else [])
        return found

    def in_turns() -> list[mx.array]:
        both = [[KVCache() for _ in model.layers] for _ in "ab"]
        out = [model(mx.array([[i]]), cache=both[i % 2]) for i in range(8)]
        mx.eval(out)
        ahead.clear()
        return [*out, model(mx.array([[8]]), cache=both[0])]

    stock = in_turns()
    steps = Steps({slug(structure(model), 1): ALL})
    with installed([steps]):
        monkeypatch.setattr(Steps, "_begin", begun)
        monkeypatch.setattr(Steps, "_next", known)
        assert same(in_turns(), stock)
        assert ahead == [False, True, True, True], "the last one for nothing: it guesses a fourth"


@pytest.mark.parametrize("through", ["model", "layers"])
def test_a_step_that_ends_early_holds_no_weights(through: str) -> None:
    def between(layer: Any, cache: Any) -> None:
        if cache.offset == 6:
            raise KeyboardInterrupt

    gc.collect()
    before = mx.get_active_memory()
    model = Model(Layer(), Layer(), between=between if through == "model" else None)
    steps = Steps({slug(structure(model), 1): ALL})
    with installed([steps]):
        with contextlib.suppress(KeyboardInterrupt):
            decode(model)
        if through == "layers":
            x, caches = model.embed(mx.array([[1]])), [KVCache(), KVCache()]
            for _ in range(3):
                mx.eval(model.layers[1](model.layers[0](x, None, caches[0]), None, caches[1]))
            model.layers[0](x, None, caches[0])
            assert steps._ahead is not None
            del x, caches
        del model
        gc.collect()
        assert not steps.layers
        assert mx.get_active_memory() - before < WIDTH * WIDTH


def test_keys_are_stored_as_they_are_at_the_update() -> None:
    model = Model(Layer(middle=lambda s: s.k.__imul__(2)), Layer())
    stock = decode(model)
    out, info = compiled(model, way=ALL)
    assert same(out, stock)
    assert info["compiled"] == 2


def test_what_one_run_shows() -> None:
    layer, x = Layer(), mx.zeros((1, 1, WIDTH))
    seen = look.look(layer, Layer.__call__, x, 7, masked=False)
    ((group, (given,)),) = seen.together()
    assert group == [layer.q, layer.k, layer.v]
    assert given.shape == x.shape
    assert seen.attention.fixed == {"scale": 0.25}
    assert seen.attention.space is globals()
    assert scaled_dot_product_attention is base.scaled_dot_product_attention


def test_layers_of_one_kind_share_their_halves() -> None:
    """With arrays of their own; another attribute is another kind."""
    other = Layer()
    other.scale = 0.5
    model = Model(Layer(), Layer(), other)
    stock = decode(model)
    steps = Steps({slug(structure(model), 1): COMPILED})
    with installed([steps]):
        assert same(decode(model), stock)
        halves = [next(iter(layer.splits.values()))[0] for layer in steps.layers.values()]
        assert halves[0] is halves[1] is not halves[2]
        # Their arrays are read at each call: what is changed in place is seen.
        weight = model.layers[1].o.weight
        weight *= 2
        assert model.layers[1].o.weight is weight
        found = decode(model)
    assert same(found, decode(model))
    assert not same(found, stock)


@pytest.mark.parametrize("traced", [True, False])
def test_what_a_kernel_serves_it_serves_inside_the_halves(traced: bool) -> None:
    """By the route of the layer; MLX's own product where a kernel cannot be traced."""
    model = Model(Layer(), Layer())
    nn.quantize(model, 32, 4)  # type: ignore[attr-defined]
    model.eval()
    stock = decode(model)
    seen: list[bool] = []

    def kernel(x: mx.array, weight: mx.array, *scales: Any) -> mx.array:
        seen.append(any(weight is layer.o.weight for layer in model.layers))
        if not seen[-1] and not traced:
            raise ValueError("no kernel while tracing")
        return 2 * mx.quantized_matmul(x, weight, *scales, True, group_size=32, bits=4)

    def wrap(original: Any) -> Any:
        return linear.wrap(original, Routes(kernel))

    patch = MethodPatch(nn.QuantizedLinear, "__call__", wrap, guards=True)
    patch.install()
    try:
        doubled = decode(model)
        seen.clear()
        found, info = compiled(model)
    finally:
        patch.restore()
    assert info["compiled"] == 2
    assert same(found[:1], doubled[:1]), "as ever at first"
    assert not all(seen), "with arrays of a trace"
    assert mx.allclose(found[1], (doubled if traced else stock)[1], rtol=0, atol=0.1)
    assert not same(doubled, stock)


def is_asked(name: str) -> str:
    return f"it asks its mask, its cache or what that returns for {name}"


def evaluated(step: Any) -> None:
    step.x.sum().item()


def kept(step: Any) -> None:
    step.layer.last = step.x


def listed(step: Any) -> None:
    step.layer.all.append(step.x)


def counted(step: Any) -> None:
    step.layer.count += 1


def noisy(step: Any) -> None:
    step.x = step.x + mx.random.normal(step.x.shape)


def factor(step: Any) -> None:
    step.factor = step.cache.offset / 4 + 1.0


def times(step: Any) -> None:
    step.out = step.out * step.factor.reshape(-1, 1, 1)


def rounded(step: Any) -> None:
    step.out = step.out.astype(mx.float16) * step.factor


def named(name: str, value: Callable[[Any], Any]) -> Odd:
    return lambda step: setattr(step, name, value(step))


def update_again(step: Any) -> None:
    step.keys, step.values = step.cache.update_and_fetch(step.q, step.q)


def attend_again(step: Any) -> None:
    step.attend(step.q, step.keys, step.values, cache=step.cache, scale=1.0, mask=step.mask)


CHANGED = "it changes in place what it was given or holds"
# What a layer may do, and why it is left alone then.
ALONE: dict[str, tuple[dict[str, Any], bool, str]] = {
    "cache's bits": ({"early": lambda s: hasattr(s.cache, "bits")}, False, "its cache for bits"),
    "cache's truth": ({"early": lambda s: bool(s.cache)}, False, is_asked("its size")),
    "cache's class": (
        {"early": lambda s: isinstance(s.cache, KVCache)}, False, is_asked("its class"),
    ),
    "offset afterwards": (
        {"late": lambda s: s.cache.offset}, False, "asks its cache for the offset after the update",
    ),
    "offset decides": (
        {"early": lambda s: s.cache.offset > 9 and kept(s)}, False, "ValueError: [eval]",
    ),
    "mask's dtype": ({"early": lambda s: s.mask.dtype}, True, is_asked("getattr")),
    "mask's rows": ({"early": named("mask", lambda s: s.mask[..., -1:])}, True, "getitem"),
    "mask's sum": ({"early": named("mask", lambda s: s.mask + s.mask)}, True, "TypeError"),
    "mask compared": ({"early": lambda s: s.mask == "causal"}, True, is_asked("eq")),
    "another mask": (
        {"early": named("mask", lambda s: None)}, True, "attention gets other keys, values, cache",
    ),
    "keys' shape": ({"middle": lambda s: s.keys.shape}, False, is_asked("getattr")),
    "keys exchanged": (
        {"middle": named("keys", lambda s: s.values)}, False, "attention gets other keys",
    ),
    "scale computed": (
        {"early": named("scale", lambda s: s.x.sum())}, False, "gets what the layer has computed",
    ),
    "two updates": ({"middle": update_again}, False, "it updates its cache twice"),
    "two attentions": ({"middle": attend_again}, False, "it calls attention twice"),
    "attention by another name": (
        {"middle": named("attend", lambda s: base.scaled_dot_product_attention)}, False, "bits",
    ),
    "no attention": (
        {"middle": named("attend", lambda s: lambda q, *_, **__: q)}, False, "calls no attention",
    ),
    "two results": ({"late": named("out", lambda s: (s.out, s.out))}, False, "something else than"),
    "a value of x": ({"early": evaluated}, False, "ValueError: [eval]"),
    "an array kept": ({"early": kept}, False, "it changes what it holds"),
    "an array listed": ({"early": listed, "all": []}, False, "it changes what it holds"),
    "a number changed": ({"early": counted, "count": 0}, False, "it changes what it holds"),
    "random numbers": ({"early": noisy}, False, "draws random numbers"),
    "its input changed": ({"early": lambda s: s.x.__imul__(2)}, False, CHANGED),
    "its input changed afterwards": (
        {"late": lambda s: s.x.__setitem__(..., s.out)}, False, CHANGED,
    ),
    "an offset changed": ({"late": lambda s: s.offset.__iadd__(1)}, True, CHANGED),
    "a weight changed": (
        {"late": lambda s: s.layer.last.__iadd__(s.out), "last": mx.zeros((1, 1, WIDTH))},
        False, CHANGED,
    ),
    "a list of layers": ({"more": [nn.Linear(2, 2)]}, False, "it holds layers in a list"),
    "another dtype": (
        {"early": factor, "late": rounded}, False, "that is an array gives it other dtypes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("odd", ALONE)
def test_a_layer_that_does_more_is_left_alone_and_says_why(odd: str) -> None:
    """And does it as ever: what it holds afterwards is what it would hold."""
    held, masked, reason = ALONE[odd]

    def made() -> Model:
        mx.random.seed(1)
        return Model(Layer(), Layer(**copy.deepcopy(held)), masked=masked)

    def kept_by(model: Model) -> list[Any]:
        layer = model.layers[1]
        arrays = [*layer.get("all", []), layer.get("last", mx.array(0))]
        return [vars(layer).get("count"), *(array.tolist() for array in arrays)]

    ours, theirs = made(), made()
    mx.random.seed(2)
    stock = decode(theirs)
    mx.random.seed(2)
    out, info = compiled(ours, way=ALL)
    assert reason in info["separate"].pop("1")
    assert (info["compiled"], info["separate"]) == (1, {})
    assert same(out, stock)
    assert kept_by(ours) == kept_by(theirs)


def test_what_is_made_of_the_offset_beforehand_is_there_afterwards() -> None:
    model = Model(Layer(early=factor, late=times), masked=True)
    stock = decode(model, 2)
    out, info = compiled(model, 2)
    assert same(out, stock)
    assert info["compiled"] == 1


class Wrapped(Layer):
    """A class of its own, whose `__call__` others wrap."""

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
        return super().__call__(x, mask, cache)


@pytest.mark.parametrize("cls", [Wrapped, nn.RoPE])
@pytest.mark.parametrize("late", [False, True])
def test_who_wraps_a_method_sees_every_call(
    cls: Any, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a layer or of what it is made of, before or after it was compiled."""
    model, seen = Model(Wrapped(), Wrapped()), list[mx.array]()
    space: dict[str, Any] = {"__name__": "somebody", "original": cls.__call__, "seen": seen}
    exec(
        "def call(self, x, *args, **named):\n"
        "    seen.append(x)\n"
        "    return original(self, x, *args, **named)\n",
        space,
    )
    wrapper = functools.wraps(cls.__call__)(space["call"])
    steps = Steps({slug(structure(model), 1): COMPILED})
    steps.install()
    try:
        if late:
            stock = decode(model)
            assert steps.info()[structure(model)]["compiled"] == 2
            space["original"] = cls.__call__
        monkeypatch.setattr(cls, "__call__", wrapper)
        stock = decode(model)
        calls = 12 if cls is Wrapped else 24
        assert len(seen) == calls
        mx.eval(seen, stock)
        # A wrapper over what stands there for us is in nobody's way.
        assert steps.info()[structure(model)]["compiled"] == (2 if late and cls is Wrapped else 0)
    finally:
        monkeypatch.undo()
        steps.restore()


@pytest.fixture
def paused() -> Iterator[Any]:
    """A thread in the midst of a trace, until the context is left."""
    reached, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def early(_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:  # the first call is no trace
            reached.set()
            assert go.wait(10)

    @contextlib.contextmanager
    def tracing() -> Iterator[None]:
        thread = threading.Thread(target=compiled, args=(Model(Layer(early=early)),))
        thread.start()
        assert reached.wait(60)
        assert scaled_dot_product_attention is not base.scaled_dot_product_attention
        try:
            yield
        finally:
            go.set()
            thread.join()

    yield tracing
    go.set()


def test_other_threads_pass_through_what_a_trace_puts_in_place(paused: Any) -> None:
    layer, x = Model(Layer()).layers[0], mx.ones((1, 3, WIDTH))
    stock = layer(x, "causal", KVCache())
    with paused():
        assert mx.array_equal(layer(x, "causal", KVCache()), stock)
        assert scaled_dot_product_attention is not base.scaled_dot_product_attention
    assert scaled_dot_product_attention is base.scaled_dot_product_attention


def test_who_looks_at_a_layer_meanwhile_takes_a_trace_for_no_other_library(paused: Any) -> None:
    """It waits: MLX's own methods are what it is to see, and what stands in their place by us."""
    layer, found = Layer(), list[Any]()

    def looking() -> None:
        try:
            x = mx.zeros((1, 1, WIDTH))
            found.append(look.look(layer, Layer.__call__, x, 7, masked=False).together())
            found.append(look.method_of(layer.q, "served"))
        except look.Unsplittable as error:
            found.append(error)

    def wrap(original: Any) -> Any:
        return linear.wrap(original, Routes(None))

    patch = MethodPatch(nn.Linear, "__call__", wrap, guards=True)
    patch.install()
    try:
        with paused():
            thread = threading.Thread(target=looking)
            thread.start()
            thread.join(0.2)
        thread.join()
    finally:
        patch.restore()
    together, served = found
    assert [group for group, _ in together] == [[layer.q, layer.k, layer.v]]
    assert served is not None


def test_who_patches_meanwhile_waits_for_the_originals(paused: Any) -> None:
    attention, product = base.scaled_dot_product_attention, nn.Linear.__call__

    def wrap(original: Any) -> Any:
        return lambda *args, **named: original(*args, **named)

    patches = [Patch(base, look.ATTENTION, wrap), MethodPatch(nn.Linear, "__call__", wrap)]

    def install() -> None:
        for patch in patches:
            patch.install()

    with paused():
        thread = threading.Thread(target=install)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join()
    try:
        assert not [name for patch in patches for name in patch.unreached() if __name__ in name]
        assert scaled_dot_product_attention is base.scaled_dot_product_attention is not attention
        assert nn.Linear.__call__ is not product
    finally:
        for patch in patches:
            patch.restore()
    assert scaled_dot_product_attention is base.scaled_dot_product_attention is attention
    assert nn.Linear.__call__ is product


def test_ctrl_c_in_a_trace_leaves_everything_as_it_was() -> None:
    product, calls = nn.Linear.__call__, list[int]()

    def interrupted(_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    model = Model(Layer(early=interrupted))
    with pytest.raises(KeyboardInterrupt):
        compiled(model)
    assert scaled_dot_product_attention is base.scaled_dot_product_attention
    assert nn.Linear.__call__ is product
    assert same(compiled(model)[0], decode(model))


class Named(nn.Module):
    """A layer that takes more than x, a mask and a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None, more: float = 1.0) -> Any:
        return self.layer(x, mask, cache) * more


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (lambda layer, x, cache: layer(x, None, cache), 1),
        (lambda layer, x, cache: layer(x, cache=cache, mask=None), 1),
        (lambda layer, x, cache: layer(x, cache=cache), 1),
        (lambda layer, x, cache: layer(x=x, mask=None, cache=cache), 0),
        (lambda layer, x, cache: layer(x, None, cache, 2.0), 0),
        (lambda layer, x, cache: layer(x, cache=cache, more=2.0), 0),
    ],
)
def test_however_a_layer_is_called(call: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Model, tokens: mx.array, cache: Any = None) -> mx.array:
        out: mx.array = call(self.layers[0], self.embed(tokens), cache[0])
        return out

    monkeypatch.setattr(Model, "__call__", run)
    model = Model(Named())
    stock = decode(model)
    out, info = compiled(model)
    assert same(out, stock)
    assert info["compiled"] == count
    assert bool(info["separate"]) is not bool(count)


@pytest.mark.parametrize("times", [1, 2])
def test_what_an_interrupt_leaves_in_place_does_nothing_more(times: int) -> None:
    """A trace may end in the midst of putting things back."""
    space: dict[str, Any] = {"one": lambda: "original"}

    class Stuck(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            if value is space["one"] and next(tries) < times:
                raise KeyboardInterrupt
            super().__setitem__(key, value)

    stuck, tries = Stuck(space), itertools.count()
    with (
        pytest.raises(KeyboardInterrupt),
        look.in_place([(stuck, "one", lambda original: "put")]),
    ):
        assert stuck["one"]() == "put"
    assert (stuck["one"] is space["one"]) is (times == 1)
    assert stuck["one"]() == "original"
