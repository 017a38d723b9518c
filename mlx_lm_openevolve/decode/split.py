"""A model's layer for one token, in two compiled functions around its cache and its attention.

    x, offset -> before -> queries, keys, values -> the cache's update_and_fetch -> attention
              -> after -> what the layer returns

Nothing is known of any layer beforehand. It is run as it is, with stand-ins for the cache, for what
the cache returns and for the mask: these can be handed on to attention and do nothing else. So what
a layer does with them is seen, and a layer that does more is left alone, with the reason. Between
the two functions the caches stay mlx-lm's own, of any kind and length, so nothing is traced anew
while they grow.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from ..runtime.patch import swapping

__all__ = [
    "ATTENTION",
    "PRODUCTS",
    "AttentionCall",
    "Part",
    "Seen",
    "Split",
    "Unsplittable",
    "look",
]

ATTENTION = "scaled_dot_product_attention"
PRODUCTS: tuple[type, ...] = (Linear, QuantizedLinear)
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
        self.given = keys, values
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
    """What one run of a layer on stand-ins has shown. products: the layers of PRODUCTS that were
    called with the very same input, two or more together, in their order."""

    attention: AttentionCall
    products: list[list[Any]]


class Part(NamedTuple):
    """One of several products that are made as one: its place between `ends` in what `product`
    returns."""

    product: Any
    ends: list[int]
    place: int


class Products:
    """Products while a layer is traced: called(layer, x, original) is what they return."""

    def __init__(self, called: Callable[[Any, Any, Run], Any]) -> None:
        self._called, self._thread = called, threading.get_ident()

    def wrap(self, original: Run) -> Run:
        def product(layer: Any, x: Any) -> Any:
            if threading.get_ident() != self._thread:
                return original(layer, x)
            return self._called(layer, x, original)

        return product


@contextlib.contextmanager
def _in_place(
    spaces: list[dict[str, Any]], attend: Run, called: Callable[[Any, Any, Run], Any]
) -> Iterator[None]:
    """With other attention in these modules, and other products, for this thread; other threads
    pass through what stands there. One at a time, and while nothing is patched."""
    thread = threading.get_ident()

    def wrapped(original: Run) -> Run:
        def attention(*args: Any, **named: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **named)
            return attend(original, *args, **named)

        return attention

    products = Products(called)
    with swapping:
        functions = [space[ATTENTION] for space in spaces]
        methods = [vars(cls)["__call__"] for cls in PRODUCTS]
        try:
            for space, function in zip(spaces, functions, strict=True):
                space[ATTENTION] = wrapped(function)
            for cls, method in zip(PRODUCTS, methods, strict=True):
                setattr(cls, "__call__", products.wrap(method))  # noqa: B010
            yield
        finally:
            for space, function in zip(spaces, functions, strict=True):
                space[ATTENTION] = function
            for cls, method in zip(PRODUCTS, methods, strict=True):
                setattr(cls, "__call__", method)  # noqa: B010


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
    """One run of a layer on stand-ins. called: what its products return."""

    def __init__(self, layer: Any, run: Run, called: Callable[[Any, Any, Run], Any]) -> None:
        self._layer, self._run, self._called = layer, run, called
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
            own = [a for m in self._layer.modules() for a in m.values()]
            for value in call.values():
                if type(value) not in (int, float, bool) and not any(value is a for a in own):
                    raise Unsplittable("attention gets what the layer has computed")
            self.given = cache.given
            self.attention = AttentionCall(self._space(original), call, masked)
            return result(queries)

        with _in_place(self._spaces, attend, self._called):
            return self._run(self._layer, x, mask, cache)

    def _space(self, original: Run) -> dict[str, Any]:
        # While it is replaced: by what stands for it. They differ where modules hold others.
        for space in self._spaces:
            if getattr(space[ATTENTION], "__closure__", None) and any(
                cell.cell_contents is original for cell in space[ATTENTION].__closure__
            ):
                return space
        raise Unsplittable("attention is called by another name")


def look(layer: Any, run: Run, x: mx.array, offset: int | mx.array, masked: bool) -> Seen:
    """Run a layer on stand-ins, for an x [B, 1, D] and an offset like these. Nothing is computed,
    and the layer is as it was. Raises Unsplittable, and whatever the layer raises on stand-ins."""
    calls: list[tuple[Any, Any]] = []  # holds each input, so that no two have one id

    def called(module: Any, given: Any, original: Run) -> Any:
        calls.append((module, given))
        return original(module, given)

    def dtypes(offset: int | mx.array) -> list[mx.Dtype]:
        parts = trace.before(x, offset, masked)
        calls.clear()
        return [a.dtype for a in (*parts, trace.after(x, offset, masked, _result(parts)))]

    trace = Trace(layer, run, called)
    x = mx.zeros(x.shape, x.dtype)
    with _untouched(layer):
        found = dtypes(_as_array(offset))
        # A number leaves the dtype of what it meets, an array may not.
        if isinstance(offset, int) and dtypes(1) != found:
            raise Unsplittable("an offset that is an array gives it other dtypes")
    together: dict[int, list[Any]] = {}
    for module, given in calls:
        together.setdefault(id(given), []).append(module)
    often = [id(module) for module, _ in calls]
    groups = [
        group
        for group in together.values()
        if len(group) > 1 and all(often.count(id(module)) == 1 for module in group)
    ]
    assert trace.attention is not None
    return Seen(trace.attention, groups)


@contextlib.contextmanager
def _untouched(layer: Any) -> Iterator[None]:
    """With a layer that is put back as it was. Raises Unsplittable where it did more in the
    meantime than it returned, or would: what another library put over a class's `__call__` may."""
    modules = layer.modules()
    for owner in {cls for module in modules for cls in type(module).__mro__}:
        space, package = _globals(owner), owner.__module__.partition(".")[0]
        if space and str(space.get("__name__")).partition(".")[0] != package:
            raise Unsplittable(f"somebody replaced {owner.__qualname__}.__call__")
    plain = [v for m in modules for v in m.values() if type(v) in (list, dict)]
    if any(isinstance(held, Module) for space in plain for held in _values(space)):
        raise Unsplittable("it holds layers in a list")
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


