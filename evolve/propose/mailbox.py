"""The proposer `mailbox`: each prompt is a file, each answer a file; any person or program can be
the model.

    RUN/prompts/0007.md       what is asked, with everything that is known so far
    RUN/answers/0007.md       the answer, as propose.answers reads it; or
    RUN/answers/0007/         a kernel folder (and note.txt)

An answer counts once it has not changed for a moment. Answers under numbers that nobody asked for
(extra.md, 0900/) are taken as well: a batch can be prepared beforehand.
"""

from __future__ import annotations

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
from .structural import ModelQuestion, ProfileParent, Structural, no_profile

__all__ = ["Mailbox"]

_SETTLED_SECONDS = 0.5
_LOOK_SECONDS = 0.2


class Mailbox(Structural):
    """The proposer of files. wait: seconds for which nobody may answer before the run ends."""

    name = "mailbox"

    def __init__(
        self,
        seeds: Sequence[Kernel],
        wait: float,
        say: Callable[[str], None] = lambda text: None,
        profile: ProfileParent = no_profile,
    ) -> None:
        super().__init__(seeds, profile)
        self._wait, self._say = wait, say

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """What was answered since: waits for one answer where there is none yet. Raises
        OpenEvolveError where the folders cannot be written."""
        prompts, answers = archive.folder / "prompts", archive.folder / "answers"
        taken = {c.cost.get("answer") for c in archive.candidates.values()}
        question = self.question(archive)
        name = f"{question.number:04d}"
        try:
            prompts.mkdir(exist_ok=True)
            answers.mkdir(exist_ok=True)
            write_atomic(prompts / f"{name}.md", question.text.encode())
        except OSError as error:
            raise OpenEvolveError(f"{archive.folder}: {error.strerror or error}") from None
        asked = time.monotonic()
        while not (paths := [p for p in self._answered(answers) if p.name not in taken]):
            if time.monotonic() - asked > self._wait or _spent(archive):
                archive.broken = f"nobody answered {prompts / name}.md for {self._wait:g} s"
                return []
            if time.monotonic() - asked < 2 * _LOOK_SECONDS:
                self._say(f"waiting for {answers / name}.md (prompt: {prompts / name}.md)")
            time.sleep(_LOOK_SECONDS)
        made = []
        for i, path in enumerate(paths[:count]):
            failed = question.failed if path.stem == name else None
            each = replace(question, number=question.number + i, failed=failed)
            made.append(self._read(archive, path, each))
        return made

    @staticmethod
    def _answered(answers: Path) -> list[Path]:
        """Answers that have settled, by name."""
        now = time.time()
        settled = []
        for path in sorted(answers.iterdir()):
            inside = list(path.iterdir()) if path.is_dir() else [path]
            newest = max((p.lstat().st_mtime for p in inside), default=now)
            if (path.is_dir() or path.suffix == ".md") and now - newest > _SETTLED_SECONDS:
                settled.append(path)
        return settled

    def _read(self, archive: Archive, path: Path, question: ModelQuestion) -> Candidate:
        """The candidate that an answer comes to."""
        origin = f"run {archive.folder.name} candidate {question.number}"
        note, error, kernel = "", "", None
        try:
            if path.is_dir():
                kernel, note = from_folder(path, origin)
            else:
                text = read_regular(path, 4 * MAX_ANSWER).decode(errors="replace")
                note = note_of(text)
                parent = archive.registry.kernel(parent_of(text)) or question.parent
                question = replace(question, parent=parent)
                kernel = apply(text, parent, origin)
        except (AnswerError, OSError) as problem:
            error = str(problem)
        cause, cost = "answer" if error else "", {"answer": path.name}
        return self.candidate(archive, question, kernel, note, cause, error, cost)


def _spent(archive: Archive) -> bool:
    seconds = archive.config.budget.seconds
    return bool(seconds) and archive.journal.now() >= seconds
