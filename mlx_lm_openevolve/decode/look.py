"""One run of a layer on stand-ins: how it calls attention, and which products it makes.

Nothing is known of any layer beforehand. It is run as it is, with stand-ins for the cache, for what
the cache returns and for the mask: these can be handed on to attention and do nothing else. So what
a layer does with them is seen, and a layer that does more is left alone, with the reason.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from ..runtime.patch import swapping
from .known import CHANGES
from .writes import METHODS

__all__ = [
    *("ATTENTION", "PRODUCTS", "AttentionCall", "Called", "Part", "Run", "Seen", "Trace"),
    *("Unsplittable", "as_array", "held", "in_place", "look", "method_of", "result", "stock"),
]

ATTENTION = "scaled_dot_product_attention"
PRODUCTS: tuple[type, ...] = (Linear, QuantizedLinear, QuantizedSwitchLinear)
_OURS = __name__.partition(".")[0]
Run = Callable[..., Any]  # a layer's own __call__(layer, x, mask, cache)


class Unsplittable(Exception):
    """A layer does something that its two halves could not do."""


class _Reached(BaseException):
    """Attention is reached: what comes before it is done."""


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise Unsplittable(f"it asks its mask, its cache or what that returns for {name}")

    return refuse


class _Stand:
    """Stands for an array that is only ever handed on. isinstance says of it what it says of an
    array, so that a layer takes the way that it takes with one."""

    __class__ = mx.array  # type: ignore[assignment]
    for _name in ("eq", "ne", "lt", "gt", "bool", "len", "iter", "getitem", "getattr", "float"):
        locals()[f"__{_name}__"] = _refuse(_name)
    del _name
    __hash__ = object.__hash__


class _Cache:
    """Stands for a cache, of which a layer may read the offset, and then update it once."""

    def __init__(self, offset: int | mx.array) -> None:
        self._offset = offset
        self.given: tuple[Any, Any] | None = None
        self.fetched = _Stand(), _Stand()

    @property
    def offset(self) -> int | mx.array:
        if self.given is not None:
            raise Unsplittable("it asks its cache for the offset after the update")
        return self._offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        if self.given is not None:
            raise Unsplittable("it updates its cache twice")
        self.given = copy.copy(keys), copy.copy(values)  # they may change in place afterwards
        return self.fetched

    def __getattr__(self, name: str) -> Any:
        raise Unsplittable(f"it asks its cache for {name}")

    __bool__ = __len__ = __iter__ = _refuse("its size")
    __class__ = property(_refuse("its class"))


class AttentionCall(NamedTuple):
    """How a layer calls attention: the names of its module, where it is looked up at each call, and
    the arguments that are the same in all calls."""

    space: dict[str, Any]
    fixed: dict[str, Any]
    masked: bool


class Seen(NamedTuple):
    """What one run of a layer on stand-ins has shown. calls: each call of a layer of PRODUCTS, with
    its arguments, in their order; sorts: a product of them takes rows sorted by expert."""

    attention: AttentionCall
    calls: list[tuple[Any, tuple[Any, ...]]]
    sorts: bool

    def together(self) -> list[tuple[list[Any], tuple[Any, ...]]]:
        """The layers that were called once, and with the very same input, two or more together, and
        this input; experts with the same indices, which take one row of x each."""
        groups: dict[tuple[int, ...], tuple[list[Any], tuple[Any, ...]]] = {}
        often = Counter(id(module) for module, _ in self.calls)
        for module, given in self.calls:
            shared = len(given) == 1 or given[0].shape[-3:-1] == (1, 1)
            if often[id(module)] == 1 and shared:
                groups.setdefault(tuple(map(id, given)), ([], given))[0].append(module)
        return [group for group in groups.values() if len(group[0]) > 1]


class Part(NamedTuple):
    """One of several products that are made as one. Its place in what `product` returns: between
    `ends`, the last numbers of all but the last; of layers of experts, these are experts, and each
    part is as long as another."""

    product: Any
    ends: list[int]
    place: int

    @property
    def of_experts(self) -> bool:
        return isinstance(self.product, QuantizedSwitchLinear)

    def given(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the product takes where the part takes x, and the indices of experts [.., k]."""
        x, *indices = given
        return x, *(mx.concatenate([i + first for first in (0, *self.ends)], -1) for i in indices)


# called(original, layer, *arguments) is what the product of a layer returns while it is traced.
Called = Callable[..., Any]
# What to put over what: a holder (a module's names, a class or a module), a name, and a function
# that is called with the original before its arguments.
Place = tuple[Any, str, Run]


