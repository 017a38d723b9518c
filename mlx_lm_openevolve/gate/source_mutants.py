"""Source mutants: a shipped Metal kernel, broken in one place, that the host check must reject.

    python -m mlx_lm_openevolve.gate.source_mutants         runs them all and writes mutants.json

They change what the family's contract fixes by name (keys_shape[2], X_strides, scale[0], sinks,
out, grids) and what Metal does (barriers, simd functions, exponentials), so they fit any kernel of
the family. One is left out only where its predicate over the workload says so, or where the text
that is launched does not name the thing at all. They need compiling, so they run here and not at
first use: the kill matrix travels with the package, by family, dtype and mask.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import backends
from ..errors import KernelError
from ..kernels.kernel import INPUTS, Kernel
from ..ops.attention.mutants import proxy
from ..ops.attention.reference import cases
from ..ops.attention.workload import DTYPES, MASKS, Workload
from . import correctness as exam
from .limits import GATE_VERSION

__all__ = ["SOURCE_MUTANTS", "SourceMutant", "kill", "matrix", "matrix_entry"]

_FILE = Path(__file__).with_name("source_mutants.json")
_ARRAYS = tuple(sorted({name for names in INPUTS.values() for name in names} - {"scale", "sinks"}))
# What the outcome of a mutant says that does not even compile: it proves nothing.
_NOT_RUN = re.compile(r"BackendError: [^:]+: \S+: (compile|strict|lint|non-ascii|sandbox)\b")

Rule = Callable[[Workload], bool]
Rewrite = Callable[[str], str]


@dataclass(frozen=True)
class SourceMutant:
    """One change of a kernel: of the bodies it launches (`headers`: of their headers too), or of
    its kernel.json."""

    name: str
    breaks: str
    applies: Rule
    rewrite: Rewrite | None = None
    headers: bool = False
    grid_axis: int | None = None
    mask_kind: str | None = None

    def change(
        self, kernel: Kernel, params: Mapping[str, int], workload: Workload
    ) -> Kernel | None:
        """The broken kernel; None where the launched text does not name what it changes."""
        launches = kernel.launches(workload, params)
        launched = {launch.stage.file for launch in launches}
        meta = json.loads(json.dumps(dict(kernel.meta)))
        # Comments go first: no rewrite lands in one, and their loss alone is no change.
        plain = {file: _code(text) for file, text in kernel.sources.items()}
        sources = dict(plain)
        if self.rewrite is not None:
            files = set(launched)
            if self.headers:
                files |= {
                    stage["header"]
                    for stage in meta["stages"]
                    if stage["source"] in launched and "header" in stage
                }
            sources.update({file: self.rewrite(sources[file]) for file in files})
        for stage in meta["stages"]:
            if self.mask_kind is not None:
                _fix_mask(kernel, stage, self.mask_kind, params, workload)
        for launch in launches:
            axis = self.grid_axis
            if axis is not None and launch.grid[axis] >= 2 * launch.threadgroup[axis]:
                groups = launch.grid[axis] // launch.threadgroup[axis] // 2
                stage = next(s for s in meta["stages"] if s["source"] == launch.stage.file)
                stage["grid"][axis] = str(groups * launch.threadgroup[axis])
        if sources == plain and meta == kernel.meta:
            return None
        return Kernel.from_parts(meta, sources)


def _fix_mask(
    kernel: Kernel, stage: dict[str, Any], kind: str, params: Mapping[str, int], w: Workload
) -> None:
    """Fixes the template arguments that depend on the mask at their value for another kind."""
    seen = replace(w, mask=kind)
    values = {launch.stage.file: dict(launch.template) for launch in kernel.launches(seen, params)}
    for name, text in stage.get("template", {}).items():
        if "mask" in str(text):
            stage["template"][name] = str(values.get(stage["source"], {}).get(name, text))


# Rewrites


def _code(source: str) -> str:
    """The source without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)


def _replace(pattern: str, to: str) -> Rewrite:
    return lambda source: re.sub(pattern, to, source)


