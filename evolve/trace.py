"""The workloads that a model's own generation asks for, counted in a process of its own: a model's
memory must be gone before anything is timed.

    python -m mlx_lm_openevolve.evolve.trace      asked by suites.traced, see processes.py
"""

from __future__ import annotations

from typing import Any

from mlx_lm_openevolve.processes import serve


def calls(request: dict[str, Any]) -> dict[str, int]:
    """Calls of a generation by workload slug. request: model (a path or an id), prompt_tokens,
    new_tokens. Raises what the generation raises. No kernel serves where the registry is empty and
    only stored verdicts count, but every call is counted."""
    import mlx_lm

    from mlx_lm_openevolve import enable_optimizations, get_optimization_info

    enable_optimizations(gate="stored")
    model, tokenizer = mlx_lm.load(request["model"])[:2]
    prompt = [1 + i % 200 for i in range(request["prompt_tokens"])]
    for _ in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=request["new_tokens"]):
        pass
    rows = get_optimization_info()["workloads"].items()
    return {slug: row["hits"] + row["fallbacks"] for slug, row in rows}


if __name__ == "__main__":
    serve(calls)
