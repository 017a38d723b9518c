"""Device: the chip that a verdict counts for, and the fingerprint that keeps it honest."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import mlx.core as mx

from .names import BACKENDS

__all__ = [
    "BACKENDS",
    "FACTS",
    "Device",
    "detect",
    "fingerprint",
    "on_cpu",
    "release",
    "version_of",
    "working_set",
]

# What the defaults of a kernel's params may see of the chip beside the workload: Device.facts.
FACTS = frozenset(
    {"device_name", "device_cores", "device_memory", "device_cache", "device_shared_memory"}
)
# Bytes of threadgroup memory that a launch may declare: Apple's limit on every chip, which the host
# keeps to, and CUDA's for arrays of a size that is known when it compiles.
_SHARED_MEMORY = {"metal": 32 << 10, "cuda": 48 << 10, "host": 32 << 10}
_MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT of NVIDIA's driver


@dataclass(frozen=True)
class Device:
    """A chip as this library sees it.

    slug: name of its folder in a registry, such as apple-m3-max-40 or nvidia-h100-80gb-hbm3.
    name: as the driver spells it.  architecture: applegpu_g15s, sm_90, x86_64.
    cores: GPU cores or multiprocessors, on the host those of the CPU; 0 where unknown.
    memory: bytes of device memory; 0 where unknown.  cache: bytes that its last-level cache has at
    most; 0 on the host.
    """

    backend: str
    slug: str
    name: str
    architecture: str
    cores: int = 0
    memory: int = 0
    cache: int = 0

    def facts(self) -> dict[str, int | str | bool]:
        """What the defaults of a kernel's params may see, by the names in FACTS."""
        return {
            "device_name": self.name,
            "device_cores": self.cores,
            "device_memory": self.memory,
            "device_cache": self.cache,
            "device_shared_memory": _SHARED_MEMORY[self.backend],
        }


def slugify(text: str) -> str:
    """`text` in lower case with every run of other characters a dash; never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "unknown"


@functools.cache  # `list` asks with every verdict
def version_of(package: str) -> str:
    """Installed version of `package`, "" where it is not installed or its metadata do not say."""
    try:
        version: Any = metadata.version(package)  # None where the metadata lack it
    except Exception:  # not installed, or metadata that cannot be read: which error depends on how
        return ""
    return version if isinstance(version, str) else ""


def release(version: str) -> tuple[int, ...]:
    """Major and minor of a version, () where it names none."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _command(*argv: str, seconds: float = 2) -> str:
    """Standard output of a short system command, "" where it fails or takes longer. Bytes that are
    no UTF-8 become replacement characters."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


def _said(ask: Callable[[], str]) -> str:
    """What Python's `platform` says, "" where it raises: it reads files and runs `uname`, whose
    bytes may be any."""
    try:
        return ask()
    except Exception:
        return ""


def _info(device: Any) -> dict[str, Any]:
    try:
        return dict(mx.device_info(device))
    except Exception:  # MLX raises what its driver raises; every reader below copes with {}
        return {}


def _text(info: dict[str, Any], key: str) -> str:
    value = info.get(key)
    return value if isinstance(value, str) else ""


def _bytes(info: dict[str, Any], key: str) -> int:
    """A size, 0 where `info` has none or no number."""
    try:
        return max(0, int(info.get(key) or 0))
    except (TypeError, ValueError, OverflowError):
        return 0


def working_set() -> int:
    """Bytes that the GPU's driver says may be in use at once; 0 where it says nothing."""
    return _bytes(_info(mx.gpu), "max_recommended_working_set_size")


def on_cpu() -> bool:
    """Whether MLX puts the next operation on the CPU: as the default device says, or the stream of
    a `with mx.stream(...)`."""
    return mx.default_device().type is mx.cpu


