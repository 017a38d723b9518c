"""Threadgroup memory of a kernel that does not run: the sizes that its text declares, worked out
by the compiler for many template arguments at once.

    body + header --declarations--> one constexpr function --clang--> a table of bytes
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MachineError
from .brackets import split_top
from .build import BuildRequest, access_to, preprocess
from .declarations import TranslationError
from .findings import Sources
from .flags import NO_WARNINGS, compile_flags
from .lint import lint_raw
from .objects import precompiled_shim
from .signature import template_arguments
from .toolchain import SHIM, Exhausted, compiler_available, run_tool, toolchain
from .translate import translate

__all__ = ["THREADGROUP_BYTES", "threadgroup_bytes"]

THREADGROUP_BYTES = 32 << 10  # Metal's limit: runtime/base.h, kThreadgroupBytes

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# What sizes are made of, and the variables themselves (no pointers to such), in the order of the
# text.
_STATEMENT = re.compile(
    r"(?<=[;{}\n])\s*(?:\#(?![ \t]*pragma)[^\n]*"
    r"|(?:(?:static|constant|const)\s+)*(?:constexpr\b|using\b|typedef\b)[^;{}]*;"
    r"|(?:static\s+|volatile\s+)*threadgroup\s+(?P<variables>[^;{}=*&()\[]+(?:\[[^;{}]*)?);)"
)
# What clang keeps the table for.
_KEPT = '\nextern "C" MH_EXTERNAL const unsigned long* mh_sizes() { return mh_table; }\n'
_DECLARATOR = re.compile(r"\s*([A-Za-z_]\w*)\s*((?:\[.*\])?)\s*", re.DOTALL)


def threadgroup_bytes(
    body: str, header: str, templates: Sequence[Sequence[tuple[str, Any]]]
) -> list[int] | None:
    """Bytes of threadgroup memory that a kernel takes with each of `templates`, lists of (name,
    value) with the same names; every variable padded to 16 bytes, as at run time. None where its
    declarations cannot be read by themselves, or where there is no compiler."""
    lines: list[str] = []
    names: list[str] = []
    for match in _STATEMENT.finditer("\n" + _COMMENT.sub(" ", body)):
        if match["variables"] is None:
            lines.append(match.group())
            continue
        kind = re.match(r"((?:const\s+)?[\w:]+(?:\s*<[^;]*?>)?)\s+(?=\w)", match["variables"])
        if kind is None:
            return None
        for part in split_top(match["variables"][kind.end() :]):
            declared = _DECLARATOR.fullmatch(part)
            if declared is None:
                return None
            names.append(f"mh_variable_{len(names)}")
            lines.append(f"typedef {kind[1]} {names[-1]}{declared[2]};")
    if not names:
        return [0] * len(templates)
    if not compiler_available()[0]:
        return None
    total = " + ".join(f"(sizeof({name}) + 15) / 16 * 16" for name in names)
    # A template in any case: `int` stands in where the kernel is none.
    parameters = [f"{kind} {name}" for name, kind in template_arguments(templates[0])[0]]
    rows = ", ".join(
        f"mh_bytes<{', '.join(template_arguments(t)[1] or ['int'])}>()" for t in templates
    )
    text = f"""{header}
template <{", ".join(parameters or ["typename"])}>
constexpr unsigned long mh_bytes() {{
{chr(10).join(lines)}
return {total};
}}
constexpr unsigned long mh_table[] = {{{rows}}};
"""
    with tempfile.TemporaryDirectory() as work:
        table = _table(text, Path(work))
    return table if table is not None and len(table) == len(templates) else None


def _table(text: str, work: Path) -> list[int] | None:
    """The numbers of `mh_table`, None where the text does not compile, or must not be compiled."""
    tools = toolchain()
    files = (("sizes", text),)
    request = BuildRequest(text, "", files, utilities=True)
    unit, output = work / "sizes.cpp", work / "sizes.ll"
    flags = compile_flags(tools, False, False, request.math_mode)
    if lint_raw(files, None):
        return None
    try:
        expanded, refusals = preprocess(request, tools, Sources(dict(files)), work)
        if expanded is None or refusals:
            return None
        unit.write_text(translate(expanded, {})[0] + _KEPT, encoding="utf-8")
        shim = precompiled_shim(tools, flags, "mlx_utilities.h")
        command = [*tools.clang, *flags, "-include-pch", str(shim), "-I", str(SHIM), str(unit)]
        access = access_to(tools, work, shim.parent, SHIM, SHIM.parent / "runtime")
        run_tool([*command, *NO_WARNINGS, "-S", "-emit-llvm", "-o", str(output)], access)
        found = re.search(r"@\w*mh_table = .*? \[\d+ x i64\] \[(.*?)\]", output.read_text())
    except (Exhausted, MachineError, OSError, TranslationError):
        return None
    return None if found is None else [int(n) for n in re.findall(r"i64 (\d+)", found[1])]
