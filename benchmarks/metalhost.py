"""How long metalhost takes on this machine: compile, run with all checks, start from the cache.

    python benchmarks/metalhost.py [--output FILE]

The kernel is one decode step of attention, Hq 16, Hkv 8, N 4096, D 128, bfloat16. The cache is a
fresh folder, so that the first row holds what a machine pays once. Each figure is the median of
its repeats; a new kernel differs from the last one in a comment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx

from mlx_lm_openevolve.metalhost import LaunchResult, compiler_available, metal_kernel

Q_HEADS, KV_HEADS, KEYS, DIM = 16, 8, 4096, 128
# One simdgroup takes every 32nd key, a lane four components; the parts meet in threadgroup memory.
DECODE = """
constexpr int PER = D / 32;
uint lane = thread_index_in_simdgroup, part = simdgroup_index_in_threadgroup;
uint head = threadgroup_position_in_grid.x, group = HQ / HKV;
const device T* k = keys + head / group * keys_strides[1] + lane * PER;
const device T* v = values + head / group * values_strides[1] + lane * PER;
threadgroup float parts[32 * D];
threadgroup float tops[32], sums[32];
float q[PER], o[PER];
for (int j = 0; j < PER; ++j) {
  q[j] = scale[0] * float(queries[head * D + lane * PER + j]);
  o[j] = 0;
}
float top = -INFINITY, sum = 0;
for (int n = part; n < keys_shape[2]; n += 32) {
  float s = 0;
  for (int j = 0; j < PER; ++j) s += q[j] * float(k[n * keys_strides[2] + j]);
  s = simd_sum(s);
  float high = max(top, s), old = fast::exp(top - high), now = fast::exp(s - high);
  for (int j = 0; j < PER; ++j) o[j] = o[j] * old + now * float(v[n * values_strides[2] + j]);
  sum = sum * old + now;
  top = high;
}
for (int j = 0; j < PER; ++j) parts[part * D + lane * PER + j] = o[j];
if (lane == 0) { tops[part] = top; sums[part] = sum; }
threadgroup_barrier(mem_flags::mem_threadgroup);
if (part == 0) {
  float high = simd_max(tops[lane]);
  float total = simd_sum(sums[lane] * fast::exp(tops[lane] - high));
  for (int j = 0; j < PER; ++j) {
    float x = 0;
    for (int p = 0; p < 32; ++p) x += parts[p * D + lane * PER + j] * fast::exp(tops[p] - high);
    out[head * D + lane * PER + j] = T(x / total);
  }
}
"""


class Decode:
    """The kernel on fixed inputs."""

    def __init__(self) -> None:
        keys = mx.random.key(0)
        parts = mx.random.split(keys, 3)
        shapes = ((1, Q_HEADS, 1, DIM), (1, KV_HEADS, KEYS, DIM), (1, KV_HEADS, KEYS, DIM))
        self.inputs = [
            mx.random.normal(s, mx.bfloat16, key=p) for s, p in zip(shapes, parts, strict=True)
        ]
        self.inputs.append(mx.array([DIM**-0.5], mx.float32))
        mx.eval(self.inputs)

    def __call__(self, note: str = "", **options: Any) -> LaunchResult:
        kernel = metal_kernel(
            "decode", ["queries", "keys", "values", "scale"], ["out"], f"// {note}\n{DECODE}",
            ensure_row_contiguous=False,
        )  # fmt: skip
        done = kernel(
            self.inputs,
            [("T", mx.bfloat16), ("D", DIM), ("HQ", Q_HEADS), ("HKV", KV_HEADS)],
            grid=(1024 * Q_HEADS, 1, 1),
            threadgroup=(1024, 1, 1),
            output_shapes=[(1, Q_HEADS, 1, DIM)],
            output_dtypes=[mx.bfloat16],
            **options,
        )
        assert done.ok, "\n".join(str(f) for f in done.findings)
        return done

    def error(self) -> float:
        """Largest difference from MLX's attention in float32."""
        q, k, v = (a.astype(mx.float32) for a in self.inputs[:3])
        expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=DIM**-0.5)
        return float(mx.abs(self().outputs[0].astype(mx.float32) - expected).max())


