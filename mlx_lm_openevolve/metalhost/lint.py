"""Rules on the text: what must not reach the compiler, and what Metal refuses but C++ takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..directives import MAX_OPERAND, directives, joined
from .brackets import blank
from .findings import Finding, Sources, position
from .toolchain import METAL_HEADERS

__all__ = [
    "MAX_EXPANDED",
    "lint_raw",
    "lint_translated",
    "plain_comments",
    "tokens",
]

MAX_SOURCE = 256 * 1024  # characters
MAX_EXPANDED = 8 << 20  # characters: MLX's largest kernel has a twentieth
MOST = 20  # findings of one rule

# What a directive may be. #line is not among them: the places of findings rest on it.
_DIRECTIVES = (
    *("define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif", "error", "warning"),
    *("include", "pragma"),
)
_PRAGMA = re.compile(
    r"\s*(?:once|mark\b.*|(?:no)?unroll\b[\s()\w]*|METAL\b[\s:()\w]*|STDC\b[\s\w]*"
    r"|clang\s+diagnostic\s+(?:push|pop|(?:ignored|warning|error)\s+\"-W[\w+-]*\")"
    r"|clang\s+(?:loop|fp)\b[\s()\w,]*|GCC\s+unroll\b[\s\w]*)$"
)
_PRAGMA_OPERATOR = re.compile(r"\b_Pragma\b\s*(?:\(\s*\"([^\"\\\n]*)\"\s*\))?")

# Words that could reach past the kernel. They are looked for in the tokens of the preprocessed
# text, where no macro, digraph or literal hides them.
_FORBIDDEN = (
    (r"\b_?asm\b|\b__asm(?:__)?\b", "asm is not Metal"),
    (r"\b__attribute(?:__)?\b|\b__declspec\b", "__attribute__ is not available in kernels"),
    (r"\b__(?:builtin|c11|atomic|scoped_atomic|opencl_atomic|sync|arm|extension|label)_\w+",
     "compiler builtins are not Metal"),
    (r"\bextern\b", "extern is not available in kernels"),
    (r"\bmh(?:\s*::|_)\w*|\bMh[A-Z]\w*|\bMH_\w+|\bnamespace\s+mh\b",
     "names of the host runtime are reserved"),
    (r"\b__(?:tsan|ubsan|sanitizer)_\w+", "names of the host runtime are reserved"),
    (r"(?<!\w)(?:import|module|export)\s+[<\"\w]", "modules are not Metal"),
    (r"\\", "a name is written in letters"),
)  # fmt: skip


_BRACKETS = re.compile(r"(?:\[\s*)?\[\s*|\]|,\s*")
_FOREIGN = re.compile(r"using\b|\w+\s*::")


def _compiler_attribute(code: str) -> int:
    """Where an attribute is of a compiler's own, `[[gnu::x]]`; -1 without one."""
    opened: list[bool] = []  # whether each bracket is one of attributes
    for m in _BRACKETS.finditer(code):
        first = m.group()[0]
        if first == "[":
            twice = m.group().count("[") == 2
            opened += [twice or (bool(opened) and opened[-1])] * (1 + twice)
        elif first == "]":
            if opened:
                opened.pop()
            continue
        if opened and opened[-1] and _FOREIGN.match(code, m.end()):
            return m.start()
    return -1


# Attributes that say nothing about what a function does, and of a type or variable no more than
# where it lies.
_WORD = (
    r"(?:__)?(?:always_inline|noinline|unused|maybe_unused|warn_unused_result|nodiscard|const|pure"
    r"|hot|cold|flatten|packed|aligned|max_total_threads_per_threadgroup)(?:__)?"
    r"(?:\s*\((?:[\w\s*+/-]|\([\w\s*+/-]*\))*\))?"
)
_HARMLESS = re.compile(
    rf"\b__attribute(?:__)?\s*\(\(\s*{_WORD}(?:\s*,\s*{_WORD})*\s*\)\)"
    rf"|\[\s*\[\s*(?:(?:gnu|clang)\s*::\s*)?{_WORD}"
    rf"(?:\s*,\s*(?:(?:gnu|clang)\s*::\s*)?{_WORD})*\s*\]\s*\]"
)

# Comments, and the literals that could be taken for the beginning of one.
_COMMENT = re.compile(
    r"//(?:\\[ \t]*\r?\n|[^\n\r])*|/\*(?:.|\n)*?(?:\*/|\Z)"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'"
)


def plain_comments(text: str) -> str:
    """The text with a question mark for each character of a comment that is not ASCII. A character
    taken for one of a comment that is none becomes a question mark too, and does not compile."""
    if text.isascii():
        return text
    return _COMMENT.sub(
        lambda m: re.sub(r"[^\0-\x7e]", "?", m[0]) if m[0].startswith("/") else m[0], text
    )


