"""Tables of single calls: the gate's verdicts, GPU time, products, what a call costs the host."""

from __future__ import annotations

import re
from typing import Any

from results_source import (
    H200,
    TUNED,
    VERDICTS_OF,
    Source,
    Table,
    accepted,
    interval,
    tuned_caption,
    us,
)

from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops import parse

# Single calls

CALLS = {
    "one sequence, 16:8 heads of 128, {} keys": [
        f"attention-b1-hq16-hkv8-lq1-lk{n}-d128-v128-bfloat16-none" for n in (256, 4096, 16384)
    ],
    "one sequence, 32:8 heads of 128, {} keys": [
        "attention-b1-hq32-hkv8-lq1-lk65536-d128-v128-bfloat16-none"
    ],
    "batch of 8, bool mask, 32:8 heads of 128, {} keys": [
        f"attention-b8-hq32-hkv8-lq1-lk{n}-d128-v128-bfloat16-bool" for n in (1024, 4096)
    ],
    "batch of 32, bool mask, 32:8 heads of 128, {} keys": [
        "attention-b32-hq32-hkv8-lq1-lk2048-d128-v128-bfloat16-bool"
    ],
    "sinks and bool mask, 64:8 heads of 64, {} keys": [
        "attention-b1-hq64-hkv8-lq1-lk4096-d64-v64-bfloat16-bool-sinks"
    ],
    "8:4 heads of 256, {} keys": ["attention-b1-hq8-hkv4-lq1-lk4096-d256-v256-bfloat16-none"],
    "MLA, 16 heads, additive mask, {} keys": [
        "attention-b1-hq16-hkv1-lq1-lk4096-d512-v512-bfloat16-additive-latent"
    ],
    "MLA, 20 heads, additive mask, {} keys": [
        "attention-b1-hq20-hkv1-lq1-lk4096-d512-v512-bfloat16-additive-latent"
    ],
    "MLA, 128 heads, additive mask, {} keys": [
        "attention-b1-hq128-hkv1-lq1-lk4096-d512-v512-bfloat16-additive-latent"
    ],
    "4-bit cache, 16:8 heads of 128, {} keys": [
        "attention-b1-hq16-hkv8-lq1-lk65536-d128-v128-bfloat16-none-kv4g64"
    ],
    "8-bit cache, 16:8 heads of 128, {} keys": [
        "attention-b1-hq16-hkv8-lq1-lk65536-d128-v128-bfloat16-none-kv8g64"
    ],
    "8 queries (a speculative step), 16:8 heads of 128, {} keys": [
        "attention-b1-hq16-hkv8-lq8-lk4096-d128-v128-bfloat16-causal"
    ],
    "prompt of 2048, 8:4 heads of 256, {} keys": [
        "attention-b1-hq8-hkv4-lq2048-lk8192-d256-v256-bfloat16-causal"
    ],
}


def calls() -> Table:
    known = {workload.slug: verdict for workload, verdict in accepted()}
    rows = []
    for text, slugs in CALLS.items():
        for slug in slugs:
            timing = known[slug].timing
            rows.append((timing["low"], (
                text.format(re.findall(r"-lk(\d+)", slug)[0]), us(timing["baseline"]["mean"]),
                us(timing["candidate"]["mean"]), interval(timing),
                f"{timing['sealed']['ratio']:.2f}", known[slug].fingerprint["gate"],
            )))  # fmt: skip
    header = ("one call, bf16", "MLX, us", "kernel, us", "ratio", "sealed length", "gate")
    return Table(header, [row for _, row in sorted(rows)], [tuned_caption()])


def verdicts() -> Table:
    """How many workloads are accepted, by family and gate, and the range of their ratios."""
    rows = []
    for chip in VERDICTS_OF:
        groups: dict[tuple[str, str], list[float]] = {}
        for workload, verdict in accepted(chip):
            key = workload.op, verdict.fingerprint["gate"]
            groups.setdefault(key, []).append(verdict.timing["ratio"])
        rows += [
            (chip, op, gate, str(len(ratios)), f"{min(ratios):.2f} to {max(ratios):.2f}")
            for (op, gate), ratios in sorted(groups.items())
        ]
    header = ("card", "family", "gate", "workloads accepted", "MLX's time over the kernel's")
    return Table(header, rows, [tuned_caption(), tuned_caption(H200, "mlx-lm-openevolve tune")])


GATE_3 = Source("h100-gate-3.json", "python benchmarks/gate_grid.py --backend cuda")
TUNE = Source("h100-tune-qwen3.json",
              "mlx-lm-openevolve tune --shape qwen3-0.6b --context 4k --budget 80s")  # fmt: skip
