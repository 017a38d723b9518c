"""Op: all that the rest of the house knows of a family of operations.

    call --describe--> Workload --bucket()--> Bucket --> plan, gate, registry, search
    Workload + kernel --bind--> the arrays that a launch gets, by name

A family is one folder beside this file with an `OP`, and one line in `ops/__init__.py`. What serves
calls (Op) is loaded in every process; what the gate asks (Questions) and what the search knows
(SearchSpace) are modules of the family that are loaded when they are first needed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

from ..errors import WorkloadError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    import numpy.typing as npt

    from .source_mutants import SourceMutant

__all__ = [
    "DTYPES",
    "ON_CPU",
    "Absent",
    "Bucket",
    "Call",
    "Mutant",
    "Op",
    "PatchPoint",
    "Question",
    "Questions",
    "Route",
    "Router",
    "SearchSpace",
    "TimingInputs",
    "Value",
    "Workload",
    "next_pow2",
    "read_slug",
]

DTYPES = ("float16", "bfloat16", "float32")
ON_CPU = "MLX's default device, or the call's stream, is the CPU"
Value = int | str | bool  # of a field of a workload, and of a launch expression
# A kernel, a mutant or MLX's own operation: the arguments are the family's, the answer one array.
Call = Callable[..., "mx.array"]


def next_pow2(n: int) -> int:
    """The smallest power of two that is at least `n` (1 for n <= 1)."""
    return 1 << max(0, n - 1).bit_length()


class Workload(Protocol):
    """What one call asks: a frozen, hashable shape key. Every family has a class of its own."""

    def __hash__(self) -> int: ...

    @property
    def op(self) -> str:
        """Name of the family; the first word of the slug."""
        ...

    @property
    def variant(self) -> str:
        """Which of the family's variants."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the dtype of the result."""
        ...

    @property
    def slug(self) -> str:
        """The workload as text; `Op.parse` reads it back."""
        ...

    def bucket(self) -> Bucket:
        """What verdicts are stored for: every size rounded up to the end of its range."""
        ...

    def fields(self) -> dict[str, Value]:
        """What launch expressions see: exact sizes, but for those that change from call to call
        (a KV length), which appear as the bucket's."""
        ...

    def launch_key(self) -> Workload:
        """This workload with the sizes that launch expressions do not see exactly rounded up:
        equal for calls that the same launches serve. On Metal an input of fewer than 8 elements
        makes another kernel of the same text: sizes at which that changes stay as they are."""
        ...

    def stored_bytes(self) -> int:
        """Bytes of what a process keeps between calls (a cache, weights) and one call reads."""
        ...

    def moved_bytes(self) -> int:
        """Bytes that any implementation must read or write in one call."""
        ...

    def scratch_bytes(self) -> int:
        """Bytes that the original takes in one call beside its inputs and its result."""
        ...

    def flops(self) -> float:
        """Multiplications and additions of one call."""
        ...


class Bucket(Workload, Protocol):
    """A range of workloads with one verdict, named by its upper end."""

    @property
    def layout(self) -> str:
        """What the calls of one model have in common: verdicts of one layout lie in one file, whose
        name this is."""
        ...

    def largest(self) -> Workload:
        """The largest workload of the range."""
        ...

    @property
    def steady(self) -> bool:
        """Whether such a call comes again with every token that is made."""
        ...

    def neighbours(self) -> Sequence[Bucket]:
        """The same calls at the next shorter and longer lengths: what wins there is tried first."""
        ...


W = TypeVar("W", bound=Workload)
B = TypeVar("B", bound=Bucket)


def read_slug(
    slug: str, pattern: re.Pattern[str], example: str, make: Callable[[dict[str, Any]], W]
) -> W:
    """The workload that `make` gives for the groups of `pattern` in a slug. Raises WorkloadError
    where it does not match, or the workload has another slug: one name for one workload."""
    match = pattern.fullmatch(slug) if len(slug) < 200 else None
    if match is None:
        raise WorkloadError(f"not a workload: {slug[:200]!r}; expected a slug such as {example}")
    workload = make(match.groupdict())
    if workload.slug != slug:  # leading zeros and the like
        raise WorkloadError(f"not a workload: {slug!r}; it is spelt {workload.slug!r}")
    return workload


