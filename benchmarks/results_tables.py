"""What was measured, as tables: every figure from a file of results/ or the verdicts of tuned/.

The line below a table names machine, versions, date, file and command. results_page.py puts the
tables into the pages. A new file takes its place, or stands beside others, where its name is here.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.packed import unpacked
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops import Bucket, parse

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHIP = "nvidia-h100-80gb-hbm3"
H200 = "nvidia-h200"
# A verdict has no date of its own.
VERDICTS_OF = {CHIP: "2026-11-21 to 2026-11-28", H200: "2026-11-29"}
TUNED = Registry(tuned_root(), writable=False)


@dataclass(frozen=True)
class Source:
    """A file of results/, and the command that made it where the file does not say."""

    name: str
    command: str = ""

    @cached_property
    def text(self) -> str:
        return (RESULTS / self.name).read_text()

    @cached_property
    def data(self) -> Any:
        return json.loads(self.text)

    @property
    def device(self) -> str:
        return _machine(self.data).partition(",")[0]

    def caption(self) -> str:
        """Machine, versions and date, then file and command. Raises where the file lacks one."""
        if self.name.endswith(".log"):
            head = self.text.split("\n\n")[0]
            versions = re.match(r"([^,]+)((?:, (?:MLX|mlx-lm) [\d.]+)+)", head)
            date = re.search(r"\d{4}-\d\d-\d\d", head)
            if versions is None or date is None:
                raise ValueError(f"{self.name}: no machine or date")
            on = f"{versions[1].lower().replace(' ', '-')}{versions[2]}, {date[0]}"
        else:
            on = f"{_machine(self.data)}, {self.data['date']}".removeprefix(", ")
            if "commit" in self.data:  # what it shows was measured of an older one
                on += f", at commit {self.data['commit']}"
        command = self.command or self.data["command"]
        return f"{on}: [{self.name}](benchmarks/results/{self.name}), `{command}`"


def _machine(data: dict[str, Any]) -> str:
    machine = data.get("machine", data)
    also = machine.get("also", {})
    words = [machine.get("device", "").lower().replace(" ", "-")]
    if "cores" in machine:
        words.append(f"{machine['cores']} cores")
    for name, key in (("MLX", "mlx"), ("mlx-lm", "mlx_lm"), ("PyTorch", "torch")):
        version = also.get(key) or machine.get(key) or data.get(key)
        if version:
            words.append(f"{name} {version.split('+')[0]}")
    return ", ".join(words)


@dataclass(frozen=True)
class Table:
    """A table, and the sentences below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    below: Sequence[str]


def us(seconds: float) -> str:
    """Microseconds, as many digits as mean something."""
    value = 1e6 * seconds
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def interval(found: dict[str, Any], digits: int = 2) -> str:
    """ratio [low, high]"""
    middle, low, high = (f"{found[key]:.{digits}f}" for key in ("ratio", "low", "high"))
    return f"{middle} [{low}, {high}]"


# Tokens a second of whole models


@dataclass(frozen=True)
class Decoding:
    """Decoding of one model in one case, stock and patched, tokens a second."""

    model: str
    weights: str
    sequences: int
    keys: int
    stock: float
    patched: float
    found: dict[str, Any]
    served: float
    how: str

    @property
    def name(self) -> str:
        return f"{self.model}, {self.weights}, {self.sequences} x {self.keys}"


# `bench` in processes of its own (benchmarks/end_to_end.py), and steps in turns in one process
# (benchmarks/step_ratio.py).
PROCESSES = [Source("h100-end-to-end.json", "python benchmarks/end_to_end.py")]
TURNS = [
    Source("h100-fallback.json", "python benchmarks/step_ratio.py --shape llama-3.2-1b"),
    Source("h200-fallback.json", "python benchmarks/step_ratio.py --shape llama-3.2-1b"),
    Source(
        "h100-packed-steps.json",
        "python benchmarks/step_ratio.py --shape llama-3.1-8b --bits 4 --ops attention,linear"
        " --batch 1 4 8 --length 256",
    ),
]