def lint_raw(files: Sequence[tuple[str, str]], include_root: str | None) -> list[Finding]:
    """Findings that stop a build before any tool reads the source: one for each of `files`."""
    size = sum(len(t) for _, t in files)
    if size > MAX_SOURCE:
        message = f"the source has {size} characters; the limit is {MAX_SOURCE}"
        return [Finding("sandbox", message)]
    findings: list[Finding] = []
    for name, body in files:
        refusal = _refusal(body, include_root)
        if refusal is not None:
            kind, message, at = refusal
            line = body.count("\n", 0, at) + 1
            findings.append(Sources({name: body}).finding(kind, message, name, line))
    return findings


def _refusal(body: str, include_root: str | None) -> tuple[str, str, int] | None:
    """The first thing that bars a text from the compiler: kind, message, position."""
    body = plain_comments(body)
    for k, c in enumerate(body):
        if ord(c) > 126 or (ord(c) < 32 and c not in "\t\n\r"):
            return "non-ascii", f"character U+{ord(c):04X}: Metal code is ASCII", k
    if "??/" in body:
        return "sandbox", "??/, a backslash, is not available", body.index("??/")
    plain = joined(body)
    for word, operand, at in directives(plain):
        if word in ("include", "import", "pragma") and len(operand) > MAX_OPERAND:
            return "sandbox", f"#{word} is followed by too much", at
        if word in ("include", "import"):
            if word == "import" or not _include_allowed(operand, include_root):
                return "sandbox", f"#{word} {operand[:80]} is outside the sandbox", at
        elif word == "pragma":
            if not _PRAGMA.match(operand):
                return "sandbox", f"#pragma {operand[:60]} is not available", at
        elif word and word not in _DIRECTIVES:
            return "sandbox", f"#{word[:40]} is not available in kernels", at
        elif not word and operand.startswith("/*"):
            return "sandbox", "a comment between # and the directive ends on its line", at
    for m in _PRAGMA_OPERATOR.finditer(plain):
        if m.group(1) is None or not _PRAGMA.match(m.group(1)):
            return "sandbox", "_Pragma takes a literal about loops here", m.start()
    hit = re.search(r"\b__?has_(?:include|embed)\w*", plain)
    if hit:
        return "sandbox", "__has_include is not available", hit.start()
    return None


def _include_allowed(operand: str, include_root: str | None) -> bool:
    m = re.fullmatch(r'<([\w./]+)>|"([\w./+-]+)"', operand)
    if m is None:
        return False
    name = m.group(1) or m.group(2)
    if name.startswith("/") or ".." in name.split("/"):
        return False
    if name in METAL_HEADERS:
        return True
    if include_root is None:
        return False
    root = Path(include_root).resolve()
    target = (root / name).resolve()
    return target.is_file() and target.is_relative_to(root)


_TYPES = (
    r"(?:bool|char|uchar|short|ushort|int|uint|long|ulong|half|bfloat|float|size_t|u?int(?:8|16|32|64)_t"
    r"|bfloat16_t|float16_t|void)[234]?"
)
_RULES = (
    (re.compile(r"\bdouble\b"), "double is not supported in Metal"),
    (re.compile(r"\bstd\s*::"), "there is no namespace std in Metal"),
    (re.compile(r"\blong\s+long\b|\blong\s+double\b"), "this type is not supported in Metal"),
    (re.compile(r"\b(?:new|delete)\s+[\w\[(]|\bnew\s*\("),
     "new and delete are not supported in Metal"),
    (re.compile(r"\b(?:try|catch|throw)\b"), "exceptions are not supported in Metal"),
    (re.compile(r"\b(?:dynamic_cast|typeid|thread_local|goto|virtual|register)\b"),
     "not supported in Metal"),
    (re.compile(r"(?:\[\[\s*kernel\b[^\[\]]*\]\]|\bkernel\b)\s+(?!void\b)\w+\s+\w+\s*\("),
     "a kernel returns void"),
    (re.compile(r"\b(?:printf|malloc|free|memcpy|memset|memmove|assert|abort|exit)\s*\("),
     "there is no C library in Metal"),
)  # fmt: skip


# What kind of function follows (MSL 4.0 section 5.1): a type stands behind it.
_QUALIFIER = re.compile(r"\b(?:kernel|vertex|fragment)\b(?!\s+[A-Za-z_])")
_ATTRIBUTES = re.compile(r"\[\[[^\[\]]*\]\]")


def lint_translated(text: str, sources: Sources) -> list[Finding]:
    """Rules on the preprocessed text that the compiling passes cannot see. Only the caller's own
    files are judged, not those of an include root."""
    findings = []

    def add(kind: str, message: str, at: int) -> None:
        findings.append(sources.finding(kind, message, *position(text, at)))

    spelled_out = tokens(text)
    at = _stray_directive(text, spelled_out)
    if at >= 0:
        add("sandbox", "a directive that a macro makes is not available", at)
    code = _own(text, spelled_out, sources)
    code = _HARMLESS.sub(lambda m: blank(m.group()), code)
    for spelled, message in _FORBIDDEN:
        hit = re.search(spelled, code)
        if hit:
            add("sandbox", message, hit.start())
    at = _compiler_attribute(code)
    if at >= 0:
        add("sandbox", "compiler attributes are not Metal", at)
    for pattern, message in _RULES:
        for m in islice(pattern.finditer(code), MOST):
            add("strict", f"'{m.group().strip(' (')}': {message}", m.start())
    for m in islice(_QUALIFIER.finditer(_ATTRIBUTES.sub(lambda m: blank(m.group()), code)), MOST):
        add("strict", f"{m.group()!r} is a word of the language and no name", m.start())
    for at, name in islice(_missing_space(code), MOST):
        message = (
            f"the pointer or reference '{name}' has no address space: "
            "write thread, device, threadgroup or constant"
        )
        add("strict", message, at)
    return findings