AFRESH = Source("h100-afresh.json", "python benchmarks/afresh.py")


def gate_3() -> Table:
    rows = [
        (f"`{row['workload']}`", interval(row["timing"]), f"{row['timing']['sealed']['ratio']:.2f}")
        for row in sorted(GATE_3.data["rows"], key=lambda row: row["timing"]["low"])
    ]
    return Table(("workload", "ratio", "sealed length"), rows, [GATE_3.caption()])


def tuned() -> Table:
    """Decode steps: what `tune` decided, and what the accepted were worth afterwards."""
    afresh = {row["workload"]: row["ratios"].values() for row in AFRESH.data["rows"]}
    best: dict[str, dict[str, Any]] = {}
    for row in TUNE.data["rows"]:
        slug = row["workload"]
        if "-lq1-" in slug and (slug not in best or row["status"] == "accepted"):
            best[slug] = row
    rows = []
    for slug, row in sorted(best.items(), key=lambda pair: pair[1]["timing"].get("low", 0)):
        again = afresh.get(slug)
        least = f"{min(again):.2f} to {max(again):.2f}, {len(again)} lengths" if again else ""
        rows.append((f"`{slug}`", row["status"], interval(row["timing"]), least))
    header = ("workload", "verdict", "ratio", "timed afresh")
    return Table(header, rows, [TUNE.caption(), AFRESH.caption()])


GPU_TIME = Source("h100-gpu-time.json", "python benchmarks/gpu_time.py")


def gpu_time() -> Table:
    """Our kernels with their default params beside PyTorch's backends; GPU time alone."""
    times: dict[str, dict[str, float]] = {}
    for point in GPU_TIME.data["points"]:
        if "us" in point:
            name = "ours" if "kernel" in point else point["backend"]
            row = times.setdefault(point["workload"], {})
            row[name] = min(point["us"], row.get(name, point["us"]))
    rows = [
        (f"`{slug}`", *(f"{row[name]:.1f}" if name in row else "-" for name in
         ("ours", "cudnn", "flash")))
        for slug, row in times.items() if "cudnn" in row
    ]  # fmt: skip
    header = (
        "workload",
        "the faster of our kernels, us",
        "PyTorch, cuDNN",
        "PyTorch, FlashAttention",
    )
    return Table(header, rows, [GPU_TIME.caption()])


PRODUCTS = (
    Source("h100-product-points.json", "python benchmarks/gpu_time.py --sweep"),
    Source("h100-tiles-points.json", "python benchmarks/gpu_time.py --sweep"),
)
STOCK = Source("h100-products.json",
               "mlx-lm-openevolve tune --shape llama-3.1-8b --bits 4 --ops linear")  # fmt: skip
EXPERTS = Source("h100-experts.json",
                 "mlx-lm-openevolve check quantized_experts_mma --backend cuda")  # fmt: skip


def products() -> Table:
    """4-bit products: MLX's wall time, our kernels' GPU time with their default params."""
    stock = {row["workload"]: row["us"] for row in STOCK.data["stock"]["rows"]}
    ours: dict[str, float] = {}
    for source in PRODUCTS:
        for point in source.data["points"]:
            kernel = TUNED.kernel(point["id"])
            if kernel and "us" in point and _is_default(kernel, point):
                ours[point["workload"]] = point["us"]
    shapes: dict[str, list[tuple[int, float, float]]] = {}
    for slug in ours.keys() & stock.keys():
        rows, n, k = map(int, re.findall(r"-[mnk](\d+)", slug))
        shapes.setdefault(f"{n} x {k}", []).append((rows, stock[slug], ours[slug]))
    rows_of = [
        (
            shape, ", ".join(str(row[0]) for row in sorted(found)),
            ", ".join(f"{row[1]:.0f}" for row in sorted(found)),
            ", ".join(f"{row[2]:.1f}" for row in sorted(found)),
        )
        for shape, found in sorted(shapes.items())
    ]  # fmt: skip
    header = ("outputs x inputs", "rows", "MLX, us", "kernel, us")
    return Table(header, rows_of, [source.caption() for source in (*PRODUCTS, STOCK)])


def _is_default(kernel: Kernel, point: dict[str, Any]) -> bool:
    return dict(kernel.default_params(parse(point["workload"]).bucket())) == point["params"]


