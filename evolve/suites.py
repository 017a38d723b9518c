"""The workloads a run is about, by name or traced from a model's own generation."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError, WorkloadError
from mlx_lm_openevolve.ops import Bucket
from mlx_lm_openevolve.processes import Died, Worker, child_environment

__all__ = ["default_suite", "suite", "suites", "traced"]


def suites() -> dict[str, tuple[Bucket, ...]]:
    """The suites of all families by name; where two families share one, the later family's is
    FAMILY/NAME."""
    known: dict[str, tuple[Bucket, ...]] = {}
    for family in ops.FAMILIES:
        for name, buckets in ops.get(family).search.suites.items():
            known[f"{family}/{name}" if name in known else name] = buckets
    return known


def default_suite(op: str) -> str:
    """The name, as `suites` has it, of what a search for that family's kernels begins with."""
    name = ops.get(op).search.default_suite
    known = suites()
    return f"{op}/{name}" if f"{op}/{name}" in known else name


def suite(names: Sequence[str]) -> tuple[Bucket, ...]:
    """The buckets that `names` (suites or workload slugs) stand for, in order, without repeats.
    Raises UsageError naming the choices, and where they belong to more than one family."""
    known = suites()
    buckets: list[Bucket] = []
    for name in names:
        if name in known:
            buckets += known[name]
            continue
        try:
            buckets.append(ops.parse(name).bucket())
        except WorkloadError as error:
            raise UsageError(f"{name!r} is no suite ({', '.join(known)}): {error}") from None
    families = sorted({bucket.op for bucket in buckets})
    if len(families) > 1:
        raise UsageError(f"one family at a time: these are workloads of {' and '.join(families)}")
    return tuple(dict.fromkeys(buckets))


def traced(model: str, prompt_tokens: int = 512, new_tokens: int = 64) -> dict[Bucket, float]:
    """The buckets that a short generation of a model (a path or an id) asks kernels for, with their
    shares: calls, weighted by the bytes of keys and values that each must read. Raises
    OpenEvolveError with the generation's last line."""
    request = {"model": model, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    with tempfile.TemporaryDirectory() as empty:
        environment = child_environment(MLX_LM_OPENEVOLVE_HOME=empty)
        with Worker("mlx_lm_openevolve.evolve.trace", environment=environment) as worker:
            try:
                counts = worker.ask(request, math.inf)
            except Died as death:
                reason = death.last or str(death)
                raise OpenEvolveError(f"the generation of {model} failed: {reason}") from None
    uses = {ops.parse(slug).bucket(): count for slug, count in counts.items() if count}
    if not uses:
        raise OpenEvolveError(f"the generation of {model} called nothing that a kernel can serve")
    total = sum(n * w.stored_bytes() for w, n in uses.items())
    return {
        w: n * w.stored_bytes() / total
        for w, n in sorted(uses.items(), key=lambda use: use[0].slug)
    }
