"""Constructions of vectors and scalars as C++ that clang takes: initialisers, conversions, casts,
braces. mh::make, mh::convert and mh::braces (shim/vectors.h) do the work."""

from __future__ import annotations

import re

from .brackets import close, close_angle, split_top

__all__ = ["constructions", "template_types"]

_SCALARS = (
    *("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"),
    *("half", "bfloat", "float"),
)
_VECTORS = [f"{s}{n}" for s in _SCALARS for n in (2, 3, 4)]


def constructions(text: str) -> str:
    """The text with every construction rewritten, line by line."""
    names = _vector_names(text)
    text = _direct_initialisers(_literals(text), names)
    text = _member_initialisers(text, names)
    return _vectors(_conversions(_braces(text)), names)


def _vector_names(text: str) -> set[str]:
    """The vector types, and what the source calls them."""
    names = set(_VECTORS)
    for m in re.finditer(
        r"\busing\s+(\w+)\s*=\s*(?:typename\s+)?(?:metal\s*::\s*)?(\w+)\s*([<;])", text
    ):
        if (m.group(2) == "vec" and m.group(3) == "<") or m.group(2) in names:
            names.add(m.group(1))
    for m in re.finditer(r"\btypedef\s+(?:metal\s*::\s*)?(vec\s*<[^;]*>|\w+)\s+(\w+)\s*;", text):
        if m.group(1).startswith("vec") or m.group(1) in names:
            names.add(m.group(2))
    return names


def template_types(text: str) -> set[str]:
    """The names of the templates' type parameters."""
    return set(re.findall(r"[<,]\s*(?:typename|class)\s+(\w+)\s*(?=[,>=])", text))


def _any_of(names: set[str]) -> str:
    return "(?:" + "|".join(sorted(names, key=len, reverse=True)) + ")"


def _literals(text: str) -> str:
    number = r"(?<![\w.])((?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)"
    text = re.sub(number + r"[hH]\b", r"((half)\1f)", text)
    text = re.sub(number + r"(?:bf|BF)\b", r"((bfloat)\1f)", text)
    # "1f" is no C++ literal; "1.f" is.
    return re.sub(r"\((half|bfloat)\)(\d+)f\)", r"(\1)\2.f)", text)


_DECLARES = re.compile(
    r"\s*(?:\.\.\.|(?:const|constant|device|threadgroup|thread)\b.*"
    r"|([A-Za-z_][\w:]*)(?:\s*<.*>)?(?:\s+|\s*([*&]+)\s*)[A-Za-z_]\w*)\s*",
    re.S,
)
_TYPES = re.compile(
    r"\b(?:typename|class|struct|union|enum|using)\s+(\w+)"
    r"|\btypedef\b[^;{}]{0,256}?\b(\w{1,64})\s*;|\}\s*(\w+)\s*;"
)


def _declares(part: str, types: set[str | None]) -> bool:
    """Whether an argument declares a parameter. `a * b` does where `a` is a type."""
    found = _DECLARES.fullmatch(part)
    if found is None:
        return part.strip() in types
    return not found[2] or found[1] in types


def _direct_initialisers(text: str, names: set[str]) -> str:
    """`float4 v(a, b, c, d);`: clang's vectors take `float4 v = float4(a, b, c, d);`."""
    head = re.compile(
        rf"(?<![\w.<:])((?:metal\s*::\s*)?(?:{_any_of(names)}\b|vec\s*<[^<>;(){{}}]*>))"
        r"\s+(?!operator\b)[A-Za-z_]\w*\s*(?=\()"
    )
    types = {*_SCALARS, *names, *(name for m in _TYPES.finditer(text) for name in m.groups())}
    out, at = [], 0
    for m in head.finditer(text):
        kind, end = m[1], m.end()
        if m.start() < at:
            continue
        while True:  # one declarator after another
            # An initialiser is short, and a hostile text is long.
            closing = close(text, end, "()", within=512)
            inside = text[end + 1 : closing]
            if (
                closing < 0
                or not inside.strip()
                or not re.compile(r"\s*[;,]").match(text, closing + 1)
                or any(_declares(part, types) for part in split_top(inside))
            ):
                break
            out += [text[at:end], f"= {kind}"]
            at = end
            following = re.compile(r"\s*,\s*[A-Za-z_]\w*\s*(?=\()").match(text, closing + 1)
            if following is None:
                break
            end = following.end()
    return "".join([*out, text[at:]])