# Literals, and what could be taken for their beginning: an identifier, a number with separators.
_TOKEN = re.compile(
    r'(?:u8|[uUL])?R"(?P<end>[^()\\\s"]{0,16})\('
    r'|(?:(?:u8|[uUL])?"(?:\\.|[^"\\\n])*'
    r"|[uUL]?'(?:\\.|[^'\\\n])*)(?P<shut>[\"']?)"
    r"|[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|'\w|[\w.])*"
    r"|<::(?![:>])|<:|:>|<%|%>|%:"
)
_DIGRAPHS = {"<:": "[ ", ":>": "] ", "<%": "{ ", "%>": "} ", "%:": "# ", "<::": "<::"}


def tokens(text: str) -> str:
    """A preprocessed text, as long as it was, with what its literals hold blanked and digraphs
    spelled out: what is left is tokens."""
    out, done = [], 0
    endless: set[str] = set()  # ends of raw strings that do not come any more
    m = _TOKEN.search(text)
    while m is not None:
        word, end, literal = m.group(), m.end(), bool(m["shut"])
        if m["end"] is not None:
            closing = f'){m["end"]}"'
            stop = -1 if closing in endless else text.find(closing, end)
            if stop < 0:
                endless.add(closing)
            else:
                end = stop + len(closing)
                word, literal = text[m.start() : end], True
        if word in _DIGRAPHS:
            word = _DIGRAPHS[word]
        elif literal:
            word = word[0] + blank(word[1:-1]) + word[-1]
        out += [text[done : m.start()], word]
        done = end
        m = _TOKEN.search(text, end)
    return "".join([*out, text[done:]])


# The preprocessor puts its own into the first column: places, and pragmas that lint_raw has read.
_PLACED = re.compile(r'# \d+ "|#pragma ')


def _stray_directive(text: str, spelled_out: str) -> int:
    """Where a macro has made what the next pass would take for a directive; -1 without one."""
    for m in re.finditer("#", spelled_out):
        at = m.start()
        if (at and text[at - 1] != "\n") or not _PLACED.match(text, at):
            return at
    return -1


_MARK = re.compile(r'^[ \t]*#[ \t]*(?:line[ \t]+)?\d+[ \t]+"([^"\n]*)"[^\n]*\n', re.M)


def _own(text: str, code: str, sources: Sources) -> str:
    """Of `code`, the tokens of `text`, what lies in the caller's own files; the rest is blank."""
    out, done, own = [], 0, False
    for m in _MARK.finditer(text):
        out.append(code[done : m.start()] if own else blank(code[done : m.start()]))
        out.append(blank(m.group()))
        done, own = m.end(), sources.known(m.group(1))
    return "".join([*out, code[done:] if own else blank(code[done:])])


_SPACE_WORDS = re.compile(r"\b(?:thread|device|threadgroup|constant|auto)\b")


def _missing_space(code: str) -> Iterator[tuple[int, str]]:
    """Declarations of pointers or references without an address space."""
    names = set(re.findall(r"\b(?:typename|class|struct)\s+([A-Za-z_]\w*)", code))
    names |= set(re.findall(r"\busing\s+([A-Za-z_]\w*)\s*=", code))
    names |= set(re.findall(r"\btypedef\s+[^;*&]{0,400}?\b([A-Za-z_]\w*)\s*;", code))
    declaration = re.compile(
        r"(?<=[;{}(,\n])([ \t]*(?:\w+[ \t\n]+){0,6}?)(?:metal\s*::\s*)?\b(\w+)"
        r"((?:\s+(?:const|volatile))*)\s*([*&])\s*(?:const\s+)?([A-Za-z_]\w*)"
        r"\s*(?=[=,;)\[{]|:(?!:))"
    )
    for m in declaration.finditer(code):
        builtin = re.fullmatch(_TYPES, m.group(2)) is not None
        if not builtin and m.group(2) not in names:
            continue
        if _SPACE_WORDS.search(m.group(1)) or _SPACE_WORDS.search(m.group(3)):
            continue
        if re.search(r"\b(?:return|case|else|goto|using|typedef)\b", m.group(1)):
            continue
        before = m.start(2)
        while before and code[before - 1].isspace():
            before -= 1
        at_statement = not before or code[before - 1] in ";{}"
        if builtin or at_statement:
            yield m.start(2), m.group(5)
