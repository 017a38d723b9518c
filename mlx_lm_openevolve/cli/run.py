"""`mlx-lm-openevolve run COMMAND ARGS...`: a command of mlx-lm as the user knows it, patched.

    run -> exec COMMAND with sitecustom/ on PYTHONPATH and its settings in MLX_LM_OPENEVOLVE_RUN
        -> sitecustom/sitecustomize.py sees mlx_lm.models.base imported -> activate()
        -> at the end: one line on standard error

This process becomes the command, so that its process id, terminal, signals, output and exit code
are the command's own. Children inherit the environment and are patched too; what they report is
added to the line. Only SIGTERM meets a handler of ours, where the command has none: it prints the
line, then lets the signal end the process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BackendError, UnsupportedVersionError, UsageError
from ..runtime.session import VARIABLE

__all__ = ["add_arguments", "command_line", "environment", "run", "split"]

SITE = Path(__file__).resolve().parent.parent / "runtime" / "sitecustom"
# Our own options that are followed by a value.
VALUED = ("--kernel", "--backend", "--gate")
# Options of mlx-lm's commands whose value is a model.
MODELS = ("--model", "--draft-model")
_DEFAULT_MODEL = re.compile(r'^DEFAULT_MODEL = "([^"]+)"', re.M)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`; they stand before the command."""
    parser.add_argument("--kernel", metavar="FOLDER", help="a kernel, or a registry root")
    parser.add_argument("--backend", choices=("metal", "cuda", "host"), help="default: the GPU")
    parser.add_argument("--gate", choices=("auto", "stored"), default="auto")
    parser.add_argument(
        "--any-correct",
        action="store_true",
        help="also run kernels that are correct but not faster, for checking",
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module: python -m")
    parser.add_argument(
        "wrapped",
        metavar="COMMAND",
        nargs="?",
        help="mlx_lm.generate ..., or what python runs: a script, a folder with __main__.py",
    )
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER)


def split(words: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """A command line as what is ours to parse and what is not: of `run` all behind COMMAND or
    -m MODULE is the wrapped command's own, whatever it looks like."""
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    if words[at : at + 1] != ["run"]:
        return words, []
    at += 1
    while at < len(words):
        word = words[at]
        if word in ("-m", "--"):
            at += 2
            break
        if not word.startswith("--"):
            at += 1
            break
        at += 2 if any(option.startswith(word) for option in VALUED) else 1
    return words[:at], list(words[at:])


def run(options: argparse.Namespace, out: object) -> NoReturn:
    """Become the command. Raises UsageError or BackendError before anything was started."""
    if options.module:
        argv = [sys.executable, "-m", options.module, *options.arguments]
    elif options.wrapped:
        argv = command_line(options.wrapped, options.arguments)
    else:
        raise UsageError("run what? Name a command of mlx-lm, a script, or -m MODULE")
    _check_kernels(options)
    if options.wrapped in _scripts():
        _check_models(options.wrapped, options.arguments)
    try:
        folder = tempfile.mkdtemp(prefix="mlx-lm-openevolve-run-")
    except OSError:  # a full disk: children are patched all the same, and not counted
        folder = ""
    settings = {
        "path": options.kernel and str(Path(options.kernel).absolute()),
        "backend": options.backend,
        "gate": options.gate,
        "require_faster": not options.any_correct,
        "json": options.json,
        "verbose": options.verbose,
        "pid": os.getpid(),
        "folder": folder,
    }
    sys.stdout.flush()
    sys.stderr.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)  # the command's signals are its own
    os.execve(argv[0], argv, environment(settings))


def command_line(command: str, arguments: Sequence[str]) -> list[str]:
    """What to execute for a command: mlx-lm's own script, or what Python runs, a file or a folder.
    Raises UsageError."""
    scripts = _scripts()
    if command not in scripts:
        _check_program(command, scripts)
        return [sys.executable, "--", command, *arguments]  # its name may begin with a dash
    script = Path(sysconfig.get_path("scripts")) / command
    if script.is_file():
        return [sys.executable, str(script), *arguments]
    point = scripts[command]  # installed where no script was written, such as with --target
    code = f"import sys; sys.argv[0] = {command!r}; from {point.module} import {point.attr} as main"
    return [sys.executable, "-c", f"{code}; sys.exit(main())", *arguments]


