"""Every way to write to a module is told of it, after it happened; reading is not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from mlx_lm_openevolve.decode.writes import Writes


@pytest.fixture
def writes() -> Iterator[Writes]:
    before = dict(vars(nn.Module))
    found = Writes()
    found.install()
    try:
        yield found
    finally:
        found.restore()
        assert dict(vars(nn.Module)) == before


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
        self.scale = 1.0


def the_adapted(block: Any) -> None:
    block.update_modules({"up": nn.Linear(32, 32, bias=False)})


WAYS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda b: setattr(b.up, "weight", mx.zeros((32, 32))),
    "number": lambda b: setattr(b, "scale", 2.0),
    "module": lambda b: setattr(b, "up", nn.Linear(32, 32)),
    "item": lambda b: b.up.__setitem__("weight", mx.zeros((32, 32))),
    "or": lambda b: b.up.__ior__({"weight": mx.zeros((32, 32))}),
    "setdefault": lambda b: b.up.setdefault("other", mx.zeros(1)),
    "delete": lambda b: delattr(b.up, "bias"),
    "delete number": lambda b: delattr(b, "scale"),
    "delete item": lambda b: b.up.__delitem__("bias"),
    "pop": lambda b: b.up.pop("bias"),
    "popitem": lambda b: b.up.popitem(),
    "clear": lambda b: b.up.clear(),
    "update": lambda b: b.update(tree_map(lambda a: a + 1, b.parameters())),
    "load": lambda b: b.load_weights([("up.bias", mx.ones(32))], strict=False),
    "dtype": lambda b: b.set_dtype(mx.float16),
    "quantise": lambda b: nn.quantize(b, group_size=32),
    "layers": the_adapted,
    "eval": lambda b: b.eval(),
}


def state(block: Any) -> list[Any]:
    modules = [block, *filter(None, (block.get("up"), block.get("down")))]
    return [[*map(id, m.values()), *map(id, vars(m).values())] for m in modules]


@pytest.mark.parametrize("way", WAYS)
def test_a_write_is_told_when_it_happened(writes: Writes, way: str) -> None:
    block, other = Block(), Block()
    seen, others = [state(block)], list[int]()
    writes.tell(lambda: seen.append(state(block)), [id(m) for m in block.modules()])
    writes.tell(lambda: others.append(1), [id(m) for m in other.modules()])
    WAYS[way](block)
    assert seen[-1] == state(block) != seen[0]
    assert not others


def test_reading_is_not_told(writes: Writes) -> None:
    block, told = Block(), list[int]()
    writes.tell(lambda: told.append(1), [id(m) for m in block.modules()])
    mx.eval(block.up(mx.zeros((1, 32))), block.parameters())
    assert not block.training or "scale" in vars(block)
    assert not told


def test_errors_and_what_is_returned_are_the_method_s_own(writes: Writes) -> None:
    block, told = Block(), list[int]()
    writes.tell(lambda: told.append(1), [id(block.up)])
    bias = block.up.bias
    assert block.up.pop("bias") is bias
    assert block.up.pop("bias", 7) == 7
    with pytest.raises(KeyError, match="bias"):
        block.up.pop("bias")
    with pytest.raises(AttributeError):
        del block.up.nothing
    assert told


def test_what_is_no_longer_asked_for_is_not_told(writes: Writes) -> None:
    block, told = Block(), list[str]()
    first, second = (lambda: told.append("a")), (lambda: told.append("b"))
    for one in (first, second):
        writes.tell(one, [id(block), id(block.up)])
    writes.forget(first, [id(block), id(block.up), 0])
    block.scale = 3.0
    assert set(told) == {"b"}
    writes.forget(second, [id(block), id(block.up)])
    told.clear()
    block.scale = 4.0
    assert not told


def test_whether_its_methods_stand(writes: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writes.stand
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__setitem__", dict.__setitem__)
        assert not writes.stand
    assert writes.stand


def test_who_asks_while_another_thread_no_longer_does_is_told(writes: Writes) -> None:
    done, lost = threading.Event(), list[int]()

    def first() -> None: ...

    def second() -> None: ...

    def work() -> None:
        try:
            while not done.is_set():
                writes.tell(first, [1])
                writes.forget(first, [1])
        except ValueError:
            lost.append(-1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for i in range(50_000):
            writes.tell(second, [1])
            if second not in writes._told.get(1, ()):
                lost.append(i)
            writes.forget(second, [1])
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not lost
