from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from odd import ODD, changed
from samples import COPY_FIRST, kernel_meta

from mlx_lm_openevolve.device import Device, detect
from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.attention.workload import Workload

WORKLOAD = Workload(3, 8, 2, 1, 1000, 64, 64, "bfloat16")


def test_a_folder_round_trips_with_its_id(copy_first: Kernel, tmp_path: Path) -> None:
    copy_first.save(tmp_path / "k")
    loaded = Kernel.load(tmp_path / "k")
    assert loaded == copy_first
    assert len(loaded.id) == 12


def test_the_id_follows_the_content_and_nothing_else(copy_first: Kernel) -> None:
    shuffled = json.loads(json.dumps(kernel_meta(), sort_keys=True))
    assert Kernel.from_parts(shuffled, {"copy.metal": COPY_FIRST}).id == copy_first.id
    assert Kernel.from_parts(kernel_meta(), {"copy.metal": COPY_FIRST + " "}).id != copy_first.id
    assert Kernel.from_parts(kernel_meta(name="x"), {"copy.metal": COPY_FIRST}).id != copy_first.id


def test_launch_expressions_see_the_exact_batch_and_the_bucket_of_kv_len() -> None:
    meta = kernel_meta()
    meta["launches"][0]["grid"] = ["threads", "batch", "kv_len"]
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    (launch,) = kernel.launches(WORKLOAD, {"threads": 16})
    assert launch.grid == (16, 3, 1024)
    assert launch.outputs == (("out", (3, 8, 1, 64), "bfloat16"),)
    assert launch.template == (("D", 64), ("GROUP", 4), ("THREADS", 16))


def test_applies_and_defaults(copy_first: Kernel) -> None:
    assert copy_first.applies_to(WORKLOAD)
    assert not copy_first.applies_to(replace(WORKLOAD, q_len=2))
    assert copy_first.default_params(WORKLOAD) == {"threads": 32}


def test_a_default_sees_the_chip_and_nothing_else_does() -> None:
    meta = kernel_meta()
    meta["params"]["threads"]["default"] = "32 if device_cores > 16 else 16"
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    for cores, threads in ((8, 16), (40, 32)):
        chip = Device("metal", "x", "x", "x", cores)
        assert kernel.default_params(WORKLOAD, chip) == {"threads": threads}
    assert kernel.default_params(WORKLOAD) == kernel.default_params(WORKLOAD, detect())
    for field in ("applies", "grid"):
        odd = kernel_meta()
        if field == "applies":
            odd["applies"] = "device_cores > 16"
        else:
            odd["launches"][0]["grid"] = ["threads", "batch", "device_cores"]
        with pytest.raises(KernelError, match=f"{field}.*unknown name 'device_cores'"):
            Kernel.from_parts(odd, {"copy.metal": COPY_FIRST})


def test_a_default_that_follows_the_chip_is_one_of_the_values_on_every_chip() -> None:
    meta = kernel_meta()
    meta["params"]["threads"] |= {"default": "3 * device_cores", "values": [16, 32, 64]}
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    for cores, threads in ((0, 16), (7, 16), (9, 32), (17, 64), (1000, 64)):
        chip = Device("metal", "x", "x", "x", cores)
        assert kernel.default_params(WORKLOAD, chip) == {"threads": threads}
    for values, threads in (([131, 133], 131), ([133, 131], 133)):  # as near: the first
        meta["params"]["threads"] |= {"default": "device_cores", "values": values}
        kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
        chip = Device("cuda", "x", "x", "x", 132)
        assert kernel.default_params(WORKLOAD, chip) == {"threads": threads}
    meta["params"]["threads"]["default"] = "33"  # its writer's mistake
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    with pytest.raises(KernelError, match="threads is 33"):
        kernel.default_params(WORKLOAD)


