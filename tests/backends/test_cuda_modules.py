"""Compiled modules: what MLX would look for, and that nothing depends on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_lm_openevolve.backends import cuda_modules

INPUTS = [("queries", mx.bfloat16), ("mask", mx.bool_), ("words", mx.uint32)]
OUTPUTS = [("out", mx.bfloat16), ("scratch", mx.float32)]
SOURCE = '// queries_strides mask_ndim mask_shape\n#include "/a/body.cuh"\n'


# From a program of three lines: std::hash<std::string>, g++ 12 on x86-64.
@pytest.mark.parametrize(
    ("text", "hashed"),
    [
        ("", 0x553E93901E462A6E),
        ("abc", 0x32D82BF8ED3DBA39),
        ("attention", 0xAE356665FA82A4E9),
        ("0123456789abcdef", 0x934B0D760642ED86),
        ("x" * 100, 0x46E5FFE714160F6E),
    ],
)
def test_the_hash_is_libstdcxx_s(text: str, hashed: int) -> None:
    assert cuda_modules.std_hash(text.encode()) == hashed


def test_the_text_is_what_mlx_makes() -> None:
    text = cuda_modules.kernel_text(
        "custom_kernel_k_0", '#include "/a/head.cuh"\n', SOURCE, INPUTS, OUTPUTS
    )
    assert text == (
        '\n#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n'
        '#include "/a/head.cuh"\n'
        "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n"
        "__global__ void custom_kernel_k_0(\n"
        "    const __nv_bfloat16* queries,\n"
        "    const __grid_constant__ Strides queries_strides,\n"
        "    const bool* mask,\n"
        "    const __grid_constant__ Shape mask_shape,\n"
        "    const __grid_constant__ int mask_ndim,\n"
        "    const uint32_t* words,\n"
        "    __nv_bfloat16* out,\n"
        "    float* scratch) {\n"
        f"{SOURCE}\n"
        "}\n\n} // namespace mlx::core::cu\n"
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "ptx"))
    monkeypatch.setattr(cuda_modules, "_architecture", lambda: "sm_90a")
    monkeypatch.setattr(cuda_modules, "options", lambda architecture: (architecture,))
    return tmp_path / "ptx"


def test_a_module_is_compiled_once_and_lies_where_mlx_looks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile(text: str, expression: str, options: Any) -> tuple[bytes, str]:
        compiled.append(text)
        return b"\x7fELF", "_Zk"

    monkeypatch.setattr(cuda_modules, "compiled", compile)
    for _ in range(2):
        assert cuda_modules.keep("k_0", "", SOURCE, INPUTS, OUTPUTS)
    (text,) = compiled
    assert "utils.cuh" not in text
    assert "using Strides" in text
    theirs = cuda_modules.kernel_text("custom_kernel_k_0", "", SOURCE, INPUTS, OUTPUTS)
    name = cuda_modules.module_name("custom_kernel_k_0", theirs)
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.ptx", f"{name}.txt"]
    assert (folder / f"{name}.ptx").read_bytes() == b"\x7fELF"
    assert (folder / f"{name}.txt").read_text() == "mlx::core::cu::custom_kernel_k_0\t_Zk\n"
    for suffix in ("ptx", "txt"):  # one of them alone is no module
        (folder / f"{name}.{suffix}").unlink()
        assert cuda_modules.keep("k_0", "", SOURCE, INPUTS, OUTPUTS)
        assert len(list(folder.iterdir())) == 2
    assert len(compiled) == 3


@pytest.mark.parametrize("error", [RuntimeError("line 3: no"), OSError("no libnvrtc")])
def test_what_does_not_compile_here_is_left_to_mlx(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def compile(text: str, expression: str, options: Any) -> tuple[bytes, str]:
        raise error

    monkeypatch.setattr(cuda_modules, "compiled", compile)
    assert not cuda_modules.keep("k_0", "", SOURCE, INPUTS, OUTPUTS)
    assert not folder.exists()


def test_a_folder_that_takes_no_file_leaves_nothing_half_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_modules, "compiled", lambda *_: (b"x", "_Zk"))
    folder.write_text("in the way")
    assert not cuda_modules.keep("k_0", "", SOURCE, INPUTS, OUTPUTS)
    folder.unlink()
    folder.mkdir()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not cuda_modules.keep("k_0", "", SOURCE, INPUTS, OUTPUTS)
    assert not list(folder.iterdir())


def test_without_nvrtc_nothing_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise OSError("no libnvrtc")

    monkeypatch.setattr(cuda_modules, "_nvrtc", absent)
    assert cuda_modules.compiler.__wrapped__() == ""
    assert not cuda_modules.keep("k_0", "", SOURCE, INPUTS, OUTPUTS)
    assert not folder.exists()
