"""benchmarks/apple_record.py, on a record of our own in the layout of the public one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import apple_attention
import apple_model
import apple_record
import metal_counters
import metal_stand_in
import numpy as np
import pytest
from metal_counters import Arrays
from samples import needs_clang

SCRIPT = Path(metal_stand_in.__file__).with_name("apple_record.py")

HARNESS = """
import Metal, numpy as np
class MetalHarness:
    def __init__(self):
        self.device = Metal.MTLCreateSystemDefaultDevice()
        self.queue = self.device.newCommandQueue()
    def buffer(self, array):
        return self.device.newBufferWithBytes_length_options_(
            array.tobytes(), array.nbytes, Metal.MTLResourceStorageModeShared)
    def run(self, encode):
        commands = self.queue.commandBuffer()
        encoder = commands.computeCommandEncoder()
        encode(encoder)
        encoder.endEncoding()
        commands.commit()
        commands.waitUntilCompleted()
        if commands.status() != Metal.MTLCommandBufferStatusCompleted:
            raise RuntimeError(str(commands.error()))
"""
HARDWARE = """
from collections import namedtuple
ChipSpec = namedtuple("ChipSpec", "name peak_fp32_gflops peak_bw_gb_s")
"""
TASK = """
from dataclasses import dataclass
from types import SimpleNamespace
import Metal, numpy as np
@dataclass
class TaskSize:
    label: str
    params: dict
