"""PyObjC's `Metal` on metalhost: the calls that compute programs make, so that they run on any
machine. A command buffer runs its dispatches one after another, each kernel's first CHECKED ones
checked and counted; what they did is kept in `Device.launches`. GPU times are 0: nothing here says
how long a GPU would take.
"""

from __future__ import annotations

import ast
import operator
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlx_lm_openevolve.metalhost import Counters, Finding, MetalFunction, metal_function

MAX_THREADS = 1024
SIMD_WIDTH = 32
TIME_LIMIT = 120.0  # seconds of one dispatch
CHECKED = 4
COMPLETED, FAILED = 4, 5


class Size(NamedTuple):
    """MTLSize."""

    width: int
    height: int
    depth: int


class Buffer:
    """MTLBuffer, in shared memory."""

    def __init__(self, data: bytearray) -> None:
        self.data = np.frombuffer(data, np.uint8)

    def contents(self) -> Buffer:
        return self

    def as_buffer(self, nbytes: int) -> memoryview:
        return memoryview(self.data)[:nbytes]


class Library:
    """MTLLibrary."""

    def __init__(self, source: str) -> None:
        self.source = source

    def newFunctionWithName_(self, name: str) -> Pipeline | None:
        pipeline = Pipeline(self.source, name)
        return None if "no kernel named" in str(pipeline.refusal) else pipeline


class Pipeline:
    """MTLFunction and the MTLComputePipelineState of it."""

    def __init__(self, source: str, name: str) -> None:
        self.name, self.source = name, source
        self.function = function(source, name)
        self.refusal = next(refusals(self.function), None)
        self.found = False

    def threadExecutionWidth(self) -> int:
        return SIMD_WIDTH

    def maxTotalThreadsPerThreadgroup(self) -> int:
        return declared_threads(self.source, self.name)


@dataclass(frozen=True)
class Launch:
    """One dispatch: its kernel, its sizes in threads, and what it did."""

    kernel: str
    grid: Size
    threadgroup: Size
    findings: tuple[Finding, ...] = ()
    counters: Counters | None = None


class Planned(Exception):
    """Raised in place of a run by a device that only plans; its launches are known by then."""


class Device:
    """MTLDevice. `launches` grows with every dispatch until the caller clears it. plan: nothing is
    run, and the first command buffer raises Planned."""

    def __init__(self, plan: bool = False) -> None:
        self.plan = plan
        self.launches: list[Launch] = []

    def name(self) -> str:
        return "metalhost"

    def maxThreadsPerThreadgroup(self) -> Size:
        return Size(MAX_THREADS, 1, 1)

    def newCommandQueue(self) -> Device:
        return self

    def commandBuffer(self) -> CommandBuffer:
        return CommandBuffer(self)

    def newLibraryWithSource_options_error_(
        self, source: str, options: object, error: None
    ) -> tuple[Library | None, str | None]:
        refusal = first_refusal(source, kernel_names(source))
        return (None, str(refusal)) if refusal else (Library(source), None)

    def newComputePipelineStateWithFunction_error_(
        self, pipeline: Pipeline, error: None
    ) -> tuple[Pipeline | None, str | None]:
        return (None, str(pipeline.refusal)) if pipeline.refusal else (pipeline, None)

    def newBufferWithBytes_length_options_(self, data: bytes, length: int, options: int) -> Buffer:
        return Buffer(bytearray(data[:length]))

    def newBufferWithLength_options_(self, length: int, options: int) -> Buffer:
        return Buffer(bytearray(length))


