"""Every mlx-lm architecture, patched against unpatched: the same logits, with every kind of cache.

How far apart two right answers may be is measured, not chosen: the model runs once more with its
attention in float64, and the patched logits may stand at most MARGIN times as far from that as
SDPA's own do, all steps together (at a single one a model may blow one rounding up). Weights are
float32 by default, so that nothing hides in bfloat16's rounding: SDPA stands at 1e-6 here, a wrong
mask or head at 1e-1.

Kernels run on the host backend, on verdicts that the gate makes at first need, one for each
workload of a whole run. A decode step that a shipped kernel applies to must be served by it.

With weights packed in four bits the family `linear` is on alone, and its products are what the
truth has in float64. Its kernel is taken for correct: the gate would take hours for so many
matrices, and what is asked here is whether it is called with the right arrays.

    python tests/support/parity.py [--packed] [ARCHITECTURE ...]       everything: `make parity`
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from samples import shipped_in_metal, store_correct

import mlx_lm_openevolve
from mlx_lm_openevolve import ops
from mlx_lm_openevolve.cli.architectures import callers
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import VERSION, Registry
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.runtime.patch import installed, patches_of

MARGIN = 2.0
# SDPA stands nearer than this, or the yardstick sees too little: a wrong mask is at 1e-1.
NEAR = {mx.float32: 1e-5, mx.float16: 1e-2, mx.bfloat16: 5e-2}
PROMPT, STEPS, VERIFY = 40, 3, 4  # tokens of a prefill, decode steps, tokens of a verify step
WINDOW, GROUP, BITS = 8, 32, 8
LEAST = 90  # architectures that must run

# What mlx-lm makes for a model; a rotating cache in place of it, where the model leaves that to
# mlx-lm; the quantised one after the prefill; the batched form of the first two, as BatchGenerator
# makes it.
KINDS = ("own", "rotating", "quantized", "batch", "batch rotating")


class Disparity(AssertionError):
    """The patched model does something else than the unpatched one, or no kernel served it."""


@dataclass(frozen=True)
class Found:
    """One architecture with one kind of cache. hits: calls of its decode steps that a kernel
    served. on_sdpa: why none served other decode or verify steps. refused: why stock itself does
    not run with this cache. own, ours: distance of SDPA's and of the patched logits from float64.
    """

    kind: str
    hits: int = 0
    on_sdpa: tuple[str, ...] = ()
    refused: str = ""
    own: float = 0.0
    ours: float = 0.0


@functools.cache
def covered() -> list[str]:
    """The architectures that must agree: those that import the attention function and can run."""
    return sorted(set(callers().patched) - set(architectures.LEFT_OUT))


def check(
    architecture: str, root: Path, dtype: mx.Dtype = mx.float32, judged: bool = True
) -> list[Found]:
    """Run an architecture with every kind of cache; `root` is a registry that verdicts are read
    from and written to. judged: by the gate; else its kernels are taken for correct. Raises
    Disparity, and what the unpatched model raises."""
    with on_cpu():
        model = exact = architectures.build(architecture, dtype)
        if dtype != mx.float32:  # the same values, computed with in float32
            exact = architectures.build(architecture, dtype)
            exact.update(tree_map(_in_float32, exact.parameters()))
        kinds = [k for k in KINDS if not (k.endswith("rotating") and hasattr(model, "make_cache"))]
        return [_compare(architecture, model, exact, k, root, NEAR[dtype], judged) for k in kinds]


PACKED = ("own", "batch")  # kinds of cache, with packed weights
PACKING = 32  # numbers of a group: what most of the small models' widths divide into


def check_packed(architecture: str, root: Path) -> list[Found]:
    """`check` with four-bit weights and the family `linear`; hits are those of its kernel."""
    with on_cpu():
        model = architectures.build(architecture)
        own = getattr(model, "quant_predicate", None)

        def packing(path: str, layer: Any) -> Any:
            """As mlx-lm packs them, in smaller groups, and without a mode: afm7's own take none."""
            asked = own(path, layer) if own and hasattr(layer, "to_quantized") else True
            fits = hasattr(layer, "to_quantized") and layer.weight.shape[-1] % PACKING == 0
            bits = asked.get("bits", 4) if isinstance(asked, dict) else 4
            return bool(asked) and fits and {"group_size": PACKING, "bits": bits}

        nn.quantize(model, class_predicate=packing)  # type: ignore[attr-defined]
        model.eval()
        return [_compare_packed(architecture, model, kind, root) for kind in PACKED]