@dataclass(frozen=True)
class PatchPoint:
    """What a family replaces of mlx or mlx-lm: a module's function, wherever models call it from,
    or "Class.method" of exactly that class: subclasses and modules in training keep theirs."""

    module: str
    name: str


@dataclass(frozen=True)
class Absent:
    """An input that a workload lacks: what a kernel gets in its place is 8 zeros of that dtype,
    the first of `axes` axes."""

    dtype: str
    axes: int


class Route(Protocol):
    """What serves calls of one exact shape: a built kernel, or (None) the original."""

    call: Call | None
    substitute: Call | None
    hits: int
    fallbacks: int


class Router(Protocol):
    """What a replacement function asks: see runtime/dispatch.py."""

    routes: dict[Any, Any]
    off: list[str]
    on_cpu: Callable[[], bool]  # whether kernels run on a GPU and the next call would not
    computes: bool  # False where calls are counted alone: then nothing may be evaluated
    # Where it is to be told of layers that are new, or new in a shape: the layer's id, its layout
    # ("" for none), and whether the layer is known.
    met: Callable[[int, str, bool], None] | None

    def route(self, key: Any, described: Workload | str, arrays: Sequence[Any]) -> Route:
        """The route of a call that is new under `key`; `arrays` are evaluated before anything is
        decided, so that none of the caller's work is timed."""
        ...

    def keep(self, key: Any, route: Any) -> None:
        """`routes` has this under `key`."""
        ...

    def proven(self, workload: Any) -> bool:
        """Whether a stored verdict lets a kernel serve such a call."""
        ...

    def refuse(self, reason: str) -> None:
        """Count a call that is left to the original."""
        ...


class Op(ABC, Generic[B, W]):
    """A family of operations, by the classes of its buckets and workloads. Stateless."""

    name: ClassVar[str]
    # What serves a call without a kernel, for people.
    stock: ClassVar[str]
    variants: ClassVar[tuple[str, ...]]
    # Names that launch expressions may use: the keys of Workload.fields().
    fields: ClassVar[frozenset[str]]
    patch_points: ClassVar[tuple[PatchPoint, ...]]
    # Inputs of one element that stay the same object from call to call.
    scalars: ClassVar[frozenset[str]] = frozenset()
    # Whether inputs that do not lie row by row are copied for kernels, which then need no strides.
    row_contiguous: ClassVar[bool] = False
    # Whether what `wrap` makes of a method tells other classes and training from what it serves.
    guards: ClassVar[bool] = False
    # A slug, for messages.
    example: ClassVar[str]

    @abstractmethod
    def parse(self, slug: str) -> W:
        """The workload that a slug names. Raises WorkloadError."""

    @abstractmethod
    def inputs(self, variant: str) -> tuple[str, ...]:
        """Names of the arrays that a kernel may read, in the order in which `bind` gives them."""

    def required(self, workload: W) -> frozenset[str]:
        """The inputs that a kernel for this workload must read to be right."""
        return frozenset(self.inputs(workload.variant)) - self.absent(workload).keys()

    def absent(self, workload: W) -> Mapping[str, Absent]:
        """The inputs that a workload lacks."""
        return {}

    # A call

    @abstractmethod
    def describe(self, *args: Any, **kwargs: Any) -> W | str:
        """The exact workload of a call of a patch point, or why it is left to the original. May
        raise what the arguments raise: the original is called then."""

    @abstractmethod
    def arguments(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What a Call takes for a call of a patch point."""

    def wrap(self, original: Call, router: Router) -> Callable[..., Any]:
        """A function that takes what `original` takes, serves what a kernel may serve and hands
        every other call over untouched. A family that is called often has a faster one."""

        def replacement(*args: Any, **kwargs: Any) -> Any:
            if router.off:
                return original(*args, **kwargs)
            if router.on_cpu():
                router.refuse(ON_CPU)
                return original(*args, **kwargs)
            try:
                described = self.describe(*args, **kwargs)
                arguments = self.arguments(*args, **kwargs)
                key = described if isinstance(described, str) else described.launch_key()
                route = router.routes.get(key)
                if route is None:
                    route = router.route(key, described, arguments)
                if route.call is not None:
                    out = route.call(*arguments)
                    route.hits += 1
                    return out
                route.fallbacks += 1
            except Exception as error:  # what the original makes of it is the caller's to see
                router.refuse(f"{type(error).__name__} before the call")
                return original(*args, **kwargs)
            if route.substitute is not None:
                return route.substitute(*arguments)
            return original(*args, **kwargs)

        return replacement

    def exact(self, original: Call) -> Callable[..., Any]:
        """What takes the place of `original` where whole models are compared: the same in float32,
        with a result of the dtype that the original's has. By default the original."""
        return original

    @abstractmethod
    def bind(
        self, workload: W, names: frozenset[str], *, broadcast: bool
    ) -> Callable[..., list[mx.array | None]]:
        """A function from a Call's arguments to the arrays by the names of `inputs`, anything for
        an absent one; `as_given` where these are the same. `names` are those that the launches
        read: behind the last of them none need come. broadcast: whether an input that may
        broadcast is handed over as a view of its full shape."""

    @abstractmethod
    def trial(
        self, workload: W, given: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], Callable[[mx.array], str]]:
        """Arguments with which a built kernel runs for the first time, taking next to no memory,
        and what is wrong with its answer ("" where nothing is). given: what the first call hands
        over, all of it or what the family's replacement says; () without one."""

    def joined(self, workload: W, times: int) -> W | None:
        """What so many calls with one input are where compiled layers make one of them, though each
        may have a kernel; None where they stay apart."""
        return None

    def substitute(self, workload: W) -> Call | None:
        """What serves a call without a kernel where the original itself cannot run on this
        machine; None where it can."""
        return None

    def differentiable(self, workload: W, call: Call) -> Call:
        """`call` with the derivative of the original, for backends whose kernels would otherwise
        be differentiated as if they were constants. Without one of its own a family's kernels have
        none: to ask for it raises ValueError, as it does of MLX's own custom kernels."""
        import mlx.core as mx

        @mx.custom_function
        def served(*arguments: Any) -> mx.array:
            return call(*arguments)

        def refused(*_: Any) -> Any:
            raise ValueError(f"a kernel of {self.name} has no derivative")

        served.vjp(refused)
        served.jvp(refused)
        made: Any = served
        return cast(Call, made)

    # What only the gate and the search need

    @property
    @abstractmethod
    def questions(self) -> Questions[B, W]:
        """What the gate asks."""

    @property
    @abstractmethod
    def search(self) -> SearchSpace[B]:
        """What the search knows."""


