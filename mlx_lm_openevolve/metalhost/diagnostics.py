"""From a compiler's output to findings in Metal's words."""

from __future__ import annotations

import re

from .findings import Finding, Sources
from .toolchain import SHIM

__all__ = ["diagnostics", "plain_words"]

_DIAGNOSTIC = re.compile(r"^(.*?):(\d+):(\d+): (fatal error|error|warning|note): (.*)$")


def diagnostics(output: str, sources: Sources, strict: bool = False) -> list[Finding]:
    """The errors in a compiler's output; strict: its warnings too. One in the shim is put on the
    caller's line, which a note of the same error names."""
    findings: list[Finding] = []
    pending: Finding | None = None  # an error in the shim
    for line in output.splitlines():
        m = _DIAGNOSTIC.match(line)
        if m is None:
            continue
        file, number, level, message = m.group(1), int(m.group(2)), m.group(4), m.group(5)
        if level == "note":
            if pending is not None and sources.known(file):
                findings.append(sources.finding(pending.kind, pending.message, file, number))
                pending = None
            continue
        if pending is not None and not findings:
            findings.append(pending)
        pending = None
        if level == "warning" and not strict:
            continue
        kind = "strict" if strict else "compile"
        if sources.known(file) or not file.startswith(str(SHIM)):
            findings.append(sources.finding(kind, plain_words(message), file, number))
        else:
            pending = Finding(kind, plain_words(message))
    findings += [pending] if pending else []
    # What follows an error in the functions that start the kernel says nothing new.
    return [f for f in findings if f.file != "<entry>"] or findings


def plain_words(message: str) -> str:
    """Metal's words for the shim's types."""
    for spelled, word in (
        ("__attribute__((address_space(1)))", "device"),
        ("__attribute__((address_space(2)))", "constant"),
        ("__attribute__((address_space(3)))", "threadgroup"),
        ("__global_host", "constant"),
        ("__global", "device"),
        ("__local", "threadgroup"),
        ("_Float16", "half"),
        ("__bf16", "bfloat"),
        ("mh::Bools<", "vec<bool, "),
    ):
        message = message.replace(spelled, word)
    message = re.sub(r"'(\w+) __attribute__\(\(ext_vector_type\((\d)\)\)\)'", r"'\1\2'", message)
    return re.sub(r"\s*\[-W[^\]]*\]$", "", message)
