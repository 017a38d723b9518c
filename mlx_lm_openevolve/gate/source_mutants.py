"""Source mutants: a shipped Metal kernel, broken in one place, that the host check must reject.

    python -m mlx_lm_openevolve.gate.source_mutants     tries them all, writes the outcome to
                                                        ops/<family>/source_mutants.json

They need compiling, so they are tried here and not at first use: the outcome travels with the
package, by variant, dtype and mask (Questions.matrix_key). See ops/source_mutants.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import backends, ops
from ..errors import KernelError
from ..kernels.kernel import Kernel
from ..kernels.verdict import gate_version
from ..ops import Bucket, Workload
from ..ops.source_mutants import SourceMutant, without_comments
from .correctness import passes

__all__ = ["NOT_RUN", "change", "kill", "matrix", "matrix_entry"]

# What is said of a kernel that does not even compile: it proves nothing.
NOT_RUN = re.compile(r"BackendError: [^:]+: \S+: (compile|strict|lint|non-ascii|sandbox)\b")


def change(
    mutant: SourceMutant, kernel: Kernel, params: Mapping[str, int], workload: Workload
) -> Kernel | None:
    """The broken kernel; None where the launched text does not name what the mutant changes."""
    launches = kernel.launches(workload, params)
    launched = {launch.spec.file for launch in launches}
    meta = json.loads(json.dumps(dict(kernel.meta)))
    # Comments go first: no rewrite lands in one, and their loss alone is no change.
    plain = {file: without_comments(text) for file, text in kernel.sources.items()}
    sources = dict(plain)
    if mutant.rewrite is not None:
        files = set(launched)
        if mutant.headers:
            files |= {
                spec["header"]
                for spec in meta["launches"]
                if spec["source"] in launched and "header" in spec
            }
        sources.update({file: mutant.rewrite(sources[file]) for file in files})
    for spec in meta["launches"]:
        if mutant.fixed is not None:
            _fix_template(kernel, spec, mutant.fixed, params, workload)
    for launch in launches:
        axis = mutant.grid_axis
        if axis is not None and launch.grid[axis] >= 2 * launch.threadgroup[axis]:
            groups = launch.grid[axis] // launch.threadgroup[axis] // 2
            spec = next(s for s in meta["launches"] if s["source"] == launch.spec.file)
            spec["grid"][axis] = str(groups * launch.threadgroup[axis])
    if sources == plain and meta == kernel.meta:
        return None
    return Kernel.from_parts(meta, sources)


def _fix_template(
    kernel: Kernel,
    spec: dict[str, Any],
    fixed: tuple[str, str | int],
    params: Mapping[str, int],
    workload: Any,
) -> None:
    """Fixes the template arguments that depend on a field of the workload at their value for
    another."""
    field, value = fixed
    seen = dataclasses.replace(workload, **{field: value})
    values = {launch.spec.file: dict(launch.template) for launch in kernel.launches(seen, params)}
    for name, text in spec.get("template", {}).items():
        if field in str(text):
            spec["template"][name] = str(values.get(spec["source"], {}).get(name, text))


def kill(
    kernel: Kernel, params: Mapping[str, int], small: Bucket, mutants: Iterable[SourceMutant]
) -> dict[str, str]:
    """What the host check says of each mutant that applies: its reason, "survived", or "not run"
    with the reason where it does not compile."""
    host, exact = backends.get("host"), small.bucket().largest()
    questions = [case() for case in ops.of(small).questions.cases(small, 0, brief=True)]
    reasons: dict[str, str] = {}
    for mutant in mutants:
        broken = change(mutant, kernel, params, exact) if mutant.applies(small) else None
        if broken is None:
            continue
        build = functools.partial(host.build, broken, params, sanitize=True)
        reason = passes(build, questions).reason
        prefix = "not run: " if NOT_RUN.search(reason) else ""
        reasons[mutant.name] = f"{prefix}{reason}" if reason else "survived"
    return reasons


def matrix_entry(kernel: Kernel, bucket: Bucket, longer: Bucket) -> dict[str, Any]:
    """The outcome of every source mutant on a small workload of `bucket`, with params from the
    defaults of `longer` that lead through as many launches as they can: version of the gate,
    kernel, names of the killed, and the survivors with what was said of them. Raises KernelError
    where the kernel does not serve such a workload."""
    if not kernel.applies_to(bucket):
        raise KernelError(f"kernel {kernel.id} does not apply to {bucket.slug}")
    questions = ops.of(bucket).questions
    values = {param.name: param.values for param in kernel.params}
    params = questions.exercised(kernel.default_params(longer), values)
    reasons = kill(kernel, params, questions.proxy(bucket), questions.source_mutants())
    survivors = {
        name: reason[:160]
        for name, reason in reasons.items()
        if reason == "survived" or reason.startswith("not run")
    }
    return {
        "gate": gate_version(bucket.op),
        "kernel": kernel.id,
        "killed": sorted(reasons.keys() - survivors.keys()),
        "survivors": survivors,
    }


def _file(op: str) -> Path:
    return Path(ops.__file__).with_name(op) / "source_mutants.json"


@functools.cache
def matrix(op: str) -> dict[str, Any]:
    """The outcomes that ship with the package for a family: key -> entry."""
    try:
        entries = json.loads(_file(op).read_text("ascii"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def main(argv: list[str]) -> int:
    """Try every source mutant on a kernel of each variant (one of tuned/ that is all Metal, or the
    folders named) and write the outcome entry by entry; what is known of these kernels already is
    kept. Exit code 1 where any mutant survived."""
    from ..kernels.lookup import shipped

    tuned = shipped().kernels()
    survived = False
    for op in ops.FAMILIES:
        entries = matrix(op)
        named = [kernel for kernel in map(Kernel.load, argv) if kernel.op == op]
        portable = [kernel for kernel in tuned if kernel.op == op and not kernel.native]
        for key, bucket, longer in ops.get(op).questions.matrix():
            old = entries.get(key, {})
            # Those named, then the one of the last time, then any.
            candidates = [*reversed(named), *(k for k in portable if k.id == old.get("kernel"))]
            candidates += [k for k in portable if k.applies_to(bucket)]
            kernel = next((k for k in candidates if bucket.variant in k.variants), None)
            if kernel is None:
                continue
            if (old.get("gate"), old.get("kernel")) != (gate_version(op), kernel.id):
                entries[key] = matrix_entry(kernel, bucket, longer)
                _file(op).write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", "ascii")
            survivors = entries[key]["survivors"]
            killed = len(entries[key]["killed"])
            of = killed + len(survivors)
            print(f"{key}: {killed} of {of} killed", file=sys.stderr, flush=True)
            for name, reason in survivors.items():
                print(f"  {name}: {reason}", file=sys.stderr)
            survived = survived or bool(survivors)
    return int(survived)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