def as_given(*arguments: Any) -> list[Any]:
    """What `bind` returns where a Call's arguments are the arrays: backends then need no call."""
    return list(arguments)


def with_derivatives_of(original: Call, call: Call) -> Call:
    """`call` with the derivatives of `original`, of every order and by every operand; `original`
    takes what `call` takes, and runs only where a derivative is asked for."""
    import mlx.core as mx

    @mx.custom_function
    def instead(stock: mx.array, out: mx.array) -> mx.array:
        return out

    @instead.vjp
    def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        return cotangent, mx.zeros_like(cotangent)

    @instead.jvp
    def _(primals: Any, tangents: Any) -> mx.array:
        tangent: mx.array = tangents[0]
        return tangent

    def both(*arguments: Any) -> mx.array:
        return cast(mx.array, instead(original(*arguments), call(*arguments)))

    return both


# For the gate


class Question(ABC):
    """One call with all that is needed to judge an answer to it."""

    name: str
    workload: Workload
    arguments: tuple[Any, ...]
    # Of another call of the same shapes, with another answer; None: it is asked once alone.
    other: tuple[Any, ...] | None
    shape: tuple[int, ...]  # of the answer
    dtype: mx.Dtype
    own: tuple[float, float]  # the original's error (max, average), in the family's unit
    limits: tuple[float, float]  # what an answer may err

    @abstractmethod
    def error(self, got: npt.NDArray[np.float32]) -> tuple[float, float]:
        """(max, average) error of an answer against float64; inf where it is no number."""

    def least_bytes(self) -> int:
        """What any kernel must move to answer this call."""
        return self.workload.moved_bytes()

    def fault(self, got: npt.NDArray[np.float32]) -> str:
        """What else is wrong with an answer whose error is within the limits."""
        return ""

    def other_fault(self, got: npt.NDArray[np.float32]) -> str:
        """What is wrong with an answer to the other call, "" where nothing is known to be."""
        return ""

    @abstractmethod
    def changed(self) -> bool:
        """Whether the inputs, or what lies around them, differ from what they were."""


