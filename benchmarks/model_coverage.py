"""Which shipped kernel serves the attention of which published model: writes docs/coverage.md.

    python benchmarks/model_coverage.py

models.json has the models: heads, sizes, windows, sinks, the rank of a latent cache, of some the
widths of their layers (linear_coverage.py), and where the numbers were read (repository, path,
commit or tag). For every layout, kind of call, backend and bucket the page says which kernel is
tried first, with its default params, or why there is none. That a kernel applies does not say that
it is faster: the gate decides that on your chip.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import linear_coverage

from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import in_order
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention.workload import Bucket, Workload
from mlx_lm_openevolve.ops.linear import Bucket as Product

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "coverage.md"
BACKENDS = ("metal", "cuda")
LENGTHS = tuple(1 << n for n in range(8, 16))
KV_GROUPS = (64, 32, 128)  # mlx-lm's default first; MLX knows no other
KINDS = {
    "decode": "one sequence, one query",
    "batch": "eight sequences, one query each, a mask of padding",
    "verify": "eight queries: a speculative step",
    "prompt": "chunks of 2048 queries",
    "decode, 8 bits": "one query over a quantised cache (`--kv-bits 8`; 4 bits are the same)",
    "verify, 8 bits": "a speculative step over it",
    "prompt, 8 bits": "chunks of a prompt over it",
}


@dataclass(frozen=True)
class Layout:
    """The attention of a kind of layers of a model, as mlx-lm calls it.

    window: keys that a query sees, 0 for all. kv_lora_rank: of multi-head latent attention; with
    `latent` decode runs over the latent cache itself, with `rope_scores` the rotary part comes as
    an additive mask. quantisable: some model with this layout can have a quantised cache.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int = 0
    sinks: bool = False
    kv_lora_rank: int = 0
    latent: bool = False
    rope_scores: bool = False
    quantisable: bool = True

    @property
    def name(self) -> str:
        width = f"{self.head_dim}"
        if self.v_head_dim != self.head_dim:
            width += f" and {self.v_head_dim}"
        words = [f"{self.q_heads}:{self.kv_heads} of {width}"]
        words += [f"window {self.window}"] if self.window else []
        words += ["sinks"] if self.sinks else []
        words += [f"rank {self.kv_lora_rank}"] if self.kv_lora_rank else []
        return ", ".join([*words, "decode over the latent cache"] if self.latent else words)


@dataclass(frozen=True)
class Served:
    """What a backend runs first for a bucket; `kernel` None where nothing applies. `failed` names
    the kernels that apply and whose default params are none of their values."""

    bucket: Any
    kernel: Kernel | None
    params: tuple[tuple[str, int], ...] = ()
    failed: tuple[str, ...] = ()


