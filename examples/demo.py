"""The main job, end to end, in a few minutes on a CPU: `make demo`.

A small model is made on the spot and generates text with stock mlx-lm, then with this library, on
the GPU where there is one, else with the same Metal kernel run on the CPU (which proves that it is
right; nothing is faster there). Then a broken kernel meets the gate, and all is switched off.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TOKENS, PROMPT_TOKENS = 48, 24


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="mlx-lm-openevolve-demo-") as folder:
        # A registry of its own: the demo gates from scratch and leaves nothing behind.
        os.environ["MLX_LM_OPENEVOLVE_HOME"] = str(Path(folder) / "registry")
        return demo(Path(folder))


def demo(folder: Path) -> int:
    import mlx_lm
    import tiny_model
    from rich.console import Console
    from rich.progress import Progress

    import mlx_lm_openevolve
    from mlx_lm_openevolve.device import detect

    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 140
    backend = detect().backend

    out.rule("1. a small Qwen3 model, trained here on this repository's own text")
    text = tiny_model.corpus(ROOT)
    with Progress(console=out, transient=True) as bar:
        task = bar.add_task("training", total=tiny_model.STEPS)
        made = tiny_model.make(
            folder / "model", text, progress=lambda step, loss: bar.update(task, completed=step)
        )
    out.print(
        f"{made['parameters']:,.0f} parameters in bfloat16, loss {made['loss']:.3f} nats a token"
        f" after {made['seconds']:.0f} s"
    )
    model, tokenizer = mlx_lm.load(str(folder / "model"))
    prompt = tokenizer.encode(text)[:PROMPT_TOKENS]

    out.rule("2. stock mlx-lm")
    stock, margins = generate(model, tokenizer, prompt)
    out.print(tokenizer.decode(stock), style="dim", markup=False)
    out.print(
        f"{len(stock)} tokens; margin of the top choice over the second, in nats:"
        f" smallest {min(margins):.2f}, median {sorted(margins)[len(margins) // 2]:.2f}"
    )

    out.rule(f"3. the same with enable_optimizations(), backend {backend}")
    out.print("every workload is gated at first use ...")
    if backend == "host":
        out.print("the CPU proves that kernels are right: nothing is timed there")
    # Not required to be faster: a model this small is no measure, and the CPU is none at all.
    mlx_lm_openevolve.enable_optimizations(backend=backend, require_faster=False)
    ours, _ = generate(model, tokenizer, prompt)
    info = mlx_lm_openevolve.get_optimization_info()
    out.print(workload_table(info))
    equal = ours == stock
    hits = sum(row["hits"] for row in info["workloads"].values())
    out.print(f"greedy tokens equal to stock mlx-lm: {equal}; calls served by a kernel: {hits}")

    if not hits:
        out.print("[red]not as promised: no kernel passed the gate[/]")
        return 1

    out.rule("4. a broken kernel: the query's length used as the keys' length")
    broken = plant(info, folder / "broken")
    mlx_lm_openevolve.enable_optimizations(broken, backend=backend, require_faster=False)
    again, _ = generate(model, tokenizer, prompt, tokens=4)
    info = mlx_lm_openevolve.get_optimization_info()
    out.print(workload_table(info))
    refused = all(row["kernel"] is None for row in info["workloads"].values())
    out.print(f"refused: {refused}; tokens still equal: {again == stock[:4]}")

    out.rule("5. disable_optimizations()")
    mlx_lm_openevolve.disable_optimizations()
    modules, foreign = holders()
    out.print(f"mlx-lm modules with their own function back: {modules}, without: {len(foreign)}")

    good = equal and hits > 0 and refused and again == stock[:4] and not foreign
    out.print("[green]all as promised[/]" if good else "[red]not as promised[/]")
    return 0 if good else 1


def generate(
    model: Any, tokenizer: Any, prompt: list[int], tokens: int = TOKENS
) -> tuple[list[int], list[float]]:
    """Greedy tokens, and for each the margin of the top choice over the second in nats."""
    import mlx.core as mx
    import mlx_lm

    found, margins = [], []
    for response in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=tokens):
        found.append(response.token)
        second, first = sorted(mx.topk(response.logprobs.astype(mx.float32), 2).tolist())
        margins.append(first - second)
    return found, margins


def workload_table(info: Mapping[str, Any]) -> Any:
    """What each workload ran on, with the verdict's figures."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("workload and kernel", "verdict", "hits", "fallbacks"):
        table.add_column(name, overflow="fold")
    for slug, row in info["workloads"].items():
        served = f"{row['name']} {row['kernel']}" if row["kernel"] else "SDPA"
        table.add_row(
            f"{slug}\n  {served}", verdict_text(row), str(row["hits"]), str(row["fallbacks"])
        )
    for reason, calls in info["fallbacks"].items():
        table.add_row("(no workload)\n  SDPA", reason, "0", str(calls))
    return table


def verdict_text(row: dict[str, Any]) -> str:
    from mlx_lm_openevolve.kernels.verdict import Verdict, describe

    verdict = row["verdict"]
    lines = describe(Verdict.from_json(verdict))[3:] if verdict and verdict["correct"] else []
    return "\n".join([row["reason"], *(" ".join(line.split()) for line in lines)])


def plant(info: Mapping[str, Any], folder: Path) -> Path:
    """A copy of the kernel that just served, with the mistake that a published one had."""
    from mlx_lm_openevolve.kernels.kernel import Kernel
    from mlx_lm_openevolve.kernels.registry import Registry

    used = next(row["kernel"] for row in info["workloads"].values() if row["kernel"])
    kernel = next(k for k in (Registry(root).kernel(used) for root in info["registry"]) if k)
    sources = {
        file: source.replace("keys_shape[2]", "(keys_shape[2] > 0 ? queries_shape[2] : 0)")
        for file, source in kernel.sources.items()
    }
    Kernel.from_parts({**kernel.meta, "name": "broken"}, sources).save(folder)
    return folder


def holders() -> tuple[int, list[str]]:
    """How many mlx_lm modules hold mlx-lm's own attention, and the names of those that do not."""
    name = "scaled_dot_product_attention"
    own, foreign = 0, []
    for module_name, module in list(sys.modules.items()):
        held = vars(module).get(name) if module_name.startswith("mlx_lm.") else None
        if held is None:
            continue
        if held.__module__ == "mlx_lm.models.base" and not hasattr(held, "__wrapped__"):
            own += 1
        else:
            foreign.append(module_name)
    return own, foreign


if __name__ == "__main__":
    sys.exit(main())
