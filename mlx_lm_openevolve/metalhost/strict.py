"""Metal's strictness, read off clang's syntax tree.

The kernel compiles in a mode where plain pointers are generic and half, bfloat and float mix, as
they do not in Metal. Every such conversion is a node of the tree, in templates after their
instantiation, so that the rules here are exact where rules on the text would guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from .findings import Finding, Sources
from .syntax_tree import Node, nodes

__all__ = ["STRICT_FLAGS", "strict_findings", "strict_warnings"]

# The tree, and the warnings that are errors in Metal or speak of a bug for certain.
STRICT_FLAGS = (
    *("-fsyntax-only", "-Xclang", "-ast-dump", "-Wno-everything"),
    *("-Wvla", "-Wzero-length-array", "-Wuninitialized", "-Wsometimes-uninitialized"),
)

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
_CALLS = ("CallExpr", "CXXOperatorCallExpr", "CXXMemberCallExpr")
_TAKE_MASKS = ("any", "all", "select")


@dataclass
class _Functions:
    """What the tree has said of the user's functions so far."""

    own: set[str] = field(default_factory=set)  # their ids
    spaces: dict[str, set[str]] = field(default_factory=dict)  # of methods, where they say so
    lost: dict[str, str] = field(default_factory=dict)  # templates for which T took another space
    called: dict[int, tuple[str, str]] = field(default_factory=dict)  # by depth: name and id

    def read(self, node: Node, path: list[Node]) -> None:
        if node.kind in _FUNCTIONS and node.file and not re.search(r"\bimplicit\b(?!-)", node.rest):
            self.own.add(node.id)
        elif node.kind == "DeprecatedAttr" and path:  # MH_SPACES
            words = re.search(r'"([a-z_ ]*)"', node.rest)
            if words and path[-1].kind == "CXXMethodDecl":
                self.spaces[path[-1].id] = set(words[1].split())
            space = _space(path[-1].type)
            if path[-1].kind == "ParmVarDecl" and space != "thread" and len(path) > 1:
                self.lost[path[-2].id] = space
        elif node.kind == "DeclRefExpr" and len(path) > 1 and path[-2].kind in _CALLS:
            function = re.search(r"\b(?:Function|CXXMethod) (0x[0-9a-f]+) '([^']+)'", node.rest)
            if function and path[-1].index == 0:
                self.called[path[-2].depth] = (function[2], function[1])


def strict_findings(
    tree: str,
    sources: Sources,
    kernels: Collection[str],
    constants: Collection[str],
    lambdas: bool,
) -> list[Finding]:
    """What Metal refuses in `tree`, in the user's own files. `kernels` and `constants` are the
    names of the kernel functions and of the function constants. lambdas: the language has them."""
    findings: list[Finding] = []
    path: list[Node] = []
    functions = _Functions()
    for node in nodes(tree, sources):
        while path and path[-1].depth >= node.depth:
            path.pop()
        functions.read(node, path)
        message = _judge(node, path, kernels, constants, functions) if node.file else ""
        if node.kind == "LambdaExpr" and node.file and not lambdas:
            message = "lambda expressions are not supported before Metal 3.2"
        message = message or (_judge_operand(node, path, functions) if path else "")
        if node.file and path and "ext_vector_type" in node.type:
            message = message or _judge_mask(node, path, functions)
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
    node: Node,
    path: list[Node],
    kernels: Collection[str],
    constants: Collection[str],
    functions: _Functions,
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
        called = re.search(r"Function (0x[0-9a-f]+) '(\w+)'", node.rest)
        if called and called[2] in kernels:
            return f"kernel {called[2]!r} cannot be called"
        if called and called[1] in functions.lost:
            return f"{functions.lost[called[1]]} memory where thread memory is expected"
    return ""


def _changes(node: Node) -> bool:
    """Whether an operator writes to its left side."""
    if node.kind == "UnaryOperator":
        return node.has("'++'") or node.has("'--'")
    return node.kind == "CompoundAssignOperator" or node.rest.endswith("'='")


