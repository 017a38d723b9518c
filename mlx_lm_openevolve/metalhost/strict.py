"""Metal's strictness, read off clang's syntax tree.

The kernel compiles in a mode where plain pointers are generic and half, bfloat and float mix, as
they do not in Metal. Every such conversion is a node of the tree, in templates after their
instantiation, so that the rules here are exact where rules on the text would guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from .findings import Finding, Sources

__all__ = ["STRICT_FLAGS", "strict_findings", "strict_warnings"]

# The tree, and the warnings that are errors in Metal or speak of a bug for certain.
STRICT_FLAGS = (
    *("-fsyntax-only", "-Xclang", "-ast-dump", "-Wno-everything"),
    *("-Wvla", "-Wzero-length-array", "-Wuninitialized", "-Wsometimes-uninitialized"),
)

_LINE = re.compile(r"([ |`-]*)([A-Z]\w+) 0x[0-9a-f]+ (?:(?:prev|parent|first) 0x[0-9a-f]+ )*<(.*)")
_PLACE = re.compile(
    r"(?:^|[<, ])(?:line:(\d+):\d+|col:\d+|([^\s,<>]*|<[\w -]+>):(\d+):\d+)(?=[,> ]|$)"
)
_TYPE = re.compile(r"'([^']*)'(?::'([^']*)')?")
_OPERATOR = re.compile(r"'[^']*'(?::'[^']*')?[^']* '([^']+)'")
_SPACE_WORDS = {"__global_host": "constant", "__global": "device", "__local": "threadgroup"}
_SCALARS = {
    *("bool", "char", "short", "int", "long", "unsigned", "signed"),
    *("float", "_Float16", "__bf16"),
}
_CASTS = {
    "CStyleCastExpr": "a C-style cast",
    "CXXStaticCastExpr": "static_cast",
    "CXXReinterpretCastExpr": "reinterpret_cast",
    "CXXFunctionalCastExpr": "a cast",
}
_FUNCTIONS = ("FunctionDecl", "CXXMethodDecl", "CXXConstructorDecl", "CXXConversionDecl")
_SCOPES = ("TranslationUnitDecl", "NamespaceDecl", "LinkageSpecDecl")
_ASSIGNMENTS = ("BinaryOperator", "CompoundAssignOperator", "UnaryOperator")
_LOGICAL = {"!", "&&", "||"}
_MASKS = {"<", ">", "<=", ">=", "==", "!=", *_LOGICAL}
_OF_MASKS = {"&", "|", "^"}  # of two masks they make a mask
_AROUND = ("ParenExpr", "ExprWithCleanups", "MaterializeTemporaryExpr")
_CHOOSING = ("ImplicitCastExpr", "ConditionalOperator")
_COMPONENTS = ("ExtVectorElementExpr", "ArraySubscriptExpr")
_HAND_ON = (*_AROUND, *_CHOOSING, "ExtVectorElementExpr")
_TAKE_MASKS = ("any", "all", "select")


@dataclass(frozen=True)
class _Node:
    depth: int
    kind: str
    file: str  # of the first of its places that lies in the user's sources, else ""
    line: int
    rest: str  # what follows the places: names, types, flags
    index: int  # among its parent's children

    @property
    def type(self) -> str:
        """The canonical type."""
        m = _TYPE.search(self.rest)
        return "" if m is None else m[2] or m[1]

    @property
    def operator(self) -> str:
        """Which operator an expression is, "" where it is none."""
        if self.kind not in ("BinaryOperator", "UnaryOperator"):
            return ""
        m = _OPERATOR.search(self.rest)
        return "" if m is None else m[1]

    def has(self, flag: str) -> bool:
        return flag in self.rest


def _nodes(tree: str, sources: Sources) -> Iterator[_Node]:
    """The nodes in order. Clang prints of each place only what differs from the one before."""
    file, line = "", 0
    children: dict[int, int] = {}  # by depth: the latest child of the present parent
    for text in tree.splitlines():
        m = _LINE.match(text)
        if m is None:
            continue
        depth = len(m[1]) // 2
        children[depth], children[depth + 1] = children.get(depth, -1) + 1, -1
        body, rest = _split(m[3])
        own = ("", 0)
        # A declaration's name has its place behind the range.
        head, _, tail = rest.partition(" ")
        places, rest = (f"{body}, {head}", tail) if _PLACE.fullmatch(head) else (body, rest)
        for place in _PLACE.finditer(places):
            if place[1]:
                line = int(place[1])
            elif place[3]:
                file, line = place[2], int(place[3])
            if not own[0] and sources.known(file):
                own = (file, line)
        yield _Node(depth, m[2], *own, rest, children[depth])


def _split(text: str) -> tuple[str, str]:
    """The places between angle brackets, and what follows."""
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if depth == 0:
            return text[:i], text[i + 1 :].lstrip()
    return text, ""


def strict_findings(
    tree: str, sources: Sources, kernels: Collection[str], constants: Collection[str]
) -> list[Finding]:
    """What Metal refuses in `tree`, in the user's own files. `kernels` and `constants` are the
    names of the kernel functions and of the function constants."""
    findings: list[Finding] = []
    path: list[_Node] = []
    called: dict[int, str] = {}  # by depth: the function of the latest call
    for node in _nodes(tree, sources):
        while path and path[-1].depth >= node.depth:
            path.pop()
        message = _judge(node, path, kernels, constants) if node.file else ""
        message = message or (_judge_operand(node, path) if path else "")
        if node.file and path and "ext_vector_type" in node.type:
            message = message or _judge_mask(node, path, called)
        if node.kind == "DeclRefExpr" and len(path) > 1 and path[-2].kind == "CallExpr":
            function = re.search(r"\bFunction (?:0x[0-9a-f]+ )?'(\w+)'", node.rest)
            if function and path[-1].index == 0:
                called[path[-2].depth] = function[1]
        path.append(node)
        if message:
            at = node if node.file else path[-2]
            findings.append(sources.finding("strict", message, at.file, at.line))
    return findings


def strict_warnings(findings: Iterable[Finding]) -> list[Finding]:
    """Clang's warnings of STRICT_FLAGS as findings."""
    return [
        replace(f, kind="uninitialised") if "uninitialized" in f.message else f for f in findings
    ]


