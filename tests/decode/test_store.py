"""What a token stores in a quantised cache: MLX's bits, and mlx-lm's cache after every call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import architectures
import mlx.core as mx
import mlx_quantized
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, QuantizedKVCache
from samples import needs_clang

from mlx_lm_openevolve.bench.worker import empty_cache
from mlx_lm_openevolve.decode import store
from mlx_lm_openevolve.decode.steps import Steps
from mlx_lm_openevolve.decode.store import StorePatch
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.kernels.verdict import ALL, MERGED
from mlx_lm_openevolve.runtime.patch import installed

Cache = Any


def drawn(rng: np.random.Generator, *shape: int, dtype: mx.Dtype = mx.float16) -> mx.array:
    return mx.array(rng.normal(size=shape)).astype(dtype)


@needs_clang
@pytest.mark.parametrize(
    ("bits", "group", "size", "dtype"),
    [  # a dtype is read alike whatever is made of it
        (4, 64, 128, mx.bfloat16),
        (8, 64, 64, mx.float16),
        (2, 32, 96, mx.float16),
        (8, 128, 256, mx.float32),
        (4, 32, 32, mx.bfloat16),
        *(
            pytest.param(*packing, dtype, marks=pytest.mark.slow)
            for packing in ((4, 64, 128), (8, 64, 64), (2, 32, 96), (8, 128, 256), (4, 32, 32))
            for dtype in (mx.float32, mx.float16, mx.bfloat16)
        ),
    ],
)
def test_the_bits_are_those_of_mlx_s_own_kernel(
    bits: int, group: int, size: int, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_same", lambda *_: True)  # on the CPU MLX rounds otherwise
    shape = (2, 3, 1, size)
    run = store._kernel.__wrapped__("host", shape, dtype, bits, group)
    for keys, values in store._trials(shape, dtype):
        made = run([keys, values])
        both = mx.concatenate([keys, values], axis=1)
        want = mlx_quantized.quantize(both.reshape(-1, size), bits, group, "affine").outputs
        scales, biases = (part.reshape(2, 6, 1, -1) for part in want[1:])
        assert mx.array_equal(made[0].flatten(), want[0].view(mx.uint32).flatten())
        assert mx.array_equal(made[1], mx.concatenate([scales, biases], axis=1))


def test_a_kernel_that_makes_other_bits_does_not_serve(stand_in: list[Any]) -> None:
    make = store.OwnKernel.on

    def wrong(*given: Any) -> Any:
        run = make(*given)
        return lambda arrays: [part + 1 for part in run(arrays)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.OwnKernel, "on", wrong)
        assert store._kernel.__wrapped__("host", (1, 2, 1, 64), mx.float16, 4, 64) is None
    assert store._kernel.__wrapped__("host", (1, 2, 1, 64), mx.float16, 4, 64) is not None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """MLX's own operations in the kernel's place; in a list, the shapes that it was asked for."""
    asked: list[Any] = []

    def on(self: Any, backend: str, dtype: Any, _: Any, constants: dict[str, int], *__: Any) -> Any:
        group = 32 * constants["LANES"] // constants["BITS"]

        def run(arrays: list[mx.array]) -> list[mx.array]:
            asked.append(arrays[0].shape)
            both = mx.concatenate(arrays, axis=1)
            words, *parts = mx.quantize(both, group_size=group, bits=constants["BITS"])
            return [words, mx.concatenate(parts, axis=1)]

        return run

    monkeypatch.setattr(store, "launches", SimpleNamespace(backend=lambda: "host"))
    monkeypatch.setattr(store.OwnKernel, "on", on)
    store._kernel.cache_clear()
    yield asked
    store._kernel.cache_clear()


def same(a: Cache, b: Cache) -> bool:
    """Whether two caches hold the same, as far as anybody may look."""
    if (a.offset, type(a.keys), type(a.values)) != (b.offset, type(b.keys), type(b.values)):
        return False
    pairs = zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
    return all(mx.array_equal(x[:, :, : a.offset], y[:, :, : b.offset]) for x, y in pairs)


def feed(caches: tuple[Cache, Cache], patch: StorePatch, rng: Any, count: int) -> None:
    """The same tokens to one cache patched, and to its twin as ever."""
    shape = (2, 3, count, 64)
    keys, values = drawn(rng, *shape), drawn(rng, *shape)
    fetched = [caches[0].update_and_fetch(keys, values)]
    original: Callable[..., Any] = patch._own[0]
    fetched.append(original(caches[1], keys, values))
    for a, b in zip(*((*k, *v) for k, v in fetched), strict=True):
        assert mx.array_equal(a, b)
    assert same(*caches)


def trimmed(caches: tuple[Cache, Cache], by: int) -> None:
    for cache in caches:
        cache.trim(by)


def swapped(caches: tuple[Cache, Cache]) -> None:
    """Other arrays in its place, as where a prompt's cache is loaded."""
    for cache in caches:
        cache.state = (*([mx.array(a) for a in held] for held in cache.state[:2]), *cache.state[2:])


