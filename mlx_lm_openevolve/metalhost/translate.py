"""From preprocessed Metal to C++ that clang takes: a pass over the text that keeps every line.

What C++ has no word for is read first (declarations.py); here what C++ spells otherwise is
rewritten: threadgroup variables, methods qualified by an address space, constructions of vectors,
half and bfloat literals.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping

from .brackets import blank, close, close_angle, enclosing_braces, split_top
from .declarations import Declarations, TranslationError, read_declarations

__all__ = ["translate"]

_SCALARS = (
    *("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"),
    *("half", "bfloat", "float"),
)
_VECTORS = [f"{s}{n}" for s in _SCALARS for n in (2, 3, 4)]
_SPACES = "thread|device|threadgroup|constant|threadgroup_imageblock|ray_data|object_data"


def translate(text: str, constants: Mapping[int, object]) -> tuple[str, Declarations]:
    """C++ for a preprocessed source, and what it declares. `constants`: function constants by id.

    Raises: TranslationError.
    """
    text, declared = read_declarations(_literals(text), constants)
    for rewrite in (
        _pragmas, _array_parameters, _constants, _methods, _threadgroup_variables,
        _direct_initialisers, _conversions, _vectors,
    ):  # fmt: skip
        text = rewrite(text)
    return text, declared


def _literals(text: str) -> str:
    number = r"(?<![\w.])((?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)"
    text = re.sub(number + r"[hH]\b", r"((half)\1f)", text)
    text = re.sub(number + r"(?:bf|BF)\b", r"((bfloat)\1f)", text)
    # "1f" is no C++ literal; "1.f" is.
    return re.sub(r"\((half|bfloat)\)(\d+)f\)", r"(\1)\2.f)", text)


def _pragmas(text: str) -> str:
    """Hints about warnings and fast math: they must not reach the passes that look for defects."""
    hints = r"^[ \t]*#[ \t]*pragma[ \t]+(?:METAL|clang[ \t]+diagnostic)\b[^\n]*"
    return re.sub(hints, "", text, flags=re.M)


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
    integer = r"(?:u?(?:int|short|char|long)|bool|size_t|u?int(?:8|16|32|64)_t)"
    return re.sub(
        rf"(?<![\w>]\s)(?<!\w)constant\s+({integer}\s+\w+\s*=)", r"constant const \1", text
    )


_DECLARES = re.compile(
    r"\s*(?:\.\.\.|(?:const|constant|device|threadgroup|thread)\b.*"
    r"|[A-Za-z_][\w:]*(?:\s*<.*>)?(?:\s+|\s*[*&]+\s*)[A-Za-z_]\w*)\s*",
    re.S,
)


def _direct_initialisers(text: str) -> str:
    """`float4 v(a, b, c, d);`: clang's vectors take `float4 v = float4(a, b, c, d);`."""
    names = "|".join(_VECTORS)
    head = re.compile(
        rf"(?<![\w.<:])((?:metal\s*::\s*)?(?:(?:{names})\b|vec\s*<[^<>;(){{}}]*>))"
        r"\s+(?!operator\b)[A-Za-z_]\w*\s*(?=\()"
    )
    out, at = [], 0
    for m in head.finditer(text):
        kind, end = m[1], m.end()
        if m.start() < at:
            continue
        while True:  # one declarator after another
            # An initialiser is short, and a hostile text is long.
            closing = close(text, end, "()", within=512)
            inside = text[end + 1 : closing]
            types = (*_SCALARS, *_VECTORS)
            if (
                closing < 0
                or not inside.strip()
                or not re.compile(r"\s*[;,]").match(text, closing + 1)
                or any(
                    _DECLARES.fullmatch(part) or part.strip() in types for part in split_top(inside)
                )
            ):
                break
            out += [text[at:end], f"= {kind}"]
            at = end
            following = re.compile(r"\s*,\s*[A-Za-z_]\w*\s*(?=\()").match(text, closing + 1)
            if following is None:
                break
            end = following.end()
    return "".join([*out, text[at:]])


def _conversions(text: str) -> str:
    """Casts between half and bfloat: clang has none, Metal does by way of float."""
    kind = r"(half|bfloat|float16_t|bfloat16_t)"
    text = re.sub(rf"\bstatic_cast\s*<\s*{kind}\s*>\s*\(", r"mh::convert<\1>(", text)
    call = rf"(?<![\w.:<~])(?<!operator ){kind}\s*\((?!\s*[*)])"
    return _casts(re.sub(call, r"mh::convert<\1>(", text), kind, "mh::Convert")


def _casts(text: str, kind: str, class_: str) -> str:
    """`(kind)x` by way of a class whose ->* converts: it binds as tightly, and takes `x` alone."""

    def cast(m: re.Match[str]) -> str:
        # Behind a name this is a parameter list: `f(float4)`.
        before = re.search(r"(\w*)\s*$", m.string[max(0, m.start() - 80) : m.start()])
        word = before[1] if before else ""
        return f"{class_}<{m[1]}>()->*" if word in ("", "return", "case", "else") else m[0]

    return re.sub(rf"\(\s*{kind}\s*\)(?=\s*[\w(.\-+~])", cast, text)


