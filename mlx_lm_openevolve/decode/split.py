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
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

__all__ = ["ATTENTION", "PRODUCTS", "Attention", "Seen", "Split", "Unsplittable", "look"]

ATTENTION = "scaled_dot_product_attention"
PRODUCTS: tuple[type, ...] = (Linear, QuantizedLinear)
# One trace at a time: what a trace puts in place of attention and products stands there for all
# threads, which pass through it.
_tracing = threading.RLock()

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
    """Stands for a cache, of which a layer may read the offset, and update it once."""

    def __init__(self, offset: mx.array) -> None:
        self.offset = offset
        self.given: tuple[Any, Any] | None = None
        self.fetched = _Stand(), _Stand()

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        if self.given is not None:
            raise Unsplittable("it updates its cache twice")
        self.given = keys, values
        return self.fetched

    def __getattr__(self, name: str) -> Any:
        raise Unsplittable(f"it asks its cache for {name}")

    __bool__ = __len__ = __iter__ = _refuse("its size")
    __class__ = property(_refuse("its class"))  # type: ignore[assignment]


class Attention(NamedTuple):
    """How a layer calls attention: the names of its module, where it is looked up at each call, and
    the arguments that are the same in all calls."""

    space: dict[str, Any]
    fixed: dict[str, Any]
    masked: bool


class Seen(NamedTuple):
    """What one run of a layer on stand-ins has shown. products: the layers of PRODUCTS that were
    called with the very same input, two or more together, in their order."""

    attention: Attention
    products: list[list[Any]]


class Products:
    """The products of layers while one is traced: called(layer, x, original) is what they return."""

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
    """With other attention in these modules, and other products, for this thread."""
    thread = threading.get_ident()

    def wrapped(original: Run) -> Run:
        def attention(*args: Any, **named: Any) -> Any:
            if threading.get_ident() != thread:
                return original(*args, **named)
            return attend(original, *args, **named)

        return attention

    products = Products(called)
    with _tracing:
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
            space = getattr(vars(cls).get("__call__"), "__globals__", {})
            if ATTENTION in space:
                found[id(space)] = space
    return list(found.values())


class Trace:
    """One run of a layer on stand-ins. called: what its products return."""

    def __init__(self, layer: Any, run: Run, called: Callable[[Any, Any, Run], Any]) -> None:
        self._layer, self._run, self._called = layer, run, called
        self._spaces = _spaces(layer)
        self.attention: Attention | None = None

    def before(self, x: mx.array, offset: mx.array, masked: bool) -> tuple[Any, Any, Any]:
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

    def after(self, x: mx.array, offset: mx.array, masked: bool, out: mx.array) -> mx.array:
        """What the layer returns where attention returned `out`. Raises as `before` does."""
        returned = [out]
        made = self._through(x, offset, masked, lambda _: returned.pop())
        if type(made) is not mx.array or made.shape != x.shape or returned:
            raise Unsplittable("it returns something else than another x")
        return made

    def _through(
        self, x: mx.array, offset: mx.array, masked: bool, result: Callable[[Any], Any]
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
            self.attention = Attention(self._space(original), call, masked)
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


def look(layer: Any, run: Run, x: mx.array, masked: bool) -> Seen:
    """Run a layer once on stand-ins, for an x [B, 1, D] like this one. Nothing is computed. Raises
    Unsplittable, and whatever the layer raises on stand-ins."""
    calls: list[tuple[Any, Any]] = []  # holds each input, so that no two have one id

    def called(module: Any, given: Any, original: Run) -> Any:
        calls.append((module, given))
        return original(module, given)

    trace = Trace(layer, run, called)
    x, offset = mx.zeros(x.shape, x.dtype), mx.array(1)
    parts = trace.before(x, offset, masked)
    calls.clear()
    trace.after(x, offset, masked, _result(parts))
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


def _result(parts: tuple[Any, Any, Any]) -> mx.array:
    """Of the shape that attention returns."""
    queries, _, values = parts
    return mx.zeros((*queries.shape[:-1], values.shape[-1]), queries.dtype)


class Split:
    """The two halves of one layer, compiled for an x like this one. merged: by the id of a layer
    that is one of several with the same input, what makes their products as one. Raises what the
    layer raises where it is traced: it may evaluate an array."""

    __slots__ = ("after", "attention", "before", "masked")

    def __init__(
        self, layer: Any, run: Run, seen: Seen, merged: Mapping[int, Any], x: mx.array
    ) -> None:
        self.attention, self.masked = seen.attention, seen.attention.masked
        masked, layer_ref = self.masked, weakref.ref(layer)  # it holds what holds this

        def products() -> Callable[[Any, Any, Run], Any]:
            made: dict[int, tuple[Any, Any]] = {}

            def called(module: Any, x: Any, original: Run) -> Any:
                joined = merged.get(id(module))
                if joined is None:
                    return original(module, x)
                given, parts = made.get(id(joined), (None, None))
                if given is not x:
                    parts = mx.split(original(joined.product, x), joined.ends, axis=-1)
                    made[id(joined)] = x, parts
                return parts[joined.place(module)]

            return called

        def before(x: mx.array, offset: mx.array) -> tuple[Any, Any, Any]:
            return Trace(layer_ref(), run, products()).before(x, offset, masked)

        def after(x: mx.array, offset: mx.array, out: mx.array) -> mx.array:
            return Trace(layer_ref(), run, products()).after(x, offset, masked, out)

        self.before = mx.compile(before)
        self.after = mx.compile(after)
        x, offset = mx.zeros(x.shape, x.dtype), mx.array(1)
        self.after(x, offset, _result(self.before(x, offset)))

    def __call__(self, x: mx.array, offset: mx.array, mask: Any, cache: Any) -> Any:
        """What the layer returns. cache: updated as the layer itself would."""
        queries, keys, values = self.before(x, offset)
        keys, values = cache.update_and_fetch(keys, values)
        space, fixed, _ = self.attention
        out = space[ATTENTION](queries, keys, values, cache=cache, mask=mask, **fixed)
        return self.after(x, offset, out)
