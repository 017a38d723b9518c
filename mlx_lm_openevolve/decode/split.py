"""A model's layer for one token, in two compiled functions around its cache and its attention.

    x, offset -> before -> queries, keys, values -> the cache's update_and_fetch -> attention
              -> after -> what the layer returns

Nothing is known of any layer beforehand. It is run as it is, with stand-ins for the cache, for what
the cache returns and for the mask: these can be handed on to attention and do nothing else. So what
a layer does with them is seen, and a layer that does more is left alone, with the reason. Between
the two functions the caches stay mlx-lm's own, of any kind and length, so nothing is traced anew
while they grow. Layers that differ in their arrays alone share the two functions, which take the
arrays: MLX walks through one trace for all of them, which stays in the CPU's caches.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

from ..errors import BackendError
from ..runtime.patch import swapping
from .fused import CHANGES, Fusing
from .writes import METHODS

__all__ = [
    *("ATTENTION", "PRODUCTS", "AttentionCall", "Part", "Seen", "Split", "Unsplittable"),
    *("held", "kernels_of", "kind", "look", "wholes"),
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
    its arguments, in their order."""

    attention: AttentionCall
    calls: list[tuple[Any, tuple[Any, ...]]]

    def together(self) -> list[list[Any]]:
        """The layers that were called once, and with the very same input, two or more together."""
        groups: dict[int, list[Any]] = {}
        for module, given in self.calls:
            if len(given) == 1:
                groups.setdefault(id(given[0]), []).append(module)
        often = [id(module) for module, _ in self.calls]
        once = ([m for m in group if often.count(id(m)) == 1] for group in groups.values())
        return [group for group in once if len(group) > 1]


class Part(NamedTuple):
    """One of several products that are made as one: its place between `ends` in what `product`
    returns."""

    product: Any
    ends: list[int]
    place: int


# called(original, layer, *arguments) is what the product of a layer returns while it is traced.
Called = Callable[..., Any]
# What to put over what: a holder (a module's names, a class or a module), a name, and a function
# that is called with the original before its arguments.
Place = tuple[Any, str, Run]


@contextlib.contextmanager
def _in_place(places: Sequence[Place]) -> Iterator[None]:
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
        with _in_place([*ours, *self._places]):
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

    def called(original: Run, module: Any, *given: Any, **named: Any) -> Any:
        calls.append((module, given))
        return _stock(original)(module, *given, **named)

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
    assert trace.attention is not None
    return Seen(trace.attention, calls)


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


def _as_array(offset: int | mx.array) -> mx.array:
    """What stands for an offset of this kind."""
    return mx.array(1) if isinstance(offset, int) else mx.zeros_like(offset)


def _result(parts: tuple[Any, Any, Any]) -> mx.array:
    """Of the shape that attention returns."""
    queries, _, values = parts
    return mx.zeros((*queries.shape[:-1], values.shape[-1]), queries.dtype)


def _stock(product: Run) -> Run:
    """A product's method below ours, which asks what a trace cannot say."""
    return inspect.unwrap(product) if hasattr(product, "served") else product


def _twin(module: Any, known: dict[int, Any]) -> Any:
    """A layer like this one, of layers of its own."""
    if id(module) not in known:
        known[id(module)] = twin = copy.copy(module)
        for key, value in module.items():
            if isinstance(value, Module):
                dict.__setitem__(twin, key, _twin(value, known))
    return known[id(module)]


def kind(
    modules: Sequence[Any],
    seen: Seen,
    parts: Mapping[int, Part],
    kernels: Mapping[int, Any],
) -> tuple[list[Any], list[dict[str, Any]]]:
    """What layers have in common that share a Split: all but the values of their arrays. In two
    lists, the second of attributes, which may be of any kind."""
    place = {id(module): i for i, module in enumerate(modules)}
    place |= {id(whole): -1 - i for i, whole in enumerate(wholes(parts))}
    arrays = {id(a): (place[id(m)], key) for m in modules for key, a in m.items()}

    def said(value: Any) -> Any:
        if isinstance(value, mx.array):
            return value.shape, value.dtype
        return type(value) if isinstance(value, Module) else value

    space, fixed, masked = seen.attention
    return [
        *((place[id(m)], type(m), [(k, said(v)) for k, v in m.items()]) for m in modules),
        (id(space), {name: arrays.get(id(value), value) for name, value in fixed.items()}, masked),
        {place[key]: (place[id(p.product)], p.ends, p.place) for key, p in parts.items()},
        {place[key]: (kernel.func, *map(id, kernel.args)) for key, kernel in kernels.items()},
    ], [dict(vars(module)) for module in modules]


def kernels_of(seen: Seen, parts: Mapping[int, Part]) -> dict[int, Run]:
    """By the id of a layer the kernel that makes its product by now, in place of MLX's."""
    found: dict[int, Run] = {}
    for module, given in seen.calls:
        part = parts.get(id(module))
        asked = module if part is None else part.product
        served = getattr(type(asked).__call__, "served", None)
        kernel = served(asked, *given[:2]) if served is not None else None
        if kernel is not None:
            found[id(asked)] = kernel
    return found


def held(modules: Sequence[Any]) -> list[Any]:
    """All that modules hold, in a row."""
    return [*chain.from_iterable(map(dict.values, modules))]


def wholes(parts: Mapping[int, Part]) -> list[Any]:
    """The products that stand for several, each once."""
    return [*{id(part.product): part.product for part in parts.values()}.values()]


def _arrays_of(modules: Sequence[Any], parts: Mapping[int, Part]) -> Any:
    """What picks the arrays that a Split takes from all that a layer's modules hold."""
    places = (id(module) not in parts for module in modules for _ in module)
    pairs = zip(held(modules), places, strict=True)
    found = [i for i, (v, own) in enumerate(pairs) if own and isinstance(v, mx.array)]
    if len(found) > 1:
        return itemgetter(*found)
    return lambda values: tuple(values[i] for i in found)