def _methods(text: str) -> str:
    """Metal repeats a method for each address space of `this`; here one serves for all."""
    pattern = re.compile(rf"\)(\s*const)?\s+({_SPACES})\b(?=\s*(?:noexcept\s*)?[{{:;=])")
    matches = list(pattern.finditer(text))
    if not matches:
        return text
    positions, enclosing = enclosing_braces(text)
    seen: set[tuple[int, str]] = set()
    edits: list[tuple[int, int]] = []
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
            edits.append((start, end))
        else:
            seen.add((scope, signature))
            edits.append((m.start(2), m.end(2)))
    done = len(text)
    for start, end in reversed(edits):
        if end <= done:
            text = text[:start] + blank(text[start:end]) + text[end:]
            done = start
    return text


_TG = re.compile(
    r"(?<=[;{}\n>])([ \t]*)((?:alignas\s*\([^()]*\)\s*|static\s+|volatile\s+)*)threadgroup\s+"
    r"((?:[^;(){}=[]|\[[^;{}\]]*\])*)([;={(])"
)


def _threadgroup_variables(text: str) -> str:
    def replace(m: re.Match[str]) -> str:
        space, prefix, body, stop = m.groups()
        previous = text[max(0, m.start() - 4096) : m.start()].rstrip()
        if previous and previous[-1] not in ";{}" and not _is_line_marker(previous):
            return m.group()
        parts = split_top(body)
        head = re.match(r"^(.*?[\s>*&])([A-Za-z_]\w*)\s*((?:\[.*\])?)\s*$", parts[0], re.S)
        if head is None or "*" in head.group(1) or "&" in head.group(1):
            return m.group()
        if stop == "=":
            message = "metalhost takes no initialiser of a threadgroup variable: store its values"
            raise TranslationError(message, m.start(3))
        if stop != ";":
            return m.group()
        kind = head.group(1)
        align = prefix.replace("static", "").replace("volatile", "")
        declarators = [(head.group(2), head.group(3))]
        for part in parts[1:]:
            more = re.match(r"^\s*([A-Za-z_]\w*)\s*((?:\[.*\])?)\s*$", part, re.S)
            if more is None:
                return m.group()
            declarators.append((more.group(1), more.group(2)))
        out = [space]
        for k, (name, dims) in enumerate(declarators):
            # Only the first declarator keeps the line breaks of the type.
            spelled = kind if k == 0 else " ".join(kind.split())
            out.append(
                f"typedef {align}{spelled} {name}_mh_type{dims}; "
                f"static constexpr char {name}_mh_key = 0; "
                f"threadgroup {name}_mh_type& {name} = "
                f'mh::threadgroup_variable<{name}_mh_type>(&{name}_mh_key, "{name}");'
            )
        return "".join(out)

    return _TG.sub(replace, text)


def _is_line_marker(text: str) -> bool:
    return text[text.rfind("\n") + 1 :].lstrip().startswith("#")


def _vectors(text: str) -> str:
    names = set(_VECTORS)
    for m in re.finditer(
        r"\busing\s+(\w+)\s*=\s*(?:typename\s+)?(?:metal\s*::\s*)?(\w+)\s*([<;])", text
    ):
        if (m.group(2) == "vec" and m.group(3) == "<") or m.group(2) in names:
            names.add(m.group(1))
    for m in re.finditer(r"\btypedef\s+(?:metal\s*::\s*)?(vec\s*<[^;]*>|\w+)\s+(\w+)\s*;", text):
        if m.group(1).startswith("vec") or m.group(1) in names:
            names.add(m.group(2))
    kind = "(?:" + "|".join(sorted(names, key=len, reverse=True)) + ")"
    text = re.sub(
        rf"\bstatic_cast\s*<\s*(?:metal\s*::\s*)?({kind})\s*>\s*\(", r"mh::make<\1>(", text
    )
    text = re.sub(
        # But not the pointer to a function in `float4 (*f)(...)`.
        rf"(?<![\w.:<~])(?<!operator )(?:metal\s*::\s*)?\b({kind})\s*\((?!\s*\*\s*\w+\s*\)\s*\()",
        r"mh::make<\1>(",
        text,
    )
    text = _casts(text, f"({kind})", "mh::Cast")
    text = _deducible(text)
    out, at = [], 0
    for m in re.finditer(r"(static_cast\s*<\s*)?(?<!operator )(?:\bmetal\s*::\s*)?\bvec\s*<", text):
        if m.start() < at:
            continue
        closing = close_angle(text, m.end() - 1)
        if closing < 0:
            continue
        spelled = "metal::vec<" + text[m.end() : closing + 1]
        rest = closing + 1
        if m.group(1):
            after = re.compile(r"\s*>\s*\(").match(text, rest)
        else:
            after = re.compile(r"\s*\(").match(text, rest)
        if after is None:
            continue
        out.append(text[at : m.start()] + f"mh::make<{spelled}>(")
        at = after.end()
    out.append(text[at:])
    return "".join(out)


def _deducible(text: str) -> str:
    """`vec<T, N>` in an alias template or in a parameter must be deducible from an argument."""
    alias = r"(\btemplate\s*<[^<>]*>\s*using\s+\w+\s*=\s*)(?:typename\s+)?(?:metal\s*::\s*)?vec\s*<"
    text = re.sub(alias, r"\1mh::DeducedVec<", text)
    parameter = re.compile(
        r"(?<=[(,])(\s*(?:(?:const|thread|device|threadgroup|constant)\s+)*)(?:metal\s*::\s*)?\bvec\s*<"
        r"(?=\s*[A-Za-z_]\w*\s*,\s*\w+\s*>\s*[\w&*])(?!\s*bool\b)"
    )
    return parameter.sub(r"\1mh::DeducedVec<", text)
