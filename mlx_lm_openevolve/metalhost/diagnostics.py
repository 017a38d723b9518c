"""From a compiler's output to findings in Metal's words."""

from __future__ import annotations

import re

from .findings import Finding, Sources
from .toolchain import SHIM

__all__ = ["diagnostics", "plain_words"]

_DIAGNOSTIC = re.compile(r"^(.*?):(\d+):(\d+): (fatal error|error|warning|note): (.*)$")


def diagnostics(said: str, sources: Sources, strict: bool = False) -> list[Finding]:
    """The errors in a compiler's output. One in the shim is put on the caller's line, which a
    note of the same error names."""
    found: list[Finding] = []
    pending: tuple[str, str] | None = None
    for line in said.splitlines():
        m = _DIAGNOSTIC.match(line)
        if m is None:
            if line.startswith("error:") and not found:
                found.append(Finding("compile", line[7:]))
            continue
        file, number, level, message = m.group(1), int(m.group(2)), m.group(4), m.group(5)
        if level == "note":
            if pending is not None and sources.known(file):
                place = sources.place(file, number)
                kind, text = pending
                found.append(Finding(kind, text, place.line, file, place.text))
                pending = None
            continue
        if pending is not None and not found:
            found.append(Finding(*pending))
        pending = None
        kind = "strict" if strict else "compile"
        if level == "warning" and not strict:
            continue
        text = plain_words(message)
        if sources.known(file) or not str(file).startswith(str(SHIM)):
            place = sources.place(file, number)
            found.append(Finding(kind, text, place.line, file, place.text))
        else:
            pending = (kind, text)
    if pending is not None:
        found.append(Finding(*pending))
    return found


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