def test_a_default_without_the_chip_s_names_asks_for_no_chip(
    copy_first: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_lm_openevolve.kernels.kernel.detect", lambda: 1 / 0)
    assert copy_first.default_params(WORKLOAD) == {"threads": 32}


def test_a_stage_is_left_out_when_its_condition_is_false() -> None:
    meta = kernel_meta()
    first = copy.deepcopy(meta["launches"][0])
    first["outputs"][0]["name"] = "partial"
    first["when"] = "threads > 16"
    meta["launches"].insert(0, first)
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    assert len(kernel.launches(WORKLOAD, {"threads": 16})) == 1
    assert len(kernel.launches(WORKLOAD, {"threads": 32})) == 2


@pytest.mark.parametrize(
    "params", [{}, {"threads": 17}, {"threads": True}, {"threads": 16, "x": 1}]
)
def test_params_out_of_range_are_refused(copy_first: Kernel, params: dict[str, Any]) -> None:
    with pytest.raises(KernelError, match="param"):
        copy_first.launches(WORKLOAD, params)


def _broken(field: str, value: Any) -> dict[str, Any]:
    meta = kernel_meta()
    target = meta
    *path, last = field.split(".")
    for name in path:
        target = target[int(name)] if name.isdigit() else target[name]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return meta


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 1),
        ("name", "no spaces"),
        ("name", None),
        ("op", "matmul"),
        ("variants", ["sparse"]),
        ("variants", []),
        ("origin", ""),
        ("applies", "import os"),
        ("applies", None),
        ("extra", 1),
        ("params", []),
        ("params.batch", {"default": "1", "values": [1]}),
        ("params.threads.values", ["16"]),
        ("params.threads.values", []),
        ("params.threads.default", "os"),
        ("launches", []),
        ("launches.0.source", "../copy.metal"),
        ("launches.0.inputs", ["secrets"]),
        ("launches.0.inputs", None),
        ("launches.0.outputs", []),
        ("launches.0.outputs.0.name", "values"),
        ("launches.0.outputs.0.name", "result"),
        ("launches.0.outputs.0.shape", "batch"),
        ("launches.0.template", {"D": "open"}),
        ("launches.0.grid", ["1", "1"]),
        ("launches.0.threadgroup", None),
        ("launches.0.math_mode", "wild"),
        ("launches.0.language", "hip"),
    ],
)
def test_a_malformed_kernel_names_the_file_and_the_field(
    field: str, value: Any, tmp_path: Path
) -> None:
    (tmp_path / "kernel.json").write_text(json.dumps(_broken(field, value)))
    (tmp_path / "copy.metal").write_text(COPY_FIRST)
    with pytest.raises(KernelError) as error:
        Kernel.load(tmp_path)
    message = str(error.value)
    assert "kernel.json" in message
    assert "\n" not in message
    assert any(part in message for part in field.split(".") if not part.isdigit()), message


def test_a_missing_source_is_named(copy_first_folder: Path) -> None:
    (copy_first_folder / "copy.metal").unlink()
    with pytest.raises(KernelError, match=r"copy\.metal: no such file"):
        Kernel.load(copy_first_folder)


@pytest.mark.parametrize(
    ("grid", "threads"),
    [(["0", "1", "1"], ["1", "1", "1"]), (["1", "1", "1"], ["1024", "2", "1"])],
)
def test_a_launch_out_of_range_is_refused(grid: list[str], threads: list[str]) -> None:
    meta = kernel_meta()
    meta["launches"][0] |= {"grid": grid, "threadgroup": threads}
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    with pytest.raises(KernelError):
        kernel.launches(WORKLOAD, {"threads": 16})


def test_nothing_outside_the_folder_is_read(copy_first: Kernel, tmp_path: Path) -> None:
    copy_first.save(tmp_path / "k")
    secret = tmp_path / "secret.metal"
    secret.write_text("secret")
    (tmp_path / "k" / "copy.metal").unlink()
    (tmp_path / "k" / "copy.metal").symlink_to(secret)
    with pytest.raises(KernelError, match="no such file"):
        Kernel.load(tmp_path / "k")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (1 << 20)])
def test_a_kernel_json_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "kernel.json").write_bytes(data)
    with pytest.raises(KernelError, match=r"kernel\.json"):
        Kernel.load(tmp_path)


def test_a_source_must_be_ascii_and_bounded(copy_first: Kernel, tmp_path: Path) -> None:
    for data in ("// \u00e9".encode(), b"/" * (1 << 19), b"  "):
        copy_first.save(tmp_path)
        (tmp_path / "copy.metal").write_bytes(data)
        with pytest.raises(KernelError, match=r"copy\.metal"):
            Kernel.load(tmp_path)


def test_a_launch_without_its_input_or_without_out_is_refused() -> None:
    meta = kernel_meta()
    meta["launches"][0]["when"] = "threads == 64"
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    with pytest.raises(KernelError, match="no launch writes 'out'"):
        kernel.launches(WORKLOAD, {"threads": 16})
    last = copy.deepcopy(meta["launches"][0])
    meta["launches"][0]["outputs"][0]["name"] = "partial"
    last |= {"inputs": ["partial"], "when": "threads > 0"}
    meta["launches"].append(last)
    kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
    with pytest.raises(KernelError, match="lacks 'partial'"):
        kernel.launches(WORKLOAD, {"threads": 16})


EXPRESSIONS = [
    *("(" * 200 + "1" + ")" * 200, "-" * 499 + "1", "9" * 400, "2 ** 62 * 2 ** 62", "1 // 0"),
    *("min()", "min((1, 2))", "abs('x')", "next_pow2(-5)", "next_pow2(2 ** 61)", "1 in 2"),
    *("'a' in 'abc'", "(1, 2)", "True", "'a'", "not " * 100 + "1", "batch.real", "max(*(1, 2))"),
]


def test_a_kernel_json_of_any_form_is_a_kernel_or_a_kernel_error() -> None:
    """And so is what its expressions come to: nothing else reaches a call, `list` or `show`."""
    whole = refused = 0
    for odd in [*ODD, *EXPRESSIONS]:
        for meta in changed(kernel_meta(), odd):
            try:
                kernel = Kernel.from_parts(meta, {"copy.metal": COPY_FIRST})
                if kernel.applies_to(WORKLOAD):
                    kernel.launches(WORKLOAD, kernel.default_params(WORKLOAD))
                whole += 1
            except KernelError:
                refused += 1
    assert refused > whole > 100
