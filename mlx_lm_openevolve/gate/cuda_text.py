"""What CUDA text declares, by an allow-list: it keeps nothing between launches.

    text --tokens, macros expanded--> declarations, each without what its brackets hold --> allowed?

At namespace scope stand only functions, types, templates of these, aliases, assertions, and
constants: constexpr, __constant__, or const of a number's type. Elsewhere `static`, `extern`
and their like stand only before one of these, or before __shared__. Assembly declares nothing in
.global. What is not plainly one of these is refused. It needs no compiler, and does not see what a
macro of CUDA's own headers hides.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

__all__ = ["keeps_state"]

MAX_TOKENS = 400_000  # after expansion
MAX_WORDS = 300  # of a declaration, without what stands in its brackets
_SPLICE = re.compile(r"\\[ \t]*\r?\n")
_TOKEN = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)|#[ \t]*define[ \t]+\w+\(?"
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'"""
    r"|operator\s*(?:\(\s*\)|\[\s*\]|[^\w\s(]+)|<%|%>|%:|<:(?!:)|:>|->|::|##"
    r"|\.?\d(?:'?[\w.])*|[A-Za-z_]\w*|\n|\S",
    re.DOTALL,
)
# Digraphs, raw strings, and what may be written in a constant.
_REFUSED = {"<%", "%>", "%:", "<:", ":>", "R", "LR", "uR", "UR", "u8R", "mutable"}

# A declaration in words with a space between; brackets are (T), where they hold parameters, or (E),
# [] and {}; < > are gone, and so is what says nothing about its kind.
_IDLE = re.compile(
    r"(?:alignas|__align__|__attribute__|__launch_bounds__|explicit|noexcept) \([TE]\) "
    r'|(?<=\[\] )(?:__\w+__ )+|^extern "" |^(?:template )+'
)
_NUMBER = (
    r"(?:unsigned|signed|char|short|int|long|float|double|bool|auto|half2?|\w+_t|__half2?"
    r"|__nv_bfloat16\w*|u?(?:char|short|int|long|longlong)[1-4]|(?:float|double)[1-4])"
)
_PARAMETER = (
    rf"(?:(?:const|void|typename|struct|{_NUMBER})(?: (?:[\w:]+|[*&]|\[\]))*"
    r"|[\w:]+ [\w:]+(?: \[\])*|\. \. \.)(?: = [^,]*)?"
)
_PARAMETERS = re.compile(rf"(?:{_PARAMETER}(?: , {_PARAMETER})*)?")
_NAME = r"(?:[\w:~]+|(?:[\w:]+::)?operator(?:@|(?: [\w:]+| [*&])+))"
_AFTER = r"(?: (?:\([TE]\)|\[\]|const|noexcept|override|final|&|__\w+__|=> [^;{=]*))*"
_FUNCTION = re.compile(
    rf"(?P<type>(?:[\w:]+ |[*&] )*)(?P<name>{_NAME}) "
    rf"(?:\([TE]\){_AFTER}(?: : [^=]*)? \{{\}}|\(T\){_AFTER} (?:= (?:default|delete) )?;)"
)
_ALLOWED = re.compile(
    r";?|(?:using|typedef|static_assert|namespace|concept) .*;"
    r"|(?:struct|class|union) [\w:]+(?: final)?(?: : [\w:, ]+)?(?: \{\})? ;"
    r"|enum(?: class| struct)?(?: [\w:]+)?(?: : [\w: ]+)?(?: \{\})? ;"
    r"|(?:[\w:]+ )*(?:constexpr|__constant__|__shared__) .*"
    rf"|(?:(?:static|inline|__device__|{_NUMBER}) )*"
    rf"(?:const (?:(?:static|inline|__device__|const|{_NUMBER}) )*(?:\* const )*|"
    rf"(?:const |{_NUMBER} )+(?:\* const )+)\w+(?: \[\])*(?: = [^,]*| \{{\}})? ;"
)
_SPECIFIERS = {"static", "extern", "inline", "const", "volatile", "virtual", "friend"}
_NO_NAME = re.compile(rf"{_NUMBER}|const|volatile|auto|decltype|asm|__asm__|sizeof")
_OPENS_NAMESPACE = re.compile(r'(?:inline )?namespace(?: [\w:]+)*|extern ""')
_TYPE = re.compile(r"(?:typedef .*|(?:struct|class|union|enum)\b[^()=]*)")
_ASM = re.compile(r"(?:.* )?(?:asm|__asm|__asm__)(?: (?:volatile|__volatile__|goto|inline))*")
_MARKED = re.compile(r"\b(?:static|extern|thread_local|__managed__)\b")
_PTX_DATA = re.compile(r"(?:^|[;{}:\n])\s*(?:\.(?:visible|extern|weak|common)\s+)*\.\s*global\b")

