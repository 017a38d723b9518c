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
    """A model that was called. model: its class; recognised, merged: its layers that are known, and
    of these those whose products are one, class -> count; separate: path of a known layer -> why
    its products cannot be one; rows: for how many rows of an input they are; reason: why they are
    not, "" where they are."""

    model: str
    recognised: dict[str, int]
    merged: dict[str, int]
    separate: dict[str, str]
    rows: list[int]
    reason: str


class OptimizationInfo(TypedDict):
    """Everything that was decided so far. device_info: facts of the chip; registry: roots in the
    order they are asked; ops: the families that are switched on; workloads: slug of a bucket ->
    what it runs on; fallbacks: those of all families; models: name of a structure -> what its
    decode steps run on. While nothing is enabled the fields are None or empty."""

    enabled: bool
    version: str
    backend: str | None
    device_info: dict[str, Any]
    gate: str | None
    require_faster: bool | None
    registry: list[str]
    ops: dict[str, OpInfo]
    workloads: dict[str, WorkloadInfo]
    fallbacks: dict[str, int]
    models: dict[str, ModelInfo]
