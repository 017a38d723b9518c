"""The cases of `bench`: one model and one prompt each, stock against patched, measured.

Every arm is a fresh process that loads the model and warms up. Arms come in blocks of four, stock,
patched, patched, stock. A block's ratio is the mean of its patched arms over that of its stock
arms, which cancels slow drift; the case's ratio is the median over the blocks, with a bootstrap
interval. A slower case withdraws the verdicts that served it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import ops
from ..decode.structure import slug
from ..errors import OpenEvolveError, RegistryError
from ..intervals import median_interval
from ..kernels.lookup import shipped
from ..kernels.registry import Registry, user_root
from ..kernels.verdict import STEP, Verdict, gate_version
from ..ops.base import next_pow2
from ..processes import Died, Worker, child_environment
from ..runtime.session import VARIABLE

BLOCK = ("stock", "patched", "patched", "stock")
KEYS = ("prompt_tps", "generation_tps", "peak_memory")
FLOOR = 0.99  # a case below it withdraws the verdicts that served it
# The patched logits may stand this much further from a float32 model's than the stock ones: both
# distances are rounding noise, amplified by the same layers.
LOGITS_RATIO = 2.0
CONFIDENCE = 0.99
SETTLING = 8

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # a worker's answers, by arm


def task_of(
    prompt_tokens: int,
    generation_tokens: int,
    settings: Mapping[str, Any],
    *,
    model: str | None = None,
    shape: str | None = None,
    bits: str = "",
    draft: str | None = None,
    batch: int = 1,
    kv_bits: int = 0,
    trials: int = 1,
) -> dict[str, Any]:
    """What a worker is asked (see worker.py). settings: the arguments of enable_optimizations."""
    return {
        "model": model,
        "shape": shape,
        "bits": bits,
        "draft": draft,
        "prompt_tokens": prompt_tokens,
        "generation_tokens": generation_tokens,
        "batch": batch,
        "kv_bits": kv_bits,
        "trials": trials,
        "seed": 0,
        "settings": dict(settings),
    }


def ask(task: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """A worker's answer for an arm: "stock", "patched" or "logits" (see worker.answer). Raises
    OpenEvolveError with the last line that it printed where it has none."""
    # Under `run` the stock arm would be patched too. What logits are compared with is float32, not
    # the 10 bits that MLX's products have of it on NVIDIA.
    exactly = {"MLX_ENABLE_TF32": "0"} if arm == "logits" else {}
    environment = child_environment(**{VARIABLE: ""}, **exactly)
    with Worker("mlx_lm_openevolve.bench.worker", environment=environment) as worker:
        try:
            return worker.ask({**task, "arm": arm}, math.inf)
        except Died as death:
            stock = "stock mlx-lm fails on this by itself"
            whose = stock if arm == "stock" else f"the {arm} arm failed"
            raise OpenEvolveError(f"{whose}: {death.last or death}") from None


def settle(task: Mapping[str, Any]) -> None:
    """Let the gate finish: it takes a few seconds of each process, and what is timed afterwards
    must only read stored verdicts."""
    for _ in range(SETTLING):
        info = ask({**task, "trials": 0}, "patched")["info"]
        if not any(row["reason"].startswith("pending") for row in info["workloads"].values()):
            return


def processes(task: Mapping[str, Any], blocks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the processes of so many blocks, one after another: the arm and the answer of each."""
    for arm in BLOCK * blocks:
        yield arm, ask(task, arm)


