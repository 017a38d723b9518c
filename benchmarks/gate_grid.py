"""Judge the shipped kernels over a grid of workloads on this GPU: `make verdicts`.

    python benchmarks/gate_grid.py --output DIR [--minutes 9] [--workloads decode batch SLUG ...]

Every verdict is the library's own gate's, with its evidence, in a registry under DIR (its folder
`v2/devices` is what tuned/ ships for a device). Each kernel is tried with the params that won
somewhere, as tuned/ has them, and then with its defaults, until one is accepted; with --all each
further one is timed in turns with the best so far. What was judged there before is skipped, so that
an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import BACKENDS, detect, fingerprint
from mlx_lm_openevolve.errors import BackendError, GateTimeout, KernelError, UsageError
from mlx_lm_openevolve.evolve import suites
from mlx_lm_openevolve.gate.judge import judge
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import in_order
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict, gate_version
from mlx_lm_openevolve.ops import Workload
from mlx_lm_openevolve.ops.attention.suites import LAYOUTS, OTHERS
from mlx_lm_openevolve.ops.attention.workload import Bucket


def shape(q_heads: int, kv_heads: int, dim: int, **more: Any) -> Bucket:
    return replace(Bucket(1, q_heads, kv_heads, 1, 1, dim, dim, "bfloat16"), **more)


def powers(low: int, high: int) -> list[int]:
    return [1 << n for n in range(low.bit_length() - 1, high.bit_length())]


def grid(shapes: Iterable[Bucket], kv_len: Sequence[int], **fields: Sequence[Any]) -> list[Bucket]:
    """The shapes with every combination of lengths and other fields."""
    values = list(product(kv_len, *fields.values()))
    return [
        replace(w, **dict(zip(("kv_len", *fields), v, strict=True))) for w in shapes for v in values
    ]


MODELS = [shape(*layout) for layout in LAYOUTS]
ALL_MODELS = [*MODELS, *(shape(*layout) for layout in OTHERS)]
PACKED = [replace(w, kv_bits=bits, kv_group=64) for w in MODELS for bits in (4, 8)]
GEMMA3 = (shape(8, 4, 256), shape(16, 8, 256))
GPT_OSS = shape(64, 8, 64)
# One KV head in eight query heads, D 512; MLA's prompts, 192/128 and 192/256.
GEMMA_512 = (shape(16, 2, 512), shape(8, 1, 512))
MLA_PREFILL = shape(16, 16, 192, v_head_dim=128)
GLM_PREFILL = shape(20, 20, 192, v_head_dim=256, mask="additive")
# MLA decode: 16 heads, 20 (GLM-4.7-Flash) and 128 (DeepSeek V3) over one latent of 512, with the
# rope's scores added.
LATENT = [shape(heads, 1, 512, mask="additive", latent=True) for heads in (16, 20, 128)]

# A name stands for the family's suite of that name as well.
SUITES = {
    "batch": grid(ALL_MODELS, powers(256, 32768), batch=[8], mask=["bool"])
    + grid(MODELS, powers(512, 8192), batch=(32, 2, 4, 16), mask=["bool"]),
    "decode": grid(ALL_MODELS, powers(256, 65536)),
    "wide": grid((*GEMMA3, shape(32, 32, 80)), powers(256, 32768)),
    "sinks": grid([replace(GPT_OSS, sinks=True)], powers(128, 32768), mask=("none", "bool")),
    "window": grid([GPT_OSS], powers(128, 32768), mask=["bool"]),
    "verify": grid(ALL_MODELS, powers(256, 32768), q_len=[8], mask=["causal"]),
    "draft": grid(MODELS[:2], powers(512, 16384), q_len=[32], mask=["causal"]),
    "quantized": grid(PACKED, powers(256, 65536))
    + grid(PACKED, powers(512, 4096), batch=[8], mask=["bool"]),
    "widest": grid(GEMMA_512, powers(256, 32768))
    + grid(GEMMA_512, (1024, 4096), q_len=[8], mask=["causal"])
    + grid(GEMMA_512, (1024, 4096), batch=[8], mask=["bool"]),
    "latent": grid(LATENT, powers(256, 32768)) + grid(LATENT[:1], (1024, 4096), batch=(2, 4, 8)),
    "prefill": grid(
        (*GEMMA3, MLA_PREFILL), powers(1024, 16384), q_len=[2048], mask=("causal", "bool")
    )
    + grid([GLM_PREFILL], (2048, 4096), q_len=[2048]),
    # Contexts so short that MLX and a kernel are a launch apart.
    "short": grid(MODELS, (128, 256), batch=(1, 2, 8, 32), mask=["bool"]),
    "half": grid(MODELS[:1], powers(1024, 16384), dtype=["float16"]),
}


def contenders(
    bucket: Workload, kernels: Sequence[Kernel], shipped: Registry, asked: dict[str, int]
) -> Iterator[tuple[Kernel, dict[str, int]]]:
    """Kernels that apply, with params: those of accepted verdicts, and the defaults."""
    verdicts = [v for device in shipped.devices() for v in shipped.verdicts(device, bucket)]
    for kernel in kernels:
        if kernel.applies_to(bucket):
            won = [dict(v.params) for v in verdicts if v.accepted and v.kernel == kernel.id]
            tried: list[dict[str, int]] = []
            for params in (*won, kernel.default_params(bucket)):
                params = {**params, **asked}
                if params not in tried:
                    tried.append(params)
                    yield kernel, params


def told(verdict: Verdict) -> str:
    """Status, figures and the reason, in a line."""
    times = verdict.timing
    words = [verdict.status]
    if "ratio" in times:
        words.append(f"{times['ratio']:.2f} [{times['low']:.2f}, {times['high']:.2f}]")
        words.append(f"{times['candidate']['mean'] * 1e6:.1f} us")
    return " ".join([*words, verdict.reason])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=10, help="for one verdict")
    known = suites.suites()
    names = ", ".join(dict.fromkeys((*SUITES, *known)))
    parser.add_argument(
        "--workloads", nargs="+", metavar="SUITE|SLUG", default=list(SUITES), help=f"of {names}"
    )
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="only these of the shipped")
    parser.add_argument("--params", default="", metavar="K=V,...", help="instead of those")
    parser.add_argument("--all", action="store_true", help="go on after the first accepted")
    parser.add_argument("--backend", choices=BACKENDS)
    options = parser.parse_args()

    try:
        found = [
            [*SUITES.get(name, ()), *known.get(name, ())] or suites.suite([name])
            for name in options.workloads
        ]
    except UsageError as error:
        parser.error(str(error))
    device = detect(options.backend)
    if missing := backends.get(device.backend).unavailable():
        print(f"backend {device.backend}: {missing}", file=sys.stderr)
        return 2
    registry, shipped = Registry(options.output), Registry(tuned_root(), writable=False)
    kernels = in_order(k for k in shipped.kernels() if k.native <= {device.backend})
    if options.kernel:
        kernels = [k for k in kernels if k.name in options.kernel]
    pairs = (pair.split("=") for pair in options.params.split(",") if pair)
    asked = {name: int(value) for name, value in pairs}
    end = time.monotonic() + 60 * options.minutes
    accepted = judged = 0
    for bucket in dict.fromkeys(bucket for part in found for bucket in part):
        stamp = fingerprint(device, gate_version(bucket.op))
        stored = [v for v in registry.verdicts(device.slug, bucket) if v.counts_for(stamp)]
        done = [(v.kernel, dict(v.params)) for v in stored]
        best = max((v for v in stored if v.accepted), key=lambda v: v.rank, default=None)
        for kernel, params in contenders(bucket, kernels, shipped, asked):
            if (best and not options.all) or (kernel.id, params) in done:
                continue
            if time.monotonic() > end:
                print(f"out of time: {judged} judged, {accepted} accepted")
                return 0
            start = time.monotonic()
            known = shipped.kernel(best.kernel) if best else None
            rival = (known, best) if known and best else None
            try:
                verdict = judge(
                    kernel, params, bucket, device.backend, seconds=options.seconds, rival=rival
                )
            except (GateTimeout, BackendError, KernelError) as error:
                print(f"{bucket.slug} {kernel.name}: {error}", flush=True)
                continue
            registry.publish(device.slug, verdict)
            judged += 1
            accepted += verdict.accepted
            if verdict.accepted and (best is None or verdict.rank > best.rank):
                best = verdict
            seconds = time.monotonic() - start
            print(f"{bucket.slug} {kernel.name} {told(verdict)} ({seconds:.1f} s)", flush=True)
    print(f"{judged} judged, {accepted} accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