def decodings() -> list[Decoding]:
    """All of them, the least ratio first."""
    found = []
    for source in PROCESSES:
        for case in source.data["cases"]:
            rates = {arm: row["generation_tps"] for arm, row in case["averages"].items()}
            calls = {slug: (row["hits"], row["fallbacks"]) for slug, row in case["routes"].items()}
            found.append(
                Decoding(
                    case["shape"], _weights(case.get("bits")), case["batch"], case["prompt_tokens"],
                    rates["stock"], rates["patched"], case, _served(calls), "processes",
                )
            )  # fmt: skip
    for source in TURNS:
        for row in source.data["rows"]:
            stock = 1e3 * row["batch"] / row["stock_ms"]
            found.append(
                Decoding(
                    source.data["shape"], _weights(source.data["bits"]), row["batch"],
                    row["length"], stock, stock * row["ratio"], row, _served(row["calls"]), "turns",
                )
            )  # fmt: skip
    return sorted(found, key=lambda row: row.found["low"])


def _weights(bits: str | None) -> str:
    return {"": "bf16", None: "bf16", "mxfp4": "mxfp4"}.get(bits) or f"{bits}-bit"


def _served(calls: dict[str, Sequence[int]]) -> float:
    """The share of a step's calls that kernels served, prompts aside."""
    steps = [pair for slug, pair in calls.items() if "-lq1-" in slug or slug.startswith("linear")]
    return sum(hits for hits, _ in steps) / sum(map(sum, steps))


def tokens() -> Table:
    rows = [
        (
            row.model, row.weights, f"{row.sequences} x {row.keys}", f"{row.stock:.0f}",
            f"{row.patched:.0f}", interval(row.found), f"{row.served:.0%}", row.how,
        )
        for row in decodings()
    ]  # fmt: skip
    header = (
        "model's shape", "weights", "sequences x keys", "stock", "patched", "ratio [99%]",
        "calls on kernels", "arms in",
    )  # fmt: skip
    return Table(header, rows, [source.caption() for source in (*PROCESSES, *TURNS)])


PROMPTS = Source(
    "h100-prompt.json", "mlx-lm-openevolve bench --shape qwen3-0.6b -p 1024 -g 128 -n 2"
)
RATE = Source("h100-prompt-rate.json", "python benchmarks/prompt_rate.py")


def prompts() -> Table:
    rows = []
    for case in sorted(
        (case for source in (*PROCESSES, PROMPTS) for case in source.data["cases"]),
        key=lambda case: case["prompt_ratio"],
    ):
        size = f"{case['batch']} x {case['prompt_tokens']}"
        rows.append((case["shape"], size, f"{case['prompt_ratio']:.2f}", "processes"))
    for row in RATE.data["rows"]:
        size = f"1 x {row['prompt_tokens']}"
        rows.append((row["shape"], size, interval(row["prompt"]), "turns"))
    header = ("model's shape", "sequences x prompt", "prompt's rate over stock's", "arms in")
    return Table(header, rows, [source.caption() for source in (*PROCESSES, PROMPTS, RATE)])


# With how many processes of each arm at its beginning only read files into the machine's memory.
FIRST = {
    Source(name, "python benchmarks/first_token.py"): skipped
    for name, skipped in (
        *(("h100-first-token.json", 1), ("h200-first-token-llama-3.2-3b.json", 0)),
        ("h200-first-token-qwen2.5-7b.json", 0),
    )
}


def first() -> Table:
    rows = []
    for source, skipped in FIRST.items():
        for arm in ("stock", "patched"):
            found = sorted(row["first"] for row in source.data[arm][skipped:])
            rows.append(
                (source.data["asked"]["shape"], source.device, arm,
                 f"{statistics.median(found):.2f}", f"{found[0]:.2f} to {found[-1]:.2f}")
            )  # fmt: skip
    header = ("model's shape", "card", "arm", "first token, s", "of processes")
    return Table(header, rows, [source.caption() for source in FIRST])


SERVER = [Source("h200-server.json")]


