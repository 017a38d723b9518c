"""The native CUDA kernels of tuned/ under the gate's questions, on the CPU."""

from __future__ import annotations

import random

import cuda_on_cpu
import mlx.core as mx
import numpy as np
import pytest
from native import CASES, NATIVE

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.gate import correctness
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention import Workload

pytestmark = pytest.mark.skipif(
    bool(cuda_on_cpu.unavailable()), reason=cuda_on_cpu.unavailable() or "available"
)


def judge(
    kernel: Kernel, slug: str, changes: dict[str, int], seed: int = 1, brief: bool = True
) -> str:
    """Why the kernel fails the questions about a small workload's bucket, "" where it passes."""
    bucket = ops.parse(slug).bucket()
    assert kernel.applies_to(bucket)
    params = {**kernel.default_params(bucket), **changes}
    asked = (case() for case in ops.of(bucket).questions.cases(bucket, 0, brief))
    return correctness.passes(lambda w: cuda_on_cpu.build(kernel, params, w, seed), asked).reason


def changed(kernel: Kernel, file: str, right: str, wrong: str, nth: int | None = None) -> Kernel:
    """The kernel with `wrong` for `right` in a file: everywhere, or at the nth place."""
    parts = kernel.sources[file].split(right)
    assert len(parts) > (nth or 0) + 1
    if nth is None:
        source = wrong.join(parts)
    else:
        source = right.join(parts[: nth + 1]) + wrong + right.join(parts[nth + 1 :])
    return Kernel.from_parts(kernel.meta, {**kernel.sources, file: source})


def test_every_native_kernel_is_here() -> None:
    assert {name for name, _, _ in CASES} == NATIVE.keys()


# Every case is several compilations: outside the slow tests one drawn case of each kernel, of
# products the first, for later ones are judged at more rows.
_FEW = [
    cases[0] if cases[0][1].startswith("linear") else random.Random(2026).choice(cases)
    for cases in ([case for case in CASES if case[0] == name] for name in NATIVE)
]


@pytest.mark.parametrize(("name", "slug", "changes"), _FEW, ids=[f"{c[0]}-{c[1]}" for c in _FEW])
def test_a_native_kernel_is_right(name: str, slug: str, changes: dict[str, int]) -> None:
    assert judge(NATIVE[name], slug, changes) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slug", "changes"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_native_kernel_is_right_at_every_row(
    name: str, slug: str, changes: dict[str, int]
) -> None:
    assert judge(NATIVE[name], slug, changes, brief=False) == ""


BARRIERS = [
    *((*CASES[i], "columns_mma.cu", "__syncthreads();", n) for i in (2, 4) for n in range(3)),
    (*CASES[15], "columns_mma.cu", "__syncthreads();", 3),
    (*CASES[6], "tiles_mma.cu", "wait_copies<1>();", 0),
    (*CASES[6], "tiles_mma.cu", "__syncthreads();", 1),
    (*CASES[10], "prefill_wgmma.cu", "__syncthreads();", 1),
    *((*CASES[-1], "multiply.cu", "__syncthreads();", n) for n in (1, 2)),
    *((*CASES[-3], "multiply.cu", text, 0) for text in ("__syncthreads();", "__syncwarp();")),
]


@pytest.mark.parametrize(
    ("name", "slug", "changes", "file", "removed", "nth"),
    [  # of each kernel and kind the first in CI
        pytest.param(
            *each,
            marks=[pytest.mark.slow]
            if any((e[0], e[4]) == (each[0], each[4]) for e in BARRIERS[:i])
            else [],
        )
        for i, each in enumerate(BARRIERS)
    ],
)
def test_a_missing_barrier_is_caught(
    name: str, slug: str, changes: dict[str, int], file: str, removed: str, nth: int
) -> None:
    mutant = changed(NATIVE[name], file, removed, ";", nth)
    # Each seed orders blocks and warps in another way.
    assert any(judge(mutant, slug, changes, seed) for seed in (1, 2, 3))


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        # The last does not ask whether somebody left.
        ("fused_mma.cu", "call_all(counter) && in_parts ? number : ALL_PARTS", "number"),
        # Nobody waits for the last.
        ("columns_mma.cu", "if (!counting(look(counter)))", "if (true)"),
        # Two blocks take the same part.
        ("columns_mma.cu", "return int(found - START) % int(LEAVER);", "return found != START;"),
    ],
)
def test_a_fault_between_blocks_is_caught(file: str, right: str, wrong: str) -> None:
    mutant = changed(NATIVE["wide_shared_mma"], file, right, wrong)
    workload = "attention-b1-hq8-hkv1-lq1-lk64-d256-v256-float16-none"
    assert any(judge(mutant, workload, {"splits": 3}, seed) for seed in (1, 2, 3))


def test_who_comes_when_changes_no_bit() -> None:
    """Blocks leave in some of the runs, and the last adds up what they would have."""
    kernel = NATIVE["wide_shared_mma"]
    # Here the last would add up everything in another order than all together.
    mutant = changed(kernel, "fused_mma.cu", "if (!in_parts) {", "if (part == ALL_PARTS) {")

    workload = Workload.parse("attention-b1-hq8-hkv1-lq1-lk600-d256-v256-float16-none")
    params = {**kernel.default_params(workload.bucket()), "splits": 8}
    rng = np.random.default_rng(0)
    shapes = ((1, 8, 1, 256), (1, 1, 600, 256), (1, 1, 600, 256))
    queries, keys, values = (rng.standard_normal(shape, np.float32) for shape in shapes)
    values += np.where(np.arange(600) // 64 % 2, 300, -300)[:, None]  # large sums, small results
    arrays = [mx.array(x).astype(mx.float16) for x in (queries, keys, values)]

    def results(kernel: Kernel) -> int:
        found = set()
        for seed in range(1, 25, 2):
            call = cuda_on_cpu.build(kernel, params, workload, seed)
            found.add(np.array(call(*arrays, mx.array([0.0625]), None, None)).tobytes())
        return len(found)

    assert results(kernel) == 1
    assert results(mutant) > 1


def test_lanes_that_part_at_a_shuffle_are_caught() -> None:
    line = "const int kv_len = keys_shape[2];"
    parted = f"{line}\nif (lane < 16) __syncwarp();"
    mutant = changed(NATIVE["wide_shared_mma"], "single_mma.cu", line, parted)
    workload = "attention-b1-hq16-hkv1-lq1-lk32-d256-v256-bfloat16-none-latent"
    assert "different places" in judge(mutant, workload, {"splits": 1})


def test_arrays_end_at_a_page_that_cannot_be_read() -> None:
    guarded = cuda_on_cpu.Guarded(np.arange(64, dtype=np.uint16))
    assert guarded.address % 16 == 0
    page_end = -(-(guarded.address + guarded.bytes) // 4096) * 4096
    assert page_end - guarded.address - guarded.bytes < 16
    assert mx.array(guarded.read(np.dtype(np.uint16)))[63].item() == 63
