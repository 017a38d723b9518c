"""`evolve` beside OpenEvolve itself: the same starter, evaluator, answers and budget, no GPU.

    python -m venv THEIRS && THEIRS/bin/pip install openevolve
    python benchmarks/beside_openevolve.py THEIRS/bin/python [--answers 60] [--jobs 2] [-o FILE]

A scripted model, an endpoint here, hands out answers that were drawn before, in order: whole
rewrites of one Metal file, which do not depend on the parent, so that both see the same programs.
Some do not compile, some are wrong, some were there before. The evaluator is the host check of this
package, in a process that stays; the score is the share of the bytes moved that must be. Each
search runs to its end, and once it is killed (-9) after half of the answers and goes on as its
manual says. Rates are the endpoint's: between the first request and the last. What a search policy
is worth cannot be seen here: the answers do not listen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.kernels.kernel import Kernel

WORKLOAD = "attention-b1-hq8-hkv2-lq1-lk1024-d64-v64-bfloat16-none"
SEED = 0
MARKS = (10, 20, 30, 40, 50, 60)
META = {
    "format": 2,
    "name": "plain",
    "op": "attention",
    "variants": ["float"],
    "origin": "handwritten",
    "applies": "q_len == 1 and head_dim == v_head_dim and head_dim == 64 and group % 4 == 0"
    " and mask == 'none' and not sinks",
    "launches": [
        {
            "source": "attend.metal",
            "inputs": ["queries", "keys", "values", "scale"],
            "outputs": [
                {
                    "name": "out",
                    "shape": ["batch", "q_heads", "q_len", "v_head_dim"],
                    "dtype": "dtype",
                }
            ],
            "template": {"T": "dtype", "D": "head_dim", "GROUP": "group"},
            "grid": ["32", "q_heads", "batch"],
            "threadgroup": ["32", "1", "1"],
        }
    ],
}
# One simdgroup of every HEADS answers so many query heads of a KV head; the others rest.
SOURCE = """\
constexpr int HEADS = $heads;
constexpr int PER_LANE = D / 32;
const int lane = thread_position_in_threadgroup.x;
const int first = threadgroup_position_in_grid.y;
const int batch = threadgroup_position_in_grid.z;
if (first % HEADS == 0) {
  const device T* key = keys + batch * keys_strides[0] + first / GROUP * keys_strides[1];
  const device T* value = values + batch * values_strides[0] + first / GROUP * values_strides[1];
  float q[HEADS][PER_LANE], total[HEADS][PER_LANE], top[HEADS], sum[HEADS];
  for (int h = 0; h < HEADS; ++h) {
    const device T* query = queries + batch * queries_strides[0] + (first + h) * queries_strides[1];
    for (int i = 0; i < PER_LANE; ++i) {
      q[h][i] = scale[0] * float(query[($at) * queries_strides[3]]);
      total[h][i] = 0;
    }
    top[h] = -INFINITY;
    sum[h] = 0;
  }
  for (int n = 0; n < keys_shape[2]; ++n) {
    float k[PER_LANE], v[PER_LANE];
    for (int i = 0; i < PER_LANE; ++i) {
      k[i] = float(key[n * keys_strides[2] + ($at) * keys_strides[3]]);
      v[i] = float(value[n * values_strides[2] + ($to) * values_strides[3]]);
    }
    for (int h = 0; h < HEADS; ++h) {
      float score = 0;
      for (int i = 0; i < PER_LANE; ++i) {
        score = $add;
      }
      score = simd_sum(score);
      const float higher = max(top[h], score);
      const float shrink = $exp(top[h] - higher);
      const float weight = $exp(score - higher);
      top[h] = higher;
      sum[h] = sum[h] * shrink + weight;
      for (int i = 0; i < PER_LANE; ++i) {
        total[h][i] = total[h][i] * shrink + weight * v[i];
      }
    }
  }
  for (int h = 0; h < HEADS; ++h) {
    for (int i = 0; i < PER_LANE; ++i) {
      out[(batch * threadgroups_per_grid.y + first + h) * D + $to] = T($whole);
    }
  }
}
"""
_APART, _TOGETHER = "lane + 32 * i", "PER_LANE * lane + i"
# The first of each is the starter's, and drawn most often; what moves fewer bytes is rare.
CHOICES = {
    "$heads": ("1", "1", "1", "2", "2", "4"),
    "$at": (_APART, _APART, _TOGETHER),
    "$to": (_APART, _APART, _TOGETHER),
    "$add": ("score + q[h][i] * k[i]", "fma(q[h][i], k[i], score)"),
    "$exp": ("exp", "fast::exp", "metal::exp"),
    "$whole": ("total[h][i] / sum[h]", "total[h][i] * (1.0f / sum[h])"),
}
FAULTS = (
    ("sum[h] = 0;", "sum[h] = 0"),
    ("scale[0] * float(", "bfloat(scale[0]) * float("),
    ("n < keys_shape[2]", "n <= keys_shape[2]"),
    ("n < keys_shape[2]", "n < keys_shape[2] - 1"),
    ("scale[0] * ", ""),
    ("sum[h] * shrink + weight", "sum[h] + weight"),
    ("first / GROUP * keys_strides", "first % GROUP * keys_strides"),
    ("= T(total", "= (total"),
)


def program(choices: tuple[str, ...], fault: tuple[str, str] = ("", "")) -> str:
    """The file attend.metal for a choice at each place, with a fault."""
    text = SOURCE
    for place, choice in zip(CHOICES, choices, strict=True):
        text = text.replace(place, choice)
    return text.replace(*fault)


STARTER = program(tuple(values[0] for values in CHOICES.values()))


def answers(count: int) -> list[str]:
    """What the model will say: a fourth has a fault, and what is drawn twice comes twice."""
    rng = random.Random(SEED)
    texts = []
    for _ in range(count):
        choices = tuple(rng.choice(values) for values in CHOICES.values())
        fault = rng.choice(FAULTS) if rng.random() < 0.25 else ("", "")
        texts.append(f"FILE attend.metal\n```metal\n{program(choices, fault)}```\n")
    return texts


class Model(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that says what was prepared; `asked` holds when."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.texts, self.asked, self.lock = texts, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    asked: list[float]

    def next(self) -> str:
        with self.lock:
            self.asked.append(time.monotonic())
            return self.texts[(len(self.asked) - 1) % len(self.texts)]


class _Handler(BaseHTTPRequestHandler):
    server: Model

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": self.server.next()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._say({"id": "0", "object": "chat.completion", "created": 0, "model": "scripted",
                   "choices": [choice], "usage": usage})  # fmt: skip

    def _say(self, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


# OpenEvolve's side: its evaluator asks the same worker, and keeps what it was told.
EVALUATOR = """
import json, os, subprocess, time

