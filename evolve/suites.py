"""The workloads a run is about, by name or traced from a model's own generation."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

from mlx_lm_openevolve.errors import OpenEvolveError, UsageError, WorkloadError
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.processes import Died, Worker, child_environment

__all__ = ["SUITES", "suite", "traced"]


def _w(
    batch: int,
    q_heads: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    head_dim: int,
    mask: str = "none",
    dtype: str = "bfloat16",
    *,
    kv_bits: int = 0,
    op: str = "attention",
) -> Workload:
    shape = (batch, q_heads, kv_heads, q_len, kv_len, head_dim, head_dim)
    return Workload(*shape, dtype, mask, kv_bits=kv_bits, kv_group=64 if kv_bits else 0, op=op)


def _grid() -> list[Workload]:
    """Sequence 32 to 4096, head dims 64, 80 and 128, GQA 1 to 8, masks none, bool and causal:
    prefill, one configuration of each (sequence, head dim, mask), heads and dtype varied along."""
    heads = ((8, 8), (16, 8), (32, 8), (32, 4), (24, 24))
    grid = []
    for i, length in enumerate((32, 64, 128, 256, 512, 1024, 2048, 4096)):
        for j, dim in enumerate((64, 80, 128)):
            for k, mask in enumerate(("none", "bool", "causal")):
                q_heads, kv_heads = heads[(i + 2 * j + 3 * k) % len(heads)]
                dtype = ("bfloat16", "float16")[(i + j + k) % 2]
                q_len = min(length, 2048)
                grid.append(_w(1, q_heads, kv_heads, q_len, length, dim, mask, dtype))
    return grid


SUITES: dict[str, tuple[Workload, ...]] = {
    # One sequence being continued: the shapes of common models, short to long context.
    "decode": (
        _w(1, 16, 8, 1, 256, 128),
        _w(1, 16, 8, 1, 1024, 128),
        _w(1, 16, 8, 1, 4096, 128),
        _w(1, 32, 8, 1, 1024, 128),
        _w(1, 32, 8, 1, 4096, 128),
        _w(1, 32, 8, 1, 4096, 64),
        _w(1, 16, 8, 8, 4096, 128, "causal"),  # a speculative verify
    ),
    # The server and batch_generate: always with a bool mask.
    "batch": (
        _w(4, 32, 8, 1, 2048, 128, "bool"),
        _w(8, 32, 8, 1, 1024, 128, "bool"),
        _w(8, 32, 8, 1, 4096, 128, "bool"),
        _w(8, 16, 8, 1, 2048, 128, "bool"),
        _w(32, 32, 8, 1, 2048, 128, "bool"),
    ),
    "long": (
        _w(1, 16, 8, 1, 16384, 128),
        _w(1, 32, 8, 1, 32768, 128),
        _w(1, 16, 8, 1, 65536, 128),
    ),
    # --kv-bits 4 and 8.
    "quantized": tuple(
        _w(*shape, kv_bits=bits, op="attention_quantized")
        for bits in (4, 8)
        for shape in (
            (1, 16, 8, 1, 1024, 128),
            (1, 16, 8, 1, 4096, 128),
            (1, 16, 8, 1, 16384, 128),
            (1, 32, 8, 1, 4096, 64),
        )
    ),
    # Their prompts, chunk by chunk.
    "quantized-prompt": (
        *(
            _w(1, 16, 8, 2048, n, 128, "causal", kv_bits=4, op="attention_quantized")
            for n in (2048, 8192)
        ),
        _w(1, 32, 8, 2048, 4096, 64, "causal", kv_bits=4, op="attention_quantized"),
        _w(1, 16, 8, 2048, 4096, 128, "causal", kv_bits=8, op="attention_quantized"),
    ),
    # Head sizes that MLX has no fused kernel for everywhere.
    "wide": (
        *(_w(1, 8, 4, 1, n, 256) for n in (1024, 4096, 16384)),
        *(_w(1, 16, 2, 1, n, 512) for n in (1024, 4096, 16384)),
        _w(1, 8, 4, 2048, 4096, 256, "causal"),
    ),
    # MLA: keys and values are one array.
    "latent": tuple(
        _w(1, heads, 1, 1, n, 512, "additive", op="attention_latent")
        for heads in (16, 128)
        for n in (1024, 4096, 16384)
    ),
    # Steps of speculative decoding.
    "verify": (
        *(_w(1, 16, 8, 8, n, 128, "causal") for n in (1024, 4096, 16384)),
        _w(1, 32, 8, 8, 4096, 128, "causal"),
        _w(1, 32, 8, 8, 4096, 64, "causal"),
        _w(1, 16, 8, 32, 4096, 128, "causal"),
    ),
    "sdpa-grid": tuple(dict.fromkeys(w.bucket() for w in _grid())),
}


def suite(names: Sequence[str]) -> tuple[Workload, ...]:
    """The buckets that `names` (suites or workload slugs) stand for, in order, without repeats.
    Raises UsageError naming the choices."""
    workloads: list[Workload] = []
    for name in names:
        if name in SUITES:
            workloads += SUITES[name]
            continue
        try:
            workloads.append(Workload.parse(name))
        except WorkloadError as error:
            raise UsageError(f"{name!r} is no suite ({', '.join(SUITES)}): {error}") from None
    return tuple(dict.fromkeys(w.bucket() for w in workloads))


def traced(model: str, prompt_tokens: int = 512, new_tokens: int = 64) -> dict[Workload, float]:
    """The buckets that a short generation of a model (a path or an id) asks attention for, with
    their shares: calls, weighted by the bytes of keys and values that each must read. Raises
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
    uses = {Workload.parse(slug): count for slug, count in counts.items() if count}
    if not uses:
        raise OpenEvolveError(f"the generation of {model} called no attention that can be served")
    total = sum(n * w.kv_bytes() for w, n in uses.items())
    return {w: n * w.kv_bytes() / total for w, n in sorted(uses.items())}
