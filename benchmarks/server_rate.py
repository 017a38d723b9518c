"""mlx_lm.server under clients that come together, stock and patched: tokens a second, first tokens.

    python benchmarks/server_rate.py [--shape qwen3-0.6b] [--bits 4] [--clients 8] [--rounds 2]
                                     [--seconds 20] [--total 150] [--gate auto] [--output FILE]

The model has the shape's random weights. Servers are processes of their own, one at a time, in the
order A B B A. In each the clients first ask --warm-up times, by which the model is loaded and what
is used is compiled, and then for --seconds, the next prompt as soon as an answer has ended. Prompts
are the same ones in every process and none comes twice: of --shortest to --longest tokens, as many
of 100 to 200 as of 200 to 400. An answer is a stream of --tokens tokens, the likeliest each time.

Tokens a second: those that came within the --seconds. First token: from the request until then, of
requests sent within them. --total: seconds for everything; where it is short, --seconds are fewer,
and processes in the end are left out. A process with errors does not count in the ratios.
The kernels of the patched server are those whose verdicts are stored (MLX_LM_OPENEVOLVE_HOME and
tuned/), with `--gate auto` also what it decides on the way.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import save_config, save_model
from mlx_server import ARMS, Server, chunks, own_home, post, server, store_verdicts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.bench import model_configs
from mlx_lm_openevolve.device import BACKENDS, detect, fingerprint
from mlx_lm_openevolve.kernels.verdict import gate_version

END = "<|end|>"
LEAST = 5.0  # seconds: a shorter window, where that was not asked for, says too little
ENDING = 4.0  # seconds that the last answers and the end of a process take
LATEST = 10.0  # seconds after which a last answer is given up


def write_model(folder: Path, shape: str, bits: str) -> None:
    """A folder that mlx-lm loads: the shape with random weights, and a tokenizer in which the word
    "w7" is token 7. What ends an answer is no token of the model: every answer has full length."""
    model, config = model_configs.build(shape, bits), dict(model_configs.SHAPES[shape])
    packed = {
        path: {name: getattr(layer, name) for name in ("bits", "group_size", "mode")}
        for path, layer in model.named_modules()
        if hasattr(layer, "bits")
    }
    if packed:
        config["quantization"] = {**next(iter(packed.values())), **packed}
    save_model(folder, model)
    save_config(config, folder / "config.json")
    words = [*(f"w{i}" for i in range(config["vocab_size"])), END]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()  # so mlx-lm takes what it has for models of this kind
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@dataclass(frozen=True)
class Prompts:
    """Prompts by number, always the same ones."""

    vocabulary: int
    shortest: int
    longest: int

    def __call__(self, number: int) -> list[int]:
        rng = random.Random(number)
        length = round(self.shortest * (self.longest / self.shortest) ** rng.random())
        return rng.choices(range(self.vocabulary), k=length)


@dataclass
class Request:
    """One request. Times of time.monotonic(): `tokens` when each of its answer came."""

    prompt: int
    start: float
    tokens: list[float] = field(default_factory=list)
    end: float = 0.0
    error: str = ""


def ask(port: int, prompt: Sequence[int], tokens: int) -> Request:
    """One request and its streamed answer."""
    body = {
        "prompt": " ".join(f"w{token}" for token in prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    made = Request(len(prompt), time.monotonic())
    used = {}
    try:
        with post(port, "/v1/completions", body) as answer:
            for chunk in chunks(answer):
                if any(choice["text"] for choice in chunk["choices"]):
                    made.tokens.append(time.monotonic())
                used = chunk.get("usage", used)
        counts = (used["prompt_tokens"], used["completion_tokens"], len(made.tokens))
        if counts != (len(prompt), tokens, tokens):
            raise ValueError(f"{counts} tokens of prompt, answer and stream, for {tokens}")
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        made.error = f"{type(error).__name__}: {error}"[:120]
    made.end = time.monotonic()
    return made


def together(
    port: int, sequences: Iterable[Iterator[list[int]]], tokens: int, until: float
) -> list[Request]:
    """A client for each sequence of prompts; what they asked. One that has no answer by `until` is
    left behind, and ends with its server."""
    made: list[Request] = []

    def client(prompts: Iterator[list[int]]) -> None:
        for prompt in prompts:
            made.append(ask(port, prompt, tokens))

    threads = [threading.Thread(target=client, args=(seq,), daemon=True) for seq in sequences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = sum(thread.is_alive() for thread in threads)
    now = time.monotonic()
    return [*made, *(Request(0, now, end=now, error="no answer in time") for _ in range(late))]


def measure(
    running: Server, options: argparse.Namespace, prompts: Prompts, until: float, deadline: float
) -> dict[str, Any]:
    """The warm-up and the window of one server, over by `until` where the window stays long enough;
    what was seen, as plain data."""

    def sequence(client: int, first: int, more: Callable[[int], bool]) -> Iterator[list[int]]:
        for i in itertools.takewhile(more, itertools.count(first)):
            yield prompts(options.clients * i + client)

    def clients(first: int, more: Callable[[int], bool], until: float) -> list[Request]:
        sequences = (sequence(client, first, more) for client in range(options.clients))
        return together(running.port, sequences, options.tokens, until)

    before = time.monotonic()
    warm = clients(0, lambda i: i < options.warm_up, deadline)
    start = time.monotonic()
    seconds = min(options.seconds, max(LEAST, until - ENDING - start))
    end = start + seconds
    if end > deadline:
        raise SystemExit(f"no time left, {start - before:.0f} s of warm-up\n{running.log[-2000:]}")
    asked = clients(options.warm_up, lambda i: time.monotonic() < end, end + LATEST)
    came = [t - start for r in asked for t in r.tokens if t < end]
    errors = [r.error for r in (*warm, *asked) if r.error]
    if running.process.poll() is not None:
        errors.append(f"the server ended with {running.process.returncode}")
    return {
        "arm": running.arm,
        "warm_up": round(start - before, 2),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(len(came) / seconds, 2),
        "tokens_each_second": np.histogram(came, np.arange(int(seconds) + 1))[0].tolist(),
        "finished": sum(not r.error and r.end < end for r in asked),
        "errors": errors,
        # prompt's tokens, seconds to the first token, seconds to the last one
        "requests": [
            [r.prompt, *(round(t - r.start, 4) for t in (r.tokens[0], r.tokens[-1]))]
            for r in sorted(asked, key=lambda r: r.start)
            if r.tokens
        ],
    }


def run(
    arm: str, model: Path, options: argparse.Namespace, env: dict[str, str], *times: float
) -> dict[str, Any]:
    """One process; times: `until` and `deadline` of measure."""
    vocabulary = model_configs.SHAPES[options.shape]["vocab_size"]
    prompts = Prompts(vocabulary, options.shortest, options.longest)
    with (
        tempfile.TemporaryDirectory() as folder,
        server(arm, model, Path(folder), options.backend, options.gate, env) as running,
    ):
        row = measure(running, options, prompts, *times)
        served = running.stop()
    row["first"] = first_tokens(row["requests"])
    if arm == "patched":
        for name in ("hits", "kernels", "fallbacks", "problems"):
            row[name] = served.get(name)
        row["workloads"] = {
            slug: [found["hits"], found["fallbacks"], found["reason"]]
            for slug, found in served.get("workloads", {}).items()
        }
    return row


def first_tokens(requests: Sequence[Sequence[float]]) -> dict[str, float]:
    """Seconds: the median, and what nine in ten did not exceed."""
    if not requests:
        return {}
    firsts = [first for _, first, _ in requests]
    return {"median": float(np.median(firsts)), "p90": float(np.quantile(firsts, 0.9))}


def ratio(
    rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]
) -> dict[str, float] | None:
    """Patched over stock: of the medians, and the least and the greatest that two processes give.
    None where an arm has no process without errors."""
    good = [row for row in rows if not row["errors"] and row["first"]]
    stock, ours = ([value(row) for row in good if row["arm"] == arm] for arm in ARMS)
    if not stock or not ours:
        return None
    return {
        "ratio": statistics.median(ours) / statistics.median(stock),
        "low": min(ours) / max(stock),
        "high": max(ours) / min(stock),
    }


def say(row: dict[str, Any]) -> str:
    first = row["first"]
    text = f"{row['arm']:8s} {row['tokens_per_second']:.1f} tokens/s"
    if first:
        text += f", first token {first['median']:.3f} s (90%: {first['p90']:.3f} s)"
    text += f", {row['finished']} requests in {row['seconds']:.1f} s, {len(row['errors'])} errors"
    if row["arm"] == "patched":
        fallen = sum((row["fallbacks"] or {}).values())
        text += f", {row['hits']} calls on kernels, {fallen} fell back"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", default="qwen3-0.6b", choices=model_configs.SHAPES)
    parser.add_argument("--bits", default="", choices=("", *model_configs.BITS))
    parser.add_argument("--clients", type=int, default=8, help="at a time (8)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (64)")
    parser.add_argument("--shortest", type=int, default=50, help="prompt, tokens (50)")
    parser.add_argument("--longest", type=int, default=3000, help="prompt, tokens (3000)")
    parser.add_argument("--rounds", type=int, default=2, help="of two processes (2)")
    parser.add_argument("--warm-up", type=int, default=2, help="requests of each client (2)")
    parser.add_argument("--seconds", type=float, default=20, help="measured in each process (20)")
    parser.add_argument("--total", type=float, default=600, help="seconds for everything (600)")
    parser.add_argument("--gate", choices=("auto", "stored"), default="stored")
    parser.add_argument("--backend", choices=BACKENDS, default=detect().backend)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)

    asked = {name: value for name, value in vars(options).items() if name != "output"}
    words = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in asked.items()
        if value != parser.get_default(name)
    ]
    record: dict[str, Any] = {
        "machine": fingerprint(
            detect(options.backend), {name: gate_version(name) for name in ops.FAMILIES}
        ),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python benchmarks/server_rate.py", *words]),
        "asked": asked,
        "rows": [],
    }
    rows = record["rows"]

    def keep() -> None:
        if options.output:
            options.output.write_text(json.dumps(record) + "\n", encoding="utf-8")

    order = [arm for i in range(options.rounds) for arm in (ARMS if i % 2 == 0 else ARMS[::-1])]
    with tempfile.TemporaryDirectory() as folder:
        model, home = Path(folder) / "model", Path(folder) / "home"
        write_model(model, options.shape, options.bits)
        mx.clear_cache()
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if options.backend == "host":
            home.mkdir()
            env |= own_home(home)
            store_verdicts(home, model_configs.SHAPES[options.shape])
        print(f"the model is written after {time.monotonic() - begin:.1f} s", flush=True)
        deadline, aside = begin + options.total, 0.0  # seconds of a process aside from its window
        for i, arm in enumerate(order):
            now = time.monotonic()
            if now + aside + min(LEAST, options.seconds) > deadline:
                print(f"no time left for {len(order) - i} of {len(order)} processes")
                break
            until = now + (deadline - now) / (len(order) - i)
            rows.append(run(arm, model, options, env, until, deadline))
            aside = time.monotonic() - now - rows[-1]["seconds"]
            print(say(rows[-1]), f"{aside:.1f} s aside", sep=", ", flush=True)
            keep()
    for name, what, value in (
        ("ratio", "tokens a second", lambda row: row["tokens_per_second"]),
        ("first_ratio", "first token", lambda row: row["first"]["median"]),
    ):
        record[name] = found = ratio(rows, value)
        if found:
            says = f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            print(f"{what}, patched/stock: {says}")
    keep()
    return 0 if record["ratio"] and not any(row["errors"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
