"""`mlx-lm-openevolve` and `python -m mlx_lm_openevolve`: the command line in a process of its own.

Light on purpose: Ctrl-C is one line and exit code 130 from here on, while the rest is still being
imported and while the interpreter ends.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns its exit code."""
    try:
        from . import cli

        code = cli.main()
    except KeyboardInterrupt:
        print("mlx-lm-openevolve: interrupted", file=sys.stderr)
        code = 130
    # From here on Ctrl-C ends the process at once: nothing is left to be saved.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return flushed(code)


def flushed(code: int) -> int:
    """`code`, or 2 where standard output cannot take what was printed (a full disk)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        pass
    except OSError as error:
        print(f"mlx-lm-openevolve: standard output: {error.strerror}", file=sys.stderr)
        code = 2
    else:
        return code
    # What is still buffered cannot be written: not at the interpreter's end either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
