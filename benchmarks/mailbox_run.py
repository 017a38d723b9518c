"""Runs of `evolve --proposer mailbox` in visits to a GPU: nothing there waits for an answer.

    python benchmarks/mailbox_run.py prepare RUNS             begin the runs and ask; needs no GPU
    python benchmarks/mailbox_run.py visit RUNS OUT.tar.xz    on the GPU
    python benchmarks/mailbox_run.py summary RUNS             what came of them so far

RUNS is a folder with a folder for each run, or a tar of one, which is unpacked here. A visit takes
every answer that lies in RUNS/RUN/answers, measures it, turns its knobs, writes new prompts and
stops: a process for each run, a card for each process. It measures the shipped kernel as well, and
the run's best beside it; neither is shown in a prompt. OUT is RUNS as it is then: unpack it, answer
RUNS/RUN/prompts/NUMBER.md in RUNS/RUN/answers/NUMBER.md, and visit again. What a visit that was
killed had measured is kept. Exit code 0, or 2 where a run ended otherwise than by its own decision.
Of four prompts in a row one is without the history and one without the GPU's profile (`ARMS`):
benchmarks/ablations.py compares what was answered to them.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.evolve import events, features, loop
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Budget, Config, Search, Work
from mlx_lm_openevolve.evolve.evaluator import LocalEvaluator
from mlx_lm_openevolve.evolve.measure import gpu
from mlx_lm_openevolve.evolve.ncu import Profiler
from mlx_lm_openevolve.evolve.propose.mailbox import Mailbox
from mlx_lm_openevolve.evolve.propose.structural import ModelQuestion, WithParams
from mlx_lm_openevolve.evolve.publish import publish
from mlx_lm_openevolve.gate import timing
from mlx_lm_openevolve.gate.limits import memory_for
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import shipped
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.processes import kill_session

CHIP = "nvidia-h100-80gb-hbm3"  # whose shipped verdicts name the handwritten kernels
STARTERS = Path(__file__).parent / "starters"
RUNS = {
    "one-sequence": (
        "attention_one_warp",
        "attention-b1-hq32-hkv8-lq1-lk4096-d128-v128-bfloat16-none",
    ),
    "eight-sequences": (
        "attention_one_warp",
        "attention-b8-hq16-hkv8-lq1-lk2048-d128-v128-bfloat16-bool",
    ),
    "one-row": ("product_one_warp", "linear-m1-n14336-k4096-bfloat16-q4g64"),
    "four-rows": ("product_one_warp", "linear-m4-n14336-k4096-bfloat16-q4g64"),
}
_LAST = 75.0  # seconds of a visit that are left for profiles, prompts and the shipped kernel
_CONTEXT = 24_000  # tokens of a prompt at most
_SHINGLE = 8  # tokens


# What is left out of a prompt, by its number.
ARMS = ("", "history", "", "profile")


def arm(number: int) -> str:
    """What the prompt of that number is without, "" where it has all."""
    return ARMS[number % len(ARMS)]


class Arms(Mailbox):
    """The mailbox, with prompts that lack something on purpose."""

    def questions(
        self, archive: Archive, numbers: Sequence[int], context: int = 0
    ) -> Iterator[ModelQuestion]:
        for question in super().questions(archive, numbers, context):
            yield replace(question, text=without(question.text, arm(question.number)))


def without(text: str, what: str) -> str:
    """A prompt without its history (changes, failures, all candidates), or without profiles."""
    if what == "history":
        parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
        return "".join(p for p in parts if not re.match(r"## (Change #|Failed #|History)", p))
    if what == "profile":
        return re.sub(r"^  GPU profile: .*\n", "", text, flags=re.MULTILINE)
    return text


def prepare(folder: Path, name: str, ahead: int) -> None:
    """Begin a run: its seed is in its registry, its first prompts are written."""
    starter, slug = RUNS[name]
    kernel, workload = Kernel.load(STARTERS / starter), ops.parse(slug).bucket()
    config = Config(
        backend="cuda",
        workloads=(workload,),
        weights=(1.0,),
        proposer="mailbox",
        suite=slug,
        profile=True,
        seeds=(kernel.id,),
        search=Search(saturated=0.0, tune_after=4),
        work=Work(seconds=40.0),
    )
    archive = Archive.create(folder / name, config, {"name": "NVIDIA H100 80GB HBM3"})
    archive.registry.add(kernel)
    Arms([kernel], 0.0, ahead=ahead, context=_CONTEXT).ask(archive)
    archive.close()


def search(run: Path, seconds: float, ahead: int, gate: bool, turns: bool = True) -> None:
    """One run's part of a visit; without `turns` no knobs are turned."""
    for path in (run / "answers").rglob("*"):
        os.utime(path, (1, 1))  # another machine's clock says nothing about what has settled
    archive = Archive.open(run)
    backend, start, before = archive.config.backend, time.monotonic(), set(archive.done)
    archive.add(
        events.Resumed(tuple(c.number for c in archive.pending()[: archive.config.search.batch]))
    )
    if (device := vars(detect(backend))) != archive.device:
        archive.add(events.MeasuredOn(device))
    budget = Budget(seconds=archive.elapsed + max(1.0, seconds - _LAST))
    archive.config = replace(archive.config, budget=budget)
    if not turns:
        none = replace(archive.config.search, tune_after=0)
        archive.config = replace(archive.config, search=none)
    seeds = [archive.load(id) for id in archive.config.seeds]
    profiler = Profiler(print)
    with LocalEvaluator(archive) as evaluator:
        mailbox = Arms(seeds, 0.0, profile=profiler, ahead=ahead, context=_CONTEXT)
        stopped = loop.evolve(archive, WithParams(mailbox, seeds), evaluator, lambda _: None)
    spent = time.monotonic() - start
    profiler(archive)
    record: dict[str, Any] = {
        "stopped": stopped,
        "seconds": round(spent, 1),
        "done": len(archive.done.keys() - before),
        "answers": sum(
            archive.candidates[n].proposer == "mailbox" for n in set(archive.done) - before
        ),
        "device": archive.device.get("name"),
        "beside": {slug: beside(archive, slug) for slug in archive.slugs},
    }
    if gate:
        published = publish(archive, [Registry(run.parent / "published")])
        record["gate"] = [event.to_json() for event in published]
    archive.close()
    with (run / "visits.jsonl").open("a") as file:
        file.write(json.dumps(record, default=dict) + "\n")