def products_verdicts() -> Table:
    """The H200's verdicts on products, the best of each workload, by shape, bits and rows."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for workload in TUNED.workloads(H200):
        found = re.fullmatch(r"linear-m(\d+)-n(\d+)-k(\d+)-\w+-q(\d+)g64", workload.slug)
        if found:
            rows, n, k, bits = map(int, found.groups())
            best = TUNED.verdicts(H200, workload)[0]
            words = interval(best.timing) if best.accepted else f"rejected: {best.ratio:.2f}"
            cells.setdefault((f"{n} x {k}", f"{bits}"), {})[rows] = words
    counts = sorted({rows for shape in cells.values() for rows in shape})
    rows_of = [
        (*product, *(found.get(rows, "-") for rows in counts)) for product, found in cells.items()
    ]
    header = ("outputs x inputs", "bits", *(f"{n} row{'s' * (n > 1)}" for n in counts))
    return Table(header, sorted(rows_of), [tuned_caption(H200, "mlx-lm-openevolve tune")])


def experts() -> Table:
    rows = [
        (
            f"`{row['workload']}`", row["verdict"], f"{row['baseline_us']:.1f}", f"{row['us']:.1f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"]), f"{row['sealed'][0]:.2f}",
        )
        for row in EXPERTS.data["check"]["rows"]
    ]  # fmt: skip
    header = ("workload", "verdict", "MLX, us", "kernel, us", "ratio", "sealed")
    return Table(header, rows, [EXPERTS.caption()])


OVERHEAD = Source("cpu-overhead.json")
OVERHEAD_GPU = Source(
    "h100-overhead.log", "python benchmarks/overhead.py --backend cuda --rounds 101"
)


def overhead() -> Table:
    falls, served = OVERHEAD.data["falls back"], OVERHEAD.data["served"]
    rows = []
    for name, row in served.items():
        before = falls.get(f"{name}, before nothing")
        through = falls.get(f"{name}, before mlx-lm") or falls.get(name, {}).get("adds")
        rows.append(
            (
                name,
                f"+{before['median']:.2f}" if before else "-",
                f"+{through['median']:.2f}" if through else "-",
                f"{row['ratio']['median']:.2f}",
            )
        )
    header = ("one call", "falls back, the original aside, us", "in front of the original, us",
              "served, to MLX's bare kernel calls")  # fmt: skip
    return Table(header, rows, [OVERHEAD.caption()])


def overhead_gpu() -> Table:
    rows = []
    for line in OVERHEAD_GPU.text.splitlines():
        if found := re.match(r"served: +(.+), \w+ +([\d.]+) x +(\[.*?\]): ([\d.]+) us, ([\d.]+)",
                             line):  # fmt: skip
            rows.append((found[1], found[5], found[4], f"{found[2]} {found[3]}"))
    header = ("one call", "MLX's bare kernel calls, us", "served, us", "ratio [95%]")
    return Table(header, rows, [OVERHEAD_GPU.caption()])


SANITIZER = Source("h200-sanitizer.json", "python benchmarks/sanitizer.py")


def sanitizer() -> Table:
    rows = [
        (
            tool, str(len(found["jobs"])), str(sum(bool(job["found"]) for job in found["jobs"])),
            "found" if found["culprit"] else "missed",
        )
        for tool, found in SANITIZER.data["tools"].items()
    ]  # fmt: skip
    header = ("tool", "runs", "with findings", "a kernel that is wrong on purpose")
    return Table(header, rows, [SANITIZER.caption()])


ACCEPT = Source("accept-rule.json")
USUAL = {"white-1%", "white-5%", "drift", "throttling", "pulses-60Hz", "pulses-120Hz"}


def accept() -> Table:
    """How often kernels of a known ratio are taken for faster, on an invented clock."""
    found = ACCEPT.data["runs"]
    rows = []
    for ratio in sorted({row["ratio"] for row in found}):
        for kinds, chosen in (("all", None), ("white noise up to 5%, drift, throttling, a display's"
                                              " pulses", USUAL)):  # fmt: skip
            if chosen and ratio < 1.1:
                continue
            these = [
                r for r in found if r["ratio"] == ratio and r["kind"] in (chosen or {r["kind"]})
            ]
            shares = [row["accepted"] / row["runs"] for row in these]
            bounds = [row["upper"] for row in these if "upper" in row]
            rows.append(
                (f"{ratio:.2f}", kinds, str(len(these)), str(these[0]["runs"]),
                 f"{min(shares):.1%}", f"{max(shares):.2%}",
                 f"{max(bounds):.3%}" if bounds else "")
            )  # fmt: skip
    header = ("true ratio", "noise", "kinds x lengths of calls", "kernels of each",
              "accepted, at least", "at most", "its 95% bound")  # fmt: skip
    return Table(header, rows, [f"an invented clock, {ACCEPT.caption()}"])
