"""The shipped Metal kernels beside MLX's own, by what each of them does: bytes, lines, barriers.

    python benchmarks/metal_counters.py [--subset] [--json] [--output FILE]

Both run on the CPU through metalhost, which counts every access; MLX's kernels come from the
mlx-metal wheel of this version of MLX and are launched as its host code launches them on each class
of chips. Every result is compared with SDPA's, so that what is counted is attention. Nothing here
was run on an Apple GPU, and nothing is timed.

compulsory: keys, values, queries, result and mask, each once.
requested: bytes that the threads ask for. merged: the same, where lanes of a simdgroup that ask for
    one address at once count as one. distinct: what a perfect cache would move in each launch,
    partial results of a split included. Each also as its ratio to compulsory.
K/V reads: how often a byte of keys, values and mask is asked for (the growth of the requested bytes
    from half the keys to all of them).
line eff.: used share of the 128-byte lines that the simdgroups' accesses touch.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import mlx_attention
from mlx_kernels import VERSION

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.errors import OpenEvolveError, UsageError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.metalhost import Counters, LaunchResult, compiler_available
from mlx_lm_openevolve.ops.attention.reference import case, floats, mask
from mlx_lm_openevolve.ops.attention.workload import Workload

# The goal of a decode kernel: requested bytes over compulsory, and line efficiency.
MOST_BYTES, LEAST_EFFICIENCY = 1.05, 0.95
COLUMNS = ("requested MB", "compulsory", "ratio", "merged", "distinct", "K/V reads", "line eff.")
COLUMNS += ("barriers", "simd ops", "Mflop", "conflicts")
SUMMED = ("barriers", "simd_ops", "flops", "bank_conflicts", "threadgroups")


def shape(
    q_heads: int, kv_heads: int, dim: int, kv_len: int, mask: str = "none", **more: Any
) -> Workload:
    base = Workload(1, q_heads, kv_heads, 1, kv_len, dim, dim, "bfloat16", mask)
    return replace(base, **more)


GRID = (
    # One sequence: Qwen3-0.6B, Llama-3.1-8B, Llama-3.2-1B, Gemma-3-4B, gpt-oss, heads of 80.
    *(shape(16, 8, 128, n) for n in (256, 1024, 4096, 16384)),
    *(shape(32, 8, 128, n) for n in (1024, 4096, 16384)),
    *(shape(32, 8, 64, n) for n in (1024, 4096)),
    *(shape(8, 4, 256, n) for n in (1024, 4096)),
    *(shape(64, 8, 64, n, sinks=True) for n in (1024, 4096)),
    shape(32, 32, 80, 1024),
    # Wide heads.
    shape(16, 16, 192, 1024, v_head_dim=128),
    shape(16, 2, 512, 1024),
    shape(16, 8, 128, 4096, dtype="float16"),
    shape(16, 8, 128, 4096, dtype="float32"),
    # The server: batches with a bool mask.
    shape(32, 8, 128, 1024, "bool", batch=8),
    shape(16, 8, 128, 2048, "bool", batch=8),
    shape(32, 8, 128, 1024, "bool", batch=2),
    shape(32, 8, 128, 1024, "additive"),
    # A speculative verify.
    shape(16, 8, 128, 4096, "causal", q_len=4),
    shape(16, 8, 128, 4096, "causal", q_len=8),
    shape(32, 8, 64, 4096, "causal", q_len=8),
    # Quantised caches and the latent of MLA, where a kernel for them is shipped.
    *(shape(32, 8, 128, 4096, kv_bits=bits, kv_group=64) for bits in (4, 8)),
    shape(16, 1, 512, 4096, "additive", latent=True),
    # A chunk of a prompt.
    shape(16, 8, 128, 256, "causal", q_len=64),
)
SUBSET = (
    shape(16, 8, 128, 512),
    shape(16, 8, 64, 256, "bool", batch=2),
    shape(4, 2, 64, 64, "causal", q_len=16),
)


@dataclass(frozen=True)
class Row:
    """One implementation on one workload: the counters of its launches, and of the same launches
    at half the keys. on: the classes of chips where it is what runs."""

    workload: Workload
    name: str
    kernel: str
    params: dict[str, int]
    on: tuple[str, ...]
    counters: tuple[Counters, ...]
    half: tuple[Counters, ...] = ()

    def total(self, name: str) -> int:
        return sum(int(getattr(c, name)) for c in self.counters)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the figures that the counters give."""
        needed, moved = self.workload.moved_bytes(), requested(self.counters)
        touched = self.total("read_lines") + self.total("write_lines")
        merged = self.total("read_useful_bytes") + self.total("write_useful_bytes")
        distinct = sum(c.compulsory_read_bytes + c.compulsory_write_bytes for c in self.counters)
        found: dict[str, Any] = {
            "workload": self.workload.slug,
            "implementation": self.name,
            "kernel": self.kernel,
            "params": self.params,
            "chips": list(self.on),
            "launches": len(self.counters),
            "compulsory_bytes": needed,
            "requested_bytes": moved,
            "requested_ratio": round(moved / needed, 4),
            "merged_bytes": merged,
            "merged_ratio": round(merged / needed, 4),
            "distinct_bytes": distinct,
            "distinct_ratio": round(distinct / needed, 4),
            "line_bytes": 128 * touched,
            "line_efficiency": round(merged / (128 * touched), 4),
            "between_launches_bytes": 2 * sum(c.compulsory_write_bytes for c in self.counters[:-1]),
            "kv_reads": None,
            **{name: self.total(name) for name in SUMMED},
        }
        if self.half:
            apart = needed - halved(self.workload).moved_bytes()
            found["kv_reads"] = round((moved - requested(self.half)) / apart, 4)
        return found


