"""Recognition: which layers of a model are computed in a way that we know.

    class --source of its __call__--> syntax tree --digest--> Body | None

A class is known by what its `__call__` does, never by its name: mlx-lm's models share bodies, and
what was rewritten is another. Exactly the class: not its subclasses. Without a source, or with one
that is not what runs, nothing is known.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import textwrap
from types import CodeType, FunctionType
from typing import Any, NamedTuple

__all__ = ["BODIES", "Body", "attributes", "digest", "function_of", "recognise"]

# What says nothing of what a body does.
_IGNORED = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}


class Body(NamedTuple):
    """What a known `__call__(self, x, ...)` does with the attributes of its layer.

    products: the layers that it calls, each once and whatever else it is given, with its first
    argument as it came: their products may be one. norms: what it normalises queries and keys with,
    (). rope: what turns them, "" where nothing or not always. scale: what scores are multiplied by.
    """

    products: tuple[str, ...]
    norms: tuple[str, ...] = ()
    rope: str = ""
    scale: str = ""


_QKV = ("q_proj", "k_proj", "v_proj")

_DIGESTS: dict[Body, str] = {
    # llama's, and of 14 more
    Body(_QKV, rope="rope", scale="scale"): "b6e450db5a60",
    # qwen3's, and of 3 more: each head is normalised
    Body(_QKV, ("q_norm", "k_norm"), "rope", "scale"): "91bcb29b3835",
    Body(_QKV): (
        "7a7bf476987c 08638e8fa6f4 5d5234b6dd3e a4f789208c93 53f15d9747cb d0300f1598ee "
        "65404af03a54 d9dadc30dee5 a996ad3d6eec adcad35b1995 f812814a382e 8d506fc04a25 "
        "347f8430a117 1e608ffbbb02 893a4c340001 279745fa7135 8e5e4f608e38 20480ed29f82 "
        "8308ced77303 a9b1867e1db2 1ddb55b36e93 5ef62cf0d1ff c7f0f7e47084 ad1dba09e7bd "
        "05aaa11ef8ef bb5446b497b1 8d69769b74bf ecb6faef9311 1cb6e1eb1711 8f4e0048b826 "
        "d656028ab838 f10ace101a61 46ff943e00f5 f154e1d01152 3c54d84f61c1 1b76641bb6c8 "
        "0abd8910f209 e5fc87a0be26 9769ab6d72a0 b2049e810e38 843bd97217af 89f164a7ea33 "
        "d9e3171f0db1"
    ),
    Body(("gate_proj", "up_proj")): (
        "fc6840d33bf9 9aad51d10ee6 46c3dbeed781 b7027cb8a265 13ed55842347 1c252105ae6b "
        "a72a5ac7a953 b51b127fe664 41c053c80d59 2b0b4dc5972d 37f5d4084acc 2e3506e7f816 "
        "b8f92eb22d4e 687ec45d1403 d063813d7c1c fca8cf6f7276 51a9b6f82114"
    ),
}
BODIES: dict[str, Body] = {name: body for body, names in _DIGESTS.items() for name in names.split()}


def recognise(cls: type) -> Body | None:
    """What is known of exactly this class; None where nothing is."""
    function = vars(cls).get("__call__")
    if type(function) is not FunctionType or hasattr(function, "__wrapped__"):
        return None
    try:
        node = function_of(textwrap.dedent(inspect.getsource(function)))
        body = BODIES.get(digest(node))
        if body is None or not _is_of_its_file(function):
            return None
    except (OSError, TypeError, ValueError, SyntaxError, RecursionError):
        return None
    # A method of its own may do anything to the layer.
    own = any(hasattr(cls, name) for name in attributes(node) if name != "training")
    return None if own else body


def _is_of_its_file(function: FunctionType) -> bool:
    """Whether a function is what its file says now: it may have changed since it was imported."""
    file = function.__code__.co_filename
    codes = [compile("".join(linecache.getlines(file)), file, "exec", dont_inherit=True)]
    for code in codes:
        codes += (inner for inner in code.co_consts if isinstance(inner, CodeType))
    return function.__code__ in codes


def function_of(source: str) -> ast.FunctionDef:
    """The syntax tree of a function's text. Raises ValueError where it is not one plain function,
    and what the parser raises."""
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        raise ValueError("no plain function")
    return node


def attributes(function: ast.FunctionDef) -> list[str]:
    """The attributes of its first argument that a method names, as often as it does."""
    me = function.args.args[0].arg
    named = (node for node in ast.walk(function) if isinstance(node, ast.Attribute))
    return [n.attr for n in named if isinstance(n.value, ast.Name) and n.value.id == me]


def digest(function: ast.FunctionDef) -> str:
    """12 hex digits of what a function's syntax tree says, annotations, docstrings and comments
    aside; the same in every release of Python."""
    return hashlib.sha256(repr(_said(function)).encode()).hexdigest()[:12]


def _said(node: Any) -> Any:
    if isinstance(node, list):
        return [said for said in map(_said, node) if said is not None]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return None  # a docstring, or as good as one
    if isinstance(node, ast.AnnAssign):
        if node.value is None:
            return None
        node = ast.Assign([node.target], node.value)
    if isinstance(node, ast.Constant):
        return "Constant", repr(node.value)
    fields = ((name, _said(value)) for name, value in ast.iter_fields(node))
    # Empty fields differ between releases.
    kept = [
        (name, value) for name, value in fields if name not in _IGNORED and value not in ([], None)
    ]
    return type(node).__name__, kept
