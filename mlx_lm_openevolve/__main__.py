"""`mlx-lm-openevolve` and `python -m mlx_lm_openevolve`: the command line in a process of its own.

Light on purpose: Ctrl-C is one line and exit code 130 from here on, while the rest is still being
imported and while the interpreter ends.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

__all__ = ["main"]

# Extension modules drop an interrupt now and then; it is raised again after so many seconds.
AGAIN = 1.0

SAYS = "mlx-lm-openevolve: interrupted"


def main() -> int:
    """Run the command line; returns its exit code."""
    signal.signal(signal.SIGINT, _leave)
    _open_closed()
    from .cli import main as cli

    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _dropped
    try:
        code = cli.main()
    except SystemExit as ended:  # help was printed, or the arguments are wrong
        code = int(ended.code or 0)
    except BrokenPipeError:  # help, to a reader that has seen enough
        code = 0
    except KeyboardInterrupt:  # a second one, while the first was being reported
        print(SAYS, file=sys.stderr)
        code = 130
    # From here on Ctrl-C ends the process at once: nothing is left to be saved.
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return flushed(code)


def _open_closed() -> None:
    """Standard output or error that the shell closed (`>&-`) goes nowhere; nor into the next file
    that is opened, which would get its number."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _leave(number: int, _: Any) -> None:
    """End at once: nothing was begun. An import that is interrupted fails in its own way, or not
    at all where an extension module drops what is raised in it."""
    os.write(2, f"{SAYS}\n".encode())
    os._exit(130)


def _interrupt(number: int, _: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise KeyboardInterrupt


def _dropped(what: Any) -> None:
    """An exception in a callback is dropped with a traceback; an interrupt comes again instead."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(what)


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