def _judge_variable(
    node: Node, path: list[Node], kernels: Collection[str], constants: Collection[str]
) -> str:
    named = re.search(r"(\w+) '", node.rest)
    name = named[1] if named else ""
    key = name.endswith("_mh_key")  # what the translator makes of a threadgroup variable
    function = next((p for p in reversed(path) if p.kind in _FUNCTIONS), None)
    if function is None:
        if any(p.kind not in _SCOPES for p in path) or name in constants:
            return ""
        if key or not re.match(r"(?:const )*__global_host ", node.type):
            return "a variable at program scope must be in the constant address space"
        # clang asks a constexpr for its value, which a member's definition need not repeat.
        if not any(map(node.has, ("init", "extern", "constexpr"))):
            return f"the constant {name!r} must be initialised"
        return ""
    if key:
        owner = re.search(r"(\w+) '", function.rest)
        if owner is None or owner[1] not in kernels:
            return "a threadgroup variable can be declared in a kernel only"
    elif re.search(r"' static\b", node.rest):
        return "a variable in a function cannot be static"
    return ""


def _judge_operand(node: Node, path: list[Node], functions: _Functions) -> str:
    """Rules on an implicit conversion, the parent of `node`."""
    cast = path[-1]
    if cast.kind != "ImplicitCastExpr" or not (cast.file or node.file):
        return ""
    explicit = cast.has("part_of_explicit_cast")
    if cast.has("<FloatingCast>") and not explicit:
        source, target = node.type, cast.type
        if _plain(target) == "__bf16" or (_plain(source), _plain(target)) == ("__bf16", "_Float16"):
            return f"no implicit conversion from {_word(source)} to {_word(target)}"
    elif cast.has("<AddressSpaceConversion>"):
        source, target = _space(node.type), _space(cast.type)
        simple = "*" in cast.type or _scalar(cast.type)
        if explicit:
            return f"a cast cannot turn {source} memory into {target} memory" if simple else ""
        method = _method(path[-2])
        if method:
            if method not in functions.own or source in functions.spaces.get(method, {"thread"}):
                return ""
            return f"{source} memory, but the method is not marked {source!r}"
        if simple or _binds(path[-2], functions):
            return f"{source} memory where {target} memory is expected"
    return ""


def _method(node: Node) -> str:
    """The id of the method that a member expression names, "" where it names none."""
    found = re.search(r"'<bound member function type>' (?:\.|->)\S+ (0x[0-9a-f]+)", node.rest)
    return found[1] if found and node.kind == "MemberExpr" else ""


def _binds(user: Node, functions: _Functions) -> bool:
    """Whether an object of a class is bound here. Otherwise it is copied, as it may be out of any
    address space: the copy's reference converts on the way."""
    if user.kind in _CALLS:
        return functions.called.get(user.depth, ("", ""))[1] in functions.own
    return user.kind == "VarDecl" and "&" in user.type


def _judge_mask(node: Node, path: list[Node], functions: _Functions) -> str:
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
        return "the condition of ?: is one bool, and here a vector: write select"
    bools = "Bools<" in user.type
    if not mask:
        if user.kind != "CXXConstructExpr" or not bools or path[at - 1].kind in _CASTS:
            return ""
        return "no implicit conversion from a vector of numbers to a bool vector"
    if bools or user.operator in _LOGICAL or user.has("<IntegralToBoolean>"):
        return ""
    if user.kind == "CompoundStmt" or functions.called.get(user.depth, ("",))[0] in _TAKE_MASKS:
        return ""
    return "a comparison of vectors is used as numbers: make it a bool vector, as in bool4(a < b)"


def _hands_on(node: Node, child: Node) -> bool:
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
    words = re.sub(r"__attribute__.*|[(&)]*\[.*", "", _plain(type_)).split()
    return bool(words) and all(w in _SCALARS for w in words)


def _space(type_: str) -> str:
    pointee = re.sub(r"<.*>", "", type_).rsplit("*", 1)[0]
    return next((word for mark, word in _SPACE_WORDS.items() if mark in pointee.split()), "thread")