class Tripled:
    # y = 3 x, a step at a time, to and fro between two buffers.
    spec = SimpleNamespace(kernel_names=["triple"], sizes=[
        TaskSize("64_6", {"n": 64, "n_steps": 6}), TaskSize("200_9", {"n": 200, "n_steps": 9})])
    def evaluate_size(self, harness, pipelines, size, chip, n_warmup, n_measure):
        n, steps = size.params["n"], size.params["n_steps"]
        x = np.arange(n, dtype=np.float32)
        buffers = [harness.buffer(x), harness.buffer(0 * x)]
        count = harness.buffer(np.array([n], np.uint32))
        width = min(64, pipelines["triple"].maxTotalThreadsPerThreadgroup())
        def encode(encoder):
            encoder.setComputePipelineState_(pipelines["triple"])
            encoder.setBuffer_offset_atIndex_(count, 0, 2)
            for step in range(steps):
                encoder.setBuffer_offset_atIndex_(buffers[step % 2], 0, 0)
                encoder.setBuffer_offset_atIndex_(buffers[1 - step % 2], 0, 1)
                encoder.dispatchThreads_threadsPerThreadgroup_(
                    Metal.MTLSizeMake(-(-n // width) * width, 1, 1), Metal.MTLSizeMake(width, 1, 1))
        harness.run(encode)
        got = np.frombuffer(buffers[steps % 2].contents().as_buffer(4 * n), np.float32)
        error = float(np.abs(got - 3.0**steps * x).max())
        return SimpleNamespace(correct=error == 0, error_kind="max_abs", error_value=error)
def get_task(name):
    return Tripled()
"""
METAL = """#include <metal_stdlib>
using namespace metal;
kernel void triple(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                   constant uint& n [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i >= n) return;
    %s
}
"""
RIGHT, WRONG, REFUSED = "y[i] = 3 * x[i];", "y[i] = 2 * x[i];", "y[i] = 3 * undeclared[i];"
SLOW = (
    "float t = 0; for (uint k = 0; k < 48; ++k) t += k ? 0 * x[(i + k) % n] : x[i]; y[i] = 3 * t;"
)
ABSENT = "y[i] = x[i];"  # of a kernel by another name
BOUNDS = "y[i] = 3 * x[i] + 0 * x[i + n];"


def write_record(root: Path) -> None:
    """A checkout with one task, and what a chip is said to have made of its kernels."""
    package = root / "metal_kernels"
    (package / "tasks").mkdir(parents=True)
    for name, text in (("__init__", ""), ("harness", HARNESS), ("hardware", HARDWARE),
                       ("task", TASK), ("tasks/__init__", "")):  # fmt: skip
        (package / f"{name}.py").write_text(text)
    run = root / "results" / "saxpy_someone_20260101_000000"
    run.mkdir(parents=True)
    kernels = (  # body, taken by Apple's compiler, right on the chip, microseconds
        (RIGHT, True, True, 1.0), (SLOW, True, True, 2.0), (WRONG, True, False, 1.0),
        (BOUNDS, True, True, 1.5), (REFUSED, False, False, 0), (REFUSED, True, True, 1.0),
        (RIGHT, False, False, 0), (WRONG, True, True, 1.0), (ABSENT, True, True, 1.0),
    )  # fmt: skip
    for i, (body, compiled, right, us) in enumerate(kernels):
        sizes = [
            {"label": s, "correct": right, "gpu_seconds": us * 1e-6} for s in ("64_6", "200_9")
        ]
        result = {"compile_ok": compiled, "correct": right, "fail_reason": None}
        result["sizes"] = sizes if compiled else []
        text = (METAL % body).replace("triple", "twofold" if body is ABSENT else "triple")
        (run / f"{i:02}_candidate.metal").write_text(text)
        (run / f"{i:02}_result.json").write_text(json.dumps(result))
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a record"]):
        subprocess.run([*git, *command], check=True)


@needs_clang
def test_a_record_is_judged_kernel_by_kernel(tmp_path: Path) -> None:
    root, output = tmp_path / "record", tmp_path / "figures.json"
    write_record(root)
    command = [sys.executable, str(SCRIPT), "--corpus", str(root), "--tasks", "saxpy"]
    subprocess.run([*command, "-o", str(output)], check=True, capture_output=True)
    record = json.loads(output.read_text())

    def numbers(rows: list[dict[str, Any]]) -> list[int]:
        return [int(Path(row["candidate"]).name[:2]) for row in rows]

    verdicts = record["compile"]
    assert (verdicts["compiled_by_apple"], verdicts["refused_by_apple"]) == (7, 2)
    assert numbers(verdicts["false_refusals"]) == [5, 8]
    assert "undeclared" in verdicts["false_refusals"][0]["metalhost"]
    assert numbers(verdicts["false_accepts"]) == [6]

    run = record["run"]
    assert (run["right_on_chip"], run["right_here"], run["wrong_on_chip"]) == (6, 2, 1)
    assert numbers(run["exceptions"]) == [3, 5, 7, 8]
    out_of_bounds, refused, wrong, absent = (row["what"] for row in run["exceptions"])
    assert "out-of-bounds" in out_of_bounds[0]
    assert refused[0].startswith("refused: ")
    assert wrong[0].startswith("64_6: wrong: max_abs ")
    assert "no kernel named" in absent[0]
    assert run["right_here_wrong_on_chip"] == [], "the wrong kernel is wrong here too"

    rows = record["modelled_time"]["models"]["evolve"]["rows"]
    assert [(r["size"], r["kernels"]) for r in rows] == [("64_6", 2), ("200_9", 2)]
    assert "x[i]" not in output.read_text(), "no text of a kernel"


def test_a_kernels_limit_of_threads_is_read() -> None:
    def limit(text: str) -> int:
        return metal_stand_in.declared_threads(text, "k")

    assert limit("kernel void k(uint i) {}") == 1024
    assert limit("[[max_total_threads_per_threadgroup(256)]] kernel void k(uint i) {}") == 256
    assert limit("kernel void k(uint i) [[max_total_threads_per_threadgroup(64)]] {}") == 64
    other = "[[max_total_threads_per_threadgroup(32)]] kernel void j(uint i) {}\n"
    assert limit(other + "kernel void k(uint i) {}") == 1024
    define = "#define T 8\nconstant uint W = 2 * T;\n"
    assert limit(define + "[[max_total_threads_per_threadgroup(T * W)]] kernel void k() {}") == 128


def test_a_model_is_judged_by_the_order_of_the_pairs_that_differ() -> None:
    chip = [1.0, 1.05, 2.0, 4.0]
    assert apple_model.spearman(chip, [10, 20, 30, 40]) == pytest.approx(1)
    assert apple_model.spearman(chip, [4, 3, 2, 1]) == pytest.approx(-1)
    assert apple_model.spearman(chip, [1, 1, 1, 1]) is None
    assert apple_model.ordered_alike(chip, [20, 10, 30, 40]) == (5, 5), "1.05 of 1.0 is no pair"
    assert apple_model.ordered_alike(chip, [1, 1, 1, 1]) == (2.5, 5)
    assert apple_model.ordered_alike(chip, [1, 2, 4, 3]) == (4, 5)


def launch(cycles: float, reads: float) -> dict[str, Any]:
    """A launch that moves `reads` bytes and takes `cycles` of threadgroup memory."""
    names = ("read_lines write_lines write_accesses read_accesses compulsory_write_bytes simd_ops "
             "threadgroup_memory barriers flops issue_slots instructions")  # fmt: skip
    counters = dict.fromkeys(names.split(), 0.0)
    counters |= {"threadgroup_cycles": cycles, "compulsory_read_bytes": reads}
    counters["read_lines"] = reads / 128
    return {"repeats": 2, "grid": [1 << 16, 1, 1], "threadgroup": [256, 1, 1], "counters": counters}


def test_a_model_is_fitted_to_what_the_chip_minds() -> None:
    """Here its time is that of threadgroup memory; the bytes, which the others go by, grow the
    other way."""
    rows = [
        {
            "task": task,
            "sizes": [
                {"size": "one", "chip_right": True, "right": True, "chip_seconds": 1e-6 * k,
                 "launches": [launch(1e4 * k, 1e9 / k)]}
            ],
        }
        for task in ("this", "that")
        for k in range(1, 9)
    ]  # fmt: skip
    models = apple_model.worth(rows, {"this": 0, "that": 0})["models"]
    assert models["evolve"]["by_task"] == {"this": 0, "that": 0}
    assert models["evolve"]["rows"][0]["spearman"] == -1
    assert models["bytes moved"]["rows"][0]["spearman"] == -1
    for fitted in ("fitted to all", "fitted to the other tasks"):
        assert models[fitted]["alike"] == 1, fitted
        assert models[fitted]["pairs"] == models["evolve"]["pairs"] == 2 * 28

    wrong = [{**r, "sizes": [{**r["sizes"][0], "right": False}]} for r in rows[:4]] + rows[4:]
    found = apple_model.worth(wrong, {"this": 0, "that": 0})["models"]
    assert found["evolve"]["rows"][0]["kernels"] == 4


def test_noise_bounds_what_a_perfect_model_could_do() -> None:
    chip = [1.0, 1.3, 1.7, 2.2, 2.9]
    assert apple_model.at_best(chip, 0) == 1
    assert apple_model.at_best([1, 1.01], 0.1) is None, "no pair is apart"
    assert apple_model.at_best(chip, 10) == 0.5, "nothing but noise"
    shares = [apple_model.at_best(chip, noise) or 0 for noise in (0.3, 0.2, 0.1)]
    assert 0.5 < shares[0] < shares[1] < shares[2] < 1

    rng = np.random.default_rng(0)
    true, deviation = rng.normal(0, 0.3, 400), 0.2
    measured = np.exp(true + rng.normal(0, deviation, true.size))
    alike, pairs = apple_model.ordered_alike(list(measured), list(np.exp(true)))
    assert apple_model.at_best(list(measured), deviation) == pytest.approx(alike / pairs, abs=0.02)


@needs_clang
def test_counters_of_attention_go_on_by_a_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    points = list(apple_attention.points())
    assert len({(chip, w.slug) for chip, w, *_ in points}) == len(points) == 22
    chip, w, *_ = points[0]
    monkeypatch.setattr(apple_attention, "LENGTHS", (64, 128))
    w = replace(w, kv_len=384)
    (found,) = apple_attention.launches(chip, w)
    (whole,) = next(metal_counters.own(Arrays.of(w))).counters
    assert found["counters"]["compulsory_read_bytes"] == whole.compulsory_read_bytes
    assert found["counters"]["flops"] == pytest.approx(whole.flops, rel=0.02)
    assert found["grid"][0] == whole.threads


def test_every_figure_of_a_chip_has_its_source() -> None:
    assert {c.name.split()[1] for c in apple_attention.chips().values()} == {
        "M1",
        "M2",
        "M3",
        "M4",
        "M5",
    }
    for chip in apple_attention.chips().values():
        assert chip.slug.endswith(f"-{chip.gpu_cores}")
        needed = {"gpu_cores", "bandwidth_gb_s"}
        needed |= {"fp32_gflops"} if chip.fp32 else set()
        needed |= {"fp16_gflops"} if chip.fp16 else set()
        assert set(chip.sources) == needed
        assert all(len(s) > 20 for s in chip.sources.values())


def test_the_page_of_limits_says_what_the_record_says() -> None:
    root = SCRIPT.parents[1]
    record = json.loads((root / "benchmarks" / "results" / "apple-record.json").read_text())
    page = " ".join((root / "docs" / "limits.md").read_text().split())
    compiled, run, models = record["compile"], record["run"], record["modelled_time"]["models"]
    assert set(record["tasks"]) == {*apple_record.OPEN, *apple_record.APART}
    taken, refused = compiled["compiled_by_apple"], compiled["refused_by_apple"]
    apart, attention = run["kept_apart"], record["attention"]
    ordered = {name: f"{models[name]['alike']:.2f}" for name in models}
    for words in (
        f"apple-record.json), {record['date']}, `python benchmarks/apple_record.py",
        f"Of {taken} sources that Apple's compiler took metalhost refuses "
        f"{len(compiled['false_refusals'])}, of {refused} that it refused metalhost takes "
        f"{len(compiled['false_accepts'])}",
        f"Of {run['right_on_chip']} kernels that were right on the chip {run['right_here']} are",
        f"{apart['right_here']} of {apart['right_on_chip']} on the four tasks",
        f"Of {run['wrong_on_chip']} that were wrong there "
        f"{len(run['right_here_wrong_on_chip'])} passes here",
        f"{models['evolve']['pairs']:,} pairs",
        f"ordered {ordered['evolve']} of them as the chip did, bytes moved "
        f"{ordered['bytes moved']}, a model fitted to the other tasks "
        f"{ordered['fitted to the other tasks']}",
        f"no more than {ordered['perfect']}",
        f"{attention['alike']:.2f} of {attention['pairs']} pairs",
    ):
        assert words in page, words