class Split:
    """The two halves of a layer, `first` and `last`, compiled for an x and an offset like these,
    and for all layers of its kind. parts: by the id of each layer whose product is made together
    with others, where it is found; kernels: by the id of a layer, what makes its product; fuses:
    with the kernels of fused.py. Raises what the layer raises where it is traced: it may evaluate
    an array."""

    __slots__ = ("_fixed", "_joints", "_own", "_space", "after", "before", "first", "last", "pick")

    def __init__(
        self,
        layer: Any,
        run: Run,
        seen: Seen,
        parts: Mapping[int, Part],
        kernels: Mapping[int, Run],
        x: mx.array,
        offset: int | mx.array,
        fuses: bool,
    ) -> None:
        self._space, self._fixed, masked = seen.attention
        modules = layer.modules()
        self.pick = _arrays_of(modules, parts)  # from all that a layer of this kind holds
        own = self.pick(held(modules))
        self._own = {
            name: next(i for i, a in enumerate(own) if a is value)
            for name, value in self._fixed.items()
            if isinstance(value, mx.array)
        }
        # No layer's own: the twin holds arrays while it is traced alone.
        known: dict[int, Any] = {}
        twin = _twin(layer, known)
        twins = {id(known[key]): key for key in known}
        places = [(known[id(m)], key) for m in modules for key in m]
        slots = self.pick(places)
        products = {id(whole): copy.copy(whole) for whole in wholes(parts)}
        joined = [(product, key) for product in products.values() for key in product]
        for module, key in (*places, *joined):
            if isinstance(module[key], mx.array):
                dict.__setitem__(module, key, None)

        def called(fusing: Fusing) -> Called:
            made: dict[int, tuple[Any, Any]] = {}

            def product(original: Run, module: Any, key: int, *given: Any, **named: Any) -> Any:
                kernel = kernels.get(key)
                if kernel is not None:
                    with contextlib.suppress(BackendError, ValueError):  # no kernel while tracing
                        return kernel(module, *given, **named)
                return _stock(original)(module, *given, **named)

            def call(original: Run, module: Any, *given: Any, **named: Any) -> Any:
                key = twins.get(id(module), 0)
                part = parts_of.get(key)
                if part is None:
                    return product(original, module, key, *given, **named)
                whole, ends, place = part
                x, outs = made.get(whole, (None, None))
                if x is not given[0]:
                    outs = product(original, products[whole], whole, *given)
                    made[whole] = given[0], mx.split(outs, ends, axis=-1)
                    for its, first in zip(made[whole][1], (0, *ends), strict=True):
                        fusing.part(its, outs, first)
                return made[whole][1][place]

            return call

        parts_of = {key: (id(part.product), part.ends, part.place) for key, part in parts.items()}

        def half(arrays: Any, fusing: Fusing | None, run_half: Callable[[Trace], Any]) -> Any:
            filled = [*zip([*slots, *joined], arrays, strict=True)]
            with swapping:
                try:
                    for (module, key), array in filled:
                        dict.__setitem__(module, key, array)
                    fusing = fusing or Fusing()
                    others = fusing.places if fuses else ()
                    return run_half(Trace(twin, run, called(fusing), others))
                finally:
                    for (module, key), _ in filled:
                        dict.__setitem__(module, key, None)

        def before(x: mx.array, offset: mx.array, arrays: Any, fusing: Fusing | None = None) -> Any:
            return half(arrays, fusing, lambda trace: trace.before(x, offset, masked))

        def after(
            x: mx.array, offset: mx.array, out: mx.array, arrays: Any, fusing: Fusing | None = None
        ) -> Any:
            return half(arrays, fusing, lambda trace: trace.after(x, offset, masked, out))

        self._compile(before, after)
        x, offset = mx.zeros(x.shape, x.dtype), _as_array(offset)
        arrays = (*own, *held(wholes(parts)))
        self.last(x, offset, _result(self.first(x, offset, arrays)), arrays)

    def _compile(self, before: Run, after: Run) -> None:
        self.before, self.after = before, after  # as they are traced
        self.first, self.last = mx.compile(before), mx.compile(after)
        self._joints: dict[int, tuple[Split, Any]] = {}

    def changed(self, before: Run | None = None, after: Run | None = None) -> Split:
        """Another one like this with another half."""
        split = copy.copy(self)
        split._compile(before or self.before, after or self.after)
        return split

    def attend(self, parts: Any, mask: Any, cache: Any, arrays: Any) -> mx.array:
        """What attention returns for queries, keys and values of a layer with these arrays. cache:
        updated as the layer itself would."""
        queries, keys, values = parts
        keys, values = cache.update_and_fetch(keys, values)
        fixed = self._fixed
        if self._own:
            fixed = fixed | {name: arrays[i] for name, i in self._own.items()}
        attend = self._space[ATTENTION]
        out: mx.array = attend(queries, keys, values, cache=cache, mask=mask, **fixed)
        return out

    def joint(self, other: Split) -> Any:
        """`last`, and with what it returns `first` of the layer that comes next, as one function of
        both layers' offsets and arrays: a kernel may make what the one ends and the other begins
        with. What is not asked for afterwards is never computed."""
        known = self._joints.get(id(other))
        if known is None:

            def both(x: Any, offset: Any, out: Any, arrays: Any, next_: Any, others: Any) -> Any:
                fusing = Fusing()
                y = self.after(x, offset, out, arrays, fusing)
                return y, other.before(y, next_, others, fusing)

            known = self._joints[id(other)] = other, mx.compile(both)
        return known[1]
