"""What the strict pass (plain C++) adds: of its many errors, those that are Metal's too.

In plain C++ no class copies between address spaces, so most errors there are the pass's own; the
patterns below name the ones that Metal shares, and all others are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .findings import Finding

__all__ = ["strict_findings"]

_POINTER = r"'[^']*[*&][^']*'"
_RULES = (
    # Pointers and references keep their address space.
    (re.compile(r"changes address space of pointer"), "out"),
    (re.compile(r"discards qualifiers|drops '.*' qualifier"), "out"),
    (re.compile(rf"cannot initialize .* of type {_POINTER} with .*(device|constant|threadgroup)"), "out"),
    (re.compile(rf"assigning (to )?.*{_POINTER} from .*(device|constant|threadgroup)"), "out"),
    (re.compile(r"implicit conversion (loses floating-point precision|.*): '(float|half)' to 'bfloat'"), "bfloat"),
    (re.compile(r"implicit conversion .*'(float|half|double)' to 'bfloat'"), "bfloat"),
    (re.compile(r"variable .* is (uninitialized|used uninitialized)"), "uninitialised"),
    (re.compile(r"variable length array"), "vla"),
)


def strict_findings(found: Iterable[Finding]) -> list[Finding]:
    """Keeps the diagnostics that Metal's compiler would give too."""
    kept = []
    for f in found:
        for pattern, rule in _RULES:
            if pattern.search(f.message):
                kept.append(_worded(f, rule))
                break
    return kept


def _worded(f: Finding, rule: str) -> Finding:
    if rule == "bfloat":
        message = "no implicit conversion to bfloat: write bfloat(...)"
        return Finding("strict", message, f.line, f.file, f.text)
    if rule == "uninitialised":
        return Finding("uninitialised", f.message, f.line, f.file, f.text)
    return f
