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


def keeps_state(text: str) -> str:
    """The first declaration of CUDA text whose data outlive a launch, "" where there is none:
    __managed__, static or __device__ data that are neither constant nor shared."""
    tokens = _TOKEN.findall(text.replace("\\\n", ""))
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
            for part in (launch.spec.header, launch.spec.source):
                state = keeps_state(without_comments(part))
                if state:
                    return f"CUDA text keeps state between launches: {state}"
    if "__cluster_dims__" in text:
        # MLX 0.32 updates its CUDA graphs without the cluster's size: other launches go wrong.
        return "a launch sets __cluster_dims__, which MLX's graphs do not carry"
    return op.questions.static_rules(text, bucket)