def _member_initialisers(text: str, names: set[str]) -> str:
    """`S(float a) : v(a, a) {}`: the same for members that are vectors."""
    vector = rf"\b(?:{_any_of(names)}|vec\s*<[^<>;(){{}}]*>)\s+((?:\w+\s*,\s*)*\w+)\s*[;={{]"
    members = {name for m in re.finditer(vector, text) for name in re.findall(r"\w+", m[1])}
    out, at = [], 0
    for m in re.finditer(r"\)\s*:(?!:)\s*(?=\w+\s*[({])", text):
        i = m.end()
        while member := re.compile(r"\s*(\w+)\s*(?=\()").match(text, i):
            closing = close(text, member.end(), "()", within=512)
            if closing < 0:
                break
            if member[1] in members and text[member.end() + 1 : closing].strip():
                out += [text[at : member.end()], f"(mh::make<decltype({member[1]})>"]
                out += [text[member.end() : closing + 1], ")"]
                at = closing + 1
            following = re.compile(r"\s*,").match(text, closing + 1)
            if following is None:
                break
            i = following.end()
    return "".join([*out, text[at:]])


def _braces(text: str) -> str:
    """`f({a, b})`: what braces stand for, a vector or another type, is the parameter's to say."""
    out, at = [], 0
    opened: list[int] = []
    for m in re.finditer(r"[()\[\]{}]", text):
        i = m.start()
        if m[0] in ")]}":
            del opened[-1:]
            continue
        before = text[max(0, i - 80) : i].rstrip()
        if m[0] == "{" and before[-1:] in ("(", ",") and opened and text[opened[-1]] == "(":
            call = re.search(r"(\w+|>)\s*$", text[max(0, opened[-1] - 80) : opened[-1]])
            closing = close(text, i, "{}", within=512)
            inside = text[i + 1 : closing].strip()
            if call and call[1] not in _NO_CALL and inside and not re.search("[;{}]", inside):
                out += [text[at:i], "mh::braces(", inside, ")"]
                at = closing + 1
        opened.append(i)
    return "".join([*out, text[at:]])


_NO_CALL = ("if", "for", "while", "switch", "return", "decltype", "sizeof")


def _conversions(text: str) -> str:
    """To half, bfloat or a template's type: between half and bfloat clang has none, Metal does by
    way of float."""
    names = template_types(text) - set(re.findall(r"\b(?:struct|class)\s+(\w+)\s*[{:]", text))
    kind = f"({_any_of(names | {'half', 'bfloat', 'float16_t', 'bfloat16_t'})})"
    text = re.sub(rf"\bstatic_cast\s*<\s*{kind}\s*>\s*\(", r"mh::convert<\1>(", text)
    # But not the pointer to a function in `half (*f)(...)`, nor the array in `half (&a)[4]`.
    call = rf"(?<![\w.:<~])(?<!operator ){kind}\s*\((?!\s*\)|\s*[*&]\s*\w*\s*\)\s*[(\[])"
    text = re.sub(call, r"mh::convert<\1>(", text)
    return _casts(text, kind, "mh::Convert")


def _casts(text: str, kind: str, class_: str) -> str:
    """`(kind)x` by way of a class whose ->* converts: it binds as tightly, and takes `x` alone."""

    def cast(m: re.Match[str]) -> str:
        # Behind a name this is a parameter list: `f(float4)`.
        before = re.search(r"(\w*)\s*$", m.string[max(0, m.start() - 80) : m.start()])
        word = before[1] if before else ""
        if m.string[: m.start()].endswith("operator()"):
            return m[0]
        return f"{class_}<{m[1]}>()->*" if word in ("", "return", "case", "else") else m[0]

    return re.sub(rf"\(\s*{kind}\s*\)(?=\s*[\w(.\-+~])", cast, text)


def _vectors(text: str, names: set[str]) -> str:
    kind = _any_of(names)
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
    text = parameter.sub(r"\1mh::DeducedVec<", text)
    specialised = re.compile(
        r"(\btemplate\s*<[^<>]*>\s*(?:struct|class)\s+\w+\s*<(?:[^<>{};]*,)?\s*)"
        r"(?:metal\s*::\s*)?vec\s*<(?=[^<>]*>\s*(?:,[^{};]*)?>\s*[:{;])"
    )
    return specialised.sub(r"\1mh::DeducedVec<", text)
