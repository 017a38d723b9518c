"""The options of `mlx-lm-openevolve bench`; nothing heavy is loaded for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .. import ops
from ..errors import UsageError
from ..names import BACKENDS

__all__ = ["BITS", "PRESETS", "SHAPES", "add_arguments", "add_families", "read_by"]

# Tokens of prompt and generation of the five benchmarks of OpenEvolve's MLX example: its prompts'
# lengths in a Qwen tokenizer, about, and its max_tokens.
PRESETS = {
    "short_context_quick": (8, 50),
    "code_generation": (64, 300),
    "long_context_detailed": (448, 500),
    "long_generation": (16, 1000),
    "maximum_context_stress_test": (1408, 10000),
}
SHAPES = (
    *("qwen3-0.6b", "qwen3-4b", "qwen2.5-7b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"),
    *("qwen3-30b-a3b", "gemma-3-4b", "gpt-oss-20b", "glm-4.7-flash"),
)
BITS = ("4", "8", "mxfp4")


def add_families(parser: argparse.ArgumentParser) -> None:
    """What `bench` and `tune` ask of weights, and of families of operations."""
    parser.add_argument("--bits", choices=BITS, help="of a shape's weights; default: bfloat16")
    text = "these families alone: attention,linear"
    parser.add_argument("--ops", metavar="NAME,...", type=read_by(_check_families), help=text)


def read_by(check: Callable[[str], object]) -> Callable[[str], str]:
    """The type of an argument that stays text: where `check` raises UsageError, argparse names the
    argument, before anything is loaded."""

    def read(text: str) -> str:
        try:
            check(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return read


def _check_families(text: str) -> None:
    for name in text.split(","):
        if name.strip() not in ops.NAMES:
            raise UsageError(f"{name.strip()!r} is none of {', '.join(ops.NAMES)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="PATH", help="a model's folder or its name on the Hub")
    which.add_argument("--shape", choices=SHAPES, help="a real shape with random weights")
    which.add_argument("--kernel", metavar="FOLDER|KERNEL", help="bench one kernel alone")
    parser.add_argument("--preset", choices=PRESETS, action="append", help="may be repeated")
    parser.add_argument("-p", "--prompt-tokens", type=int, metavar="N", help="instead of a preset")
    parser.add_argument("-g", "--generation-tokens", type=int, metavar="N")
    parser.add_argument("-b", "--batch", type=int, default=1, metavar="N", help="sequences")
    add_families(parser)
    parser.add_argument("--kv-bits", type=int, choices=(2, 3, 4, 6, 8), help="quantised KV cache")
    parser.add_argument("--draft", metavar="MODEL", help="speculate with this path or shape")
    parser.add_argument(
        "-n", "--blocks", type=int, default=3, metavar="N", help="of four processes"
    )
    parser.add_argument("--trials", type=int, default=1, metavar="N", help="in each process")
    parser.add_argument(
        "--suite", metavar="SUITE|SLUG", action="append", help="with --kernel: default decode"
    )
    parser.add_argument("--subset", action="store_true", help="with --kernel: every third one")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU")
    parser.add_argument(
        "--any-correct", action="store_true", help="run what is correct but not faster: compare"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the results as JSON")
