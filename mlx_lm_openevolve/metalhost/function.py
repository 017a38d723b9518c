"""`metal_function`: a kernel of a whole Metal source, with explicit [[buffer(n)]] parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UsageError
from .arguments import Argument
from .arrays import as_numpy
from .build import BuildRequest, Program, build
from .findings import Finding
from .flags import MATH
from .launch import LaunchResult, Options, Size, dim3, run
from .signature import template_arguments

__all__ = ["MetalFunction", "metal_function"]

THREADGROUP_SLOT = 32  # of [[threadgroup(0)]], behind the buffers


def metal_function(
    source: str,
    name: str,
    template_args: Sequence[Any] = (),
    constants: Mapping[int, bool | int | float] | None = None,
    include_root: str | None = None,
    math_mode: str = "safe",
    file: str = "kernel.metal",
    utilities: bool = False,
    language: str = "3.2",
) -> MetalFunction:
    """A kernel of a whole Metal source, with explicit [[buffer(n)]] parameters.

    name: the function's, or a host name that the source instantiates.
    template_args: values for a template kernel: ints, bools, dtypes or C++ type names.
    constants: function constants by id; one left out counts as not defined.
    include_root: folder that `#include "..."` may read, besides the Metal headers.
    file: the name of the source in findings. utilities: put MLX's utilities in front.
    language: the version of Metal, "3.1" or "3.2": what the system's compiler takes by default is
        3.1 on macOS 14 and 3.2 on macOS 15.

    Raises: UsageError.
    """
    if math_mode not in MATH:
        raise UsageError(f"math_mode is one of {', '.join(MATH)}, not {math_mode!r}")
    if language not in ("3.1", "3.2"):
        raise UsageError(f"language is 3.1 or 3.2, not {language!r}")
    values = [
        v if isinstance(v, str) else template_arguments([("", v)])[1][0] for v in template_args
    ]
    request = BuildRequest(
        f'#line 1 "{file}"\n{source}\n',
        name + (f"<{', '.join(values)}>" if values else ""),
        ((file, source),),
        tuple(sorted((constants or {}).items())),
        None if include_root is None else str(include_root),
        math_mode,
        language=language,
        utilities=utilities,
    )
    return MetalFunction(request)


class MetalFunction:
    """One function of a Metal source; made by `metal_function`."""

    def __init__(self, request: BuildRequest) -> None:
        self.request = request

    def compile(self, sanitize: bool = True) -> tuple[Finding, ...]:
        """Compiles only; the findings of that."""
        return self._build(sanitize, False).findings

    def results(self) -> list[int]:
        """The slots whose arrays a launch returns, in order: the `device` arguments that are not
        const. [] where the source does not compile."""
        return sorted(_parameters(self._build(True, True))[0])

    def _build(self, instrument: bool, count: bool) -> Program:
        return build(replace(self.request, instrument=instrument, count=count))

    def __call__(
        self,
        args: Sequence[Any],
        *,
        threadgroup: Size,
        grid: Size | None = None,
        threadgroups: Size | None = None,
        threadgroup_memory: Mapping[int, int] | None = None,
        outputs: Sequence[int] = (),
        seed: int = 0,
        sanitize: bool = True,
        count: bool = False,
        time_limit: float = 20.0,
        memory_limit: int = 2 << 30,
    ) -> LaunchResult:
        """Runs it. `args[i]` goes to [[buffer(i)]]: an array, bytes, (array, byte offset), or None
        for a buffer that is not bound. Give the grid in threads, or `threadgroups`.

        outputs: slots whose elements nobody may read before a thread wrote them, and which must be
        written whole; every non-const `device` argument is returned in any case, in slot order.
        threadgroup_memory: bytes of each [[threadgroup(i)]] argument.

        Raises: UsageError, BackendError where no clang is at hand, MachineError.
        """
        group = dim3(threadgroup, "threadgroup")
        if grid is not None and threadgroups is None:
            threads = dim3(grid, "grid")
        elif threadgroups is not None and grid is None:
            x, y, z = (
                n * t for n, t in zip(dim3(threadgroups, "threadgroups"), group, strict=True)
            )
            threads = x, y, z
        else:
            raise UsageError("give the grid in threads or in threadgroups, one of the two")
        program = self._build(sanitize or count, count)
        writable, slots = _parameters(program)
        arguments = {slot: Argument(None) for slot in slots}
        for slot, value in enumerate(args):
            if value is not None:
                arguments[slot] = _argument(value, slot in writable, slot in outputs)
        for index, size in (threadgroup_memory or {}).items():
            arguments[THREADGROUP_SLOT + index] = Argument(None, threadgroup_bytes=int(size))
        options = Options(threads, group, seed, sanitize, count, time_limit, memory_limit)
        return run(program, arguments, options)


def _argument(value: Any, writable: bool, output: bool) -> Argument:
    value, offset = value if isinstance(value, tuple) else (value, 0)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Argument(np.frombuffer(bytes(value), np.uint8), writable=writable)
    data, dtype = as_numpy(value)
    return Argument(data, dtype, writable=writable, unwritten=output, pointer=offset)


def _parameters(program: Program) -> tuple[set[int], range]:
    """The slots of `device` parameters that are not const, and all slots up to the last one."""
    parameters = program.function.parameters if program.function else ()
    buffers = [(p.index, p.text) for p in parameters if p.attribute == "buffer"]
    slots = [index for index, _ in buffers if index is not None]
    writable = {
        index
        for index, text in buffers
        if index is not None and "device" in text and not re.search(r"\bconst\b[^*&[]*[*&[]", text)
    }
    return writable, range(max(slots, default=-1) + 1)