def _judge(
    node: _Node, path: list[_Node], kernels: Collection[str], constants: Collection[str]
) -> str:
    if node.kind == "VarDecl":
        return _judge_variable(node, path, kernels, constants)
    if node.kind in _ASSIGNMENTS and _changes(node) and "__global_host" in node.type.split("*")[-1]:
        return "constant memory is read-only"
    if node.kind == "CompoundAssignOperator" and node.type == "__bf16":
        computed = re.search(r"ComputeResultTy='([^']*)'(?::'([^']*)')?", node.rest)
        if computed and (computed[2] or computed[1]) in ("float", "_Float16"):
            return "the result is float and does not convert to bfloat: write x = bfloat(x op y)"
    if node.kind in _CASTS and node.has("<AddressSpaceConversion>"):
        return f"{_CASTS[node.kind]} cannot change the address space"
    if node.kind == "FunctionDecl" and re.match(r"(?:\w+ )*main '", node.rest):
        return "a function cannot be called main"
    if node.kind == "DeclRefExpr":
        called = re.search(r"Function 0x[0-9a-f]+ '(\w+)'", node.rest)
        if called and called[1] in kernels:
            return f"kernel {called[1]!r} cannot be called"
    return ""


def _changes(node: _Node) -> bool:
    """Whether an operator writes to its left side."""
    if node.kind == "UnaryOperator":
        return node.has("'++'") or node.has("'--'")
    return node.kind == "CompoundAssignOperator" or node.rest.endswith("'='")


