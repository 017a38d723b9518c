"""`metal_kernel`: a kernel from a body, with mx.fast.metal_kernel's interface."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .arguments import Argument
from .arrays import METAL_TYPES, as_numpy, dtype_name, filled, metal_type
from .build import BuildRequest, Program, build
from .findings import Finding
from .flags import MATH
from .launch import LaunchResult, Options, Size, check_threadgroup, dim3, integers, run
from .lint import lint_raw
from .signature import ArgumentType, Source, generate, mentions

__all__ = ["MetalKernel", "check_source", "metal_kernel"]


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Mapping[str, str] | None = None,
    *,
    math_mode: str = "safe",
) -> MetalKernel:
    """A kernel from a body, as `mx.fast.metal_kernel` takes it.

    The signature around the body follows MLX's rules: shapes, strides, ranks and attributes that
    the body's text mentions are declared. atomic_outputs: outputs are `device atomic<T>*`.
    math_mode: "safe", "relaxed" or "fast"; MLX takes it as compile_options["math_mode"].

    Raises: UsageError.
    """
    for text in (name, source, header):
        if not isinstance(text, str):
            raise UsageError(f"name, source and header are texts, not {text!r}")
    for names in (input_names, output_names):
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            raise UsageError(f"names of inputs and outputs are a list of texts, not {names!r}")
    for flag in (ensure_row_contiguous, atomic_outputs):
        if not isinstance(flag, bool):
            raise UsageError(f"ensure_row_contiguous and atomic_outputs are bools, not {flag!r}")
    if not isinstance(compile_options or {}, Mapping):
        raise UsageError(f"compile_options is a dict, not {compile_options!r}")
    options = {"math_mode": math_mode, **(compile_options or {})}
    unknown = ", ".join(sorted(map(str, options.keys() - {"math_mode"})))
    if unknown:
        raise UsageError(f"compile_options has no {unknown}: use math_mode")
    return MetalKernel(
        name, tuple(input_names), tuple(output_names), source, header, ensure_row_contiguous,
        atomic_outputs, options["math_mode"],
    )  # fmt: skip


@dataclass(frozen=True)
class MetalKernel:
    """A body of Metal with its generated signature; made by `metal_kernel`."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str
    ensure_row_contiguous: bool
    atomic_outputs: bool
    math_mode: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise UsageError(f"a kernel's name is a C identifier, not {self.name!r}")
        if not self.output_names:
            raise UsageError("a kernel has at least one output")
        if self.math_mode not in MATH:
            raise UsageError(f"math_mode is one of {', '.join(MATH)}, not {self.math_mode!r}")

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
        verbose: bool = False,
        stream: object = None,
        seed: int = 0,
        sanitize: bool = True,
        count: bool = False,
        time_limit: float = 20.0,
        memory_limit: int = 2 << 30,
        trusted: bool = False,
    ) -> LaunchResult:
        """Compiles the kernel, or takes it from the cache, and runs it. Findings never raise.

        inputs: arrays of MLX or NumPy, or Python's numbers, which MLX makes arrays of rank 0.
        grid, threadgroup: (x, y, z) in threads. verbose: print the generated source.
        stream: of no meaning here, but a CPU's is refused, as by MLX. init_value: of each output.
        seed: of the schedule, 0 is the plain order.
        sanitize: check every access. count: fill `LaunchResult.counters`.
        time_limit: seconds of run time. memory_limit: bytes of the launch's arrays.
        trusted: run it even where the system has no sandbox.

        Raises: UsageError, BackendError where no clang is at hand, MachineError.
        """
        arrays = self._inputs(inputs)
        for given in (output_shapes, output_dtypes):
            if not isinstance(given, Sequence) or len(given) != len(self.output_names):
                raise UsageError(f"kernel {self.name!r} has {len(self.output_names)} outputs")
        shapes = [integers(size, "an output's shape") for size in output_shapes]
        if any(min(shape, default=0) < 0 for shape in shapes):
            raise UsageError(f"an output's shape is not negative: {output_shapes}")
        if init_value is not None:
            if not hasattr(init_value, "__float__"):
                raise UsageError(f"init_value is a number, not {init_value!r}")
            init_value = float(init_value)
        if not isinstance(verbose, bool):
            raise UsageError(f"verbose is a bool, not {verbose!r}")
        _check_stream(stream)
        options = Options(
            dim3(grid, "grid"), dim3(threadgroup, "threadgroup"), seed, sanitize, count,
            time_limit, memory_limit, trusted,
        )  # fmt: skip
        arguments = self._arguments(arrays)
        for name, shape, kind in zip(self.output_names, shapes, output_dtypes, strict=True):
            dtype = dtype_name(kind)
            data = filled(shape, dtype, init_value)
            arguments.append(
                Argument(data, dtype, name, writable=True, unwritten=init_value is None)
            )
        source = self._source(arrays, template, output_dtypes)
        if verbose:
            print(f"Generated source code for `{self.name}`:\n```\n{source.text}\n```")
        program = self._build(source, sanitize or count, count)
        return run(program, dict(enumerate(arguments)), options)

    def compile(
        self,
        inputs: Sequence[Any],
        template: Sequence[tuple[str, Any]] | None = None,
        *,
        output_dtypes: Sequence[Any],
        sanitize: bool = True,
    ) -> tuple[Finding, ...]:
        """Compiles only, for inputs of these dtypes, sizes and ranks; the findings of that."""
        source = self.generated(inputs, template, output_dtypes=output_dtypes)
        return self._build(source, sanitize).findings

    def generated(
        self,
        inputs: Sequence[Any],
        template: Sequence[tuple[str, Any]] | None = None,
        *,
        output_dtypes: Sequence[Any],
    ) -> Source:
        """The source for inputs of these dtypes, sizes and ranks, as MLX generates it."""
        return self._source(self._inputs(inputs), template, output_dtypes)

    def _inputs(self, inputs: Sequence[Any]) -> list[tuple[NDArray[Any], str]]:
        if not isinstance(inputs, Sequence):
            raise UsageError(f"inputs is a sequence, not {inputs!r}")
        if len(inputs) != len(self.input_names):
            raise UsageError(
                f"kernel {self.name!r} takes {len(self.input_names)} inputs, not {len(inputs)}"
            )
        arrays = [as_numpy(a) for a in inputs]
        if self.ensure_row_contiguous:
            arrays = [(np.ascontiguousarray(a).reshape(a.shape), d) for a, d in arrays]
        return arrays

    def _source(
        self,
        arrays: Sequence[tuple[NDArray[Any], str]],
        template: Sequence[tuple[str, Any]] | None,
        output_dtypes: Sequence[Any],
    ) -> Source:
        kinds = [ArgumentType(METAL_TYPES[d], a.size, a.ndim) for a, d in arrays]
        return generate(
            self.name, self.source, self.header,
            list(zip(self.input_names, kinds, strict=True)),
            list(zip(self.output_names, map(metal_type, output_dtypes), strict=True)),
            template or (), self.atomic_outputs,
        )  # fmt: skip

    def _build(self, source: Source, instrument: bool, count: bool = False) -> Program:
        files = (f"{self.name}.header", self.name)
        request = BuildRequest(
            source.marked(*files), source.function,
            ((files[1], self.source), (files[0], self.header)),
            math_mode=self.math_mode, instrument=instrument, count=count, utilities=True,
        )  # fmt: skip
        return build(request)

    def _arguments(self, arrays: Sequence[tuple[NDArray[Any], str]]) -> list[Argument]:
        """The buffers before the outputs."""
        arguments = []
        for name, (a, dtype) in zip(self.input_names, arrays, strict=True):
            arguments.append(Argument(a, dtype, name))
            if a.ndim == 0:
                continue
            shape, strides, ndim = mentions(self.source, name)
            if shape:
                arguments.append(Argument(np.array(a.shape, np.int32), name=f"{name}_shape"))
            if strides:
                steps = np.array([s // a.itemsize for s in a.strides], np.int64)
                arguments.append(Argument(steps, name=f"{name}_strides"))
            if ndim:
                arguments.append(Argument(np.array([a.ndim], np.int32), name=f"{name}_ndim"))
        return arguments


def _check_stream(stream: Any) -> None:
    """Raise UsageError for what mx.fast.metal_kernel does not run on."""
    import mlx.core as mx

    if stream is None:
        return
    device = getattr(stream, "device", stream)
    if not isinstance(device, (mx.Device, mx.DeviceType)):
        raise UsageError(f"stream is a stream or a device of MLX, not {stream!r}")
    if device == mx.cpu:
        raise UsageError("a Metal kernel runs on the GPU: the stream is a CPU's")


def check_source(
    source: str, header: str = "", threadgroup: Size | None = None
) -> tuple[Finding, ...]:
    """Rules that need no compiler: ASCII, the sandbox, threads a threadgroup."""
    findings = lint_raw((("kernel", source), ("header", header)), None)
    if threadgroup is not None:
        refusal = check_threadgroup(dim3(threadgroup, "threadgroup"))
        findings += [refusal] if refusal else []
    return tuple(findings)
