"""The command line.

    mlx-lm-openevolve run | tune | bench | evolve | fleet | report | check | import | export | list
                      | show | status | clear

Exit codes: 0 done; 1 rejected or not faster; 2 not done (a wrong argument, or something that this
machine lacks: the line says which); 70 a fault of this program; 130 interrupted by Ctrl-C. With
--json one JSON object is the last line of standard output, {"error": ...} where nothing was done,
and everything for people goes to standard error. Tracebacks are shown with --verbose alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from .._version import __version__
from ..bench import options as bench_options
from ..errors import NO_MLX, OpenEvolveError, UsageError, interrupted
from ..evolve import options as evolve_options  # the core does without it: here the two meet
from ..files import printable
from ..home import misplaced, user_root
from ..names import BACKENDS
from ..tune import options as tune_options
from . import run
from .result import Result

__all__ = ["main", "parser"]

NOT_DONE, FAULT, INTERRUPTED = 2, 70, 130


class _WrongArguments(SystemExit):
    """What argparse refuses, `text` in one line; it ends a process as argparse would."""

    def __init__(self, text: str) -> None:
        super().__init__(NOT_DONE)
        self.text = text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Argparse would print all options first, and nothing for --json."""
        raise _WrongArguments(f"{message} ({self.prog} --help)")


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        """What is printed may come from a file that anyone wrote."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Rich would end the process with code 1, which means "rejected" here."""
        raise BrokenPipeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words, wrapped = run.split(sys.argv[1:] if argv is None else argv)
    try:
        _refuse_empty(words)
        options, unknown = parser().parse_known_args(words)
        if unknown:  # argparse would name the help of all
            options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    except _WrongArguments as wrong:
        _tell(wrong.text, "--json" in words)
        raise
    if wrapped:
        options.arguments = wrapped
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    out = _Console(stderr=options.json, highlight=False, soft_wrap=True)
    if not out.is_terminal:
        out.width = 240  # a table in a file or a pipe keeps its words whole
    try:
        if options.needs_home and (reason := misplaced(user_root())):
            raise UsageError(reason)
        code, result = options.command(options, out)
    except BrokenPipeError:  # the reader has seen enough
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.verbose:
            traceback.print_exc()
        code, text = _failure(error)
        return _tell(text, options.json, code)
    if options.json:
        code = _print_json(result, code)
    return int(code)


def _refuse_empty(words: Sequence[str]) -> None:
    """No argument of ours is empty; as a path it would be the folder that one is in."""
    for i, word in enumerate(words):
        if word == "" or (word.startswith("-") and word.endswith("=")):
            where = " ".join(words[max(0, i - 1) : i + 1]).strip()
            raise _WrongArguments(f"an argument is empty (behind {where!r})")


def _tell(text: str, as_json: bool, code: int = NOT_DONE) -> int:
    """Why a command ended, for a person and for a program; its exit code."""
    print(f"mlx-lm-openevolve: {printable(text)}", file=sys.stderr)
    return _print_json({"error": text}, code) if as_json else code


def _print_json(result: dict[str, Any], code: int) -> int:
    try:
        print(json.dumps(result), flush=True)
    except BrokenPipeError:
        pass
    except OSError as error:
        code, text = _failure(error)
        print(f"mlx-lm-openevolve: standard output: {text}", file=sys.stderr)
    return code


