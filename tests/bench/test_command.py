"""`bench`: its options, what it prints and writes, and whole cases on the host in processes."""

from __future__ import annotations

import argparse
import io
import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import documentation
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import base
from mlx_lm.models.cache import make_prompt_cache
from rich.console import Console
from samples import named, shipped_in_metal, store_correct, timed

from mlx_lm_openevolve import errors, get_optimization_info, optimizations
from mlx_lm_openevolve.bench import cases
from mlx_lm_openevolve.bench import command as bench
from mlx_lm_openevolve.bench import model_configs as shapes
from mlx_lm_openevolve.bench import options as bench_options
from mlx_lm_openevolve.bench import worker as bench_worker
from mlx_lm_openevolve.bench.command import report
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.evolve.bench_kernel import bench_kernel
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import gate_versions
from mlx_lm_openevolve.ops import linear
from mlx_lm_openevolve.ops.attention.workload import Bucket
from mlx_lm_openevolve.runtime.patch import Patch

ROOT = Path(__file__).resolve().parents[2]
BUCKET = Bucket(1, 4, 2, 1, 16, 64, 64, "bfloat16")


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_options.add_arguments(parser)
    return parser.parse_args(words)


def test_presets_are_the_five_of_the_example_and_shapes_build_by_name() -> None:
    assert len(bench_options.PRESETS) == 5
    assert set(bench_options.SHAPES) == set(shapes.SHAPES)


