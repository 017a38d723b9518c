"""The options of `mlx-lm-openevolve tune`; nothing heavy is loaded for them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bench.options import SHAPES, add_families, read_by
from ..errors import UsageError
from ..hub import check_model
from ..names import BACKENDS
from ..units import seconds_of, tokens_of

__all__ = ["add_arguments", "batches_of", "check"]

DEFAULT_CONTEXT, DEFAULT_BUDGET = "8k", "5m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tune`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="PATH_OR_ID", help="a model's folder, or its Hub name")
    which.add_argument("--shape", choices=SHAPES, help="a real shape; no weights are loaded")
    add = parser.add_argument
    tokens = read_by(tokens_of)
    add("--context", metavar="N", type=tokens, default=DEFAULT_CONTEXT, help="tokens, as in 32k")
    text = "sequences at once: 1,8"
    add("--batch", metavar="N,...", type=read_by(batches_of), default="1", help=text)
    add_families(parser)
    parser.add_argument("--kv-bits", type=int, choices=(2, 3, 4, 6, 8), help="quantised KV cache")
    parser.add_argument("--draft", metavar="MODEL", help="speculates for it: a path, id or shape")
    text = "time for deciding, as in 90s, 5m; starting, and measuring for --report, come on top"
    add("--budget", metavar="TIME", type=read_by(seconds_of), default=DEFAULT_BUDGET, help=text)
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="also measure the model; all of it in one file"
    )


def check(options: argparse.Namespace) -> None:
    """Raise UsageError where what is named cannot be found, before anything is loaded."""
    if options.draft and not (options.model or options.shape):
        raise UsageError("--draft speculates for a --model or a --shape")
    for option in ("model", "draft"):
        name = getattr(options, option)
        if name and name not in SHAPES:
            check_model(f"--{option}", name)


def batches_of(text: str) -> list[int]:
    """Numbers of sequences such as 1,8. Raises UsageError."""
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdecimal() for word in words):
        raise UsageError(f"{text!r}: write numbers of sequences, such as 1,8")
    batches = [int(word) for word in words]
    if not all(0 < n <= 4096 for n in batches):
        raise UsageError(f"{text!r}: 1 to 4096 sequences")
    return list(dict.fromkeys(batches))
