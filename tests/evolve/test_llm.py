"""The llm proposer against a scripted endpoint, and a run against a real mlx_lm.server."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import evolve_kernels
import pytest
from samples import needs_clang

from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import events, loop
from mlx_lm_openevolve.evolve.archive import Archive, Best
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Budget, Config, LanguageModel, LlmConfig, Search
from mlx_lm_openevolve.evolve.evaluation import Evaluation
from mlx_lm_openevolve.evolve.evaluator import LocalEvaluator
from mlx_lm_openevolve.evolve.prompt import effect
from mlx_lm_openevolve.evolve.propose import answers
from mlx_lm_openevolve.evolve.propose.llm import LlmProposer, connect
from mlx_lm_openevolve.evolve.propose.structural import WithParams
from mlx_lm_openevolve.evolve.publish import publish
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention.workload import Bucket

SMALL = Bucket(1, 4, 2, 1, 64, 64, 64, "bfloat16")
_WASTE = """float waste = 0.0f;
for (int j = 0; j < kv_len; ++j) {
  waste += float(k[j * keys_strides[2] + lane * keys_strides[3]]);
  waste += float(v[j * values_strides[2] + lane * values_strides[3]]);
}
"""
WASTEFUL = evolve_kernels.kernel(
    evolve_kernels.edited(
        ("float sum = 0.0f;\n", "float sum = 0.0f;\n" + _WASTE),
        ("T(result)", "T(result + 0.0f * waste)"),
    ),
)
SAVED = f"""NOTE: keys and values are read once

EDIT plain.metal
<<<<<<< SEARCH
{_WASTE}=======
>>>>>>> REPLACE
<<<<<<< SEARCH
T(result + 0.0f * waste)
=======
T(result)
>>>>>>> REPLACE
""".replace("T(result + 0.0f * waste)\n", "lane + 32 * e] = T(result + 0.0f * waste);\n").replace(
    "=======\nT(result)\n", "=======\nlane + 32 * e] = T(result);\n"
)
# The SEARCH of a part of a line: what stands before it in the kernel stays.
NO_COMPILE = SAVED.replace("= T(result);", "= result;").replace("NOTE:", "NOTE: bfloat,")
REPAIR = """NOTE: stored with T()

EDIT plain.metal
<<<<<<< SEARCH
lane + 32 * e] = result;
=======
lane + 32 * e] = T(result);
>>>>>>> REPLACE
"""

Reply = Callable[[BaseHTTPRequestHandler], None]


def says(text: str, finish: str = "stop", usage: bool = True) -> Reply:
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text},
            }
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}

    def reply(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, json.dumps(body))

    return reply


def fails(status: int, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        send(handler, status, '{"error": {"message": "no"}}', headers)

    return reply


def hangs(seconds: float) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)

    return reply


def send(
    handler: BaseHTTPRequestHandler, status: int, body: str, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body.encode())


class Endpoint:
    """An endpoint that gives its replies in turn, the last one again and again."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.lists = fails(404)
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                endpoint.asked.append(json.loads(self.rfile.read(length)))
                at = min(len(endpoint.asked), len(endpoint.replies)) - 1
                endpoint.replies[at](self)

            def do_GET(self) -> None:
                endpoint.lists(self)

            def log_message(self, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.asked]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    made = Endpoint()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    yield made
    made.server.shutdown()
    made.server.server_close()


class Unmeasured:
    """An evaluator for which everything works and nothing is faster: for the endpoint's sake."""

    def baselines(self, archive: Archive) -> Iterator[events.Baseline]:
        for slug in archive.slugs:
            yield events.Baseline(slug, 2e-5, 1e-6, "memory")

    def run(self, archive: Archive, batch: list[Candidate]) -> Iterator[tuple[int, Evaluation]]:
        for candidate in batch:
            yield candidate.number, Evaluation("wrong", "unmeasured")


def create(tmp_path: Path, *, candidates: int, budget: Budget | None = None, **llm: Any) -> Archive:
    config = Config(
        "host",
        (SMALL,),
        (1.0,),
        proposer="llm",
        budget=budget or Budget(candidates=candidates),
        search=Search(tune_after=0, batch=1),
        llm=replace(LlmConfig(models=(LanguageModel("m", 1, 2.0, 10.0),), timeout=1.0), **llm),
    )
    return Archive.create(tmp_path / "run", config, {})