def requested(counters: Sequence[Counters]) -> int:
    """Bytes of device memory that the threads of some launches ask for."""
    return sum(c.device_read_bytes + c.device_write_bytes for c in counters)


def halved(w: Workload) -> Workload:
    return replace(w, kv_len=w.kv_len // 2)


@dataclass(frozen=True)
class Arrays:
    """One call's arrays. mask: [B, 1, L, N] or [B, Hq, L, N], every key seen that causality
    allows; want: SDPA's answer, all in float32."""

    workload: Workload
    queries: mx.array
    keys: Any
    values: Any
    scale: mx.array
    mask: mx.array | None
    sinks: mx.array | None
    want: np.ndarray[Any, np.dtype[np.float32]]

    @classmethod
    def of(cls, w: Workload) -> Arrays:
        x, seen = case("peaked", w, 0).upload(), mask(w, 0)
        keys, values = floats(w, x.keys), floats(w, x.values)
        wide = (array.astype(mx.float32) for array in (x.queries, keys, values))
        bias = seen.astype(mx.float32) if w.mask == "additive" and seen is not None else seen
        want = mx.fast.scaled_dot_product_attention(
            *wide,
            scale=x.scale.item(),
            mask="causal" if w.mask == "causal" else bias,
            sinks=None if x.sinks is None else x.sinks.astype(mx.float32),
        )
        keys = tree_map(cached, x.keys)
        values = keys if w.latent else tree_map(cached, x.values)
        return cls(w, x.queries, keys, values, x.scale, seen, x.sinks, np.array(want))

    def verify(self, who: str, got: mx.array) -> None:
        """Raises AssertionError where `got` is no attention over these arrays."""
        answer = np.array(got.astype(mx.float32))
        error = float(np.abs(answer - self.want).max() / np.abs(self.want).max())
        limit = 1e-4 if self.workload.dtype == "float32" else 0.03
        assert error < limit, f"{who} on {self.workload.slug} is off by {error:.3g}"


def cached(x: mx.array) -> mx.array:
    """The same keys or values as a slice of a buffer that grows by 256 keys, as a KVCache does."""
    batch, heads, length, width = x.shape
    rest = mx.zeros((batch, heads, -length % 256, width), x.dtype)
    buffer = mx.contiguous(mx.concatenate([x, rest], axis=2))
    mx.eval(buffer)
    return buffer[:, :, :length]


def shipped(
    x: Arrays, y: Arrays, kernels: Sequence[Kernel], changes: Mapping[str, int]
) -> Iterator[Row]:
    """Rows of the shipped kernels that serve a workload in Metal; y has half the keys."""
    w, host = x.workload, backends.get("host")
    for kernel in kernels:
        if not kernel.applies_to(w):
            continue
        params = {**kernel.default_params(w), **changes}
        if any(launch.spec.language != "metal" for launch in kernel.launches(w, params)):
            continue
        counted: list[tuple[Counters, ...]] = []
        for arrays in (x, y):
            launches: list[LaunchResult] = []
            call = host.build(kernel, params, arrays.workload, launches=launches)
            out = call(arrays.queries, arrays.keys, arrays.values, arrays.scale, arrays.mask,
                       arrays.sinks)  # fmt: skip
            arrays.verify(kernel.name, out)
            counted.append(counters_of(kernel.name, launches))
        yield Row(w, kernel.name, kernel.id, params, tuple(mlx_attention.CHIPS), *counted)


def counters_of(who: str, launches: Sequence[LaunchResult | None]) -> tuple[Counters, ...]:
    found = []
    for launch in launches:
        assert launch is not None, f"{who} was not launched"
        assert launch.ok, f"{who}: {launch.findings[0]}"
        assert launch.counters is not None, f"{who} was not counted"
        assert not launch.counters.truncated, f"{who}: too many accesses to count"
        found.append(launch.counters)
    return tuple(found)


# ---- MLX's own ---------------------------------------------------------------------------------


def own(x: Arrays, given: mlx_attention.Route | None = None) -> Iterator[Row]:
    """Rows of MLX's kernels, one for each way in which some class of chips runs the workload, or
    for the one that is given."""
    w = x.workload
    routes: dict[mlx_attention.Route, list[str]] = {}
    for name, letter in mlx_attention.CHIPS.items():
        found = given or mlx_attention.route(w, letter)
        if found is not None:
            routes.setdefault(found, []).append(name)
    if not routes:
        return
    arrays = [mlx_attention.as_numpy(array)[0] for array in (x.keys, x.values)]
    strides = [tuple(s // array.itemsize for s in array.strides[:3]) for array in arrays]
    seen = x.mask
    if seen is not None:
        seen = mx.broadcast_to(seen, (w.batch, w.q_heads, w.q_len, w.kv_len))
        if w.q_len <= 8 and w.batch > 1:  # no stride leads from one sequence to the next
            seen = mx.contiguous(seen)
        mx.eval(seen)
    shape = mlx_attention.Case(
        w.dtype, w.head_dim, w.mask, w.sinks, w.group, w.q_len, w.kv_len, w.batch, w.kv_heads,
        w.v_head_dim,
    )  # fmt: skip
    queries = mx.contiguous(x.queries)
    mx.eval(queries)
    call = mlx_attention.Call(
        queries, x.keys, x.values, seen, x.sinks, strides[0], x.want, strides[1]
    )
    options: dict[str, Any] = {"count": True, "sanitize": False, "time_limit": 120.0}
    for (name, blocks, grouped), names in routes.items():
        launches: Sequence[LaunchResult | None]
        if name == "sdpa_vector":
            launches = [mlx_attention.sdpa_vector(shape, call, **options)]
        elif name == "steel_attention":
            launches = [mlx_attention.steel_attention(shape, call, **options)]
        else:
            launches = mlx_attention.sdpa_two_pass(shape, call, blocks, grouped=grouped, **options)
        counted = counters_of(name, launches)
        assert launches[-1] is not None
        x.verify(name, launches[-1].outputs[0])
        params = {"blocks": blocks} if blocks else {}
        yield Row(w, f"MLX {name}", "", params, tuple(names), counted)


# ---- the whole grid ----------------------------------------------------------------------------


def measure(
    grid: Sequence[Workload],
    kernels: Sequence[Kernel],
    changes: Mapping[str, int],
    done: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of every workload, and what could not be counted and why."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for w in grid:
        if w.variant != "float" and not any(kernel.applies_to(w) for kernel in kernels):
            notes.append(f"{w.slug}: no kernel for it is shipped, and MLX has none that is fused")
            done()
            continue
        x = Arrays.of(w)
        mine = list(shipped(x, Arrays.of(halved(w)), kernels, changes))
        rows += [row.to_dict() for row in mine]
        if not mine:
            notes.append(f"{w.slug}: no shipped Metal kernel applies")
        try:
            theirs = list(own(x))
        except pytest.skip.Exception as error:  # MLX's source cannot be fetched
            notes.append(f"{w.slug}: MLX's own kernel is absent: {error}")
        else:
            rows += [row.to_dict() for row in theirs]
            if not theirs:
                notes.append(f"{w.slug}: no kernel of MLX is counted for it")
        done()
    return rows, notes


def decode(rows: Sequence[dict[str, Any]]) -> list[tuple[Workload, dict[str, Any]]]:
    """The rows of shipped kernels on decode and verify steps."""
    parsed = [(Workload.parse(row["workload"]), row) for row in rows if row["kernel"]]
    return [(w, row) for w, row in parsed if w.q_len <= 32]


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where a shipped decode kernel does not reach the goal, in words."""
    found = []
    for w, row in decode(rows):
        who = f"{w.slug} {row['implementation']}"
        ratio, needed = row["requested_ratio"], row["compulsory_bytes"]
        if ratio > MOST_BYTES:
            by_key = 2 * (needed - halved(w).moved_bytes()) / needed
            again = (row["kv_reads"] - 1) * by_key
            split = row["between_launches_bytes"] / needed
            found.append(
                f"{who}: {ratio:.3f} of the compulsory bytes: keys, values and mask read again"
                f" {again:+.3f}, partial results {split:+.3f}, queries read again and the rest"
                f" {ratio - 1 - again - split:+.3f}"
            )
        if row["line_efficiency"] < LEAST_EFFICIENCY:
            found.append(f"{who}: line efficiency {row['line_efficiency']:.3f}")
    return found


def show(out: Console, rows: Sequence[dict[str, Any]]) -> None:
    counted = Table(title="counted on the CPU, by metalhost", title_justify="left")
    counted.add_column("implementation", no_wrap=True)
    for name in COLUMNS:
        counted.add_column(name, justify="right")
    last = ""
    for row in rows:
        if row["workload"] != last:
            last = row["workload"]
            counted.add_section()
            counted.add_row(f"[bold]{last.removeprefix('attention-')}[/]")
        name = row["implementation"]
        if row["params"].get("blocks"):
            name += f" {row['params']['blocks']}"
        if len(row["chips"]) < len(mlx_attention.CHIPS):
            name += f" ({'; '.join(row['chips'])})"
        reads = row["kv_reads"]
        counted.add_row(
            f"  {name}",
            f"{row['requested_bytes'] / 1e6:.2f}",
            f"{row['compulsory_bytes'] / 1e6:.2f}",
            f"{row['requested_ratio']:.3f}",
            f"{row['merged_ratio']:.3f}",
            f"{row['distinct_ratio']:.3f}",
            "" if reads is None else f"{reads:.2f}",
            f"{row['line_efficiency']:.3f}",
            f"{row['barriers']:,}",
            f"{row['simd_ops']:,}",
            f"{row['flops'] / 1e6:.1f}",
            f"{row['bank_conflicts']:,}",
        )
    out.print(counted)


def change(pair: str) -> tuple[str, int]:
    """NAME=N. Raises UsageError."""
    name, _, value = pair.partition("=")
    if not value.isdigit():
        raise UsageError(f"{pair!r} is not NAME=N")
    return name, int(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--subset", action="store_true", help="three small workloads")
    parser.add_argument("--workload", nargs="+", metavar="SLUG", help="these and no others")
    parser.add_argument("--kernel", type=Path, metavar="FOLDER", help="in place of the shipped")
    parser.add_argument("--params", nargs="+", metavar="NAME=N", default=[], help="not the default")
    parser.add_argument("--json", action="store_true", help="the record as the last line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record as JSON")
    options = parser.parse_args(arguments)

    out = Console(highlight=False, stderr=options.json)
    if not out.is_terminal:
        out.width = 200
    available, description = compiler_available()
    if not available:
        out.print(f"metalhost cannot run here: {description}")
        return 2
    try:
        grid = SUBSET if options.subset else GRID
        if options.workload:
            grid = tuple(Workload.parse(slug) for slug in options.workload)
        kernels = Registry(tuned_root(), writable=False).kernels()
        if options.kernel:
            kernels = [Kernel.load(options.kernel)]
        changes = dict(change(pair) for pair in options.params)
        start = time.monotonic()
        with Progress(console=out, transient=True) as bar:
            task = bar.add_task("counting", total=len(grid))
            rows, notes = measure(grid, kernels, changes, lambda: bar.advance(task))
    except OpenEvolveError as error:
        out.print(str(error))
        return 2
    show(out, rows)
    for note in notes:
        out.print(note)
    missed = misses(rows)
    out.print(
        f"goal of a decode kernel: at most {MOST_BYTES} of the compulsory bytes, line efficiency"
        f" at least {LEAST_EFFICIENCY}; missed {len(missed)} times in {len(decode(rows))} rows"
    )
    for line in missed:
        out.print(f"  {line}")
    out.print(f"{time.monotonic() - start:.0f} s")
    record = {
        "about": "counters of metalhost on a CPU; nothing is timed",
        "compiler": description,
        "machine": platform.platform(),
        "mlx": version("mlx"),
        "mlx_metal": VERSION,
        "rows": rows,
        "notes": notes,
        "misses": missed,
    }
    if options.output:
        # A row a line: small, and a change of one figure is a change of one line.
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        text = json.dumps({**record, "rows": []}, indent=1).replace(
            '"rows": []', f'"rows": [\n{lines}\n ]'
        )
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
