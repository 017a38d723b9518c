"""What a compiled kernel may be: the second line behind the lint, on the object file itself.

It names nothing but what the runtime gives to kernels, takes the place of nothing that the runtime
or the C library has, and holds nothing that runs by itself: no initialiser, no IFUNC, no thread
local storage, no library to load, no executable stack.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from .object_file import ELF, MACHO, ObjectFile, Section, read

__all__ = ["ENTRIES", "secure"]

ENTRIES = frozenset({"mh_signature", "mh_entry"})  # what the runtime calls

# runtime/abi.h, the sanitizers' entries in runtime/sanitizer.cpp, conversions in builtins.cpp; the
# rest is the C library's: what clang calls by itself, and the functions of floats behind Metal's.
_GIVEN = re.compile(
    r"mh_(?:place|lane|declare|argument|threadgroup_variable|barrier|simdgroup_barrier|collective"
    r"|block|atomic|bad_modulo|turns)|__trunc[sd]f[bh]f2|__extendhfsf2|__(?:tsan|ubsan_handle|sanitizer_cov)_\w+"
    r"|(?:__start___|__stop___|section\$(?:start|end)\$__DATA\$__)sancov_guards"
    r"|mem(?:cpy|move|set|cmp)"
    r"|(?:a?(?:cos|sin|tan)h?|atan2|cbrt|ceil|copysign|erfc?|exp(?:2|10|m1)?|__exp10|__sincos"
    r"|f(?:abs|dim|loor|ma|max|min|mod|rexp)|hypot|i?logb|ldexp|lgamma|l?l(?:rint|round)"
    r"|log(?:10|1p|2)?|modf|nearbyint|nextafter|pow|remainder|rint|round(?:even)?|scalbn|sincos"
    r"|sqrt|tgamma|trunc)f?"
)

# ELF: section types (bits, zeros, tables of symbols and strings, relocations, groups, LLVM's list
# of addresses taken) and the names under which they hold code, data or notes for debuggers.
_KINDS = frozenset({0, 1, 2, 3, 4, 8, 17, 0x6FFF4C03, 0x70000001})
_NAMES = re.compile(
    r"|\.(?:text|rodata|data|bss)(?:\.[^\0]*)?|\.l?(?:rodata|data|bss)(?:\.[^\0]*)?"
    r"|\.(?:debug_\w+|comment|note\.GNU-stack|symtab|strtab|shstrtab|symtab_shndx|group"
    r"|llvm_addrsig|eh_frame|gcc_except_table)|\.rela(?:\.[^\0]*|__sancov_guards)|__sancov_guards"
)
_INIT_ARRAY, _WRITE, _EXECUTE, _THREAD_LOCAL = 14, 1, 4, 0x400
# Mach-O: sections, and their types (bytes, zeros, literals, coalesced).
_SECTIONS = re.compile(
    r"|__TEXT,__(?:text|const|cstring|literal\d+|eh_frame|gcc_except_tab|ustring)"
    r"|__DATA(?:_CONST)?,__(?:const|data|bss|common|sancov_guards)"
    r"|__DWARF,__\w+|__LD,__compact_unwind"
)
_MACHO_KINDS = frozenset({0, 1, 2, 3, 4, 11, 12, 14})
_MOD_INIT = 9
_LOADS = frozenset({0x19, 2, 0xB, 0x24, 0x32, 0x29, 0x2E})  # segment, symbols, version, hints


def secure(path: Path, initialisers: int, runtime: Path) -> str:
    """Why the kernel's object at `path` is refused, "" where it is not. The sanitizers' own
    initialisers, `initialisers` at most, become plain data, so that none is ever run; its names
    become hidden, so that the loader does not put them in the place of a library's.

    runtime: the object that it is linked with. Raises ValueError where a file cannot be read.
    """
    data = bytearray(path.read_bytes())
    file = read(bytes(data))
    reason = _shape(file, macho=data[:4] == MACHO) or _names(file, read(runtime.read_bytes()))
    found = 0
    for section in file.sections:
        if _initialiser(section, data[:4] == ELF):
            found += len(section.data) // 8
            if data[:4] == ELF:  # of bytes, under the end of its name: "_array"
                name, _ = struct.unpack_from("<II", data, section.header)
                struct.pack_into("<II", data, section.header, name + len(".init"), 1)
            else:
                data[section.header + 64] = 0
    for symbol in file.symbols:
        if symbol.bind and symbol.section:
            if data[:4] == ELF:
                data[symbol.entry + 5] = 2  # STV_HIDDEN
            else:
                data[symbol.entry + 4] |= 0x10  # N_PEXT
    if found > initialisers:
        reason = reason or "code that would run before the kernel is started"
    if not reason:
        path.write_bytes(data)
    return reason


def _initialiser(section: Section, elf: bool) -> bool:
    if elf:
        return section.kind == _INIT_ARRAY and section.name.startswith(".init_array")
    return section.kind == _MOD_INIT


def _shape(file: ObjectFile, macho: bool) -> str:
    """What is wrong with sections and kinds of symbols."""
    for load in file.loads:
        if load not in _LOADS:
            return f"the load command {load:#x}"
    stack = macho
    for section in file.sections:
        if _initialiser(section, not macho):
            continue
        name = section.name[:80]
        if macho:
            if section.kind not in _MACHO_KINDS or not _SECTIONS.fullmatch(section.name):
                return f"the section {name}"
            continue
        if section.kind not in _KINDS or not _NAMES.fullmatch(section.name):
            return f"the section {name}"
        if section.flags & _THREAD_LOCAL:
            return f"thread local storage, {name}"
        if section.flags & _WRITE and section.flags & _EXECUTE:
            return f"the section {name}, for both code and data"
        stack |= section.name == ".note.GNU-stack" and not section.flags & _EXECUTE
    if not stack:
        return "a stack that is executable"
    for symbol in file.symbols:
        if symbol.kind not in (0, 1, 2, 3, 4) or symbol.bind not in (0, 1, 2):
            return f"the symbol {symbol.name[:80]} of a kind of its own"
    return ""


def _names(file: ObjectFile, runtime: ObjectFile) -> str:
    """Which name reaches past what the runtime gives."""
    taken = {s.name for s in runtime.symbols if s.bind}
    for symbol in file.symbols:
        name = symbol.name
        if not symbol.bind:
            continue
        if symbol.section == 0:
            # A name of C++ that nobody has is for the linker to report.
            if not (_GIVEN.fullmatch(name) or (name.startswith("_Z") and name not in taken)):
                return f"'{name[:80]}', which is not the kernel's to call"
        elif name not in ENTRIES and (name in taken or re.match("_(?!Z)", name)):
            return f"'{name[:80]}', a name that is not the kernel's to take"
    return ""