TEMPLATE = json.loads({request!r})
WORKER = None


def evaluate(path):
    global WORKER
    if WORKER is None or WORKER.poll() is not None:
        WORKER = subprocess.Popen({command!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, env={environment!r},
                                  start_new_session=True)
    TEMPLATE["kernel"]["sources"]["attend.metal"] = open(path).read()
    WORKER.stdin.write(json.dumps(TEMPLATE).encode() + b"\\n")
    WORKER.stdin.flush()
    said = json.loads(WORKER.stdout.readline())
    counters = said.get("counters") or {{}}
    score = 0.0 if said.get("cause") else counters["least_bytes"] / counters["moved_bytes"]
    with open({log!r}, "a") as file:
        file.write(json.dumps([said.get("cause", ""), score]) + "\\n")
    return {{"combined_score": score}}
"""
CONFIG = """
max_iterations: {iterations}
checkpoint_interval: 10
language: metal
file_suffix: .metal
diff_based_evolution: false
random_seed: {seed}
llm: {{api_base: "{url}", api_key: none, models: [{{name: scripted, weight: 1.0}}]}}
evaluator: {{timeout: 120, cascade_evaluation: false, parallel_evaluations: {jobs}}}
"""


def theirs(python: str, folder: Path, model: Model, jobs: int, stop: int = 0) -> dict[str, Any]:
    """OpenEvolve over all answers; stop: killed after so many, and gone on with."""
    folder.mkdir()
    budget, log = len(model.texts), folder / "evaluations.jsonl"
    kernel = Kernel.from_parts(META, {"attend.metal": STARTER})
    request = {"op": "check", "workload": WORKLOAD, "seed": SEED, "params": None}
    request["kernel"] = {"meta": dict(kernel.meta), "sources": {}}
    (folder / "starter.metal").write_text(STARTER)
    (folder / "evaluator.py").write_text(
        EVALUATOR.format(
            request=json.dumps(request),
            command=[sys.executable, "-m", "mlx_lm_openevolve.evolve.worker"],
            environment=_environment(folder),
            log=str(log),
        )
    )
    text = CONFIG.format(iterations=budget, seed=SEED, url=model.url, jobs=jobs)
    (folder / "config.yaml").write_text(text)
    command = [python, "-m", "openevolve.cli", "starter.metal", "evaluator.py"]
    command += ["--config", "config.yaml", "--output", "out"]
    _run(folder, command, {**os.environ, "OPENAI_API_KEY": "none"}, model, stop)
    if stop:
        saved = sorted((folder / "out/checkpoints").glob("*"), key=lambda p: int(p.name[11:]))
        at = int(saved[-1].name[11:]) if saved else 0
        again = ["--checkpoint", str(saved[-1])] if saved else []
        known = log.read_text().count("\n")
        _run(folder, [*command, *again, "--iterations", str(budget - at)], os.environ, model, 0)
        return {"evaluated_before": known, "kept": at, "requests": len(model.asked)}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return _row(model, [(cause, score) for cause, score in rows[1:]])  # the first is the starter


def ours(folder: Path, model: Model, jobs: int, stop: int = 0) -> dict[str, Any]:
    """The same for `evolve`."""
    folder.mkdir()
    budget, run = len(model.texts), folder / "run"
    Kernel.from_parts(META, {"attend.metal": STARTER}).save(folder / "starter")
    evolve = [sys.executable, "-m", "mlx_lm_openevolve", "evolve", "--no-publish"]
    begin = ["--backend", "host", "--workloads", WORKLOAD, "--kernels", str(folder / "starter")]
    begin += ["--proposer", "llm", "--llm", "scripted", "--candidates", str(budget + 1)]
    environment = {**_environment(folder), "OPENAI_BASE_URL": model.url}
    command = [*evolve, *begin, "--jobs", str(jobs), "--out", str(run)]
    _run(folder, command, environment, model, stop)
    archive = Archive.open(run, write=False)
    known = sum(archive.candidates[n].proposer == "llm" for n in archive.done)
    if stop:
        _run(folder, [*evolve, "--resume", str(run), "--jobs", str(jobs)], environment, model, 0)
        return {"evaluated_before": known, "kept": known, "requests": len(model.asked)}
    done = [(archive.done[n], archive.candidates[n]) for n in sorted(archive.done)]
    return _row(
        model,
        [
            (d.cause, d.results[WORKLOAD].score if d.results else 0.0)
            for d, candidate in done
            if candidate.proposer == "llm"
        ],
    )


def _environment(folder: Path) -> dict[str, str]:
    """That of our processes: an empty cache of compiled kernels."""
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": root, "MLX_LM_OPENEVOLVE_HOME": str(folder / "home")}


def _run(folder: Path, command: list[str], environment: Any, model: Model, stop: int) -> None:
    with (
        (folder / "log.txt").open("ab") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        while stop and len(model.asked) < stop and process.poll() is None:
            time.sleep(0.02)
        if stop:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _row(model: Model, done: list[tuple[str, float]]) -> dict[str, Any]:
    seconds = model.asked[-1] - model.asked[0]
    causes = [cause for cause, _ in done]
    return {
        "requests": len(model.asked),
        "evaluated": len(done),
        "a_minute": round(60 * (len(model.asked) - 1) / seconds, 1),
        "valid": round(causes.count("") / len(done), 3),
        "best_after": {n: round(max(s for _, s in done[:n]), 4) for n in MARKS if n <= len(done)},
        "failures": {cause: causes.count(cause) for cause in sorted(set(causes)) if cause},
    }


@contextlib.contextmanager
def endpoint(texts: list[str]) -> Iterator[Model]:
    """The scripted model, anew: the first request gets the first answer."""
    model = Model(texts)
    try:
        yield model
    finally:
        model.shutdown()
        model.server_close()


def main() -> None:
    """Print the comparison as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="that of an environment with openevolve")
    parser.add_argument("--answers", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    texts, half = answers(options.answers), options.answers // 2
    say = "import importlib.metadata as m; print(m.version('openevolve'))"
    their = subprocess.check_output([options.python, "-c", say], text=True).strip()
    found: dict[str, Any] = {
        "versions": {"openevolve": their, "mlx-lm-openevolve": version("mlx-lm-openevolve")},
        "answers": options.answers,
        "jobs": options.jobs,
        "cores": os.cpu_count(),
        "evolve": [],
        "openevolve": [],
        "killed": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for i in range(options.repeats):
            with endpoint(texts) as model:
                found["openevolve"].append(
                    theirs(options.python, folder / f"theirs-{i}", model, options.jobs)
                )
            with endpoint(texts) as model:
                found["evolve"].append(ours(folder / f"ours-{i}", model, options.jobs))
        with endpoint(texts) as model:
            killed = theirs(options.python, folder / "theirs", model, options.jobs, half)
            found["killed"]["openevolve"] = killed
        with endpoint(texts) as model:
            found["killed"]["evolve"] = ours(folder / "ours", model, options.jobs, half)
    text = json.dumps(found, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
