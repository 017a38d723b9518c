"""The prompt: all that is known of a run, for whoever writes the next kernel.

The best kernels so far stand in it, beside the parent, as in FunSearch's best-shot prompts
(Romera-Paredes et al., 2023). Sections come in the order of their use; what does not fit the
model's context is left out from the end, and the prompt says what was cut.
"""

from __future__ import annotations

import difflib
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.device import FACTS
from mlx_lm_openevolve.kernels.kernel import Kernel

from . import features
from .archive import Archive
from .candidate import Candidate
from .evaluation import WorkloadResult
from .ncu import describe

__all__ = ["Prompt", "build", "tokens_of"]

# Characters of a token, on the careful side: source text has short tokens.
_CHARACTERS = 3.2

METAL = """\
Kernels are written in the Metal Shading Language. One kernel is a folder: kernel.json and the
bodies of its launches. A launch's `source` file is a body for mx.fast.metal_kernel (no signature;
ASCII), its `header` file holds functions that stand before it. These arrays are given by name:

{arrays}
Attributes such as thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
threadgroup_position_in_grid and thread_position_in_threadgroup are in scope where the text names
them. A simdgroup has 32 lanes; at most 1024 threads and 32 KiB of threadgroup memory. A barrier or
simd_* must be reached by all its threads. Small inputs are `constant`: use [], no typed pointers to
them. Outputs of earlier launches are given by name; write every element of an output. The same text
also runs on NVIDIA through a header: no Metal-only intrinsics beyond simd_*.
"""

CUDA = """\
Kernels are written in CUDA C++ ("language": "cuda"). One kernel is a folder: kernel.json and the
bodies of its launches. A launch's `source` file NAME.cu is the body of a __global__ function (no
signature; ASCII) for mx.fast.cuda_kernel, its `header` file NAME.cu holds __device__ functions and
templates that stand before it. NVRTC compiles both for the GPU that is here. These arrays are given
by name, each a `const T*` with NAME_shape[i] and NAME_strides[i] where the text names them:

{arrays}
What Metal calls a simdgroup is a warp of 32 threads, a threadgroup is a block. At most 1024 threads
and 48 KiB of __shared__ memory in a block, of sizes known to the compiler, no extern __shared__;
the grid counts threads and must be whole blocks. `template` makes constexpr integers and bools, and
types such as T, that the body sees and the header does not: hand them on as template arguments.
Included already: cuda_bf16.h and cuda_fp16.h; a header may include mma.h (nvcuda::wmma),
cuda_pipeline.h and cuda_fp8.h, a body nothing. There is no std:: and no INFINITY, NAN or FLT_MAX:
infinity is __int_as_float(0x7f800000). Inline PTX is allowed. Refused: thread block clusters,
__device__ or static variables and whatever else keeps data between launches. Blocks of a launch
must not wait for each other. Outputs of earlier launches are given by name; write every element of
an output.
"""

FORMAT = """\
kernel.json: grid counts threads; grid, threadgroup, shapes, `when` and template values are integer
expressions over {fields} and the params; a length among them is the bucket's upper end, so never
template it. Params are integers with a default (an expression over these fields
and {facts}, and no params) and a list of values:
they are tuned for you afterwards, so put every number that might matter into one, beside launches:
    "params": {{"warps": {{"default": "8", "values": [2, 4, 8]}}}}
"header": "NAME.cu" in a launch names its header; an output may be "float32" as well as "dtype".

Answer with a line `NOTE: what you changed and why it should be faster`, and then either edits

EDIT <file>
<<<<<<< SEARCH
lines of the parent, exactly, found once
=======
new lines
>>>>>>> REPLACE

or whole files, `FILE <name>` followed by a code block. Files you leave out stay the parent's.
"""