def _calls(source: str, pattern: str, brackets: str) -> Iterator[tuple[int, int, int]]:
    """(start, start of the argument, end) of every `pattern(...)`, the innermost last."""
    opening, closing = brackets[0], brackets[1]
    for match in re.finditer(pattern + r"\s*" + re.escape(opening), source):
        depth, at = 1, match.end()
        while depth and at < len(source):
            depth += (source[at] == opening) - (source[at] == closing)
            at += 1
        yield match.start(), match.end(), at


def _wrap(pattern: str, to: Callable[[str], str], brackets: str = "()") -> Rewrite:
    """Replaces each `pattern(argument)` by `to(argument)`, from the innermost outwards."""

    def rewrite(source: str) -> str:
        for start, inner, end in reversed(list(_calls(source, pattern, brackets))):
            source = source[:start] + to(source[inner : end - 1]) + source[end:]
        return source

    return rewrite


def _half(source: str) -> str:
    """Every second element of `out` goes where the one before goes; of a pointer into it, every
    second pair, as it may be stored in pairs."""
    source = re.sub(r"\bout\s*\+(?![+=])([^;]+);", r"out + ((\1) & ~2);", source)
    return _wrap(r"\bout(?=\s*\[)", lambda at: f"out[({at}) & ~1]", "[]")(source)


def _first(arguments: str) -> str:
    """The first of a call's arguments."""
    depth = 0
    for at, c in enumerate(arguments):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            return f"({arguments[:at]})"
    return f"({arguments})"


def _strides(array: str, changed: Mapping[int, str]) -> Rewrite:
    """Shadows all strides of a body by copies, some of one array's changed."""

    def rewrite(source: str) -> str:
        if not re.search(rf"\b{array}_strides\b", source):
            return source
        copies = []
        for name in _ARRAYS:
            if re.search(rf"\b{name}_strides\b", source):
                values = [f"{name}_strides[{axis}]" for axis in range(4)]
                for axis, text in changed.items() if name == array else ():
                    values[axis] = text
                copies.append(f"const int64_t {name}_steps[4] = {{{', '.join(values)}}};\n")
                source = re.sub(rf"\b{name}_strides\b", f"{name}_steps", source)
        return "".join(copies) + source

    return rewrite


def _always(w: Workload) -> bool:
    return True


def _batched(w: Workload) -> bool:
    return w.batch > 1


def _heads(w: Workload) -> bool:
    return w.q_heads > 1


def _kv_heads(w: Workload) -> bool:
    return w.kv_heads > 1


def _rows(w: Workload) -> bool:
    return w.q_len > 1


def _masked(w: Workload) -> bool:
    return w.mask in ("bool", "additive")


def _both(*rules: Rule) -> Rule:
    return lambda w: all(rule(w) for rule in rules)


_KV_LEN = r"\bkeys_shape\s*\[\s*2\s*\]"
_SCALE = r"\bscale\s*\[\s*0\s*\]"
_EXP = r"\b(?:metal::)?(?:fast::|precise::)?exp2?"


