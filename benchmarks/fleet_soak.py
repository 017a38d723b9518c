"""A fleet on one machine under attack, and how fast it is beside the local pool.

    python benchmarks/fleet_soak.py soak [--candidates 200] [--kills 10] [--output FILE]
    python benchmarks/fleet_soak.py rate [--candidates 40] [--output FILE]
    python benchmarks/fleet_soak.py wide [--output FILE]

soak: a scheduler, two workers that check (for real, on the host backend) and one that measures (a
simulated chip). While the candidates are run, workers are killed with -9 and started anew, one is
stopped as if it hung, the scheduler is killed and started anew; one candidate hangs its process and
one ends its worker. Exit code 1 where a candidate is lost, where two measurements of it or two on
the chip overlap, or where what was measured once is measured again without the scheduler's death.

rate: the same candidates on the host backend, twice: with the local pool's two processes, and with
two workers of a fleet. wide: measurements of a second on 1 and on 8 workers of the same chip.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import evolve_kernels
from fleets import Cluster, Given, kernel, kill

from mlx_lm_openevolve.evolve import events, loop
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Budget, Config, Search, Work
from mlx_lm_openevolve.evolve.evaluator import LocalEvaluator
from mlx_lm_openevolve.evolve.fleet.client import Fleet

CHIP = "simulated-chip"
SECONDS = 1.0  # of a simulated measurement: a real one has 0.6 for its timing alone


def search(folder: Path, kernels: list[Any], backend: str, fleet: Fleet | None, **work: Any) -> Any:
    """Run the candidates; (the archive, seconds)."""
    config = Config(
        backend,
        (evolve_kernels.DECODE,),
        (1.0,),
        budget=Budget(candidates=len(kernels)),
        search=Search(batch=4 * max(fleet.there().values()) if fleet else 4, saturated=0.0),
        work=Work(jobs=2, **work),
    )
    archive = Archive.create(folder, config, {"slug": CHIP})
    start = time.monotonic()
    with LocalEvaluator(archive, fleet) as evaluator:
        loop.evolve(archive, Given(kernels), evaluator, lambda _: None)
    seconds = time.monotonic() - start
    archive.close()
    return archive, seconds


class Attack(threading.Thread):
    """Kills workers and starts them anew, as a service manager would; stops one; restarts the
    scheduler."""

    def __init__(self, cluster: Cluster, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster, self.kills, self.random = cluster, kills, random.Random(seed)
        self.over = threading.Event()
        self.log: list[str] = []

    def run(self) -> None:
        """Until all is done, or `over`."""
        plan = ["kill"] * self.kills + ["hang", "scheduler"]
        self.random.shuffle(plan)
        for what in plan:
            if self.over.wait(self.random.uniform(4, 8)):
                return
            self.restart()
            alive = [w for w in self.cluster.workers if w.poll() is None]
            if what == "scheduler":
                kill(self.cluster.scheduler)
                time.sleep(3)
                self.cluster.start_scheduler()
                self.log.append(what)
                continue
            checks = [w for w in alive if self.cluster.workers[w]["chip"] == "check"]
            worker = self.random.choice(alive if what == "kill" else checks)
            self.log.append(f"{what} {self.cluster.workers[worker]['chip']}")
            if what == "hang":
                worker.send_signal(signal.SIGSTOP)
                self.cluster.start_worker(**self.cluster.workers[worker])
            else:
                kill(worker)
        while not self.over.wait(1):
            self.restart()

    def restart(self) -> None:
        """Start anew who is dead."""
        for worker, settings in list(self.cluster.workers.items()):
            if worker.poll() is not None:
                del self.cluster.workers[worker]
                self.cluster.start_worker(**settings)


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What came of a search under attack."""
    kernels = [kernel(i) for i in range(options.candidates)]
    kernels[len(kernels) // 3] = hangs = kernel(-1, "hangs")
    kernels[2 * len(kernels) // 3] = kills = kernel(-2, "kills")
    said: list[str] = []
    with Cluster(folder / "cluster") as cluster:
        for chip in ("check", "check", CHIP):
            cluster.start_worker(chip, 0.3, real=chip == "check")
        attack = Attack(cluster, options.kills, options.seed)
        with Fleet(cluster.link, said.append) as fleet:
            fleet.lead("cuda")
            attack.start()
            archive, seconds = search(folder / "run", kernels, "cuda", fleet, seconds=5.0)
        attack.over.set()
        attack.join()
        spans = [span for span in cluster.measurements() if span[2] == CHIP]
    numbers = [e.number for e in archive.journal.events if isinstance(e, events.Evaluated)]
    times = Counter(what for *_, what in spans)
    at_once = sum(b[0] < a[1] for a, b in itertools.pairwise(spans))
    poisoned = sorted({key.split()[0] for key in archive.worker_deaths})
    killed = sum(entry == f"kill {CHIP}" for entry in attack.log)
    names = {made.id: made.name for made in kernels}
    return {
        "candidates": len(archive.candidates),
        "done": len(archive.done),
        "journalled_twice": len(numbers) - len(set(numbers)),
        "failures": [f"#{n} {e.cause}: {e.finding}" for n, e in archive.done.items() if e.cause],
        "attack": attack.log,
        "measurements": len(spans),
        "measured_again": sum(count - 1 for count in times.values()),
        "at_once": at_once,
        "poisoned": {id: names[id] for id in poisoned},
        "seconds": round(seconds, 1),
        "said": said,
        "good": len(archive.done) == len(kernels)
        and not len(numbers) - len(set(numbers))
        and not at_once
        # Those of the attack on the chip, and the two that were made for it.
        and {hangs.id, kills.id} <= set(poisoned)
        and len(poisoned) == sum(bool(e.cause) for e in archive.done.values()) <= killed + 2
        and sum(count - 1 for count in times.values()) <= 1 + attack.log.count("scheduler"),
    }


def rate(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Candidates a minute on the host backend: the local pool, then a fleet on the same cores."""
    found = {}
    for turn in range(options.turns):
        for arm in ("local", "fleet"):
            # New texts each time: nothing that was compiled before is used again.
            kernels = [kernel(random.getrandbits(60)) for _ in range(options.candidates)]
            out = folder / f"{arm}-{turn}"
            if arm == "local":
                _, seconds = search(out, kernels, "host", None)
            else:
                with Cluster(folder / f"cluster-{turn}") as cluster:
                    for _ in range(2):
                        cluster.start_worker("check", real=True)
                    with Fleet(cluster.link, lambda _: None) as fleet:
                        fleet.lead("host")
                        while sum(fleet.there().values()) < 2:
                            time.sleep(0.1)
                        _, seconds = search(out, kernels, "host", fleet)
            found.setdefault(arm, []).append(round(60 * len(kernels) / seconds, 1))
    return {
        "candidates_a_minute": found,
        "ratio": round(median(found["fleet"]) / median(found["local"]), 3),
    }


def wide(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Candidates a minute with 1 and with 8 workers of one chip that measures for a second."""
    found = {}
    for count in (1, 8):
        with Cluster(folder / f"cluster-{count}") as cluster:
            for chip in ("check", *[CHIP] * count):
                cluster.start_worker(chip, SECONDS)
            with Fleet(cluster.link, lambda _: None) as fleet:
                fleet.lead("cuda")
                while sum(fleet.there().values()) < count + 1:
                    time.sleep(0.1)
                # Once over, so that every worker has started its process.
                search(
                    folder / f"first-{count}", [kernel(i) for i in range(4 * count)], "cuda", fleet
                )
                kernels = [kernel(100 + i) for i in range(20 * count)]
                _, seconds = search(folder / f"run-{count}", kernels, "cuda", fleet)
        found[count] = round(60 * len(kernels) / seconds, 1)
    return {"candidates_a_minute": found, "ratio": round(found[8] / found[1], 2)}


def main() -> int:
    """Print what was found as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("soak", "rate", "wide"))
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.candidates = options.candidates or {"soak": 200, "rate": 40, "wide": 0}[options.what]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLX_LM_OPENEVOLVE_HOME"] = str(Path(folder) / "home")
        found = {"soak": soak, "rate": rate, "wide": wide}[options.what](options, Path(folder))
    found = {"date": time.strftime("%Y-%m-%d"), **found}
    text = json.dumps(found, indent=1).replace(platform.node(), "host")
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0 if found.get("good", True) else 1


if __name__ == "__main__":
    sys.exit(main())