BFLOAT = """\
## bfloat16 as Metal takes it
bfloat has no implicit conversion from float. Load to float, compute in float, store with T(...).
    float x = float(keys[at]);            // never: bfloat x = 0.5f * ...
    vec<T, 4> k = *(const device vec<T, 4>*)(row + 4 * lane);   // row must be 8-byte aligned
    float4 kf = float4(k);
    out[at] = T(sum / total);
    sum = fma(float(a[i]), float(b[i]), sum);
Not: T x = 1.0f (write T(1.0f)); max(T, float); T += float; half and bfloat mixed; simd_sum of a
bfloat (sum floats).
"""

CUDA_BFLOAT = """\
## bfloat16 as CUDA takes it
T is __nv_bfloat16 where the workload says so. Load to float, compute in float, store with T(...).
    float x = float(keys[at]);       // T * float is ambiguous, and so is max(float, int)
    out[at] = T(sum / total);
    float2 two = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(row + 2 * lane));
Eight of them are a uint4; such a load needs an address that 16 divides, and strides of 1, which an
array need not have: keep a path for the others.
"""


@dataclass(frozen=True)
class Prompt:
    """The text, its estimated tokens, and the titles of what was cut."""

    text: str
    tokens: int
    cut: tuple[str, ...]


def tokens_of(text: str) -> int:
    """An estimate of the tokens of a text, on the careful side."""
    return int(len(text) / _CHARACTERS) + 1


def build(
    archive: Archive, parent: Kernel, *, failed: Candidate | None = None, context: int = 0
) -> Prompt:
    """The prompt for a child of `parent`, or for the repair of `failed`; `context` is what the
    model takes, in tokens (0: no limit)."""
    room = context or 1 << 30
    kept: list[str] = []
    cut: list[str] = []
    used = 64
    for title, text in _sections(archive, parent, failed):
        need = tokens_of(text)
        if used + need > room:
            cut.append(title)
            continue
        kept.append(text)
        used += need
    if cut:
        kept.append(f"(Cut at your context of {room} tokens: {', '.join(cut)}.)")
    text = "\n".join(kept)
    return Prompt(text, tokens_of(text), tuple(cut))


def _sections(
    archive: Archive, parent: Kernel, failed: Candidate | None
) -> Iterator[tuple[str, str]]:
    op = ops.get(parent.op)
    fields = ", ".join(sorted(op.fields))
    language = (CUDA if parent.native else METAL).format(arrays=op.search.rules)
    form = FORMAT.format(fields=fields, facts=", ".join(sorted(FACTS)))
    yield "rules", f"{op.search.task}\n\n{language}\n{form}"
    if failed is not None:
        yield "the failure", _failure(archive, failed)
    yield "bfloat16", CUDA_BFLOAT if parent.native else BFLOAT
    yield "workloads", _workloads(archive, parent)
    yield f"kernel {parent.id}", _kernel(archive, parent, "The parent: edit this one")
    lineage = _lineage(archive, parent.id)
    for child in lineage:
        diff = _diff(archive, child)
        if diff:
            yield f"change #{child.number}", diff
    for title, kernel in _others(archive, parent):
        yield f"kernel {kernel.id}", _kernel(archive, kernel, title)
    for candidate in reversed(list(archive.candidates.values())):
        if candidate not in lineage and candidate.parent and candidate.proposer != "params":
            diff = _diff(archive, candidate)
            if diff:
                yield f"change #{candidate.number}", diff
    for number in sorted(archive.done, reverse=True):
        done = archive.done[number]
        if done.cause and archive.candidates[number].proposer != "params":
            note = archive.candidates[number].note
            yield (
                f"failure #{number}",
                f"## Failed #{number} ({note}): {done.cause}\n{done.finding}\n",
            )
    yield from _history(archive)


def _failure(archive: Archive, failed: Candidate) -> str:
    done = archive.done[failed.number]
    return (
        f"## Repair this\nYour last answer (#{failed.number}: {failed.note or 'no note'}) failed: "
        f"{done.cause}.\n\n{done.finding}\n\nMend exactly that, and change nothing else. "
        + ("The parent below is your failed kernel.\n" if failed.kernel else "\n")
    )


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.4g}"