def _apple() -> Device:
    info = _info(mx.gpu)
    name = _command("sysctl", "-n", "machdep.cpu.brand_string") or _text(info, "device_name")
    # An M3 Max is sold with 30 and with 40 GPU cores; only the I/O registry tells them apart.
    # One level of it (-d1): what lies below the accelerator grows with the programs that use it.
    registry = _command("ioreg", "-rd1", "-c", "AGXAccelerator")
    count = re.search(r'"gpu-core-count"\s*=\s*([0-9]{1,6})\b', registry)
    cores = int(count.group(1)) if count else 0
    slug = slugify(name or "apple") + (f"-{cores}" if cores else "")
    return Device(
        backend="metal",
        slug=slug,
        name=name or "Apple GPU",
        architecture=_text(info, "architecture") or os.environ.get("MLX_METAL_GPU_ARCH", ""),
        cores=cores,
        memory=_bytes(info, "memory_size"),
        # The system-level cache of Apple's chips is at most 96 MB (M-Ultra); Apple publishes none.
        cache=96 << 20,
    )


def _multiprocessors() -> int:
    """Those of the GPU that MLX uses, the first one visible, as NVIDIA's driver counts them; 0
    where there is none. MLX does not say, and it has loaded the driver before."""
    import ctypes  # for no other backend

    try:
        driver = ctypes.CDLL("libcuda.so.1")
        chip, count = ctypes.c_int(), ctypes.c_int()
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(chip), 0)
            or driver.cuDeviceGetAttribute(ctypes.byref(count), _MULTIPROCESSORS, chip)
        )
    except (OSError, AttributeError):
        return 0
    return 0 if failed else count.value


def _nvidia() -> Device:
    info = _info(mx.gpu)
    name = _text(info, "device_name") or "NVIDIA GPU"
    return Device(
        backend="cuda",
        slug=slugify(name),
        name=name,
        architecture=_text(info, "architecture"),
        cores=_multiprocessors(),
        memory=_bytes(info, "total_memory"),
        cache=128 << 20,  # more than the L2 of any NVIDIA chip up to Blackwell (126 MB)
    )


@functools.cache
def detect(backend: str | None = None) -> Device:
    """The device of `backend`, or of the GPU that MLX runs on, or `host` where there is none.

    Never raises: an odd environment yields a device with unknown facts, not an error.
    """
    if backend is None:
        if mx.metal.is_available():
            backend = "metal"
        else:
            cuda = getattr(mx, "cuda", None)
            backend = "cuda" if cuda is not None and cuda.is_available() else "host"
    if backend == "metal":
        return _apple()
    if backend == "cuda":
        return _nvidia()
    machine = platform.machine() or "unknown"
    name = _said(platform.processor) or machine
    return Device("host", "host", name, machine, os.cpu_count() or 0)


def fingerprint(
    device: Device, gate: str | Mapping[str, str], *, evidence: bool = True
) -> dict[str, Any]:
    """What a verdict must share with this process to count: chip, architecture, minor version of
    mlx, version of the gate (those for several families where they are handed over), on Metal also
    the major version of macOS, which brings the compiler and the driver. With `evidence` under
    `also` what it need not."""
    mlx = version_of("mlx")
    must = {
        "device": device.slug,
        "architecture": device.architecture,
        "mlx": ".".join(mlx.split(".")[:2]),
        "gate": gate,
    }
    if device.backend == "metal":
        must["macos"] = _macos()
    if not evidence:
        return must
    return {
        **must,
        "also": {
            "mlx": mlx,
            "mlx_lm": version_of("mlx-lm"),
            "python": platform.python_version(),
            "os": _said(platform.platform),
            "driver": _driver(device.backend),
        },
    }


@functools.cache
def _macos() -> str:
    """Major version of macOS, such as "15"; "" elsewhere."""
    major = _said(lambda: platform.mac_ver()[0].split(".")[0])
    if major in ("10", "16"):  # what a Python built for an older macOS is told, on every later one
        darwin = int(os.uname().release.split(".")[0])
        major = str(darwin - 9 if darwin < 25 else darwin + 1)
    return major


@functools.cache
def _driver(backend: str) -> str:
    if backend != "cuda":
        return ""
    # It may first have to load the driver. Only evidence has this, so no start of a program waits.
    query = ("--query-gpu=driver_version", "--format=csv,noheader")
    lines = _command("nvidia-smi", *query, seconds=10)
    return lines.splitlines()[0] if lines else ""