def beside(archive: Archive, slug: str) -> dict[str, Any]:
    """MLX's time over the shipped kernel's, and the shipped kernel's over the run's best, in pairs
    of calls on the same inputs, each with its interval."""
    backend, best, workload = archive.config.backend, archive.best.get(slug), archive.workload(slug)
    verdict = next((v for v in shipped().verdicts(CHIP, workload) if v.accepted), None)
    if backends.get(backend).unavailable() or verdict is None:
        return {}
    device, exact = detect(backend), workload.largest()
    kernel = shipped().kernel(verdict.kernel)
    assert kernel is not None
    build = backends.get(backend).build
    with gpu(device):
        room = timing.room(device.cache, memory_for(device))[1]
        inputs = ops.of(exact).questions.timing_inputs(exact, device.cache, room, 0)
        call = build(kernel, dict(verdict.params), inputs.workload)
        arms = {
            "stock": timing.Arm(inputs, inputs.baseline()),
            "shipped": timing.Arm(inputs, call, keep=4),
        }
        if best is not None:
            call = build(archive.load(best.kernel), dict(best.result.params), inputs.workload)
            arms["best"] = timing.Arm(inputs, call, keep=4)
        found: dict[str, Any] = {"shipped": kernel.name, "best": best.kernel if best else ""}
        for a, b in (("stock", "shipped"), ("shipped", "best"), ("stock", "best")):
            if b not in arms:
                continue
            seconds = timing.warm_up((arms[a], arms[b]), 0.3)
            pair = timing.paired(arms[a], arms[b], seconds, max(3.0, timing.least(seconds)), 0)
            assert pair is not None
            ratio = [round(x, 4) for x in (pair.ratio, pair.low, pair.high)]
            found[f"{a}/{b}"] = {"ratio": ratio, "wrong": arms[b].recheck()}
    return found


def likeness(run: Path) -> dict[int, dict[str, Any]]:
    """For each structural candidate, and the seeds: the share of its runs of eight tokens that
    stand in a shipped kernel too, and the one that holds most of them."""
    archive = Archive.open(run, write=False)
    # What a search found is no likeness to what its writers were not to see.
    others = (kernel for kernel in shipped().kernels() if not kernel.origin.startswith("run "))
    known = {kernel.name: _shingles(kernel) for kernel in others}
    found = {}
    for number, candidate in archive.candidates.items():
        kernel = archive.registry.kernel(candidate.kernel)
        if candidate.proposer == "params" or kernel is None:
            continue
        own = _shingles(kernel)
        share = {name: len(own & there) / max(1, len(own)) for name, there in known.items()}
        nearest = max(share, key=lambda name: share[name])
        found[number] = {"kernel": kernel.id, "like": nearest, "share": round(share[nearest], 3)}
    return found


