"""The loop on the host backend: a whole run, a kill at any moment, the report."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import evolve_kernels
import filelock
import pytest
from rich.console import Console
from samples import needs_clang

from mlx_lm_openevolve.errors import KernelError, UsageError
from mlx_lm_openevolve.evolve import commands, options, progress
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.events import Evaluated
from mlx_lm_openevolve.evolve.report import pass_at
from mlx_lm_openevolve.kernels.registry import Registry

pytestmark = needs_clang
SLUG = evolve_kernels.DECODE.slug


def parse(*argv: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_evolve_arguments(parser)
    return parser.parse_args([str(a) for a in argv])


def run(*argv: object) -> tuple[int, dict[str, Any], str]:
    out = Console(file=io.StringIO(), record=True, width=200)
    code, result = commands.evolve(parse(*argv), out)
    return code, result, out.export_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    evolve_kernels.kernel().save(tmp_path / "kernel")
    return tmp_path / "kernel"


def test_a_run_with_tune_needs_no_key_and_no_network(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--backend", "host", "--workloads", SLUG, "--kernels", folder)
    code, result, text = run(*arguments, "--candidates", 3, "--out", out, "--no-publish")
    assert result["candidates"] == 3
    assert {"run", "candidates", "best", "ratio"} <= result.keys()
    assert code == 0
    assert (result["ratio"], result["low"], result["high"]) == (None, None, None)
    assert result["best"][SLUG]["moved_bytes"] > result["best"][SLUG]["least_bytes"] > 0
    assert "x the least bytes" in text
    assert (
        "nothing is published here (nothing is timed without a GPU)"
        in run("--resume", out, "--kernels", folder)[2]
    )
    assert not Registry(commands.user_root()).devices()
    kinds = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert kinds[:2] == ["start", "proposed"]
    assert "baseline" not in kinds
    assert kinds.count("done") == 3
    assert kinds[-1] == "end"
    _, more, _ = run("--resume", out, "--candidates", 4, "--no-publish")
    assert more["candidates"] == 4
    archive = Archive.open(out, write=False)
    assert {archive.load(id).name for id in archive.kernels} == {"plain"}  # what it began with

    parser = argparse.ArgumentParser()
    options.add_report_arguments(parser)
    pytest.importorskip("matplotlib")
    asked = parser.parse_args([str(out), "--out", str(tmp_path / "page")])
    code, report = commands.report(asked, Console(file=io.StringIO()))
    page = (tmp_path / "page" / "report.html").read_text()
    assert code == 0
    assert "nothing is timed, and nothing of this is published" in page
    assert "speed-up" not in page
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert len(report["files"]) == 5
    view = Console(width=120, record=True, file=io.StringIO())
    view.print(progress.picture(Archive.open(out, write=False), 12.0))
    assert "12.0 a minute" in view.export_text()


# The command in a process of its own.
SCRIPT = (
    "import sys, argparse\n"
    "from rich.console import Console\n"
    "from mlx_lm_openevolve.evolve import commands, options\n"
    "parser = argparse.ArgumentParser(); options.add_evolve_arguments(parser)\n"
    "commands.evolve(parser.parse_args(sys.argv[1:]), Console())\n"
)


def test_two_runs_at_once_each_find_what_is_theirs(tmp_path: Path, folder: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "other"]
    words = ["--backend", "host", "--workloads", SLUG, "--kernels", str(folder)]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words, "--candidates", "3", "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for out in outs
    ]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    for out in outs:
        archive = Archive.open(out, write=False)
        assert set(archive.done) == {1, 2, 3}
        assert archive.ended == "3 candidates are done"


def test_a_run_that_is_under_way_is_not_resumed(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    words = ("--kernels", folder, "--no-publish")
    run("--backend", "host", "--workloads", SLUG, *words, "--candidates", 1, "--out", out)
    with filelock.FileLock(out / ".lock"), pytest.raises(UsageError, match="by another process"):
        run("--resume", out, *words, "--candidates", 2)
    assert set(Archive.open(out, write=False).done) == {1}


def test_a_run_that_goes_on_keeps_what_it_began_with(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    begun = ("--backend", "host", "--workloads", SLUG, "--proposer", "params")
    tail = ("--kernels", folder, "--no-publish", "--candidates", 1)
    run(*begun, *tail, "--out", out)
    before = (out / "events.jsonl").read_text()
    for name, value in (
        *(("backend", "cuda"), ("target", "1.2:0.5"), ("workloads", "decode"), ("llm", "m")),
        *(("model", "m"), ("proposer", "mailbox"), ("explore", "0.5"), ("out", tmp_path / "b")),
    ):
        with pytest.raises(UsageError, match=f"^--{name} with --resume: a run keeps"):
            run("--resume", out, f"--{name}", value, *tail)
    assert (out / "events.jsonl").read_text() == before
    assert run("--resume", out, *begun, *tail)[1]["candidates"] == 1


def test_a_kill_at_any_moment_loses_and_repeats_nothing(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--kernels", str(folder), "--no-publish"]
    first = ["--backend", "host", "--workloads", SLUG, "--candidates", "6", "--out", str(out)]
    done: set[int] = set()
    for turn, argv in enumerate((first, ["--resume", str(out)], ["--resume", str(out)])):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *argv, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            events = out / "events.jsonl"
            seen = events.read_text().count('"event":"done"') if events.exists() else 0
            if turn < 2 and seen > len(done):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.wait(timeout=120)
        archive = Archive.open(out, write=False)
        assert done <= set(archive.done)
        done = set(archive.done)
        numbers = [e.number for e in archive.journal.events if isinstance(e, Evaluated)]
        assert len(numbers) == len(set(numbers))  # none was run to its end twice
    assert done == {1, 2, 3, 4, 5, 6}
    assert archive.ended == "6 candidates are done"
    settings = [(*(c.params or {}).items(), c.kernel) for c in archive.candidates.values()]
    assert len(set(settings)) == 6


def test_answers_in_the_mailbox_are_kernels_edits_and_failures(
    tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "run"
    answers = out / "answers"
    answers.mkdir(parents=True)
    faster = evolve_kernels.kernel(evolve_kernels.BODY.replace("exp(", "fast::exp("))
    faster.save(answers / "a")
    (answers / "a" / "note.txt").write_text("fast exponentials")
    (answers / "b.md").write_text("I would rather not.")
    (answers / "c.md").write_text(
        "NOTE: nothing new\nEDIT plain.metal\n<<<<<<< SEARCH\nfloat sum = 0.0f;\n=======\n"
        "float sum = 0.0f;  // the sum\n>>>>>>> REPLACE\n"
        f"PARENT {evolve_kernels.kernel().id}\n"
    )
    for path in [answers, *answers.rglob("*")]:
        os.utime(path, (1, 1))
    _, result, _ = run(
        *("--backend", "host", "--workloads", SLUG, "--kernels", folder, "--no-publish"),
        *("--proposer", "mailbox", "--wait", "1s", "--out", out, "--candidates", 99),
    )
    archive = Archive.open(out, write=False)
    by_answer = {c.cost.get("answer"): c for c in archive.candidates.values()}
    assert archive.done[by_answer["a"].number].cause == ""
    assert by_answer["a"].note == "fast exponentials"
    assert archive.done[by_answer["b.md"].number].cause == "answer"
    assert archive.done[by_answer["c.md"].number].cause == "duplicate"
    assert "nobody answered" in result["stopped"]
    # The knobs of the kernel that worked were turned afterwards.
    tuned = [c for c in archive.candidates.values() if c.proposer == "params"]
    assert {c.kernel for c in tuned} == {by_answer["a"].kernel}
    (asked,) = (out / "prompts").iterdir()  # once no answer was left
    assert int(asked.stem) == max(archive.candidates) + 1
    prompt = asked.read_text()
    assert "bfloat has no implicit conversion" in prompt
    assert SLUG in prompt


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--workloads", "decoed"), "is no suite"),
        (("--resume", "/nowhere"), "holds no run"),
        (("--insecure",), "are for --scheduler"),
        (("--tls-ca", "ca.pem"), "are for --scheduler"),
        (("--budget", "soon"), "is no duration"),
        (("--target", "2"), "SPEEDUP:SHARE"),
        (("--target", "1.2:0.8"), "nothing is timed without a GPU"),
        (("--explore", "2"), "between 0 and 1"),
        (("--seed", "-1"), "--seed -1: it must not be negative"),
        (("--llm", "x,heavy"), "is no NAME"),
        (("--candidates", "-1"), "not negative"),
        (("--candidates", "0"), "--candidates 0: a number above 0"),
        (("--tokens", "0"), "--tokens 0"),
        (("--money", "nan"), "--money nan"),
        (("--jobs", "0"), "--jobs 0"),
        (("--context", "100"), "room in --context"),
        (("--timeout", "inf"), "--timeout inf"),
        (("--wait", "soon"), "is no duration"),
        (("--budget", "9" * 400), "is no duration"),
        (("--target", "nan:1"), "SPEEDUP:SHARE"),
        (("--target", "1:2"), "SPEEDUP:SHARE"),
        (("--llm", "x,nan"), "above 0"),
        (("--kernels", "/nowhere"), r"kernel\.json"),
        (("--workloads", "attention-b1-hq4-hkv3-lq1-lk64-d64-v64-float16-none"), "do not divide"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    argv: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, KernelError), match=words):
        run(*argv, "--backend", "host")
    assert not list((tmp_path / "home").glob("runs/*"))


def test_a_workload_that_no_kernel_serves_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="no kernel to begin with applies"):
        run(
            *("--backend", "host", "--kernels", folder, "--out", tmp_path / "run"),
            *("--workloads", "attention-b1-hq8-hkv8-lq2048-lk2048-d64-v64-float16-causal"),
        )


def test_pass_at_k() -> None:
    assert pass_at(0, 10, 3) == 0
    assert pass_at(10, 10, 1) == 1
    assert pass_at(5, 10, 1) == pytest.approx(0.5)
    assert pass_at(1, 10, 10) == 1


def test_a_candidate_reads_back(tmp_path: Path) -> None:
    candidate = Candidate(3, "llm", "0123456789ab", ("a", "b"), {"x": 0}, cost={"money": 0.5})
    assert Candidate.from_json(candidate.to_json()) == candidate
