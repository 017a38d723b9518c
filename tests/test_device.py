from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlx_lm_openevolve import device, ops

IOREG = '  "gpu-core-count" = 40\n  "model" = "Apple M3 Max"'


@pytest.fixture(autouse=True)
def fresh() -> Any:
    device.detect.cache_clear()
    yield
    device.detect.cache_clear()


def apple(monkeypatch: pytest.MonkeyPatch, commands: dict[str, str], info: Any) -> device.Device:
    def run(argv: Any, **_: Any) -> Any:
        if argv[0] not in commands:
            raise FileNotFoundError(argv[0])
        return subprocess.CompletedProcess(argv, 0, commands[argv[0]].encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(mx, "device_info", info)
    return device.detect("metal")


def test_this_machine_is_described() -> None:
    found = device.detect()
    assert found.backend in device.BACKENDS
    assert found == device.detect()


def test_an_m3_max_is_named_with_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found = apple(
        monkeypatch,
        {"sysctl": "Apple M3 Max\n", "ioreg": IOREG},
        lambda _: {"architecture": "applegpu_g15s", "memory_size": 64 << 30},
    )
    assert found.slug == "apple-m3-max-40"
    assert (found.cores, found.architecture, found.memory) == (40, "applegpu_g15s", 64 << 30)


def test_an_h100_is_named_by_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {
        "device_name": "NVIDIA H100 80GB HBM3",
        "architecture": "sm_90",
        "total_memory": 1 << 36,
    }
    monkeypatch.setattr(mx, "device_info", lambda _: info)
    found = device.detect("cuda")
    assert (found.slug, found.architecture) == ("nvidia-h100-80gb-hbm3", "sm_90")


class Driver:
    """NVIDIA's driver, which answers each of three calls with a code, and then with 132."""

    def __init__(self, *codes: int) -> None:
        self.codes = dict(
            zip(("cuInit", "cuDeviceGet", "cuDeviceGetAttribute"), codes, strict=True)
        )

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            if name == "cuDeviceGetAttribute" and args[1] == 16:
                args[0]._obj.value = 132
            return self.codes[name]

        return call


@pytest.mark.parametrize(
    ("codes", "cores"), [((0, 0, 0), 132), ((100, 0, 0), 0), ((0, 101, 0), 0), ((0, 0, 1), 0)]
)
def test_multiprocessors_are_the_driver_s_and_0_where_it_refuses(
    codes: tuple[int, int, int], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(*codes))
    assert device.detect("cuda").cores == cores


def test_the_facts_of_every_backend_have_the_names_that_defaults_may_use() -> None:
    for backend in device.BACKENDS:
        facts = device.Device(backend, "x", "x", "x", 40, 64 << 30, 96 << 20).facts()
        assert facts.keys() == device.FACTS
        assert facts["device_cores"] == 40
        assert facts["device_memory"] == 64 << 30
        assert 32 << 10 <= facts["device_shared_memory"] <= facts["device_cache"] == 96 << 20
    assert not any(device.FACTS & ops.get(name).fields for name in ops.FAMILIES)


def test_an_odd_environment_gives_unknown_facts_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Any) -> Any:
        raise RuntimeError("no device")

    monkeypatch.setenv("MLX_METAL_GPU_ARCH", "applegpu_g13g")
    found = apple(monkeypatch, {"sysctl": "", "ioreg": "garbage \xff"}, refuse)
    assert (found.slug, found.cores, found.architecture) == ("apple", 0, "applegpu_g13g")
    device.detect.cache_clear()
    assert device.detect("cuda").slug == "nvidia-gpu"


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Real programs, alone on PATH: each a shell script."""
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_programs_that_print_any_bytes_are_read_as_far_as_they_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = r"""printf '\377\376 "gpu-core-count" = 40\n\200'"""
    # The whole tree below the accelerator takes long and may name other counts.
    ioreg = f'case "$*" in "-rd1 -c AGXAccelerator") {count};; *) exit 1;; esac'
    sysctl, smi = r"printf 'Apple M3 Max \303\n'", r"printf '580.1\377\n580.2\n'"
    programs(tmp_path, monkeypatch, ioreg=ioreg, sysctl=sysctl, **{"nvidia-smi": smi})
    found = device.detect("metal")
    assert (found.slug, found.cores) == ("apple-m3-max-40", 40)
    device._driver.cache_clear()
    assert device._driver("cuda") == "580.1\ufffd"
    device._driver.cache_clear()


def test_a_uname_that_prints_any_bytes_is_no_error(tmp_path: Path) -> None:
    """Python's `platform` runs it, for the processor and for the name of the system."""
    uname = tmp_path / "uname"
    uname.write_text("#!/bin/sh\nprintf '\\377\\376'\n")
    uname.chmod(0o755)
    code = (
        "from mlx_lm_openevolve import device\nfound = device.detect('host')\n"
        "assert found.name\ndevice.fingerprint(found, '1')"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0


def test_no_start_waits_for_a_slow_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = "exec /bin/sleep 20"
    programs(tmp_path, monkeypatch, ioreg=slow, sysctl=slow)
    start = time.monotonic()
    found = device.detect("metal")
    assert time.monotonic() - start < 8
    assert found.cores == 0


@pytest.mark.parametrize("size", ["8 GB", b"\xff", float("inf"), float("nan"), [], -1, None])
def test_odd_facts_of_a_chip_are_unknown(monkeypatch: pytest.MonkeyPatch, size: Any) -> None:
    info: dict[str, Any] = {"memory_size": size, "total_memory": size}
    if not isinstance(size, str):
        info |= {"device_name": size, "architecture": size}
    huge = '"gpu-core-count" = ' + "9" * 5000
    found = apple(monkeypatch, {"ioreg": huge}, lambda _: info)
    assert (found.slug, found.cores, found.memory) == ("apple", 0, 0)
    found = device.detect("cuda")
    assert (found.slug, found.architecture, found.memory) == ("nvidia-gpu", "", 0)


@pytest.fixture
def unread() -> Iterator[None]:
    """No version is known yet, nor afterwards."""
    device.version_of.cache_clear()
    yield
    device.version_of.cache_clear()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "version", [None, KeyError("Version"), UnicodeDecodeError("x", b"", 0, 1, "")]
)
def test_a_package_with_odd_metadata_has_no_version(
    monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    def odd(_: str) -> Any:
        if isinstance(version, Exception):
            raise version
        return version

    monkeypatch.setattr(device.metadata, "version", odd)
    assert device.version_of("mlx") == ""
    assert device.fingerprint(device.detect("host"), "2.1")["mlx"] == ""


@pytest.mark.parametrize("name", ["", "///", "\u00e9\u00e9", "a" * 500, "../../x"])
def test_a_slug_is_always_a_safe_name(name: str) -> None:
    slug = device.slugify(name)
    assert 0 < len(slug) <= 80
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_fingerprint_on_metal_alone_holds_the_major_version_of_macos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metal = device.Device("metal", "apple-m3-max-40", "Apple M3 Max", "applegpu_g15s")
    for version, major in [("15.6.1", "15"), ("26.0", "26"), ("", "")]:
        device._macos.cache_clear()
        monkeypatch.setattr(platform, "mac_ver", lambda v=version: (v, ("", "", ""), "arm64"))
        assert device.fingerprint(metal, "2.1", evidence=False)["macos"] == major
    device._macos.cache_clear()
    for other in ("cuda", "host"):
        assert "macos" not in device.fingerprint(device.Device(other, "x", "x", "x"), "2.1")


@pytest.mark.parametrize(
    ("told", "darwin", "major"),
    [("10.16", "23.6.0", "14"), ("10.16", "24.6.0", "15"), ("16.0", "25.1.0", "26")],
)
def test_a_python_of_an_older_macos_does_not_hide_which_one_runs(
    told: str, darwin: str, major: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it a version of that time, the same from one release to the next."""
    monkeypatch.setattr(platform, "mac_ver", lambda: (told, ("", "", ""), "arm64"))
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=darwin))
    device._macos.cache_clear()
    assert device._macos() == major
    device._macos.cache_clear()


def test_the_fingerprint_keeps_patch_versions_apart() -> None:
    found = device.fingerprint(device.detect("host"), 3)
    assert found["gate"] == 3
    assert found["mlx"].count(".") == 1
    assert found["also"]["mlx"].startswith(found["mlx"])