def _compare_packed(name: str, model: Any, kind: str, root: Path) -> Found:
    try:
        stock, _ = logits(model, kind)
    except Exception as error:
        reason = architectures.refusal(name, kind, error)
        if not reason:
            raise
        return Found(kind, refused=reason)
    with replaced(lambda _: product_in_float64, "linear"):
        truth, _ = logits(model, kind)
    ours, _, info = _patched(model, kind, root, [], ("linear",))
    if _gate(info, root, judged=False):
        ours, _, info = _patched(model, kind, root, [], ("linear",))
    for slug, row in info["workloads"].items():
        if row["fallbacks"]:
            raise Disparity(f"{slug} ran on MLX: {row['reason']}")
    served = sum(row["hits"] for row in info["workloads"].values())
    reasons = tuple(sorted(info["ops"]["linear"]["fallbacks"]))
    found = Found(kind, served, reasons, "", distance(stock, truth), distance(ours, truth))
    if not served and not reasons:
        raise Disparity(f"{kind}: no product was ever called")
    of_experts = [slug for slug, row in info["workloads"].items() if ops.parse(slug).experts]
    if not of_experts and any(type(part) is QuantizedSwitchLinear for part in model.modules()):
        raise Disparity(f"{kind}: no expert was served")
    if not 0 < found.own < NEAR[mx.float32]:
        raise Disparity(f"{kind}: MLX itself stands {found.own:.2e} from float64")
    if not found.ours <= MARGIN * found.own:
        raise Disparity(f"{kind}: {found.ours:.2e} from float64, MLX {found.own:.2e}")
    return found


def product_in_float64(layer: Any, x: mx.array, *routing: Any, **_: Any) -> mx.array:
    """A quantised layer's product, everything in float64 but its result: of four bits the low half
    of a byte comes first. With experts each row has the matrix that its index names."""
    assert layer.bits in (4, 8)
    assert layer.mode == "affine"
    numbers = mx.contiguous(layer["weight"]).view(mx.uint8)
    if layer.bits == 4:
        numbers = mx.stack([numbers & 15, numbers >> 4], axis=-1).flatten(-2)
    scales, biases = (
        mx.repeat(_up(layer[part]), layer.group_size, axis=-1) for part in ("scales", "biases")
    )
    weights = (numbers.astype(mx.float64) * scales + biases).swapaxes(-1, -2)
    bias = _up(layer.get("bias"))
    if routing:
        weights = weights[routing[0]]
        bias = bias if bias is None else mx.expand_dims(bias[routing[0]], -2)
    out = _up(x) @ weights
    return (out if bias is None else out + bias).astype(x.dtype)


def _in_float32(x: mx.array) -> mx.array:
    return x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x


