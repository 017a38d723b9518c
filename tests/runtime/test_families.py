"""Which families are on where nobody named them, why the others are not, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import base
from samples import FINGERPRINT, named, needs_clang, store_correct, timed

import mlx_lm_openevolve
from mlx_lm_openevolve import errors
from mlx_lm_openevolve.device import Device, detect, fingerprint
from mlx_lm_openevolve.kernels import lookup, records
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import STEP, TUNED_GATE, UNTIMED, Verdict, gate_version
from mlx_lm_openevolve.ops.linear import Bucket
from mlx_lm_openevolve.runtime import families
from mlx_lm_openevolve.runtime.planner import UNNAMED, Planner, advised

CHIP = Device("metal", "apple-m9", "Apple M9", "applegpu_g19")
OTHER = replace(CHIP, slug="apple-m1", architecture="applegpu_g13")
N, K = 48, 128
SLUG = Bucket(1, 1, N, K, "float32").slug
HOST: dict[str, Any] = {"backend": "host", "require_faster": False}


def verdict(family: str, device: Device = CHIP, **changes: Any) -> Verdict:
    """An accepted one, on a kernel of linear or on a whole step."""
    step = family == STEP
    made = Verdict(
        kernel="compiled" if step else named("quantized_rows").id,
        params={},
        workload="step-b1-llama" if step else SLUG,
        correct=True,
        faster=True,
        reason="accepted",
        fingerprint=fingerprint(device, gate_version(family)),
        timing=timed(1.5),
        kind=STEP if step else "kernel",
    )
    return replace(made, **changes)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return tmp_path / "shipped"


@pytest.fixture
def choose(home: Path, shipped: Path) -> Callable[..., families.Choice]:
    def of(named: Any = None, **options: Any) -> families.Choice:
        registries = [Registry(home), Registry(shipped, writable=False), lookup.shipped()]
        return families.choose(named, Planner(options.pop("device", CHIP), registries, **options))

    return of


@pytest.mark.parametrize(
    ("wanted", "variable", "found"),
    [
        (None, "", None),
        (None, " , ", None),
        ((), "", []),
        (("step", "attention"), "", ["attention", "step"]),
        (None, "step, linear", ["linear", "step"]),
        (("linear", "step"), "attention,step", ["step"]),
        (("linear",), "attention", []),
    ],
)
def test_who_named_what(
    wanted: Any, variable: str, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(families.OPS, variable)
    assert families.named(wanted) == found


@pytest.mark.parametrize("family", ["linear", STEP])
@pytest.mark.parametrize("ships", [False, True])
def test_a_family_is_on_where_a_verdict_of_this_chip_accepts_something_of_it(
    home: Path, shipped: Path, choose: Callable[..., families.Choice], family: str, ships: bool
) -> None:
    assert choose() == families.Choice(
        ["attention"], [], {"linear": families.NO_VERDICT, "step": families.NO_VERDICT}
    )
    root = shipped if ships else home
    Registry(root).publish(CHIP.slug, verdict(family))
    (other,) = {"linear", STEP} - {family}
    assert choose() == (["attention", family], [family], {other: families.NO_VERDICT})
    assert choose(device=OTHER).on == ["attention"]
    # Who is named is on whatever is stored, and who is not is off.
    assert choose([other]) == (
        [other],
        [],
        dict.fromkeys(("attention", family), families.NOT_NAMED),
    )
    assert choose([]).on == []


STAMP = fingerprint(CHIP, gate_version("linear"))


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": {**STAMP, "mlx": "0.1"}},
        {"fingerprint": {**STAMP, "gate": "1.1"}},
        {"fingerprint": {**STAMP, "gate": TUNED_GATE}},  # the user's own of that gate do not count
        {"fingerprint": {**STAMP, "architecture": "applegpu_g13"}},
        {"faster": False},
        {"faster": None, "timing": {}},
        {"correct": False},
        {"kind": "rewriting", "kernel": "padded"},
    ],
)
def test_what_does_not_count_or_is_not_accepted_switches_nothing_on(
    home: Path, choose: Callable[..., families.Choice], changes: dict[str, Any]
) -> None:
    Registry(home).publish(CHIP.slug, verdict("linear", **changes))
    assert choose().on == ["attention"]


@pytest.mark.parametrize(
    "changes", [{"kernel": "0123456789ab"}, {"workload": "linear-m1-n48-k128-float32-q4g64-later"}]
)
def test_a_verdict_that_nothing_can_run_by_switches_nothing_on(
    home: Path, choose: Callable[..., families.Choice], changes: dict[str, Any]
) -> None:
    """Its kernel is not there, or it is about a workload of a newer release."""
    Registry(home).publish(CHIP.slug, verdict("linear"))
    assert "linear" in choose().on
    (file,) = home.glob("v2/devices/*/linear-*.json")
    record = records.read(file)
    record["verdicts"][0].update(changes)
    records.write(file, record)
    assert choose().off["linear"] == families.NO_VERDICT


def test_a_way_of_steps_that_a_newer_release_made_switches_nothing_on(
    home: Path, choose: Callable[..., families.Choice]
) -> None:
    Registry(home).publish(CHIP.slug, verdict(STEP, kernel="compiled-otherwise"))
    assert choose().off[STEP] == families.NO_VERDICT
    Registry(home).publish(CHIP.slug, verdict(STEP))
    assert STEP in choose().on


def test_what_a_user_withdrew_is_accepted_no_more_although_it_ships(
    home: Path, shipped: Path, choose: Callable[..., families.Choice]
) -> None:
    ships = {**STAMP, "gate": TUNED_GATE}
    Registry(shipped).publish(CHIP.slug, verdict("linear", fingerprint=ships))
    assert "linear" in choose().on
    Registry(home).publish(CHIP.slug, verdict("linear", faster=False, reason="withdrawn"))
    assert "linear" not in choose().on


def test_what_is_merely_correct_counts_where_faster_is_not_asked_for(
    home: Path, choose: Callable[..., families.Choice]
) -> None:
    Registry(home).publish(CHIP.slug, verdict("linear", faster=False))
    assert "linear" not in choose().on
    assert "linear" in choose(require_faster=False).on
    off = choose(device=detect("host"), require_faster=False).off
    assert off[STEP] == families.ON_GPU, "`tune` makes no such verdict there"
    assert "`tune --backend host`" in off["linear"]
    host = choose(device=detect("host"))
    assert host.off == dict.fromkeys(("linear", STEP), families.NO_GPU)


def test_a_kernel_that_is_considered_alone_names_its_family(
    home: Path, choose: Callable[..., families.Choice]
) -> None:
    Registry(home).publish(CHIP.slug, verdict("linear"))
    Registry(home).publish(CHIP.slug, verdict(STEP))
    attention, linear = named("gqa_decode"), named("quantized_rows")
    alone = dict.fromkeys(("linear", STEP), families.ONE_KERNEL)
    assert choose(only=attention) == (["attention"], [], alone)
    assert choose(only=linear) == (["attention", "linear"], [], {STEP: families.ONE_KERNEL})
    assert choose(["attention", STEP], only=linear).on == ["attention"]


def test_a_damaged_file_switches_nothing_on(
    home: Path, choose: Callable[..., families.Choice]
) -> None:
    Registry(home).publish(CHIP.slug, verdict("linear"))
    (file,) = home.glob("v2/devices/*/linear-*.json")
    text = file.read_text()
    for damaged in (text.replace("1.5", "1.6"), "{", '{"verdicts": 3}'):
        file.write_text(damaged)
        assert choose().on == ["attention"]
    file.write_text(text)
    assert "linear" in choose().on


LOADED = """
import sys
import mlx_lm
import mlx_lm_openevolve
info = mlx_lm_openevolve.enable_optimizations(backend="host")
assert set(info["ops"]) == {"attention"} and set(info["off"]) == {"linear", "step"}, info
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache
import mlx.core as mx
x = mx.ones((1, 2, 1, 64), mx.bfloat16)
base.scaled_dot_product_attention(x, x, x, KVCache(), scale=1.0, mask=None)
names = ("mlx_lm_openevolve.ops.linear", "mlx_lm_openevolve.decode")
print([name for name in sys.modules if name.startswith(names)])
"""


def test_nothing_of_a_family_without_an_accepted_verdict_is_loaded(home: Path) -> None:
    """Also where verdicts of it lie there that are rejected, or of another version."""
    host, rejected = detect("host"), {"faster": False}
    for changes in (rejected, {"fingerprint": {**FINGERPRINT, "gate": "1.1"}, "params": {"a": 1}}):
        for family in ("linear", STEP):
            Registry(home).publish("host", verdict(family, host, **changes))
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def layer(rows: int) -> tuple[nn.QuantizedLinear, mx.array]:
    made = nn.QuantizedLinear.from_linear(nn.Linear(K, N, bias=False), group_size=64, bits=4)
    made.eval()
    return made, mx.random.normal((1, rows, K))


@needs_clang
def test_a_family_that_came_on_by_itself_serves_what_is_stored_and_gates_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("gated at first use")

    monkeypatch.setattr("mlx_lm_openevolve.gate.judge.judge", refused)
    original = nn.QuantizedLinear.__call__
    info = mlx_lm_openevolve.enable_optimizations(**HOST)
    assert (set(info["ops"]), info["off"]["linear"]) == (
        {"attention"},
        advised(families.NO_VERDICT, "host"),
    )
    assert nn.QuantizedLinear.__call__ is original
    store_correct(home, named("quantized_rows"), [Bucket(1, 1, N, K, "float32")])
    for path in (None, home):  # the user's registry, and one that is named in its place
        if path is not None:
            monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(home.parent / "empty"))
            assert set(mlx_lm_openevolve.enable_optimizations(**HOST)["ops"]) == {"attention"}
        info = mlx_lm_openevolve.enable_optimizations(path, **HOST)
        assert set(info["ops"]) == {"attention", "linear"}
        for rows in (1, 2):
            made, x = layer(rows)
            mx.eval(made(x))
        rows_ = mlx_lm_openevolve.get_optimization_info()["workloads"]
        found = [(row["hits"], row["reason"]) for row in rows_.values()]
        assert found == [(1, UNTIMED), (0, UNNAMED)]
    mlx_lm_openevolve.disable_optimizations()
    assert nn.QuantizedLinear.__call__ is original
    # Who names it has it gated, as ever.
    mlx_lm_openevolve.enable_optimizations(**HOST, ops=("linear",))
    made, x = layer(2)
    mx.eval(made(x))
    (row,) = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    assert "gated at first use" in row["reason"]


@needs_clang
def test_a_family_whose_verdicts_are_about_no_layer_that_is_met_leaves(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the first layer is met again: after a prompt, which no kernel serves, in a step."""
    store_correct(home, named("quantized_rows"), [Bucket(1, 1, N, K, "float32")])
    original = nn.QuantizedLinear.__call__

    def model(*widths: int) -> list[nn.QuantizedLinear]:
        made = [nn.QuantizedLinear.from_linear(nn.Linear(K, n, bias=False)) for n in widths]
        return [m.eval() for m in made]

    def run(layers: list[nn.QuantizedLinear], rows: int) -> None:
        x = mx.random.normal((1, rows, K))
        for m in layers:
            assert mx.array_equal(m(x), original(m, x))

    other, mixed = model(64, 96), model(64, N)
    for layers, ops, on in ((other, None, False), (mixed, None, True), (other, ("linear",), True)):
        mlx_lm_openevolve.enable_optimizations(**HOST, gate="stored", ops=ops)
        run(layers, 40)
        assert nn.QuantizedLinear.__call__ is not original
        run(layers, 2)
        assert (nn.QuantizedLinear.__call__ is not original) == on
        assert (mlx_lm_openevolve.get_optimization_info()["off"].get("linear") is None) == on
        run(layers, 2)
        mlx_lm_openevolve.disable_optimizations()
        assert nn.QuantizedLinear.__call__ is original
    info = mlx_lm_openevolve.enable_optimizations(**HOST)
    run(other, 40), run(other, 1)
    assert mlx_lm_openevolve.get_optimization_info()["off"]["linear"] == advised(
        families.UNMET, "host"
    )
    with mlx_lm_openevolve.optimizations(**HOST):
        assert nn.QuantizedLinear.__call__ is not original, "asked anew"
    assert info["off"].get("linear") is None


def test_attention_alone_is_named_by_the_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_correct(home, named("quantized_rows"), [Bucket(1, 1, N, K, "float32")])
    monkeypatch.setenv(families.OPS, "attention")
    stock = base.scaled_dot_product_attention
    with mlx_lm_openevolve.optimizations(**HOST) as info:
        assert set(info["ops"]) == {"attention"}
        assert info["off"] == dict.fromkeys(("linear", STEP), families.NOT_NAMED)
    assert base.scaled_dot_product_attention is stock
    monkeypatch.setenv(families.OPS, "nonsense")
    with pytest.raises(errors.UsageError, match="none of attention, linear, step"):
        mlx_lm_openevolve.enable_optimizations(**HOST)