def _shingles(kernel: Kernel) -> set[tuple[str, ...]]:
    found = set()
    for source in kernel.sources.values():
        tokens = re.findall(r"\w+|\S", features.code(source))
        found |= {tuple(tokens[i : i + _SHINGLE]) for i in range(len(tokens) - _SHINGLE + 1)}
    return found


def summary(folder: Path) -> Iterator[dict[str, Any]]:
    """What came of each run; its candidates' likeness is put beside its journal."""
    for run in runs(folder):
        archive, alike = Archive.open(run, write=False), likeness(run)
        (run / "likeness.json").write_text(json.dumps(alike, indent=1) + "\n")
        visits = run / "visits.jsonl"
        records = (
            [json.loads(x) for x in visits.read_text().splitlines()] if visits.exists() else []
        )
        minutes = sum(record["seconds"] for record in records) / 60
        written = [n for n, c in archive.candidates.items() if c.proposer == "mailbox"]
        right = [n for n in written if n in archive.done and not archive.done[n].cause]
        answers = {path.stem for path in (run / "answers").iterdir()}
        row: dict[str, Any] = {
            "run": run.name,
            "workloads": archive.slugs,
            "visits": len(records),
            "structural": len(written),
            "valid": round(len(right) / len(written), 3) if written else None,
            "candidates": len(archive.done),
            "a_minute": round(sum(r["done"] for r in records) / minutes, 1) if minutes else None,
            "best": {s: (b.kernel, b.number, str(b.result)) for s, b in archive.best.items()},
            "beside": [record["beside"] for record in records],
            "failures": archive.failures(),
            "most_alike": max((alike[n]["share"] for n in written if n in alike), default=None),
            "profiles": sum(
                bool(r.profile) for k in archive.kernel_best.values() for r in k.values()
            ),
            "unprofiled": archive.unprofiled,
            "open": sorted(p.name for p in (run / "prompts").iterdir() if p.stem not in answers),
        }
        yield row


def runs(folder: Path) -> list[Path]:
    """The folders of the runs."""
    return sorted(path.parent for path in folder.glob("*/events.jsonl"))


def visit(folder: Path, seconds: float, rest: list[str]) -> bool:
    """All runs, as many at a time as there are cards; whether each ended by itself."""
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for run in runs(folder):
        waiting.put(run)
    end, well = time.monotonic() + seconds, []

    def on(card: str) -> None:
        while not waiting.empty():
            run, left = waiting.get(), end - time.monotonic()
            command = [
                sys.executable,
                __file__,
                "search",
                str(run),
                "--seconds",
                f"{left:g}",
                *rest,
            ]
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": card}
            with (
                (run / "log.txt").open("ab") as log,
                subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment, start_new_session=True
                ) as process,
            ):
                try:
                    process.wait(max(0.0, left))
                except subprocess.TimeoutExpired:
                    kill_session(process)
            well.append(process.returncode == 0)

    threads = [threading.Thread(target=on, args=(card,)) for card in cards()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return all(well)


def cards() -> list[str]:
    """The cards that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        said = ""
    return [str(i) for i in range(said.count("UUID: GPU"))] or ["0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "visit", "search", "summary"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=540.0, help="of a visit at most")
    parser.add_argument(
        "--ahead", type=int, default=12, help="prompts open at a time, for each run"
    )
    parser.add_argument("--gate", action="store_true", help="the last visit: judge the winners")
    parser.add_argument("--no-turns", action="store_true", help="measure answers, turn no knobs")
    options = parser.parse_args()
    folder = options.runs
    if folder.is_file():
        folder = folder.with_name(folder.name.split(".")[0])
        with tarfile.open(options.runs) as packed:
            packed.extractall(folder.parent, filter="data")
    code = 0
    if options.what == "prepare":
        for name in RUNS:
            prepare(folder, name, options.ahead)
    elif options.what == "search":
        search(folder, options.seconds, options.ahead, options.gate, not options.no_turns)
        return
    elif options.what == "visit":
        flags = {"--gate": options.gate, "--no-turns": options.no_turns}
        rest = ["--ahead", str(options.ahead), *(name for name, on in flags.items() if on)]
        code = 0 if visit(folder, options.seconds, rest) else 2
    for row in summary(folder):
        print(json.dumps(row))
    if options.out:
        with tarfile.open(options.out, "w:xz") as packed:
            packed.add(
                folder, folder.name, filter=lambda i: None if i.name.endswith(".lock") else i
            )
    sys.exit(code)


if __name__ == "__main__":
    main()