def _failure(error: BaseException) -> tuple[int, str]:
    """Exit code and line for what ended a command."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if interrupted(error):
        return INTERRUPTED, "interrupted"
    if isinstance(error, OpenEvolveError):
        return NOT_DONE, " ".join(lines)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "mlx":
        return NOT_DONE, NO_MLX
    if isinstance(error, OSError) and error.strerror:
        where = f"{str(error.filename)[:200]}: " if error.filename else ""
        return NOT_DONE, f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return NOT_DONE, f"out of memory: {lines[0]}"
    return FAULT, f"{type(error).__name__}: {lines[0]} (a fault of ours; --verbose shows where)"


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = _Parser(prog="mlx-lm-openevolve", description="Proven attention kernels for mlx-lm.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_common(parser)
    parser.set_defaults(json=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, command: Any, text: str, *, needs_home: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        _add_common(sub)
        sub.set_defaults(needs_home=needs_home, parser=sub)
        sub.set_defaults(command=_later(command) if isinstance(command, str) else command)
        return sub

    judged = add("check", ".check:check", "Judge a kernel as the gate does; stores nothing.")
    judged.add_argument("kernel", metavar="FOLDER|KERNEL", help="a folder, or a known id or name")
    judged.add_argument("--workload", metavar="SLUG", action="append", help="may be repeated")
    judged.add_argument("--backend", choices=BACKENDS, help="default: the GPU, else host")
    judged.add_argument("--seconds", type=float, default=300, help="time limit for a workload")
    judged.add_argument("--seed", type=int, help="ask what an earlier verdict asked, by its seed")

    text = "Turn an OpenEvolve program into a kernel folder, or take in what `export` wrote."
    program = add("import", ".share:take_in", text)
    program.add_argument("program", metavar="PROGRAM.py|FILE.json", type=Path)
    program.add_argument("--out", metavar="FOLDER", type=Path, help="of a program's kernel")
    text = "whose defaults the program's choose_tile_size gives"
    program.add_argument("--kernel", metavar="FOLDER|KERNEL", help=text)
    text = "with --kernel: params that a returned tuple is for, in its order"
    program.add_argument("--params", metavar="NAME", nargs="+", default=[], help=text)

    export = add("export", ".share:export", "Write a chip's kernels and verdicts into one file.")
    export.add_argument("file", metavar="FILE.json", type=Path)
    export.add_argument("--device", metavar="SLUG", help="the chip; default: this one")

    run.add_arguments(
        add(
            "run",
            run.run,
            "Run a command of mlx-lm, or a script, with the patch on.",
            needs_home=False,
        )
    )
    bench_options.add_arguments(
        add("bench", _bench, "Measure a model, stock against patched, in fresh processes.")
    )

    tune_options.add_arguments(
        add(
            "tune",
            _tune,
            "Decide what a model's calls run on, on this chip, in minutes.",
        )
    )
    evolve_options.add_evolve_arguments(
        add("evolve", "..evolve.commands:evolve", "Look for better kernels; resumable.")
    )
    evolve_options.add_fleet_arguments(
        add(
            "fleet",
            "..evolve.commands:fleet",
            "A machine of a fleet: check or measure for `evolve --scheduler`.",
        )
    )
    evolve_options.add_report_arguments(
        add("report", "..evolve.commands:report", "A run of evolve as one HTML page.")
    )

    listed = add("list", ".inspect:list_verdicts", "List the stored verdicts, for every device.")
    listed.add_argument("--device", metavar="SLUG", help="only the verdicts of this device")
    show = add(
        "show",
        ".inspect:show",
        "A kernel with its source, or what is known of a workload.",
    )
    show.add_argument("what", metavar="KERNEL|WORKLOAD", help="a kernel's id or name, or a slug")
    add(
        "status",
        ".inspect:status",
        "What runs here: a block to paste into a bug report.",
        needs_home=False,
    )
    clear = add("clear", ".inspect:clear", "Remove the user's stored verdicts and kernels.")
    clear.add_argument("--device", metavar="SLUG", help="only the verdicts of this device")
    clear.add_argument("--cache", action="store_true", help="compiled host programs as well")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    # Before the command or after it: what is not given must not undo what was.
    for name, text in (("json", "one JSON object on standard output"), ("verbose", "tracebacks")):
        parser.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)


def _bench(options: argparse.Namespace, out: Console) -> Result:
    from ..bench import command
    from ..evolve.bench_kernel import bench_kernel

    return command.run(options, out, bench_kernel)


def _tune(options: argparse.Namespace, out: Console) -> Result:
    tune_options.check(options)
    from ..tune import command

    return command.run(options, out)


def _later(where: str) -> Callable[[argparse.Namespace, Console], Result]:
    """The command "MODULE:FUNCTION", loaded when it is asked for: help needs no MLX."""
    module, _, name = where.partition(":")

    def command(options: argparse.Namespace, out: Console) -> Result:
        result: Result = getattr(import_module(module, __package__), name)(options, out)
        return result

    return command


if __name__ == "__main__":
    sys.exit(main())
