"""The proposer `llm`: asks any OpenAI-compatible endpoint for new source (OPENAI_API_KEY,
OPENAI_BASE_URL).

What comes back, whatever it is, is a candidate: a truncated or empty answer, an edit that does not
apply and an endpoint that fails are recorded failures with their cost. The run ends where the
endpoint failed several times in a row, and where the budget is spent.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.kernels.kernel import Kernel

from .. import prompt
from ..archive import Archive
from ..candidate import Candidate
from ..config import LanguageModel, LlmConfig
from .answers import AnswerError, apply, note_of
from .structural import ModelQuestion, ProfileParent, Structural, no_profile

__all__ = ["LlmProposer", "Reply", "ask", "connect"]

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_REACH = 5.0  # seconds for an endpoint to list its models
_SYSTEM = "You are an expert in GPU kernels. Answer in exactly the format that is asked for."


@dataclass(frozen=True)
class Reply:
    """What an endpoint said, with its tokens; cause and error where it is no answer."""

    text: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cause: str = ""
    error: str = ""


class LlmProposer(Structural):
    """The proposer that asks models. say: prints a line for people. `sleep` is for the tests."""

    name = "llm"

    def __init__(
        self,
        seeds: Sequence[Kernel],
        profile: ProfileParent = no_profile,
        *,
        say: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(seeds, profile)
        self._say, self._sleep = say, sleep
        self._client: Any = None
        self._models: tuple[LanguageModel, ...] = ()

    def propose(self, archive: Archive, count: int) -> list[Candidate]:
        """The answers to `count` questions, which are asked side by side. Raises UsageError where
        there is no endpoint to ask."""
        settings = archive.config.llm
        if self._client is None:
            self._client, self._models = connect(settings)
        first, room = archive.next_number(), settings.context - settings.answer
        asked = []
        for question in self.questions(archive, range(first, first + count), room):
            future: Future[tuple[Reply, dict[str, Any]]] = Future()
            asked.append((question, future))
            # No pool: Ctrl-C would wait for its threads, and they for the model.
            threading.Thread(
                target=self._fill, args=(future, archive, question), daemon=True
            ).start()
        made = [self._read(archive, question, *future.result()) for question, future in asked]
        self._count_failures(archive, made)
        return made

    def _fill(
        self,
        future: Future[tuple[Reply, dict[str, Any]]],
        archive: Archive,
        question: ModelQuestion,
    ) -> None:
        """Ask a model; the future gets its reply and what that cost."""
        rng = random.Random(f"model {archive.config.seed} {question.number}")
        model = rng.choices(self._models, [m.weight for m in self._models])[0]
        started = time.monotonic()
        try:
            reply = self._ask(archive, model, question.text)
            spent = reply.tokens_in * model.price_in + reply.tokens_out * model.price_out
            cost = {
                "model": model.name,
                "tokens_in": reply.tokens_in,
                "tokens_out": reply.tokens_out,
                "money": spent / 1e6,
                "seconds": round(time.monotonic() - started, 2),
            }
            future.set_result((reply, cost))
        except BaseException as error:
            future.set_exception(error)

    def _read(
        self, archive: Archive, question: ModelQuestion, reply: Reply, cost: dict[str, Any]
    ) -> Candidate:
        """The candidate that a reply comes to."""
        cause, error, kernel = reply.cause, reply.error, None
        if not cause:
            origin = f"run {archive.folder.name} candidate {question.number}"
            try:
                kernel = apply(reply.text, question.parent, origin)
            except AnswerError as problem:
                cause, error = "answer", str(problem)
        note = note_of(reply.text)
        return self.candidate(archive, question, kernel, note, cause, error, cost)

    @staticmethod
    def _count_failures(archive: Archive, made: Sequence[Candidate]) -> None:
        """End the run where the endpoint itself keeps failing; a model's rubbish never ends it."""
        limit = archive.config.llm.failures
        known = [c for c in archive.candidates.values() if c.proposer == "llm"]
        causes = [c.cause for c in (*known, *made)][-limit:]
        if len(causes) == limit and set(causes) == {"endpoint"}:
            archive.broken = f"the endpoint failed {limit} times in a row: {made[-1].error}"

    def _ask(self, archive: Archive, model: LanguageModel, text: str) -> Reply:
        """The endpoint's reply. Retries what may pass by itself, with growing pauses, as long as
        the run's time lasts; where that failed for the last question, this one is asked once."""
        import openai

        settings = archive.config.llm
        wait, error = _FIRST_WAIT, "no answer"
        asked = [c.cause for c in archive.candidates.values() if c.proposer == "llm"]
        retries = 0 if asked[-1:] == ["endpoint"] else settings.retries
        for attempt in range(retries + 1):
            if attempt:
                seconds = archive.config.budget.seconds
                if seconds and archive.journal.now() + wait >= seconds:
                    return Reply(cause="endpoint", error=f"{error}; the run's time is spent")
                self._say(f"the endpoint: {error}; asked again in {wait:g} s")
                self._sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            try:
                return ask(self._client, model.name, text, settings.answer)
            except openai.APITimeoutError:
                error = f"no answer within {settings.timeout:g} s"
            except openai.APIConnectionError as problem:
                error = f"no connection: {problem.__cause__ or problem}"
            except openai.APIStatusError as problem:
                error = f"HTTP {problem.status_code}: {str(problem)[:200]}"
                if problem.status_code not in (408, 409, 429) and problem.status_code < 500:
                    break
                wait = max(wait, _retry_after(problem))
            except openai.OpenAIError as problem:
                error = str(problem)[:200]
        return Reply(cause="endpoint", error=error)