Macros = dict[str, list[tuple[list[str] | None, list[str]]]]


class _Refused(Exception):
    """What is refused, as the text has it."""


def keeps_state(text: str, *, namespace: bool = False, header: str = "") -> str:
    """The first thing in CUDA text that may keep data between launches, "" where there is none.
    namespace: the text is no function's body; what it declares there is __device__ without being
    called so, as MLX compiles it. header: what stands before, for its macros."""
    try:
        if trigraph := re.search(r"\?\?[=/'()!<>-]", text):
            raise _Refused(trigraph[0])
        macros: Macros = {}
        _without_directives(_tokens(header), macros)
        tokens = _without_directives(_tokens(text), macros)
        for body in (body for known in macros.values() for _, body in known):
            if _MARKED.search(" ".join(body)):
                _declarations(body, namespace=False)
        _declarations(_expanded(tokens, macros), namespace)
    except _Refused as refused:
        return str(refused)[:200] or "what does not parse"
    return ""


def _tokens(text: str) -> list[str]:
    found = [t for t in _TOKEN.findall(_SPLICE.sub("", text)) if t[:2] not in ("//", "/*")]
    for token, following in itertools.pairwise([*found, ""]):
        if token in _REFUSED and (token[-1] != "R" or following[:1] == '"'):
            raise _Refused(f"{token} {following}")
    return found


def _without_directives(tokens: list[str], macros: Macros) -> list[str]:
    """What is left of a text; its macros are added, with every definition of each: both branches
    of a condition count."""
    left: list[str] = []
    for line in _split(tokens, "\n"):
        if line[:1] == ["#"] and line[1:2] == ["define"]:
            raise _Refused(" ".join(line))
        if not line or line[0][0] != "#":
            left += line
        elif line[0][-1] == "(":
            end = line.index(")") if ")" in line else len(line)
            parameters = [t for t in "".join(line[1:end]).split(",") if t]
            macros.setdefault(line[0][:-1].split()[-1], []).append((parameters, line[end + 1 :]))
        elif line[0] != "#":
            macros.setdefault(line[0].split()[-1], []).append((None, line[1:]))
    return left


def _split(tokens: list[str], separator: str) -> Iterator[list[str]]:
    part: list[str] = []
    for token in [*tokens, separator]:
        if token == separator:
            yield part
            part = []
        else:
            part.append(token)


def _expanded(tokens: list[str], macros: Macros) -> list[str]:
    """The tokens with the bodies of macros in their place; of several bodies all."""
    ahead, out, taken = tokens[::-1], [], 0
    while ahead:
        token = ahead.pop()
        known = macros.get(token, [])
        called = ahead[-1:] == ["("] and any(names is not None for names, _ in known)
        given = _arguments(ahead) if called else None
        bodies = [_filled(n or [], b, given or []) for n, b in known
                  if n is None or given is not None]  # fmt: skip
        if not bodies:
            out.append(token.removeprefix("\0"))
        for body in reversed(bodies):  # a macro's own name in its body stands for itself
            ahead += ["\0" + t if t == token else t for t in reversed(body)]
            taken += len(body) + 1
        if len(out) + taken > MAX_TOKENS:
            raise _Refused(f"{token}, which expands to too much")
    return out


def _arguments(ahead: list[str]) -> list[list[str]]:
    """A macro's arguments, taken off the tokens ahead (the next one is last)."""
    depth, arguments = 0, [[]]  # type: int, list[list[str]]
    while ahead:
        token = ahead.pop()
        depth += (token == "(") - (token == ")")
        if not depth:
            return arguments
        if token == "," and depth == 1:
            arguments.append([])
        elif depth > 1 or token != "(":
            arguments[-1].append(token)
    raise _Refused("( without )")


def _filled(names: list[str], body: list[str], given: list[list[str]]) -> list[str]:
    """A macro's body with its arguments."""
    values = dict(zip(names, given, strict=False))
    rest = given[len(names) - 1 :] if names[-1:] == ["..."] else []
    values["__VA_ARGS__"] = [t for i, a in enumerate(rest) for t in ([","] if i else []) + a]
    out: list[str] = []
    quote = paste = False
    for token in body:
        if token in ("#", "##"):
            quote, paste = token == "#", paste or token == "##"
            continue
        value = values.get(token, [token])
        if quote:
            value = ['"' + " ".join(value).replace("\\", r"\\").replace('"', r"\"") + '"']
        if paste and out and value:
            value = _tokens(out.pop() + value[0]) + value[1:]
        out += value
        quote = paste = False
    return out


