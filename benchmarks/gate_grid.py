"""Judge the shipped kernels over a grid of workloads on this GPU: `make tune`.

    python benchmarks/gate_grid.py --output DIR [--minutes 9] [--suite decode batch ...]

Every verdict is the library's own gate's, with its evidence, in a registry under DIR (the folder
`v1` of it is what tuned/ ships for a device). A workload that was judged there before is skipped,
so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.device import BACKENDS, detect, fingerprint
from mlx_lm_openevolve.errors import BackendError, KernelError
from mlx_lm_openevolve.gate import judge as gate
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention.workload import Workload


def shape(q_heads: int, kv_heads: int, dim: int) -> Workload:
    return Workload(1, q_heads, kv_heads, 1, 1, dim, dim, "bfloat16")


def quantized(workload: Workload, bits: int) -> Workload:
    return replace(workload, kv_bits=bits, kv_group=64, op="attention_quantized")


QWEN3_06B, LLAMA_1B, LLAMA_8B = shape(16, 8, 128), shape(32, 8, 64), shape(32, 8, 128)
GEMMA3_4B, GEMMA3_12B, GPT_OSS = shape(8, 4, 256), shape(16, 8, 256), shape(64, 8, 64)
D80 = shape(32, 32, 80)
# Wide heads: one KV head in eight query heads, D 512; MLA's prompts, 192/128 and 192/256.
GEMMA_512, GEMMA_512_SMALL = shape(16, 2, 512), shape(8, 1, 512)
MLA_PREFILL = replace(shape(16, 16, 192), v_head_dim=128)
GLM_PREFILL = replace(shape(20, 20, 192), v_head_dim=256, mask="additive")
# MLA decode: 16 heads, 20 (GLM-4.7-Flash) and 128 (DeepSeek V3) over one latent of 512, with the
# rope's scores added.
LATENT_16, LATENT_20, LATENT_128 = (
    replace(shape(heads, 1, 512), mask="additive", op="attention_latent") for heads in (16, 20, 128)
)


def powers(low: int, high: int) -> list[int]:
    return [1 << n for n in range(low.bit_length() - 1, high.bit_length())]


SUITES: dict[str, list[Workload]] = {
    "batch": [
        replace(w, batch=b, kv_len=n, mask="bool")
        for w in (LLAMA_8B, QWEN3_06B, LLAMA_1B)
        for b in (8, 32, 2, 4, 16)
        for n in powers(512, 8192)
    ],
    "decode": [
        replace(w, kv_len=n) for w in (QWEN3_06B, LLAMA_8B, LLAMA_1B) for n in powers(256, 65536)
    ],
    "wide": [
        replace(w, kv_len=n) for w in (GEMMA3_4B, GEMMA3_12B, D80) for n in powers(1024, 16384)
    ],
    "sinks": [
        replace(GPT_OSS, kv_len=n, mask=mask, sinks=True)
        for mask in ("none", "bool")
        for n in powers(128, 16384)
    ],
    "window": [replace(GPT_OSS, kv_len=n, mask="bool") for n in powers(128, 16384)],
    "verify": [
        replace(w, kv_len=n, q_len=8, mask="causal")
        for w in (QWEN3_06B, LLAMA_1B, LLAMA_8B)
        for n in powers(512, 16384)
    ],
    "draft": [
        replace(w, kv_len=n, q_len=32, mask="causal")
        for w in (QWEN3_06B, LLAMA_8B)
        for n in powers(512, 16384)
    ],
    "quantized": [
        replace(quantized(w, bits), batch=b, kv_len=n, mask=mask)
        for w in (QWEN3_06B, LLAMA_1B, LLAMA_8B)
        for bits in (4, 8)
        for b, mask, lengths in ((1, "none", powers(256, 65536)), (8, "bool", powers(512, 4096)))
        for n in lengths
    ],
    "widest": [
        replace(w, kv_len=n, **how)
        for w in (GEMMA_512, GEMMA_512_SMALL)
        for how, lengths in (
            ({}, powers(1024, 16384)),
            ({"q_len": 8, "mask": "causal"}, (1024, 4096)),
            ({"batch": 8, "mask": "bool"}, (1024, 4096)),
        )
        for n in lengths
    ],
    "latent": [
        *(
            replace(w, kv_len=n)
            for w in (LATENT_16, LATENT_20, LATENT_128)
            for n in powers(512, 16384)
        ),
        *(replace(LATENT_16, batch=b, kv_len=n) for b in (2, 4, 8) for n in (1024, 4096)),
    ],
    "prefill": [
        *(
            replace(w, kv_len=n, q_len=2048, mask=mask)
            for w in (GEMMA3_4B, GEMMA3_12B, MLA_PREFILL)
            for mask in ("causal", "bool")
            for n in powers(1024, 16384)
        ),
        *(replace(GLM_PREFILL, kv_len=n, q_len=2048) for n in (2048, 4096)),
    ],
    # Contexts so short that MLX and a kernel are a launch apart.
    "short": [
        *(replace(w, kv_len=n) for w in (QWEN3_06B, LLAMA_8B, LLAMA_1B) for n in (256, 512)),
        replace(GPT_OSS, kv_len=512, sinks=True),
        *(replace(GPT_OSS, kv_len=n, mask="bool") for n in (128, 256)),
        *(
            replace(w, batch=b, kv_len=n, mask="bool")
            for w in (LLAMA_8B, QWEN3_06B, LLAMA_1B)
            for b in (1, 2, 8, 32)
            for n in (128, 256)
        ),
    ],
    "half": [replace(QWEN3_06B, kv_len=n, dtype="float16") for n in powers(1024, 16384)],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=10, help="for one verdict")
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="only these of the shipped")
    parser.add_argument("--params", default="", metavar="K=V,...", help="instead of defaults")
    parser.add_argument("--all", action="store_true", help="go on after the first accepted")
    parser.add_argument("--backend", choices=BACKENDS)
    options = parser.parse_args()

    device = detect(options.backend)
    if missing := backends.get(device.backend).unavailable():
        print(f"backend {device.backend}: {missing}", file=sys.stderr)
        return 2
    stamp = fingerprint(device, gate.GATE_VERSION)
    registry = Registry(options.output)
    # Native stages first: where they run at all they were written for this very chip.
    kernels = sorted(
        Registry(tuned_root(), writable=False).kernels(),
        key=lambda k: not k.native,
    )
    pairs = (pair.split("=") for pair in options.params.split(",") if pair)
    asked = {name: int(value) for name, value in pairs}
    if options.kernel:
        kernels = [k for k in kernels if k.name in options.kernel]
    end = time.monotonic() + 60 * options.minutes
    accepted = judged = 0
    won: set[Workload] = set()
    for suite in options.suite:
        for workload in SUITES[suite]:
            bucket = workload.bucket()
            stored = [v for v in registry.verdicts(device.slug, bucket) if v.counts_for(stamp)]
            if any(v.accepted for v in stored) and not options.all:
                won.add(bucket)
            done = {(v.kernel, tuple(v.params.items())) for v in stored}
            for kernel in kernels:
                if time.monotonic() > end:
                    print(f"out of time: {judged} judged, {accepted} accepted")
                    return 0
                if bucket in won or not kernel.applies_to(bucket):
                    continue
                params = {**kernel.default_params(bucket), **asked}
                if (kernel.id, tuple(params.items())) in done:
                    continue
                start = time.monotonic()
                try:
                    verdict = gate.judge(
                        kernel, params, bucket, device.backend, seconds=options.seconds
                    )
                except (gate.GateTimeout, BackendError, KernelError) as error:
                    print(f"{bucket.slug} {kernel.name}: {error}", flush=True)
                    continue
                registry.publish(device.slug, verdict)
                judged += 1
                accepted += verdict.accepted
                times = verdict.timing
                if verdict.accepted and not options.all:
                    won.add(bucket)
                figures = (
                    f"{times['ratio']:.2f} [{times['low']:.2f}, {times['high']:.2f}]"
                    f" {times['candidate']['mean'] * 1e6:.1f} us"
                    if "ratio" in times
                    else ""
                )
                print(
                    f"{suite} {bucket.slug} {kernel.name} {verdict.status} {figures}"
                    f" {verdict.reason if not verdict.accepted else ''}"
                    f" ({time.monotonic() - start:.1f} s)",
                    flush=True,
                )
    print(f"{judged} judged, {accepted} accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
