"""What a Metal source declares that C++ has no word for: kernels with their parameters' attributes,
host names, function constants. Each is read, and taken out of the text or put into C++."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from .brackets import blank, close, split_top

__all__ = [
    "Declarations",
    "KernelFunction",
    "Parameter",
    "TranslationError",
    "read_declarations",
]


class TranslationError(Exception):
    """The text cannot be a Metal source; `position` is a place in the preprocessed text."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its attribute (`buffer`, `thread_position_in_grid`, ...), the
    attribute's index, and the function constant that must be true for it."""

    name: str
    attribute: str
    index: int | None
    condition: str | None
    text: str = ""


@dataclass(frozen=True)
class KernelFunction:
    name: str
    parameters: tuple[Parameter, ...]


@dataclass
class Declarations:
    """kernels: by name. host_names: the call expression `f<args>` of each. constants: the id of
    each function constant."""

    kernels: dict[str, KernelFunction] = field(default_factory=dict)
    host_names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)


def read_declarations(text: str, constants: Mapping[int, object]) -> tuple[str, Declarations]:
    """The text without them, and what it declares. `constants`: function constants by id."""
    declared = Declarations()
    _judge_places(text)
    text = _GNU_THREADS.sub(lambda m: blank(m.group()), text)
    text = _host_names(text, declared)
    text = _kernels(text, declared)
    text = _function_constants(text, declared, constants)
    return re.sub(r"\[\[[^\[\]]*\]\]", lambda m: blank(m.group()), text), declared


_ATTRIBUTE = re.compile(r"\[\[([^\[\]]*)\]\]")
_GNU_THREADS = re.compile(
    r"\b__attribute__\s*\(\(\s*max_total_threads_per_threadgroup"
    r"\s*\((?:[^()]|\([^()]*\))*\)\s*\)\)"
)
_OF_FUNCTIONS = {
    *("kernel", "vertex", "fragment", "visible", "stitchable", "intersection", "patch"),
    *("host_name", "max_total_threads_per_threadgroup", "early_fragment_tests"),
}
_SPECIFIERS = {
    *("kernel", "static", "inline", "const", "constexpr", "volatile", "constant", "unsigned"),
    *("signed", "typedef", "extern", "friend", "METAL_FUNC"),
}


def _judge_places(text: str) -> None:
    """Raises TranslationError where C++ lets no attribute stand, or lets it speak of a type: behind
    a function's parameters or the type of its result."""
    for m in _ATTRIBUTE.finditer(text):
        names = re.findall(r"(?:^|[,:])\s*(\w+)", m[1])
        of_function = next((name for name in names if name in _OF_FUNCTIONS), None)
        before = _before(text, m.start())
        word = re.search(r"\w+$", before[-64:])
        if word and word[0] in _SPECIFIERS and _SPECIFIED.match(text, m.end()):
            raise TranslationError("an attribute list cannot appear here", m.start())
        of_type = before.endswith(")") or (
            word and word[0] not in ("template", "else", "do") and _NAMED.match(text, m.end())
        )
        if of_function and of_type:
            raise TranslationError(
                f"{of_function!r} attribute cannot be applied to types: it stands in front of the"
                " function",
                m.start(),
            )


_LISTS = r"\s*(?:\[\[[^\[\]]*\]\]\s*){0,8}"
_SPECIFIED = re.compile(_LISTS + r"[A-Za-z_]\w*\s*[\w<*&:]")
_NAMED = re.compile(_LISTS + r"[A-Za-z_]\w*\s*\(")


def _before(text: str, at: int) -> str:
    """What stands before a position, without line markers and attributes of GNU's spelling."""
    before = re.sub(r"(?m)^[ \t]*#.*\n", "", text[max(0, at - 512) : at]).rstrip()
    return re.sub(r"__attribute__\s*\(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)\)$", ";", before)


_HOST_NAME = re.compile(r'(template\s*)?\[\[\s*host_name\s*\(\s*((?:"[^"]*"\s*)+)\)\s*\]\]')