def _mutants() -> Iterator[SourceMutant]:
    body = functools.partial(SourceMutant)
    yield body("length-one-less", "the last key", _always, _replace(_KV_LEN, "(keys_shape[2] - 1)"))
    yield body("length-one-more", "reads on", _always, _replace(_KV_LEN, "(keys_shape[2] + 1)"))
    yield body(
        "length-of-queries",
        "the query length for the key length",
        lambda w: w.kv_len > 2 * w.q_len,
        _replace(_KV_LEN, "queries_shape[2]"),
    )
    yield body(
        "length-in-tiles",
        "the keys after the last whole tile",
        lambda w: w.kv_len >= 64,
        _replace(_KV_LEN, "(keys_shape[2] / 32 * 32)"),
    )
    rules: dict[str, tuple[Rule, Rule, Rule]] = {
        "queries": (_batched, _heads, _rows),
        "keys": (_batched, _kv_heads, _always),
        "values": (_batched, _kv_heads, _always),
        **{
            f"{operand}_{part}": (_batched, _kv_heads, _always)
            for operand in ("key", "value")
            for part in ("scales", "biases")
        },
        "mask": (_both(_masked, _batched), _both(_masked, _heads), _both(_masked, _rows)),
    }
    for array, axes in rules.items():
        for axis, rule in enumerate(axes):
            word = ("batch", "head", "row")[axis]
            yield body(
                f"{array}-{word}-stride-zero",
                f"{array}_strides[{axis}]",
                rule,
                _strides(array, {axis: "0"}),
            )
    yield body("mask-key-stride-zero", "mask_strides[3]", _masked, _strides("mask", {3: "0"}))
    for array in ("keys", "values"):
        yield body(
            f"{array}-contiguous",
            "the spare rows of a cache's buffer",
            _kv_heads,
            _strides(array, {1: f"{array}_shape[2] * {array}_strides[2]"}),
        )
        yield body(
            f"{array}-row-stride-doubled",
            "every second row",
            _always,
            _strides(array, {2: f"2 * {array}_strides[2]"}),
        )
        yield body(
            f"{array}-columns-adjacent",
            "rows whose elements lie apart",
            _always,
            _strides(array, {3: "1"}),
        )
    yield body(
        "queries-contiguous",
        "the transposed layout of queries",
        _both(_rows, _heads),
        _strides(
            "queries", {1: "queries_shape[2] * queries_shape[3]", 2: "int64_t(queries_shape[3])"}
        ),
    )
    yield body("scale-ignored", "scale", _always, _replace(_SCALE, "1.0f"))
    yield body("scale-twice", "scale", _always, _replace(_SCALE, "(scale[0] * scale[0])"))
    yield body(
        "sink-of-first-head",
        "sinks",
        lambda w: w.sinks and w.q_heads > 1,
        _wrap(r"\bsinks", lambda at: "sinks[0]", "[]"),
    )
    yield body(
        "sinks-twice",
        "sinks",
        lambda w: w.sinks,
        _wrap(r"\bsinks", lambda at: f"(sinks[{at}] + sinks[{at}])", "[]"),
    )
    both = functools.partial(SourceMutant, headers=True)
    yield both(
        "exponentials-are-one", "softmax", _always, _wrap(_EXP, lambda x: f"(1.0f + 0.0f * ({x}))")
    )
    yield both(
        "exponents-halved", "softmax", _always, _wrap(_EXP, lambda x: f"metal::exp2(0.5f * ({x}))")
    )
    yield both("shuffles-lost", "lanes", _always, _wrap(r"\bsimd_shuffle(_xor|_down)?", _first))
    yield both("sums-lost", "lanes", _always, _wrap(r"\bsimd_sum", _first))
    yield both("maxima-lost", "lanes", _always, _wrap(r"\bsimd_max", _first))
    yield both(
        "barriers-lost",
        "order in a threadgroup",
        _always,
        _wrap(r"\bthreadgroup_barrier", lambda x: "(void)0"),
    )
    yield body(
        "half-written",
        "every second element of the result",
        _always,
        _half,
    )
    for axis in range(3):
        yield SourceMutant(f"grid-{'xyz'[axis]}-halved", "threadgroups", _always, grid_axis=axis)
    yield SourceMutant(
        "mask-not-asked-for", "the mask", lambda w: w.mask != "none", mask_kind="none"
    )


SOURCE_MUTANTS = tuple(_mutants())


def kill(
    kernel: Kernel, params: Mapping[str, int], small: Workload, mutants: Iterable[SourceMutant]
) -> dict[str, str]:
    """What the host check says of each mutant that applies: its reason, "survived", or "not run"
    with the reason where it does not compile."""
    host = backends.get("host")
    questions = [exam.prepare(case) for case in cases(small, 0)]
    found: dict[str, str] = {}
    for mutant in mutants:
        broken = mutant.change(kernel, params, small) if mutant.applies(small) else None
        if broken is None:
            continue
        build = functools.partial(host.build, broken, params, sanitize=True)
        reason = exam.passes(build, questions).reason
        prefix = "not run: " if _NOT_RUN.search(reason) else ""
        found[mutant.name] = f"{prefix}{reason}" if reason else "survived"
    return found


