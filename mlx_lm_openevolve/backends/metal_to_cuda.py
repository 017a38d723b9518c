"""Metal text as CUDA text: a rewrite of tokens that knows no types.

It drops or renames Metal's address spaces, makes attributes variables, swizzles calls and literals
floats. What it does not know it refuses, with the line and the reason. metal_on_cuda.cuh supplies
the rest of the language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import BackendError

__all__ = ["UnsupportedOnCuda", "minify", "translate"]

_TOKEN = re.compile(
    r"""(?P<comment>//(?:\\\r?\n|[^\n])*|/\*.*?\*/)
      | (?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\w*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<space>[ \t]+)
      | (?P<other>\n|::|->|\+\+|--|<<|>>|[<>=!+\-*/%&|^]=|&&|\|\||.)""",
    re.VERBOSE | re.DOTALL,
)
_GLUED = re.compile(r"\w")

# Metal's names for a thread's place, and CUDA's.
_PLACES = {
    "thread_position_in_grid": "uint3 {}(blockIdx.x * blockDim.x + threadIdx.x, "
    "blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z)",
    "thread_position_in_threadgroup": "uint3 {}(threadIdx.x, threadIdx.y, threadIdx.z)",
    "threadgroup_position_in_grid": "uint3 {}(blockIdx.x, blockIdx.y, blockIdx.z)",
    "threads_per_threadgroup": "uint3 {}(blockDim.x, blockDim.y, blockDim.z)",
    "threadgroups_per_grid": "uint3 {}(gridDim.x, gridDim.y, gridDim.z)",
    "threads_per_grid": "uint3 {}(gridDim.x * blockDim.x, gridDim.y * blockDim.y, "
    "gridDim.z * blockDim.z)",
    "thread_index_in_threadgroup": "uint {} = "
    "(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x",
    "thread_index_in_simdgroup": "uint {} = "
    "((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) % 32",
    "simdgroup_index_in_threadgroup": "uint {} = "
    "((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) / 32",
    "threads_per_simdgroup": "uint {} = 32",
    "simdgroups_per_threadgroup": "uint {} = (blockDim.x * blockDim.y * blockDim.z + 31) / 32",
}

# What the header cannot carry, by the name that gives it away.
_REFUSED = (
    (r"simdgroup_(matrix|load|store|multiply\w*|(float|half|bfloat)8x8)", "simdgroup matrices"),
    (r"make_filled_simdgroup_matrix", "simdgroup matrices"),
    (r"atomic\w*", "atomics"),
    (r"quad_\w+", "quad functions"),
    (r"simd_(prefix|is)_\w+|simd_active_threads_mask", "this simd function"),
    (r"simd_shuffle_(and_fill|rotate)\w*", "this simd function"),
    (r"texture\w+|sampler|imageblock\w*", "textures"),
    (r"mpp|tensor_ops|cooperative_tensor", "Metal's tensor operations"),
    (r"ray_data|intersector\w*|object_data", "this address space or type"),
    (r"dispatch_\w+|grid_origin|threadgroups_per_simdgroup", "this attribute"),
    (r"asm|__\w+", "a name reserved for the compiler"),
)
_REFUSAL = re.compile("|".join(f"(?P<r{i}>{names})" for i, (names, _) in enumerate(_REFUSED)))
_SWIZZLE = re.compile(r"[xyzw]{2,4}|[rgba]{2,4}")
_FLOAT = re.compile(
    r"(?P<digits>\d+\.\d*|\.\d+|\d+(?=[eE])|\d+(?=[fFhH]|bf|BF))(?P<exp>[eE][+-]?\d+)?"
    r"(?P<suffix>[fF]|[hH]|bf|BF)?"
)
_ASSIGN = ("=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=")


class UnsupportedOnCuda(BackendError):
    """A Metal source uses what the CUDA header cannot carry; the message says what and where."""


def minify(source: str) -> str:
    """`source` without comments and needless blanks. Lines stay lines, so that a compiler's
    message still names the line; MLX hashes the whole text at every call, so that bytes count."""
    parts: list[str] = []
    space = ""
    for kind, token in _tokens(source):
        if kind == "comment":
            breaks = token.count("\n")
            space = "\n" * breaks if breaks else space or " "
            if breaks:
                parts.append("\n" * breaks)
                space = ""
        elif kind == "space":
            space = space or " "
        else:
            last = parts[-1] if parts else "\n"
            directive = _in_directive(parts)
            if space and last != "\n" and token != "\n":
                if directive or (_GLUED.match(last[-1]) and _GLUED.match(token[0])):
                    parts.append(" ")
                elif last[-1] in "+-&|<>/*=" and token[0] in "+-&|<>/*=":
                    parts.append(" ")  # a + +b
                elif '"' in (last[-1], token[0]) and _GLUED.search(last[-1] + token[0]):
                    parts.append(" ")  # "a" NAME "b"
            parts.append(token)
            space = ""
    return "".join(parts).rstrip()


def _in_directive(parts: list[str]) -> bool:
    """Whether the text so far ends inside a preprocessor line, where a blank may mean something."""
    for part in reversed(parts):
        if part == "\n" or part.endswith("\n"):
            return False
        if part == "#":
            return True
    return False


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(source):
        yield str(match.lastgroup), match.group()


def translate(source: str, arrays: tuple[str, ...] = ()) -> str:
    """The CUDA text of a Metal body or header, line by line the same.

    `arrays` names the launch's inputs, whose `X_shape` and `X_strides` are arrays on CUDA and
    pointers on Metal. Raises UnsupportedOnCuda with the line and the reason.
    """
    tokens = [(kind, text) for kind, text in _tokens(source) if kind != "comment"]
    words = [i for i, (kind, _) in enumerate(tokens) if kind != "space"]
    extents = {f"{name}_{suffix}" for name in arrays for suffix in ("shape", "strides")}
    places = sorted({text for kind, text in tokens if kind == "word" and text in _PLACES})
    line = 1
    for at, i in enumerate(words):
        kind, text = tokens[i]
        before = tokens[words[at - 1]][1] if at else ""
        after = [tokens[j][1] for j in words[at + 1 : at + 64]]
        if text == "\n":
            line += 1
        elif kind == "number":
            tokens[i] = (kind, _number(text))
        elif kind == "word":
            tokens[i] = (kind, _word(text, before, after, extents, line))
    text = "".join(token for _, token in tokens)
    text = _directives(text)
    declared = "".join(f"const {_PLACES[name].format(name)};" for name in places)
    return declared + text


def _word(text: str, before: str, after: list[str], extents: set[str], line: int) -> str:
    refusal = _REFUSAL.fullmatch(text)
    if refusal and before not in (".", "->"):
        reason = _REFUSED[int(str(refusal.lastgroup)[1:])][1] if refusal.lastgroup else "this"
        raise UnsupportedOnCuda(f"line {line}: {text}: the CUDA backend does not carry {reason}")
    following = after[0] if after else ""
    if text in ("device", "thread"):
        return ""
    if text == "constant":
        return "" if {before, following} & {"const", "constexpr"} else "const"
    if text == "threadgroup":
        return _threadgroup(after, line)
    if text in extents:
        return f"{text}.data()"
    if before == "." and following != "(" and _SWIZZLE.fullmatch(text):
        if following in _ASSIGN:
            raise UnsupportedOnCuda(
                f"line {line}: .{text} {following}: assigning to a swizzle is not carried"
            )
        letters = "xyzw" if text[0] in "xyzw" else "rgba"
        return f"swizzle<{','.join(str(letters.index(c)) for c in text)}>()"
    return text


def _threadgroup(after: list[str], line: int) -> str:
    """`threadgroup` before a variable is shared memory, before a pointer nothing."""
    for token in after:
        if token in ("*", "&"):
            return ""
        if token in ("[", ";", "="):
            return "__shared__"
        if token in (")", "{", "}"):
            break
    raise UnsupportedOnCuda(f"line {line}: threadgroup: neither a variable nor a pointer")


def _number(text: str) -> str:
    """Metal has no double: a literal without suffix is a float."""
    match = _FLOAT.fullmatch(text)
    if match is None:
        return text
    value = match["digits"] + (match["exp"] or "")
    suffix = (match["suffix"] or "f").lower()
    if suffix == "h":
        return f"half({value if '.' in value or match['exp'] else value + '.'}f)"
    if suffix == "bf":
        return f"bfloat({value if '.' in value or match['exp'] else value + '.'}f)"
    return value + "f"


def _directives(text: str) -> str:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped.startswith("#"):
            name = stripped[1:].strip()
            if re.fullmatch(r"include\s*<metal_\w+>", name):
                lines[number - 1] = ""
            elif name.startswith("include"):
                raise UnsupportedOnCuda(f"line {number}: {stripped}: only <metal_*> is carried")
            elif name.startswith("pragma clang loop unroll"):
                lines[number - 1] = "#pragma unroll"
        elif re.fullmatch(r"using\s+namespace\s+metal\s*;", stripped):
            lines[number - 1] = ""
    return "\n".join(lines)
