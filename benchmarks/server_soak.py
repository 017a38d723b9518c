"""mlx_lm.server under clients that come together, stock and then patched: errors and memory.

    python benchmarks/server_soak.py [--minutes 10] [--clients 8] [--output FILE]

Each client asks again and again: chat or text, streamed or not, with prompts of all lengths; some
go away in mid-stream. The model is that of examples/tiny_model.py, untrained. Without a GPU the
Metal kernels run on the CPU, a thousand times slower: what is asked there is whether the server
stands, not how fast it is.

Memory swings with the batch at hand, and its floor tells of a leak: the least of a third of the
time. It grows where the floor of the last third is above that of the first one after the warm-up
by more than in stock, and ends above that of stock, each by more than 3%.

Exit code 1 where the patched server shows an error that stock does not show, where its memory
grows, or where no kernel served it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import tiny_model
from mlx_server import ARMS, ROOT, chunks, healthy, own_home, post, server, store_verdicts
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mlx_lm_openevolve.device import BACKENDS, detect
from mlx_lm_openevolve.errors import UsageError

LEAVE = 0.2  # share of the streams whose client goes away
WARM_UP = 0.4  # share of the time that is left out of the trend
GROWTH = 0.03
SHORTEST = 2.0  # minutes: in less, caches are still filling, and memory is no question
SAMPLES = 200  # of memory, at most every second
# A client that goes away shows in the server's log as one of these, as chance has it.
GONE = ("BrokenPipeError", "ConnectionResetError", "ConnectionAbortedError")


@dataclass
class Tally:
    """What the clients saw. errors: what went wrong -> how often."""

    requests: int = 0
    answered: int = 0
    left: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def wrong(self, what: str) -> None:
        with self.lock:
            self.errors[what] += 1


# ---- clients -----------------------------------------------------------------------------------


def client(port: int, seed: int, stop: threading.Event, tally: Tally, longest: int) -> None:
    """Asks until `stop` is set."""
    rng = random.Random(seed)
    while not stop.is_set():
        tally.add(requests=1)
        try:
            ask(port, rng, tally, longest)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            tally.wrong(f"{type(error).__name__}: {error}"[:120])


def ask(port: int, rng: random.Random, tally: Tally, longest: int) -> None:
    """One request and its answer. Raises what a broken server makes it raise."""
    words = "".join(rng.choice(" .=(abcdefgh\n") for _ in range(rng.randint(1, longest)))
    tokens, stream, chat = rng.randint(1, 24), rng.random() < 0.5, rng.random() < 0.5
    body: dict[str, Any] = {"max_tokens": tokens, "temperature": rng.choice((0, 0, 0.8))}
    body["stream"] = stream
    if chat:
        body["messages"] = [{"role": "user", "content": words}]
    else:
        body["prompt"] = words
    leaves = stream and rng.random() < LEAVE
    with post(port, "/v1/chat/completions" if chat else "/v1/completions", body) as answer:
        if not stream:
            found = json.loads(answer.read())
            used, reason = found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]
            if not (used == tokens if reason == "length" else 0 < used <= tokens):
                raise ValueError(f"asked for {tokens} tokens, got {used} ({reason})")
            tally.add(answered=1, tokens=used)
            return
        reason, count = None, 0
        for chunk in chunks(answer):
            reason = chunk["choices"][0]["finish_reason"]
            count += 1
            if leaves and count >= 2:
                tally.add(left=1, tokens=count)
                return
        if reason is None:
            raise ValueError("a stream ended without a reason")
        tally.add(answered=1, tokens=count)


# ---- the server's process -----------------------------------------------------------------------


def memory(pid: int) -> float:
    """Resident memory in MB."""
    command = ["ps", "-o", "rss=", "-p", str(pid)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


def files(pid: int) -> int:
    """Open files, 0 where the system does not tell."""
    folder = Path(f"/proc/{pid}/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def exceptions(log: str) -> Counter[str]:
    """The exceptions that end a log's tracebacks, by type; a client that went away is one type, and
    a traceback through this package is told too. Threads interleave: lines are what is counted."""
    found: Counter[str] = Counter()
    for name in re.findall(
        r"^(?:\w+\.)*(\w+(?:Error|Exception|Interrupt))(?::|$)", log, re.MULTILINE
    ):
        found["client went away" if name in GONE else name] += 1
    ours = len(re.findall(r'^ +File ".*/mlx_lm_openevolve/', log, re.MULTILINE))
    return found + Counter({"frames of this package": ours})


# ---- one arm -----------------------------------------------------------------------------------


def soak(
    arm: str, model: Path, options: argparse.Namespace, env: dict[str, str], progress: Any
) -> dict[str, Any]:
    """One server under its clients for options.minutes; what was seen, as plain data."""
    tally, stop = Tally(), threading.Event()
    samples: list[tuple[float, float, int]] = []
    served: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        gate = "stored" if options.backend == "host" else "auto"
        with server(arm, model, Path(folder), options.backend, gate, env) as running:
            process, port = running.process, running.port
            threads = [
                threading.Thread(target=client, args=(port, seed, stop, tally, options.longest))
                for seed in range(options.clients)
            ]
            start = time.monotonic()
            for thread in threads:
                thread.start()
            seconds = 60 * options.minutes
            while (past := time.monotonic() - start) < seconds and process.poll() is None:
                samples.append((past, memory(process.pid), files(process.pid)))
                progress(past / seconds)
                stop.wait(min(max(1.0, seconds / SAMPLES), seconds - past))
            stop.set()
            for thread in threads:
                thread.join()
            if process.poll() is not None:
                tally.wrong(f"the server ended with {process.returncode}")
            else:
                elapsed = time.monotonic() - start
                samples.append((elapsed, memory(process.pid), files(process.pid)))
                if not healthy(port):
                    tally.wrong("the server is not healthy in the end")
                served = running.stop()
        log = running.log
    return {
        "arm": arm,
        "minutes": options.minutes,
        "requests": tally.requests,
        "answered": tally.answered,
        "left": tally.left,
        "tokens": tally.tokens,
        "errors": dict(tally.errors),
        "log": dict(exceptions(log)),
        "memory": trend(samples),
        "samples": [[round(t, 1), round(mb, 1), n] for t, mb, n in samples],
        "hits": served.get("hits", 0),
        "fallbacks": served.get("fallbacks", {}),
        "workloads": sum(bool(row["hits"]) for row in served.get("workloads", {}).values()),
        "problems": served.get("problems", []),
    }


def trend(samples: Sequence[tuple[float, float, int]]) -> dict[str, float]:
    """Of memory after the warm-up: its floor in MB in the first and in the last third, the
    least-squares slope in MB a minute; and open files at begin and end."""
    end = samples[-1][0]
    late = [sample for sample in samples if sample[0] >= WARM_UP * end]
    third = max(1, len(late) // 3)
    begin, last = (min(mb for _, mb, _ in part) for part in (late[:third], late[-third:]))
    times, sizes = [t / 60 for t, _, _ in late], [mb for _, mb, _ in late]
    slope = statistics.linear_regression(times, sizes).slope if len(set(times)) > 1 else 0.0
    return {
        "begin_mb": round(begin, 1),
        "end_mb": round(last, 1),
        "slope_mb_per_minute": round(slope, 3),
        "begin_files": late[0][2],
        "end_files": late[-1][2],
    }


def judge(found: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the patched server, in words; where there is no stock beside it, every
    error counts."""
    ours, stock = found.get("patched"), found.get("stock")
    if ours is None:
        return []
    wrong = []
    for name in ("errors", "log"):
        new = set(ours[name]) - set(stock[name] if stock else ())
        if name == "log":
            new -= {"client went away"}
        wrong += [f"{what} ({ours[name][what]} times)" for what in sorted(new)]
    if not ours["hits"]:
        wrong.append("no kernel served a call")
    wrong += ours["problems"]
    if ours["minutes"] >= SHORTEST:
        begin, end = ours["memory"]["begin_mb"], ours["memory"]["end_mb"]
        usual, level = 0.0, 0.0
        if stock:
            level = stock["memory"]["end_mb"]
            usual = max(0.0, level - stock["memory"]["begin_mb"])
        if end - begin > usual + GROWTH * begin and end > level * (1 + GROWTH):
            wrong.append(
                f"memory grows from {begin:.0f} to {end:.0f} MB, in stock by {usual:.0f} MB"
            )
    return wrong