def _declarations(tokens: list[str], namespace: bool) -> None:
    """Raise _Refused at the first declaration that is not allowed."""
    top = "n" if namespace else "b"
    frames: list[tuple[str, list[str], list[str]]] = [(top, [], [])]  # kind, words, strings
    for token in [*tokens, ";"]:
        kind, words, strings = frames[-1]
        if token in ("(", "[", "{"):
            inside = kind == "n" and token == "{" and _OPENS_NAMESPACE.fullmatch(" ".join(words))
            frames.append(("n" if inside else token, [], []))
        elif token in (")", "]", "}"):
            opened = {")": "(", "]": "[", "}": "{"}[token]
            if len(frames) == 1 or kind not in (opened, "n" if token == "}" else opened):
                raise _Refused(f"{token} after {' '.join(words[-9:])}")
            frames.pop()
            _close(kind, words, strings, frames[-1][1])
            outer, words, _ = frames[-1]
            if token == "}" and outer in "nb{" and kind != "n":
                said = " ".join(words)
                if "=" not in words and not _TYPE.fullmatch(_plain(words).removesuffix(" {}")):
                    _check(said, outer, len(frames) == 1)
                    words.clear()
        elif token == ";" and kind in "nb{":
            _check(" ".join([*words, ";"]), kind, len(frames) == 1)
            words.clear()
        elif token == ":" and kind in "b{" and (len(words) == 1 or words[:1] == ["case"]):
            words.clear()  # a label
        else:
            if token[0] == '"':
                strings.append(token)
            symbol = re.fullmatch(r"operator\s*\W+", token)
            word = '""' if token[0] == '"' else "operator@" if symbol else token
            words.append("=>" if token == "->" else word)
    if len(frames) > 1:
        raise _Refused("a bracket that does not close")


def _close(kind: str, words: list[str], strings: list[str], outer: list[str]) -> None:
    """Leave of a bracket what the declaration around it needs."""
    said = " ".join(words)
    if (kind == "n" and words) or _MARKED.search(said):
        raise _Refused(said)  # a declaration without an end, or where none stands
    if kind == "(" and _ASM.fullmatch(" ".join(outer[-4:])):
        _check_ptx(strings if words[:1] == ['""'] else [said])
    declarator = re.fullmatch(r"[*&] (?:[*&] )*(\w+ \([TE]\))", said)
    if kind == "n":
        outer.clear()
    elif kind == "{":
        outer.append("{}")
    elif kind == "[":
        outer += [] if said == "[]" else ["[]"]
    elif declarator:
        outer += declarator[1].split()
    else:
        short = len(words) <= MAX_WORDS
        outer.append("(T)" if short and _PARAMETERS.fullmatch(_plain(words)) else "(E)")


def _plain(words: list[str]) -> str:
    """A declaration without what stands in < >, and with its qualified names in one word."""
    said = re.sub(r" ?:: ?(?=[\w~])", "::", " ".join(words))
    for _ in range(16):
        said, found = re.subn(r" ?<[^<>]*>", "", said)
        if not found:
            break
    said = re.sub(r"(?:decltype|typeof|__typeof__|__typeof) \([TE]\)", "auto", said)
    return _IDLE.sub("", said).strip()


def _check(said: str, kind: str, top: bool) -> None:
    plain = _plain(said.split(" "))
    if kind != "n" and not _MARKED.search(plain) and not (top and "__device__" in plain):
        return
    if plain.count(" ") > MAX_WORDS:
        raise _Refused(said)
    if _ALLOWED.fullmatch(plain) and "volatile" not in plain:
        return
    function = _FUNCTION.fullmatch(plain)
    if function:
        name = function["name"]
        own = [w for w in function["type"].split() if w not in _SPECIFIERS and w[:2] != "__"]
        last = name.split("::")
        member = "operator" in name or (len(last) > 1 and last[-1].strip("~") == last[-2])
        if (own or member) and not _NO_NAME.fullmatch(name):
            return
    raise _Refused(said)


def _check_ptx(strings: list[str]) -> None:
    try:
        text = "".join(ast.literal_eval(s) for s in strings)
    except (SyntaxError, ValueError):
        raise _Refused(strings[0]) from None
    if _PTX_DATA.search(re.sub(r"//[^\n]*|/\*.*?(?:\*/|\Z)", " ", text, flags=re.DOTALL)):
        raise _Refused("PTX .global data")
