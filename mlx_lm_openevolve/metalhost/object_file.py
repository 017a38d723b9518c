"""Reads object files and programs: sections and symbols of 64-bit little-endian ELF and Mach-O."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ELF", "MACHO", "ObjectFile", "Section", "Symbol", "read"]

ELF, MACHO = b"\x7fELF", b"\xcf\xfa\xed\xfe"
_NO_BYTES = 8  # SHT_NOBITS


@dataclass(frozen=True)
class Section:
    """name: as in the file, a Mach-O one as `SEGMENT,name`. kind, flags: sh_type and sh_flags, or
    the type and the attributes of Mach-O. header: where its header lies in the file. data: its
    bytes."""

    name: str
    kind: int
    flags: int
    header: int
    data: bytes


@dataclass(frozen=True)
class Symbol:
    """name: without Mach-O's leading underscore. kind: the ELF type (2 is a function, 10 an IFUNC;
    of Mach-O 10 or 0). bind: 0 for a local symbol. section: its number, 0 where it is undefined.
    entry: where it stands in the file."""

    name: str
    value: int
    kind: int
    bind: int
    section: int
    entry: int


@dataclass(frozen=True)
class ObjectFile:
    """sections: by number (Mach-O counts from 1: number 0 is empty). loads: the commands of a
    Mach-O file."""

    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    loads: tuple[int, ...] = ()


def read(data: bytes) -> ObjectFile:
    """Sections and symbols. Raises ValueError for what is neither ELF nor Mach-O, or damaged."""
    try:
        if data[:4] == ELF:
            return _elf(data)
        if data[:4] == MACHO:
            return _macho(data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"a damaged object file: {error}") from None
    raise ValueError("neither ELF nor Mach-O")


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("utf-8", "replace")


def _elf(data: bytes) -> ObjectFile:
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    base = headers[names][4]
    sections = tuple(
        Section(
            _string(data, base + h[0]), h[1], h[2], offset + i * size,
            b"" if h[1] == _NO_BYTES else data[h[4] : h[4] + h[5]],
        )
        for i, h in enumerate(headers)
    )  # fmt: skip
    symbols = []
    for h, section in zip(headers, sections, strict=True):
        if h[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[h[6]].data
        for k, symbol in enumerate(struct.iter_unpack("<IBBHQQ", section.data)):
            name, info, _, index, value, _ = symbol
            text, entry = _string(strings, name), h[4] + 24 * k
            symbols.append(Symbol(text, value, info & 15, info >> 4, index, entry))
    return ObjectFile(sections, tuple(symbols))


def _macho(data: bytes) -> ObjectFile:
    (count,) = struct.unpack_from("<I", data, 16)
    sections = [Section("", 0, 0, 0, b"")]
    symbols, loads = [], []
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        loads.append(command)
        if command == 0x19:  # LC_SEGMENT_64
            (number,) = struct.unpack_from("<I", data, at + 64)
            sections += [_macho_section(data, at + 72 + 80 * k) for k in range(number)]
        elif command == 2:  # LC_SYMTAB
            table, n, strings, _ = struct.unpack_from("<IIII", data, at + 8)
            for k in range(n):
                entry = table + 16 * k
                name, bits, section, more, value = struct.unpack_from("<IBBHQ", data, entry)
                if bits & 0xE0:  # for debuggers
                    continue
                text = _string(data, strings + name)
                kind = 10 if more & 0x100 and section else 0  # N_SYMBOL_RESOLVER
                text = text.removeprefix("_")
                symbols.append(Symbol(text, value, kind, bits & 1, section, entry))
        at += size
    return ObjectFile(tuple(sections), tuple(symbols), tuple(loads))


def _macho_section(data: bytes, at: int) -> Section:
    name, segment = (data[i : i + 16].rstrip(b"\0").decode() for i in (at, at + 16))
    length, offset, _, _, _, flags = struct.unpack_from("<QIIIII", data, at + 40)
    kind = flags & 0xFF
    empty = kind in (1, 12)  # filled with zeros
    text = b"" if empty else data[offset : offset + length]
    return Section(f"{segment},{name}", kind, flags >> 8, at, text)
