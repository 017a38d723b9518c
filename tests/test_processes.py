"""The protocol between this package and its child processes: small workers, and ways to fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_lm_openevolve.processes import Died, Worker, child_environment

HEAD = "import os, signal, sys, time\nfrom mlx_lm_openevolve.processes import serve\n"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[str], Worker]]:
    """A worker whose module is a text."""
    made: list[Worker] = []

    def make(text: str) -> Worker:
        (tmp_path / "child.py").write_text(HEAD + text)
        path = os.pathsep.join([child_environment()["PYTHONPATH"], str(tmp_path)])
        made.append(Worker("child", environment=child_environment(PYTHONPATH=path)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_is_printed_is_no_answer(worker: Callable[[str], Worker]) -> None:
    text = (
        "print('hello')\nprint('[1]', flush=True)\n"  # while it is imported
        "def answer(request):\n"
        "    print('{\"x\": 0}', flush=True); os.write(1, b'{\"x\": 0}\\n')\n"
        "    return {'x': request['x'] + 1}\n"
        "serve(answer)\n"
    )
    one = worker(text)
    assert [one.ask({"x": x}, 30) for x in (1, 5)] == [{"x": 2}, {"x": 6}]


@pytest.mark.parametrize(
    ("text", "said", "name", "last"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV: no message", "SIGSEGV", ""),
        ("sys.exit('GPU fault')", "ended with status 1: GPU fault", "", "GPU fault"),
        ("print('{\"verdict', end='')", "ended with status 0: no message", "", ""),
        ("serve(lambda request: 1 / 0)", "ZeroDivisionError: division", "", "ZeroDivisionError"),
    ],
)
def test_how_a_worker_ended_is_told(
    worker: Callable[[str], Worker], text: str, said: str, name: str, last: str
) -> None:
    with pytest.raises(Died, match=said) as died:
        worker(text).ask({}, 30)
    assert (died.value.cause, died.value.signal) == ("crash", name)
    assert died.value.last.startswith(last)
    assert bool(died.value.last) == bool(last)


def test_a_worker_that_never_reads_a_long_request_hangs(worker: Callable[[str], Worker]) -> None:
    one = worker("time.sleep(600)")
    one.start_seconds = 0.5
    with pytest.raises(Died, match=r"hung and was killed after 1 s") as died:
        one.ask({"source": "x" * (1 << 20)}, 0.5)
    assert died.value.cause == "hang"
    assert one._process is None


def test_a_long_request_and_a_long_answer_pass_each_other(worker: Callable[[str], Worker]) -> None:
    text = "x" * (1 << 20)
    assert worker("serve(lambda request: request)").ask({"x": text}, 30) == {"x": text}


def test_a_worker_is_killed_with_what_it_started(
    worker: Callable[[str], Worker], tmp_path: Path
) -> None:
    one = worker(
        "import subprocess\n"
        "def answer(request):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    return {'child': child.pid}\n"
        "serve(answer)\n"
    )
    with one:
        pid = one.ask({}, 30)["child"]
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
            if stat.exists() and stat.read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child lives on")


def test_a_child_finds_this_package_and_nothing_beside_it(
    worker: Callable[[str], Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mlx_lm_openevolve.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path / "here")
    if sys.version_info >= (3, 11):
        assert worker("serve(lambda request: {'ok': True})").ask({}, 30) == {"ok": True}
    assert child_environment(A_VARIABLE="x")["A_VARIABLE"] == "x"


def test_switching_the_kernels_on_starts_without_it() -> None:
    code = (
        "import sys, mlx_lm_openevolve\n"
        "mlx_lm_openevolve.enable_optimizations(gate='stored')\n"
        "sys.exit('mlx_lm_openevolve.processes' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_at_work_does_not_outlive_who_asks_it() -> None:
    child = (
        "import time; from mlx_lm_openevolve.processes import serve\n"
        "serve(lambda request: print('at work', flush=True) or time.sleep(60))"
    )
    script = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=-1, stderr=-1,"
        " start_new_session=True)\n"
        "child.stdin.write(b'{}\\n'); child.stdin.flush(); child.stderr.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(int(done.stdout)):
        time.sleep(0.05)
    assert not _runs(int(done.stdout))


def _runs(pid: int) -> bool:
    """Whether a process, no child of ours, runs: one that nobody waits for stays as a zombie."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True)
    return told.stdout.strip() != "" and not told.stdout.strip().startswith("Z")