@contextmanager
def on_cpu() -> Iterator[None]:
    """float64 is the CPU's alone."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)


def _compare(
    name: str, model: Any, exact: Any, kind: str, root: Path, near: float, judged: bool
) -> Found:
    stored: Stored = []
    try:
        with replaced(lambda original: storing(original, stored)):
            stock, _ = logits(model, kind)
    except Exception as error:
        reason = architectures.refusal(name, kind, error)
        if not reason:
            raise
        _refuses_too(model, kind, root, error)
        return Found(kind, refused=reason)
    with replaced(lambda _: replaying(in_float64, stored)):
        truth, _ = logits(exact, kind)
    ours, decoded, info = _patched(model, kind, root, stored)
    if _gate(info, root, judged):
        ours, decoded, info = _patched(model, kind, root, stored)
    found = Found(kind, decoded, _on_sdpa(info), "", distance(stock, truth), distance(ours, truth))
    if not any(row["hits"] for row in info["workloads"].values()):
        if not found.on_sdpa:
            raise Disparity(f"{kind}: attention was never called")
        if not all(mx.array_equal(a, b).item() for a, b in zip(ours, stock, strict=True)):
            raise Disparity(f"{kind}: no kernel served, yet the logits are other bits")
    if not 0 < found.own < near:
        raise Disparity(f"{kind}: SDPA itself stands {found.own:.2e} from float64")
    if not found.ours <= MARGIN * found.own:
        raise Disparity(f"{kind}: {found.ours:.2e} from float64, SDPA {found.own:.2e}")
    return found


def _refuses_too(model: Any, kind: str, root: Path, error: Exception) -> None:
    try:
        _patched(model, kind, root, [])
    except type(error):
        return
    raise Disparity(f"{kind}: unpatched raises {error!r}, patched does not")


def _patched(
    model: Any, kind: str, root: Path, stored: Stored, families: Sequence[str] = ("attention",)
) -> tuple[list[mx.array], int, dict[str, Any]]:
    (root / VERSION).mkdir(parents=True, exist_ok=True)
    on_host: dict[str, Any] = {"backend": "host", "gate": "stored", "require_faster": False}
    on_host["ops"] = families
    with (
        mlx_lm_openevolve.optimizations(root, **on_host),
        replaced(lambda served: replaying(served, stored)),
    ):
        found, decoded = logits(model, kind)
        return found, decoded, mlx_lm_openevolve.get_optimization_info()


def _gate(info: dict[str, Any], root: Path, judged: bool) -> bool:
    """Judge what a shipped kernel applies to and was not judged yet, or take it for correct;
    whether there was any."""
    registry, fresh = Registry(root), False
    for bucket in (ops.parse(slug).bucket() for slug in info["workloads"]):
        for kernel in shipped():
            if (
                kernel.op != bucket.op
                or not kernel.applies_to(bucket)
                or info["workloads"][bucket.slug]["kernel"]
            ):
                continue
            fresh = True
            if not judged:
                store_correct(root, kernel, [bucket])
                continue
            with registry.gating("host", bucket, 120):
                if kernel.id not in {v.kernel for v in registry.verdicts("host", bucket)}:
                    params = kernel.default_params(bucket)
                    verdict = gate.judge(
                        kernel, params, bucket, "host", seconds=120, speed=False, brief=True
                    )
                    registry.publish("host", verdict)
    return fresh


@functools.cache
def shipped() -> list[Kernel]:
    """The shipped kernels that the host can run: every launch is written in Metal."""
    return shipped_in_metal()


def _on_sdpa(info: dict[str, Any]) -> tuple[str, ...]:
    """Decode calls that ran on SDPA, and why. Raises Disparity for plain attention,
    which every configuration is made to have served."""
    # A call without a cache is no decode step: it excuses none.
    reasons = [reason for reason in info["fallbacks"] if not reason.startswith("no cache")]
    for slug, row in info["workloads"].items():
        workload = Workload.parse(slug)
        if workload.q_len > 8 or not row["fallbacks"]:
            continue
        if workload.variant == "float":
            raise Disparity(f"{slug} ran on SDPA: {row['reason']}")
        reasons.append(f"{workload.variant}: {row['reason']}")
    return tuple(sorted(set(reasons)))


def hits() -> int:
    workloads = mlx_lm_openevolve.get_optimization_info()["workloads"]
    return sum(row["hits"] for row in workloads.values())


def logits(model: Any, kind: str) -> tuple[list[mx.array], int]:
    """Logits of a prefill, of decode steps and, for one sequence, of a speculative verify; and how
    many calls of the decode steps a kernel served."""
    batch = 2 if kind.startswith("batch") else 1
    tokens = mx.random.randint(1, architectures.VOCAB, (2, 64), key=mx.random.key(3))[:batch]
    caches = _caches(model, kind, batch)
    found: list[mx.array] = []

    def step(chunk: mx.array) -> None:
        found.append(model(chunk, cache=caches))
        mx.eval(found[-1], [c.state for c in caches])

    step(tokens[:, :PROMPT])
    if batch > 1:
        found.clear()  # the padding's logits mean nothing
        for cache in caches:
            cache.finalize()
    if kind == "quantized":
        maybe_quantize_kv_cache(caches, 0, GROUP, BITS)
        if not any(hasattr(cache, "bits") for cache in caches):
            raise NotImplementedError("none of its caches can be quantised")
    before = hits()
    for i in range(PROMPT, PROMPT + STEPS):
        step(tokens[:, i : i + 1])
    decoded = hits() - before
    if kind in ("own", "quantized"):
        step(tokens[:, PROMPT + STEPS : PROMPT + STEPS + VERIFY])
    return found, decoded


def _caches(model: Any, kind: str, batch: int) -> list[Any]:
    if kind == "rotating":
        made: list[Any] = make_prompt_cache(model, max_kv_size=WINDOW)
        return made
    if batch == 1:
        made = make_prompt_cache(model)
        return made

    def one() -> list[Any]:
        caches: list[Any] = make_prompt_cache(model)
        return [RotatingKVCache(WINDOW) for _ in caches] if kind == "batch rotating" else caches

    # As BatchGenerator does: merged, right padded, then finalized.
    merged = [
        pair[0].merge(list(pair)) for pair in zip(*(one() for _ in range(batch)), strict=True)
    ]
    for cache in merged:
        cache.prepare(lengths=[PROMPT, PROMPT - 3], right_padding=[0, 3])
    return merged


@contextmanager
def replaced(
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]], family: str = "attention"
) -> Iterator[None]:
    """mlx-lm with another attention function in every model, or with other quantised products."""
    with installed(patches_of(ops.get(family), wrap)):
        yield


Stored = list[tuple[Any, Any]]


def storing(original: Callable[..., Any], stored: Stored) -> Callable[..., Any]:
    """mlx-lm's attention, which keeps the keys and values of quantised caches."""

    def attention(q: Any, k: Any, v: Any, cache: Any, *rest: Any, **named: Any) -> Any:
        if hasattr(cache, "bits"):
            stored.append((k, v))
        return original(q, k, v, cache, *rest, **named)

    return attention


