"""From the host program's report to findings in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .arguments import Argument
from .build import Program
from .findings import BENIGN, Finding, Place, unique
from .symbols import LineTable

__all__ = ["argument_names", "read_findings"]

MAX_FINDINGS = 64 + 8  # runtime/report.cpp: kMaxFindings, and of report.h kMaxBenign

Record = Mapping[str, str]  # the fields of one finding: `key=value`, separated by tabs


def read_findings(
    report: str, program: Program, arguments: Mapping[int, Argument]
) -> tuple[Finding, ...]:
    """The findings of a report, with places of the source and names of the arguments."""
    records: list[Record] = []
    errors = []
    for line in report.splitlines():
        word, *rest = line.split("\t")
        if word == "finding" and len(records) < MAX_FINDINGS:
            records.append(dict(p.split("=", 1) for p in rest if "=" in p))
        elif word == "error":
            errors.append(Finding("runtime", " ".join(rest)))
    if not records:
        return unique(errors)
    assert program.executable is not None
    unlinked = program.folder / "kernel.o"  # Mach-O programs leave their line table there
    table = LineTable(unlinked if unlinked.is_file() else program.executable)
    names = argument_names(program, arguments)
    findings = [_finding(record, program, table, names) for record in records]
    return unique([*(f for f in findings if not _stores_components(f)), *errors])


_COMPONENTS = re.compile(r"(?:\.[xyzwrgba]{1,4}|\]\s*\[[^\]]*\])\s*=(?!=)")


def _stores_components(f: Finding) -> bool:
    """A store to components of a vector reads the others, whatever they hold."""
    return f.details.get("written_back") == "1" and _COMPONENTS.search(f.text) is not None


def argument_names(program: Program, arguments: Mapping[int, Argument]) -> dict[int, str]:
    """The names of a launch's arguments, by slot."""
    parameters = program.function.parameters if program.function else ()
    names = {p.index: p.name for p in parameters if p.attribute == "buffer" and p.index is not None}
    return names | {slot: a.name for slot, a in arguments.items() if a.name}


def _finding(
    record: Record, program: Program, table: LineTable, names: Mapping[int, str]
) -> Finding:
    place = _place(record, "pc", program, table)
    thread, group = _thread(record["thread"]) if "thread" in record else (None, None)
    apart = ("kind", "file", "fatal")
    details = {
        k: v for k, v in record.items() if k not in apart and not k.startswith(("pc", "other_pc"))
    }
    return Finding(
        record["kind"],
        _message(record, names),
        place.line if place else None,
        place.file if place else "",
        place.text if place else "",
        _place(record, "other_pc", program, table),
        thread,
        group,
        "fatal" in record,
        details,
    )


def _place(record: Record, key: str, program: Program, table: LineTable) -> Place | None:
    if record.get("file") and key == "pc" and "line" in record:
        place = program.sources.place(record["file"], int(record["line"]))
        if program.sources.known(place.file) or not place.file.startswith("<"):
            return place
    for name in [key, *(f"pc{n}" for n in range(24))] if key == "pc" else [key]:
        row = table.find(int(record[name])) if name in record else None
        if row is not None and row[0] != "<entry>":
            return program.sources.place(*row)
    return None


def _thread(value: str) -> tuple[int, tuple[int, int, int]]:
    """The index in the threadgroup and the threadgroup's position of `index@x,y,z`."""
    index, group = value.split("@")
    x, y, z = (int(v) for v in group.split(","))
    return int(index), (x, y, z)


def _bytes(n: int) -> str:
    return f"{n} byte" if n == 1 else f"{n} bytes"


def _object(record: Record, names: Mapping[int, str]) -> str:
    if "variable" in record:
        return f"threadgroup '{record['variable']}'"
    if "buffer" in record:
        slot = int(record["buffer"])
        return f"'{names.get(slot, f'buffer {slot}')}'"
    return "memory"


