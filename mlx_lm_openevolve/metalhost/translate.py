"""From preprocessed Metal to C++ that clang takes: a pass over the text that keeps every line.

The pass reads what C++ has no word for (kernels, their parameters' attributes, function constants,
host names) and rewrites what C++ spells otherwise (threadgroup variables, methods qualified by an
address space, constructions of vectors, half and bfloat literals).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count

__all__ = ["KernelFunction", "Parameter", "Translation", "TranslationError", "translate"]

_SCALARS = (
    *("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"),
    *("half", "bfloat", "float"),
)
_VECTORS = [f"{s}{n}" for s in _SCALARS for n in (2, 3, 4)]
_SPACES = "thread|device|threadgroup|constant|threadgroup_imageblock|ray_data|object_data"


class TranslationError(Exception):
    """The text cannot be a Metal source; `line` is a position in the preprocessed text."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its attribute (`buffer`, `thread_position_in_grid`, ...)."""

    name: str
    attribute: str
    index: int | None
    condition: str | None  # the function constant that must be true
    text: str = ""


@dataclass(frozen=True)
class KernelFunction:
    name: str
    parameters: tuple[Parameter, ...]
    template: bool


@dataclass
class Translation:
    text: str
    kernels: dict[str, KernelFunction] = field(default_factory=dict)
    host_names: dict[str, str] = field(default_factory=dict)  # host name -> f<args>
    constants: dict[str, int] = field(default_factory=dict)  # function constant -> id


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _close(text: str, at: int, pair: str) -> int:
    """Position of the bracket that closes the one at `at`; -1 without one."""
    depth = 0
    opening = pair[0]
    for m in re.compile(f"[{re.escape(pair)}]").finditer(text, at):
        depth += 1 if m.group() == opening else -1
        if depth == 0:
            return m.start()
    return -1


def _close_angle(text: str, at: int) -> int:
    """Position of the `>` that closes the `<` at `at`; parentheses hide what they hold. -1 when
    it is not near: arguments of a vector type are short, and a hostile text is long."""
    depth = 0
    i = at
    while i < min(len(text), at + 200):
        c = text[i]
        if c == "(":
            i = _close(text, i, "()")
            if i < 0:
                return -1
        elif c == "<":
            depth += 1
        elif c == ">":
            depth -= 1
            if depth == 0:
                return i
        elif c in ";{}":
            return -1
        i += 1
    return -1


