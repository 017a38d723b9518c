"""From preprocessed Metal to C++ that clang takes: a pass over the text that keeps every line.

What C++ has no word for is read first (declarations.py); here what C++ spells otherwise is
rewritten: threadgroup variables, methods qualified by an address space, constructions of vectors,
half and bfloat literals.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping

from .brackets import blank, close, enclosing_braces, split_top
from .constructions import constructions, template_types
from .declarations import Declarations, read_declarations

__all__ = ["translate"]

_SPACES = "thread|device|threadgroup|constant|threadgroup_imageblock|ray_data|object_data"


def translate(text: str, constants: Mapping[int, object]) -> tuple[str, Declarations]:
    """C++ for a preprocessed source, and what it declares. `constants`: function constants by id.

    Raises: TranslationError.
    """
    text, declared = read_declarations(text, constants)
    for rewrite in (
        _pragmas, _qualified_types, _array_parameters, _constants, _methods, _thread_parameters,
        _threadgroup_variables, constructions,
    ):  # fmt: skip
        text = rewrite(text)
    return text, declared


def _pragmas(text: str) -> str:
    """Hints about warnings and fast math: they must not reach the passes that look for defects.
    Contraction changes results: clang has it by another name."""
    contraction = r"^([ \t]*#[ \t]*pragma[ \t]+)METAL([ \t]+fp[ \t]+contract\b)"
    text = re.sub(contraction, r"\1clang\2", text, flags=re.M)
    hints = r"^[ \t]*#[ \t]*pragma[ \t]+(?:METAL|clang[ \t]+diagnostic)\b[^\n]*"
    return re.sub(hints, "", text, flags=re.M)


_BUILTIN = (
    r"(?:(?:packed_)?(?:bool|u?(?:char|short|int|long)|half|bfloat|float)[234](?:x[234])?"
    r"|u(?:char|short|int|long))\b"
)


def _qualified_types(text: str) -> str:
    """`metal::float4`: here the built-in types are of no namespace."""
    pattern = rf"\busing\s+metal\s*::\s*{_BUILTIN}\s*;|\bmetal\s*::\s*(?={_BUILTIN})"
    return re.sub(pattern, lambda m: blank(m.group()), text)


def _array_parameters(text: str) -> str:
    """`constant int x[3]` as a parameter: clang wants the pointer that it stands for."""
    return re.sub(
        r"(?<=[(,])(\s*(?:const\s+)?(?:constant|device|threadgroup)\b[^,;(){}=*&]*?)"
        r"(\b[A-Za-z_]\w*)\s*\[[^\]]{0,400}\]((?:\s*\[[^\]]*\])*)(?=\s*[,)])",
        lambda m: f"{m[1]}(*{m[2]}){m[3]}" if m[3] else f"{m[1]}* {m[2]}",
        text,
    )


def _constants(text: str) -> str:
    """An integer in the constant address space is constant: it may be an array's bound."""
    integer = r"(?:u?(?:int|short|char|long)|(?:un)?signed|bool|size_t|u?int(?:8|16|32|64)_t)"
    return re.sub(
        rf"\bconstant\s+(?=(?:static\s+)?{integer}(?:\s+(?:int|short|char|long))*\s+\w+\s*[={{])",
        "constant const ",
        text,
    )


def _methods(text: str) -> str:
    """Metal repeats a method for each address space of `this`; here one serves for all, with a note
    for strict.py of those that it was written for."""
    pattern = re.compile(rf"\)(\s*const)?\s+({_SPACES})\b(\s*noexcept\b)?(?=\s*[{{:;=])")
    matches = list(pattern.finditer(text))
    if not matches:
        return text
    positions, enclosing = enclosing_braces(text)
    seen: dict[tuple[int, str], list[str]] = {}
    edits: list[tuple[int, int, list[str] | None]] = []  # with the spaces of one that stays
    for m in matches:
        depth, i = 0, m.start()
        while i >= 0:
            if text[i] == ")":
                depth += 1
            elif text[i] == "(":
                depth -= 1
                if depth == 0:
                    break
            i -= 1
        start = max(text.rfind(c, 0, i) for c in ";{}") + 1
        label = re.match(r"\s*(?:public|private|protected)\s*:(?!:)", text[start:i])
        if label:
            start += label.end()
        k = bisect_left(positions, start) - 1
        scope = enclosing[k] if k >= 0 else -1
        signature = "".join(text[start : m.start() + 1].split()) + (m.group(1) or "").strip()
        if (scope, signature) in seen:
            brace, semicolon = text.find("{", m.end()), text.find(";", m.end())
            if 0 <= semicolon < brace or brace < 0:
                end = semicolon + 1
            else:
                end = close(text, brace, "{}") + 1
            seen[scope, signature].append(m.group(2))
            edits.append((start, end, None))
        else:
            seen[scope, signature] = [m.group(2)]
            edits.append((m.start(2), m.end(2), seen[scope, signature]))
            if m.group(3):  # behind it
                at = m.end()
                edits[-1:] = [(m.start(2), m.end(2), None), (at, at, seen[scope, signature])]
    done = len(text)
    for start, end, spaces in reversed(edits):
        if end <= done:
            note = f' MH_SPACES("{" ".join(spaces)}")' if spaces else blank(text[start:end])
            text = text[:start] + note + text[end:]
            done = start
    return text


