"""Which route a call takes: calls that share a key, in any order, with any of them served."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_lm_openevolve.device import Device
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.ops.base import ON_CPU
from mlx_lm_openevolve.runtime import dispatch
from mlx_lm_openevolve.runtime.dispatch import Route, Router
from mlx_lm_openevolve.runtime.planner import Plan, Planner

KEYS = 20
NAMES = ("queries", "keys", "values", "mask", "sinks")


def floats(heads: int, length: int, width: int = 64, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.zeros((1, heads, length, width), dtype)


def call(**changes: Any) -> dict[str, Any]:
    made = {"queries": floats(4, 1), "keys": floats(1, KEYS), "values": floats(1, KEYS)}
    return made | {"cache": KVCache(), "scale": 0.125, "mask": None, "sinks": None} | changes


def halves() -> dict[str, mx.array]:
    return {
        "queries": floats(4, 1, dtype=mx.float16),
        "keys": floats(1, KEYS, dtype=mx.float16),
        "values": floats(1, KEYS, dtype=mx.float16),
    }


BOTH = floats(1, KEYS)
CALLS = {
    "plain": call(),
    "another dtype": call(**halves()),
    "queries of another dtype": call(queries=halves()["queries"]),
    "keys of another dtype": call(keys=halves()["keys"]),
    "values of another dtype": call(values=halves()["values"]),
    "wider values": call(values=floats(1, KEYS, 128)),
    "fewer values": call(values=floats(1, KEYS - 1)),
    "one array for keys and values": call(keys=BOTH, values=BOTH),
    "sinks": call(sinks=mx.zeros((4,), mx.bfloat16)),
    "sinks of another dtype": call(sinks=mx.zeros((4,))),
    "sinks of too few heads": call(sinks=mx.zeros((3,), mx.bfloat16)),
    "bool mask": call(mask=mx.ones((KEYS,), mx.bool_)),
    "bool mask of four axes": call(mask=mx.ones((1, 4, 1, KEYS), mx.bool_)),
    "bool mask that does not fit": call(mask=mx.ones((KEYS - 1,), mx.bool_)),
    "additive mask": call(mask=mx.zeros((KEYS,), mx.bfloat16)),
    "mask of another dtype": call(mask=mx.zeros((KEYS,))),
    "bool mask and sinks": call(mask=mx.ones((KEYS,), mx.bool_), sinks=mx.zeros((4,), mx.bfloat16)),
}


def packed(bits: int = 4, group: int = 32, dtype: mx.Dtype = mx.bfloat16) -> Any:
    return tuple(mx.quantize(floats(2, KEYS, 64, dtype), group_size=group, bits=bits))


def quantised(
    keys: Any, values: Any, bits: int = 4, group: int = 32, **changes: Any
) -> dict[str, Any]:
    cache = QuantizedKVCache(group_size=group, bits=bits)
    return call(keys=keys, values=values, cache=cache) | changes


WORDS, SCALES, BIASES = packed()
QUANTISED = {
    "plain": quantised(packed(), packed()),
    "eight bits": quantised(packed(8), packed(8), 8),
    "greater groups": quantised(packed(4, 64), packed(4, 64), 4, 64),
    "values of greater groups": quantised(packed(), packed(4, 64)),
    "values of eight bits": quantised(packed(), packed(8)),
    "scales of another dtype": quantised(packed(dtype=mx.float16), packed(dtype=mx.float16)),
    "biases of another dtype": quantised((WORDS, SCALES, BIASES.astype(mx.float16)), packed()),
    "no biases": quantised((WORDS, SCALES), (WORDS, SCALES)),
    "other words": quantised((WORDS.astype(mx.int32), SCALES, BIASES), packed()),
    "sinks": quantised(packed(), packed(), sinks=mx.zeros((4,), mx.bfloat16)),
    "bool mask": quantised(packed(), packed(), mask=mx.ones((KEYS,), mx.bool_)),
    "bool mask that does not fit": quantised(
        packed(), packed(), mask=mx.ones((KEYS - 1,), mx.bool_)
    ),
    "additive mask": quantised(packed(), packed(), mask=mx.zeros((KEYS,), mx.bfloat16)),
}


class Chosen(Router):
    """Serves the workloads that `serves` says yes to; a kernel's answer is the workload that it was
    built for, with what it was called with."""

    def __init__(self, home: Path, serves: Callable[[Workload], bool]) -> None:
        planner = Planner(Device("host", "chip", "Chip", "arch"), [Registry(home)])
        planner.plan = lambda bucket: Plan(bucket, "")  # type: ignore[method-assign]
        super().__init__(OP, planner)
        self.serves = serves

    @functools.cached_property
    def attention(self) -> Any:
        return self.wrap(original)

    def _build(self, exact: Any, plan: Plan, arrays: tuple[Any, ...]) -> Route:
        if not self.serves(exact):
            return Route(plan, "not chosen")
        return Route(plan, "chosen", lambda *given: (exact, given))  # type: ignore[arg-type, return-value]


def original(*given: Any) -> tuple[str, tuple[Any, ...]]:
    return "original", given


def routed(router: Chosen, asked: dict[str, Any]) -> bool:
    """Whether a kernel served the call; it must be the one for its workload, and be handed what
    the call holds, as must the original."""
    described = OP.describe(**asked)
    by, given = router.attention(**asked)
    if by == "original":
        assert all(a is b for a, b in zip(given, asked.values(), strict=True))
        return False
    assert by.launch_key() == described.launch_key()
    queries, keys, values, scale, mask, sinks = given
    for name, array in zip(NAMES, (queries, keys, values, mask, sinks), strict=True):
        assert array is asked[name]
    assert scale.item() == 0.125
    return True


def at_length(asked: dict[str, Any], keys: int) -> dict[str, Any]:
    """The same call when its cache holds so many keys."""

    def longer(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(longer, x))
        if not isinstance(x, mx.array):
            return x
        return mx.zeros([n - KEYS + keys if n in (KEYS, KEYS - 1) else n for n in x.shape], x.dtype)

    made = {name: longer(x) for name, x in asked.items()}
    return made | ({"values": made["keys"]} if asked["keys"] is asked["values"] else {})


LENGTHS = (7, 8, KEYS, KEYS + 1, 31, 33)


def in_some_order(calls: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Each call at three lengths, buckets' neighbours among them."""
    lengths = random.Random(seed + 1).sample(LENGTHS, 3)
    order = [at_length(asked, n) for asked in calls.values() for n in lengths]
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("calls", [CALLS, QUANTISED], ids=["floats", "quantised"])
def test_calls_that_share_a_key_never_take_another_s_kernel(
    calls: dict[str, Any], seed: int, home: Path
) -> None:
    """All are served that can be where every workload has a kernel; where some have none, the
    original may serve more than it must."""
    order = in_some_order(calls, seed)
    described = [OP.describe(**asked) for asked in order]
    workloads = {w for w in described if isinstance(w, Workload)}
    assert len(workloads) >= 12
    assert len(workloads) < len(order) - 6, "some that no workload describes"
    launches = {w.launch_key() for w in workloads}
    chosen = {w for w in sorted(launches, key=str) if random.Random(f"{w}{seed}").random() < 0.5}
    everything, some = (
        Chosen(home, lambda w: True),
        Chosen(home, lambda w: w.launch_key() in chosen),
    )
    for asked in order:
        w = OP.describe(**asked)
        assert routed(everything, asked) == isinstance(w, Workload)
        assert not routed(some, asked) or (isinstance(w, Workload) and w.launch_key() in chosen)
    for router in (everything, some):
        counted = sum(route.hits + route.fallbacks for route in router.counts())
        assert counted + sum(router.fallbacks().values()) == 3 * len(calls)