def split_top(text: str, separator: str = ",") -> list[str]:
    """Splits at separators that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and text[i - 1] != "-"):
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return parts


def translate(text: str, constants: Mapping[int, object] | None = None) -> Translation:
    """Translates preprocessed source. `constants` gives function constants by id."""
    result = Translation(text)
    _literals(result)
    _host_names(result)
    _kernels(result)
    _function_constants(result, constants or {})
    result.text = re.sub(r"\[\[[^\[\]]*\]\]", lambda m: _blank(m.group()), result.text)
    _array_parameters(result)
    _methods(result)
    _threadgroup_variables(result)
    _vectors(result)
    return result


def _literals(result: Translation) -> None:
    number = r"(?<![\w.])((?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)"
    text = re.sub(number + r"[hH]\b", r"((half)\1f)", result.text)
    text = re.sub(number + r"(?:bf|BF)\b", r"((bfloat)\1f)", text)
    # "1f" is no C++ literal; "1.f" is.
    result.text = re.sub(r"\((half|bfloat)\)(\d+)f\)", r"(\1)\2.f)", text)


def _host_names(result: Translation) -> None:
    pattern = re.compile(r'template\s*\[\[\s*host_name\s*\(\s*((?:"[^"]*"\s*)+)\)\s*\]\]')
    text = result.text
    for m in reversed(list(pattern.finditer(text))):
        end = text.find(";", m.end())
        statement = text[m.end() : end]
        k = statement.find("decltype")
        if k >= 0:
            close = _close(statement, statement.index("(", k), "()")
            name = "".join(re.findall(r'"([^"]*)"', m.group(1)))
            result.host_names[name] = " ".join(statement[close + 1 :].split())
        text = text[: m.start()] + _blank(text[m.start() : end + 1]) + text[end + 1 :]
    result.text = text


_ATTRIBUTE = re.compile(r"\[\[(.*?)\]\]", re.S)


def _parameter(text: str) -> Parameter:
    plain = _ATTRIBUTE.sub(" ", text)
    names = re.findall(r"[A-Za-z_]\w*", plain)
    attribute, index, condition = "", None, None
    for body in _ATTRIBUTE.findall(text):
        for word, argument in re.findall(r"([A-Za-z_]\w*)\s*(?:\(\s*([^()]*)\s*\))?", body):
            if word == "function_constant":
                condition = argument.strip()
            elif word in ("buffer", "threadgroup"):
                attribute = word
                index = int(argument) if argument.strip().isdigit() else None
            elif not attribute:
                attribute = word
    name = names[-1] if names else ""
    return Parameter(name, attribute, index, condition, " ".join(plain.split()))


def _numbered(parameters: list[Parameter]) -> tuple[Parameter, ...]:
    """Pointers and references without an attribute are buffers, at the free indices in order."""
    used = {p.index for p in parameters if p.attribute == "buffer"}
    free = (i for i in count() if i not in used)
    return tuple(
        replace(p, attribute="buffer", index=next(free))
        if not p.attribute and ("*" in p.text or "&" in p.text)
        else p
        for p in parameters
    )


def _kernels(result: Translation) -> None:
    text = result.text
    pattern = re.compile(
        r"(\[\[\s*kernel\b[^\]]*\]\]|\bkernel\b)(?=\s+(?:\[\[[^\]]*\]\]\s*)*void\b)"
    )
    for m in reversed(list(pattern.finditer(text))):
        head = re.compile(r"\s*(?:\[\[[^\]]*\]\]\s*)*void\s+([A-Za-z_]\w*)\s*\(").match(
            text, m.end()
        )
        if head is None:
            continue
        open_ = head.end() - 1
        close = _close(text, open_, "()")
        if close < 0:
            raise TranslationError("the kernel's parameter list is not closed", open_)
        inside = text[open_ + 1 : close]
        parts = [p for p in split_top(inside) if p.strip()]
        before = text[: m.start()].rstrip()
        parameters = _numbered([_parameter(p) for p in parts])
        always = [p.index for p in parameters if p.attribute == "buffer" and not p.condition]
        twice = next((n for n in always if always.count(n) > 1), None)
        if twice is not None:
            raise TranslationError(f"two arguments at buffer index {twice}", m.start())
        function = KernelFunction(head.group(1), parameters, before.endswith(">"))
        result.kernels[function.name] = function
        text = text[: m.start()] + _blank(m.group()) + text[m.end() :]
    result.text = text


def _function_constants(result: Translation, values: Mapping[int, object]) -> None:
    pattern = re.compile(
        r"\bconstant\s+((?:[A-Za-z_]\w*\s+)*?[A-Za-z_]\w*)\s+([A-Za-z_]\w*)\s*"
        r"\[\[\s*function_constant\s*\(\s*(\d+)\s*\)\s*\]\]\s*;"
    )

    def replace(m: re.Match[str]) -> str:
        kind, name, number = m.group(1), m.group(2), int(m.group(3))
        result.constants[name] = number
        value = values.get(number, 0)
        spelled = str(int(value)) if isinstance(value, (bool, int)) else repr(value)
        lines = "\n" * m.group().count("\n")
        return f"static constexpr {kind} {name} = {kind}({spelled});{lines}"

    text = pattern.sub(replace, result.text)

    def defined(m: re.Match[str]) -> str:
        return "true" if result.constants.get(m.group(1), -1) in values else "false"

    result.text = re.sub(r"\bis_function_constant_defined\s*\(\s*(\w+)\s*\)", defined, text)


def _array_parameters(result: Translation) -> None:
    """`constant int x[3]` as a parameter: clang wants the pointer that it stands for."""
    result.text = re.sub(
        r"(?<=[(,])(\s*(?:const\s+)?(?:constant|device|threadgroup)\b[^,;(){}=*&]*?)"
        r"(\b[A-Za-z_]\w*)\s*\[[^\]]*\](?=\s*[,)])",
        r"\1* \2",
        result.text,
    )


def _scopes(text: str) -> tuple[list[int], list[int]]:
    """Brace positions, and for each the position of the brace that encloses what follows it."""
    positions, enclosing, stack = [], [], [-1]
    for m in re.finditer(r"[{}]", text):
        if m.group() == "{":
            stack.append(m.start())
        elif len(stack) > 1:
            stack.pop()
        positions.append(m.start())
        enclosing.append(stack[-1])
    return positions, enclosing


def _methods(result: Translation) -> None:
    """Metal repeats a method for each address space of `this`; here one serves for all."""
    text = result.text
    pattern = re.compile(rf"\)(\s*const)?\s+({_SPACES})\b(?=\s*(?:noexcept\s*)?[{{:;=])")
    matches = list(pattern.finditer(text))
    if not matches:
        return
    positions, enclosing = _scopes(text)
    seen: set[tuple[int, str]] = set()
    edits: list[tuple[int, int, bool]] = []
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
                end = _close(text, brace, "{}") + 1
            edits.append((start, end, True))
        else:
            seen.add((scope, signature))
            edits.append((m.start(2), m.end(2), False))
    done = len(text)
    for start, end, _whole in reversed(edits):
        if end <= done:
            text = text[:start] + _blank(text[start:end]) + text[end:]
            done = start
    result.text = text


_TG = re.compile(
    r"(?<=[;{}\n>])([ \t]*)((?:alignas\s*\([^()]*\)\s*|static\s+)*)threadgroup\s+"
    r"((?:[^;(){}=[]|\[[^;{}\]]*\])*)([;={(])"
)


def _threadgroup_variables(result: Translation) -> None:
    def replace(m: re.Match[str]) -> str:
        space, prefix, body, stop = m.groups()
        previous = result.text[max(0, m.start() - 4096) : m.start()].rstrip()
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
        align = prefix.replace("static", "")
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
                f'mh::threadgroup_variable<{name}_mh_type>(&{name}_mh_key, "{name}", __LINE__);'
            )
        return "".join(out)

    result.text = _TG.sub(replace, result.text)


def _is_line_marker(text: str) -> bool:
    return text[text.rfind("\n") + 1 :].lstrip().startswith("#")


def _vectors(result: Translation) -> None:
    text = result.text
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

    def cast(m: re.Match[str]) -> str:
        # Behind a name this is a parameter list: `f(float4)`.
        before = re.search(r"(\w*)\s*$", m.string[max(0, m.start() - 80) : m.start()])
        word = before[1] if before else ""
        return f"mh::Cast<{m[1]}>()->*" if word in ("", "return", "case", "else") else m[0]

    text = re.sub(rf"\(\s*({kind})\s*\)(?=\s*[\w(.\-+~])", cast, text)
    text = _deducible(text)
    out, at = [], 0
    for m in re.finditer(r"(static_cast\s*<\s*)?(?<!operator )(?:\bmetal\s*::\s*)?\bvec\s*<", text):
        if m.start() < at:
            continue
        close = _close_angle(text, m.end() - 1)
        if close < 0:
            continue
        spelled = "metal::vec<" + text[m.end() : close + 1]
        rest = close + 1
        if m.group(1):
            after = re.compile(r"\s*>\s*\(").match(text, rest)
        else:
            after = re.compile(r"\s*\(").match(text, rest)
        if after is None:
            continue
        out.append(text[at : m.start()] + f"mh::make<{spelled}>(")
        at = after.end()
    out.append(text[at:])
    result.text = "".join(out)


def _deducible(text: str) -> str:
    """`vec<T, N>` in an alias template or in a parameter must be deducible from an argument."""
    alias = r"(\btemplate\s*<[^<>]*>\s*using\s+\w+\s*=\s*)(?:typename\s+)?(?:metal\s*::\s*)?vec\s*<"
    text = re.sub(alias, r"\1mh::DeducedVec<", text)
    parameter = re.compile(
        r"(?<=[(,])(\s*(?:(?:const|thread|device|threadgroup|constant)\s+)*)(?:metal\s*::\s*)?\bvec\s*<"
        r"(?=\s*[A-Za-z_]\w*\s*,\s*\w+\s*>\s*[\w&*])(?!\s*bool\b)"
    )
    return parameter.sub(r"\1mh::DeducedVec<", text)