def server() -> Table:
    """mlx_lm.server under several clients; the least ratio first, processes with errors aside."""
    rows = []
    for data in sorted((source.data for source in SERVER), key=lambda data: data["ratio"]["low"]):
        asked = data["asked"]
        for arm in ("stock", "patched"):
            found = [row for row in data["rows"] if row["arm"] == arm and not row["errors"]]
            rates = sorted(row["tokens_per_second"] for row in found)
            first, late = (
                statistics.median(row["first"][x] for row in found) for x in ("median", "p90")
            )
            rows.append(
                (
                    asked["shape"], _weights(asked["bits"]), str(asked["clients"]), arm,
                    f"{statistics.median(rates):.0f}", f"{rates[0]:.0f} to {rates[-1]:.0f}",
                    interval(data["ratio"]) if arm == "patched" else "", f"{first:.2f}",
                    f"{late:.2f}",
                )
            )  # fmt: skip
    header = (
        "model's shape", "weights", "clients", "arm", "tokens/s", "of processes",
        "ratio [of processes]", "first token, s", "nine in ten within, s",
    )  # fmt: skip
    return Table(header, rows, [source.caption() for source in SERVER])


KV_BITS = Source("h100-kv-bits.json", "mlx-lm-openevolve bench --shape qwen3-0.6b -p 8192 -g 64 "
                 "--kv-bits 4 -n 1")  # fmt: skip


def kv_bits() -> Table:
    rows = [
        (
            case["shape"], str(case["kv_bits"]), f"{case['averages']['stock']['peak_memory']:.2f}",
            f"{case['averages']['patched']['peak_memory']:.2f}", f"{case['logits']['stock']:.4f}",
            f"{case['logits']['patched']:.4f}", f"{case['ratio']:.2f}",
        )
        for case in sorted(KV_BITS.data["cases"], key=lambda case: case["ratio"])
    ]  # fmt: skip
    header = (
        "model's shape", "bits", "peak GB, stock", "patched", "logits off float32, stock's way",
        "patched", "decoding over a plain cache's",
    )  # fmt: skip
    return Table(header, rows, [KV_BITS.caption()])


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


def accepted(chip: str = CHIP) -> list[tuple[Bucket, Verdict]]:
    """What tuned/ accepts on a chip, the best verdict of each workload."""
    best: dict[str, tuple[Bucket, Verdict]] = {}
    for workload in TUNED.workloads(chip):
        for verdict in TUNED.verdicts(chip, workload):
            known = best.get(workload.slug)
            if verdict.accepted and (known is None or verdict.ratio > known[1].ratio):
                best[workload.slug] = workload, verdict
    return list(best.values())


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
    return Table(header, [row for _, row in sorted(rows)], [_tuned_caption()])


def _tuned_caption(chip: str = CHIP, command: str = "make verdicts DEVICE=cuda") -> str:
    found = [verdict.fingerprint["also"] for _, verdict in accepted(chip)]
    versions = sorted({f"MLX {row['mlx']}, mlx-lm {row['mlx_lm']}" for row in found})
    return (
        f"{chip}, {' and '.join(versions)}, {VERDICTS_OF[chip]}:"
        f" [verdicts](tuned/v2/devices/{chip}), `{command}`"
    )


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
    return Table(header, rows, [_tuned_caption(), _tuned_caption(H200, "mlx-lm-openevolve tune")])


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
    return Table(header, sorted(rows_of), [_tuned_caption(H200, "mlx-lm-openevolve tune")])


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


# What a step and a call cost

STEP = Source("h100-decode-step.log", "python benchmarks/decode_step.py")
STEP_OF = "qwen3-0.6b 8x2048"
COMPILED = [Source("h100-compiled-steps.json"), Source("h200-compiled-steps.json")]
SETTINGS = Source("h200-settings.json", "MLX_USE_CUDA_GRAPHS=0 python benchmarks/decode_step.py")


@dataclass(frozen=True)
class Step:
    """One decode step, ms: what the host builds and hands over, and how long the GPU is busy."""

    build: float
    hand_over: float
    busy: float
    kernels: int


