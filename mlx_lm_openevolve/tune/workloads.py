"""Which workloads a model will meet: it is traced, and nothing is computed.

MLX is lazy: a model that is called and never evaluated costs its graph alone, no memory and no
time, whatever the length. So the code that will generate says itself which shapes its calls have.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import maybe_quantize_kv_cache

from .. import ops
from ..bench.worker import KV_GROUP, PREFILL, empty_cache
from ..errors import UsageError, interrupted
from ..ops import Bucket, Op, Workload
from ..ops.base import Call
from ..runtime.dispatch import Route
from ..runtime.patch import installed, patches_of

__all__ = ["SHORTEST", "Use", "workloads"]

SHORTEST = 32  # a chat's first prompt is longer; what is shorter is over in a few tokens
# Of mlx-lm's commands: tokens of a prompt that are read at once with a draft model, and what a step
# of speculation verifies.
PREFILL_SPECULATING, VERIFY = 512, 4
# Last chunks of a later prompt in a conversation, which may have any length: one for each range.
SHORT_CHUNKS = (20, 5)
TURN = 256  # tokens of a turn of a conversation: what is asked once a turn counts so little
ONE = 2  # the steps of one token that are traced at each length


@dataclass(frozen=True)
class Use:
    """A bucket that a model meets: its calls for a token that is read or made there; alone: whether
    they come with every step of one sequence."""

    bucket: Bucket
    calls: float
    alone: bool = False


class _Recorder:
    """Where a dispatcher stands at run time: it counts every call and serves none."""

    def __init__(self, op: Op[Any, Any], calls: dict[Bucket, float], alone: set[Bucket]) -> None:
        self.op = op
        self.routes: dict[Any, Any] = {}  # stays empty: every call is new
        self.off: list[str] = []
        self.on_cpu = lambda: False
        self.computes = False
        self.met: Callable[[int, str, bool], None] | None = None
        self.tokens = 1
        self.step = False  # whether what is counted is a step of one sequence
        self._calls, self._alone = calls, alone
        self._last: Any = None  # the inputs of the call before

    def route(self, key: Any, described: Workload | str, arrays: Sequence[Any]) -> Route:
        if not isinstance(described, str):
            self._count(described)
            # Gate and up of experts, in a step.
            last, self._last = self._last, arrays[:2]
            if self.tokens == ONE and last is not None and all(map(operator.is_, last, arrays)):
                joined = self.op.joined(described, 2)
                if joined is not None:
                    self._count(joined)
        return Route(None, "")

    def _count(self, workload: Workload) -> None:
        bucket = workload.bucket()
        self._calls[bucket] += 1 / self.tokens
        if self.step:
            self._alone.add(bucket)

    def keep(self, key: Any, route: Any) -> None:
        pass

    def proven(self, workload: Workload) -> bool:
        return False

    def refuse(self, reason: str) -> None:
        pass

    def wrap(self, original: Call) -> Call:
        return self.op.wrap(original, self)


def workloads(
    models: Sequence[Any],
    context: int,
    batches: Sequence[int] = (1,),
    kv_bits: int = 0,
    wanted: Iterable[str] = ops.FAMILIES,
) -> list[Use]:
    """The buckets that generation with a model meets, every length from SHORTEST to `context`:
    decode steps, the chunks of a prompt, and with a second model, the draft, steps of verifying.

    models: of mlx-lm, the draft second; they may be lazy. batches: numbers of sequences. kv_bits:
    of a quantised cache (in groups of 64), beside the plain one that mlx-lm begins with; 0 for
    none. wanted: families of operations. Raises UsageError where a model cannot be called so.
    """
    calls: dict[Bucket, float] = defaultdict(float)
    stepped: set[Bucket] = set()
    speculating = len(models) > 1
    for batch in batches:
        alone = batch == 1
        for bits in {0, kv_bits if alone else 0}:
            for i, model in enumerate(models if alone else models[:1]):
                verified = VERIFY if speculating and alone and i == 0 else 0
                chunk = PREFILL_SPECULATING if speculating and alone else PREFILL
                recorders = [_Recorder(ops.get(name), calls, stepped) for name in wanted]
                _trace(model, context, batch, bits, verified, chunk, recorders)
    return [Use(bucket, count, bucket in stepped) for bucket, count in calls.items()]


def _trace(
    model: Any,
    context: int,
    batch: int,
    bits: int,
    verified: int,
    chunk: int,
    recorders: Sequence[_Recorder],
) -> None:
    patches = [patch for recorder in recorders for patch in patches_of(recorder.op, recorder.wrap)]
    try:
        with installed(patches):
            for prompt in _generations(context, verified, chunk):
                cache = empty_cache(model, batch)
                for n in prompt:
                    for recorder in recorders:
                        recorder.tokens = ONE if n == 1 else n if n == verified else max(n, TURN)
                        recorder.step = batch == 1 and n in (1, verified)
                    model(mx.zeros((batch, n), mx.int32), cache=cache)
                    maybe_quantize_kv_cache(cache, 0, KV_GROUP, bits or None)
    except Exception as error:
        if interrupted(error):
            raise KeyboardInterrupt from None
        with_ = f" with {batch} sequences" if batch > 1 else f" with --kv-bits {bits}" * bool(bits)
        raise UsageError(
            f"mlx-lm cannot run this model{with_}: {type(error).__name__}: {error}"
        ) from None


def _generations(context: int, verified: int, chunk: int) -> Iterator[Iterator[int]]:
    """What to feed, numbers of tokens one after another, to a few fresh caches, so that the upper
    end of every bucket up to `context` is met in every way that generation meets it."""
    ends = [min(SHORTEST, context)]
    while ends[-1] < context:
        ends.append(min(2 * ends[-1], context))
    for end in ends:  # a prompt that is read at once
        if end <= chunk:
            yield iter([end])
    yield _conversation(ends, verified, chunk)


def _conversation(ends: Sequence[int], verified: int, chunk: int) -> Iterator[int]:
    """Up to each end: whole chunks, then short ones, a step of `verified` tokens, and two of one:
    a cache that slides is asked otherwise right after a prompt than later."""
    at = 0
    for end in ends:
        last = [n for n in (*SHORT_CHUNKS, verified, *[1] * ONE) if n]
        while sum(last) > end - at:
            del last[0]
        for start in range(at, end - sum(last), chunk):
            yield min(chunk, end - sum(last) - start)
        yield from last
        at = end