def models() -> list[dict[str, Any]]:
    """The rows of models.json, each `attention` as Layouts."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "models.json").read_text())
    for row in rows:
        # mlx-lm quantises all caches of a model or none: not those with a window, not a latent one,
        # and it refuses sinks.
        whole = not any(
            a.get("window") or a.get("sinks") or a.get("latent") for a in row["attention"]
        )
        row["attention"] = [
            Layout(**{"v_head_dim": a["head_dim"], **a}, quantisable=whole)
            for a in row["attention"]
        ]
    return rows


def layouts(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[Layout, list[str]]]:
    """By name: the layout, and the models that have it."""
    found: dict[str, tuple[Layout, list[str]]] = {}
    for row in rows:
        for layout in row["attention"]:
            known, names = found.get(layout.name, (layout, []))
            best = layout if layout.quantisable else known
            found[layout.name] = best, [*names, row["name"]]
    return dict(sorted(found.items(), key=lambda item: _order(item[1][0])))


def _order(layout: Layout) -> tuple[Any, ...]:
    return layout.head_dim, layout.v_head_dim, layout.q_heads, layout.kv_heads, layout.name


def kv_group(layout: Layout) -> int:
    """The numbers of a group of a quantised cache, 0 where MLX cannot quantise these rows."""
    fitting = (n for n in KV_GROUPS if layout.head_dim % n == layout.v_head_dim % n == 0)
    return next(fitting, 0)


def absent(layout: Layout, kind: str) -> str:
    """Why mlx-lm never makes such calls, "" where it does."""
    if "bits" not in kind:
        return ""
    if not layout.quantisable:
        return "mlx-lm quantises no cache of such a model"
    if not kv_group(layout):
        return f"MLX cannot quantise rows of {layout.head_dim}: no group divides them"
    return ""


def buckets(layout: Layout, kind: str) -> list[Bucket]:
    """The buckets of a kind of call, from 256 keys to 32k or the window."""
    q_len = {"verify": 8, "prompt": 2048}.get(kind.partition(",")[0], 1)
    longest = LENGTHS[-1]
    if layout.window:
        longest = layout.window + (q_len if q_len > 1 else 0)
    mask = "none" if q_len == 1 else "causal"
    if kind == "batch" or layout.window:
        mask = "bool"
    if layout.rope_scores or (layout.latent and q_len == 1):
        mask = "additive"
    shape = Workload(
        batch=8 if kind == "batch" else 1,
        q_heads=layout.q_heads,
        kv_heads=layout.kv_heads,
        q_len=q_len,
        kv_len=1,
        head_dim=layout.head_dim,
        v_head_dim=layout.v_head_dim,
        dtype="bfloat16",
        mask=mask,
        sinks=layout.sinks,
        kv_bits=8 if "bits" in kind else 0,
        kv_group=kv_group(layout) if "bits" in kind else 0,
    )
    if layout.latent and q_len == 1:
        rank = layout.kv_lora_rank
        shape = shape.exact(kv_heads=1, head_dim=rank, v_head_dim=rank, latent=True)
    lengths = [n for n in LENGTHS if n <= longest] or [longest]
    return [shape.exact(kv_len=n).bucket() for n in lengths]


def served(bucket: Bucket | Product, backend: str, kernels: Sequence[Kernel]) -> Served:
    """The kernel that the planner tries first where no verdict is stored."""
    failed: list[str] = []
    for kernel in in_order(kernels):
        if kernel.native <= {backend} and kernel.applies_to(bucket):
            try:
                params = kernel.default_params(bucket)
            except KernelError:
                failed.append(kernel.name)
                continue
            return Served(bucket, kernel, tuple(params.items()), tuple(failed))
    return Served(bucket, None, (), tuple(failed))


def stock(bucket: Bucket, backend: str) -> str:
    """What MLX 0.32.4 runs there itself: `use_fallback` of its Metal and CUDA backends."""
    w = bucket
    if backend == "cuda":  # cuDNN's
        fused = max(w.head_dim, w.v_head_dim) <= 128 and w.head_dim % 8 == w.v_head_dim % 8 == 0
    elif w.q_len > 8:
        fused = w.head_dim == w.v_head_dim and w.head_dim in (64, 72, 80, 96, 128)
    else:
        fused = w.fused
    return "MLX's own, fused" if fused and not w.kv_bits else "MLX's own, not fused"


def cell(row: Sequence[Served], backend: str) -> str:
    """A kernel for a run of buckets, its params once; what changes along them as a list."""
    runs: list[list[Served]] = []
    for one in row:
        if runs and runs[-1][0].kernel == one.kernel:
            runs[-1].append(one)
        else:
            runs.append([one])
    return "; ".join(
        (f"{_keys(run)}: " if len(runs) > 1 else "") + _run(run, backend) for run in runs
    )


def _keys(run: Sequence[Served]) -> str:
    first, last = run[0].bucket.kv_len, run[-1].bucket.kv_len
    return f"{first}" if first == last else f"{first} to {last}"


def _run(run: Sequence[Served], backend: str) -> str:
    kernel = run[0].kernel
    if kernel is None:
        return f"none ({stock(run[0].bucket, backend)})"
    words = []
    for i, (name, value) in enumerate(run[0].params):
        values = [one.params[i][1] for one in run]
        text = f"{value}" if len(set(values)) == 1 else " ".join(map(str, values))
        words.append(f"{name} {text}")
    return ", ".join([f"**{kernel.name}**", *words])


@functools.cache
def kernels() -> list[Kernel]:
    """What ships."""
    return Registry(tuned_root(), writable=False).kernels()


def calls() -> list[tuple[Layout, str]]:
    """Every layout with every kind of call that mlx-lm makes."""
    every = (layout for layout, _ in layouts(models()).values())
    return [(layout, kind) for layout in every for kind in KINDS if not absent(layout, kind)]


@functools.cache
def table() -> dict[tuple[Layout, str, str], list[Served]]:
    """What serves each bucket, by layout, kind of call and backend: every call mlx-lm makes."""
    return {
        (layout, kind, backend): [served(b, backend, kernels()) for b in buckets(layout, kind)]
        for layout, kind in calls()
        for backend in BACKENDS
    }


def serve_product(bucket: Product, backend: str) -> tuple[str, dict[str, int]]:
    """What `served` says of a product: the kernel's name and its params, "" where none applies."""
    found = served(bucket, backend, kernels())
    return (found.kernel.name if found.kernel else ""), dict(found.params)