def _thread_parameters(text: str) -> str:
    """`thread T& v` of a template: T must not take another space with it, says strict.py."""
    names = "|".join(sorted(template_types(text))) or "(?!)"
    words = r"(?:(?:const|volatile)\s+)*"
    return re.sub(
        rf"(?<=[(,])(\s*{words})thread(?=\s+{words}(?:{names})\b\s*(?:const\s*)?[*&(])",
        r'\1MH_SPACES("thread") thread',
        text,
    )


_ALIGNED = r"(?:__attribute__\s*\(\(\s*aligned\s*\([^()]*\)\s*\)\)|alignas\s*\([^()]*\))"
_TG = re.compile(
    rf"(?<=[;{{}}\n>])([ \t]*)((?:{_ALIGNED}\s*|static\s+|volatile\s+)*)threadgroup\s+"
    rf"((?:[^;(){{}}=[]|\[[^;{{}}\]]*\]|{_ALIGNED})*)([;={{(])"
)
_DECLARATOR = r"([A-Za-z_]\w*)\s*((?:\[[^\]]*\]\s*)*)(?:=\s*(.*))?$"


def _threadgroup_variables(text: str) -> str:
    """Each is registered with the runtime; what initialises it is stored by every thread."""
    out, at = [], 0
    for m in _TG.finditer(text):
        space, prefix, _, _ = m.groups()
        previous = text[max(0, m.start() - 4096) : m.start()].rstrip()
        if m.start() < at or (
            previous and previous[-1] not in ";{}" and not _is_line_marker(previous)
        ):
            continue
        end = _statement_end(text, m.start(3))
        if end < 0:
            continue
        body = re.sub(_ALIGNED, "", text[m.start(3) : end])
        parts = split_top(body)
        head = re.match(rf"(.*?[\s>])\s*{_DECLARATOR}", parts[0], re.S)
        found = [head, *(re.match(rf"\s*{_DECLARATOR}", p, re.S) for p in parts[1:])]
        if head is None or None in found or re.search(r"[*&(]", head[1]):
            continue
        align = "".join(
            f"__attribute__((aligned({a}))) "
            for a in re.findall(r"align(?:ed|as)\s*\(([^()]*)\)", prefix + text[m.start(3) : end])
        )
        out += [text[at : m.start()], space]
        at = end + 1
        for k, declarator in enumerate(found):
            assert declarator is not None
            name, dims, value = declarator.groups()[-3:]
            # Only the first declarator keeps the line breaks of the type.
            spelled = align + (head[1] if k == 0 else " ".join(head[1].split()))
            out.append(
                f"typedef {spelled} {name}_mh_type{dims}; "
                f"static constexpr char {name}_mh_key = 0; "
                f"threadgroup {name}_mh_type& {name} = "
                f'mh::threadgroup_variable<{name}_mh_type>(&{name}_mh_key, "{name}");'
            )
            if value is not None:
                initial = f"{name}_mh_init"
                out.append(
                    f" const {name}_mh_type {initial} = {value}; mh::initialise({name}, {initial});"
                )
    return "".join([*out, text[at:]])


def _statement_end(text: str, at: int) -> int:
    """Where the `;` is that no bracket encloses; -1 where it is not near."""
    depth = 0
    for m in re.compile(r"[()\[\]{};]").finditer(text, at, at + 4096):
        depth += (m[0] in "([{") - (m[0] in ")]}")
        if depth < 0:
            return -1
        if m[0] == ";" and depth == 0:
            return m.start()
    return -1


def _is_line_marker(text: str) -> bool:
    return text[text.rfind("\n") + 1 :].lstrip().startswith("#")