def steps() -> dict[str, Step]:
    """Both arms of the first run of the case in the log."""
    part = STEP.text[STEP.text.index(STEP_OF) :]
    found = {}
    for arm in ("stock", "patched"):
        host = re.search(rf"{STEP_OF} {arm} .*build ([\d.]+) encode ([\d.]+)", part)
        busy = re.search(rf"^{arm} GPU busy ([\d.]+) ms/step, (\d+) kernels", part, re.M)
        if host is None or busy is None:
            raise ValueError(f"{STEP.name}: no {arm} of {STEP_OF}")
        found[arm] = Step(float(host[1]), float(host[2]), float(busy[1]), int(busy[2]))
    return found


def step() -> Table:
    rows = [
        (
            arm, f"{row.build:.2f}", f"{row.hand_over:.2f}", f"{row.build + row.hand_over:.2f}",
            f"{row.busy:.2f}", str(row.kernels),
        )
        for arm, row in steps().items()
    ]  # fmt: skip
    header = (
        f"{STEP_OF}, ms a step", "host builds", "hands over", "host, both", "GPU busy", "kernels",
    )  # fmt: skip
    return Table(header, rows, [STEP.caption()])


def compiled() -> Table:
    found = [(row, source.device) for source in COMPILED for row in source.data["rows"]]
    rows = [
        (
            row["shape"], _weights(row["bits"]), f"{row['batch']} x {row['length']}", device,
            row["ops"].removesuffix(",step"), row["way"] or "not compiled",
            f"{row['stock_ms']:.2f}", interval(row), "{A}, {B}".format_map(row["launches"]),
        )
        for row, device in sorted(found, key=lambda item: item[0]["low"])
    ]  # fmt: skip
    header = ("model's shape", "weights", "sequences x keys", "card", "kernels of", "layers",
              "stock, ms a step", "ratio [99%]", "launches before, after")  # fmt: skip
    return Table(header, rows, [source.caption() for source in COMPILED])


def settings() -> Table:
    rows = [
        (
            row["setting"], row["arm"], f"{row['step_ms']:.2f}", f"{row['build_ms']:.2f}",
            f"{row['encode_ms']:.2f}",
        )
        for row in SETTINGS.data["rows"]
    ]  # fmt: skip
    header = ("setting", "arm", "ms a step", "host builds", "hands over")
    return Table(header, rows, [SETTINGS.caption()])


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


SANITIZER = Source("h100-sanitizer.json", "python benchmarks/sanitizer.py")


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


HEURISTICS = {
    "h200-product-heuristic.json": "products of up to 8 rows, H200",
    "h200-decode-heuristic.json": "decoding, H200",
    "h100-product-heuristic.json": "products of up to 8 rows, H100",
    "h100-tiles-heuristic.json": "products of 9 to 32 rows, H100",
    "h100-decode-heuristic.json": "decoding, H100",
}


def heuristics() -> Table:
    """Default params: the share of the best measured speed, at shapes never seen by the search."""
    rows, below = [], []
    for name, what in HEURISTICS.items():
        data = json.loads((RESULTS / name).read_text())
        shares = (f"{row['sealed']:.0%}" for row in data["scores"].values())
        sealed = sum(shape["sealed"] for shape in data["shapes"])
        rows.append((what, f"{len(data['shapes'])}, {sealed} of them sealed", *shares))
        words = f"--points benchmarks/results/{data['points'][0]} --seed {data['seed']}"
        command = f"mlx-lm-openevolve evolve --proposer heuristic {words}"
        points = Source(data["points"][0], command)
        below.append(f"[{name}](benchmarks/results/{name}) over {points.caption()}")
    header = ("kernel", "shapes", *data["scores"])
    return Table(header, rows, below)


RUNS = {
    "h100-tune": "knobs of the native kernels, no model asked (`params`)",
    "h100-mailbox": "rewritten Metal kernels, proposed through `mailbox`",
    "h100-grid": "a prefill kernel at its defaults, the grid of OpenEvolve's SDPA example",
}


