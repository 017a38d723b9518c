"""Tables of whole models: tokens a second, first tokens, servers, caches, steps."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from results_source import (
    H200,
    TUNED,
    Source,
    Table,
    interval,
)

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
    served: float | None
    how: str

    @property
    def name(self) -> str:
        return f"{self.model}, {self.weights}, {self.sequences} x {self.keys}"


# `bench` in processes of its own (benchmarks/end_to_end.py), and steps in turns in one process
# (benchmarks/step_ratio.py).
ENDS = "python benchmarks/end_to_end.py [--shapes SHAPE --cases SIZE --bits 4 --blocks N]"
PROCESSES = [Source(f"{card}-end-to-end.json", ENDS) for card in ("h100", "h200")]
COMPILED = [Source("h100-compiled-steps.json"), Source("h200-compiled-steps.json")]
FALLS_BACK = "python benchmarks/step_ratio.py --shape llama-3.2-1b --length {}, without verdicts"
ON_H200 = [PROCESSES[1], COMPILED[1], Source("h200-fallback.json", FALLS_BACK.format(700))]
ON_H100 = [
    PROCESSES[0],
    Source("h100-fallback.json", FALLS_BACK.format(1024)),
    Source(
        "h100-packed-steps.json",
        "python benchmarks/step_ratio.py --shape llama-3.1-8b --bits 4 --ops attention,linear"
        " --batch 1 4 8 --length 256",
    ),
]


def decodings(sources: Sequence[Source] = ON_H200) -> list[Decoding]:
    """All of them, the least ratio first."""
    found = []
    for source in sources:
        for case in source.data.get("cases", ()):
            rates = {arm: row["generation_tps"] for arm, row in case["averages"].items()}
            routes = case.get("routes", {}).items()
            calls = {slug: (row["hits"], row["fallbacks"]) for slug, row in routes}
            found.append(
                Decoding(
                    case["shape"], _weights(case.get("bits")), case["batch"], case["prompt_tokens"],
                    rates["stock"], rates["patched"], case, _served(calls), "processes",
                )
            )  # fmt: skip
        for row in source.data.get("rows", ()):
            # Of one case several ways stand in a table of their own; here the compiled layers of
            # packed models, which are not timed in processes.
            if "way" in row and not (row["way"] and row["bits"]):
                continue
            of = source.data | row
            stock = 1e3 * row["batch"] / row["stock_ms"]
            found.append(
                Decoding(
                    of["shape"], _weights(of["bits"]), row["batch"], row["length"], stock,
                    stock * row["ratio"], row, _served(row["calls"]), "turns",
                )
            )  # fmt: skip
    return sorted(found, key=lambda row: row.found["low"])


def _weights(bits: str | None) -> str:
    return {"": "bf16", None: "bf16", "mxfp4": "mxfp4"}.get(bits) or f"{bits}-bit"


def _served(calls: dict[str, Sequence[int]]) -> float | None:
    """The share of attention's calls in steps that kernels served: what compiled layers do besides
    is counted where they are traced alone. None where it was not kept: such a run was ended before
    its last block."""
    if not calls:
        return None
    steps = [pair for slug, pair in calls.items() if "-lq1-" in slug]
    return sum(hits for hits, _ in steps) / sum(map(sum, steps))


def tokens(sources: Sequence[Source] = ON_H200) -> Table:
    rows = [
        (
            row.model, row.weights, f"{row.sequences} x {row.keys}", f"{row.stock:.0f}",
            f"{row.patched:.0f}", interval(row.found),
            "not kept" if row.served is None else f"{row.served:.0%}", row.how,
        )
        for row in decodings(sources)
    ]  # fmt: skip
    header = (
        "model's shape", "weights", "sequences x keys", "stock", "patched", "ratio [interval]",
        "attention on kernels", "arms in",
    )  # fmt: skip
    return Table(header, rows, [source.caption() for source in sources])


def memory() -> Table:
    """Peak memory and first tokens of whole models in processes, the least rate first."""
    cases = [(source.device, case) for source in PROCESSES for case in source.data["cases"]]
    rows = []
    for card, case in sorted(cases, key=lambda pair: pair[1]["low"]):
        count = case["batch"] * case["prompt_tokens"]
        stock, patched = (case["averages"][arm] for arm in ("stock", "patched"))
        rows.append(
            (
                case["shape"], f"{case['batch']} x {case['prompt_tokens']}", card, interval(case),
                *(f"{arm['peak_memory']:.2f}" for arm in (stock, patched)),
                *(f"{1e3 * count / arm['prompt_tps']:.0f}" for arm in (stock, patched)),
            )
        )  # fmt: skip
    header = (
        "model's shape", "sequences x prompt", "card", "decoding", "peak GB, stock", "patched",
        "first token, ms, stock", "patched",
    )  # fmt: skip
    return Table(header, rows, [source.caption() for source in PROCESSES])


PROMPTS = Source(
    "h100-prompt.json", "mlx-lm-openevolve bench --shape qwen3-0.6b -p 1024 -g 128 -n 2"
)
RATE = Source("h100-prompt-rate.json", "python benchmarks/prompt_rate.py")


def prompts() -> Table:
    rows = []
    for card, case in sorted(
        (
            (source.device, case)
            for source in (*PROCESSES, PROMPTS)
            for case in source.data["cases"]
        ),
        key=lambda pair: pair[1]["prompt_ratio"],
    ):
        size = f"{case['batch']} x {case['prompt_tokens']}"
        rows.append((case["shape"], size, card, f"{case['prompt_ratio']:.2f}", "processes"))
    for row in RATE.data["rows"]:
        size = f"1 x {row['prompt_tokens']}"
        rows.append((row["shape"], size, RATE.device, interval(row["prompt"]), "turns"))
    header = (
        "model's shape",
        "sequences x prompt",
        "card",
        "prompt's rate over stock's",
        "arms in",
    )
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


KV_STEPS = Source("h200-kv-steps.json")


def kv_steps() -> Table:
    """Steps over a quantised cache, patched, in turns with stock's over a plain one."""
    rows = [
        (
            row["shape"], str(row["kv_bits"]), f"{row['batch']} x {row['length']}",
            row["way"] or "not compiled", f"{row['stock_ms']:.2f}", interval(row),
            "{A}, {B}".format_map(row["launches"]),
        )
        for row in sorted(KV_STEPS.data["rows"], key=lambda row: row["low"])
    ]  # fmt: skip
    header = (
        "model's shape", "bits", "sequences x keys", "layers", "stock, plain cache, ms a step",
        "ratio [99%]", "launches before, after",
    )  # fmt: skip
    return Table(header, rows, [KV_STEPS.caption()])


