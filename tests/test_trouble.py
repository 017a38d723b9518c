"""What can go wrong on a user's machine: one clear line, a documented exit code, nothing lost.

Ctrl-C at any moment, a full disk, a compiler that is missing, killed or cannot write. What is said
of a model that cannot be found is in test_hub.py, and of standard output in test_cli.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlx_messages import KERNELS, MACHINES, TIMEOUTS
from samples import shipped_in_metal, store_correct

from mlx_lm_openevolve import backends, ops, processes
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import MachineError
from mlx_lm_openevolve.gate import judge as gate_judge
from mlx_lm_openevolve.gate import worker as gate_worker
from mlx_lm_openevolve.gate.judge import judge
from mlx_lm_openevolve.gate.limits import Clock
from mlx_lm_openevolve.gate.worker import judge_in_worker
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Poisoned
from mlx_lm_openevolve.ops.attention.workload import Bucket
from mlx_lm_openevolve.runtime.planner import FAILED, MAX_TIMEOUTS, Judges, Planner, advised

DECODE = Bucket(1, 4, 2, 1, 64, 64, 64, "bfloat16")
SAYS = "mlx-lm-openevolve: "
# Says when the program's first own line runs: what comes before is Python's own.
PROGRAM = (
    "import sys; from mlx_lm_openevolve.__main__ import main; print('on', flush=True);"
    "sys.exit(main())"
)


@pytest.fixture
def kernel() -> Kernel:
    return next(k for k in shipped_in_metal() if k.applies_to(DECODE))


@pytest.fixture
def folder(kernel: Kernel, tmp_path: Path) -> str:
    kernel.save(tmp_path / "kernel")
    return str(tmp_path / "kernel")


# Ctrl-C


def interrupted(seconds: float, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command and press Ctrl-C after some seconds: SIGINT to the whole process group."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    time.sleep(seconds + 0.005)  # from the mark to main() it is Python's own too
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def is_one_line(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether it was interrupted as documented; False where it had ended before."""
    if done.returncode in (0, 1):
        return False
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == f"{SAYS}interrupted", done.stderr
    assert done.returncode == 130
    return True


def planner_of(home: Path, kernel: Kernel) -> Planner:
    """A planner that gates one kernel on the host."""
    judges = Judges(judge, judge_in_worker)
    return Planner(
        detect("host"), [Registry(home)], judges=lambda: judges, require_faster=False, only=kernel
    )


def children(mark: str) -> list[str]:
    """Command lines of the living processes with that word in their environment (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.with_name("cmdline").read_text().replace("\0", " ")[:200])
        except OSError:
            continue
    return [line for line in found if line and "pytest" not in line]


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing that a test started may outlive it."""
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    yield
    for _ in range(50):
        left = children(f"STARTED_BY={tmp_path}")
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"still alive: {left}")


def test_check_can_be_interrupted(mark: None, folder: str) -> None:
    command = ["check", folder, "--backend", "host"]
    hits = [is_one_line(interrupted(seconds, *command)) for seconds in (0, 0.1, 0.3, 1.5)]
    assert any(hits[:2])