def _workloads(archive: Archive, parent: Kernel) -> str:
    if not archive.timed:
        return _bytes_moved(archive, parent)
    device = archive.device.get("name") or archive.config.backend
    lines = [
        f"## Workloads on {device}; times in microseconds",
        f"The run's best so far: {archive.standing()} of {archive.stock}'s speed.",
        f"workload | use | {archive.stock} | floor | bound by | best (kernel) | parent "
        "| for 1.0x it needs",
    ]
    for slug in archive.slugs:
        base = archive.baseline.get(slug)
        if base is None:
            lines.append(f"{slug} | {archive.weights[slug]:.2f} | not measured yet")
            continue
        own = archive.kernel_best.get(parent.id, {}).get(slug)
        best = archive.best.get(slug)
        needs = "it has it" if own is not None and own.low >= 1 else f"{_us(base.seconds)} us"
        if own is not None and own.low < 1:
            needs += f", {own.seconds / base.seconds - 1:+.0%} less time"
        lines.append(
            f"{slug} | {archive.weights[slug]:.2f} | {_us(base.seconds)} | {_us(base.floor)} "
            f"| {base.bound} | "
            + (f"{_result(best.result)} ({best.kernel})" if best else "none")
            + f" | {_result(own) if own else 'not tried'} | {needs}"
        )
    return "\n".join(lines) + "\n"


def _bytes_moved(archive: Archive, parent: Kernel) -> str:
    """The workloads where nothing is timed."""
    lines = [
        "## Workloads; there is no GPU here: nothing is timed",
        "Right kernels are ranked by the bytes that they move: those of the 128-byte lines that "
        "simdgroups touch, counted on a small shape. The least: each input once, each output once. "
        f"The run's best so far: {archive.standing()}.",
        "workload | use | best (kernel) | parent",
    ]
    for slug in archive.slugs:
        best, own = archive.best.get(slug), archive.kernel_best.get(parent.id, {}).get(slug)
        best_text = f"{_result(best.result)} ({best.kernel})" if best else "none"
        own_text = _result(own) if own else "not tried"
        lines.append(f"{slug} | {archive.weights[slug]:.2f} | {best_text} | {own_text}")
    return "\n".join(lines) + "\n"


def _result(result: WorkloadResult) -> str:
    if not result.ratio:
        return f"{result.counters['moved_bytes']} bytes, {result}"
    return f"{result.ratio:.3f}x [{result.low:.3f}, {result.high:.3f}] {_us(result.seconds)} us"


def _kernel(archive: Archive, kernel: Kernel, title: str) -> str:
    brought = archive.kernels.get(kernel.id)
    results = archive.kernel_best.get(kernel.id, {})
    counters = next((r.counters for r in results.values() if r.counters), None)
    profile = next((r.profile for r in results.values() if r.profile), None)
    lines = [f"## {title}: {kernel.name} {kernel.id}"]
    if brought is not None and brought.note:
        lines.append(f"#{brought.number}: {brought.note}")
    lines.append(f"strategy: {features.strategy(kernel, counters, profile)}")
    for slug, result in results.items():
        params = " ".join(f"{k}={v}" for k, v in result.params.items())
        lines.append(f"{slug}: {_result(result)} with {params}; margin {result.margin:.2f}")
        if result.profile:
            lines.append(f"  GPU profile: {describe(result.profile)}")
    if counters:
        lines.append(_counters(counters))
    lines.append(f"FILE kernel.json\n```json\n{json.dumps(kernel.meta, indent=1)}\n```")
    for file, source in kernel.sources.items():
        fence = "cuda" if file.endswith(".cu") else "metal"
        lines.append(f"FILE {file}\n```{fence}\n{source.rstrip()}\n```")
    return "\n".join(lines) + "\n"


