"""A chip that does not exist, as a fleet's worker, for tests and benchmarks/fleet_soak.py.

    python simulated_chip.py --scheduler ADDRESS {...}     the worker; its settings as JSON
    python -m simulated_chip                               its sandboxed process: times are drawn

chip: its slug, "check" for a worker that checks. seconds: what a measurement takes. log: a folder
in which every measurement has a file, made when it begins and touched until it ends. real: check
with the project's own process. native: no check is possible. versions: other ones to announce.
full: its disk is full.

A kernel of the name "hangs" hangs its process, one named "kills" ends the worker itself.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

SETTINGS = "SIMULATED_CHIP"
HERE = Path(__file__).resolve().parent


def answer(data: dict[str, Any]) -> dict[str, Any]:
    """What mlx_lm_openevolve.evolve.worker answers, without any work."""
    from mlx_lm_openevolve.evolve.evaluation import MACHINE, HostCheck, Measurement, Request
    from mlx_lm_openevolve.evolve.events import Baseline

    settings = json.loads(os.environ[SETTINGS])
    request = Request.from_json(data)
    if settings.get("full"):
        return {"cause": MACHINE, "finding": "No space left on device"}
    if request.op == "check" and settings.get("native"):
        return HostCheck(host="absent: it is no Metal", params=request.params or {}).to_json()
    if request.op == "check":
        return HostCheck(counters={"moved_bytes": 2048, "least_bytes": 1024}).to_json()
    if request.op == "baseline":
        return Baseline(request.workload, 1e-4, 1e-6, "memory").to_json()
    kernel, params = request.kernel, dict(request.params or {})
    assert kernel is not None
    drawn = hashlib.sha256(f"{kernel.id} {settings['chip']} {request.workload}".encode()).digest()
    ratio = 1 + drawn[0] / 256
    if request.op == "gate":
        return _judged(settings["chip"], request, ratio)
    _work(settings, f"{kernel.id} {request.workload}", kernel.name)
    return Measurement("", "", params, 1e-4 / ratio, ratio, ratio, ratio, trials=9).to_json()


def _work(settings: dict[str, Any], what: str, name: str) -> None:
    """Take the time of a measurement, and leave a trace of it."""
    log = settings.get("log")
    path = Path(log or ".") / f"{time.time_ns()} {os.getpid()} {settings['chip']} {what}"
    end = time.monotonic() + settings["seconds"]
    while time.monotonic() < end or name == "hangs":
        if log:
            path.touch()
        if name == "kills":
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.01)


def _judged(chip: str, request: Any, ratio: float) -> dict[str, Any]:
    from mlx_lm_openevolve.device import Device, fingerprint
    from mlx_lm_openevolve.evolve.publish import Judged
    from mlx_lm_openevolve.kernels.verdict import Verdict, gate_version

    timed = {"ratio": ratio, "low": ratio, "high": ratio}
    verdict = Verdict(
        request.kernel.id, dict(request.params or {}), request.workload, True, ratio > 1.02,
        "simulated", fingerprint(Device("cuda", chip, chip, "sm_0"), gate_version("attention")),
        timing={**timed, "sealed": timed},
    )  # fmt: skip
    return Judged(verdict=verdict.to_json()).to_json()


def main() -> None:
    """The worker."""
    from mlx_lm_openevolve.device import Device
    from mlx_lm_openevolve.evolve.fleet import worker
    from mlx_lm_openevolve.evolve.fleet.link import Link
    from mlx_lm_openevolve.evolve.pool import WORKER

    parser = argparse.ArgumentParser()
    parser.add_argument("--scheduler")
    parser.add_argument("settings")
    for name in ("ca", "cert", "key"):
        parser.add_argument(f"--tls-{name}", type=Path)
    options = parser.parse_args(namespace=argparse.Namespace(insecure=False))
    os.environ[SETTINGS] = options.settings
    settings = json.loads(options.settings)
    if settings["chip"] == "check":
        facts = worker.facts_here(True, None)
    else:
        chip = settings["chip"]
        facts = worker.facts_of(Device("cuda", chip, chip, "sm_0", 1, 1 << 34, 1 << 20))
    facts = replace(facts, versions={**facts.versions, **settings.get("versions", {})})
    # What hangs first of all is not waited for as long as a slow machine may take to start.
    worker.Worker = functools.partial(worker.Worker, start_seconds=20.0)
    module = WORKER if settings.get("real") else "simulated_chip"
    worker.serve(Link.of(options), facts, lambda text: print(text, flush=True), module)


if __name__ == "__main__" and len(sys.argv) == 1:
    from mlx_lm_openevolve.processes import serve

    serve(answer)
elif __name__ == "__main__":
    main()