def ask(client: Any, model: str, text: str, answer: int) -> Reply:
    """What a model says to `text`, in at most `answer` tokens. Raises what the client raises."""
    said = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}],
        max_tokens=answer,
    )
    return _read(said, text)


def connect(settings: LlmConfig) -> tuple[Any, tuple[LanguageModel, ...]]:
    """A client of the endpoint, and the models to ask: those of the settings, else its first. One
    small request shows that somebody is there. Raises UsageError."""
    import openai

    address = os.environ.get("OPENAI_BASE_URL", "")
    key = os.environ.get("OPENAI_API_KEY", "")
    if not (key or address):
        raise UsageError(
            "--proposer llm needs OPENAI_API_KEY, or OPENAI_BASE_URL of an endpoint of your own"
        )
    if not (key.isascii() and key.isprintable()):  # no header takes it, and errors would show it
        raise UsageError("OPENAI_API_KEY holds characters that no key has")
    where = address or "OpenAI's endpoint"
    names: list[str] = []
    try:
        client = openai.OpenAI(
            api_key=key or "none",
            timeout=openai.Timeout(settings.timeout, connect=_REACH),
            max_retries=0,  # ours are on record
        )
    except Exception as error:  # an address that is none
        raise UsageError(f"{where}: {_line(error)}") from None
    try:
        names = [model.id for model in client.models.list(timeout=_REACH)]
    except openai.AuthenticationError as error:
        raise UsageError(f"{where} refuses OPENAI_API_KEY: HTTP {error.status_code}") from None
    except openai.APITimeoutError as error:
        busy = type(error.__cause__).__name__ == "ReadTimeout"  # somebody is there
        if not (busy and settings.models):
            raise UsageError(f"{where}: no answer within {_REACH:g} s") from None
    except openai.APIConnectionError as error:
        raise UsageError(f"{where}: no connection: {error.__cause__ or error}") from None
    except Exception as error:  # whatever else stands there need not list its models
        if not settings.models:
            raise UsageError(f"{where} names no model, give --llm NAME: {_line(error)}") from None
    if not (settings.models or names):
        raise UsageError(f"{where} has no model")
    return client, settings.models or (LanguageModel(names[0]),)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _retry_after(problem: Any) -> float:
    """Seconds that the endpoint asks us to wait, 0 where it does not say."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(problem.response.headers["retry-after"])))
    except (KeyError, ValueError, AttributeError):
        return 0.0


def _read(answer: Any, asked: str) -> Reply:
    """A chat completion as a reply; tokens are estimated where the endpoint does not count."""
    choice = answer.choices[0] if getattr(answer, "choices", None) else None
    text = (choice.message.content or "") if choice is not None and choice.message else ""
    usage = getattr(answer, "usage", None)
    reply = Reply(
        text,
        getattr(usage, "prompt_tokens", None) or prompt.tokens_of(asked),
        getattr(usage, "completion_tokens", None) or prompt.tokens_of(text),
    )
    if not text.strip():
        return replace(reply, cause="empty", error="the model answered nothing")
    if choice is not None and choice.finish_reason == "length":
        return replace(reply, cause="truncated", error="the answer was cut at its token limit")
    return reply
