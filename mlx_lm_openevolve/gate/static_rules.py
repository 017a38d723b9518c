"""Static rules: what a kernel must say in its own text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .. import ops
from ..errors import KernelError
from ..kernels.kernel import Kernel
from ..ops import Bucket
from ..ops.source_mutants import without_comments
from .cuda_text import keeps_state

__all__ = ["keeps_state", "static_rules"]


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
            state = state or keeps_state(launch.spec.source, header=launch.spec.header)
            if state:
                return f"CUDA text keeps state between launches: {state}"
    if "__cluster_dims__" in text:
        # MLX 0.32 updates its CUDA graphs without the cluster's size: other launches go wrong.
        return "a launch sets __cluster_dims__, which MLX's graphs do not carry"
    return op.questions.static_rules(text, bucket)