def _values(space: Any) -> Any:
    return space.values() if isinstance(space, dict) else space


def _as_array(offset: int | mx.array) -> mx.array:
    """What stands for an offset of this kind."""
    return mx.array(1) if isinstance(offset, int) else mx.zeros_like(offset)


def _result(parts: tuple[Any, Any, Any]) -> mx.array:
    """Of the shape that attention returns."""
    queries, _, values = parts
    return mx.zeros((*queries.shape[:-1], values.shape[-1]), queries.dtype)


class Split:
    """The two halves of one layer, compiled for an x and an offset like these. merged: by the id of
    each layer whose product is made together with others, where it is found. Raises what the layer
    raises where it is traced: it may evaluate an array."""

    __slots__ = ("after", "attention", "before", "masked")

    def __init__(
        self,
        layer: Any,
        run: Run,
        seen: Seen,
        merged: Mapping[int, Part],
        x: mx.array,
        offset: int | mx.array,
    ) -> None:
        self.attention, self.masked = seen.attention, seen.attention.masked
        masked, layer_ref = self.masked, weakref.ref(layer)  # it holds what holds this

        def products() -> Callable[[Any, Any, Run], Any]:
            made: dict[int, tuple[Any, Any]] = {}

            def called(module: Any, x: Any, original: Run) -> Any:
                part = merged.get(id(module))
                if part is None:
                    return original(module, x)
                given, parts = made.get(id(part.product), (None, None))
                if given is not x:
                    parts = mx.split(original(part.product, x), part.ends, axis=-1)
                    made[id(part.product)] = x, parts
                return parts[part.place]

            return called

        def before(x: mx.array, offset: mx.array) -> tuple[Any, Any, Any]:
            return Trace(layer_ref(), run, products()).before(x, offset, masked)

        def after(x: mx.array, offset: mx.array, out: mx.array) -> mx.array:
            return Trace(layer_ref(), run, products()).after(x, offset, masked, out)

        self.before = mx.compile(before)
        self.after = mx.compile(after)
        x, offset = mx.zeros(x.shape, x.dtype), _as_array(offset)
        self.after(x, offset, _result(self.before(x, offset)))

    def __call__(self, x: mx.array, offset: mx.array, mask: Any, cache: Any) -> Any:
        """What the layer returns. cache: updated as the layer itself would. offset: no array of the
        cache's own, which an update may change in place."""
        queries, keys, values = self.before(x, offset)
        keys, values = cache.update_and_fetch(keys, values)
        space, fixed, _ = self.attention
        out = space[ATTENTION](queries, keys, values, cache=cache, mask=mask, **fixed)
        return self.after(x, offset, out)
