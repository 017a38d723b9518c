"""The proposer `mailbox`: each prompt is a file, each answer a file; any person or program can be
the model.

    RUN/prompts/0007.md       what is asked, with everything that is known so far
    RUN/answers/0007.md       the answer, as propose.answers reads it; or
    RUN/answers/0007/         a kernel folder (and note.txt)

An answer counts once it has not changed for a moment. Prompts are written once no answer is left,
several at a time where `ahead` says so: each names its own parent in its first line. Answers under
numbers that nobody asked for (extra.md, 0900/) are taken as well: a batch can be prepared
beforehand.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_lm_openevolve.errors import OpenEvolveError
from mlx_lm_openevolve.files import read_regular, write_atomic
from mlx_lm_openevolve.kernels.kernel import Kernel

from ..archive import Archive
from ..candidate import Candidate
from .answers import MAX_ANSWER, AnswerError, apply, from_folder, note_of, parent_of
from .structural import ModelQuestion, ProfileParent, Structural, choose_parent, no_profile

__all__ = ["Mailbox", "first_line"]

_SETTLED_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_SHOWN = 20_000  # characters of an answer that failed
# The first line of a prompt, from which its answer gets its place in the run.
_ASKED = "Prompt {:04d}, after {} candidates: parent {}, island {}, repairs {}"
_FIRST_LINE = re.compile(
    r"Prompt \d+, after (?P<after>\d+) candidates: parent (?P<parent>[0-9a-f]{12}), "
    r"island (?P<island>\d+), repairs (?P<repairs>\d+)$",
    re.MULTILINE,
)
_SIDE_BY_SIDE = """\
It is one of {} prompts that are answered side by side; nobody sees what the others try. Do not take
the nearest idea: take one that you think the others will not.
"""


class Mailbox(Structural):
    """The proposer of files. wait: seconds for which nobody may answer before the run ends; ahead:
    prompts that are open at a time; context: what each may take, in tokens (0: no limit)."""

    name = "mailbox"

    def __init__(
        self,
        seeds: Sequence[Kernel],
        wait: float,
        say: Callable[[str], None] = lambda text: None,
        profile: ProfileParent = no_profile,
        ahead: int = 1,
        context: int = 0,
    ) -> None:
        super().__init__(seeds, profile)
        self._wait, self._say, self._ahead, self._context = wait, say, ahead, context

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """What was answered since: where there is nothing, asks and waits for one answer. Raises
        OpenEvolveError where the folders cannot be written."""
        paths = self._answered(archive)
        if not paths:
            name = self.ask(archive)
            asked = time.monotonic()
            self._say(f"waiting for {archive.folder / 'answers' / name} (prompt: prompts/{name})")
            while not (paths := self._answered(archive)):
                if time.monotonic() - asked > self._wait or _spent(archive):
                    prompt = archive.folder / "prompts" / name
                    archive.broken = f"nobody answered {prompt} for {self._wait:g} s"
                    return []
                time.sleep(_LOOK_SECONDS)
        first = archive.next_number()
        return [self._read(archive, path, first + i) for i, path in enumerate(paths[:count])]

    def ask(self, archive: Archive) -> str:
        """Write `ahead` prompts, unless those that are open say all that is known; the file name of
        the first. What was asked before stays as it is. Raises OpenEvolveError."""
        known, asked = len(archive.candidates), sorted((archive.folder / "prompts").glob("*.md"))
        for path in asked:
            about = first_line(path)
            if about and int(about["after"]) == known:
                return path.name
        numbers = [int(path.stem) for path in asked if path.stem.isdigit()]
        first = max([archive.next_number(), *(number + 1 for number in numbers)])
        numbers = list(range(first, first + self._ahead))
        for question in self.questions(archive, numbers, self._context):
            failed = question.failed.number if question.failed is not None else 0
            place = question.number, known, question.parent.id, question.island, failed
            beside = _SIDE_BY_SIDE.format(self._ahead) if self._ahead > 1 else ""
            text = f"{_ASKED.format(*place)}\n{beside}\n{question.text}"
            try:
                for folder in ("prompts", "answers"):
                    (archive.folder / folder).mkdir(exist_ok=True)
                if question.failed is not None and not question.failed.kernel:
                    path = archive.folder / "answers" / question.failed.cost["answer"]
                    if path.is_file():
                        text += f"\n## The answer that failed\n{_text(path)[:_SHOWN]}\n"
                prompt = archive.folder / "prompts" / f"{question.number:04d}.md"
                write_atomic(prompt, text.encode())
            except OSError as error:
                raise OpenEvolveError(f"{archive.folder}: {error.strerror or error}") from None
        return f"{first:04d}.md"

    @staticmethod
    def _answered(archive: Archive) -> list[Path]:
        """Answers that have settled and were not taken yet, by name."""
        taken = {c.cost.get("answer") for c in archive.candidates.values()}
        answers, now = archive.folder / "answers", time.time()
        settled = []
        for path in sorted(answers.iterdir()) if answers.is_dir() else ():
            inside = list(path.iterdir()) if path.is_dir() else [path]
            newest = max((p.lstat().st_mtime for p in inside), default=now)
            fits = (path.is_dir() or path.suffix == ".md") and path.name not in taken
            if fits and now - newest > _SETTLED_SECONDS:
                settled.append(path)
        return settled

    def _question(self, archive: Archive, path: Path, number: int) -> ModelQuestion:
        """What an answer is to, by the first line of the prompt of its name; without one it is to
        a question that might have been asked."""
        asked = first_line(archive.folder / "prompts" / f"{path.stem}.md")
        parent = archive.registry.kernel(asked["parent"]) if asked else None
        if asked and parent is not None:
            failed = archive.candidates.get(int(asked["repairs"]))
            return ModelQuestion(number, parent, int(asked["island"]), failed, "")
        return ModelQuestion(number, *choose_parent(archive, self._seeds, number), None, "")

    def _read(self, archive: Archive, path: Path, number: int) -> Candidate:
        """The candidate that an answer comes to."""
        question = self._question(archive, path, number)
        origin = f"run {archive.folder.name} candidate {number}"
        note, error, kernel = "", "", None
        try:
            if path.is_dir():
                kernel, note = from_folder(path, origin)
            else:
                text = _text(path)
                note = note_of(text)
                parent = archive.registry.kernel(parent_of(text)) or question.parent
                question = replace(question, parent=parent)
                kernel = apply(text, parent, origin)
        except (AnswerError, OSError) as problem:
            error = str(problem)
        cause, cost = "answer" if error else "", {"answer": path.name}
        return self.candidate(archive, question, kernel, note, cause, error, cost)


def _text(path: Path) -> str:
    """An answer. Raises OSError."""
    return read_regular(path, 4 * MAX_ANSWER).decode(errors="replace")


def first_line(prompt: Path) -> re.Match[str] | None:
    """What the first line of a prompt says, None where there is none."""
    try:
        return _FIRST_LINE.match(read_regular(prompt, 200).decode(errors="replace"))
    except OSError:
        return None


def _spent(archive: Archive) -> bool:
    seconds = archive.config.budget.seconds
    return bool(seconds) and archive.journal.now() >= seconds