def _outside(record: Record, target: str) -> str:
    why = record.get("why", "")
    if why == "index":
        return f"index {record['index']} is outside {record['type']}"
    if why == "local":
        return "access outside a thread's own array"
    what = f"{record.get('access', 'access')} of {_bytes(int(record.get('size', 0)))}"
    if "offset" not in record:
        return f"{what} through a pointer to no buffer (address {int(record['address']):#x})"
    offset, extent = int(record["offset"]), int(record["extent"])
    if why == "gap":
        return f"{what} at byte {offset} of {target}, between the elements of its view"
    if offset < 0:
        return f"{what}, {_bytes(-offset)} before {target} ({_bytes(extent)})"
    return f"{what} at byte {offset} of {target}, which has {_bytes(extent)}"


def _race(record: Record, target: str) -> str:
    a, group = _thread(record["thread"])
    b, other_group = _thread(record["other_thread"])
    other = f"thread {b}" if group == other_group else f"thread {b} of threadgroup {other_group}"
    return (
        f"{record['access']} by thread {a} and {record['other_access']} by {other} "
        f"of {target} at byte {record['offset']}, with no barrier between them"
    )


def _divergence(record: Record) -> str:
    who, _ = _thread(record["other_thread"])
    doing = record["other_access"]
    doing = "has returned" if doing == "returned" else f"waits in {doing}"
    group = "threadgroup" if record["kind"] == "divergent-barrier" else "simdgroup"
    return f"{record['call']} is not reached by all threads of the {group}: thread {who} {doing}"


# Messages by kind, or by kind and reason, filled with the record's fields.
_MESSAGES = {
    "benign same": (
        "write by thread {by} and {other_access} by thread {other} of {target} at byte {offset},"
        " with no barrier between them: the value is the same"
    ),
    "benign met": (
        "write by thread {by} of {target} at byte {offset} after a read by thread {other}: a"
        " collective, or a barrier without a fence of this memory, is all that orders them"
    ),
    "read-only": "{access} at byte {offset} of {target}, which is const",
    "misaligned": "{access} of {size} bytes at an address that {size} does not divide",
    "misaligned type": "access to {type} at an address that {size} does not divide",
    "uninitialised": "read of {target} at byte {offset}, which no thread has written",
    "uninitialised value": (
        "element {offset} of {target} is computed from a variable that no thread has set"
    ),
    "unwritten": (
        "{size} of the {extent} elements of {target} were never written "
        "(the first is element {offset})"
    ),
    "threadgroup-memory": (
        "{size} bytes of threadgroup memory with '{variable}'; the limit is {extent}"
    ),
    "division-by-zero": "integer division by zero",
    "bad-modulo": "{call} with modulo {size}, which is no power of two that its group holds",
    "missing-return": "the end of a function that returns a value is reached",
    "stack-overflow": "the thread's stack is full: unbounded recursion?",
    "time-limit": "still running at the time limit: an endless loop?",
    "memory-limit": "the launch needs more memory than its limit",
    "sandbox": "the kernel asks the system for something (system call {call})",
    "fault": "the kernel faulted (a stray pointer?)",
}


def _message(record: Record, names: Mapping[int, str]) -> str:
    kind, target = record["kind"], _object(record, names)
    if kind == "out-of-bounds":
        return _outside(record, target)
    if kind == "race":
        return _race(record, target)
    if kind.startswith("divergent-"):
        return _divergence(record)
    reason = f"{kind} {record.get('why')}"
    threads = {}
    if kind == BENIGN:
        threads = {"by": _thread(record["thread"])[0], "other": _thread(record["other_thread"])[0]}
    message = _MESSAGES.get(reason, _MESSAGES.get(kind, kind))
    fields = {**record, **threads, "target": target}
    if "type" in record:  # as clang writes it: 'const __global uint4' (aka '...')
        fields["type"] = re.sub(r"__\w+ | \(aka .*|'", "", record["type"])
    return message.format(**fields)
