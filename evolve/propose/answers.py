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
from mlx_lm_openevolve.kernels.kernel import Kernel

__all__ = ["AnswerError", "apply", "from_folder", "note_of", "parent_of"]

_FILE = re.compile(
    r"^[#*`\s]*FILE[:\s]+`?([A-Za-z0-9_]+\.(?:metal|cu|json))`?[*\s]*\n+```[^\n]*\n(.*?)^```",
    re.M | re.S,
)
_EDIT = re.compile(
    r"^<<<<<<< SEARCH[^\n]*\n(.*?)^=======[^\n]*\n(.*?)^>>>>>>> REPLACE", re.M | re.S
)
_HEAD = re.compile(r"^[#*`\s]*EDIT[:\s]+`?([A-Za-z0-9_]+\.(?:metal|cu|json))`?", re.M)
_NOTE = re.compile(r"^[#*\s]*NOTE[:*\s]+(.+)$", re.M)
_PARENT = re.compile(r"^[#*\s]*PARENT[:*\s]+([0-9a-f]{12})\b", re.M)
_MAX_ANSWER = 1 << 20


class AnswerError(OpenEvolveError):
    """An answer from which no kernel can be read."""


def note_of(text: str) -> str:
    """What the answer says that it changed."""
    match = _NOTE.search(text)
    return match[1].strip()[:300] if match else ""


def parent_of(text: str) -> str:
    """The id of the kernel that the answer names as its parent, "" where it names none."""
    match = _PARENT.search(text)
    return match[1] if match else ""


def apply(text: str, parent: Kernel, origin: str) -> Kernel:
    """The kernel that an answer makes of its parent. Raises AnswerError with one clear line."""
    if not text.strip():
        raise AnswerError("the answer is empty")
    if len(text) > _MAX_ANSWER:
        raise AnswerError(f"the answer is longer than {_MAX_ANSWER} characters")
    files = {**parent.sources, "kernel.json": json.dumps(parent.meta, indent=1)}
    whole = dict(_FILE.findall(text))
    edits = _edits(text)
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


def _edits(text: str) -> list[tuple[str, str, str]]:
    """(file, old, new) in the order of the answer; a file's name holds for all edits below it."""
    heads = [(match.start(), match[1]) for match in _HEAD.finditer(text)]
    edits = []
    for match in _EDIT.finditer(text):
        names = [name for at, name in heads if at < match.start()]
        if not names:
            raise AnswerError("an edit without a line EDIT <file> above it")
        edits.append((names[-1], match[1], match[2]))
    return edits


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
        text = note.read_text()[:300].strip() if note.is_file() else kernel.description[:300]
        return Kernel.from_parts({**kernel.meta, "origin": origin}, kernel.sources), text
    except (KernelError, OSError, ValueError) as error:
        raise AnswerError(str(error)) from None
