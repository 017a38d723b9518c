"""What get_optimization_info() returns."""

from __future__ import annotations

from typing import Any, TypedDict

__all__ = ["ModelInfo", "OpInfo", "OptimizationInfo", "WorkloadInfo"]


class WorkloadInfo(TypedDict):
    """What one workload runs on. kernel and name are None for the original; hits and fallbacks
    count calls that a kernel served and that the original served."""

    kernel: str | None
    name: str | None
    params: dict[str, int]
    verdict: dict[str, Any] | None
    reason: str
    hits: int
    fallbacks: int


class OpInfo(TypedDict):
    """One family of operations. fallbacks: calls that no workload describes, reason -> count;
    unreached: who holds the original and was not given the replacement, such as a variable
    `module.name` that merely remembers it."""

    fallbacks: dict[str, int]
    unreached: list[str]


class ModelInfo(TypedDict):
    """A model that was called. model: its class; compiled: how many of its layers run compiled;
    merged: how many products of them stand for several; separate: the number of a layer -> why it
    is left alone; rows: how many sequences are decoded so; reason: why none is, "" where some
    are."""

    model: str
    compiled: int
    merged: int
    separate: dict[str, str]
    rows: list[int]
    reason: str


class OptimizationInfo(TypedDict):
    """Everything that was decided so far. device_info: facts of the chip; registry: roots in the
    order they are asked; ops: the families that are switched on; off: why each of the others, and
    "step" (whole decode steps), is not; workloads: slug of a bucket -> what it runs on; fallbacks:
    those of all families; models: name of a structure -> what its decode steps run on. While
    nothing is enabled the fields are None or empty."""

    enabled: bool
    version: str
    backend: str | None
    device_info: dict[str, Any]
    gate: str | None
    require_faster: bool | None
    registry: list[str]
    ops: dict[str, OpInfo]
    off: dict[str, str]
    workloads: dict[str, WorkloadInfo]
    fallbacks: dict[str, int]
    models: dict[str, ModelInfo]
