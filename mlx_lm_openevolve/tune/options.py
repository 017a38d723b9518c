"""The options of `mlx-lm-openevolve tune`; nothing heavy is loaded for them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bench.options import SHAPES, add_families
from ..errors import UsageError
from ..names import BACKENDS

__all__ = ["add_arguments", "batches_of"]

DEFAULT_CONTEXT, DEFAULT_BUDGET = "8k", "5m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tune`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="PATH_OR_ID", help="a model's folder, or its Hub name")
    which.add_argument("--shape", choices=SHAPES, help="a real shape; no weights are loaded")
    parser.add_argument("--context", metavar="N", default=DEFAULT_CONTEXT, help="tokens, as in 32k")
    parser.add_argument("--batch", metavar="N,...", default="1", help="sequences at once: 1,8")
    add_families(parser)
    parser.add_argument("--kv-bits", type=int, choices=(2, 3, 4, 6, 8), help="quantised KV cache")
    parser.add_argument("--draft", metavar="MODEL", help="speculates for it: a path, id or shape")
    parser.add_argument("--budget", metavar="TIME", default=DEFAULT_BUDGET, help="as in 90s, 5m")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the GPU")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="also measure the model; all of it in one file"
    )


def batches_of(text: str) -> list[int]:
    """Numbers of sequences such as 1,8. Raises UsageError."""
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdecimal() for word in words):
        raise UsageError(f"--batch {text!r}: write numbers of sequences, such as 1,8")
    batches = [int(word) for word in words]
    if not all(0 < n <= 4096 for n in batches):
        raise UsageError(f"--batch {text!r}: 1 to 4096 sequences")
    return list(dict.fromkeys(batches))
