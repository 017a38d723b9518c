"""Every mlx-lm architecture, patched against unpatched: the same logits, with every kind of cache.

How far apart two right answers may be is measured, not chosen: the model runs once more with its
attention in float64, and the patched logits may stand at most MARGIN times as far from that as
SDPA's own do. Weights are float32, so that nothing hides in bfloat16's rounding (SDPA's distance is
1e-6 here, a wrong mask or head is at 1e-1). Kernels run on the host backend.

A sample runs by default, everything with `make parity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import parity
import pytest
from conftest import shipped_in_metal, store_correct
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models import base
from mlx_lm.models.cache import make_prompt_cache

import mlx_lm_openevolve
from mlx_lm_openevolve.patch import Patch
from mlx_lm_openevolve.workload import Workload

MARGIN = 2.0
PROMPT, STEPS, VERIFY = 12, 3, 4
CACHES = ("own", "rotating", "quantized", "batch")
ON_HOST = {"backend": "host", "gate": "stored", "require_faster": False}

# Plain, sliding windows, sinks, MLA with additive masks, one KV head, state-space hybrids, chunked
# and shared caches, mixtures of experts, logits with infinities.
SAMPLE = {
    "afm7",
    "cohere2",
    "deepseek_v3",
    "falcon_h1",
    "gemma3n",
    "gpt_oss",
    "hunyuan",
    "llama",
    "llama4",
    "mimo_v2_flash",
    "minicpm3",
    "phi3small",
    "plamo",
    "qwen3_moe",
    "qwen3_next",
    "recurrent_gemma",
}

RUN = sorted(set(parity.architectures()) - set(parity.LEFT_OUT))


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    """float64 is the CPU's alone."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def in_float64(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """mlx-lm's attention, everything in float64 but its result."""

    def up(x: Any) -> Any:
        known = isinstance(x, mx.array) and x.dtype != mx.bool_
        return x.astype(mx.float64) if known else x

    def attention(
        q: mx.array, k: Any, v: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> mx.array:
        if not isinstance(k, mx.array):  # a quantised cache
            return original(q, k, v, cache, scale, mask, sinks)
        return original(up(q), up(k), up(v), cache, scale, up(mask), up(sinks)).astype(q.dtype)

    return attention


def logits(model: Any, kind: str) -> tuple[list[mx.array], int]:
    """Logits of a prefill, of decode steps and (one sequence) of a speculative verify, and the
    hits of what comes after the prefill."""
    batch = 2 if kind == "batch" else 1
    tokens = mx.random.randint(1, parity.VOCAB, (2, 32), key=mx.random.key(3))[:batch]
    if kind == "batch":  # as BatchGenerator does: merged, right padded, then finalized
        pair = zip(*(make_prompt_cache(model) for _ in range(batch)), strict=True)
        cache = [caches[0].merge(list(caches)) for caches in pair]
        for c in cache:
            c.prepare(lengths=[PROMPT, PROMPT - 3], right_padding=[0, 3])
    else:
        cache = make_prompt_cache(model, max_kv_size=8 if kind == "rotating" else None)
    found = []

    def step(chunk: mx.array) -> None:
        found.append(model(chunk, cache=cache))
        mx.eval(found[-1], [c.state for c in cache])

    step(tokens[:, :PROMPT])
    if kind == "batch":
        found.clear()  # the padding's logits mean nothing
        for c in cache:
            c.finalize()
    if kind == "quantized":
        maybe_quantize_kv_cache(cache, 0, 32, 8)
    before = hits()
    for i in range(STEPS):
        step(tokens[:, PROMPT + i : PROMPT + i + 1])
    if kind in ("own", "quantized"):
        step(tokens[:, PROMPT + STEPS : PROMPT + STEPS + VERIFY])
    return found, hits() - before


def hits() -> int:
    workloads = mlx_lm_openevolve.get_optimization_info()["workloads"]
    return sum(row["hits"] for row in workloads.values())


def distance(a: list[mx.array], b: list[mx.array]) -> float:
    """The largest relative L2 distance of any step; infinities must be at the same places."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.astype(mx.float32), y.astype(mx.float32)
        assert mx.array_equal(mx.isinf(x), mx.isinf(y)).item()
        x, y = (mx.where(mx.isinf(z), 0, z) for z in (x, y))
        worst = max(worst, (mx.linalg.norm(x - y) / mx.linalg.norm(y)).item())
        assert worst == worst, "NaN"
    return worst


def learn(model: Any, kind: str, home: Path) -> None:
    """Store verdicts "correct" for every workload that the model asks for and a kernel serves."""
    with mlx_lm_openevolve.optimizations(**ON_HOST):
        logits(model, kind)
        seen = [*map(Workload.parse, mlx_lm_openevolve.get_optimization_info()["workloads"])]
    for kernel in shipped_in_metal():
        store_correct(home, kernel, [w for w in seen if kernel.applies_to(w)])


def check(model: Any, kind: str, home: Path) -> None:
    try:
        stock, _ = logits(model, kind)
    except Exception as error:
        if kind == "own":
            raise
        # This cache is not for this model: the same answer from us.
        with mlx_lm_openevolve.optimizations(**ON_HOST), pytest.raises(type(error)):
            logits(model, kind)
        return
    learn(model, kind, home)
    with mlx_lm_openevolve.optimizations(**ON_HOST):
        ours, served = logits(model, kind)
        info = mlx_lm_openevolve.get_optimization_info()
    if kind == "quantized" and not served:  # all on stock: the very same bits
        assert "keys or values are no plain arrays" in info["fallbacks"]
        assert all(mx.array_equal(a, b).item() for a, b in zip(ours, stock, strict=True))
        return
    patch = Patch(base, in_float64)
    patch.install()
    try:
        truth, _ = logits(model, kind)
    finally:
        patch.restore()
    assert served > 0, info
    own = distance(stock, truth)
    assert 0 < own < 1e-5, "SDPA in float32 against float64"
    assert distance(ours, truth) <= MARGIN * own, kind


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a in SAMPLE else [pytest.mark.slow]) for a in RUN],
)
def test_patched_logits_agree_with_stock(architecture: str, home: Path) -> None:
    model = parity.build(architecture)
    for kind in CACHES:
        if kind == "rotating" and hasattr(model, "make_cache"):
            continue  # it makes its own, rotating where its windows are
        check(model, kind, home)


def test_the_field_is_covered() -> None:
    assert set(RUN) >= SAMPLE
    assert len(RUN) >= 90


@pytest.mark.skipif(mx.metal.is_available(), reason="with Metal they would run")
@pytest.mark.parametrize("architecture", sorted(parity.LEFT_OUT))
def test_what_is_left_out_cannot_run_here(architecture: str) -> None:
    model = parity.build(architecture)
    with pytest.raises(RuntimeError, match=parity.LEFT_OUT[architecture]):
        logits(model, "own")


def test_a_wrong_kernel_would_be_seen(home: Path) -> None:
    """The yardstick itself: attention that drops the last key is far outside the margin."""
    model = parity.build("qwen3")

    def short(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def attention(q: mx.array, k: mx.array, v: mx.array, *rest: Any, **named: Any) -> mx.array:
            if q.shape[2] > 1:
                return original(q, k, v, *rest, **named)
            return original(q, k[:, :, :-1], v[:, :, :-1], *rest, **named)

        return attention

    stock, _ = logits(model, "own")
    patch = Patch(base, short)
    patch.install()
    try:
        wrong, _ = logits(model, "own")
    finally:
        patch.restore()
    assert distance(wrong, stock) > 1e-3
