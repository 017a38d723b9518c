"""Floating-point operations of each basic block, read off LLVM IR.

Clang's coverage instrumentation marks the basic blocks; each mark becomes a call of
mh_block(id, instructions, flops), so that the runtime's sums are exact for the IR that runs.
"""

from __future__ import annotations

import re

__all__ = ["count_blocks"]

_MARK = re.compile(r"^(\s*)(?:tail |notail )?call void @__sanitizer_cov_trace_pc_guard\(.*$")
_OPERATION = re.compile(
    r"= (?:f(?:add|sub|mul|div|rem)) (?:(?:fast|nnan|ninf|nsz|arcp|contract|afn|reassoc) )*"
    r"(?:<(\d+) x )?(?:float|half|bfloat|double)"
)
# One operation an element; a fused multiply-add has two. Transcendental functions count nothing.
_CALL = re.compile(
    r"call .*?@llvm\.(fma|fmuladd|maxnum|minnum|maximum|minimum|maximumnum|minimumnum|sqrt)\."
    r"(?:v(\d+))?"
)


def block_flops(line: str) -> int:
    """Floating-point operations of one line of IR."""
    m = _OPERATION.search(line)
    if m:
        return int(m.group(1) or 1)
    m = _CALL.search(line)
    if m:
        return int(m.group(2) or 1) * (2 if m.group(1) in ("fma", "fmuladd") else 1)
    return 0


def count_blocks(ir: str) -> str:
    """The IR with each block's mark replaced."""
    out: list[str] = []
    mark: tuple[int, str] | None = None
    instructions = flops = blocks = 0

    def close() -> None:
        nonlocal mark, blocks
        if mark is not None:
            at, indent = mark
            out[at] = f"{indent}call void @mh_block(i32 {blocks}, i32 {instructions}, i32 {flops})"
            blocks += 1
        mark = None

    inside = False
    for line in ir.splitlines():
        if line.startswith("define "):
            inside = True
        elif line == "}":
            close()
            inside = False
        elif inside and line and not line.startswith(" "):
            close()  # a label begins the next block
            instructions = flops = 0
        elif inside and line:
            m = _MARK.match(line)
            if m is not None:
                mark = (len(out), m.group(1))
                out.append("")
                continue
            if not line.lstrip().startswith(
                ("#dbg", "call void @__tsan", "tail call void @__tsan")
            ):
                instructions += 1
                flops += block_flops(line)
        if line.startswith("define "):
            instructions = flops = 0
        out.append(line)
    text = "\n".join(out)
    text = re.sub(r"^declare void @__sanitizer_cov_trace_pc_guard\(.*$", "", text, flags=re.M)
    return text + "\ndeclare void @mh_block(i32, i32, i32)\n"
