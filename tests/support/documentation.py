"""Reads the README, its like and docs/: their commands, files, JSON, and the paths they name.

    $ a command      in a ```console block; what follows up to the next "$ " is expected of its
                     output: a line `...` stands for any lines, `...` within a line for anything,
                     and numbers need not be the same

A comment before a block says more:

    <!-- needs: gpu -->            cannot run everywhere: its arguments must parse all the same
    <!-- exit: 0 or 1 -->          exit codes of the block's mlx-lm-openevolve commands; default 0
    <!-- stand-in: NAME=value -->  a variable of the environment that the reader sets as told
    <!-- after: other.md -->       the files that another page shows are there
    <!-- file: PATH -->            the block is that file
    <!-- json: NAME -->            the block is the documented object of that name
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_SAYS = re.compile(r"<!-- ([a-z-]+): (.+?) -->")
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_PATH = re.compile(
    r"[\w.-]+(?:/[\w.-]+)*/|(?:[\w.-]+/)*[\w-]*\.(?:py|json|jsonl|md|svg|toml|yml|metal|cu|cpp|h|xz)"
)
_PLACEHOLDER = re.compile(r"(?:^|/)[A-Z]+[./]")  # RUN/..., NAME.metal


@dataclass(frozen=True)
class Command:
    """One command, with the output lines that are shown for it."""

    text: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, and what the comments before it say."""

    page: Path
    line: int
    language: str
    text: str
    says: dict[str, str] = field(default_factory=dict)

    @property
    def stand_in(self) -> dict[str, str]:
        """The variable that stands for something of the reader's, if there is one."""
        name, _, value = self.says.get("stand-in", "").partition("=")
        return {name: value} if name else {}

    @property
    def commands(self) -> list[Command]:
        """The commands of a console block."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and found[-1][0].endswith("\\"):
                found[-1] = (found[-1][0][:-1] + line.strip(), found[-1][1])
            elif found:
                found[-1][1].append(line)
        return [Command(text, tuple(shown)) for text, shown in found]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    says: dict[str, str] = {}
    inside: list[str] | None = None
    language, start = "", 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside is not None:
            if line == "```":
                found.append(Block(page, start, language, "\n".join(inside) + "\n", says))
                inside, says = None, {}
            else:
                inside.append(line)
        elif line.startswith("```"):
            inside, language, start = [], line[3:], number
        elif match := _SAYS.fullmatch(line.strip()):
            says = {**says, match[1]: match[2]}
        elif line.strip():
            says = {}
    assert inside is None, f"{page}: a block that does not end"
    return found


def write_files(page: Path, folder: Path) -> None:
    """The files that a page shows, in a folder."""
    for block in blocks(page):
        if "file" in block.says:
            path = folder / block.says["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


def paths(text: str) -> list[str]:
    """The folders (with a slash at the end) and files that a page names between backticks, within
    commands too; without placeholders such as RUN/answers/0007.md."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    words = [word for quoted in re.findall(r"`([^`]+)`", prose) for word in quoted.split()]
    return [word for word in words if _PATH.fullmatch(word) and not _PLACEHOLDER.search(word)]


def exists(path: str, page: Path) -> bool:
    """Whether a path that a page names is there: from the page, the repository or the package. A
    name without a folder may be that of any file."""
    folders = (page.parent, ROOT, ROOT / "mlx_lm_openevolve")
    found = [folder / path for folder in folders if (folder / path).exists()]
    if path.endswith("/"):
        return any(target.is_dir() for target in found)
    return bool(found) or ("/" not in path and path in _file_names())


@functools.cache
def _file_names() -> frozenset[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return frozenset(name.rpartition("/")[2] for name in listed)


_UNIT = r" ?%| (?:us|ms|s|seconds|minutes|GB|times)\b|x\b"
_FIGURE = re.compile(rf"(?<![\w.:/-])(\d[\d,]*\.\d+(?!\.?\d)|\d[\d,]*(?={_UNIT}))")
_VERSION = re.compile(r"\b(?:Python|MLX|mlx|mlx-lm|PyTorch|version|Qwen|Llama)[- ][\d.]*\d")


def sentences(page: Path) -> list[str]:
    """Paragraphs and list items, without what is no sentence: blocks, tables, code."""
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [part for part in re.split(r"\n\s*\n|\n(?=\s*(?:-|\d\.) )", text) if part.strip()]


def figures(text: str) -> list[str]:
    """What a sentence says was measured: numbers with a point or a unit; those of a sentence that
    names a results file, counts too."""
    plain = _VERSION.sub("", re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", "", text))
    plain = re.sub(r"\d{4}-\d\d-\d\d", "", plain)
    found = [match[1] for match in _FIGURE.finditer(plain)]
    if "benchmarks/results/" in text:
        counts = re.findall(r"(?<![\w.,:/-])\d[\d,]*\d(?![\w.:/-]*\d)", plain)
        found += [count for count in counts if count not in found]
    return found


@functools.cache
def numbers(path: Path) -> tuple[float, ...]:
    """All numbers of a results file but raw samples, among which any figure is found, and how long
    its lists are."""
    if path.suffix != ".json":
        return tuple(float(found) for found in re.findall(r"\d+\.?\d*", path.read_text()))
    found: list[float] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                if "samples" not in key:
                    walk(below)
        elif isinstance(value, list):
            found.append(len(value))
            for below in [] if _raw(value) else value:
                walk(below)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(value)

    walk(json.loads(path.read_text()))
    return tuple(found)


MANY = 8  # numbers in a row: more are samples, not results


def _raw(values: list[Any]) -> bool:
    """Whether a list is of samples: many numbers, or many lists of numbers."""
    rows = [value if isinstance(value, list) else [value] for value in values]
    return len(values) > MANY and all(isinstance(n, (int, float)) for row in rows for n in row)


def rounds_to(value: float, figure: str) -> bool:
    """Whether a value is that figure: as it is, in percent, in thousandths or in millionths."""
    plain = figure.replace(",", "")
    digits = len(plain.partition(".")[2])
    return any(f"{scale * value:.{digits}f}" == plain for scale in (1, 100, 1e3, 1e6))


def agrees(shown: tuple[str, ...], output: str) -> bool:
    """Whether an output is what the page shows."""
    if not shown:
        return True
    parts = []
    for line in shown:
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            words = [re.escape(_NUMBER.sub("#", word)) for word in line.split("...")]
            parts.append(r"[^\n]*".join(words).rstrip() + r"\s*?\n")
    text = "".join(line.rstrip() + "\n" for line in _NUMBER.sub("#", output).splitlines())
    return re.fullmatch("".join(parts), text) is not None


def documented() -> dict[str, Any]:
    """The documented JSON objects by name."""
    found = {}
    for page in PAGES:
        for block in blocks(page):
            if "json" in block.says:
                found[block.says["json"]] = json.loads(block.text)
    return found


def differs(name: str, got: Any) -> str:
    """Where an object is not as it is documented under that name, "" where it is."""
    known = documented()
    return _differs(known, known[name], got, name)


def _differs(known: dict[str, Any], shown: Any, got: Any, at: str) -> str:
    if isinstance(shown, str) and shown in known and shown.isupper():
        shown = known[shown]
    if got is None:
        return ""
    if isinstance(shown, dict):
        if not isinstance(got, dict):
            return f"{at}: {type(got).__name__} where an object is documented"
        return _keys(known, dict(shown), got, at)
    if isinstance(shown, list):
        if not isinstance(got, list):
            return f"{at}: {type(got).__name__} where a list is documented"
        found = (_differs(known, shown[0], item, f"{at}[]") for item in got if shown)
        return next((text for text in found if text), "")
    same = type(shown) is type(got) or {type(shown), type(got)} <= {int, float}
    return "" if same else f"{at}: {got!r} where {shown!r} is documented"


def _keys(known: dict[str, Any], shown: dict[str, Any], got: dict[str, Any], at: str) -> str:
    others = shown.pop("...", None)
    if isinstance(others, str) and others.isupper():
        shown = {**known[others], **shown}
        others = None
    variable = [key for key in shown if key.startswith("<")]
    if variable:
        pairs = [(shown[variable[0]], key, value) for key, value in got.items()]
    else:
        missing, foreign = shown.keys() - got.keys(), got.keys() - shown.keys()
        if missing or (foreign and others is None):
            return f"{at}: missing {sorted(missing)}, not documented {sorted(foreign)}"
        pairs = [(shown[key], key, got[key]) for key in shown]
    found = (_differs(known, want, value, f"{at}.{key}") for want, key, value in pairs)
    return next((text for text in found if text), "")
