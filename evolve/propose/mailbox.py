"""Mailbox: each prompt is a file, each answer a file; any person or program can be the model.

    RUN/prompts/0007.md       what is asked, with everything that is known so far
    RUN/answers/0007.md       the answer, as propose.answers reads it; or
    RUN/answers/0007/         a kernel folder (and note.txt)

An answer counts once it has not changed for a moment. Answers under numbers that nobody asked for
(extra.md, 0900/) are taken as well: a batch can be prepared beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_lm_openevolve.errors import OpenEvolveError
from mlx_lm_openevolve.files import write_atomic
from mlx_lm_openevolve.kernels.kernel import Kernel

from .. import prompt
from ..archive import Archive
from ..candidate import Candidate
from .answers import AnswerError, apply, from_folder, note_of, parent_of
from .structural import Profile, Structural, choose_parent, fitting, no_profile, to_repair

__all__ = ["Mailbox"]

_SETTLED_SECONDS = 0.5
_LOOK_SECONDS = 0.2


class Mailbox(Structural):
    """The proposer of files. wait: seconds for which nobody may answer before the run ends."""

    def __init__(
        self,
        seeds: Sequence[Kernel],
        wait: float,
        say: Callable[[str], None] = lambda text: None,
        profile: Profile = no_profile,
    ) -> None:
        self._seeds, self._wait, self._say, self._profile = list(seeds), wait, say, profile

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """What was answered since: waits for one answer where there is none yet."""
        prompts, answers = archive.folder / "prompts", archive.folder / "answers"
        try:
            prompts.mkdir(exist_ok=True)
            answers.mkdir(exist_ok=True)
        except OSError as error:
            raise OpenEvolveError(f"{archive.folder}: {error.strerror or error}") from None
        taken = {c.cost.get("answer") for c in archive.candidates.values()}
        number = archive.next_number()
        failed = to_repair(archive, "mailbox")
        if failed is not None:
            parent = archive.registry.kernel(failed.kernel or failed.parent)
            parent, island = parent or self._seeds[0], failed.island
        else:
            parent, island = choose_parent(archive, self._seeds, number)
        name = f"{number:04d}"
        self._profile(archive, parent)
        text = prompt.build(archive, parent, failed=failed)
        try:
            write_atomic(prompts / f"{name}.md", text.text.encode())
        except OSError as error:
            raise OpenEvolveError(f"{prompts / name}.md: {error.strerror or error}") from None
        asked = time.monotonic()
        limit = self._wait
        while not (found := [p for p in self._answered(answers) if p.name not in taken]):
            if time.monotonic() - asked > limit or _spent(archive):
                archive.broken = f"nobody answered {prompts / name}.md for {limit:g} s"
                return []
            if time.monotonic() - asked < 2 * _LOOK_SECONDS:
                self._say(f"waiting for {answers / name}.md (prompt: {prompts / name}.md)")
            time.sleep(_LOOK_SECONDS)
        made = []
        for i, path in enumerate(found[:count]):
            ours = path.stem == name
            made.append(
                self._read(archive, path, number + i, parent, island, failed if ours else None)
            )
        return made

    @staticmethod
    def _answered(answers: Path) -> list[Path]:
        """Answers that have settled, by name."""
        now = time.time()
        settled = []
        for path in sorted(answers.iterdir()):
            inside = list(path.iterdir()) if path.is_dir() else [path]
            newest = max((p.stat().st_mtime for p in inside), default=now)
            if (path.is_dir() or path.suffix == ".md") and now - newest > _SETTLED_SECONDS:
                settled.append(path)
        return settled

    def _read(
        self,
        archive: Archive,
        path: Path,
        number: int,
        parent: Kernel,
        island: int,
        failed: Candidate | None,
    ) -> Candidate:
        origin = f"run {archive.folder.name} candidate {number}"
        note, error, kernel = "", "", None
        try:
            if path.is_dir():
                kernel, note = from_folder(path, origin)
            else:
                text = path.read_text(errors="replace")
                note = note_of(text)
                parent = archive.registry.kernel(parent_of(text)) or parent
                kernel = apply(text, parent, origin)
        except (AnswerError, OSError) as problem:
            error = str(problem)
        if kernel is not None:
            archive.registry.add(kernel)
        return Candidate(
            number=number,
            proposer="mailbox",
            kernel=kernel.id if kernel is not None else "",
            workloads=fitting(archive, kernel) if kernel is not None else (),
            parent=parent.id,
            note=note,
            cause="answer" if error else "",
            error=error,
            repairs=failed.number if failed is not None else 0,
            island=island,
            cost={"answer": path.name},
        )


def _spent(archive: Archive) -> bool:
    seconds = archive.config.budget.seconds
    return bool(seconds) and archive.journal.now() >= seconds
