"""The two ways in: `metal_kernel` as mx.fast.metal_kernel, `metal_function` for whole sources."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .arrays import FLOATS, as_numpy, dtype_name, from_bytes, itemsize, metal_type
from .build import Program, Request, build
from .findings import Finding
from .flags import MATH
from .launch import Argument, Launch, Options, run
from .signature import ArgumentType, generate, mentions

__all__ = ["MetalFunction", "MetalKernel", "check_source", "metal_function", "metal_kernel"]

Size = Sequence[int]


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    math_mode: str = "safe",
) -> MetalKernel:
    """A kernel from a body, as `mx.fast.metal_kernel` takes it.

    The signature around the body follows MLX's rules: shapes, strides, ranks and attributes that
    the body's text mentions are declared. math_mode: "safe", "relaxed" or "fast".
    """
    return MetalKernel(
        name, input_names, output_names, source, header, ensure_row_contiguous, math_mode
    )


class MetalKernel:
    """A body of Metal with its generated signature; made by `metal_kernel`."""

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str,
        ensure_row_contiguous: bool,
        math_mode: str,
    ) -> None:
        if not re.fullmatch(r"\w+", name):
            raise UsageError(f"a kernel's name is a C identifier, not {name!r}")
        if not output_names:
            raise UsageError("a kernel has at least one output")
        if math_mode not in MATH:
            raise UsageError(f"math_mode is one of {', '.join(MATH)}, not {math_mode!r}")
        self.name = name
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)
        self.source = source
        self.header = header
        self.ensure_row_contiguous = ensure_row_contiguous
        self.math_mode = math_mode

    def __call__(
        self,
        inputs: Sequence[Any],
        template: Sequence[tuple[str, Any]] | None = None,
        *,
        grid: Size,
        threadgroup: Size,
        output_shapes: Sequence[Size],
        output_dtypes: Sequence[Any],
        init_value: float | None = None,
        seed: int = 0,
        sanitize: bool = True,
        count: bool = False,
        time_limit: float = 20.0,
        memory_limit: int = 2 << 30,
    ) -> Launch:
        """Compiles (or finds) the kernel and runs it. Findings never raise.

        grid, threadgroup: (x, y, z) in threads. seed: of the schedule, 0 is the plain order.
        sanitize: check every access. count: fill `Launch.counters`.
        time_limit: seconds of run time. memory_limit: bytes of the launch's arrays.
        """
        arrays = self._inputs(inputs)
        program = self._build(arrays, template, output_dtypes, sanitize or count, count)
        if program.executable is None:
            return Launch([], program.findings, None, program.compile_seconds, 0.0)
        options = Options(
            _three(grid, "grid"), _three(threadgroup, "threadgroup"), seed, sanitize, count,
            time_limit, memory_limit,
        )  # fmt: skip
        arguments, first_output = self._arguments(arrays)
        names = [dtype_name(d) for d in output_dtypes]
        shapes = [tuple(int(n) for n in s) for s in output_shapes]
        if not len(names) == len(shapes) == len(self.output_names):
            raise UsageError(f"kernel {self.name!r} has {len(self.output_names)} outputs")
        for k, (shape, dtype) in enumerate(zip(shapes, names, strict=True)):
            kind = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
            data: NDArray[Any] = np.zeros(shape, kind)
            if init_value is not None:
                data[...] = _bfloat(init_value) if dtype == "bfloat16" else init_value
            arguments[first_output + k] = Argument(
                data,
                self.output_names[k],
                writable=True,
                unwritten=init_value is None,
                report=True,
                floats=dtype in FLOATS,
            )
        raw = run(program, arguments, options)
        outputs = [
            from_bytes(raw.outputs[first_output + k], shape, dtype)
            for k, (shape, dtype) in enumerate(zip(shapes, names, strict=True))
            if first_output + k in raw.outputs
        ]
        return Launch(outputs, raw.findings, raw.counters, program.compile_seconds, raw.run_seconds)

    def compile(
        self,
        inputs: Sequence[Any],
        template: Sequence[tuple[str, Any]] | None = None,
        *,
        output_dtypes: Sequence[Any],
        sanitize: bool = True,
    ) -> tuple[Finding, ...]:
        """Compiles only, for inputs of these dtypes, sizes and ranks; the findings of that."""
        return self._build(self._inputs(inputs), template, output_dtypes, sanitize).findings

    def _inputs(self, inputs: Sequence[Any]) -> list[tuple[NDArray[Any], str]]:
        if len(inputs) != len(self.input_names):
            raise UsageError(
                f"kernel {self.name!r} takes {len(self.input_names)} inputs, not {len(inputs)}"
            )
        arrays = [as_numpy(a) for a in inputs]
        if self.ensure_row_contiguous:
            arrays = [(np.ascontiguousarray(a).reshape(a.shape), d) for a, d in arrays]
        return arrays

    def _build(
        self,
        arrays: Sequence[tuple[NDArray[Any], str]],
        template: Sequence[tuple[str, Any]] | None,
        output_dtypes: Sequence[Any],
        instrument: bool,
        count: bool = False,
    ) -> Program:
        kinds = [ArgumentType(metal_type_of(d), a.size, a.ndim) for a, d in arrays]
        outputs = [
            (n, metal_type(d)) for n, d in zip(self.output_names, output_dtypes, strict=True)
        ]
        parameters, values = _template(template or ())
        files = (f"{self.name}.header", self.name)
        text = generate(
            f"custom_kernel_{self.name}", self.source, self.header,
            list(zip(self.input_names, kinds, strict=True)), outputs, parameters, files,
        )  # fmt: skip
        function = f"custom_kernel_{self.name}" + (f"<{', '.join(values)}>" if values else "")
        return build(
            Request(
                text,
                function,
                ((files[1], self.source), (files[0], self.header)),
                math_mode=self.math_mode,
                instrument=instrument,
                count=count,
                utilities=True,
            )
        )

    def _arguments(
        self, arrays: Sequence[tuple[NDArray[Any], str]]
    ) -> tuple[dict[int, Argument], int]:
        """The buffers before the outputs, by slot, and the first output's slot."""
        arguments: dict[int, Argument] = {}

        def add(data: NDArray[Any], name: str) -> None:
            arguments[len(arguments)] = Argument(data, name)

        for name, (a, _) in zip(self.input_names, arrays, strict=True):
            add(a, name)
            if a.ndim == 0:
                continue
            shape, strides, ndim = mentions(self.source, name)
            if shape:
                add(np.array(a.shape, np.int32), f"{name}_shape")
            if strides:
                steps = [s // a.itemsize for s in a.strides]
                add(np.array(steps, np.int64), f"{name}_strides")
            if ndim:
                add(np.array([a.ndim], np.int32), f"{name}_ndim")
        return arguments, len(arguments)


def metal_type_of(name: str) -> str:
    from .arrays import METAL_TYPES

    return METAL_TYPES[name]


def _three(size: Size, what: str) -> tuple[int, int, int]:
    values = [int(n) for n in size]
    if len(values) != 3:
        raise UsageError(f"{what} has three numbers, not {len(values)}")
    return values[0], values[1], values[2]


def _bfloat(value: float) -> int:
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    if math.isnan(value):
        return 0x7FC0
    return int((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def _template(
    template: Sequence[tuple[str, Any]],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Template parameters as (name, kind) and their values as text."""
    parameters, values = [], []
    for name, value in template:
        if isinstance(value, bool):
            parameters.append((name, "bool"))
            values.append("true" if value else "false")
        elif isinstance(value, int):
            parameters.append((name, "int"))
            values.append(str(value))
        else:
            parameters.append((name, "typename"))
            values.append(metal_type(value))
    return parameters, values


def metal_function(
    source: str,
    name: str,
    template_args: Sequence[Any] = (),
    constants: Mapping[int, bool | int | float] | None = None,
    include_root: str | None = None,
    math_mode: str = "safe",
    file: str = "kernel.metal",
    utilities: bool = False,
) -> MetalFunction:
    """A kernel of a whole Metal source, with explicit [[buffer(n)]] parameters.

    name: the function's, or a host name that the source instantiates.
    template_args: values for a template kernel: ints, bools, dtypes or C++ type names.
    constants: function constants by id; one left out counts as not defined.
    include_root: folder that `#include "..."` may read, besides the Metal headers.
    """
    if math_mode not in MATH:
        raise UsageError(f"math_mode is one of {', '.join(MATH)}, not {math_mode!r}")
    values = [v if isinstance(v, str) else _template([("", v)])[1][0] for v in template_args]
    function = name + (f"<{', '.join(values)}>" if values else "")
    request = Request(
        f'#line 1 "{file}"\n{source}\n',
        function,
        ((file, source),),
        tuple(sorted((constants or {}).items())),
        None if include_root is None else str(include_root),
        math_mode,
        utilities=utilities,
    )
    return MetalFunction(request)


class MetalFunction:
    """One function of a Metal source; made by `metal_function`."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def compile(self, sanitize: bool = True) -> tuple[Finding, ...]:
        """Compiles only; the findings of that."""
        return self._build(sanitize).findings

    def _build(self, instrument: bool, count: bool = False) -> Program:
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
    ) -> Launch:
        """Runs it. `args[i]` goes to [[buffer(i)]]: an array, bytes, (array, byte offset), or None
        for a buffer that is not bound. Give the grid in threads, or `threadgroups`.

        outputs: slots whose elements nobody may read before a thread wrote them, and which must be
        written whole; every non-const `device` argument is returned in any case, in slot order.
        threadgroup_memory: bytes of each [[threadgroup(i)]] argument.
        """
        program = self._build(sanitize or count, count)
        if program.executable is None:
            return Launch([], program.findings, None, program.compile_seconds, 0.0)
        group = _three(threadgroup, "threadgroup")
        if (grid is None) == (threadgroups is None):
            raise UsageError("give the grid in threads or in threadgroups, one of the two")
        if grid is not None:
            threads = _three(grid, "grid")
        else:
            assert threadgroups is not None
            x, y, z = (
                g * t for g, t in zip(_three(threadgroups, "threadgroups"), group, strict=True)
            )
            threads = (x, y, z)
        written = self._written(program)
        arguments: dict[int, Argument] = {}
        shapes: dict[int, tuple[tuple[int, ...], str]] = {}
        for slot, value in enumerate(args):
            offset = 0
            if isinstance(value, tuple):
                value, offset = value
            if value is None:
                continue
            if isinstance(value, (bytes, bytearray, memoryview)):
                arguments[slot] = Argument(np.frombuffer(bytes(value), np.uint8))
                continue
            data, dtype = as_numpy(value)
            arguments[slot] = Argument(
                data,
                writable=slot in written,
                unwritten=slot in outputs,
                report=slot in outputs,
                floats=dtype in FLOATS,
                pointer=offset,
            )
            shapes[slot] = (data.shape, dtype)
        if program.function is not None:
            last = max(
                (p.index or 0 for p in program.function.parameters if p.attribute == "buffer"),
                default=-1,
            )
            for slot in range(last + 1):
                arguments.setdefault(slot, Argument(None))
        for index, size in (threadgroup_memory or {}).items():
            arguments[32 + index] = Argument(None, threadgroup_bytes=int(size))
        options = Options(threads, group, seed, sanitize, count, time_limit, memory_limit)
        raw = run(program, arguments, options)
        results = [
            from_bytes(raw.outputs[slot], *shapes[slot])
            for slot in sorted(raw.outputs)
            if raw.outputs[slot].size == math.prod(shapes[slot][0]) * itemsize(shapes[slot][1])
        ]
        return Launch(results, raw.findings, raw.counters, program.compile_seconds, raw.run_seconds)

    @staticmethod
    def _written(program: Program) -> set[int]:
        """Slots of parameters that are not const."""
        if program.function is None:
            return set()
        return {
            p.index
            for p in program.function.parameters
            if p.attribute == "buffer"
            and p.index is not None
            and "device" in p.text
            and not re.search(r"\bconst\b[^*&]*[*&]", p.text)
        }


def check_source(
    source: str,
    header: str = "",
    threadgroup: Size | None = None,
) -> tuple[Finding, ...]:
    """Rules that need no compiler: ASCII, the sandbox, threads a threadgroup."""
    from .lint import lint_raw

    found = lint_raw(source + header, (("kernel", source), ("header", header)), None)
    if threadgroup is not None:
        from .launch import check_threadgroup

        refused = check_threadgroup(_three(threadgroup, "threadgroup"))
        if refused is not None:
            found.append(refused)
    return tuple(found)