@pytest.mark.parametrize("calls", [CALLS, QUANTISED], ids=["floats", "quantised"])
def test_routes_are_forgotten_together(
    calls: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "MAX_ROUTES", 6)
    router = Chosen(home, lambda w: True)
    for asked in in_some_order(calls, 0):
        assert routed(router, asked) == isinstance(OP.describe(**asked), Workload)
        assert len(router.routes) <= 7


def test_the_device_is_asked_for_before_a_plan_and_before_a_kernel_alone(home: Path) -> None:
    for asked in (CALLS["plain"], QUANTISED["plain"]):
        for serves in (True, False):
            router = Chosen(home, lambda w, serves=serves: serves)  # type: ignore[misc]
            answers: list[bool] = []
            router.on_cpu = lambda answers=answers: answers.pop()  # type: ignore[misc]
            answers[:] = [True]
            assert not routed(router, asked)
            assert (answers, router.launches, router.fallbacks()) == ([], {}, {ON_CPU: 1})
            answers[:] = [True, False]  # the last is asked for first
            assert [routed(router, asked) for _ in range(2)] == [serves, False]
            assert answers == [] if serves else [True]
            assert router.fallbacks() == {ON_CPU: 1 + serves}


@pytest.mark.parametrize("calls", [CALLS, QUANTISED], ids=["floats", "quantised"])
def test_calls_of_two_models_in_turn_and_in_a_row_take_their_own_kernels(
    calls: dict[str, Any], home: Path
) -> None:
    """A call is first compared with the last one: what follows it may be of any other key."""
    router = Chosen(home, lambda w: True)
    every = [*calls.values(), *({} if calls is QUANTISED else QUANTISED).values()]
    for first in every:
        for second in every:
            for asked in (first, second, second, first):
                assert routed(router, asked) == isinstance(OP.describe(**asked), Workload)


