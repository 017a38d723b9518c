"""The routing of experts is found in layers, and nothing else is; their rows stay as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import architectures
import mlx.core as mx
import pytest
from mlx.nn.layers.quantized import quantize
from mlx_lm.models import switch_layers
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from rounding import close, drawn
from routes import Routes
from watching import counted

from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.decode import routing
from mlx_lm_openevolve.decode.fusing import Fusing
from mlx_lm_openevolve.decode.look import in_place
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, MERGED
from mlx_lm_openevolve.ops.linear import experts
from mlx_lm_openevolve.runtime.patch import MethodPatch, installed


def watched(run: Any) -> tuple[list[str], list[mx.array]]:
    """What is made by kernels while `run` is watched, and what comes of it."""
    with counted(routing, "route", "mix") as calls, in_place(routing.Routing().places):
        made = run()
    return calls, made


X = drawn(0, 2, 1, 16)


def softmax(x: mx.array = X) -> mx.array:
    return mx.softmax(x, axis=-1, precise=True)


def chosen(gates: mx.array) -> mx.array:
    return mx.argpartition(gates, kth=-4, axis=-1)[..., -4:]


def negated(gates: mx.array) -> mx.array:
    return -gates


def scored(gates: mx.array, indices: mx.array) -> mx.array:
    return mx.take_along_axis(gates, indices, axis=-1)


def qwen() -> list[mx.array]:
    gates = softmax()
    indices = mx.stop_gradient(chosen(gates))
    scores = scored(gates, indices)
    scores /= mx.sum(scores, axis=-1, keepdims=True)
    return [indices, scores]


def largest_first() -> list[mx.array]:
    gates = mx.softmax(X, axis=-1)
    indices = mx.stop_gradient(mx.argpartition(-gates, kth=3, axis=-1)[..., :4])
    return [indices, scored(gates, indices)]


def divided() -> list[mx.array]:
    gates = mx.softmax(X, -1, precise=True)
    indices = mx.argpartition(gates, -4)[..., -4:]
    scores = mx.take_along_axis(gates, indices, 2)
    return [indices, scores / scores.sum(axis=-1, keepdims=True)]


def taken_twice() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    first, second = scored(gates, indices), scored(gates, indices)
    first /= first.sum(-1, keepdims=True)
    return [indices, first, second]


def plus_a_little() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    scores = scored(gates, indices)
    return [indices, scores / (scores.sum(-1, keepdims=True) + 1e-3)]


def of_other_scores() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    biased = gates + 1
    return [indices, scored(biased, indices)]


def of_another_sum() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    a, b = scored(gates, indices), scored(gates, indices)
    b *= 2.0
    return [indices, a / b.sum(-1, keepdims=True), a / a.sum(-2, keepdims=True)]


def two_quotients() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    scores = scored(gates, indices)
    total = scores.sum(-1, keepdims=True)
    a, b = scores / total, scores / total
    a *= 2
    return [indices, a, b]


def two_takes() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    a, b = scored(gates, indices), scored(gates, indices)
    a, b = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    a *= 2.5
    return [indices, a, b]


def two_sums() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    scores = scored(gates, indices)
    total, other = (scores.sum(-1, keepdims=True) for _ in range(2))
    scores /= total
    return [indices, scores, scores / other]


def a_product_before() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    scores = scored(gates, indices)
    total = scores.sum(-1, keepdims=True)
    product = scores * total
    scores /= total
    return [indices, scores, scores + product.sum(-2, keepdims=True)]


def a_routing_before() -> list[mx.array]:
    gates = softmax()
    indices = chosen(gates)
    scores = scored(gates, indices)
    total, again = scores.sum(-1, keepdims=True), softmax(scores)
    scores /= total
    best = mx.argpartition(again, kth=-1, axis=-1)[..., -1:]
    return [indices, scores, scores + scored(again, best)]


def found(made: list[mx.array]) -> list[mx.array]:
    """In the order of the experts: argpartition promises none."""
    order = mx.argsort(made[0], -1)
    return [mx.take_along_axis(a, order, -1) for a in made]


@pytest.mark.parametrize(
    "way",
    [
        *(qwen, largest_first, divided, taken_twice, plus_a_little, of_other_scores),
        *(of_another_sum, two_quotients, two_takes, two_sums, a_product_before, a_routing_before),
    ],
)
def test_a_routing_is_one_launch(way: Any) -> None:
    calls, made = watched(way)
    assert calls == ["route"]
    for ours, theirs in zip(found(made), found(way()), strict=True):
        assert close(ours, theirs) if ours.dtype == mx.float32 else mx.array_equal(ours, theirs)


@pytest.mark.parametrize("way", [qwen, largest_first, divided])
def test_indices_of_twice_as_many_experts_come_along(way: Any) -> None:
    """Without a launch of their own; of as many as the softmax was over."""
    found = routing.Routing()
    with in_place(found.places):
        indices, *_ = way()
    both = found.of_both(indices, 16)
    assert both is not None
    assert mx.array_equal(both, mx.concatenate([indices, indices + 16], -1))
    assert found.of_both(indices, 17) is None
    assert found.of_both(indices + 0, 16) is None


@pytest.mark.parametrize(
    "way",
    [
        lambda: [mx.argpartition(softmax(), kth=-4)[..., :4]],  # the smallest
        lambda: [mx.argpartition(softmax(), kth=-4)[..., -3:]],
        lambda: [mx.argpartition(softmax(), kth=-4)[..., -4]],
        lambda: [mx.argpartition(softmax(), kth=3)[..., :4]],
        lambda: [mx.argpartition(-softmax(), kth=-4)[..., -4:]],
        lambda: [mx.argpartition(-negated(softmax()), kth=3)[..., :4]],
        lambda: [chosen(softmax() + 1)],
        lambda: [chosen(X)],
        lambda: [chosen(mx.softmax(X, axis=0))],
        lambda: [chosen(mx.softmax(X))],  # over all of it
        lambda: [chosen(mx.softmax(X.astype(mx.float16), axis=-1))],  # in half precision
        lambda: [mx.argpartition(softmax(), kth=-1, axis=0)[..., -1:]],
        lambda: [chosen(mx.softmax(drawn(0, 1, 1, 1025), axis=-1))],
    ],
)
def test_other_choices_are_mlx_s_own(way: Any) -> None:
    calls, made = watched(way)
    assert calls == []
    assert mx.array_equal(made[0], way()[0])


def test_sums_before_shares_in_place_are_no_longer_known() -> None:
    """Of what is changed in place all that watches hears."""
    weight = mx.ones(8)

    def run() -> list[mx.array]:
        gates = softmax()
        indices = mx.argpartition(gates, kth=-8, axis=-1)[..., -8:]
        scores = scored(gates, indices)
        h = scores + scores
        scores /= scores.sum(-1, keepdims=True)
        return [indices, h, mx.fast.rms_norm(h, weight, 1e-5), h + 1]

    with in_place(Fusing().places):
        made = run()
    for ours, theirs in zip(found(made), found(run()), strict=True):
        assert mx.allclose(ours.astype(mx.float32), theirs.astype(mx.float32))


@pytest.mark.parametrize("which", ["gates", "scores"])
def test_what_is_changed_in_place_counts_as_it_is_then(which: str) -> None:
    def run() -> list[mx.array]:
        gates = softmax()
        if which == "gates":
            gates[..., 3] = 2.0
        indices = chosen(gates)
        scores = scored(gates, indices)
        if which == "scores":
            scores *= 3.0
        total = scores.sum(-1, keepdims=True)
        return [indices, scores, scores / total, total]

    calls, made = watched(run)
    assert calls == (["route"] if which == "scores" else [])
    for ours, theirs in zip(found(made[:3]), found(run()[:3]), strict=True):
        assert mx.allclose(ours, theirs)


def test_sums_of_products_with_scores() -> None:
    y, scores = drawn(0, 2, 1, 4, 16), drawn(1, 2, 1, 4)
    for way in (
        lambda: [(y * scores[..., None]).sum(axis=-2).astype(y.dtype)],
        lambda: [mx.sum(y * mx.expand_dims(scores, -1), 2)],
    ):
        calls, made = watched(way)
        assert calls == ["mix"]
        assert mx.allclose(made[0], way()[0])
    for other in (
        lambda: [(y * scores[..., None]).sum(axis=-1)],
        lambda: [(y * scores[..., None]).sum()],
        lambda: [(y * scores[..., None]).sum(axis=-2, keepdims=True)],
        lambda: [(y * scores[..., :1, None]).sum(axis=-2)],
        lambda: [(y * scores.astype(mx.float16)[..., None]).sum(axis=-2)],
        lambda: [(y * y).sum(axis=-2)],
        lambda: [(y * 2).sum(axis=-2)],
        lambda: [(y * scores[..., None] + 1).sum(axis=-2)],
    ):
        calls, made = watched(other)
        assert calls == []
        assert mx.array_equal(made[0], other()[0])


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "deepseek"])
def test_what_is_fused_in_a_model(name: str) -> None:
    model = architectures.build(name)
    steps = Steps({slug(structure(model), 1): ALL})
    with installed([steps]), counted(routing, "route", "mix") as calls:
        cache = empty_cache(model, 1)
        for _ in range(2):
            mx.eval(model(mx.array([[1]]), cache=cache))
    assert {*calls} == {"route", "mix"}


ROWS, EXPERTS = 32, 4  # of which each takes two: so many rows that mlx-lm sorts them


def decode(model: Any, rows: int = ROWS) -> list[mx.array]:
    cache, made = empty_cache(model, rows), []
    for i in range(3):
        tokens = mx.arange(i, i + rows).reshape(rows, 1)
        made.append(model(tokens, cache=cache))
        mx.eval(made)
    return made


@contextlib.contextmanager
def kernels(
    serves: Any = lambda w: w.experts == EXPERTS, *, traced: bool = True
) -> Iterator[list[tuple[int, ...]]]:
    """Products of experts from a kernel, where `serves` says so of a workload; traced: also in
    compiled layers; the shapes of indices, call by call."""
    shapes: list[tuple[int, ...]] = []

    def product(x: mx.array, indices: mx.array, *weights: mx.array) -> mx.array:
        shapes.append(indices.shape)
        if not traced:
            raise ValueError("no kernel while tracing")
        kind: Any = {"transpose": True, "group_size": 32, "bits": 4}
        return mx.gather_qmm(x, *weights, rhs_indices=indices, **kind)

    def wrap(original: Any) -> Any:
        return experts.wrap(original, Routes(product, serves))

    patch = MethodPatch(QuantizedSwitchLinear, "__call__", wrap, guards=True)
    patch.install()
    try:
        yield shapes
    finally:
        patch.restore()


@pytest.fixture
def model() -> Any:
    model = architectures.build("qwen3_moe")
    quantize(model, 32, 4)
    model.eval()
    return model


@pytest.mark.parametrize(
    ("way", "traced", "last"),
    [
        (ALL, True, 3),
        (ALL, False, 3),  # by MLX's own product, and right
        (MERGED, True, 1),
    ],
)
def test_rows_of_experts_stay_as_they_come_where_kernels_find_them(
    way: str, traced: bool, last: int, model: Any
) -> None:
    stock = decode(model)
    steps = Steps({slug(structure(model), ROWS): way})
    with kernels(traced=traced) as shapes, installed([steps]):
        made = decode(model)
        assert steps.info()[structure(model)]["compiled"] == 2
    assert all(mx.allclose(a, b, atol=1e-4) for a, b in zip(made, stock, strict=True))
    assert len(shapes[0]) == 1
    assert len(shapes[-1]) == last


def test_rows_are_sorted_for_mlx_s_own_products(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told that they are."""
    sorts, original = [], switch_layers._gather_sort
    monkeypatch.setattr(
        switch_layers, "_gather_sort", lambda *given: sorts.append(1) or original(*given)
    )
    stock = decode(model)
    with installed([Steps({slug(structure(model), ROWS): ALL})]):
        sorts.clear()
        assert all(map(mx.array_equal, decode(model), stock))
    assert len(sorts) > 2 * 2