def replaced(caches: tuple[Cache, Cache]) -> None:
    """Other arrays in the lists in which a cache keeps its own, where mlx-lm has lists."""
    for cache in caches:
        if type(cache.keys) is list:
            cache.keys, cache.values = [*cache.keys], [*cache.values]  # a fork may share its own
            cache.keys[1], cache.values[2] = 2 * cache.keys[1], -cache.values[2]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cache_is_mlx_lm_s_after_every_call(bits: int, stand_in: list[Any]) -> None:
    patch = StorePatch()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        caches, forks = (QuantizedKVCache(64, bits), QuantizedKVCache(64, bits)), []
        if seed % 2:  # of a plain one: in lists
            plain, held = KVCache(), drawn(rng, 2, 3, 5, 64)
            plain.update_and_fetch(held, held)
            caches = plain.to_quantized(64, bits), plain.to_quantized(64, bits)
        with installed([patch]):
            feed(caches, patch, rng, int(rng.integers(1, 300)))
            for _ in range(60):
                what = rng.integers(8)
                if what == 0:
                    feed(caches, patch, rng, int(rng.integers(2, 9)))
                elif what == 1:
                    trimmed(caches, int(rng.integers(1, 4)))
                elif what == 2:
                    swapped(caches)
                elif what == 3:
                    replaced(caches)
                elif what == 4:
                    forks.append(copy.deepcopy(caches))
                elif what == 5 and forks:
                    feed(forks[int(rng.integers(len(forks)))], patch, rng, 1)
                else:
                    feed(caches, patch, rng, 1)
            assert all(same(*fork) for fork in forks)
        assert len(stand_in) > 10


def test_it_grows_and_is_put_back(stand_in: list[Any]) -> None:
    """Over 520 tokens, and with mlx-lm's method in between, which writes where it finds room."""
    patch, rng = StorePatch(), np.random.default_rng(0)
    caches = QuantizedKVCache(64, 4), QuantizedKVCache(64, 4)
    stock = QuantizedKVCache.update_and_fetch
    with installed([patch]):
        for _ in range(520):
            feed(caches, patch, rng, 1)
    assert QuantizedKVCache.update_and_fetch is stock
    trimmed(caches, 2)
    keys = drawn(rng, 2, 3, 1, 64)
    for cache in caches:
        cache.update_and_fetch(keys, keys)
    assert same(*caches)
    with installed([patch]):
        feed(caches, patch, rng, 1)


def test_what_it_does_not_serve_is_mlx_lm_s(stand_in: list[Any]) -> None:
    patch = StorePatch()
    with installed([patch]):
        for bits, keys, values in [
            (3, (1, 2, 1, 64), (1, 2, 1, 64)),  # words that hold no whole numbers
            (6, (1, 2, 1, 64), (1, 2, 1, 64)),
            (4, (1, 2, 1, 128), (1, 2, 1, 64)),  # keys and values differ in width
        ]:
            rng = np.random.default_rng(0)
            cache = QuantizedKVCache(64, bits)
            for _ in range(3):
                cache.update_and_fetch(drawn(rng, *keys), drawn(rng, *values))
            assert cache.offset == 3
        plain = KVCache()
        plain.update_and_fetch(mx.ones((1, 2, 1, 64)), mx.ones((1, 2, 1, 64)))

        class Other(QuantizedKVCache):
            __hash__ = None  # as of a dataclass

        other = Other(64, 4)
        for _ in range(3):
            other.update_and_fetch(mx.ones((1, 2, 1, 64)), mx.ones((1, 2, 1, 64)))
        changed = QuantizedKVCache(64, 4)
        for _ in range(2):
            changed.update_and_fetch(mx.ones((1, 2, 1, 64)), mx.ones((1, 2, 1, 64)))
        asked = [*stand_in]
        changed.bits = 8
        with pytest.raises(ValueError, match="broadcast"):
            changed.update_and_fetch(mx.ones((1, 2, 1, 64)), mx.ones((1, 2, 1, 64)))
    assert stand_in == asked


