"""What a derivative past a served call gives on this machine's GPU: stock's, or an exception.

    python benchmarks/gradients.py [--backend cuda] [--json]

Each row is one transform of one call that a kernel serves. It ends with code 1 where a result is
neither stock's nor an exception, or where no kernel served.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache

import mlx_lm_openevolve

Arrays = list[mx.array]
Function = Callable[..., mx.array]


def call(mask: str, sinks: bool) -> tuple[Function, Arrays]:
    """A decode call over 900 keys as a function of its floating operands, and those."""
    shapes = [(1, 16, 1, 128), (1, 8, 900, 128), (1, 8, 900, 128)]
    shapes += [(1, 16, 1, 900)] if mask == "additive" else []
    given = [mx.random.normal(s, key=mx.random.key(i)) for i, s in enumerate(shapes)]
    given += [mx.random.normal((16,))] if sinks else []

    def attention(q: mx.array, k: mx.array, v: mx.array, *more: mx.array) -> mx.array:
        rest = list(more)
        bias = rest.pop(0) if mask == "additive" else None
        return base.scaled_dot_product_attention(
            q, k, v, KVCache(), 0.1, bias, rest.pop() if sinks else None
        )

    return attention, [x.astype(mx.bfloat16) for x in given]


def grad(f: Function, given: Arrays) -> Arrays:
    loss = mx.grad(lambda *a: f(*a).astype(mx.float32).square().sum(), list(range(len(given))))
    return list(loss(*given))


TRANSFORMS: dict[str, Callable[[Function, Arrays], Arrays]] = {
    "plain": lambda f, given: [f(*given)],
    "vjp": grad,
    "jvp": lambda f, given: list(mx.jvp(lambda *a: f(*a), given, given)[1]),
    "compile": lambda f, given: [mx.compile(f)(*given)],
    "vmap": lambda f, given: [mx.vmap(f)(*(mx.stack([x, x]) for x in given))],
    "compiled vjp": lambda f, given: list(mx.compile(lambda *a: grad(f, list(a)))(*given)),
}


def outcome(transform: Callable[[Function, Arrays], Arrays], f: Function, given: Arrays) -> Any:
    try:
        found = transform(f, given)
        mx.eval(found)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return found


def agrees(got: Arrays, want: Arrays) -> bool:
    def far(a: mx.array, b: mx.array) -> float:
        a, b = a.astype(mx.float32), b.astype(mx.float32)
        return float(mx.linalg.norm(a - b) / mx.linalg.norm(b))

    return all(far(a, b) < 0.02 for a, b in zip(got, want, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("metal", "cuda", "host"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: dict[str, str] = {}
    for mask, sinks in (("none", False), ("additive", False), ("none", True)):
        f, given = call(mask, sinks)
        for name, transform in TRANSFORMS.items():
            want = outcome(transform, f, given)
            with mlx_lm_openevolve.optimizations(backend=options.backend, require_faster=False):
                mx.eval(f(*given))
                info = mlx_lm_openevolve.get_optimization_info()
                served = sum(row["hits"] for row in info["workloads"].values())
                got = outcome(transform, f, given)
            if not served:
                says = "NOT SERVED: " + "; ".join(r["reason"] for r in info["workloads"].values())
            elif isinstance(got, str):
                says = f"raises {got.splitlines()[0]}"
            else:
                says = "stock's" if agrees(got, want) else "WRONG"
            rows[f"mask {mask}, sinks {sinks}: {name}"] = says
    for row, says in rows.items():
        print(f"{row:40s} {says}", file=sys.stderr)
    if options.json:
        print(json.dumps(rows))
    return int(any(says.startswith(("WRONG", "NOT")) for says in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