def test_rows_stay_sorted_for_experts_that_are_not_packed(model: Any) -> None:
    """They are told that they are, and would take them by it."""
    mlp = model.layers[0].mlp.switch_mlp
    plain = switch_layers.SwitchLinear(
        mlp.down_proj.input_dims, mlp.down_proj.output_dims, 4, False
    )
    for layer in model.layers:
        layer.mlp.switch_mlp.down_proj = plain
    model.eval()
    stock = decode(model)
    with kernels(), installed([Steps({slug(structure(model), ROWS): ALL})]):
        assert all(map(mx.allclose, decode(model), stock))


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("way", [ALL, MERGED])
def test_gate_and_up_are_one_product_where_that_is_proven(way: str, rows: int, model: Any) -> None:
    """And their weights views of its, until the patch is off."""

    def weights() -> list[mx.array]:
        mlps = [layer.mlp.switch_mlp for layer in model.layers]
        return [a + 0 for mlp in mlps for m in (mlp.gate_proj, mlp.up_proj) for a in m.values()]

    stock, before = decode(model, rows), weights()
    mx.eval(before)
    steps = Steps({slug(structure(model), rows): way})
    with kernels(lambda _: True) as shapes, installed([steps]):
        made = decode(model, rows)
        merged = [m.product for layer in steps.layers.values() for m in layer.merged]
        joined = [product for product in merged if isinstance(product, QuantizedSwitchLinear)]
        assert [product.num_experts for product in joined] == [2 * EXPERTS] * 2 * (way == ALL)
        assert ((rows, 1, 4) in shapes) is (way == ALL)
        assert mx.array_equal(mx.stack(made), mx.stack(decode(model, rows)))
        assert all(map(mx.array_equal, weights(), before))
    assert all(mx.allclose(a, b, atol=1e-4) for a, b in zip(made, stock, strict=True))
    assert all(map(mx.array_equal, weights(), before))
    assert all(map(mx.array_equal, decode(model, rows), stock))


