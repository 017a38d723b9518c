"""From a program counter to a source line: reads the line table (DWARF 2 to 4) of an ELF program
or of a Mach-O object. Only findings need it, so it is plain Python and lazy."""

from __future__ import annotations

import struct
from bisect import bisect_right
from pathlib import Path

from .object_file import read

__all__ = ["LineTable"]


_END = -1  # the line of the row that ends a sequence


class LineTable:
    """Rows (address, file, line) of one program, relative to the symbol mh_entry."""

    def __init__(self, path: Path) -> None:
        file = read(path.read_bytes())
        lines = [s for s in file.sections if s.name in (".debug_line", "__DWARF,__debug_line")]
        self.entry = next((s.value for s in file.symbols if s.name == "mh_entry"), 0)
        self.rows = sorted(_line_rows(lines[0].data if lines else b""))
        self._addresses = [r[0] for r in self.rows]

    def find(self, distance: int) -> tuple[str, int] | None:
        """The line of the call whose return address is mh_entry + distance."""
        address = self.entry + distance - 1
        i = bisect_right(self._addresses, address) - 1
        # Line 0: code that belongs to no single line; the line before it is near enough.
        while i >= 0 and self.rows[i][2] == 0:
            i -= 1
        if i < 0 or self.rows[i][2] == _END:
            return None
        return self.rows[i][1], self.rows[i][2]


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("utf-8", "replace")


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    value, end = _uleb(data, at)
    bits = 7 * (end - at)
    return (value - (1 << bits) if value >> (bits - 1) & 1 else value), end


def _line_rows(data: bytes) -> list[tuple[int, str, int]]:
    rows: list[tuple[int, str, int]] = []
    at = 0
    while at + 4 < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        end = at + 4 + length
        version, header_length = struct.unpack_from("<HI", data, at + 4)
        if 2 <= version <= 4:
            _program(data, at + 10, at + 10 + header_length, end, version, rows)
        at = end
    return rows


def _program(
    data: bytes, at: int, start: int, end: int, version: int, rows: list[tuple[int, str, int]]
) -> None:
    """Runs one line-number program (DWARF 4, section 6.2)."""
    step = data[at]
    at += 2 if version >= 4 else 1
    line_base, line_range, opcode_base = struct.unpack_from("<bBB", data, at + 1)
    lengths = data[at + 4 : at + 3 + opcode_base]
    at += 3 + opcode_base
    while data[at]:
        at = data.index(b"\0", at) + 1
    at += 1
    files = [""]
    while data[at]:
        files.append(_string(data, at))
        at = data.index(b"\0", at) + 1
        for _ in range(3):
            _, at = _uleb(data, at)
    at = start
    address, file, line = 0, 1, 1

    def emit(number: int) -> None:
        rows.append((address, files[file] if file < len(files) else "", number))

    while at < end:
        code = data[at]
        at += 1
        if code >= opcode_base:
            code -= opcode_base
            address += code // line_range * step
            line += line_base + code % line_range
            emit(line)
        elif code == 0:
            size, at = _uleb(data, at)
            if data[at] == 1:  # end of sequence
                emit(_END)
                address, file, line = 0, 1, 1
            elif data[at] == 2:
                (address,) = struct.unpack_from("<Q", data, at + 1)
            at += size
        elif code == 1:
            emit(line)
        elif code == 2:
            value, at = _uleb(data, at)
            address += value * step
        elif code == 3:
            value, at = _sleb(data, at)
            line += value
        elif code == 4:
            file, at = _uleb(data, at)
        elif code == 8:
            address += (255 - opcode_base) // line_range * step
        elif code == 9:
            address += struct.unpack_from("<H", data, at)[0]
            at += 2
        else:
            for _ in range(lengths[code - 1]):
                _, at = _uleb(data, at)