def _counters(c: Mapping[str, Any]) -> str:
    must = c["compulsory_read_bytes"] + c["compulsory_write_bytes"]
    asked = c["device_read_bytes"] + c["device_write_bytes"]
    return (
        f"counted on the host, small shape: {asked} bytes asked for, {must} compulsory "
        f"({asked / max(must, 1):.2f}x); {c['line_efficiency']:.0%} of each 128-byte line used; "
        f"{c['bank_conflicts']} bank conflicts; {c['barriers']} barriers; "
        f"{c['simd_reductions']} simd reductions; {c['simd_shuffles']} shuffles; "
        f"{c['flops']} flops; {c['threadgroup_memory']} B of threadgroup memory; "
        f"{c['launches']} launches"
    )


def _lineage(archive: Archive, kernel: str) -> list[Candidate]:
    """The candidates that brought a kernel and its ancestors, the newest first."""
    lineage: list[Candidate] = []
    while kernel in archive.kernels and archive.kernels[kernel] not in lineage:
        candidate = archive.kernels[kernel]
        if not candidate.parent:
            break
        lineage.append(candidate)
        kernel = candidate.parent
    return lineage


def effect(archive: Archive, child: str, parent: str) -> float:
    """What a change did: child's over parent's score, geometric mean over the workloads that both
    were measured on; 0 where there is none."""
    a, b = archive.kernel_best.get(child, {}), archive.kernel_best.get(parent, {})
    both = [slug for slug in a if slug in b]
    if not both:
        return 0.0
    return statistics.geometric_mean(a[slug].score / b[slug].score for slug in both)


def _diff(archive: Archive, candidate: Candidate) -> str:
    child, parent = (
        archive.registry.kernel(candidate.kernel),
        archive.registry.kernel(candidate.parent),
    )
    if child is None or parent is None or child.id == parent.id:
        return ""
    gain = effect(archive, child.id, parent.id)
    better = f"{gain:.3f}x its parent's speed" if archive.timed else f"{gain:.3f}x fewer bytes"
    measured = better if gain else "not measured"
    lines = [f"## Change #{candidate.number}: {candidate.note} -> {measured}"]
    for file in sorted({*child.sources, *parent.sources}):
        lines += difflib.unified_diff(
            parent.sources.get(file, "").splitlines(),
            child.sources.get(file, "").splitlines(),
            f"{parent.id}/{file}",
            f"{child.id}/{file}",
            lineterm="",
            n=2,
        )
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


def _others(archive: Archive, parent: Kernel) -> Iterator[tuple[str, Kernel]]:
    """The best kernels, then those whose strategy differs most from the parent's."""
    elites = [archive.registry.kernel(id) for id in archive.elites()]
    kernels = [k for k in elites if k is not None and k.id != parent.id]
    here = features.strategy(parent).key.split("/")

    def apart(kernel: Kernel) -> int:
        return sum(
            a != b for a, b in zip(features.strategy(kernel).key.split("/"), here, strict=True)
        )

    best = kernels[:2]
    for kernel in best:
        yield "One of the best", kernel
    others = sorted((k for k in kernels if k not in best), key=apart, reverse=True)
    for kernel in others[:2]:
        yield "The most different", kernel


def _history(archive: Archive) -> Iterator[tuple[str, str]]:
    """Every candidate on a line, the newest first, in pieces so that a part may fit."""
    lines = []
    for number in sorted(archive.done, reverse=True):
        candidate, done = archive.candidates[number], archive.done[number]
        if done.cause:
            outcome = f"failed: {done.cause}"
        else:
            outcome = ", ".join(f"{slug} {r}" for slug, r in done.results.items())
        params = "" if candidate.params is None else f" {dict(candidate.params)}"
        lines.append(
            f"#{number} {candidate.proposer} {candidate.kernel}{params} {candidate.note}: {outcome}"
        )
    for i in range(0, len(lines), 40):
        title = "## History\n" if i == 0 else ""
        yield f"history from #{len(lines) - i} back", title + "\n".join(lines[i : i + 40]) + "\n"