@pytest.mark.parametrize("way", [ALL, MERGED])
def test_gate_and_up_that_no_kernel_serves_stay_separate(way: str, model: Any) -> None:
    """What would be joined of them nothing would read."""
    steps = Steps({slug(structure(model), 1): way})
    with installed([steps]):
        decode(model, 1)
        merged = [m.product for layer in steps.layers.values() for m in layer.merged]
    assert len(merged) == 2, "queries, keys and values of both layers"
    assert not any(isinstance(product, QuantizedSwitchLinear) for product in merged)


def test_gate_and_up_are_two_products_of_rows_that_no_kernel_serves_together(model: Any) -> None:
    """Of one sequence they are one, in the same process."""
    stock = {rows: decode(model, rows) for rows in (1, ROWS)}
    steps = Steps({slug(structure(model), n): ALL for n in stock})
    few = kernels(lambda w: w.experts == EXPERTS or w.rows <= 4)
    with few as shapes, installed([steps]):
        for rows, want in stock.items():
            shapes.clear()
            made = decode(model, rows)
            assert all(mx.allclose(a, b, atol=1e-4) for a, b in zip(made, want, strict=True))
            assert ((rows, 1, 4) in shapes) is (rows == 1)
        # Queries, keys and values are one product of both.
        for layer in steps.layers.values():
            assert len(layer.splits) == 2
            assert all(any(a.ndim == 2 for a in joined) for _, joined in layer.splits.values())