def concluded(
    name: str, task: Mapping[str, Any], rows: Rows, logits: Mapping[str, Any], hits: int
) -> dict[str, Any]:
    """A case as it is reported: the task, what `compared` says, logits, routes (workloads with what
    served them), hits (calls that kernels served), withdrawn, problems and ok. Raises
    OpenEvolveError where a slower case's verdicts cannot be withdrawn."""
    info = rows["patched"][-1]["info"]
    case = {**task, "name": name, **compared(rows), "logits": logits, "routes": info["workloads"]}
    case |= {"hits": hits, "withdrawn": []}
    # A plain cache is another task, with fewer operations a step: it sets no floor.
    alike = case["stock_kv_bits"] == task["kv_bits"]
    faster = alike and bool(task["settings"]["require_faster"])
    case["problems"] = problems(case, faster)
    if faster and case["ratio"] < FLOOR and significant(case):
        registry, device = Registry(user_root()), info["device_info"]["slug"]
        compiled = (structure for structure, row in info["models"].items() if row["compiled"])
        steps = {slug(structure, next_pow2(task["batch"])) for structure in compiled}
        case["withdrawn"] = withdraw(name, case, registry, device, steps)
    return {**case, "ok": not case["problems"]}


def problems(case: Mapping[str, Any], faster: bool) -> list[str]:
    """Why a case is not as it should be; nothing where it is. faster: whether it must be."""
    lines = []
    logits = case["logits"]
    if not (case["hits"] or logits.get("compiled")):
        lines.append("not one call was served by a kernel: this compared stock with stock")
    elif not (logits["hits"] or logits.get("compiled")):
        lines.append("the logits were compared without a kernel: none serves plain decode here")
    # Asked this way round, so that NaN is no agreement.
    if not logits["patched"] <= LOGITS_RATIO * logits["stock"]:
        lines.append("the logits are further from float32 than rounding explains")
    if faster and case["ratio"] < FLOOR:
        noise = "" if significant(case) else "; not told from noise: repeat with more --blocks"
        served = [slug for slug, row in case.get("routes", {}).items() if row["hits"]]
        where = f" with kernels on {', '.join(served)}" if served else ""
        lines.append(f"slower than stock: {case['ratio']:.3f}x, below {FLOOR}x{where}{noise}")
    return lines


def significant(case: Mapping[str, Any]) -> bool:
    """Whether a case is slower than stock beyond noise; one block says nothing of it."""
    return len(case["blocks"]) > 1 and bool(case["high"] < 1)


def samples(rows: Rows) -> dict[str, list[Any]]:
    """The trials of each process, by arm."""
    return {arm: [row["trials"] for row in rows[arm]] for arm in rows}


def compared(rows: Rows) -> dict[str, Any]:
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


def withdraw(
    name: str,
    case: Mapping[str, Any],
    registry: Registry,
    device: str,
    steps: Collection[str] = (),
) -> list[str]:
    """Take back the verdicts on all that served in a slower case, its whole steps by their slugs
    too; returns their workloads. Raises OpenEvolveError where the registry cannot be written."""
    withdrawn = []
    reason = f"withdrawn: {name} ran at {case['ratio']:.3f}x of stock end to end"
    times = {"end_to_end": {k: case[k] for k in ("ratio", "low", "high", "averages")}}
    rows = (row for row in case["routes"].values() if row["hits"] and row["verdict"])
    served = [_of_this_gate(Verdict.from_json(row["verdict"])) for row in rows]
    whole = [v for stored in (registry, shipped()) for v in stored.about(device, STEP)]
    served += [v for v in whole if v.accepted and v.workload in steps]
    for verdict in served:
        workload = verdict.workload
        evidence = {**verdict.evidence, **times}
        try:
            registry.publish(
                device, replace(verdict, faster=False, reason=reason, evidence=evidence)
            )
        except RegistryError as error:
            text = f"{workload} is slower, and cannot be withdrawn: {error}"
            raise OpenEvolveError(text) from None
        withdrawn.append(workload)
    return withdrawn


def _of_this_gate(verdict: Verdict) -> Verdict:
    """A verdict that served, for the user's registry: there one that ships from the gate before
    (TUNED_GATE) would not count."""
    gate = gate_version(ops.of_slug(verdict.workload).name)
    return replace(verdict, fingerprint={**verdict.fingerprint, "gate": gate})
