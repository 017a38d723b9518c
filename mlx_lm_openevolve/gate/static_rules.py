"""Static rules: what a kernel must say in its own text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .. import ops
from ..errors import KernelError
from ..kernels.kernel import Kernel
from ..ops import Bucket
from ..ops.source_mutants import without_comments

__all__ = ["keeps_state", "static_rules"]


_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\w+|\S')
_CONSTANT = {"const", "constexpr", "__constant__", "__shared__"}


_DIRECTIVE = re.compile(r"^[ \t]*#.*", re.MULTILINE)
# What may hold parentheses in a declaration of data.
_ATTRIBUTE = re.compile(
    r"\b(?:alignas|__align__|__attribute__|__launch_bounds__|decltype)\s*"
    r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
)
_NO_DATA = {
    "namespace",
    "using",
    "typedef",
    "template",
    "static_assert",
    "asm",
    "friend",
    "operator",
    "concept",
}
_TYPES = {"struct", "class", "union", "enum"}
_PTX_DATA = re.compile(r"\.global(?:\s|\\[tn])+\.")


def keeps_state(text: str, *, namespace: bool = False) -> str:
    """The first declaration of CUDA text whose data outlive a launch, "" where there is none:
    __managed__, static or __device__ data that are neither constant nor shared, and what PTX calls
    .global. namespace: the text is no function's body; what it declares there is __device__
    without being called so, as MLX compiles it."""
    text = without_comments(text.replace("\\\n", ""))
    if _PTX_DATA.search("".join(t[1:-1] for t in _TOKEN.findall(text) if t[0] == '"')):
        return "PTX .global data"
    return _marked(_TOKEN.findall(text)) or (_in_namespace(text) if namespace else "")


def _in_namespace(text: str) -> str:
    """The first data at namespace scope that are neither constant nor shared."""
    said: list[str] = []  # of a declaration, so far
    depth = 0  # of braces that hold no declarations of a namespace
    body = False  # whether what stands in these braces is a function's
    for token in _TOKEN.findall(_ATTRIBUTE.sub("", _DIRECTIVE.sub("", text))):
        if depth:
            depth += {"{": 1, "}": -1}.get(token, 0)
            if not depth and body:
                said = []
        elif token == "{":
            if "namespace" in said or (said[:1] == ["extern"] and said[-1:] == ['"C"']):
                said = []
            else:
                depth, body = 1, "(" in said and "=" not in said
                kind = next((t for t in said if t in _TYPES), "")
                if kind and not body:  # what follows a type's braces are data of that type
                    said = [t for t in said if t in _CONSTANT] + [f"{kind} {{}}"]
        elif token == "}":
            said = []
        elif token == ";":
            if _is_data(said):
                return " ".join(said)
            said = []
        else:
            said.append(token)
    return ""


def _is_data(said: list[str]) -> bool:
    head = said[: said.index("=")] if "=" in said else said
    pointer = max((i for i, t in enumerate(head) if t == "*"), default=-1)
    if len(head) < 2 or _NO_DATA & set(head) or "constexpr" in head:
        return False
    if _CONSTANT & set(head[pointer + 1 :]) or (head[0] in _TYPES and len(head) == 2):
        return False
    if "(" not in head:
        return True
    given = head[head.index("(") + 1]  # of a function's parameters the first is a type
    return given[0].isdigit() or given in "-+*'\"" or given in ("true", "false", "nullptr")


def _marked(tokens: list[str]) -> str:
    """The first data that a text itself calls static or the device's."""
    for at, token in enumerate(tokens):
        if token == "__managed__" or (token == "#" and tokens[at + 1 : at + 2] == ["#"]):
            return f"{token} near {' '.join(tokens[at : at + 6])}"
        if token not in ("static", "__device__"):
            continue
        end = at
        while end < len(tokens) and tokens[end] not in ";={}([":
            end += 1
        declared = tokens[max(0, at - 2) : end]
        pointer = max((i for i, t in enumerate(declared) if t == "*"), default=-1)
        constant = _CONSTANT & set(declared[pointer + 1 :]) or {"constexpr"} & set(declared)
        function = tokens[end : end + 1] == ["("] or "operator" in declared
        if not constant and not function and len(declared) > 1:
            return " ".join(declared)
    return ""


def static_rules(kernel: Kernel, params: Mapping[str, int], bucket: Bucket) -> str:
    """The first static rule that a kernel breaks for a bucket, "" where it breaks none."""
    try:
        if not kernel.applies_to(bucket):
            return "the kernel does not apply to this workload"
        launches = kernel.launches(bucket.largest(), params)
    except KernelError as error:
        return str(error)
    text = "\n".join(without_comments(x.spec.source + x.spec.header) for x in launches)
    read = {name for launch in launches for name in launch.spec.inputs}
    op = ops.of(bucket)
    for name in sorted(op.required(bucket)):
        if name not in read or not re.search(rf"\b{name}\b", text):
            return f"no launch reads {name}"
    for launch in launches:
        if launch.spec.language == "cuda":
            state = keeps_state(launch.spec.header, namespace=True)
            state = state or keeps_state(launch.spec.source)
            if state:
                return f"CUDA text keeps state between launches: {state}"
    if "__cluster_dims__" in text:
        # MLX 0.32 updates its CUDA graphs without the cluster's size: other launches go wrong.
        return "a launch sets __cluster_dims__, which MLX's graphs do not carry"
    return op.questions.static_rules(text, bucket)