@contextlib.contextmanager
def in_place(places: Sequence[Place]) -> Iterator[None]:
    """With other functions there for this thread, each over those before it; other threads pass
    through what stands there. One at a time, and while nothing is patched."""
    thread, on = threading.get_ident(), True

    def instead(original: Run, put: Run) -> Run:
        def function(*args: Any, **named: Any) -> Any:
            if on and threading.get_ident() == thread:
                return put(original, *args, **named)
            return original(*args, **named)

        return function

    def set_(holder: Any, name: str, function: Run) -> None:
        if isinstance(holder, dict):
            holder[name] = function
        else:
            setattr(holder, name, function)

    with swapping:
        were: list[tuple[Any, str, Run]] = []

        def put_back() -> None:
            for was in reversed(were):
                set_(*was)

        try:
            for holder, name, put in places:
                original = (holder if isinstance(holder, dict) else vars(holder))[name]
                were.append((holder, name, original))
                set_(holder, name, instead(original, put))
            try:
                yield
            finally:
                on = False  # an interrupt may keep some of them in place
        finally:
            try:
                put_back()
            except BaseException:
                put_back()
                raise


def _spaces(layer: Any) -> list[dict[str, Any]]:
    """The names of the modules whose classes the layer is made of, where these hold attention."""
    found = {}
    for module in layer.modules():
        for cls in type(module).__mro__:
            space = _globals(cls)
            if ATTENTION in space:
                found[id(space)] = space
    return list(found.values())


def _globals(cls: type) -> dict[str, Any]:
    """The names that a class's own `__call__` sees, below what we put over it."""
    method, space = vars(cls).get("__call__"), dict[str, Any]()
    while method is not None:
        space = getattr(method, "__globals__", {})
        ours = str(space.get("__name__")).partition(".")[0] == _OURS
        method = getattr(method, "__wrapped__", None) if ours else None
    return space


class Trace:
    """One run of a layer on stand-ins. called: what its products return; others: what else is put
    over something."""

    def __init__(self, layer: Any, run: Run, called: Called, others: Sequence[Place] = ()) -> None:
        self._layer, self._run = layer, run
        self._places = [*((cls, "__call__", called) for cls in PRODUCTS), *others]
        self._spaces = _spaces(layer)
        self.attention: AttentionCall | None = None

    def before(self, x: mx.array, offset: int | mx.array, masked: bool) -> tuple[Any, Any, Any]:
        """Queries, keys and values. Raises Unsplittable, and what the layer raises."""
        queries = None

        def reached(given: Any) -> Any:
            nonlocal queries
            queries = given
            raise _Reached

        with contextlib.suppress(_Reached):
            self._through(x, offset, masked, reached)
        if queries is None:
            raise Unsplittable("it calls no attention")
        assert self.given is not None
        return (queries, *self.given)

    def after(self, x: mx.array, offset: int | mx.array, masked: bool, out: mx.array) -> mx.array:
        """What the layer returns where attention returned `out`. Raises as `before` does."""
        returned = [out]
        made = self._through(x, offset, masked, lambda _: returned.pop())
        if type(made) is not mx.array or made.shape != x.shape or returned:
            raise Unsplittable("it returns something else than another x")
        return made

    def _through(
        self, x: mx.array, offset: int | mx.array, masked: bool, result: Callable[[Any], Any]
    ) -> Any:
        cache, mask = _Cache(offset), _Stand() if masked else None
        self.given: tuple[Any, Any] | None = None
        own = held(self._layer.modules())

        def changed(original: Run, array: mx.array, *given: Any) -> Any:
            if any(array is a for a in (x, offset, *own)):
                raise Unsplittable("it changes in place what it was given or holds")
            return original(array, *given)

        def attend(original: Run, *args: Any, **named: Any) -> Any:
            if self.given is not None:
                raise Unsplittable("it calls attention twice")
            call = inspect.signature(original).bind(*args, **named).arguments
            queries, keys, values = (call.pop(name) for name in ("queries", "keys", "values"))
            of_cache, of_mask = call.pop("cache", None), call.pop("mask", None)
            same = keys is cache.fetched[0] and values is cache.fetched[1] and of_cache is cache
            if not same or of_mask is not mask or cache.given is None:
                raise Unsplittable("attention gets other keys, values, cache or mask")
            call = {name: value for name, value in call.items() if value is not None}
            for value in call.values():
                if type(value) not in (int, float, bool) and not any(value is a for a in own):
                    raise Unsplittable("attention gets what the layer has computed")
            self.given = cache.given
            self.attention = AttentionCall(self._space(original), call, masked)
            return result(queries)

        ours: list[Place] = [(space, ATTENTION, attend) for space in self._spaces]
        ours += [(mx.array, name, changed) for name in CHANGES]
        with in_place([*ours, *self._places]):
            return self._run(self._layer, x, mask, cache)

    def _space(self, original: Run) -> dict[str, Any]:
        # While it is replaced: by what stands for it. They differ where modules hold others.
        for space in self._spaces:
            if getattr(space[ATTENTION], "__closure__", None) and any(
                cell.cell_contents is original for cell in space[ATTENTION].__closure__
            ):
                return space
        raise Unsplittable("attention is called by another name")