def replaying(original: Callable[..., Any], stored: Stored) -> Callable[..., Any]:
    """Attention over the quantised keys and values that were stored: an answer that is right but
    for its last bit may quantise to a neighbouring level, a thousand times further away."""
    left = iter(stored)

    def attention(q: Any, k: Any, v: Any, cache: Any, *rest: Any, **named: Any) -> Any:
        if hasattr(cache, "bits") and stored:
            k, v = next(left)
        return original(q, k, v, cache, *rest, **named)

    return attention


def in_float64(
    q: mx.array, k: Any, v: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
) -> mx.array:
    """mlx-lm's attention, everything in float64 but its result."""
    if hasattr(cache, "bits"):
        k, v = _dequantised(k, cache), _dequantised(v, cache)
    return mx.fast.scaled_dot_product_attention(
        _up(q), _up(k), _up(v), scale=scale, mask=_up(mask), sinks=_up(sinks)
    ).astype(q.dtype)


def _up(x: Any) -> Any:
    return x.astype(mx.float64) if isinstance(x, mx.array) and x.dtype != mx.bool_ else x


def _dequantised(packed: Any, cache: Any) -> mx.array:
    """word * scale + bias in float64, of 8-bit words; MLX's own dequantize rounds to float32."""
    assert cache.bits == 8
    words, scales, biases = packed
    bytes_ = mx.contiguous(words).view(mx.uint8).astype(mx.float64)
    scales, biases = (mx.repeat(_up(x), cache.group_size, axis=-1) for x in (scales, biases))
    return bytes_ * scales + biases