def test_several_tokens_between_single_ones_copy_no_cache(
    stand_in: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where drafts are verified, and trimmed."""
    patch, rng, taken, real = StorePatch(), np.random.default_rng(0), [], store._taken_up
    monkeypatch.setattr(store, "_taken_up", lambda *given: taken.append(1) or real(*given))
    caches = QuantizedKVCache(64, 4), QuantizedKVCache(64, 4)
    with installed([patch]):
        for count in (9, 1, 2, 1, 1, 3, 1, 300, 1):
            feed(caches, patch, rng, count)
            trimmed(caches, 1)
    assert len(taken) == 2  # for the prompt in vain


def test_what_another_library_put_there_is_called_for_every_token(stand_in: list[Any]) -> None:
    """Before, and with mlx-lm's method alone in its hands once this is put back."""
    stock, calls, ones = QuantizedKVCache.update_and_fetch, [], mx.ones((1, 2, 1, 64))

    def fed() -> QuantizedKVCache:
        cache = QuantizedKVCache(64, 4)
        for _ in range(3):
            cache.update_and_fetch(ones, ones)
        return cache

    def wrapping(inner: Any) -> Any:
        return lambda *given: calls.append(given) or inner(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantizedKVCache, "update_and_fetch", wrapping(stock))
        with installed([StorePatch()]):
            fed()
        assert len(calls) == 3
        assert stand_in == []
    with pytest.MonkeyPatch.context() as patch:
        with installed([StorePatch()]):
            over = wrapping(QuantizedKVCache.update_and_fetch)
            patch.setattr(QuantizedKVCache, "update_and_fetch", over)
            fed()
        asked = len(stand_in)
        fed()
        assert len(calls) == 9
        assert len(stand_in) == asked > 0


def test_a_cache_of_another_dtype_or_batch_does_as_ever(stand_in: list[Any]) -> None:
    """mlx-lm casts what it stores, and repeats one sequence's: whatever comes of it."""
    for late in (drawn(np.random.default_rng(1), 2, 3, 1, 64, dtype=mx.float32),
                 drawn(np.random.default_rng(1), 1, 3, 1, 64)):  # fmt: skip
        patch, rng = StorePatch(), np.random.default_rng(0)
        caches = QuantizedKVCache(64, 4), QuantizedKVCache(64, 4)
        with installed([patch]):
            feed(caches, patch, rng, 5)
            caches[0].update_and_fetch(late, late)
        caches[1].update_and_fetch(late, late)
        assert same(*caches)


@pytest.mark.parametrize(("way", "serves"), [(ALL, True), (MERGED, False)])
def test_it_is_on_where_fused_layers_are(way: str, serves: bool, stand_in: list[Any]) -> None:
    model = architectures.build("qwen3")
    steps = Steps({slug(structure(model), 1): way})
    stock = QuantizedKVCache.update_and_fetch

    def decoded() -> list[mx.array]:
        cache = [c.to_quantized(32, 8) for c in filled()]
        made = [model(mx.array([[7 + i]]), cache=cache)[:, -1] for i in range(6)]
        mx.eval(made)
        return made

    def filled() -> list[Any]:
        cache = empty_cache(model, 1)
        model(mx.array([[1, 2, 3]]), cache=cache)
        return cache

    want = decoded()
    with installed([steps]):
        filled()
        assert (QuantizedKVCache.update_and_fetch is not stock) is serves
        got = decoded()
    assert QuantizedKVCache.update_and_fetch is stock
    assert bool(stand_in) is serves
    assert all(mx.allclose(a, b, atol=1e-4) for a, b in zip(want, got, strict=True))