@pytest.mark.parametrize("shape", bench_options.SHAPES)
def test_a_shape_is_what_mlx_lm_makes_of_it(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heads, masks and caches at full size; fewer and narrower layers, to be quick."""
    full = shapes.SHAPES[shape]
    small = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 96}
    if "n_routed_experts" in full:
        small |= {"moe_intermediate_size": 64, "n_routed_experts": 8}
    if "num_experts" in full:
        small |= {"moe_intermediate_size": 64, "num_experts": 8}
    if "layer_types" in full:
        assert len(full["layer_types"]) == full["num_hidden_layers"]
        small["layer_types"] = full["layer_types"][:6]
    head = full.get("head_dim") or full.get("qk_nope_head_dim")
    if head is None:  # what the heads share: it cannot be narrower
        head = full["hidden_size"] // full["num_attention_heads"]
        small["hidden_size"] = full["hidden_size"]
    monkeypatch.setitem(shapes.SHAPES, shape, {**full, **small})
    model = shapes.build(shape)
    asked = []
    original = base.scaled_dot_product_attention

    def attention(queries: mx.array, keys: mx.array, *rest: Any, **named: Any) -> mx.array:
        asked.append((queries.shape, keys.shape, queries.dtype))
        return original(queries, keys, *rest, **named)

    patch = Patch(base, "scaled_dot_product_attention", lambda _: attention)
    patch.install()
    cache = make_prompt_cache(model)
    try:
        outs = [model(mx.arange(5)[None], cache=cache), model(mx.array([[5]]), cache=cache)]
    finally:
        patch.restore()
    assert all(mx.all(mx.isfinite(out)).item() for out in outs)
    heads, kv_heads = full["num_attention_heads"], full["num_key_value_heads"]
    prompt = ((1, heads, 5, head), (1, kv_heads, 5, head), mx.bfloat16)
    kv_heads, head = (1, full["kv_lora_rank"]) if "kv_lora_rank" in full else (kv_heads, head)
    step = ((1, heads, 1, head), (1, kv_heads, 6, head), mx.bfloat16)
    assert asked == [prompt] * 6 + [step] * 6


@pytest.mark.parametrize("bits", bench_options.BITS)
@pytest.mark.parametrize("shape", ["llama-3.1-8b", "qwen3-0.6b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_weights_come_in_the_bits_that_are_asked_for(shape: str, bits: str) -> None:
    assert set(bench_options.BITS) == set(shapes.BITS)
    model = shapes.build(shape, bits, lazy=True)
    assert not model.training
    layers = dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))
    packed = {path: layer for path, layer in layers.items() if hasattr(layer, "bits")}
    assert not any(type(layer) in (nn.Linear, nn.Embedding) for layer in layers.values())
    kinds = {
        path: {"bits": layer.bits, "group_size": layer.group_size, "mode": layer.mode}
        for path, layer in packed.items()
    }
    # What mlx-lm's own predicates ask: routers in 8 bits; and gpt-oss's experts as published.
    router = {"bits": 8, "group_size": 64, "mode": "affine"}
    for path, kind in kinds.items():
        own = path.endswith(("mlp.gate", "router"))
        experts = shape == "gpt-oss-20b" and "experts" in path
        assert kind == (router if own else shapes.BITS["mxfp4" if experts else bits]), path
    assert "model.embed_tokens" in packed
    if bits != "mxfp4":
        assert packed["model.embed_tokens"].scales.dtype == mx.bfloat16


# Where stock cannot run on the quantised cache that was asked for, it did something else, faster.
@pytest.mark.parametrize(
    ("speed", "asked", "kept"),
    [
        (1.2, [], True),
        (0.9, [], False),
        (0.9, ["--blocks", "2"], False),
        (0.9, ["--kv-bits", "4"], True),
    ],
)
def test_a_slower_preset_fails_names_its_workloads_and_withdraws_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, speed: float, asked: list[str], kept: bool
) -> None:
    kernel = next(k for k in shipped_in_metal() if k.applies_to(BUCKET))
    store_correct(home, kernel, [BUCKET])
    (verdict,) = Registry(home).verdicts("host", BUCKET)
    Registry(home).publish(
        "host", replace(verdict, faster=True, reason="accepted", timing=timed(1.3))
    )
    (verdict,) = Registry(home).verdicts("host", BUCKET)
    row = {"kernel": kernel.id, "name": kernel.name, "params": {}, "verdict": verdict.to_json()}
    row |= {"reason": "accepted", "hits": 6, "fallbacks": 0}
    said = {"attention": {"fallbacks": {}, "unreached": []}}
    info = {"workloads": {BUCKET.slug: row}, "ops": said, "device_info": {"slug": "host"}}
    info["models"] = {}

    def answered(task: dict[str, Any], which: str) -> dict[str, Any]:
        if which == "logits":
            return {"hits": 2, "difference": 0.0, "stock": 1e-3, "patched": 1e-3}
        rate = 100.0 * (speed if which == "patched" else 1.0)
        trial = {"prompt_tps": 1.0, "generation_tps": rate, "peak_memory": 1.0, "total_time": 1.0}
        return {"trials": [trial], "tokens": [1, 2], "kv_bits": 0, "info": info}

    monkeypatch.setattr(cases, "ask", answered)
    options = parsed("--shape", "qwen3-0.6b", "--preset", "code_generation", *asked)
    ((name, task),) = bench.tasks(options)
    screen = io.StringIO()
    halves: list[dict[str, Any]] = []
    found = bench.run_case(name, task, options, Console(file=screen, width=200), halves.append)
    processes = range(1, 4 * options.blocks + 1)
    assert [sum(map(len, x["samples"].values())) for x in halves] == list(processes)
    assert halves[-1]["samples"] == found["samples"]
    assert found["ok"] == kept
    assert Registry(home).verdicts("host", BUCKET)[0].accepted == kept
    assert found["withdrawn"] == ([] if kept else [BUCKET.slug])
    assert (f"withdrawn: {BUCKET.slug}" in screen.getvalue()) != kept
    assert ("no floor" in screen.getvalue()) == bool(options.kv_bits)
    if not kept:
        assert f"0.900x, below 0.99x with kernels on {BUCKET.slug}" in screen.getvalue()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--shape"),
        (["--shape", "qwen3-0.6b", "--backend", "host"], "no GPU"),
        (["--model", "x", "-g", "9", "--preset", "code_generation", "--any-correct"], "-p and -g"),
        (["--model", "x", "-b", "2", "--draft", "x", "--any-correct"], "neither"),
        (["--model", "x", "-p", "1", "--any-correct"], "two tokens"),
        (["--model", "x", "--bits", "4", "--any-correct"], "has its own"),
        (["--shape", "qwen3-4b", "--ops", "attention,nonsense"], "'nonsense' is none of"),
        (["--model", "x", "-p", "0", "--any-correct"], "two tokens"),
        (["--model", "x", "-g", "0", "--any-correct"], "four of generation"),
        (["--model", "x", "-g", "0", "--preset", "code_generation", "--any-correct"], "-p and -g"),
        (["--kernel", "gqa_decode", "--output", "/nowhere/x.json"], "no file can be written"),
        (["--kernel", "gqa_decode", "--output", "/"], "no file can be written"),
        (["--kernel", "/nowhere"], "kernel.json"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    err = capsys.readouterr().err
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


def test_a_model_that_does_not_load_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--model", str(tmp_path), "--backend", "host", "--any-correct", "-p", "12", "-g", "4"]
    assert main(["bench", *words]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "arms"),
    [  # arms in processes of their own: those that docs/command-line.md starts, in CI
        pytest.param(["-b", "2"], "at_hand", id="batch"),
        pytest.param(["-b", "1"], None, id="alone", marks=pytest.mark.slow),
        pytest.param(["-b", "2"], None, id="batch in processes", marks=pytest.mark.slow),
        pytest.param(["--kv-bits", "8"], None, id="quantised", marks=pytest.mark.slow),
    ],
)
def test_a_case_on_the_host_end_to_end(
    home: Path,
    tiny_folder: Path,
    tmp_path: Path,
    more: list[str],
    arms: str | None,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if arms:
        request.getfixturevalue(arms)
    buckets = [
        replace(BUCKET, batch=batch, kv_len=kv_len, mask=mask)
        for batch, mask in ((1, "none"), (2, "bool"))
        for kv_len in (1, 2, 4, 8, 16, 32)
    ]
    quantised = {"kv_bits": 8, "kv_group": 64}
    buckets += [replace(bucket, **quantised) for bucket in buckets if bucket.batch == 1]
    for kernel in shipped_in_metal():
        store_correct(home, kernel, [bucket for bucket in buckets if kernel.applies_to(bucket)])
    output = tmp_path / "result.json"
    words = ["--model", str(tiny_folder), "--backend", "host", "--any-correct", *more]
    words += ["-p", "12", "-g", "4", "-n", "1", "--output", str(output), "--json"]
    code = main(["bench", *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert json.loads(output.read_text()) == result
    assert documentation.differs("bench", result) == ""
    (found,) = result["cases"]
    assert found["problems"] == []
    # Two processes, two layers, four decode steps in the warm-up and again in the trial.
    assert found["hits"] >= 2 * 2 * 2 * 3
    assert found["logits"]["hits"] == 2 * 8
    assert 0 < found["logits"]["stock"] < 0.05
    assert found["stock_kv_bits"] == found["kv_bits"]
    assert "generation_tps=" in err
    assert "greedy tokens equal" in err
    assert ("gqa_quantized" if "--kv-bits" in more else "gqa_decode") in err


@pytest.mark.usefixtures("at_hand")
def test_a_case_with_quantised_weights_on_the_host(
    home: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packed"
    mlx_lm.convert(str(tiny_folder), str(folder), quantize=True, q_bits=4, q_group_size=64)
    with optimizations(backend="host", gate="stored", ops=("linear",)):
        model = mlx_lm.load(str(folder))[0]
        model(mx.array([[1]]))
        seen = get_optimization_info()["workloads"]
    assert len(seen) == 4
    store_correct(home, named("quantized_rows"), [linear.OP.parse(slug).bucket() for slug in seen])
    words = ["--model", str(folder), "--backend", "host", "--any-correct", "--ops", "linear"]
    assert main(["bench", *words, "-p", "40", "-g", "4", "-n", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert documentation.differs("bench", result) == ""
    assert result["machine"]["gate"] == gate_versions()
    (found,) = result["cases"]
    assert found["problems"] == []
    assert set(found["routes"]) == set(seen)
    # Two layers with seven products each and the vocabulary's, in eight steps.
    assert found["logits"]["hits"] == 8 * 15
    assert 0 < found["logits"]["stock"] < 0.05
    # What is in float32 is the products alone, and stock's are one of the two.
    assert found["logits"]["patched"] <= cases.LOGITS_RATIO * found["logits"]["stock"]


@pytest.mark.parametrize("bits", bench_options.BITS)
def test_products_in_float32_are_those_of_the_weights(bits: str) -> None:
    plain = nn.Linear(128, 24)
    plain.bias = mx.arange(24, dtype=mx.float32) / 24
    plain.set_dtype(mx.bfloat16)
    layer = plain.to_quantized(**shapes.BITS[bits])
    kind = {name: getattr(layer, name) for name in ("group_size", "bits", "mode")}
    held = [layer.scales, layer.get("biases")]
    if bits != "mxfp4":
        held = [each.astype(mx.float32) for each in held]
    weight = np.array(mx.dequantize(layer.weight, *held, **kind, dtype=mx.float32), np.float64)
    x = mx.random.normal((3, 128)).astype(mx.bfloat16)
    want = np.array(x.astype(mx.float32)) @ weight.T + np.array(layer.bias.astype(mx.float32))
    for answer, limit in ((x, 4e-3), (x.astype(mx.float32), 1e-6)):
        got = linear.OP.exact(nn.QuantizedLinear.__call__)(layer, answer)
        assert got.dtype == answer.dtype
        off = np.abs(np.array(got.astype(mx.float32)) - want).max()
        assert off <= limit * np.abs(want).max()


@pytest.mark.usefixtures("at_hand")
def test_a_case_that_no_kernel_serves_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head size that no kernel takes: an honest bench says that it compared nothing."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import tiny_model

    monkeypatch.setitem(tiny_model.CONFIG, "head_dim", 20)
    tiny_model.make(tmp_path / "model", tiny_model.corpus(ROOT), steps=0)
    words = ["--model", str(tmp_path / "model"), "--backend", "host", "--any-correct"]
    assert main(["bench", *words, "-p", "12", "-g", "4", "-n", "1"]) == 1
    out = capsys.readouterr().out
    assert "stock with stock" in out
    assert "no kernel applies" in out


def test_a_kernel_alone_on_the_host_is_judged_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = next(k for k in shipped_in_metal() if k.applies_to(BUCKET))
    kernel.save(tmp_path / "k")
    output = tmp_path / "rows.json"
    words = ["--kernel", str(tmp_path / "k"), "--suite", BUCKET.slug, "--backend", "host"]
    assert main(["bench", *words, "--output", str(output)]) == 0
    (row,) = json.loads(output.read_text())["verdicts"]
    assert (row["correct"], row["faster"], row["timing"]) == (True, False, {})
    counted = row["bytes"]
    assert counted["moved"] > counted["least"] > 0
    out = capsys.readouterr().out
    assert f"moves {counted['moved']} bytes" in out
    assert "nothing is timed" in out
    assert "1 workloads" in out


def test_an_output_that_cannot_be_written_leaves_the_file_before_it(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    bench.write(output, {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # the disk takes no more
    try:
        with pytest.raises(errors.UsageError, match=r"result\.json: File too large"):
            bench.write(output, {"a": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads(output.read_text()) == {"a": 1}
    assert list(tmp_path.glob("result*")) == [output]
    with pytest.raises(errors.UsageError, match="No such file"):
        bench.write(tmp_path / "nowhere" / "x", {})


def test_an_interrupted_case_leaves_its_samples(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = {"prompt_tps": 1.0, "generation_tps": 2.0, "peak_memory": 1.0, "total_time": 1.0}
    asked: list[str] = []

    def answered(task: dict[str, Any], which: str) -> dict[str, Any]:
        asked.append(which)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"trials": [trial], "tokens": [1, 2], "kv_bits": 0, "info": {}}

    monkeypatch.setattr(cases, "ask", answered)
    monkeypatch.setattr(cases, "settle", lambda task: None)
    path = tmp_path / "found.json"
    words = ["--shape", "qwen3-0.6b", "-p", "8", "-g", "4", "--any-correct", "--backend", "host"]
    with pytest.raises(KeyboardInterrupt):
        bench.run(parsed(*words, "--output", str(path)), Console(quiet=True), bench_kernel)
    found = json.loads(path.read_text())
    assert found["cases"] == []
    assert found["unfinished"]["samples"] == {"stock": [[trial]], "patched": [[trial]]}


def test_the_options_parse() -> None:
    options = parsed("--shape", "qwen3-4b", "--preset", "code_generation")
    ((name, task),) = bench.tasks(options)
    assert (name, task["prompt_tokens"], task["generation_tokens"]) == ("code_generation", 64, 300)
    with pytest.raises(errors.UsageError):
        bench.tasks(parsed("--shape", "qwen3-4b", "-n", "0"))


def test_where_stock_cannot_run_on_a_quantised_cache_its_plain_one_is_the_baseline(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As MLX's CUDA backend does, which has no quantized_matmul for slices of a cache.
    def missing(*args: Any, **named: Any) -> mx.array:
        raise RuntimeError("[quantized_matmul] No implementation for problem shape")

    monkeypatch.setattr(base, "quantized_scaled_dot_product_attention", missing)
    model = bench_worker.load(str(tiny_folder))
    task = {"kv_bits": 8, "generation_tokens": 4, "trials": 1, "settings": {"gate": "stored"}}
    prompts = [[1, 2, 3, 4, 5]]
    stock = bench_worker.timed(model, None, prompts, {**task, "arm": "stock"})
    assert (stock["kv_bits"], len(stock["tokens"])) == (0, 4)
    with pytest.raises(RuntimeError, match="quantized_matmul"):
        bench_worker.timed(model, None, prompts, {**task, "arm": "patched"})  # not patched here
    found = bench_worker.logits(model, prompts, task)
    assert 0 < found["stock"] < 0.05
    assert found["patched"] < 0.05


@pytest.mark.parametrize(
    ("equal", "patched", "said"), [(4, 1e-3, False), (1, 1.05e-3, True), (1, 2e-3, False)]
)
def test_tokens_that_rounding_decides_are_said_to_be(
    equal: int, patched: float, said: bool
) -> None:
    averages = {arm: dict.fromkeys(cases.KEYS, 1.0) for arm in ("stock", "patched")}
    case = {"averages": averages, "blocks": [0], "equal_tokens": equal, "generation_tokens": 4}
    case |= dict.fromkeys(("low", "high", "ratio", "prompt_ratio", "memory_ratio"), 1.0)
    case |= dict.fromkeys(("stock_kv_bits", "kv_bits"), 0)
    case["logits"] = {"difference": 1e-3, "stock": 1e-3, "patched": patched}
    assert any("another won" in line for line in report(case)) is said
