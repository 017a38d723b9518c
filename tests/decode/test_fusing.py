"""What one launch makes together is found in layers, and nothing else is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from rounding import close, drawn
from watching import counted

from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.decode import fusing
from mlx_lm_openevolve.decode.fusing import Fusing
from mlx_lm_openevolve.decode.look import in_place
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL
from mlx_lm_openevolve.runtime.patch import installed


def watched(run: Any, watch: Fusing | None = None) -> list[str]:
    """What is made by kernels while `run` is watched."""
    places = (watch or Fusing()).places
    with counted(fusing, "add_norm", "norm_rope") as calls, in_place(places):
        run()
    return calls


def test_only_a_sum_s_norm_is_fused() -> None:
    norm, x = nn.RMSNorm(64), drawn(0, 1, 1, 64)
    assert watched(lambda: norm(x + x)) == ["add_norm"]
    for run in (
        lambda: norm(x),
        lambda: norm(x + 1),
        lambda: norm(x + x[..., :1]),
        lambda: norm((x + x) * 2),
        lambda: norm((x + x).astype(mx.bfloat16)),
        lambda: norm(drawn(0, 1, 2, 64) + drawn(1, 1, 2, 64)),  # two tokens
        lambda: mx.fast.rms_norm(x + x, None, 1e-5),
    ):
        assert watched(run) == []


def test_only_heads_of_one_product_that_turn_alike_are_fused() -> None:
    """Each way in which mlx-lm's layers come from a product to heads, with the numbers of MLX's own
    operations; and none where something differs."""
    whole, at, other = drawn(0, 1, 1, 128 * 64 * 2), mx.array(7), mx.array(8)
    norm, rope = nn.RMSNorm(64), nn.RoPE(64)
    norm.weight = drawn(3, 64)

    def plain(x: mx.array) -> mx.array:
        return x.reshape(1, 1, -1, 64).transpose(0, 2, 1, 3)

    ways: list[Any] = [
        plain,
        lambda x: x.reshape(1, 1, 64, -1).swapaxes(1, 2),
        lambda x: x.reshape(1, 1, 64, 64, stream=mx.cpu).swapaxes(1, 2),
        lambda x: norm(x.reshape(1, 1, -1, 64)).transpose(0, 2, 1, 3),
        lambda x: norm(plain(x)),
        lambda x: norm(x.reshape((1, 1, 64, 64)).transpose([0, 2, 1, 3])),
    ]
    wrong: list[Any] = [
        lambda x: x.reshape(1, 1, 64, 64).transpose(0, 3, 1, 2),  # other numbers, the same shape
        lambda x: plain(x) * 2,
        lambda x: norm(norm(plain(x))),
        lambda x: x.reshape(1, 64, 1, 64),  # no such layer is known
        lambda x: x.reshape(1, 1, 64, 64).swapaxes(axis1=1, axis2=2),
        lambda x: x.reshape(1, 1, 64, 64).transpose(0, 2, 1, 3, stream=mx.cpu),
    ]

    def heads(way: Any, offset: Any = at, turn: Any = rope, second: Any = None) -> Any:
        """What a layer does, and what comes of it."""
        fusing, out = Fusing(), []
        q, k = whole[..., :4096], whole[..., 4096:8192]
        fusing.part(q, whole, 0)
        fusing.part(k, second if second is not None else whole, 4096)

        def run() -> None:
            out.append(rope(way(q), offset=at))
            out.append(turn(way(k), offset=offset))

        return watched(run, fusing), out

    for way in ways:
        made, out = heads(way)
        assert made == ["norm_rope"]
        for part, got in zip((whole[..., :4096], whole[..., 4096:8192]), out, strict=True):
            assert mx.allclose(got, rope(way(part), offset=at), atol=1e-5)
    assert [heads(way)[0] for way in wrong] == [[]] * len(wrong)
    assert heads(plain, offset=other)[0] == []
    assert heads(plain, offset=7)[0] == []
    assert heads(plain, turn=nn.RoPE(64, base=5e5))[0] == []
    assert heads(plain, turn=nn.RoPE(32))[0] == []
    assert heads(plain, second=drawn(1, 1, 1, 8192))[0] == []


def test_a_sum_that_was_read_before_its_norm_stays_right() -> None:
    norm, x, y = nn.RMSNorm(64), drawn(0, 1, 1, 64), drawn(1, 1, 1, 64)

    def run() -> None:
        h = x + y
        early = h * 2
        assert close(norm(h), mx.fast.rms_norm(mx.add(x, y), norm.weight, norm.eps))
        assert close(norm(h), mx.fast.rms_norm(mx.add(x, y), norm.weight, norm.eps)), "once more"
        assert mx.array_equal(h, mx.add(x, y))
        assert mx.array_equal(early, mx.add(x, y) * 2)

    assert watched(run) == ["add_norm"]


@pytest.mark.parametrize("which", ["none", "sum", "operand", "part", "normed", "turned"])
def test_what_is_changed_in_place_counts_as_it_is_then(which: str) -> None:
    norm, rope = nn.RMSNorm(64), nn.RoPE(64)

    def run(fusing: Fusing) -> list[mx.array]:
        def change(name: str, a: mx.array) -> mx.array:
            if name == which:
                a *= 2.0
                a[..., 0] = 1.0
            return a

        x, y, whole, at = *(drawn(i, 1, 1, 64 * (1 + i)) for i in range(3)), mx.array(7)
        y = y[..., :64] + 0
        h = x + y
        change("operand", y)
        change("sum", h)
        made = [norm(h), h]
        for name, first in (("q", 0), ("k", 64)):
            part = whole[..., first : first + 64]
            fusing.part(part, whole, first)
            only = change if name == "q" else lambda _, a: a
            part = norm(only("part", part).reshape(1, 1, 1, 64))
            part = rope(only("normed", part).swapaxes(1, 2), offset=at)
            made.append(only("turned", part))
        return made

    fusing, found = Fusing(), list[mx.array]()
    calls = watched(lambda: found.extend(run(fusing)), fusing)
    assert (calls == ["add_norm", "norm_rope"]) is (which == "none")
    for got, want in zip(found, run(Fusing()), strict=True):
        assert mx.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sums"), [("llama", 2), ("qwen3", 2), ("gemma3_text", 0)])
def test_what_is_fused_in_a_model(name: str, sums: int) -> None:
    """Queries with keys in every layer; the sums before both norms where one layer's end and the
    next one's beginning are traced together, but for Gemma's, which mlx-lm compiles itself."""
    model = architectures.build(name)
    steps = Steps({slug(structure(model), 1): ALL})
    with installed([steps]):
        cache = empty_cache(model, 1)
        for _ in range(2):  # each half is traced
            mx.eval(model(mx.array([[1]]), cache=cache))
        splits = [split for x in steps.layers.values() for split, _ in x.splits.values()]
        assert len({*map(id, splits)}) == (2 if name == "gemma3_text" else 1)
        with counted(fusing, "add_norm", "norm_rope") as calls:
            mx.eval(model(mx.array([[1]]), cache=cache))
    # In such a trace the first layer is run once more from its beginning; what of that nobody asks
    # for is dropped.
    pairs = len({(id(a), id(b)) for a, b in pairwise(splits)})
    assert calls.count("norm_rope") == 2 * pairs
    assert calls.count("add_norm") == sums * pairs
