"""The shipped kernels as Apple's compiler gets them: MLX's text, behind MLX's own utils.h."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx_kernels
import pytest
from probe import on_host
from samples import launched_in_metal, shipped_in_metal

from mlx_lm_openevolve import backends, ops
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.metalhost import metal_function, metal_kernel
from mlx_lm_openevolve.metalhost.arrays import METAL_TYPES, as_numpy
from mlx_lm_openevolve.metalhost.findings import Finding
from mlx_lm_openevolve.metalhost.signature import ArgumentType, generate

# Inputs that hold an element a head, a key, a group of keys or a split, and not one a dimension.
SMALL = ("mask", "scale", "sinks", "split_tops", "split_sums")
# The shipped quantised kernels read these from `device` alone: too few of them do not compile, and
# Workload.launch_key keeps such calls apart.
SMALL_QUANTIZED = ("key_scales", "key_biases", "value_scales", "value_biases")


def shipped() -> list[Any]:
    """(kernel, params, workload) of every host check that ships, as parameters."""
    return [
        pytest.param(kernel, params, on, id=f"{kernel.name}-{on}-{params.get('splits', 1)}")
        for kernel, params, on in launched_in_metal()
    ]


def launches(kernel: Kernel, params: dict[str, int], on: str) -> list[tuple[Any, Any]]:
    """What the Metal backend hands to mx.fast.metal_kernel, and to what that returns."""
    asked: list[tuple[Any, Any]] = []

    def fake(**made: Any) -> Any:
        def function(**call: Any) -> list[mx.array]:
            asked.append((made, call))
            outputs = zip(call["output_shapes"], call["output_dtypes"], strict=True)
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        return function

    bucket = ops.parse(on).bucket()
    question = next(ops.of(bucket).questions.cases(bucket, 0))()
    metal = backends.get("metal")
    with (
        mock.patch.object(mx.fast, "metal_kernel", fake),
        mock.patch.object(metal, "unavailable", return_value=""),
    ):
        metal.build(kernel, params, question.workload)(*question.arguments)
    return asked


@pytest.mark.parametrize(("kernel", "params", "on"), shipped())
def test_metalhost_generates_the_source_that_mlx_does(
    kernel: Kernel, params: dict[str, int], on: str, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = launches(kernel, params, on)
    assert asked
    for made, call in asked:
        expected = mlx_kernels.generated(capfd, mx.fast.metal_kernel(**made), **call)
        ours = metal_kernel(**made).generated(
            call["inputs"], call["template"], output_dtypes=call["output_dtypes"]
        )
        assert ours.text == expected


def test_no_shipped_stage_is_left_out() -> None:
    stages = {(k.name, spec.file) for k in shipped_in_metal() for spec in k.specs}
    tried = set()
    for case in shipped():
        kernel, params, on = case.values
        exact = ops.parse(on)
        tried |= {(kernel.name, launch.spec.file) for launch in kernel.launches(exact, params)}
    assert tried == stages


def sampled(cases: list[Any], count: int) -> list[Any]:
    """All but a seeded sample marked slow."""
    kept = set(random.Random(2026).sample(range(len(cases)), count))
    return [
        case if i in kept else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


@on_host
@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize(("kernel", "params", "on"), sampled(shipped(), 3))
def test_launches_compile_behind_mlxs_own_utilities(
    kernel: Kernel, params: dict[str, int], on: str, size: int
) -> None:
    """Small inputs are in the constant address space, others in device."""
    small = (*SMALL, *(SMALL_QUANTIZED if size >= 8 else ()))
    findings = compiled(kernel, params, on, small, size)
    assert not findings, "\n".join(str(f) for f in findings)


@on_host
def test_four_scales_do_not_compile() -> None:
    """Which is why such calls are tried by themselves: the first evaluation raises it."""
    seen = {}
    for case in shipped():
        kernel, params, on = case.values
        if kernel.name not in seen and ops.parse(on).variant == "quantized":
            seen[kernel.name] = compiled(kernel, params, on, (*SMALL, *SMALL_QUANTIZED), 4)
    assert len(seen) == 2
    for findings in seen.values():
        messages = {finding.message for finding in findings}
        assert messages == {"constant memory where device memory is expected"}


def compiled(
    kernel: Kernel, params: dict[str, int], on: str, small: tuple[str, ...], size: int
) -> list[Finding]:
    """What compiling a kernel's launches finds where the `small` inputs have `size` elements."""
    findings: list[Finding] = []
    for made, call in launches(kernel, params, on):
        inputs = []
        for name, array in zip(made["input_names"], call["inputs"], strict=True):
            _, dtype = as_numpy(array)
            elements = size if name in small else array.size
            inputs.append((name, ArgumentType(METAL_TYPES[dtype], elements, array.ndim)))
        types = [METAL_TYPES[str(d).removeprefix("mlx.core.")] for d in call["output_dtypes"]]
        source = generate(
            made["name"], made["source"], made["header"], inputs,
            list(zip(made["output_names"], types, strict=True)), call["template"],
        )  # fmt: skip
        text = f'#include "{mlx_kernels.KERNELS}/utils.h"\n{source.text}'
        function = metal_function(
            text.replace("\N{COPYRIGHT SIGN}", "(c)"), source.function,
            include_root=str(mlx_kernels.include_root()),
        )  # fmt: skip
        findings += function.compile(sanitize=False)
    return findings