def _bucket(family: str, dtype: str, mask: str) -> Workload:
    """The workload that a family's mutants are put up on: with all that it knows."""
    w = Workload(2, 8, 2, 8, 128, 64, 64, dtype, mask, sinks=True)
    if family == "attention_quantized":
        return replace(w, sinks=False, kv_bits=4, kv_group=32, op=family)
    if family == "attention_latent":
        return Workload(2, 16, 1, 8, 128, 512, 512, dtype, mask, op=family)
    return w


def matrix_entry(kernel: Kernel, dtype: str, mask: str) -> dict[str, Any]:
    """One entry of the kill matrix: every source mutant on a small workload with sinks, with the
    params of a long context, which lead through the most stages. Raises KernelError where the
    kernel does not serve such a workload."""
    bucket = _bucket(kernel.family, dtype, mask)
    if not kernel.applies_to(bucket):
        raise KernelError(f"kernel {kernel.id} does not apply to {bucket.slug}")
    params = kernel.default_params(replace(bucket, kv_len=4096))
    for param in kernel.params:
        if param.name == "simdgroups":  # few, so that so few keys reach more than one split
            params["simdgroups"] = min(value for value in param.values if value > 1)
        elif param.name == "splits":  # all launches
            params["splits"] = min(v for v in param.values if v >= max(4, params["splits"]))
    found = kill(kernel, params, proxy(bucket), SOURCE_MUTANTS)
    survivors = [n for n, r in found.items() if r == "survived" or r.startswith("not run")]
    return {
        "gate": GATE_VERSION,
        "kernel": kernel.id,
        "params": params,
        "on": proxy(bucket).slug,
        "killed": {name: found[name][:160] for name in found if name not in survivors},
        "survivors": {name: found[name][:160] for name in survivors},
    }


@functools.cache
def matrix() -> dict[str, Any]:
    """The kill matrix that ships with the package: family/dtype/mask -> entry."""
    try:
        found = json.loads(_FILE.read_text("ascii"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main(argv: list[str]) -> int:
    """Run every source mutant on a kernel of each family (the first of tuned/ that is all Metal,
    or the folders named) and write the matrix entry by entry; what is known of these kernels
    already is kept. Exit code 1 where any mutant survived."""
    from ..kernels.registry import Registry, tuned_root

    tuned = Registry(tuned_root(), writable=False).kernels()
    portable = [k for k in tuned if not k.native]
    entries = matrix()
    known = {entry["kernel"] for entry in entries.values()}
    portable.sort(key=lambda k: k.id in known)  # the last of a family is taken
    kernels = {k.family: k for k in [*portable, *map(Kernel.load, argv)]}
    for family, dtype, mask in itertools.product(INPUTS, DTYPES, MASKS):
        kernel = kernels.get(family)
        if kernel is None:
            continue
        key = f"{family}/{dtype}/{mask}"
        old = entries.get(key, {})
        if (old.get("gate"), old.get("kernel")) != (GATE_VERSION, kernel.id):
            if not kernel.applies_to(_bucket(family, dtype, mask)):
                continue
            entries[key] = matrix_entry(kernel, dtype, mask)
            text = json.dumps(entries, indent=1, sort_keys=True)
            _FILE.write_text(text + "\n", "ascii")
        killed, survivors = entries[key]["killed"], entries[key]["survivors"]
        total = len(killed) + len(survivors)
        print(f"{key}: {len(killed)} of {total} killed", file=sys.stderr, flush=True)
        for name, reason in survivors.items():
            print(f"  {name}: {reason}", file=sys.stderr)
    return int(any(entry["survivors"] for entry in entries.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