def look(
    layer: Any,
    run: Run,
    x: mx.array,
    offset: int | mx.array,
    masked: bool,
    others: Sequence[Place] = (),
) -> Seen:
    """Run a layer on stand-ins, for an x [B, 1, D] and an offset like these; others: as Trace's.
    Nothing is computed, and the layer is as it was. Raises Unsplittable, and whatever the layer
    raises on stand-ins."""
    calls: list[tuple[Any, Any]] = []  # holds each input, so that no two have one id
    sorts = False

    def called(original: Run, module: Any, *given: Any, **named: Any) -> Any:
        nonlocal sorts
        sorts = sorts or bool(named.get("sorted_indices"))
        calls.append((module, given))
        return stock(original)(module, *given, **named)

    def dtypes(offset: int | mx.array) -> list[mx.Dtype]:
        parts = trace.before(x, offset, masked)
        calls.clear()
        return [a.dtype for a in (*parts, trace.after(x, offset, masked, result(parts)))]

    trace = Trace(layer, run, called, others)
    x = mx.zeros(x.shape, x.dtype)
    # Another thread's trace would look like what another library put there.
    with swapping, _untouched(layer):
        found = dtypes(as_array(offset))
        # A number leaves the dtype of what it meets, an array may not.
        if isinstance(offset, int) and dtypes(1) != found:
            raise Unsplittable("an offset that is an array gives it other dtypes")
    assert trace.attention is not None
    return Seen(trace.attention, calls, sorts)


@contextlib.contextmanager
def _untouched(layer: Any) -> Iterator[None]:
    """With a layer that is put back as it was. Raises Unsplittable where it did more in the
    meantime than it returned, or would: what another library put over a class's `__call__` may."""
    modules = layer.modules()
    for owner in {cls for module in modules for cls in type(module).__mro__}:
        space, package = _globals(owner), owner.__module__.partition(".")[0]
        if space and str(space.get("__name__")).partition(".")[0] != package:
            raise Unsplittable(f"somebody replaced {owner.__qualname__}.__call__")
        if vars(owner).get("__slots__"):
            raise Unsplittable(f"attributes of {owner.__qualname__} lie in slots")
        if owner not in (Module, dict, object) and not vars(owner).keys().isdisjoint(METHODS):
            raise Unsplittable(f"{owner.__qualname__} is written to in a way of its own")
    inside = [v for m in modules for v in m.values() if not isinstance(v, Module | mx.array)]
    leaves: Any = tree_flatten(inside, is_leaf=Module.is_module)
    if any(isinstance(leaf, Module) for _, leaf in leaves):
        raise Unsplittable("it holds layers in a list")
    plain = [v for v in inside if type(v) in (list, dict)]
    spaces = [*plain, *modules, *map(vars, modules)]
    were = [dict(space) if isinstance(space, dict) else list(space) for space in spaces]
    random: Any = mx.random.state
    key, changed = random[0], []  # this thread's; another one after a draw
    try:
        yield
    finally:
        for space, was in zip(spaces, were, strict=True):
            if [*map(id, _values(space))] != [*map(id, _values(was))]:
                changed.append(space)
                if isinstance(space, dict):
                    dict.clear(space)
                    dict.update(space, was)
                else:
                    space[:] = was
        drawn = random[0]
        if drawn is not key:
            changed.append(drawn)
            drawn[:] = key
    if changed:
        raise Unsplittable("it changes what it holds, or draws random numbers")
    if any(isinstance(leaf, mx.array) for _, leaf in leaves):
        raise Unsplittable("it holds arrays in a list")


def _values(space: Any) -> Any:
    return space.values() if isinstance(space, dict) else space


def as_array(offset: int | mx.array) -> mx.array:
    """What stands for an offset of this kind."""
    return mx.array(1) if isinstance(offset, int) else mx.zeros_like(offset)


def result(parts: tuple[Any, Any, Any]) -> mx.array:
    """Of the shape that attention returns."""
    queries, _, values = parts
    return mx.zeros((*queries.shape[:-1], values.shape[-1]), queries.dtype)


def stock(product: Run) -> Run:
    """A product's method below ours, which asks what a trace cannot say."""
    return inspect.unwrap(product) if hasattr(product, "served") else product


def method_of(product: Any, name: str) -> Run | None:
    """What our replacement of a product's method answers beside it; not what a trace, perhaps
    another thread's, puts over it."""
    with swapping:
        found: Run | None = getattr(type(product).__call__, name, None)
    return found


def held(modules: Sequence[Any]) -> list[Any]:
    """All that modules hold, in a row."""
    return [*chain.from_iterable(map(dict.values, modules))]
