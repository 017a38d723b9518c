"""mlx_lm.server, stock or patched, as a process of its own; and what a client asks of it.

What benchmarks/server_soak.py and benchmarks/server_rate.py have in common.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.cache import store
from mlx_lm_openevolve.cli.run import command_line
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict, gate_version
from mlx_lm_openevolve.ops.attention.workload import Bucket

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("stock", "patched")
# `mlx-lm-openevolve run --json`, without the command line's other parts: they need rich.
RUN = (
    "import argparse, json, sys; from mlx_lm_openevolve.cli import run;"
    " run.run(argparse.Namespace(**json.loads(sys.argv[1])), None)"
)


# ---- the server --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server that answers; what it prints lies in folder/out and folder/err."""

    arm: str
    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def stop(self) -> dict[str, Any]:
        """End it with SIGTERM. Returns what a patched one then says that it served (`totals` of
        runtime/session.py), {} of a stock one."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        said = (self.folder / "out").read_text().splitlines()
        found: dict[str, Any] = json.loads(said[-1]) if said and self.arm == "patched" else {}
        return found

    @property
    def log(self) -> str:
        return (self.folder / "err").read_text()


@contextlib.contextmanager
def server(
    arm: str, model: Path, folder: Path, backend: str, gate: str, env: Mapping[str, str]
) -> Iterator[Server]:
    """Start a server and wait until it answers. backend and gate: of `run`, for the patched one; on
    the host, where nothing is timed, kernels run that are only known to be correct. Raises
    SystemExit where the server does not start."""
    port = free_port()
    words = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command = command_line("mlx_lm.server", words)
    if arm == "patched":
        options = {
            **{"module": None, "wrapped": "mlx_lm.server", "arguments": words, "kernel": None},
            **{"backend": backend, "gate": gate, "any_correct": backend == "host"},
            **{"json": True, "verbose": False},
        }
        command = [sys.executable, "-c", RUN, json.dumps(options)]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=ROOT)
    try:
        started = Server(arm, process, port, folder)
        end = time.monotonic() + 120
        while not healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{started.log[-2000:]}")
            time.sleep(0.1)  # nothing but /health says that it has loaded the model
        yield started
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# ---- a registry of its own ---------------------------------------------------------------------


def own_home(folder: Path) -> dict[str, str]:
    """The environment of a process whose registry, an empty one, is in `folder`; what is compiled
    is shared."""
    (folder / "cache").symlink_to(store().root.parent)
    return {**os.environ, "MLX_LM_OPENEVOLVE_HOME": str(folder)}


def store_verdicts(home: Path, config: Mapping[str, Any]) -> None:
    """Verdicts "correct" on the host for all that a model of that config.json decodes, so that
    nothing is gated on the way: on the CPU that takes minutes a workload."""
    stamp = fingerprint(detect("host"), gate_version(Bucket.op))
    heads, dim = (config["num_attention_heads"], config["num_key_value_heads"]), config["head_dim"]
    buckets = [
        Bucket(1 << b, *heads, 1, 1 << n, dim, dim, "bfloat16", mask)
        for b in range(6)
        for n in range(12)
        for mask in ("none", "bool")
    ]
    verdicts = []
    for kernel in Registry(tuned_root(), writable=False).kernels():
        if kernel.native:
            continue
        for bucket in filter(kernel.applies_to, buckets):
            params, reason = kernel.default_params(bucket), "stored for a trial, not judged"
            verdicts.append(Verdict(kernel.id, params, bucket.slug, True, False, reason, stamp))
    Registry(home).publish_all("host", verdicts)


# ---- a client ----------------------------------------------------------------------------------


@contextlib.contextmanager
def post(port: int, path: str, body: Mapping[str, Any]) -> Iterator[http.client.HTTPResponse]:
    """The answer to one request. Raises ValueError where its status is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {answer.read(80)!r}")
        yield answer
    finally:
        connection.close()


def chunks(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """What a stream says, as it comes. Raises ValueError where it ends before its end."""
    for line in answer:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    raise ValueError("a stream ended without [DONE]")