def _judge_variable(
    node: _Node, path: list[_Node], kernels: Collection[str], constants: Collection[str]
) -> str:
    named = re.search(r"(\w+) '", node.rest)
    name = named[1] if named else ""
    key = name.endswith("_mh_key")  # what the translator makes of a threadgroup variable
    function = next((p for p in reversed(path) if p.kind in _FUNCTIONS), None)
    if function is None:
        if any(p.kind not in _SCOPES for p in path) or name in constants:
            return ""
        if key or not node.type.startswith(("__global_host ", "const __global_host ")):
            return "a variable at program scope must be in the constant address space"
        if not node.has("init") and not node.has("extern"):
            return f"the constant {name!r} must be initialised"
        return ""
    if key:
        owner = re.search(r"(\w+) '", function.rest)
        if owner is None or owner[1] not in kernels:
            return "a threadgroup variable can be declared in a kernel only"
    elif re.search(r"' static\b", node.rest):
        return "a variable in a function cannot be static"
    return ""


def _judge_operand(node: _Node, path: list[_Node]) -> str:
    """Rules on an implicit conversion, the parent of `node`."""
    cast = path[-1]
    if cast.kind != "ImplicitCastExpr" or cast.has("part_of_explicit_cast"):
        return ""
    if not (cast.file or node.file):
        return ""
    if cast.has("<FloatingCast>"):
        source, target = node.type, cast.type
        if _plain(target) == "__bf16" or (_plain(source), _plain(target)) == ("__bf16", "_Float16"):
            return f"no implicit conversion from {_word(source)} to {_word(target)}"
    # A class may be copied out of any address space: its reference converts on the way.
    elif cast.has("<AddressSpaceConversion>") and ("*" in cast.type or _scalar(cast.type)):
        source, target = _space(node.type), _space(cast.type)
        return f"{source} memory where {target} memory is expected"
    return ""


def _judge_mask(node: _Node, path: list[_Node], called: Mapping[int, str]) -> str:
    """A comparison of vectors is a bool vector in Metal, and here integers, -1 where it holds: it
    must end where its truth alone counts, and nothing else may become a bool vector by itself."""
    mask = node.operator in _MASKS
    if not mask and (node.operator in _OF_MASKS or node.kind in _HAND_ON):
        return ""  # its operands are judged
    child, at = node, len(path) - 1
    while at > 0 and _hands_on(path[at], child):
        child, at = path[at], at - 1
    user = path[at]
    if user.kind == "ConditionalOperator":
        return "" if mask else "the condition is a vector of numbers: compare it with 0"
    bools = "Bools<" in user.type
    if not mask:
        if user.kind != "CXXConstructExpr" or not bools or path[at - 1].kind in _CASTS:
            return ""
        return "no implicit conversion from a vector of numbers to a bool vector"
    if bools or user.operator in _LOGICAL or user.has("<IntegralToBoolean>"):
        return ""
    if user.kind == "CompoundStmt" or called.get(user.depth) in _TAKE_MASKS:
        return ""
    return "a comparison of vectors is used as numbers: make it a bool vector, as in bool4(a < b)"


def _hands_on(node: _Node, child: _Node) -> bool:
    """Whether a node gives the vector that `child` is, or components of it."""
    if node.kind in _AROUND or node.operator in _OF_MASKS:
        return True
    if node.kind in _CHOOSING:
        return child.index > 0 or node.has("<LValueToRValue>") or node.has("<NoOp>")
    return node.kind in _COMPONENTS and child.index == 0


def _plain(type_: str) -> str:
    return re.sub(r"\b(?:const|volatile|__\w+l(?:_host)?)\b", "", type_).strip()


def _word(type_: str) -> str:
    return {"__bf16": "bfloat", "_Float16": "half"}.get(_plain(type_), _plain(type_))


def _scalar(type_: str) -> bool:
    words = _plain(type_).split("__attribute__")[0].split()
    return bool(words) and all(w in _SCALARS for w in words)


def _space(type_: str) -> str:
    pointee = type_.rsplit("*", 1)[0]
    return next((word for mark, word in _SPACE_WORDS.items() if mark in pointee.split()), "thread")