class Mutant(Protocol):
    """A wrong implementation that the gate must reject."""

    @property
    def name(self) -> str:
        """In lower case with dashes."""
        ...

    def build(self, workload: Any) -> Call:
        """The mutant as a Call for an exact workload."""
        ...


class TimingInputs(ABC):
    """What both arms of a comparison run on: a chain of calls, each result the next first argument;
    the rest of the arguments come from buffers that together exceed the last-level cache. Every
    call asks as much as a model's does: results must not fade on their way through the chain."""

    workload: Workload
    first: mx.array
    rest: Sequence[tuple[Any, ...]]
    bytes: int  # that one call must move

    @abstractmethod
    def next(self, out: mx.array) -> mx.array:
        """A result as the next call's first argument."""

    @abstractmethod
    def baseline(self) -> Call:
        """The original, as a model runs it."""

    @abstractmethod
    def recheck(self, at: int, first: mx.array, out: mx.array) -> str:
        """What is wrong with a result that was timed on `rest[at]`, by what an answer to that very
        call may err; "" where nothing is."""


class Questions(ABC, Generic[B, W]):
    """What the gate asks of a family's kernels."""

    unit: str  # of errors, for people
    correct: Mutant  # the unchanged implementation: it must pass
    usual: Sequence[B]  # what `check` asks of a kernel where no workload is named

    @abstractmethod
    def cases(self, bucket: B, seed: int, brief: bool = False) -> Iterator[Callable[[], Question]]:
        """The cases of a bucket, drawn from a seed; calling one uploads it and computes its
        reference. brief: the fewest that meet every kind of mistake, for the first use."""

    @abstractmethod
    def quick(self, small: B, bucket: B, seed: int) -> Sequence[Question]:
        """Two questions of `small` that show most mistakes; where work grows with a length that
        `bucket`, which `small` is a proxy of, has more of, one more at a greater length."""

    @abstractmethod
    def proxy(self, bucket: B) -> B:
        """A small bucket that asks the same."""

    @abstractmethod
    def larger(self, small: B, bucket: B) -> B | None:
        """The next larger proxy of `bucket` after `small`; None where it is the bucket itself."""

    @abstractmethod
    def mutants(self, workload: W) -> Sequence[Mutant]:
        """The mutants that can show on a workload."""

    @abstractmethod
    def baseline_name(self, workload: W) -> str:
        """What kernels are compared with, for people."""

    @abstractmethod
    def timing_inputs(self, workload: W, cache_bytes: int, memory: int, seed: int) -> TimingInputs:
        """Raises MemoryError where `memory` bytes do not hold two buffers."""

    @abstractmethod
    def sealed(self, bucket: B, draw: int) -> W:
        """An exact workload of the bucket for one measurement; `draw` is a random number."""

    def static_rules(self, text: str, bucket: B) -> str:
        """What a kernel's text without its comments lacks, "" where nothing."""
        return ""

    # Source mutants: they need a compiler, so their outcome travels with the package

    def source_mutants(self) -> Sequence[SourceMutant]:
        """Changes of a kernel's text that the host check must reject."""
        return ()

    def matrix_key(self, bucket: B) -> str:
        """Under which key the outcome for a bucket is kept; "" where the family has none."""
        return ""

    def matrix(self) -> Iterator[tuple[str, B, B]]:
        """Every key with the bucket that its mutants are tried on, and the one whose default params
        they are tried with."""
        return iter(())

    def exercised(
        self, params: Mapping[str, int], values: Mapping[str, Sequence[int]]
    ) -> dict[str, int]:
        """`params` changed, within the `values` that each may take, so that a small workload runs
        through as much of a kernel as it can."""
        return dict(params)


# For the search


class SearchSpace(ABC, Generic[B]):
    """What the search knows of a family."""

    suites: Mapping[str, tuple[B, ...]]
    default_suite: str
    task: str  # what a prompt asks for, in a sentence or two
    rules: str  # what a prompt says of the arrays that a kernel gets and what it must write
    length: str  # a pattern of the text by which kernels name the length that they loop over

    @abstractmethod
    def coordinates(self, bucket: B) -> list[float]:
        """A bucket as numbers: near ones behave alike."""