def runs() -> Table:
    """Runs of evolve kept in runs/: what the best of each workload came to."""
    rows, names = [], []
    for name, what in RUNS.items():
        with unpacked(ROOT / "benchmarks" / "runs" / f"{name}.tar.xz") as folder:
            archive = Archive.open(folder, write=False)
        ratios = [best.result.ratio for best in archive.best.values()]
        minutes = archive.spent()["seconds"] / 60
        rows.append(
            (what, str(int(archive.spent()["candidates"])), f"{minutes:.1f}", str(len(ratios)),
             f"{min(ratios):.2f} to {max(ratios):.2f}")
        )  # fmt: skip
        names.append(f"[{name}](benchmarks/runs/{name}.tar.xz)")
    header = ("run", "candidates", "minutes", "workloads", "best of each, MLX's time over its")
    command = "`mlx-lm-openevolve report benchmarks/runs/h100-tune.tar.xz` draws it"
    return Table(header, rows, [f"{CHIP}, 2026-11-21: {', '.join(names)}; {command}"])


VISITS = Source("mailbox-visits.json")


def visits() -> Table:
    """Searches from plain starters: how many kernels were written, and how they did."""
    rows = [
        (f"`{run['workloads'][0]}`", str(run["structural"]), f"{run['valid']:.0%}",
         str(run["candidates"]), f"{run['a_minute']:.0f}", f"{run['most_alike']:.0%}")
        for run in VISITS.data["rows"]
    ]  # fmt: skip
    header = ("workload", "kernels written", "of these right", "candidates", "a minute",
              "likest to a shipped")  # fmt: skip
    return Table(header, rows, [VISITS.caption()])


def winners() -> Table:
    """The best of each of these searches beside MLX and the kernel that was written by hand: at
    the gate, each in a run of its own, and in pairs of one run, in every visit or in the last."""
    rows = []
    gate = {event["workload"]: event for event in VISITS.data["gate"]}
    for run in VISITS.data["rows"]:
        (workload,) = run["workloads"]
        pairs = [visit[workload] for visit in run["beside"]]
        known = TUNED.verdicts(H200, parse(workload).bucket())
        by_hand = [v for v in known if v.accepted and v.kernel != gate[workload]["kernel"]]
        ships = TUNED.kernel(gate[workload]["kernel"])
        rows.append((
            f"`{workload}`", interval(gate[workload]),
            interval(by_hand[0].timing) if by_hand else "-",
            *("{:.2f} [{:.2f}, {:.2f}]".format(*pairs[-1][pair]["ratio"])
              for pair in ("stock/best", "stock/shipped")),
            # Before there was the winner, another kernel was the run's best.
            ", ".join(
                ("{:.2f}" if pair["best"] == gate[workload]["kernel"] else "({:.2f})").format(
                    pair["shipped/best"]["ratio"][0]
                )
                for pair in pairs
            ),
            f"`{ships.name}`" if ships else "no",
        ))  # fmt: skip
    header = ("workload", "the gate: MLX's time over the best", "over the handwritten kernel",
              "last visit: MLX's time over the best", "over the handwritten kernel",
              "handwritten kernel's time over the best, visit by visit (over an earlier best)",
              "ships")  # fmt: skip
    return Table(header, rows, [VISITS.caption(), _tuned_caption(H200, "mlx-lm-openevolve tune")])


TABLES: dict[str, Callable[[], Table]] = {
    "tokens": tokens, "prompts": prompts, "first-token": first, "server": server,
    "kv-bits": kv_bits,
    "calls": calls, "verdicts": verdicts, "gate-3": gate_3, "tuned": tuned, "gpu-time": gpu_time,
    "products": products, "products-verdicts": products_verdicts, "experts": experts,
    "step": step, "compiled": compiled, "settings": settings,
    "overhead": overhead, "overhead-gpu": overhead_gpu, "sanitizer": sanitizer,
    "runs": runs,
    "visits": visits, "winners": winners,
    "heuristics": heuristics,
    "accept-rule": accept,
}  # fmt: skip