def test_threads_take_their_own_kernels(home: Path) -> None:
    router = Chosen(home, lambda w: w.mask == "none")
    kinds = [*CALLS.values(), *QUANTISED.values()]

    def served(seed: int) -> int:
        order = [random.Random(seed + n).choice(kinds) for n in range(600)]
        wanted = [getattr(OP.describe(**asked), "mask", "") == "none" for asked in order]
        return sum(routed(router, asked) for asked in order) - sum(wanted)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(served, range(0, 4000, 1000))) == [0] * 4
    finally:
        sys.setswitchinterval(interval)


def test_of_two_dtypes_of_one_size_the_first_decides_at_its_length_alone(home: Path) -> None:
    """What the original serves is asked for no dtype; a kernel's calls always are."""
    router = Chosen(home, lambda w: w.dtype == "bfloat16")
    half, plain = CALLS["another dtype"], CALLS["plain"]
    assert not routed(router, half)
    assert not routed(router, plain)
    assert not routed(router, half)
    assert routed(router, at_length(plain, KEYS + 1))
    assert not routed(router, at_length(half, KEYS + 1))
    assert routed(router, at_length(plain, KEYS + 1))
    single = {name: floats(4 if name == "queries" else 1, n, dtype=mx.float32)
              for name, n in (("queries", 1), ("keys", KEYS), ("values", KEYS))}  # fmt: skip
    router = Chosen(home, lambda w: w.dtype == "bfloat16")
    assert not routed(router, call(**single))
    assert routed(router, plain)


@pytest.mark.parametrize("asked", [CALLS["plain"], QUANTISED["plain"]], ids=["floats", "quantised"])
def test_what_is_met_while_tracing_is_not_remembered(asked: dict[str, Any], home: Path) -> None:
    router = Chosen(home, lambda w: True)

    def traced(queries: mx.array) -> mx.array:
        by, given = router.attention(**asked | {"queries": queries})
        assert by == "original"
        return given[0] + 1

    mx.eval(mx.compile(traced)(asked["queries"]))
    assert (router.launches, router.routes) == ({}, {})
    assert [routed(router, asked) for _ in range(2)] == [True, True]