class CommandBuffer:
    """MTLCommandBuffer and its one compute encoder."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.pipeline: Pipeline | None = None
        self.buffers: dict[int, tuple[Buffer, int]] = {}
        self.dispatches: list[tuple[Pipeline, dict[int, tuple[Buffer, int]], Size, Size]] = []
        self.problem: str | None = None

    def computeCommandEncoder(self) -> CommandBuffer:
        return self

    def setComputePipelineState_(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def setBuffer_offset_atIndex_(self, buffer: Buffer, offset: int, index: int) -> None:
        self.buffers[index] = buffer, offset

    def dispatchThreads_threadsPerThreadgroup_(self, grid: Size, threadgroup: Size) -> None:
        assert self.pipeline is not None
        self.dispatches.append((self.pipeline, dict(self.buffers), grid, threadgroup))

    def endEncoding(self) -> None:
        pass

    def commit(self) -> None:
        if self.device.plan:
            self.device.launches += [Launch(p.name, g, t) for p, _, g, t in self.dispatches]
            raise Planned
        checked: dict[str, int] = {}
        for pipeline, bound, grid, threadgroup in self.dispatches:
            times = checked[pipeline.name] = checked.get(pipeline.name, 0) + 1
            self.problem = run(self.device, pipeline, bound, grid, threadgroup, times <= CHECKED)
            if self.problem:
                break

    def waitUntilCompleted(self) -> None:
        pass

    def status(self) -> int:
        return FAILED if self.problem else COMPLETED

    def error(self) -> str | None:
        return self.problem

    def GPUStartTime(self) -> float:
        return 0.0

    def GPUEndTime(self) -> float:
        return 0.0


def run(
    device: Device,
    pipeline: Pipeline,
    bound: dict[int, tuple[Buffer, int]],
    grid: Size,
    threadgroup: Size,
    check: bool,
) -> str | None:
    """Runs one dispatch and keeps what it did, where it is checked; returns what stopped it."""
    arguments: list[Any] = [None] * (max(bound, default=-1) + 1)
    for index, (buffer, offset) in bound.items():
        arguments[index] = buffer.data, offset
    # What is found once is not looked for again: a race at every step takes minutes.
    done = pipeline.function(
        arguments, threadgroup=threadgroup, grid=grid, sanitize=check and not pipeline.found,
        count=check,
        time_limit=TIME_LIMIT,
    )  # fmt: skip
    pipeline.found |= bool(done.findings)
    device.launches.append(Launch(pipeline.name, grid, threadgroup, done.findings, done.counters))
    if any(f.fatal for f in done.findings):
        return str(done.findings[0])
    returned = [index for index in pipeline.function.results() if index in bound]
    for index, result in zip(returned, done.outputs, strict=True):
        bound[index][0].data[:] = np.asarray(result)
    return None


def function(source: str, name: str) -> MetalFunction:
    """The kernel as Metal compiled it there where nothing is said: fast math, no lambdas."""
    return metal_function(source, name, math_mode="fast", language="3.1", file="source")


def refusals(made: MetalFunction) -> Iterator[Finding]:
    """What metalhost's compiler says: a variable that is read in its own initialisation, which is
    no error to Apple's, is a finding of running it."""
    return (f for f in made.compile(sanitize=False) if f.kind != "uninitialised")


def first_refusal(source: str, names: Sequence[str]) -> Finding | None:
    """What metalhost's compiler says against these kernels of the source, first of all."""
    return next((f for name in names for f in refusals(function(source, name))), None)


def kernel_names(source: str) -> list[str]:
    """The functions of a source that are kernels."""
    return re.findall(r"\bkernel\b[^;{}()]*\bvoid\s+([A-Za-z_]\w*)", source)


_LIMIT = re.compile(r"max_total_threads_per_threadgroup\s*\((.*?)\)\s*(?:,|\]|\))", re.S)


def declared_threads(source: str, name: str) -> int:
    """[[max_total_threads_per_threadgroup(n)]] of a kernel; what a GPU takes where it has none."""
    plain = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.S)
    for kernel in re.finditer(rf"\bvoid\s+(?:\[\[.*?\]\]\s*)?{name}\s*\(", plain):
        start = max(plain.rfind(mark, 0, kernel.start()) for mark in ";}>") + 1
        limit = _LIMIT.search(plain[start : plain.find("{", kernel.end())])
        if limit:
            return min(MAX_THREADS, _integer(limit[1], plain))
    return MAX_THREADS


_OPERATORS = {ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub}


def _integer(expression: str, source: str) -> int:
    """The value of products and sums of literals and of the source's constants."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)
        if isinstance(node, ast.Name):
            found = re.search(rf"\b{node.id}\s*(?:=|\s)\s*([^;\n]+)", _definitions(source))
            assert found is not None, f"{node.id} is no constant of the source"
            return _integer(found[1], source)
        assert isinstance(node, ast.BinOp), expression
        return _OPERATORS[type(node.op)](value(node.left), value(node.right))

    plain = re.sub(r"(?<=\d)[uUlL]+\b", "", expression).strip()
    return value(ast.parse(plain, mode="eval").body)


def _definitions(source: str) -> str:
    """The lines that define macros and constants."""
    lines = re.findall(
        r"#define\s+(\w+ +[^\n]+)|\bconst(?:ant|expr)?\b[^;{}()]*?\b(\w+\s*=[^;]+);", source
    )
    return "\n".join(macro or constant for macro, constant in lines)


class _CompileOptions:
    @staticmethod
    def new() -> None:
        return None


def module() -> types.ModuleType:
    """A module to stand in for `Metal`. Its one device is a new one at each call, as nothing of a
    device is shared."""
    metal: Any = types.ModuleType("Metal")
    metal.MTLSizeMake = Size
    metal.MTLCompileOptions = _CompileOptions
    metal.MTLCreateSystemDefaultDevice = Device
    metal.MTLResourceStorageModeShared = 0
    metal.MTLCommandBufferStatusCompleted = COMPLETED
    return metal