def show(out: Console, found: dict[str, dict[str, Any]]) -> None:
    table = Table(title="mlx_lm.server under load", title_justify="left")
    table.add_column("")
    for arm in found:
        table.add_column(arm, justify="right")
    rows = {
        name: [str(run[name]) for run in found.values()]
        for name in ("requests", "answered", "left", "tokens", "hits")
    }
    rows["errors seen by clients"] = [
        "\n".join(f"{what}: {n}" for what, n in run["errors"].items()) or "none"
        for run in found.values()
    ]
    rows["exceptions in the log"] = [
        "\n".join(f"{what}: {n}" for what, n in run["log"].items()) or "none"
        for run in found.values()
    ]
    memories = [run["memory"] for run in found.values()]
    rows["least memory after warm-up"] = [f"{m['begin_mb']:.0f} MB" for m in memories]
    rows["least memory in the end"] = [f"{m['end_mb']:.0f} MB" for m in memories]
    rows["slope"] = [f"{m['slope_mb_per_minute']:+.2f} MB/min" for m in memories]
    rows["open files"] = [f"{m['begin_files']}, {m['end_files']}" for m in memories]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    out.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="for each server (10)")
    parser.add_argument("--clients", type=int, default=8, help="at a time (8)")
    parser.add_argument("--longest", type=int, default=400, help="characters of a prompt (400)")
    parser.add_argument("--only", choices=ARMS, help="one server alone")
    parser.add_argument("--backend", choices=BACKENDS, default=detect().backend)
    parser.add_argument("--json", action="store_true", help="the record as the last line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON")
    options = parser.parse_args(arguments)
    out = Console(highlight=False, stderr=options.json)

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(console=out, transient=True) as bar:
        model = Path(folder) / "model"
        tiny_model.make(model, tiny_model.corpus(ROOT), steps=0)
        home = Path(folder) / "home"
        home.mkdir()
        env = own_home(home)
        if options.backend == "host":
            store_verdicts(home, tiny_model.CONFIG)
        for arm in ARMS:
            if options.only in (None, arm):
                task = bar.add_task(arm, total=1.0)
                try:
                    found[arm] = soak(
                        arm, model, options, env, lambda x, t=task: bar.update(t, completed=x)
                    )
                except UsageError as error:
                    out.print(str(error))
                    return 2
    show(out, found)
    wrong = judge(found)
    for line in wrong:
        out.print(f"[red]{line}[/]")
    record = {"clients": options.clients, "backend": options.backend, "runs": found, "wrong": wrong}
    if options.output:
        options.output.write_text(json.dumps(record) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(record))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