def wall(action: Callable[[int], object], repeats: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for k in range(repeats):
        start = time.perf_counter()
        action(k)
        seconds.append(time.perf_counter() - start)
    return seconds


@contextlib.contextmanager
def without_sandbox() -> Iterator[None]:
    """No filter of system calls, no Landlock, no limits, no rules on the object."""
    with contextlib.ExitStack() as stack:
        for target, value in (
            ("launch._confine", lambda _: 0),
            ("confine._restrict", lambda _: None),
            ("confine.limit", lambda _: True),
            ("objects.secure", lambda *_: ""),
        ):
            stack.enter_context(mock.patch(f"mlx_lm_openevolve.metalhost.{target}", value))
        yield


def sandbox_ratio(action: Callable[[int], object], pairs: int) -> float:
    """Median of an action's time with the sandbox over its time without, taken in turn."""
    ratios = []
    for k in range(pairs):
        seconds = {}
        for free in (False, True) if k % 2 else (True, False):
            with without_sandbox() if free else contextlib.nullcontext():
                seconds[free] = wall(lambda _: action(2 * k + free), 1)[0]  # noqa: B023
        ratios.append(seconds[False] / seconds[True])
    return statistics.median(ratios)


def measure() -> list[dict[str, Any]]:
    """The rows: what, median seconds, all samples, target."""
    rows: list[dict[str, Any]] = []

    def row(what: str, samples: list[float], target: float | None = None) -> None:
        rows.append({"what": what, "median": statistics.median(samples), "target": target,
                     "samples": samples})  # fmt: skip

    decode = Decode()
    row("first kernel of a machine: shim, runtime, kernel, run", wall(lambda _: decode("first"), 1))
    done = [decode(f"new {k}") for k in range(5)]
    row("new decode body compiled", [d.compile_seconds for d in done], 1.5)
    row("run with all checks", [d.run_seconds for d in done], 1.5)
    done = [decode(f"count {k}", count=True) for k in range(3)]
    row("new decode body compiled to count", [d.compile_seconds for d in done[1:]])
    row("run with checks and counters", [d.run_seconds for d in done[1:]])
    done = [decode(f"plain {k}", sanitize=False) for k in range(4)]
    row("new decode body compiled without checks", [d.compile_seconds for d in done[1:]])
    row("run without checks", [d.run_seconds for d in done[1:]])

    small = metal_kernel("small", ["x"], ["y"], "y[thread_position_in_grid.x] = x[0];")
    x = mx.zeros((32,))

    def start(_: int, sanitize: bool = True) -> None:
        small([x], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)],
              output_dtypes=[mx.float32], sanitize=sanitize)  # fmt: skip

    start(0), start(0, False)
    row("launch of a kernel known to the process", wall(start, 50), 0.05)
    row("the same without checks", wall(lambda k: start(k, False), 50), 0.05)
    from mlx_lm_openevolve.metalhost import build

    def cold(k: int) -> None:
        build._built.cache_clear()
        start(k)

    row("launch of a kernel from the cache on disk", wall(cold, 50), 0.05)
    for what, action, pairs in (
        ("launch of a known kernel", start, 100),
        ("run with all checks", lambda _: decode("first"), 5),
        ("host check of a new body: compile, run", lambda k: decode(f"pair {k} {id(rows)}"), 5),
    ):
        rows.append({"what": f"sandbox's share: {what}", "ratio": sandbox_ratio(action, pairs)})
    rows.append({"what": "largest error against float32", "error": decode.error()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    available, description = compiler_available()
    if not available:
        raise SystemExit(description)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLX_LM_OPENEVOLVE_HOME"] = folder
        rows = measure()
    print(f"{description}, {os.cpu_count()} CPUs")
    for r in rows:
        if "error" in r:
            print(f"{r['error']:10.2e}     {r['what']}")
            continue
        if "ratio" in r:
            print(f"{r['ratio']:10.3f} x   {r['what']}")
            continue
        target = f"  (target {r['target']:g} s)" if r["target"] else ""
        print(f"{r['median']:10.4f} s   {r['what']}{target}")
    if options.output:
        record = {"compiler": description, "machine": platform.platform(), "rows": rows}
        options.output.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