# What a step and a call cost

STEP = Source("h100-decode-step.log", "python benchmarks/decode_step.py")
STEP_OF = "qwen3-0.6b 8x2048"
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


def step_verdicts() -> Table:
    """What ships on whole steps of a chip, the least lower end first."""
    rows = [
        (
            f"`{v.workload}`", v.kernel, interval(dict(v.timing)),
            f"{v.errors['same_tokens']} of {v.errors['tokens']}",
        )
        for v in sorted(TUNED.about(H200, "step"), key=lambda v: v.timing["low"])
        if v.accepted
    ]  # fmt: skip
    below = f"{H200}: [verdicts](tuned/v2/devices/{H200}/step.json), `mlx-lm-openevolve tune`"
    return Table(("step", "way", "gate: stock's time over its own", "greedy tokens"), rows, [below])


PRESETS = Source("h200-presets.json")


def presets() -> Table:
    """Models as they run by default, at few keys and many, the worst first; then what the
    measurement shows of stock against itself."""
    found = sorted(PRESETS.data["rows"], key=lambda row: row["low"])
    control = [(r, f", stock in both arms, {r['order']}") for r in PRESETS.data["control"]]
    rows = [
        (
            row["shape"] + (f", {row['bits']}-bit" if row["bits"] else "") + what,
            f"{row['batch']} x {row['length']}", f"{row['stock_ms']:.2f}",
            interval(row), "{A}, {B}".format_map(row["launches"]),
        )
        for row, what in [*((row, "") for row in found), *control]
    ]  # fmt: skip
    header = ("model's shape", "sequences x keys", "stock, ms a step", "ratio [99%]",
              "launches before, after")  # fmt: skip
    return Table(header, rows, [PRESETS.caption()])


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
