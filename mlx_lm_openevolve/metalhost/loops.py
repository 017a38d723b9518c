"""Loops that count their iterations: a wait in one is known by the iteration too.

A thread waits at a place of the program (its path of calls, runtime/schedule.cpp), in one iteration
of each loop around it. Threads at one place in different iterations are not together.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from .lint import tokens

__all__ = ["count_iterations"]

_LOOP = re.compile(r"\b(?:for|while|do)\b")
_BRACKET = re.compile(r"[][(){}]")
_END = re.compile(r"[][(){};]")
_BEFORE = re.compile(r"\s*(?:(?:\[\[[^\[\]]*\]\]|#[^\n]*\n)\s*)*")
_HEAD = re.compile(r"(for|while|switch|if|do)\b(?:\s*constexpr\b)?\s*")
_ELSE = re.compile(r"\s*else\b")
_CONDITION = re.compile(r"\s*(while)\s*(?=\()")
_CONSTEXPR = re.compile(r"\bconstexpr\s+\w[^;{}=()]{0,200}\(")
_BODY = re.compile(r"[^;{}=]{0,400}\{")
# What waits is called, or is an operator of matrices. Conversions to scalars and vectors wait for
# nobody, and Metal's arithmetic does not where the text has no function of that name.
_CALL = re.compile(
    r"(?<!\w)(?!(?:for|while|switch|if|return|sizeof|static_cast|as_type"
    r"|(?:bool|u?char|u?short|u?int|u?long|half|bfloat|float)[234]?)\b)"
    r"([A-Za-z_]\w*)\s*(?:<[^;(){}]{0,200}>\s*)?\(|\)\s*\("
)
_DEFINITION = re.compile(r"\b(\w+)\s*\([^(){};]*\)\s*\w*\s*\{")
_ARITHMETIC = {
    *("abs", "clamp", "dot", "exp", "exp2", "fabs", "fma", "fmax", "fmin", "log", "log2", "max"),
    *("min", "mix", "pow", "rsqrt", "select", "sqrt", "tanh"),
}
_MATRICES = re.compile(r"\bsimdgroup_(?:matrix\b|\w+\dx\d)")
_NESTED = 256  # brackets, as in clang

_Edits = dict[int, list[tuple[int, str]]]  # by where a loop begins: places, and what is put there


def count_iterations(text: str) -> str:
    """The text with a counter (shim/simd.h) in every loop that may wait; no line moves. Brackets
    that the compiler refuses leave a text as it is."""
    code = tokens(text)
    closing = _closing(code)
    if closing is None or not _LOOP.search(code):
        return text
    arithmetic = _ARITHMETIC.difference(m[1] for m in _DEFINITION.finditer(code))
    calls = [m.start() for m in _CALL.finditer(code) if m[1] not in arithmetic]
    everywhere = _MATRICES.search(code) is not None
    functions = [(m.start(), _function_end(code, m.end() - 1, closing))
                 for m in _CONSTEXPR.finditer(code)]  # fmt: skip
    edits: _Edits = {}
    ends: dict[int, int] = {}
    for m in reversed(list(_LOOP.finditer(code))):  # what a loop holds comes before it
        at = m.start()
        while functions and functions[-1][0] > at:
            functions.pop()
        if functions and at < functions[-1][1]:
            continue  # what is constexpr waits for nobody
        end = ends[at] = _statement_end(code, at, closing, ends, edits)
        body = m.end() if m.group() == "do" else closing.get(code.find("(", m.end()), -1) + 1
        k = bisect_left(calls, m.end())
        if end < 0 or body <= 0 or not (everywhere or (k < len(calls) and calls[k] < end)):
            continue
        edits[at] = [
            (_above_pragmas(code, at), "{mh::Loop mh_loop; "),
            (body, " if (!mh_loop.turn()) {} else "),
            (end, "}"),
        ]
    out, done = [], 0
    pieces = [piece for of_loop in reversed(edits.values()) for piece in of_loop]
    for place, piece in sorted(pieces, key=lambda edit: edit[0]):
        out += [text[done:place], piece]
        done = place
    return "".join([*out, text[done:]])


def _closing(code: str) -> dict[int, int] | None:
    """For each opening bracket the position of its closing one. None where the compiler would
    refuse them."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for m in _BRACKET.finditer(code):
        if m.group() in "([{":
            opened.append(m.start())
            if len(opened) > _NESTED:
                return None
        elif not opened:
            return None
        else:
            closing[opened.pop()] = m.start()
    return None if opened else closing


def _function_end(code: str, at: int, closing: dict[int, int]) -> int:
    """Where the body of the function ends whose parameters begin at `at`; 0 without a body."""
    m = _BODY.match(code, closing[at] + 1)
    return closing[m.end() - 1] if m else 0


def _statement_end(
    code: str, at: int, closing: dict[int, int], ends: dict[int, int], edits: _Edits
) -> int:
    """Behind the statement that begins at `at`; -1 where there is none. `ends`: of the loops in it.
    The `while` of a `do` is no loop: what `edits` has of it is taken out."""
    around: list[str] = []
    while True:
        at = _BEFORE.match(code, at).end()  # type: ignore[union-attr]
        head = None if at in ends else _HEAD.match(code, at)
        if head is not None:
            at = head.end()
            if head[1] != "do":
                at = closing.get(at, -1) + 1
                if not at:
                    return -1
            if head[1] in ("if", "do"):
                around.append(head[1])
            continue
        if at in ends:
            at = ends[at]
        elif code.startswith("{", at):
            at = closing[at] + 1
        else:
            at = _expression_end(code, at, closing)
        while at > 0 and around:
            if around.pop() == "do":
                condition = _CONDITION.match(code, at)
                if condition is None:
                    return -1
                edits.pop(condition.start(1), None)
                at = _expression_end(code, condition.end(), closing)
            elif otherwise := _ELSE.match(code, at):
                at = otherwise.end()
                break
        else:
            return at


def _expression_end(code: str, at: int, closing: dict[int, int]) -> int:
    """Behind the next semicolon that no bracket encloses; -1 where they close before."""
    while m := _END.search(code, at):
        if m.group() == ";":
            return m.end()
        if m.start() not in closing:
            return -1
        at = closing[m.start()] + 1
    return -1


def _above_pragmas(code: str, at: int) -> int:
    """Where a statement begins with the directives right before it."""
    while True:
        line = at
        while line and code[line - 1] in " \t":
            line -= 1
        if not line or code[line - 1] != "\n":
            return at
        before = code.rfind("\n", 0, line - 1) + 1
        above = code[before : line - 1].strip()
        if above and not above.startswith("#"):
            return line - 1
        at = before
