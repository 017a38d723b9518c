"""A fleet on this machine, as processes that can be killed: a scheduler and workers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evolve_kernels
import simulated_chip

from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.fleet.link import Link
from mlx_lm_openevolve.kernels.kernel import Kernel

ROOT = Path(__file__).resolve().parents[2]


def kernel(number: int, name: str = "plain") -> Kernel:
    """A right kernel that differs from others by a constant alone."""
    made = evolve_kernels.kernel(f"const ulong tag = {number + 9}ul;\n{evolve_kernels.BODY}")
    return Kernel.from_parts({**made.meta, "name": name}, made.sources)


class Given:
    """A proposer of given kernels, each once, for all workloads."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kernels = kernels

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """The next ones."""
        at = len(archive.candidates)
        for made in self.kernels[at : at + count]:
            archive.registry.add(made)
        return [
            Candidate(0, "given", made.id, tuple(archive.slugs), {"step": 1})
            for made in self.kernels[at : at + count]
        ]


class Cluster:
    """A scheduler and its workers; use it as a context: all are killed at its end. tls: the files
    of the authority, certificate and key."""

    def __init__(self, folder: Path, tls: Sequence[Path] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tls = folder, tls
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{self.port}"
        self.workers: dict[subprocess.Popen[Any], dict[str, Any]] = {}
        self.scheduler = self.start_scheduler()

    def options(self) -> argparse.Namespace:
        """Those of a command that name this scheduler."""
        ca, cert, key = self.tls or (None, None, None)
        return argparse.Namespace(
            scheduler=self.address, tls_ca=ca, tls_cert=cert, tls_key=key, insecure=False
        )

    @property
    def link(self) -> Link:
        """The link to the scheduler."""
        return Link.of(self.options())

    def start_scheduler(self) -> subprocess.Popen[Any]:
        """Start the scheduler, again at the same port."""
        words = ["--host", self.address.rpartition(":")[0], "--port", str(self.port)]
        words += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        for name, file in zip(("ca-file", "cert", "key"), self.tls, strict=False):
            words += [f"--tls-{name}", str(file)]
        module = "distributed.cli.dask_scheduler"
        self.scheduler = self._start("scheduler", [sys.executable, "-m", module, *words])
        return self.scheduler

    def start_worker(self, chip: str, seconds: float = 0.05, **more: Any) -> subprocess.Popen[Any]:
        """Start a worker that announces `check` or a chip, see simulated_chip."""
        settings = {"chip": chip, "seconds": seconds, "log": str(self.folder / "log"), **more}
        (self.folder / "log").mkdir(exist_ok=True)
        words = ["--scheduler", self.address, json.dumps(settings)]
        for name, file in zip(("ca", "cert", "key"), self.tls, strict=False):
            words += [f"--tls-{name}", str(file)]
        made = self._start(chip, [sys.executable, simulated_chip.__file__, *words])
        self.workers[made] = settings
        return made

    def _start(self, name: str, words: list[str]) -> subprocess.Popen[Any]:
        paths = [str(ROOT), str(simulated_chip.HERE), os.environ.get("PYTHONPATH", "")]
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(
                words,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        """What the processes of that name printed."""
        return (self.folder / f"{name}.log").read_text()

    def measurements(self) -> list[tuple[float, float, str, str]]:
        """(begin, last sign of life, chip, kernel and workload) of every measurement; seconds."""
        found = []
        for path in (self.folder / "log").iterdir():
            began, _, chip, what = path.name.split(" ", 3)
            found.append((int(began) / 1e9, path.stat().st_mtime, chip, what))
        return sorted(found)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """kill -9, of that process alone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(true: Any, seconds: float = 60) -> None:
    """Wait until something is true; AssertionError where it does not become so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