def page() -> str:
    """docs/coverage.md."""
    rows = models()
    found = layouts(rows)
    lines = [_INTRODUCTION.format(models=len(rows), layouts=len(found))]
    lines += ["| calls | | " + " | ".join(BACKENDS) + " |", "|---|---|---|---|"]
    for kind, says in KINDS.items():
        counts = []
        for backend in BACKENDS:
            asked = [row for (_, k, b), row in table().items() if (k, b) == (kind, backend)]
            whole = sum(all(one.kernel for one in row) for row in asked)
            counts.append(f"{whole} of {len(asked)}")
        lines.append(f"| {kind} | {says} | {' | '.join(counts)} |")

    sources = sorted({row["source"] for row in rows} - {"unverified"})
    lines += ["", "## Models", "", "| model | layouts | numbers from |", "|---|---|---|"]
    for row in rows:
        read = row["source"]
        cited = f"[{sources.index(read) + 1}](#sources)" if read in sources else read
        note = f"; {row['note']}" if "note" in row else ""
        names = "; ".join(layout.name for layout in row["attention"])
        lines.append(f"| {row['name']} | {names}{note} | {cited} |")

    lines += ["", "## Layouts", ""]
    for name, (layout, having) in found.items():
        lines += [f"### {name}", "", ", ".join(having), "", "| calls | metal | cuda |"]
        lines.append("|---|---|---|")
        for kind in KINDS:
            reason = absent(layout, kind)
            texts = [reason] * 2 if reason else []
            texts = texts or [cell(table()[layout, kind, b], b) for b in BACKENDS]
            lines.append(f"| {kind} | {' | '.join(texts)} |")
        lines.append("")

    lines += linear_coverage.lines(rows, serve_product, BACKENDS)
    lines += ["## Sources", ""]
    for i, source in enumerate(sources):
        repository, path, commit = source.split()
        link = f"https://github.com/{repository}/blob/{commit}/{path}"
        lines.append(f"{i + 1}. [{repository}, {path.rpartition('/')[2]} at {commit}]({link})")
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
# Which kernel serves which model

Made by `python benchmarks/model_coverage.py` from `benchmarks/models.json`: {models} published
models, {layouts} layouts of heads. A layout reads "query heads:KV heads of head size" (keys and
values where they differ). Numbers without a citation are marked *unverified*: they were not read
anywhere. A tag stands for the package of that version.

For each kind of call the page names the kernel that is tried first with its default params in
bfloat16, before any verdict. It may still be slower than MLX's own on your chip: then the gate
says so, and MLX's own runs. Where a param changes along the buckets its values stand for 256, 512,
1024, 2048, 4096, 8192, 16384 and 32768 keys (fewer where a window ends before).

Prompts with heads of up to 128 run on MLX's own fused kernel on purpose: it is near the chip's
matrix rate. Layouts for which a kernel serves all buckets:
"""


if __name__ == "__main__":
    PAGE.write_text(page())
