"""Workers: answers, and the three ways in which a worker dies of a candidate."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evolve_kernels
import pytest
from mlx_messages import MACHINES
from samples import shipped_in_metal

from mlx_lm_openevolve.backends.trouble import GpuTimeout
from mlx_lm_openevolve.errors import MachineError
from mlx_lm_openevolve.evolve import measure
from mlx_lm_openevolve.evolve import worker as worker_module
from mlx_lm_openevolve.evolve.evaluation import MACHINE, TIMEOUT, Request
from mlx_lm_openevolve.evolve.pool import WORKER, Pool
from mlx_lm_openevolve.processes import Died, Worker

CHECK = Request(
    "check",
    evolve_kernels.DECODE.slug,
    0,
    evolve_kernels.kernel(grid=["0", "1", "1"]),  # refused before anything is compiled
).to_json()


@pytest.fixture
def one() -> Iterator[Worker]:
    made = Worker(WORKER, memory=8 << 30)
    yield made
    made.close()


def test_a_worker_answers_and_lives_on(one: Worker) -> None:
    first = one.ask(CHECK, 60)
    assert (first["cause"], first["params"]) == ("static", {"step": 1})
    process = one._process
    assert one.ask(CHECK, 60)["cause"] == "static"
    assert one._process is process


def test_what_a_request_raises_is_an_answer(one: Worker) -> None:
    answer = one.ask({**CHECK, "op": "nonsense"}, 60)
    assert answer["cause"] == "error"
    assert "nonsense" in answer["finding"]
    assert one.ask(CHECK, 60)["cause"] == "static"


def test_a_crash_names_the_signal_and_the_next_request_gets_a_new_worker(one: Worker) -> None:
    one.ask(CHECK, 60)
    assert one._process is not None
    os.kill(one._process.pid, signal.SIGSEGV)
    one._process.wait()
    assert one.ask(CHECK, 60)["cause"] == "static"
    threading.Timer(0.5, os.kill, (one._process.pid, signal.SIGKILL)).start()
    os.kill(one._process.pid, signal.SIGSTOP)
    with pytest.raises(Died, match="SIGKILL") as died:
        one.ask(CHECK, 30)
    assert died.value.cause == "crash"


def test_a_hang_is_killed_with_all_its_children(one: Worker) -> None:
    one.ask(CHECK, 60)
    process = one._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(Died) as died:
        one.ask(CHECK, 0.5)
    assert died.value.cause == "hang"
    assert process.poll() is not None


@pytest.mark.skipif(not Path("/proc").exists() and sys.platform != "darwin", reason="needs ps")
def test_memory_above_the_limit_ends_a_worker(one: Worker) -> None:
    one.ask(CHECK, 60)
    assert one._process is not None
    one.memory = 1 << 20  # any Python takes more
    os.kill(one._process.pid, signal.SIGSTOP)
    with pytest.raises(Died) as died:
        one.ask(CHECK, 30)
    assert died.value.cause == "memory"


def test_a_pool_keeps_the_order_and_turns_deaths_into_answers() -> None:
    slugs = [evolve_kernels.DECODE.slug, "no workload", evolve_kernels.MASKED.slug]
    pool = Pool(2, 8 << 30)
    with contextlib.closing(pool), ThreadPoolExecutor(3) as threads:
        requests = [{**CHECK, "workload": slug} for slug in slugs]
        answers = list(threads.map(lambda request: pool.ask("check", request, 60), requests))
        assert [answer["cause"] for answer in answers] == ["static", "error", "static"]
        for each in pool._all:
            if each._process is not None:
                os.kill(each._process.pid, signal.SIGSTOP)
        answer = pool.ask("check", CHECK, 0.5)
        assert answer["cause"] == "hang"


def test_a_kernels_own_print_cannot_pass_for_an_answer() -> None:
    command = (
        "import sys; from mlx_lm_openevolve.evolve import worker\n"
        "worker._perform = lambda request: print('{\"cause\": \"\"}') or {'cause': 'real'}\n"
        "worker.main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", command], input="{}\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == '{"cause": "real"}\n'
    assert '{"cause": ""}' in done.stderr


def test_a_worker_whose_device_is_lost_is_not_asked_again(one: Worker) -> None:
    one.ask(CHECK, 60)
    assert one._process is not None
    script = (
        "from mlx_lm_openevolve.evolve import measure, worker\n"
        "measure.healthy = lambda: False\n"
        "worker._perform = lambda request: {'cause': 'launch', 'finding': 'fault'}\n"
        "worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input='{"op": "measure"}\n{"op": "check"}\n',
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        '{"cause": "crash", "finding": "fault", "ended": true}',
        '{"cause": "launch", "finding": "fault"}',
    ]
    one._rest = b'{"cause": "crash", "ended": true}\n'
    assert one.ask(CHECK, 60) == {"cause": "crash"}
    assert one._process is None


@pytest.mark.parametrize(
    ("raised", "cause"),
    [(MachineError("full"), MACHINE), (GpuTimeout("late"), TIMEOUT), (ValueError("x"), "crash")],
)
def test_the_machines_trouble_stays_its_own_when_the_device_is_lost_too(
    raised: Exception, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(request: dict[str, object]) -> None:
        raise raised

    monkeypatch.setattr(worker_module, "_perform", perform)
    monkeypatch.setattr(measure, "healthy", lambda: False)
    answer = worker_module.answer({"op": "measure"})
    assert (answer["cause"], answer["ended"]) == (cause, True)


@pytest.mark.parametrize("op", ["measure", "baseline"])
def test_measuring_calls_a_full_gpu_the_machines(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(MACHINES[0])

    monkeypatch.setattr(measure, "_setup", full)
    kernel = next(k for k in shipped_in_metal() if k.applies_to(evolve_kernels.DECODE))
    request = Request(op, evolve_kernels.DECODE.slug, 0, kernel, None, "host")
    answer = worker_module.answer(request.to_json())
    assert (answer["cause"], "Insufficient Memory" in answer["finding"]) == (MACHINE, True)
