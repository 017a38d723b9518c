"""metalhost held against a public record of a real Apple GPU.

    git clone https://github.com/vicgalle/metal-sci-kernels FOLDER
    python benchmarks/apple_record.py --corpus FOLDER [--tasks NAME ...] [--jobs N] [-o FILE]

The record holds Metal kernels that language models wrote for twelve tasks, each with the verdict of
Apple's compiler, whether its result was right, and GPU seconds at three sizes on an M1 Pro.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metal_stand_in
from rich.progress import track

from mlx_lm_openevolve.metalhost import compiler_available, metal_function

# Split before anything was looked at: these to work with, the others for one evaluation at the end.
OPEN = ("fft3d", "gradshaf", "heat2d", "ising", "lbm", "nbody", "saxpy", "wave3d")
APART = ("adi3d", "hmc", "lj", "morton")


@dataclass(frozen=True)
class Candidate:
    """One kernel of the record, by its path in the corpus without the extension."""

    task: str
    path: str
    kernels: tuple[str, ...]
    source: str
    result: dict[str, Any]

    @property
    def compiled(self) -> bool:
        """True where Apple's compiler took it."""
        return bool(self.result["compile_ok"])


def candidates(corpus: Path, tasks: Sequence[str]) -> Iterator[Candidate]:
    """The kernels of these tasks that have a result."""
    specs = load_tasks(corpus)
    for result in sorted(corpus.glob("results/**/[0-9]*_result.json")):
        task = result.parent.name.split("_")[0]
        source = result.with_name(result.name.replace("_result.json", "_candidate.metal"))
        if task in tasks and source.exists():
            path = str(source.relative_to(corpus / "results").with_suffix(""))
            names = tuple(specs.get_task(task).spec.kernel_names)
            yield Candidate(task, path, names, source.read_text("utf-8"),
                            json.loads(result.read_text("utf-8")))  # fmt: skip


def load_tasks(corpus: Path) -> Any:
    """The corpus's task registry, with PyObjC's Metal replaced by metalhost."""
    sys.modules.setdefault("Metal", metal_stand_in.module())
    if str(corpus) not in sys.path:
        sys.path.insert(0, str(corpus))
    importlib.import_module("metal_kernels.tasks")
    return importlib.import_module("metal_kernels.task")


def compile_candidate(candidate: Candidate) -> str:
    """What metalhost says against the source, "" where nothing."""
    for name in candidate.kernels:
        function = metal_function(candidate.source, name, math_mode="fast", file="source")
        findings = [f for f in function.compile(sanitize=False) if "no kernel named" not in str(f)]
        if findings:
            return f"source:{findings[0].line}: {findings[0].kind}: {findings[0].message}"
    return ""


def compile_rows(found: Sequence[Candidate], jobs: int) -> list[dict[str, Any]]:
    """For each candidate: whether Apple's compiler took it, and what metalhost says against it."""
    with ProcessPoolExecutor(jobs) as pool:
        said = track(pool.map(compile_candidate, found), "compile", len(found))
        return [
            {"task": c.task, "candidate": c.path, "apple": c.compiled, "metalhost": message}
            for c, message in zip(found, said, strict=True)
        ]


def commit(corpus: Path) -> str:
    """The corpus's commit."""
    done = subprocess.run(
        ["git", "-C", str(corpus), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def verdicts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The counts of the compile pass, and each disagreement."""
    refused = [r for r in rows if r["apple"] and r["metalhost"]]
    accepted = [r for r in rows if not r["apple"] and not r["metalhost"]]
    return {
        "compiled_by_apple": sum(r["apple"] for r in rows),
        "refused_by_apple": sum(not r["apple"] for r in rows),
        "false_refusals": [{k: r[k] for k in ("task", "candidate", "metalhost")} for r in refused],
        "false_accepts": [{k: r[k] for k in ("task", "candidate")} for r in accepted],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="a checkout of the record")
    parser.add_argument("--tasks", nargs="+", default=OPEN, choices=OPEN + APART)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    available, description = compiler_available()
    if not available:
        raise SystemExit(description)
    found = list(candidates(options.corpus, options.tasks))
    record: dict[str, Any] = {"corpus": commit(options.corpus), "tasks": list(options.tasks)}
    record["compile"] = verdicts(compile_rows(found, options.jobs))
    text = json.dumps(record, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
