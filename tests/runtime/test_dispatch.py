"""The dispatcher with mlx-lm's own function and caches; kernels run on the host backend."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.base as base
import mlx_lm.models.qwen3 as qwen3
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from samples import accepted, store_correct
from serving import BUCKETS, attention, close, enable, hits

import mlx_lm_openevolve
from mlx_lm_openevolve import backends, errors
from mlx_lm_openevolve.device import Device
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.reference.baseline import sdpa
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.ops.base import ON_CPU
from mlx_lm_openevolve.runtime.dispatch import Router
from mlx_lm_openevolve.runtime.planner import Plan, Planner


def generate(model: qwen3.Model, tokens: int = 12) -> list[int]:
    prompt = mx.arange(1, 20) % 128
    found = []
    for token, _ in generate_step(prompt, model, max_tokens=tokens):
        found.append(int(token))
    return found


def test_a_proven_kernel_serves_decode_and_prefill_goes_to_sdpa(proven: Kernel) -> None:
    decode, prefill = attention(), attention(q_len=40, kv_len=40)
    want = base.scaled_dot_product_attention(**decode)
    stock = base.scaled_dot_product_attention(**prefill)
    enable()
    assert close(base.scaled_dot_product_attention(**decode), want)
    assert mx.array_equal(base.scaled_dot_product_attention(**prefill), stock)
    info = mlx_lm_openevolve.get_optimization_info()
    served, refused = info["workloads"].values()
    assert (served["kernel"], served["hits"], served["fallbacks"]) == (proven.id, 1, 0)
    assert (refused["kernel"], refused["hits"], refused["fallbacks"]) == (None, 0, 1)
    assert refused["reason"] == "no kernel applies"
    json.dumps(info)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(attention(cache=None), id="no cache"),
        pytest.param(attention(dtype=mx.float32), id="a dtype without a verdict"),
        pytest.param(attention(queries=attention(dtype=mx.float32)["queries"]), id="mixed dtypes"),
        pytest.param(attention(sinks=mx.zeros((4,), mx.bfloat16)), id="sinks without a verdict"),
        pytest.param(attention(mask=mx.ones((1, 1, 1, 20), mx.bool_)), id="mask without a verdict"),
        pytest.param(attention(q_len=9, kv_len=4), id="more queries than keys"),
        pytest.param(attention(mask=mx.zeros((1, 4, 1, 20), mx.int32)), id="mask of integers"),
    ],
)
def test_what_no_kernel_may_serve_is_the_originals_result_bit_for_bit(
    proven: Kernel, call: dict[str, Any]
) -> None:
    want = base.scaled_dot_product_attention(**call)
    enable()
    assert mx.array_equal(base.scaled_dot_product_attention(**call), want)
    assert hits() == 0


@pytest.mark.parametrize("backend", ["metal", "cuda"])
@pytest.mark.parametrize("packed", [False, True])
def test_where_the_default_device_is_the_cpu_no_kernel_is_raced_or_run_on_the_gpu(
    backend: str, packed: bool, home: Path, copy_first: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, ran = [], []

    def build(kernel: Kernel, params: Any, exact: Workload) -> Any:
        return lambda *given: ran.append(exact) or sdpa(exact)(*given)  # type: ignore[func-returns-value]

    def plan(bucket: Any) -> Plan:
        planned.append(bucket)
        return Plan(bucket, "accepted", copy_first, accepted(bucket))

    planner = Planner(Device(backend, "chip", "Chip", "arch"), [Registry(home)])
    monkeypatch.setattr(planner, "plan", plan)
    monkeypatch.setattr(backends.get(backend), "build", build)
    router = Router(OP, planner)
    patched = router.wrap(base.scaled_dot_product_attention)
    call = attention()
    if packed:
        call |= {name: mx.quantize(call[name], bits=8) for name in ("keys", "values")}
        call["cache"] = QuantizedKVCache()

    def ask(attend: Any) -> mx.array:
        # mlx-lm's quantised attention scales its queries in place.
        answer: mx.array = attend(**call | {"queries": mx.array(call["queries"])})
        return answer

    want = ask(base.scaled_dot_product_attention)

    def on_cpu() -> None:
        assert mx.array_equal(ask(patched), want)

    on_cpu()  # a Linux without a GPU
    assert (planned, ran) == ([], [])
    with monkeypatch.context() as gpu:
        gpu.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
        ask(patched)
        assert (len(planned), len(ran)) == (1, 2)  # built and tried, then served
    for stream in (mx.cpu, mx.new_stream(mx.cpu)):
        with mx.stream(stream):
            on_cpu()
    assert (len(planned), len(ran)) == (1, 2)
    assert router.fallbacks() == {ON_CPU: 3}


def test_wrong_arguments_raise_what_stock_raises(proven: Kernel) -> None:
    bad = attention(keys=attention(kv_len=30)["keys"])
    with pytest.raises(ValueError, match="must match") as stock:
        base.scaled_dot_product_attention(**bad)
    enable()
    with pytest.raises(ValueError, match="must match") as ours:
        base.scaled_dot_product_attention(**bad)
    assert str(ours.value) == str(stock.value)
    with pytest.raises(TypeError, match="surprise"):
        base.scaled_dot_product_attention(**attention(), surprise=1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 19), (2, 1, 1, 20), (3, 20), (1, 1, 1, 1, 20)])
def test_a_mask_that_does_not_fit_never_reaches_a_kernel(
    home: Path, decode_kernel: Kernel, shape: tuple[int, ...]
) -> None:
    masked = [replace(bucket, mask="bool") for bucket in BUCKETS]
    store_correct(home, decode_kernel, masked)
    bad = attention(mask=mx.ones(shape, mx.bool_))
    with pytest.raises(ValueError, match=r"broadcast|shape|dimensions") as stock:
        mx.eval(base.scaled_dot_product_attention(**bad))
    enable()
    fits = attention(mask=mx.ones((20,), mx.bool_))
    base.scaled_dot_product_attention(**fits)
    assert hits() == 1
    with pytest.raises(ValueError, match=r"broadcast|shape|dimensions") as ours:
        mx.eval(base.scaled_dot_product_attention(**bad))
    assert str(ours.value) == str(stock.value)
    assert hits() == 1


def test_generation_is_the_same_and_uses_the_kernel(
    proven: Kernel, tiny_model: qwen3.Model
) -> None:
    def logits() -> mx.array:
        cache = make_prompt_cache(tiny_model)
        tiny_model(mx.arange(19)[None], cache=cache)
        return tiny_model(mx.array([[7]]), cache=cache)

    want = logits()
    enable()
    assert close(logits(), want)
    assert hits() == tiny_model.args.num_hidden_layers


def test_enabled_in_one_thread_generates_in_another(
    proven: Kernel, tiny_model: qwen3.Model
) -> None:
    enable()
    generate(tiny_model, 2)
    before = hits()
    found: list[Any] = []

    def work() -> None:
        try:
            with mx.stream(mx.new_stream(mx.default_device())):
                found.append(generate(tiny_model, 6))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [generate(tiny_model, 6)]
    assert hits() > before


def test_under_compile_a_host_call_returns_the_original(proven: Kernel) -> None:
    call = attention()
    want = base.scaled_dot_product_attention(**call)
    enable()

    def step(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return base.scaled_dot_product_attention(q, k, v, call["cache"], 0.125, None)

    arrays = (call["queries"], call["keys"], call["values"])
    assert close(mx.compile(step)(*arrays), want)
    assert hits() == 0
    assert close(step(*arrays), want)
    assert hits() == 1
    assert close(mx.compile(step)(*arrays), want)


def test_gradients_through_a_served_call_are_sdpas(proven: Kernel) -> None:
    call = attention()

    def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        out = base.scaled_dot_product_attention(q, k, v, call["cache"], 0.125, None)
        return out.astype(mx.float32).square().sum()

    arrays = (call["queries"], call["keys"], call["values"])
    want = mx.grad(loss, argnums=(0, 1, 2))(*arrays)
    enable()
    got = mx.grad(loss, argnums=(0, 1, 2))(*arrays)
    assert hits() > 0
    assert all(close(a, b) and mx.any(a != 0).item() for a, b in zip(got, want, strict=True))


def test_training_is_untouched(proven: Kernel, tiny_model: qwen3.Model) -> None:
    tokens = mx.arange(24)[None] % 128

    def loss(model: nn.Module) -> mx.array:
        logits = model(tokens[:, :-1])
        return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")

    step = nn.value_and_grad(tiny_model, loss)
    stock, stock_gradient = step(tiny_model)
    enable()
    ours, gradient = step(tiny_model)
    assert mx.array_equal(ours, stock)
    name = "q_proj"
    assert mx.array_equal(
        gradient["model"]["layers"][0]["self_attn"][name]["weight"],
        stock_gradient["model"]["layers"][0]["self_attn"][name]["weight"],
    )


def test_a_kernel_that_does_not_run_is_left_to_sdpa(home: Path, copy_first: Kernel) -> None:
    """Even with a (forged) verdict: V[0] is no average, which the first evaluation sees."""
    broken = Kernel.from_parts(
        copy_first.meta, {"copy.metal": copy_first.sources["copy.metal"] + "\nsyntax error"}
    )
    Registry(home).add(broken)
    store_correct(home, broken, BUCKETS)
    call = attention()
    want = base.scaled_dot_product_attention(**call)
    enable()
    assert mx.array_equal(base.scaled_dot_product_attention(**call), want)
    (row,) = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    assert "does not run" in row["reason"]
    assert row["fallbacks"] == 1


def test_the_kill_switch_leaves_mlx_lm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = [base.scaled_dot_product_attention]
    monkeypatch.setenv("MLX_LM_OPENEVOLVE", "0")
    assert not enable()["enabled"]
    assert base.scaled_dot_product_attention is stock[0]


def test_the_context_manager_restores_what_was_active() -> None:
    stock = [base.scaled_dot_product_attention]
    with mlx_lm_openevolve.optimizations(backend="host", gate="stored") as outer:
        assert outer["enabled"]
        with mlx_lm_openevolve.optimizations(backend="host", require_faster=False) as inner:
            assert inner["require_faster"] is False
        assert mlx_lm_openevolve.get_optimization_info()["gate"] == "stored"
        assert base.scaled_dot_product_attention is not stock[0]
    assert base.scaled_dot_product_attention is stock[0]
    assert not mlx_lm_openevolve.get_optimization_info()["enabled"]


def test_a_replacement_held_by_another_wrapper_steps_aside_when_disabled(proven: Kernel) -> None:
    enable()
    held = [base.scaled_dot_product_attention]
    mlx_lm_openevolve.disable_optimizations()
    call = attention()
    want = base.scaled_dot_product_attention(**call)
    assert mx.array_equal(held[0](**call), want)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"backend": "tpu"}, errors.UsageError, "metal, cuda, host"),
        ({"gate": "off"}, errors.UsageError, "auto, stored"),
        ({"backend": "metal"}, errors.BackendError, "no Metal GPU"),
        ({"path": "best_program.py"}, errors.UsageError, "mlx-lm-openevolve import"),
        ({"path": "/nowhere"}, errors.KernelError, "kernel.json"),
    ],
)
def test_wrong_input_is_one_clear_line_and_changes_nothing(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    if arguments.get("backend") == "metal" and mx.metal.is_available():
        pytest.skip("this machine has a Metal GPU")
    stock = [base.scaled_dot_product_attention]
    with pytest.raises(error, match=says) as raised:
        mlx_lm_openevolve.enable_optimizations(**arguments)
    assert "\n" not in str(raised.value)
    assert base.scaled_dot_product_attention is stock[0]


def test_a_failed_enable_keeps_what_was_enabled() -> None:
    enable()
    active = [base.scaled_dot_product_attention]
    with pytest.raises(errors.UsageError):
        mlx_lm_openevolve.enable_optimizations(gate="off")
    assert base.scaled_dot_product_attention is active[0]
    assert mlx_lm_openevolve.get_optimization_info()["enabled"]


def test_old_packages_are_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm_openevolve import device

    monkeypatch.setattr(device, "version_of", lambda package: "0.20.1")
    with pytest.raises(errors.UnsupportedVersionError, match=r"mlx 0\.20\.1 is older than 0\.32"):
        enable()


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_an_mlx_whose_gpu_errors_cannot_be_caught_is_refused(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm_openevolve import device
    from mlx_lm_openevolve.runtime import api

    versions = {"mlx": "0.31.2", "mlx-lm": "0.31.0"}
    monkeypatch.setattr(device, "version_of", versions.__getitem__)
    monkeypatch.setattr(sys, "platform", system)
    says = r"^mlx 0\.31\.2 is older than 0\.32$"
    with pytest.raises(errors.UnsupportedVersionError, match=says) as raised:
        enable()
    assert "\n" not in str(raised.value)
    assert not mlx_lm_openevolve.get_optimization_info()["enabled"]
    versions["mlx"] = "0.32.0"
    api._check_versions()


def test_a_corrupt_registry_is_moved_aside_and_sdpa_serves(home: Path, proven: Kernel) -> None:
    for path in (home / "v2" / "devices" / "host").glob("*.json"):
        path.write_text("{")
    call = attention()
    want = base.scaled_dot_product_attention(**call)
    enable()
    assert mx.array_equal(base.scaled_dot_product_attention(**call), want)
    assert list((home / "v2" / "quarantine").iterdir())


SCRIPT = """
print("started")
import mlx_lm_openevolve
mlx_lm_openevolve.enable_optimizations(backend="host", gate="stored", require_faster=False)
import mlx.core as mx
from mlx_lm.models.cache import KVCache
from mlx_lm.models.qwen3 import scaled_dot_product_attention as attention
q = mx.ones((1, 4, 1, 64), mx.bfloat16)
k = mx.ones((1, 2, 20, 64), mx.bfloat16)
print(attention(q, k, k, cache=KVCache(), scale=1.0, mask=None).sum().item())
info = mlx_lm_openevolve.get_optimization_info()
print(sum(row["hits"] for row in info["workloads"].values()))
"""


def test_an_unguarded_script_works(proven: Kernel, tmp_path: Path) -> None:
    """No `if __name__` guard: whatever starts a process must not rerun the user's script."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["started", "256.0", "1"]
