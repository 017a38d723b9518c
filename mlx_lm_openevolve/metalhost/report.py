"""From the runtime's report to findings in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .build import Program
from .findings import Finding, Place, unique
from .symbols import LineTable

if TYPE_CHECKING:
    from .launch import Argument

__all__ = ["Report", "render"]


class Report:
    """The lines that a program printed: `word key=value ...`, separated by tabs."""

    def __init__(self, text: str) -> None:
        self.findings: list[dict[str, str]] = []
        self.errors: list[str] = []
        for line in text.splitlines():
            word, *rest = line.split("\t")
            if word == "finding":
                self.findings.append(dict(p.split("=", 1) for p in rest if "=" in p))
            elif word == "error":
                self.errors.append(" ".join(rest))


def render(
    report: Report, program: Program, arguments: Mapping[int, Argument]
) -> tuple[Finding, ...]:
    """Findings with places of the source and names of the arguments."""
    if not report.findings and not report.errors:
        return ()
    assert program.executable is not None
    with_lines = program.folder / "kernel.o"
    table = LineTable(with_lines if with_lines.is_file() else program.executable)
    names = _names(program, arguments)
    found = [_finding(record, program, table, names) for record in report.findings]
    found = [f for f in found if not _stores_components(f)]
    found += [Finding("runtime", message) for message in report.errors]
    return unique(found)


_COMPONENTS = re.compile(r"(?:\.[xyzwrgba]{1,4}|\]\s*\[[^\]]*\])\s*=(?!=)")


def _stores_components(f: Finding) -> bool:
    """A store to components of a vector reads the others, whatever they hold."""
    return f.details.get("written_back") == "1" and _COMPONENTS.search(f.text) is not None


def _names(program: Program, arguments: Mapping[int, Argument]) -> dict[int, str]:
    names = {slot: a.name for slot, a in arguments.items() if a.name}
    if program.function is not None:
        for p in program.function.parameters:
            if p.attribute == "buffer" and p.index is not None:
                names.setdefault(p.index, p.name)
    return names


def _place(record: Mapping[str, str], key: str, program: Program, table: LineTable) -> Place | None:
    if record.get("file") and key == "pc" and "line" in record:
        place = program.sources.place(record["file"], int(record["line"]))
        if program.sources.known(place.file) or not place.file.startswith("<"):
            return place
    keys = [key, *(f"pc{n}" for n in range(24))] if key == "pc" else [key]
    for name in keys:
        found = table.find(int(record[name])) if name in record else None
        if found is not None and found[0] != "<entry>":
            return program.sources.place(*found)
    return None


def _where(value: str) -> tuple[int, tuple[int, int, int]]:
    index, group = value.split("@")
    x, y, z = (int(v) for v in group.split(","))
    return int(index), (x, y, z)


def _bytes(n: int) -> str:
    return f"{n} byte" if n == 1 else f"{n} bytes"


def _object(record: Mapping[str, str], names: Mapping[int, str]) -> str:
    if "variable" in record:
        return f"threadgroup '{record['variable']}'"
    if "buffer" in record:
        slot = int(record["buffer"])
        return f"'{names.get(slot, f'buffer {slot}')}'"
    return "memory"


def _outside(record: Mapping[str, str], names: Mapping[int, str]) -> str:
    why = record.get("why", "")
    if why == "index":
        return f"index {record['index']} is outside {record['type']}"
    if why == "local":
        return "access outside a thread's own array"
    what = f"{record.get('access', 'access')} of {_bytes(int(record.get('size', 0)))}"
    if "offset" not in record:
        return f"{what} through a pointer to no buffer (address {int(record['address']):#x})"
    offset, extent = int(record["offset"]), int(record["extent"])
    target = _object(record, names)
    if why == "gap":
        return f"{what} at byte {offset} of {target}, between the elements of its view"
    if offset < 0:
        return f"{what}, {_bytes(-offset)} before {target} ({_bytes(extent)})"
    return f"{what} at byte {offset} of {target}, which has {_bytes(extent)}"


def _message(record: Mapping[str, str], names: Mapping[int, str]) -> str:
    kind = record["kind"]
    what = _object(record, names)
    offset = record.get("offset", "?")
    if kind == "out-of-bounds":
        return _outside(record, names)
    if kind == "read-only":
        return f"{record['access']} at byte {offset} of {what}, which is const"
    if kind == "misaligned":
        size = record["size"]
        return f"{record['access']} of {size} bytes at an address that {size} does not divide"
    if kind == "uninitialised" and record.get("why") == "value":
        return f"element {offset} of {what} is computed from a variable that no thread has set"
    if kind == "uninitialised":
        return f"read of {what} at byte {offset}, which no thread has written"
    if kind == "unwritten":
        return (
            f"{record['size']} of the {record['extent']} elements of {what} were never written "
            f"(the first is element {offset})"
        )
    if kind == "race":
        a, ga = _where(record["thread"])
        b, gb = _where(record["other_thread"])
        other = f"thread {b}" if ga == gb else f"thread {b} of threadgroup {gb}"
        return (
            f"{record['access']} by thread {a} and {record['other_access']} by {other} "
            f"of {what} at byte {offset}, with no barrier between them"
        )
    if kind in ("divergent-barrier", "divergent-collective"):
        who, _ = _where(record["other_thread"])
        doing = record["other_access"]
        doing = "has returned" if doing == "returned" else f"waits in {doing}"
        return (
            f"{record['call']} is not reached by all threads of the "
            f"{'threadgroup' if kind == 'divergent-barrier' else 'simdgroup'}: "
            f"thread {who} {doing}"
        )
    if kind == "threadgroup-memory":
        return (
            f"{record['size']} bytes of threadgroup memory with '{record['variable']}'; "
            f"the limit is {record['extent']}"
        )
    return {
        "division-by-zero": "integer division by zero",
        "missing-return": "the end of a function that returns a value is reached",
        "stack-overflow": "the thread's stack is full: unbounded recursion?",
        "time-limit": "still running at the time limit: an endless loop?",
        "memory-limit": "the launch needs more memory than its limit",
        "fault": "the kernel faulted (a stray pointer?)",
    }.get(kind, kind)


def _finding(
    record: dict[str, str], program: Program, table: LineTable, names: Mapping[int, str]
) -> Finding:
    place = _place(record, "pc", program, table)
    other = _place(record, "other_pc", program, table)
    thread, group = _where(record["thread"]) if "thread" in record else (None, None)
    details: dict[str, Any] = {
        k: v
        for k, v in record.items()
        if k not in ("kind", "file", "fatal") and not k.startswith(("pc", "other_pc"))
    }
    return Finding(
        record["kind"],
        _message(record, names),
        None if place is None else place.line,
        "" if place is None else place.file,
        "" if place is None else place.text,
        other,
        thread,
        group,
        "fatal" in record,
        details,
    )