def _host_names(text: str, declared: Declarations) -> str:
    """Of instantiations, which are taken out, and of plain kernels."""
    out, done = [], 0
    for m in _HOST_NAME.finditer(text):
        if m.start() < done:
            continue
        name = "".join(re.findall(r'"([^"]*)"', m.group(2)))
        end = text.find(";", m.end(), m.end() + 4096)
        statement = text[m.end() : end if end >= 0 else m.end() + 4096]
        k = statement.find("decltype")
        function = re.search(r"\bvoid\s+([A-Za-z_]\w*(?:\s*<[^;{}]*?>)?)\s*\(", statement)
        if m.group(1) and k >= 0:
            closing = close(statement, statement.find("(", k), "()")
            declared.host_names.setdefault(name, " ".join(statement[closing + 1 :].split()))
        elif function:
            declared.host_names.setdefault(name, function[1])
        if m.group(1) and end >= 0:
            out += [text[done : m.start()], blank(text[m.start() : end + 1])]
            done = end + 1
    return "".join([*out, text[done:]])


_KERNEL = re.compile(
    r"(?:\[\[\s*kernel\b[^\[\]]*\]\]|\bkernel\b)"
    r"(?=\s+(?:\[\[[^\[\]]*\]\]\s*){0,8}void\s+([A-Za-z_]\w*)\s*(\())"
)


def _kernels(text: str, declared: Declarations) -> str:
    for m in reversed(list(_KERNEL.finditer(text))):
        closing = close(text, m.start(2), "()")
        if closing < 0:
            raise TranslationError("the kernel's parameter list is not closed", m.start(2))
        at, found = m.end(2), []
        for part in split_top(text[at:closing]):
            if part.strip():
                found.append(_parameter(part, at))
            at += len(part) + 1
        parameters = _numbered(found)
        _judge_sizes(parameters, m.start(1))
        always = [p.index for p in parameters if p.attribute == "buffer" and not p.condition]
        twice = next((n for n in always if always.count(n) > 1), None)
        if twice is not None:
            raise TranslationError(f"two arguments at buffer index {twice}", m.start())
        declared.kernels[m.group(1)] = KernelFunction(m.group(1), parameters)
        text = text[: m.start()] + blank(m.group()) + text[m.end() :]
    return text


def _parameter(text: str, at: int) -> Parameter:
    """Raises TranslationError where it has no attribute that says what it is."""
    plain = _ATTRIBUTE.sub(" ", text)
    names = re.findall(r"[A-Za-z_]\w*", re.sub(r"\[[^\]]*\]", " ", plain))
    attribute, index, condition = "", None, None
    for body in _ATTRIBUTE.findall(text):
        for word, argument in re.findall(r"([A-Za-z_]\w*)\s*(?:\(\s*([^()]*)\s*\))?", body):
            if word == "function_constant":
                condition = argument.strip()
            elif word in ("buffer", "threadgroup"):
                attribute = word
                if not argument.strip().isdigit():
                    message = f"metalhost takes a number as an index, not {word}({argument})"
                    raise TranslationError(message, at + text.index(word))
                index = int(argument)
            elif not attribute and word in (*_POSITIONS, *_INDICES, *_ELSEWHERE):
                attribute = word
    name = names[-1] if names else ""
    kind = _INTEGER.fullmatch(" ".join(re.sub(rf"\b{name}\s*$", "", plain).split()))
    known = re.sub(r"[234]\b", "", " ".join(names[:-1])) in _OTHER
    wrong = not attribute and not re.search(r"[*&\[]", plain)
    if attribute in (*_POSITIONS, *_INDICES):
        most = 1 if attribute in _INDICES else 3
        wrong = known or (kind is not None and _size(kind) > most)
    if wrong:
        message = (
            f"invalid type {' '.join(names[:-1])!r} for input declaration in a kernel function"
        )
        if not attribute:
            message += f": no attribute says what {name!r} is"
        stop = text.find("[[") if "[[" in text else len(text)
        raise TranslationError(message, at + max(text.rfind(name, 0, stop), 0))
    return Parameter(name, attribute, index, condition, " ".join(plain.split()))


