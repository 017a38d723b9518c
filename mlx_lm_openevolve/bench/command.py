"""`mlx-lm-openevolve bench`: whole models, stock against patched, and never slower.

    preset -> processes stock, patched, patched, stock (a block) x blocks -> ratio and interval
           -> one more process for the logits -> parity
           -> slower than 0.99x: the verdicts that served are withdrawn

Every arm is a fresh process that loads the model and warms up. A block's ratio is the mean of its
patched arms over that of its stock arms, which cancels slow drift; the case's ratio is the median
over the blocks, with a bootstrap interval. With --kernel one kernel is benched on its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..cli.run import VARIABLE, summary, totals
from ..device import BACKENDS, detect, fingerprint
from ..errors import BackendError, OpenEvolveError, RegistryError, UsageError
from ..files import write_atomic
from ..hub import check_model
from ..intervals import median_interval
from ..kernels.registry import Registry, user_root
from ..kernels.verdict import Verdict
from ..processes import Died, Worker, child_environment

__all__ = [
    "FLOOR",
    "PRESETS",
    "add_arguments",
    "compare",
    "run",
    "run_case",
    "run_cases",
    "withdraw",
    "write",
]

# Tokens of prompt and generation of the five benchmarks of OpenEvolve's MLX example: its prompts'
# lengths in a Qwen tokenizer, about, and its max_tokens.
PRESETS = {
    "short_context_quick": (8, 50),
    "code_generation": (64, 300),
    "long_context_detailed": (448, 500),
    "long_generation": (16, 1000),
    "maximum_context_stress_test": (1408, 10000),
}
SHAPES = ("qwen3-0.6b", "qwen3-4b", "llama-3.2-1b", "gemma-3-4b", "gpt-oss-20b", "glm-4.7-flash")
FLOOR = 0.99  # a preset below it withdraws the verdicts that served it
# The patched logits may stand this much further from float32 attention than the stock ones: both
# distances are rounding noise, amplified by the same layers.
LOGITS_RATIO = 2.0
CONFIDENCE = 0.99
SETTLING = 8
KEYS = ("prompt_tps", "generation_tps", "peak_memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="PATH", help="a model's folder or its name on the Hub")
    which.add_argument("--shape", choices=SHAPES, help="a real shape with random weights")
    which.add_argument("--kernel", metavar="FOLDER|KERNEL", help="bench one kernel alone")
    parser.add_argument("--preset", choices=PRESETS, action="append", help="may be repeated")
    parser.add_argument("-p", "--prompt-tokens", type=int, metavar="N", help="instead of a preset")
    parser.add_argument("-g", "--generation-tokens", type=int, metavar="N")
    parser.add_argument("-b", "--batch", type=int, default=1, metavar="N", help="sequences")
    parser.add_argument("--kv-bits", type=int, choices=(2, 3, 4, 6, 8), help="quantised KV cache")
    parser.add_argument("--draft", metavar="MODEL", help="speculate with this path or shape")
    parser.add_argument(
        "-n", "--blocks", type=int, default=3, metavar="N", help="of four processes"
    )
    parser.add_argument("--trials", type=int, default=1, metavar="N", help="in each process")
    parser.add_argument(
        "--suite", metavar="SUITE|SLUG", action="append", help="with --kernel: default decode"
    )
    parser.add_argument("--subset", action="store_true", help="with --kernel: every third one")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU")
    parser.add_argument(
        "--any-correct", action="store_true", help="run what is correct but not faster: compare"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the results as JSON")


def run(options: argparse.Namespace, out: Console) -> tuple[int, dict[str, Any]]:
    """The command. Exit code 0 where nothing is slower than the floor, every case was served by
    kernels, and the results agree; else 1. With --output the file holds all that is known after
    each process, the samples of a case that is not through under `unfinished`."""
    from ..gate.judge import GATE_VERSION

    if os.environ.get("MLX_LM_OPENEVOLVE") == "0":
        raise UsageError("MLX_LM_OPENEVOLVE=0 switches off what is to be measured")
    device = detect(options.backend)
    result: dict[str, Any] = {
        "machine": fingerprint(device, GATE_VERSION),
        "date": time.strftime("%Y-%m-%d"),
        "ok": False,
    }

    def keep(**found: Any) -> None:
        result.update(found)
        if options.output:
            write(options.output, result)

    if options.kernel:
        from ..evolve.bench_kernel import bench_kernel, passed

        bench_kernel(options, out, lambda rows: keep(verdicts=rows))
        keep(ok=passed(result["verdicts"]))
    else:
        asked = tasks(options)
        if device.backend == "host" and not options.any_correct:
            raise BackendError(
                "MLX has no GPU here, and on the CPU no kernel is faster; to compare the results"
                " alone: --backend host --any-correct, with a small model"
            )
        for option in ("model", "draft"):
            name = getattr(options, option)
            if name and name not in SHAPES:
                check_model(f"--{option}", name)
        run_cases(asked, options, out, result, keep)
        keep(ok=all(case["ok"] for case in result["cases"]))
    return (0 if result["ok"] else 1), result


def write(path: Path, result: Mapping[str, Any]) -> None:
    """The whole file, or the one before: a full disk takes nothing away. Raises UsageError."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
            path.write_text(json.dumps(result) + "\n")
            return
        write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def tasks(options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """What each case asks of a worker, by its name. Raises UsageError."""
    if not (options.model or options.shape):
        raise UsageError("name a --model PATH or a --shape, or a --kernel FOLDER")
    if options.preset and (options.prompt_tokens or options.generation_tokens):
        raise UsageError("a --preset has its own -p and -g")
    if options.batch > 1 and (options.kv_bits or options.draft):
        raise UsageError("mlx-lm's batches know neither --kv-bits nor --draft")
    lengths = {name: PRESETS[name] for name in options.preset or ["short_context_quick"]}
    if options.prompt_tokens or options.generation_tokens:
        p, g = options.prompt_tokens or 512, options.generation_tokens or 64
        lengths = {f"{p}+{g}": (p, g)}
    if options.batch < 1 or options.trials < 1 or options.blocks < 1:
        raise UsageError("--batch, --trials and --blocks are at least 1")
    if any(p < 2 or g < 4 for p, g in lengths.values()):
        raise UsageError("a case needs two tokens of prompt and four of generation")
    settings = {"backend": options.backend, "require_faster": not options.any_correct}
    return [
        (
            name,
            {
                "model": options.model,
                "shape": options.shape,
                "draft": options.draft,
                "prompt_tokens": p,
                "generation_tokens": g,
                "batch": options.batch,
                "kv_bits": options.kv_bits or 0,
                "trials": options.trials,
                "seed": 0,
                "settings": settings,
            },
        )
        for name, (p, g) in lengths.items()
    ]


def run_cases(
    asked: Sequence[tuple[str, dict[str, Any]]],
    options: argparse.Namespace,
    out: Console,
    result: dict[str, Any],
    keep: Callable[[], None],
) -> None:
    """Measure what `tasks` gave, into `result`: `cases`, and while one is at work `unfinished`,
    what there is of it. `keep` is called after every change."""

    def unfinished(found: dict[str, Any]) -> None:
        result["unfinished"] = found
        keep()

    result["cases"] = []
    keep()
    for name, task in asked:
        case = run_case(name, task, options, out, unfinished)
        del result["unfinished"]
        result["cases"].append(case)
        keep()


def run_case(
    name: str,
    task: dict[str, Any],
    options: argparse.Namespace,
    out: Console,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure one case and say what came of it; `keep` gets what there is after each process."""

    def say(text: str, style: str | None = None) -> None:
        out.print(text, markup=False, style=style)

    lengths = ", ".join(
        f"{key}={task[key]}" for key in ("prompt_tokens", "generation_tokens", "batch")
    )
    say(f"{task['model'] or task['shape']} {name}: timing with {lengths}.")
    rows: dict[str, list[dict[str, Any]]] = {"stock": [], "patched": []}
    with Progress(console=out, transient=True) as bar:
        todo = bar.add_task("gating what is new", total=2 + 4 * options.blocks)
        settle(task)
        bar.update(todo, advance=1, description="timing")
        for _ in range(options.blocks):
            for arm in ("stock", "patched", "patched", "stock"):
                rows[arm].append(ask(task, arm))
                last = rows[arm][-1]["trials"][-1]
                texts = [
                    *(f"{k}={last[k]:.3f}" for k in KEYS),
                    f"total_time={last['total_time']:.3f}",
                ]
                bar.console.print(f"{arm:8s} " + ", ".join(texts), markup=False)
                bar.update(todo, advance=1)
                keep({**task, "name": name, "samples": samples(rows)})
        bar.update(todo, description="comparing logits")
        logits = ask(task, "logits")
    info = rows["patched"][-1]["info"]
    found = {**task, "name": name, **compare(rows), "logits": logits, "routes": info["workloads"]}
    served = totals([{"problem": "", **row["info"]} for row in rows["patched"]])
    found["hits"] = served["hits"]
    found["withdrawn"] = []
    # A plain cache is another task, with fewer operations a step: it sets no floor.
    alike = found["stock_kv_bits"] == task["kv_bits"]
    faster = alike and bool(task["settings"]["require_faster"])
    found["problems"] = problems(found, faster)
    if faster and found["ratio"] < FLOOR and told(found):
        found["withdrawn"] = withdraw(
            name, found, Registry(user_root()), info["device_info"]["slug"]
        )
    found["ok"] = not found["problems"]

    for arm in rows:
        averages = ", ".join(f"{key}={found['averages'][arm][key]:.3f}" for key in KEYS)
        say(f"Averages {arm:8s}: {averages}")
    interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
    say(
        f"Ratio patched / stock: generation {found['ratio']:.3f}"
        f" {interval if len(found['blocks']) > 1 else '(one block: no interval)'},"
        f" prompt {found['prompt_ratio']:.3f}, peak memory {found['memory_ratio']:.3f}"
    )
    if not alike:
        say("Stock mlx-lm cannot run on a quantised cache here: it ran on a plain one (no floor).")
    say(
        f"Parity: first {found['equal_tokens']} of {task['generation_tokens']} greedy tokens equal;"
        f" logits differ by {logits['difference']:.2e}; from float32 attention:"
        f" stock {logits['stock']:.2e}, patched {logits['patched']:.2e}"
    )
    say(f"Served: {summary({**served, 'processes': 1})}")
    for slug in found["withdrawn"]:
        say(f"withdrawn: {slug}", style="red")
    for problem in found["problems"]:
        say(problem, style="red")
    return found


def problems(found: Mapping[str, Any], faster: bool) -> list[str]:
    """Why a case is not as it should be; nothing where it is."""
    says = []
    logits = found["logits"]
    if not found["hits"]:
        says.append("not one call was served by a kernel: this compared stock with stock")
    elif not logits["hits"]:
        says.append("the logits were compared without a kernel: none serves plain decode here")
    # Asked this way round, so that NaN is no agreement.
    if not logits["patched"] <= LOGITS_RATIO * logits["stock"]:
        says.append("the logits are further from float32 attention than rounding explains")
    if faster and found["ratio"] < FLOOR:
        noise = "" if told(found) else "; not told from noise: repeat with more --blocks"
        served = [slug for slug, row in found.get("routes", {}).items() if row["hits"]]
        where = f" with kernels on {', '.join(served)}" if served else ""
        says.append(f"slower than stock: {found['ratio']:.3f}x, below {FLOOR}x{where}{noise}")
    return says


def told(found: Mapping[str, Any]) -> bool:
    """Whether the blocks tell what is slower than stock from noise; one block tells nothing."""
    return len(found["blocks"]) > 1 and bool(found["high"] < 1)


def samples(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Any]]:
    """The trials of each process, by arm."""
    return {arm: [row["trials"] for row in rows[arm]] for arm in rows}


def compare(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The blocks of both arms as averages, ratios (patched over stock), the interval of the
    generation's ratio, and the greedy tokens that are equal from the first on."""

    def of(arm: str, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([statistics.mean(t[key] for t in row["trials"]) for row in rows[arm]])

    def ratio(key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        pairs = [of(arm, key).reshape(-1, 2).mean(axis=1) for arm in ("patched", "stock")]
        return np.asarray(pairs[0] / pairs[1])

    ratios = ratio("generation_tps")
    low, high = median_interval(ratios.tolist(), CONFIDENCE)
    pairs = zip(rows["stock"][0]["tokens"], rows["patched"][0]["tokens"], strict=True)
    equal = [a == b for a, b in pairs]
    return {
        "samples": samples(rows),
        "averages": {arm: {key: float(of(arm, key).mean()) for key in KEYS} for arm in rows},
        "stock_kv_bits": rows["stock"][0]["kv_bits"],
        "blocks": ratios.tolist(),
        "ratio": float(np.median(ratios)),
        "low": low,
        "high": high,
        "prompt_ratio": float(np.median(ratio("prompt_tps"))),
        "memory_ratio": float(np.median(ratio("peak_memory"))),
        "equal_tokens": equal.index(False) if False in equal else len(equal),
    }


def settle(task: Mapping[str, Any]) -> None:
    """Let the gate finish: it takes a few seconds of each process, and what is timed afterwards
    must only read stored verdicts."""
    for _ in range(SETTLING):
        info = ask({**task, "trials": 0}, "patched")["info"]
        if not any(row["reason"].startswith("pending") for row in info["workloads"].values()):
            return


def withdraw(name: str, found: Mapping[str, Any], registry: Registry, device: str) -> list[str]:
    """Take back the verdicts on all that served in a slower case; returns their workloads."""
    taken = []
    for slug, row in found["routes"].items():
        if not row["hits"] or not row["verdict"]:
            continue
        verdict = Verdict.from_json(row["verdict"])
        reason = f"withdrawn: {name} ran at {found['ratio']:.3f}x of stock end to end"
        evidence = {"end_to_end": {k: found[k] for k in ("ratio", "low", "high", "averages")}}
        try:
            registry.publish(
                device,
                replace(
                    verdict,
                    faster=False,
                    reason=reason,
                    evidence={**verdict.evidence, **evidence},
                ),
            )
        except RegistryError as error:
            raise OpenEvolveError(f"{slug} is slower, and cannot be withdrawn: {error}") from None
        taken.append(slug)
    return taken


def ask(task: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """A worker's answer. Raises OpenEvolveError with its last line where it has none."""
    # Under `run` the stock arm would be patched too.
    environment = child_environment(**{VARIABLE: ""})
    with Worker("mlx_lm_openevolve.bench.worker", environment=environment) as worker:
        try:
            return worker.ask({**task, "arm": arm}, math.inf)
        except Died as death:
            by_itself = "stock mlx-lm fails on this by itself"
            whose = by_itself if arm == "stock" else f"the {arm} arm failed"
            raise OpenEvolveError(f"{whose}: {death.last or death}") from None