def ask(archive: Archive, seeds: list[Kernel], bench: Any = None) -> tuple[str, list[float]]:
    """Run to the end; why it stopped, and the pauses that were made."""
    pauses: list[float] = []
    proposer = WithParams(LlmProposer(seeds, sleep=pauses.append), seeds)
    try:
        return loop.evolve(archive, proposer, bench or Unmeasured(), lambda a: None), pauses
    finally:
        archive.close()


def causes(archive: Archive) -> list[str]:
    return [archive.done[n].cause for n in sorted(archive.done) if n > 1]  # 1 is the seed


def test_429_and_500_are_retried_with_growing_pauses(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.replies = [fails(429, Retry_After="7"), fails(500), fails(503), says("nothing")]
    archive = create(tmp_path, candidates=2)
    reason, pauses = ask(archive, [WASTEFUL])
    assert reason == "2 candidates are done"
    assert causes(archive) == ["answer"]
    assert pauses == [7.0, 14.0, 28.0]  # as asked, then twice as long each time
    assert len(endpoint.asked) == 4


def test_an_endpoint_that_hangs_is_a_recorded_failure_and_then_the_end(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.replies = [hangs(1.5)]
    archive = create(tmp_path, candidates=9, timeout=0.3, retries=1, failures=2)
    reason, _ = ask(archive, [WASTEFUL])
    assert reason == "the endpoint failed 2 times in a row: no answer within 0.3 s"
    assert causes(archive) == ["endpoint", "endpoint"]


def test_a_refused_key_is_not_retried(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.replies = [fails(401)]
    archive = create(tmp_path, candidates=9, failures=2)
    reason, pauses = ask(archive, [WASTEFUL])
    assert reason.startswith("the endpoint failed 2 times in a row: HTTP 401")
    assert pauses == []


def test_truncated_and_empty_answers_are_failures_with_their_cost(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.replies = [says(SAVED[:80], finish="length"), says("  "), says("", usage=False)]
    archive = create(tmp_path, candidates=4)
    ask(archive, [WASTEFUL])
    assert causes(archive) == ["truncated", "empty", "empty"]
    assert archive.candidates[2].cost["money"] == pytest.approx((1000 * 2 + 100 * 10) / 1e6)
    assert archive.candidates[4].cost["tokens_in"] > 100  # estimated


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(tokens=2000), "the budget is spent: 2200 of 2000 tokens"),
        (Budget(money=0.005), "the budget is spent: 0.006 of 0.005 money"),
    ],
)
def test_a_spent_budget_ends_the_run(
    tmp_path: Path, endpoint: Endpoint, budget: Budget, reason: str
) -> None:
    endpoint.replies = [says("rubbish")]
    archive = create(tmp_path, candidates=0, budget=budget)
    assert ask(archive, [WASTEFUL])[0] == reason
    assert causes(archive) == ["answer", "answer"]


def test_without_a_key_or_an_endpoint_of_ones_own_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        ask(create(tmp_path, candidates=2), [WASTEFUL])


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "OPENAI_API_KEY, or OPENAI_BASE_URL"),
        (
            {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
            r"127\.0\.0\.1:9/v1: no connection: .*refused",
        ),
        ({"OPENAI_BASE_URL": "no address"}, "no address: no connection"),
    ],
)
def test_what_cannot_be_asked_is_one_line_at_once_and_no_folder(
    variables: dict[str, str],
    says: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    words = ["--backend", "host", "--workloads", SMALL.slug, "--proposer", "llm", "--llm", "m"]
    assert main(["evolve", *words]) == 2
    assert time.monotonic() - began < 10
    out, err = capsys.readouterr()
    assert re.search(says, err)
    assert (out, err.count("\n")) == ("", 1)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OPENAI_BASE_URL", "http://[::bad", "Invalid port"),
        ("OPENAI_API_KEY", "k\u00e9y", "holds characters that no key has"),
        ("OPENAI_API_KEY", "a\nsecret", "holds characters that no key has"),
    ],
)
def test_what_no_request_can_be_made_of_is_told_before_a_run(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """Also where the model is named, so that nobody needs to list any."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=says) as raised:
        connect(LlmConfig(models=(LanguageModel("m"),)))
    assert "secret" not in str(raised.value)


def test_an_endpoint_that_refuses_the_key_is_told_before_a_run(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LlmConfig(models=(LanguageModel("m"),))
    assert connect(settings)[1] == settings.models, "it lists no models, and need not"
    with pytest.raises(UsageError, match="names no model, give --llm"):
        connect(LlmConfig())
    endpoint.lists = fails(401)
    with pytest.raises(UsageError, match="refuses OPENAI_API_KEY: HTTP 401"):
        connect(settings)


def test_an_endpoint_that_dies_is_waited_for_once_and_says_why(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.replies = [fails(503)]
    archive = create(tmp_path, candidates=9)
    said: list[str] = []
    pauses: list[float] = []
    proposer = LlmProposer([WASTEFUL], say=said.append, sleep=pauses.append)
    reason = loop.evolve(archive, WithParams(proposer, [WASTEFUL]), Unmeasured(), lambda a: None)
    archive.close()
    assert reason.startswith("the endpoint failed 5 times in a row: HTTP 503")
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert len(endpoint.asked) == 5 + 4
    assert all("HTTP 503" in line and "asked again in" in line for line in said)
    assert len(said) == 4


def test_models_are_asked_by_their_weights(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.replies = [says("rubbish")]
    archive = create(tmp_path, candidates=31, models=(LanguageModel("a", 9), LanguageModel("b", 1)))
    ask(archive, [WASTEFUL])
    names = [request["model"] for request in endpoint.asked]
    assert names.count("a") > names.count("b") > 0


def test_the_questions_of_a_batch_are_asked_side_by_side(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    """Each answer waits until all three are asked for."""
    together = threading.Barrier(3)

    def reply(handler: BaseHTTPRequestHandler) -> None:
        together.wait(10)
        says("rubbish")(handler)

    endpoint.replies = [reply]
    archive = create(tmp_path, candidates=4, timeout=20.0)
    archive.config = replace(archive.config, search=Search(tune_after=0, batch=3))
    assert ask(archive, [WASTEFUL])[0] == "4 candidates are done"
    assert causes(archive) == ["answer"] * 3
    assert len(endpoint.asked) == 3


def test_the_repair_turn_hands_the_exact_finding_back_once(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.replies = [says("rubbish")]
    archive = create(tmp_path, candidates=4)
    ask(archive, [WASTEFUL])
    assert [archive.candidates[n].repairs for n in (2, 3, 4)] == [0, 2, 0]
    assert "neither a FILE with a code block nor an EDIT" in endpoint.prompts[1]
    assert "Repair this" in endpoint.prompts[1]
    assert "Repair this" not in endpoint.prompts[2]


@needs_clang
def test_an_improving_edit_is_found_credited_and_published(
    tmp_path: Path, endpoint: Endpoint, home: Path
) -> None:
    endpoint.replies = [says(NO_COMPILE), says(REPAIR), says("rubbish")]
    archive = create(tmp_path, candidates=3)
    with LocalEvaluator(archive) as evaluator:
        ask(archive, [WASTEFUL], evaluator)
    seed, broken, mended = (archive.candidates[n] for n in (1, 2, 3))
    assert (seed.kernel, seed.proposer) == (WASTEFUL.id, "seed")
    # A float stored as bfloat: refused as Metal refuses it, and mended in one turn.
    assert archive.done[2].cause in ("strict", "compile")
    assert "bfloat" in archive.done[2].finding
    assert archive.done[2].finding.splitlines()[0].split(": ", 1)[1] in endpoint.prompts[1]
    assert mended.repairs == 2
    assert mended.parent == broken.kernel
    assert archive.done[3].cause == ""
    # Credited against the seed, found the best, and its origin names run and candidate.
    assert effect(archive, mended.kernel, WASTEFUL.id) > 1.05
    assert archive.best[SMALL.slug][0] == mended.kernel
    assert archive.load(mended.kernel).origin == "run run candidate 3"

    again = Archive.open(archive.folder)
    again.best[SMALL.slug] = Best(mended.kernel, archive.done[3].results[SMALL.slug], 3)
    fast = replace(archive.done[3].results[SMALL.slug], ratio=1.5, low=1.4, high=1.6)
    again.kernel_best[mended.kernel][SMALL.slug] = fast
    (event,) = publish(again, [Registry(home)])
    again.close()
    assert (event.kernel, event.device, event.correct) == (mended.kernel, "host", True)
    (verdict,) = Registry(home).verdicts("host", SMALL)
    assert verdict.correct
    assert not verdict.faster  # the host proves, it never measures
    assert Registry(home).host_checks(mended.kernel)[0]["ok"]
    assert Registry(home).devices() == ["host"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_real_server_with_a_tiny_random_model_drives_a_whole_run(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(tiny_folder)]
    command += ["--port", str(port), "--log-level", "WARNING"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as server:
        try:
            await_server(port, server)
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
            archive = create(
                tmp_path,
                candidates=4,
                models=(LanguageModel(str(tiny_folder)),),
                context=1200,
                answer=24,
                timeout=120.0,
            )
            reason, _ = ask(archive, [WASTEFUL])
        finally:
            server.kill()
            server.communicate()
    assert reason == "4 candidates are done"
    assert len(causes(archive)) == 3
    assert set(causes(archive)) <= {"answer", "truncated", "empty"}
    assert all(archive.candidates[n].cost["tokens_out"] > 0 for n in (2, 3, 4))


def await_server(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, server.communicate()[1][-400:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


LONG = 100_000
HOSTILE = {
    "newlines": "\n" * LONG,
    "stars": "*\n" * LONG,
    "hashes": "#" * LONG + "\n" + "#\n" * LONG,
    "a name behind spaces": " " * LONG + "FILE",
    "searches": "<<<<<<< SEARCH\n" * LONG,
    "searches without an end": "EDIT copy.metal\n" + "<<<<<<< SEARCH\n=======\n" * (LONG // 2),
    "ends": ">>>>>>> REPLACE\n" * LONG,
    "files without an end": "FILE a.metal\n" * LONG + "```\n",
    "notes": "NOTE" + ":" * LONG + "\n" * LONG,
    "blank lines below a file": ("FILE a.metal\n" + "\n" * 1000) * 100,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_costs_what_its_length_does(copy_first: Kernel, text: str) -> None:
    start = time.process_time()
    with pytest.raises(answers.AnswerError):
        answers.apply(text, copy_first, "test")
    answers.note_of(text)
    answers.parent_of(text)
    assert time.process_time() - start < 2.0


def test_edits_and_files_are_read_in_their_order(copy_first: Kernel) -> None:
    source = copy_first.sources["copy.metal"]
    first, second = source.splitlines(keepends=True)[1:3]
    text = (
        f"NOTE: three things\nEDIT `copy.metal`\n<<<<<<< SEARCH\n{first}=======\n// 1\n{first}"
        f">>>>>>> REPLACE\nand\n<<<<<<< SEARCH\n{second}=======\n>>>>>>> REPLACE\n"
    )
    made = answers.apply(text, copy_first, "test")
    assert made.sources["copy.metal"] == source.replace(first, "// 1\n" + first).replace(second, "")
    whole = f"**FILE copy.metal**\n\n```metal\n// EDIT x.metal\n{source}```\nNOTE: all of it\n"
    made = answers.apply(whole, copy_first, "test")
    assert made.sources["copy.metal"] == f"// EDIT x.metal\n{source}"
    assert answers.note_of(whole) == "all of it"
    with pytest.raises(answers.AnswerError, match="without a line EDIT"):
        answers.apply(text.replace("EDIT", "In"), copy_first, "test")


def test_a_note_of_any_size_is_read_to_its_beginning(copy_first_folder: Path) -> None:
    note = copy_first_folder / "note.txt"
    with note.open("wb") as file:
        file.write(b"fewer loads")
        file.truncate(1 << 30)  # sparse
    start = time.process_time()
    _, text = answers.from_folder(copy_first_folder, "test")
    assert text.startswith("fewer loads")
    assert len(text) <= 300
    assert time.process_time() - start < 1.0
    note.unlink()
    os.mkfifo(note)
    assert answers.from_folder(copy_first_folder, "test")[1] == ""