# What the attributes of a kernel's inputs may be put on: integers without a sign, of 16 or 32 bits
# (MSL 4.0 table 5.8). Positions and sizes of the grid are all scalars, or vectors of 2 or of 3.
_POSITIONS = (
    *("thread_position_in_grid", "thread_position_in_threadgroup", "threadgroup_position_in_grid"),
    *("threads_per_grid", "threads_per_threadgroup", "threadgroups_per_grid", "grid_size"),
    *("dispatch_threads_per_threadgroup", "grid_origin"),
)
_INDICES = (
    *("thread_index_in_threadgroup", "thread_index_in_simdgroup", "thread_index_in_quadgroup"),
    *("simdgroup_index_in_threadgroup", "quadgroup_index_in_threadgroup"),
    *("simdgroups_per_threadgroup", "quadgroups_per_threadgroup", "threads_per_simdgroup"),
    *("dispatch_simdgroups_per_threadgroup", "dispatch_quadgroups_per_threadgroup"),
    "thread_execution_width",
)
_ELSEWHERE = ("texture", "sampler", "stage_in", "payload", "imageblock_data")
_INTEGER = re.compile(
    r"(?:const )?(?:metal ?:: ?)?(?:"
    r"(?:u(?:int|short)|unsigned(?: int| short)?|uint(?:16|32)_t)([234]?)"
    r"|vec ?< ?u(?:int|short) ?, ?([234]) ?>)(?: const)?"
)
_OTHER = {
    *("bool", "char", "uchar", "short", "int", "long", "ulong", "half", "bfloat", "float"),
    *("size_t", "int32_t", "int64_t", "uint64_t", "int16_t", "int8_t", "uint8_t"),
}


def _size(kind: re.Match[str]) -> int:
    return int(kind[1] or kind[2] or 1)


def _judge_sizes(parameters: Iterable[Parameter], at: int) -> None:
    kinds = [
        _INTEGER.fullmatch(re.sub(rf"\s*\b{p.name}$", "", p.text))
        for p in parameters
        if p.attribute in _POSITIONS
    ]
    if len({_size(kind) for kind in kinds if kind}) > 1:
        message = (
            "expecting input declarations with either all scalar types or all vector types with the"
            " same number of elements: positions and sizes of the grid"
        )
        raise TranslationError(message, at)


def _numbered(parameters: list[Parameter]) -> tuple[Parameter, ...]:
    """Pointers, references and arrays without an attribute are buffers, at the free indices in
    order."""
    used = {p.index for p in parameters if p.attribute == "buffer"}
    free = (i for i in count() if i not in used)
    return tuple(
        replace(p, attribute="buffer", index=next(free))
        if not p.attribute and any(c in p.text for c in "*&[")
        else p
        for p in parameters
    )


def _function_constants(text: str, declared: Declarations, values: Mapping[int, object]) -> str:
    pattern = re.compile(
        r"(?:\bstatic\s+)?\bconstant\s+((?:[A-Za-z_]\w*\s+){0,8}?[A-Za-z_]\w*)\s+([A-Za-z_]\w*)\s*"
        r"\[\[\s*function_constant\s*\(\s*(\d+)\s*\)\s*\]\]\s*;"
    )

    def define(m: re.Match[str]) -> str:
        kind = " ".join(w for w in m.group(1).split() if w not in ("const", "constexpr"))
        name, number = m.group(2), int(m.group(3))
        declared.constants[name] = number
        value = values.get(number, 0)
        spelled = str(int(value)) if isinstance(value, (bool, int)) else repr(value)
        lines = "\n" * m.group().count("\n")
        return f"static constexpr {kind} {name} = {kind}({spelled});{lines}"

    text = pattern.sub(define, text)

    def defined(m: re.Match[str]) -> str:
        return "true" if declared.constants.get(m.group(1), -1) in values else "false"

    return re.sub(r"\bis_function_constant_defined\s*\(\s*(\w+)\s*\)", defined, text)
