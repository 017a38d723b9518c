"""The buffers of a launch, and how they lie in the file that the host program maps."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import FLOATS, misalignment, to_mlx

__all__ = ["Argument", "Layout"]

# runtime/base.h: BufferRecord and its flags, LaunchRecord without the records.
_RECORD = struct.Struct("<7Q")
_WRITABLE, _UNWRITTEN, _FLOATS = 1, 2, 4
_ARRAY, _THREADGROUP, _ABSENT = 0, 1, 2
MAX_BUFFERS = 64
HEADER = 15 * 8
_PAGE = 16384


@dataclass
class Argument:
    """One buffer of a launch.

    data: the array, of any strides; None for threadgroup memory or a buffer that is not bound.
    dtype: the name of its elements' type (a bfloat16 array comes as uint16); "" for plain bytes.
    writable: it comes back as an output. unwritten: its elements hold nothing that may be read,
        and each must be written.
    pointer: where the kernel's pointer points, in bytes from the first element.
    """

    data: NDArray[Any] | None
    dtype: str = ""
    name: str = ""
    writable: bool = False
    unwritten: bool = False
    threadgroup_bytes: int = 0
    pointer: int = 0


@dataclass(frozen=True)
class _Block:
    """A strided array as one run of bytes.

    low: from the first element to the lowest address (0 or less). offset: of the lowest address in
    the file, as far behind a 16-byte boundary as the array itself begins. gaps: offset of a table
    that marks the bytes of elements with 1 and those between them with 0; 0 where nothing lies
    between them.
    """

    data: NDArray[Any]
    low: int
    size: int
    offset: int
    gaps: int

    def view(self, data: NDArray[np.uint8], dtype: Any) -> NDArray[Any]:
        """The array's elements within its run of bytes."""
        a = self.data
        return np.ndarray(a.shape, dtype, data, -self.low if a.size else 0, a.strides)


def _extent(a: NDArray[Any]) -> tuple[int, int]:
    """An array's lowest address, from its first element, and its bytes from there."""
    reach = [(n - 1) * step for n, step in zip(a.shape, a.strides, strict=True)]
    low = sum(min(r, 0) for r in reach)
    high = sum(max(r, 0) for r in reach)
    return (low, high - low + a.itemsize) if a.size else (0, 0)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class Layout:
    """Where each argument lies in the file of a launch.

    mark_gaps: the program must know which bytes lie between the elements of a view.
    array_bytes: of all arrays together. file_bytes: the file's size.
    """

    def __init__(self, arguments: Mapping[int, Argument], mark_gaps: bool) -> None:
        self._arguments = arguments
        self._blocks: dict[int, _Block] = {}
        at = _pages(HEADER + MAX_BUFFERS * _RECORD.size)
        for slot, a in arguments.items():
            if a.data is None:
                continue
            low, size = _extent(a.data)
            lead = misalignment(a.data, low) if size else 0
            offset, at = at + lead, at + _pages(lead + max(size, 1))
            gaps = 0
            if mark_gaps and size and not a.data.flags.c_contiguous:
                gaps, at = at, at + _pages(size)
            self._blocks[slot] = _Block(a.data, low, size, offset, gaps)
        self.file_bytes = at
        self.array_bytes = sum(b.size for b in self._blocks.values())

    def records(self) -> list[bytes]:
        """A BufferRecord for each slot."""
        return [self._record(slot) for slot in range(max(self._arguments, default=-1) + 1)]

    def _record(self, slot: int) -> bytes:
        a, block = self._arguments.get(slot), self._blocks.get(slot)
        if a is not None and block is not None:
            flags = a.writable * _WRITABLE | a.unwritten * _UNWRITTEN
            flags |= (a.dtype in FLOATS) * _FLOATS
            return _RECORD.pack(
                _ARRAY, block.offset, block.size, a.pointer - block.low, block.gaps, flags,
                block.data.itemsize,
            )  # fmt: skip
        if a is not None and a.threadgroup_bytes:
            return _RECORD.pack(_THREADGROUP, 0, a.threadgroup_bytes, 0, 0, 0, 1)
        return _RECORD.pack(_ABSENT, 0, 0, 0, 0, 0, 0)

    def write(self, file: IO[bytes]) -> None:
        """Writes the arrays' bytes."""
        for slot, block in self._blocks.items():
            if block.size == 0 or self._arguments[slot].unwritten:
                continue
            data = block.data
            if not data.flags.c_contiguous:
                data = np.full(block.size, 0xFF, np.uint8)
                block.view(data, block.data.dtype)[...] = block.data
            file.seek(block.offset)
            file.write(data.reshape(-1).view(np.uint8).data)
            if block.gaps:
                marks = np.zeros(block.size, np.uint8)
                ones = int.from_bytes(b"\1" * block.data.itemsize, "little")
                block.view(marks, f"u{block.data.itemsize}")[...] = ones
                file.seek(block.gaps)
                file.write(marks.data)

    def outputs(self, file: IO[bytes]) -> list[Any]:
        """The writable arguments as MLX arrays, in slot order."""
        results = []
        for slot, data in self.output_bytes(file).items():
            block = self._blocks[slot]
            view = block.view(np.frombuffer(data, np.uint8), block.data.dtype)
            results.append(to_mlx(view, self._arguments[slot].dtype))
        return results

    def output_bytes(self, file: IO[bytes]) -> dict[int, bytes]:
        """The bytes of the writable arguments by slot."""
        found = {}
        for slot, block in sorted(self._blocks.items()):
            if self._arguments[slot].writable:
                file.seek(block.offset)
                found[slot] = file.read(block.size)
        return found
