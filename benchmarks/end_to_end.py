"""Tokens a second of whole mlx-lm models, stock against patched, over a table of cases.

    python benchmarks/end_to_end.py [--shapes qwen3-0.6b llama-3.2-1b] [--cases 1x1024 ...]
                                    [--bits 4] [--kv-bits 4] [--output FILE]

One case by hand: `mlx-lm-openevolve bench --shape qwen3-0.6b -b 8 -p 2048 -g 64`, which says how.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_lm_openevolve.bench import command as bench
from mlx_lm_openevolve.bench.options import BITS, add_arguments
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.verdict import gate_version

CASES = ["1x1024", "1x16384", "8x2048", "32x2048"]  # sequences x prompt tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["qwen3-0.6b", "llama-3.2-1b"])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--bits", default="", choices=("", *BITS))
    parser.add_argument("--kv-bits", default="")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--trials", type=int, default=3, help="in each process")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()

    command = argparse.ArgumentParser()
    add_arguments(command)
    machine = fingerprint(detect(), gate_version("attention"))
    result: dict[str, Any] = {"machine": machine, "date": time.strftime("%Y-%m-%d")}
    tasks = []

    def keep() -> None:
        if asked.output:
            bench.write(asked.output, result)

    for shape in asked.shapes:
        for case in asked.cases:
            batch, prompt = case.split("x")
            words = ["--shape", shape, "-b", batch, "-p", prompt, "-g", str(asked.tokens)]
            for option in ("bits", "kv_bits"):
                if getattr(asked, option):
                    words += [f"--{option.replace('_', '-')}", getattr(asked, option)]
            options = command.parse_args(
                [*words, "-n", str(asked.blocks), "--trials", str(asked.trials)]
            )
            tasks += bench.tasks(options)
    bench.run_cases(tasks, options, Console(highlight=False), result, keep)


if __name__ == "__main__":
    main()
