"""MLX's own Metal kernels, as the mlx-metal wheel for macOS ships them, on this machine.

The wheel is downloaded once with pip into the user's cache and only its Metal headers are kept;
nothing of it is part of this repository. Every launch below mirrors MLX's host code: the same
template arguments, function constants, buffer indices and threadgroup sizes.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import platformdirs
import pytest
from filelock import FileLock

from mlx_lm_openevolve.metalhost import LaunchResult, metal_function

VERSION = version("mlx")
CACHE = platformdirs.user_cache_path("mlx-lm-openevolve") / f"mlx-metal-{VERSION}"
KERNELS = "mlx/backend/metal/kernels"
BARRIER = re.compile(r"threadgroup_barrier\(mem_flags::\w+\);")
DTYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16_t"}
# Half a unit in the last place: what rounding to a dtype costs at most, relative to the value.
ROUNDING = {"float32": 2**-24, "float16": 2**-11, "bfloat16": 2**-8}
Floats = np.ndarray[Any, np.dtype[np.float64]]


def include_root() -> Path:
    """The folder to include MLX's Metal headers from; skips the test when there is no network."""
    CACHE.mkdir(parents=True, exist_ok=True)
    root = CACHE / "include"
    with FileLock(CACHE / "lock"):
        if not (root / KERNELS).is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                wheel = _download(Path(scratch))
                with zipfile.ZipFile(wheel) as archive:
                    for name in archive.namelist():
                        if name.startswith(f"mlx/include/{KERNELS}/"):
                            archive.extract(name, scratch)
                shutil.move(Path(scratch) / "mlx" / "include", root)
    return root


def text(name: str) -> str:
    """The text of one kernel file, from the wheel or, for .metal files, from MLX's repository."""
    root = include_root()
    if name.endswith(".h"):
        return (root / KERNELS / name).read_text()
    return _repository_file(f"{KERNELS}/{name}")


def generated(capfd: pytest.CaptureFixture[str], kernel: Any, **call: Any) -> str:
    """The source that MLX would give to Apple's compiler: exporting a call needs no GPU."""
    inputs = call.pop("inputs")
    arrays = [a for a in inputs if isinstance(a, mx.array)]

    def graph(*traced: mx.array) -> Any:
        rest = iter(traced)
        given = [next(rest) if isinstance(a, mx.array) else a for a in inputs]
        return kernel(inputs=given, verbose=True, **call)

    capfd.readouterr()
    with tempfile.TemporaryDirectory() as folder:
        mx.export_function(f"{folder}/graph.mlxfn", graph, *arrays)
    printed = re.fullmatch(
        r"Generated source code for `\w+`:\n```\n(.*)\n```\n", capfd.readouterr().out, re.S
    )
    assert printed is not None
    return printed[1]


def without_barrier(source: str, index: int) -> str:
    """`source` with its index-th threadgroup barrier taken out; lines keep their numbers."""
    found = list(BARRIER.finditer(source))[index]
    return source[: found.start()] + ";" + source[found.end() :]


def barrier_lines(source: str) -> list[int]:
    """The line of each threadgroup barrier."""
    return [source.count("\n", 0, m.start()) + 1 for m in BARRIER.finditer(source)]


def launch(
    source: str,
    kernel: str,
    buffers: Mapping[int, mx.array | bytes | Out],
    groups: tuple[int, int, int] | None = None,
    threadgroup: tuple[int, int, int] = (1, 1, 1),
    constants: Mapping[int, bool | int] | None = None,
    **options: Any,
) -> LaunchResult:
    """Runs `kernel`, as `name<arguments>`, with `buffers` by index; MLX's headers are found.

    groups: the grid in threadgroups; or `grid`, in threads.
    """
    plain = source.replace("\N{COPYRIGHT SIGN}", "(c)")  # sources here are ASCII
    function = metal_function(
        plain, kernel, constants=constants or {}, include_root=str(include_root())
    )
    arguments: list[Any] = [None] * (max(buffers) + 1)
    outputs = []
    for index, value in buffers.items():
        arguments[index] = value
        if isinstance(value, Out):
            arguments[index] = mx.zeros(value.shape, value.dtype)
            outputs.append(index)
    return function(
        arguments, threadgroup=threadgroup, threadgroups=groups, outputs=outputs, **options
    )


def attention_params(
    batch: int,
    heads: int,
    head_dim: int,
    lengths: tuple[int, int],
    gqa: int,
    scale: float,
    block: tuple[int, int],
    strides: tuple[tuple[int, ...], ...],
) -> bytes:
    """steel/attn/params.h: AttnParams. `strides` are those of Q, K, V and O without the last."""
    (q_len, k_len), (bq, bk) = lengths, block
    blocks = -(-q_len // bq), -(-k_len // bk), q_len // bq, k_len // bk
    rest = q_len % bq, k_len % bk, k_len - q_len
    flat = (s for three in strides for s in three)
    head = batch, heads, head_dim, q_len, k_len, gqa, scale
    return struct.pack("=6if7i12q", *head, *blocks, *rest, *flat)


@dataclass(frozen=True)
class Out:
    """An output buffer."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


def packed(fmt: str, *values: float) -> bytes:
    """Bytes of a `constant` argument, in struct's notation."""
    return struct.pack("=" + fmt, *values)


def wide(a: mx.array) -> Any:
    """In float64; booleans as they are."""
    return np.array(a if a.dtype == mx.bool_ else a.astype(mx.float32)).astype(
        bool if a.dtype == mx.bool_ else np.float64
    )


def random_array(dtype: str, *shape: int, seed: int = 0) -> mx.array:
    """Normal deviates."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    made = mx.array(values).astype(getattr(mx, dtype))
    mx.eval(made)
    return made


def assert_right(done: LaunchResult, expected: Floats, tolerance: float, output: int = 0) -> None:
    """No finding, and an output that is right to `tolerance` of the largest value."""
    assert done.ok, "\n".join(str(f) for f in done.findings)
    got = wide(done.outputs[output])
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= tolerance


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    command += [
        "--only-binary=:all:",
        "--platform",
        "macosx_14_0_arm64",
        "--python-version",
        "3.11",
    ]
    command += ["--retries", "1", "--timeout", "30", f"mlx-metal=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        skip_offline("pypi.org")
        raise RuntimeError(f"pip download of mlx-metal {VERSION} failed: {done.stderr.strip()}")
    return next(folder.glob("*.whl"))


def _repository_file(path: str) -> str:
    checkout = os.environ.get("MLX_SOURCE")
    if checkout:
        return (Path(checkout) / path).read_text()
    kept = CACHE / Path(path).name
    with FileLock(CACHE / "lock"):
        if not kept.exists():
            address = f"https://raw.githubusercontent.com/ml-explore/mlx/v{VERSION}/{path}"
            try:
                with urllib.request.urlopen(address, timeout=20) as answer:
                    kept.write_bytes(answer.read())
            except urllib.error.URLError as error:
                skip_offline("raw.githubusercontent.com")
                raise RuntimeError(f"{address}: {error}") from error
    return kept.read_text()


def skip_offline(host: str) -> None:
    """Skip the test where a host cannot be reached."""
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError as error:
        pytest.skip(f"needs the network: {host} cannot be reached ({error})")
