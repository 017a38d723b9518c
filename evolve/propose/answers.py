"""From what a model or a person wrote to a kernel, or to the reason why there is none.

An answer holds a line `NOTE: what was changed and why`, if it is not about the kernel that was
asked about a line `PARENT <kernel id>`, and either edits of the parent's files

    EDIT split.metal
    <<<<<<< SEARCH
    old lines, exactly as they stand, found once
    =======
    new lines
    >>>>>>> REPLACE

or whole files (kernel.json among them where a launch, a knob or a grid changes)

    FILE split.metal
    ```metal
    ...
    ```
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from mlx_lm_openevolve.errors import KernelError, OpenEvolveError
from mlx_lm_openevolve.files import read_regular
from mlx_lm_openevolve.kernels.kernel import Kernel

__all__ = ["MAX_ANSWER", "AnswerError", "apply", "from_folder", "note_of", "parent_of"]

# All are tried on single lines, from their beginning: an answer costs what its length does.
_NAME = r"[:\s]+`?([A-Za-z0-9_]+\.(?:metal|cu|json))`?"
_FILE = re.compile(rf"[#*`\s]*FILE{_NAME}[*\s]*$")
_HEAD = re.compile(rf"[#*`\s]*EDIT{_NAME}")
_NOTE = re.compile(r"[#*\s]*NOTE[:*\s]+(\S.*)$")
_PARENT = re.compile(r"[#*\s]*PARENT[:*\s]+([0-9a-f]{12})\b")
_FENCE, _SEARCH, _BETWEEN, _REPLACE = "```", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
MAX_ANSWER = 1 << 20  # characters
MAX_NOTE = 300


class AnswerError(OpenEvolveError):
    """An answer from which no kernel can be read."""


def note_of(text: str) -> str:
    """What the answer says that it changed."""
    return _first(_NOTE, text).strip()[:MAX_NOTE]


def parent_of(text: str) -> str:
    """The id of the kernel that the answer names as its parent, "" where it names none."""
    return _first(_PARENT, text)


def _first(pattern: re.Pattern[str], text: str) -> str:
    """What a pattern finds in the first line that begins with it, "" where none does."""
    found = (pattern.match(line) for line in text[:MAX_ANSWER].splitlines())
    return next((match[1] for match in found if match), "")


def apply(text: str, parent: Kernel, origin: str) -> Kernel:
    """The kernel that an answer makes of its parent. Raises AnswerError with one clear line."""
    if not text.strip():
        raise AnswerError("the answer is empty")
    if len(text) > MAX_ANSWER:
        raise AnswerError(f"the answer is longer than {MAX_ANSWER} characters")
    files = {**parent.sources, "kernel.json": json.dumps(parent.meta, indent=1)}
    whole, edits = _parts(text)
    if not whole and not edits:
        raise AnswerError("the answer holds neither a FILE with a code block nor an EDIT")
    files |= whole
    for file, old, new in edits:
        if file not in files:
            raise AnswerError(f"EDIT {file}: the parent has no such file")
        times = files[file].count(old)
        if times != 1:
            line = next(iter(old.strip().splitlines()), "")
            raise AnswerError(
                f"EDIT {file}: the SEARCH text stands {times} times in it, expected once: {line}"
            )
        files[file] = files[file].replace(old, new)
    return _kernel(files, origin)


def _parts(text: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """(whole files by name, edits as (file, old, new)) in the order of the answer; a file's name
    holds for all edits below it."""
    lines = text.splitlines(keepends=True)
    fence, between, replace = (_places(lines, mark) for mark in (_FENCE, _BETWEEN, _REPLACE))
    whole: dict[str, str] = {}
    edits: list[tuple[str, str, str]] = []
    name, at = "", 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if head := _HEAD.match(line):
            name = head[1]
        elif file := _FILE.match(line):
            while at < len(lines) and not lines[at].strip():
                at += 1
            if at < fence[at] or (end := fence[at + 1]) == len(lines):
                continue  # no block of code, or one without an end
            whole[file[1]] = "".join(lines[at + 1 : end])
            at = end + 1
        elif line.startswith(_SEARCH):
            middle = between[at]
            end = replace[min(middle + 1, len(lines))]
            if end == len(lines):
                continue
            if not name:
                raise AnswerError("an edit without a line EDIT <file> above it")
            edits.append((name, "".join(lines[at:middle]), "".join(lines[middle + 1 : end])))
            at = end + 1
    return whole, edits


def _places(lines: list[str], mark: str) -> list[int]:
    """For each line, and for the end, the first line from there on that begins with `mark`; the
    number of lines where none does."""
    places = [len(lines)] * (len(lines) + 2)
    for i in reversed(range(len(lines))):
        places[i] = i if lines[i].startswith(mark) else places[i + 1]
    return places


def _kernel(files: dict[str, str], origin: str) -> Kernel:
    try:
        meta = json.loads(files.pop("kernel.json"))
        if not isinstance(meta, dict):
            raise KernelError("kernel.json: expected an object")
        meta["origin"] = origin
        launches = [x for x in meta.get("launches", []) if isinstance(x, dict)]
        used = {launch.get(key) for launch in launches for key in ("source", "header")}
        return Kernel.from_parts(meta, {name: text for name, text in files.items() if name in used})
    except KernelError as error:
        raise AnswerError(str(error)) from None
    except (ValueError, RecursionError, TypeError) as error:
        raise AnswerError(f"kernel.json: {error}") from None


def from_folder(folder: Path, origin: str) -> tuple[Kernel, str]:
    """A kernel handed in as a folder, with the text of its note.txt. Raises AnswerError."""
    try:
        kernel = Kernel.load(folder)
        note = folder / "note.txt"
        told = note.is_file()
        text = read_regular(note, 4 * MAX_NOTE).decode(errors="replace") if told else ""
        text = (text.strip() if told else kernel.description)[:MAX_NOTE]
        return Kernel.from_parts({**kernel.meta, "origin": origin}, kernel.sources), text
    except (KernelError, OSError, ValueError) as error:
        raise AnswerError(str(error)) from None