def distance(a: Sequence[mx.array], b: Sequence[mx.array]) -> float:
    """The relative L2 distance of all steps; infinities must be at the same places."""
    apart, size = 0.0, 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.astype(mx.float32), y.astype(mx.float32)
        if not mx.array_equal(mx.isinf(x), mx.isinf(y)).item():
            raise Disparity("infinities are at other places")
        x, y = (mx.where(mx.isinf(z), 0, z) for z in (x, y))
        apart += float(mx.sum((x - y) ** 2))
        size += float(mx.sum(y**2))
    if not apart >= 0:
        raise Disparity("NaN")
    return math.sqrt(apart / size)


def cannot_run(architecture: str) -> str:
    """What an architecture of LEFT_OUT raises here, "" where it runs."""
    with on_cpu():
        try:
            logits(architectures.build(architecture), "own")
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def _job(architecture: str, root: str, packed: bool) -> tuple[list[Found], str, float]:
    start = time.monotonic()
    try:
        found = (check_packed if packed else check)(architecture, Path(root))
        return found, "", time.monotonic() - start
    except Exception as error:
        return [], f"{type(error).__name__}: {error}", time.monotonic() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Check the field; the exit code is 0 where everything agrees."""
    parser = argparse.ArgumentParser(description="Patched against unpatched, over the field.")
    parser.add_argument("architectures", metavar="ARCHITECTURE", nargs="*")
    parser.add_argument("--packed", action="store_true", help="weights of four bits")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args(argv)
    names = options.architectures or [*covered(), *architectures.OWN_CODE]
    start, failed = time.monotonic(), 0
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    hits_of, worst = collections.Counter[str](), 0.0
    with (
        tempfile.TemporaryDirectory() as root,
        concurrent.futures.ProcessPoolExecutor(
            options.jobs, multiprocessing.get_context("spawn")
        ) as pool,
    ):
        for name, (found, wrong, seconds) in zip(
            names,
            pool.map(_job, names, [root] * len(names), [options.packed] * len(names)),
            strict=True,
        ):
            cells = [f"{f.kind} {f.hits or ('SDPA' if not f.refused else '-')}" for f in found]
            print(f"{name:22s} {seconds:5.1f} s  {wrong or ', '.join(cells)}", flush=True)
            failed += bool(wrong)
            for f in found:
                hits_of[f.kind] += f.hits > 0
                worst = max(worst, f.ours / f.own if f.own else 0.0)
                for reason in (*f.on_sdpa, *filter(None, [f.refused])):
                    reasons[f"{f.kind}: {reason}"].append(name)
        judged = len(Registry(Path(root)).workloads("host"))
    print("\nNot served, and why:")
    for reason, those in sorted(reasons.items()):
        print(f"  {reason}\n      {len(those)}: {' '.join(those)}")
    if not options.architectures:
        for name, reason in architectures.LEFT_OUT.items():
            print(f"  {name} does not run here: {reason}")
    print(
        f"\n{len(names) - failed} of {len(names)} agree; a kernel served decoding with"
        f" {', '.join(f'{kind} caches in {hits_of[kind]}' for kind in KINDS)}; at most"
        f" {worst:.2f} times as far from float64 as SDPA (allowed {MARGIN});"
        f" {judged} workloads gated; {time.monotonic() - start:.0f} s"
    )
    return 1 if failed or (not options.architectures and len(names) < LEAST) else 0


if __name__ == "__main__":
    sys.exit(main())