def _scripts() -> dict[str, metadata.EntryPoint]:
    """mlx-lm's commands. Raises UnsupportedVersionError."""
    try:
        points = metadata.distribution("mlx-lm").entry_points
    except metadata.PackageNotFoundError:
        raise UnsupportedVersionError("mlx-lm is not installed") from None
    return {point.name: point for point in points if point.group == "console_scripts"}


def _check_program(command: str, scripts: Mapping[str, object]) -> None:
    """Raise UsageError where `command` is nothing that Python runs."""
    path = Path(command)
    if path.is_dir() and not (path / "__main__.py").is_file():
        raise UsageError(f"{command}: a folder without __main__.py")
    if path.exists():
        if not os.access(path, os.R_OK):
            raise UsageError(f"{command}: Permission denied")
        return
    if command.endswith(".py") or "/" in command:
        raise UsageError(f"{command[:200]}: no such file")
    hint = ""
    if command.endswith("batch_generate"):
        hint = (
            " (batch_generate is a function of mlx_lm: run the script that calls it, or"
            " mlx_lm.benchmark --batch-size N)"
        )
    raise UsageError(
        f"{command[:80]!r} is no command of mlx-lm{hint}; choose from"
        f" {', '.join(sorted(scripts))}, or name a script.py"
    )


def environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a patched process: settings for `activate`, our folder first."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(SITE), *(path for path in known if path and path != str(SITE))]
    return {**os.environ, VARIABLE: json.dumps(settings), "PYTHONPATH": os.pathsep.join(paths)}


def _check_models(command: str, arguments: Sequence[str]) -> None:
    """A model or an adapter that cannot be loaded: mlx-lm would end in a traceback.

    mlx-lm parses its own arguments: only what is spelt out is read here, and of an option that is
    given twice the last. Whatever may name a model by another way is left to mlx-lm."""
    from ..hub import check_model

    given: dict[str, str] = {}
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        given[option] = value if equals else following
    for option in MODELS:
        if given.get(option):
            check_model(option, given[option])
    adapter = given.get("--adapter-path")
    # mlx_lm.lora writes it
    if adapter and command != "mlx_lm.lora" and not Path(adapter).expanduser().exists():
        raise UsageError(f"--adapter-path {adapter}: no such folder")
    own = "" if any(map(_may_name_model, given)) else _own_model(command)
    if own and all(map(_takes(command), given)):  # else mlx-lm says what it does not know
        check_model("--model, by default", own)


def _may_name_model(option: str) -> bool:
    """Whether an option, abbreviated perhaps, replaces a command's default model, as a saved prompt
    cache does, or asks for help."""
    abbreviated = len(option) > 2 and any(name.startswith(option) for name in ("--model", "--help"))
    return abbreviated or option == "-h" or option.startswith("--prompt-")


def _own_model(command: str) -> str:
    """The model that a command of mlx-lm takes where none is named, "" where it asks for one."""
    match = _DEFAULT_MODEL.search(_source(command))
    return match[1] if match else ""


def _takes(command: str) -> Callable[[str], bool]:
    """Whether a command of mlx-lm knows a word, which may be an option or an abbreviated one."""
    known = re.findall(r"[\"'](--[\w-]+)[\"']", _source(command))
    return lambda word: not word.startswith("--") or any(name.startswith(word) for name in known)


def _source(command: str) -> str:
    """Of a command of mlx-lm, "" for none: importing it takes as long as running it."""
    spec = util.find_spec("mlx_lm")
    name = f"{command.removeprefix('mlx_lm.')}.py"
    for folder in (spec.submodule_search_locations or []) if spec else []:
        with contextlib.suppress(OSError):
            return (Path(folder) / name).read_text()
    return ""


def _check_kernels(options: argparse.Namespace) -> None:
    from .. import backends
    from ..kernels.kernel import Kernel
    from ..kernels.registry import VERSION

    if options.backend:
        reason = backends.get(options.backend).unavailable()
        if reason:
            raise BackendError(f"backend {options.backend!r}: {reason}")
    if options.kernel:
        path = Path(options.kernel)
        if not (path / VERSION).is_dir():
            Kernel.load(path)
