"""The options of the commands `evolve`, `fleet` and `report`; nothing heavy is loaded for them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlx_lm_openevolve.names import BACKENDS

__all__ = [
    *("DEFAULT_BUDGET", "HEURISTIC", "PROPOSERS", "SUITES"),
    *("add_evolve_arguments", "add_fleet_arguments", "add_report_arguments"),
]

DEFAULT_BUDGET = "10m"
PROPOSERS = ("params", "llm", "mailbox")
HEURISTIC = "heuristic"  # a search of its own over measured points, without a run of candidates
# All families', as suites.py finds them.
SUITES = (
    *("decode", "batch", "long", "decode-others", "quantized", "quantized-prompt", "wide", "sinks"),
    *("latent", "verify", "sdpa-grid", "rows-1", "rows-4", "rows-16", "experts-8", "experts-64"),
)


def add_evolve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `evolve`."""
    add, known = parser.add_argument, f"suites: {', '.join(SUITES)}"
    add(
        "--backend",
        choices=BACKENDS,
        help="default: the GPU, else host (nothing is timed)",
    )
    add("--workloads", nargs="+", metavar="SUITE|SLUG", help=f"default decode; {known}")
    add("--model", metavar="PATH_OR_ID", help="search for what a generation of this model calls")
    add("--proposer", choices=(*PROPOSERS, HEURISTIC), help="default params, which needs nothing")
    points = "heuristic: tables of measured points"
    add("--points", nargs="+", type=Path, metavar="FILE", help=points)
    add("--budget", metavar="10m", help=f"time; default {DEFAULT_BUDGET} where nothing is set")
    add("--candidates", type=int, metavar="N", help="how many may be tried")
    add("--tokens", type=int, metavar="N", help="tokens that llm may spend")
    add("--money", type=float, metavar="X", help="money that llm may spend")
    add("--resume", type=Path, metavar="RUN", help="go on with a run")
    text = "of parents outside the elites (llm, mailbox); adaptive"
    add("--explore", type=float, metavar="SHARE", help=text)
    add("--seed", type=int, metavar="N", help="default 0")
    add("--kernels", nargs="+", type=Path, metavar="FOLDER", help="seeds; default: all known ones")
    text = "an OpenEvolve configuration: its models, budget and seed"
    add("--config", type=Path, metavar="FILE.yaml", help=text)
    add("--out", type=Path, metavar="RUN", help="folder of a new run")
    add("--export", type=Path, metavar="FOLDER", help="write what was published there as well")
    add("--no-publish", action="store_true", help="leave the user's registry as it is")
    add("--jobs", type=int, metavar="N", help="host checks side by side")
    add("--llm", action="append", metavar="NAME[,WEIGHT[,PRICE_IN,PRICE_OUT]]", default=[])
    add("--context", type=int, default=32768, metavar="TOKENS", help="what the models take")
    add("--answer", type=int, default=8192, metavar="TOKENS", help="longest answer")
    add("--timeout", type=float, default=300.0, metavar="SECONDS", help="for an answer of llm")
    add("--wait", metavar="10m", default="1h", help="for an answer in the mailbox")
    add("--ahead", type=int, default=1, metavar="N", help="prompts of the mailbox open at a time")
    add("--target", action="append", metavar="SPEEDUP:SHARE", default=[], help="stop at fast_p")
    add(
        "--profile",
        action=argparse.BooleanOptionalAction,
        help="NVIDIA: put profiles of ncu into prompts and report; default with llm and mailbox",
    )
    add("--all", action="store_true", help="search saturated workloads too")
    _add_link(parser)


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fleet`."""
    parser.add_argument("what", choices=("worker",), help="answer the requests of a search")
    parser.add_argument(
        "--check", action="store_true", help="check on the CPU, though it has a GPU"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU, else host")
    _add_link(parser, required=True)


def _add_link(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    add, text = parser.add_argument, "of the machines of a fleet (extra fleet), tls://HOST:8786"
    add("--scheduler", metavar="ADDRESS", required=required, help=f"dask scheduler {text}")
    for name, what in (("ca", "the authority's certificate"), ("cert", "ours"), ("key", "our key")):
        add(f"--tls-{name}", type=Path, metavar="FILE", help=f"tls://: {what}")
    add("--insecure", action="store_true", help="allow tcp:// beyond this machine")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `report`."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run's folder or name, or a packed run (.tar.xz)")
    where = "default: the run's folder, or one of its name beside a packed run"
    add("--out", type=Path, metavar="FOLDER", help=where)
