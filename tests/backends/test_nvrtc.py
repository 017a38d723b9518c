"""The native CUDA kernels of tuned/ compile for every NVIDIA architecture that is supported.

NVRTC needs no GPU. Where its wheels are not installed (the extra `nvrtc`, which `make slow` and the
Linux workflow install) these tests are skipped, and say so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import cuda_texts
import mlx.core as mx
import pytest
from native import CASES, NATIVE

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.backends import cuda, cuda_modules
from mlx_lm_openevolve.decode import fused, store
from mlx_lm_openevolve.kernels.kernel import Launch

# A100, RTX 30 and A10, RTX 40 and L40, H100, B200, RTX 50. MLX asks for what only that chip can do
# (the "a") from 90 on.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
WHEELS = Path(mx.__file__).parent.parent / "nvidia" / "cu13"
# Written for Hopper's own instructions: elsewhere MLX's compiler refuses it, and the gate with it.
HOPPER_ALONE = {"prefill_wgmma"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (WHEELS / "lib" / "libnvrtc.so.13").exists(),
        reason="no NVRTC here: pip install '.[nvrtc]'",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def nvrtc() -> Iterator[None]:
    """The wheel's NVRTC, loaded as MLX's CUDA build loads it: found by its name from then on."""
    for name in ("libnvrtc-builtins.so.13*", "libnvrtc.so.13"):
        (found,) = (WHEELS / "lib").glob(name)
        ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
    cuda_modules._nvrtc.cache_clear()
    yield
    cuda_modules._nvrtc.cache_clear()


def cubin(text: str, architecture: str) -> bytes:
    """Raises RuntimeError with the compiler's log."""
    headers = f"--include-path={WHEELS / 'include' / 'cccl'}"
    options = (*cuda_modules.options(architecture), headers)
    return cuda_modules.compiled(text, "mlx::core::cu::kernel", options)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "slug", "changes"), CASES)
def test_a_native_kernel_compiles(
    name: str, slug: str, changes: dict[str, int], architecture: str
) -> None:
    kernel, workload = NATIVE[name], ops.parse(slug)
    params = {**kernel.default_params(workload.bucket()), **changes}
    texts = [text for _, text, _ in cuda_texts.texts_of(kernel, params, workload)]
    assert texts
    for text in texts:
        if name in HOPPER_ALONE and architecture != "sm_90a":
            with pytest.raises(RuntimeError):
                cubin(text, architecture)
        else:
            assert cubin(text, architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_kernels_of_whole_steps_compile(
    dtype: mx.Dtype, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(cuda, "single", lambda launch, *_: launches.append(launch))
    monkeypatch.setattr(store, "_same", lambda *_: True)
    plain = fused._add_norm.__wrapped__, fused._norm_rope.__wrapped__
    plain[0]("cuda", (2, 1, 2050), dtype, 1e-6)
    places = 0, 16, 1280, 8, 80
    for eps, base, varied in (((1e-6, 1e-5), 1e6, True), ((), None, False)):
        rope = 64, varied, base, 0.5
        plain[1]("cuda", (2, 2560), dtype, places, eps, rope, varied, base is None)
    store._kernel.__wrapped__("cuda", (2, 4, 1, 96), dtype, 4, 32)
    for first in (False, True):
        fused._route.__wrapped__("cuda", (2, 1, 130), dtype, 6, first)
    fused._mix.__wrapped__("cuda", (2, 1, 6, 96), dtype)
    assert len(launches) == 7
    for launch in launches:
        kind = launch.outputs[-1][2]
        dtypes = dict.fromkeys(launch.spec.inputs, kind)
        dtypes |= {"offset": "int32", "freqs": "float32"}
        text, _ = cuda_texts.text_of(launch, dtypes, {})
        assert cubin(text, architecture).startswith(b"\x7fELF")


def test_every_native_kernel_is_compiled() -> None:
    assert {name for name, _, _ in CASES} == set(NATIVE)


def test_a_text_that_is_wrong_would_be_noticed() -> None:
    kernel, workload = NATIVE[CASES[0][0]], ops.parse(CASES[0][1])
    ((_, text, _), *_) = cuda_texts.texts_of(
        kernel, kernel.default_params(workload.bucket()), workload
    )
    with pytest.raises(RuntimeError, match="error"):
        cubin(
            text.replace("__global__ void kernel(", "__global__ void kernel(nothing x, ", 1),
            "sm_80",
        )