def test_bench_can_be_interrupted(mark: None, tiny_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = ["bench", "--model", str(tiny_folder), "--backend", "host", "--any-correct"]
    command += ["-p", "12", "-g", "4", "-n", "1", "--output", str(output)]
    hits = [is_one_line(interrupted(seconds, *command)) for seconds in (0, 0.4, 1.5)]
    assert any(hits[:2])
    assert json.loads(output.read_text())["cases"] == []


@pytest.mark.parametrize(
    ("body", "again"),
    [
        ("    try: signal.raise_signal(2)\n    except KeyboardInterrupt: pass\n", 0.1),
        ("    class A:\n        def __del__(self): signal.raise_signal(2)\n    A()\n", 30),
    ],
    ids=["by an extension", "in a callback"],
)
def test_an_interrupt_that_is_dropped_comes_again(body: str, again: float) -> None:
    """MLX drops what is raised while it reads a numpy array; any extension module may."""
    code = (
        "from mlx_lm_openevolve import __main__\nfrom mlx_lm_openevolve.cli import main as cli\n"
        "import signal, time\n"
        f"def deaf(argv=None):\n{body}    time.sleep(60)\n"
        f"cli.main, __main__.AGAIN = deaf, {again}\n"
        "raise SystemExit(__main__.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, f"{SAYS}interrupted\n")


def test_run_can_be_interrupted_before_the_command_starts(mark: None) -> None:
    done = interrupted(0, "run", "mlx_lm.generate", "--help")
    assert is_one_line(done) or done.returncode in (0, -signal.SIGINT)


def test_evolve_can_be_interrupted_and_goes_on(mark: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--backend", "host", "--no-publish", "--jobs", "1", "--workloads", DECODE.slug]
    hits = []
    for seconds in (0, 0.3, 1.0, 2.5):
        resume = (out / "events.jsonl").exists()
        which = ["--resume", str(out)] if resume else ["--out", str(out), *words]
        if resume:
            which.append("--no-publish")
        hits.append(is_one_line(interrupted(seconds, "evolve", *which, "--candidates", "400")))
    assert all(hits)
    events = (out / "events.jsonl").read_text()
    assert all(json.loads(line) for line in events.splitlines())
    before = events.count('"event":"done"')
    more = ["--candidates", str(before + 1), "--no-publish", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "evolve", "--resume", str(out), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["candidates"] >= before + 1


def test_a_registry_is_whole_after_ctrl_c(mark: None, home: Path, kernel: Kernel) -> None:
    """Publishing verdicts without end, ended by Ctrl-C at some moment."""
    code = (
        "import signal, sys; sys.path.insert(0, 'tests/support')\n"
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from samples import store_correct, shipped_in_metal\n"
        "from mlx_lm_openevolve import ops\n"
        f"w = ops.parse({DECODE.slug!r}).bucket()\n"
        "k = next(k for k in shipped_in_metal() if k.applies_to(w))\n"
        "while True:\n"
        f"    store_correct(Path({str(home)!r}), k, [w]); print('on', flush=True)\n"
    )
    for seconds in (0.0, 0.01, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        time.sleep(seconds)
        # Python drops an interrupt that arrives in a destructor: one presses again.
        for left in reversed(range(10)):
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=3)
                break
            except subprocess.TimeoutExpired:
                if not left:
                    raise
        (verdict,) = Registry(home).verdicts("host", DECODE)
        assert verdict.reason == "stored by a test"
    assert not (home / "v2" / "quarantine").exists()
    store_correct(home, kernel, [DECODE])  # no lock was left behind


def test_a_worker_that_ctrl_c_reaches_is_no_fault_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    """It lives in a session of its own: SIGINT to the group of the one who asked misses it."""
    seen = {}
    real = subprocess.Popen

    def watched(*args: Any, **named: Any) -> Any:
        seen.update(named)
        return real(*args, **named)

    monkeypatch.setattr(processes.subprocess, "Popen", watched)
    params = kernel.default_params(DECODE)
    assert judge_in_worker(kernel, params, DECODE, "host", seconds=120).correct
    assert seen["start_new_session"]


def test_an_interrupt_in_disguise_rejects_no_kernel(
    kernel: Kernel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean-up that fails on the way out of Ctrl-C, such as closing a mapping that is in use."""

    def build(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise BufferError("cannot close exported pointers exist")

    monkeypatch.setattr(backends.get("host"), "build", build)
    planner = planner_of(home, kernel)
    with pytest.raises(KeyboardInterrupt):
        planner.plan(DECODE)
    assert Registry(home).verdicts("host", DECODE) == []


# A full disk


class Full:
    """A disk that takes `writes` more and is full then: os.fsync stands for it."""

    def __init__(self, writes: int) -> None:
        self.left, self.real = writes, os.fsync

    def __call__(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.real(descriptor)


def test_evolve_on_a_full_disk_goes_on_when_there_is_room_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    words = ["--backend", "host", "--no-publish", "--jobs", "1", "--workloads", DECODE.slug]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", Full(4))
        assert main(["evolve", "--out", out, *words, "--candidates", "2"]) == 2
    said = capsys.readouterr().err
    assert "No space left on device; nothing before this is lost" in said
    assert "Traceback" not in said
    code = main(["evolve", "--resume", out, "--no-publish", "--candidates", "2", "--json"])
    assert code in (0, 1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["candidates"] >= 2


def test_a_verdict_that_cannot_be_stored_is_kept_for_the_process(
    home: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planner = planner_of(home, kernel)
    monkeypatch.setattr(os, "fsync", Full(0))
    plan = planner.plan(DECODE)
    assert "No space left" in caplog.text
    assert plan.kernel == kernel
    assert Registry(home).verdicts("host", DECODE) == []


def test_what_the_machine_does_wrong_is_not_held_against_a_kernel(
    home: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MachineError("/cache: No space left on device")

    monkeypatch.setattr(backends.get("host"), "build", full)
    with pytest.raises(MachineError):
        judge(kernel, kernel.default_params(DECODE), DECODE, "host", seconds=60)
    # In a user's generation it is a reason for SDPA, and nothing is stored.
    planner = planner_of(home, kernel)
    plan = planner.plan(DECODE)
    assert plan.kernel is None
    assert plan.reason == "pending: /cache: No space left on device"
    assert Registry(home).verdicts("host", DECODE) == []


# What MLX says of the machine


def raising(text: str, calls: list[str]) -> Any:
    def build(*_: object, **__: object) -> None:
        calls.append(text)
        raise RuntimeError(text)

    return build


@pytest.mark.parametrize("text", [*MACHINES, *TIMEOUTS])
def test_trouble_of_the_machine_is_pending_and_not_tried_for_ever(
    text: str, home: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, asked = " ".join(text.split()), []  # type: ignore[var-annotated]
    with monkeypatch.context() as patched:
        patched.setattr(backends.get("host"), "build", raising(text, asked))
        plans = [planner_of(home, kernel).plan(DECODE) for _ in range(MAX_TIMEOUTS + 2)]
    assert all(plan.kernel is None for plan in plans)
    tried, left = plans[:MAX_TIMEOUTS], plans[MAX_TIMEOUTS:]
    assert [plan.reason for plan in tried] == [f"pending: {line}"] * MAX_TIMEOUTS
    assert [plan.reason for plan in left] == [
        advised(FAILED.format(MAX_TIMEOUTS, line), "host")
    ] * 2
    assert len(asked) == MAX_TIMEOUTS
    assert Registry(home).verdicts("host", DECODE) == []
    assert Registry(home).poisoned("host") == {}


def test_the_kernel_is_served_once_the_machine_is_well_again(
    home: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(backends.get("host"), "build", raising(MACHINES[0], []))
        assert planner_of(home, kernel).plan(DECODE).kernel is None
    assert planner_of(home, kernel).plan(DECODE).kernel == kernel


@pytest.mark.parametrize("text", KERNELS)
def test_what_a_kernel_does_by_itself_is_a_stored_rejection(
    text: str, home: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(backends.get("host"), "build", raising(text, asked))
    plans = [planner_of(home, kernel).plan(DECODE) for _ in range(2)]
    first = text.splitlines()[0]
    for plan in plans:
        assert plan.kernel is None
        assert plan.reason.startswith("rejected: ")
        assert first in plan.reason
    assert len(asked) == 1
    (verdict,) = Registry(home).verdicts("host", DECODE)
    assert not verdict.correct


@pytest.mark.parametrize("at", ["compare", "try_mutants"])
def test_trouble_while_timing_or_with_a_mutant_is_no_rejection(
    at: str, home: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutant that found no memory was not seen to be wrong."""
    monkeypatch.setattr(gate_judge, "_trials", {})
    if at == "compare":
        monkeypatch.setattr(gate_judge, "compare", raising(MACHINES[0], []))
    else:
        family = type(ops.of(DECODE).questions.correct)
        monkeypatch.setattr(family, "build", raising(MACHINES[0], []))
    clock, device = Clock(120), detect("host")
    params = kernel.default_params(DECODE)
    with pytest.raises(MachineError, match="Insufficient Memory"):
        gate_judge.judge_calls(
            lambda exact: backends.get("host").build(kernel, params, exact), DECODE, device, clock
        )


def test_a_fault_that_ends_the_device_leaves_the_rejection_standing(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access nothing works, the synchronisation at the end neither."""

    @contextlib.contextmanager
    def dead() -> Iterator[None]:
        yield
        raise RuntimeError(MACHINES[2])

    monkeypatch.setattr(gate_judge, "undisturbed", dead)
    monkeypatch.setattr(backends.get("host"), "build", raising(KERNELS[0], []))
    verdict = judge(kernel, kernel.default_params(DECODE), DECODE, "host", seconds=60)
    assert "PageFault" in verdict.reason


@pytest.mark.parametrize("seconds", [60.0, 1e-9])  # a driver waits longer than the gate may take
@pytest.mark.parametrize("times", [1, 2])
def test_a_gpus_timeout_is_the_kernels_when_it_comes_twice(
    times: int, seconds: float, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {"gpu_timeout": TIMEOUTS[0]}
    answers = [late] * times + [{"machine": "full"}]
    monkeypatch.setattr(gate_worker, "_ask", lambda task: answers.pop(0))
    raised = Poisoned if times == 2 else MachineError
    with pytest.raises(raised) as caught:
        judge_in_worker(kernel, kernel.default_params(DECODE), DECODE, "host", seconds=seconds)
    assert ("Timeout Error" in str(caught.value)) == (times == 2)


def test_a_worker_says_that_the_gpu_ended_it(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.get("host"), "build", raising(TIMEOUTS[0], []))
    params = kernel.default_params(DECODE)
    task = gate_worker.Task(
        dict(kernel.meta), dict(kernel.sources), params, DECODE.slug, "host", 60, False, False, 0, 0
    )
    assert gate_worker._answer(asdict(task)) == {"gpu_timeout": TIMEOUTS[0]}


# A compiler that is missing, killed or cannot write


def with_compiler(path: Path, script: str, home: Path, *argv: str) -> tuple[int, str]:
    """Exit code and last line of a command with a compiler of ours and an empty cache."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *--version*) echo clang 20;; *) {script};; esac\n')
    path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm_openevolve", *argv],
        env={
            **os.environ,
            "MLX_LM_OPENEVOLVE_CXX": str(path),
            "MLX_LM_OPENEVOLVE_HOME": str(home),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'error: kernel.o: No space left on device' >&2; exit 1", "No space left on device"),
        ("kill -9 $$", "ended by SIGKILL"),
    ],
)
def test_a_compiler_that_fails_by_itself_rejects_no_kernel(
    script: str, says: str, tmp_path: Path, folder: str
) -> None:
    command = ["check", folder, "--backend", "host"]
    code, line = with_compiler(tmp_path / "cc", script, tmp_path / "h", *command)
    assert code == 2
    assert line.startswith(SAYS)
    assert says in line
    kept = list((tmp_path / "h").rglob("program.json"))
    assert kept == [], "what is no fault of the source is not kept"


@pytest.mark.parametrize("command", ["check", "bench", "evolve"])
def test_a_missing_compiler_is_named(
    command: str,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_CXX", "no-such-compiler")
    words = {"check": [folder], "bench": ["--kernel", folder], "evolve": []}[command]
    assert main([command, *words, "--backend", "host"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "MLX_LM_OPENEVOLVE_CXX names 'no-such-compiler'" in err


@pytest.mark.parametrize("command", ["run", "bench", "evolve"])
def test_a_wrong_model_is_named_before_anything_starts(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "run": ["mlx_lm.generate"],
        "bench": ["--backend", "host", "--any-correct"],
        "evolve": ["--backend", "host", "--out", str(tmp_path / "run")],
    }[command]
    assert main([command, *words, "--model", "/no/such/model"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{SAYS}--model /no/such/model: no such folder\n")
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_made_is_named(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", "/dev/null/nowhere")
    assert main(["check", folder, "--backend", "host", "--workload", DECODE.slug]) == 2
    err = capsys.readouterr().err
    assert "/dev/null is a file, not a folder (MLX_LM_OPENEVOLVE_HOME)" in err
