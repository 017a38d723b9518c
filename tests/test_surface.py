"""The surface that users see, held against files in golden/: what changes there changes for them.

python tests/test_surface.py        writes the files anew; CHANGELOG says why one differs
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlx_lm_openevolve
from mlx_lm_openevolve import errors, metalhost
from mlx_lm_openevolve.cli.main import main, parser

GOLDEN = Path(__file__).with_name("golden")
WORKLOAD = "attention-b1-hq8-hkv2-lq1-lk128-d64-v64-bfloat16-none"
PROGRAM = """
import mlx.core as mx
kernel = mx.fast.metal_kernel(name="k", input_names=["values"], output_names=["out"], source="x;")
def attention(queries, keys, values, scale, mask=None):
    B, H, L, D = queries.shape
    return kernel(inputs=[values], template=[("D", D)], grid=(32, H, B), threadgroup=(32, 1, 1),
                  output_shapes=[(B, H, L, D)], output_dtypes=[queries.dtype])[0]
"""


def api() -> dict[str, Any]:
    """Public names with their signatures, and the tree of errors."""
    found: dict[str, Any] = {}
    for name in mlx_lm_openevolve.__all__:
        value = getattr(mlx_lm_openevolve, name)
        found[name] = str(inspect.signature(value)) if callable(value) else type(value).__name__
    tree = {
        name: [base.__name__ for base in value.__mro__[1:-2]]
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    return {"functions": found, "errors": dict(sorted(tree.items()))}


def options() -> dict[str, Any]:
    """Every command's arguments: names, choices, default, help. The layout is argparse's own."""

    def of(which: argparse.ArgumentParser) -> dict[str, Any]:
        rows = {}
        for action in which._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            choices = None if action.choices is None else [str(c) for c in action.choices]
            row = {"metavar": action.metavar, "choices": choices, "help": action.help}
            default = None if action.default is argparse.SUPPRESS else action.default
            rows[name] = {**row, "default": default, "nargs": action.nargs}
        return rows

    top = parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    found = {name: of(sub) for name, sub in commands.choices.items()}
    return {"": of(top), **found, "help": {a.dest: a.help for a in commands._choices_actions}}


def shape(value: Any) -> Any:
    """The types in a JSON value; a list is that of its first element."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


def outputs(folder: Path, model: Path, say: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Exit code and JSON of each command that runs on any machine, with what it is asked."""
    import products  # of tests/support, which a process of `info` does not see

    (folder / "program.py").write_text(PROGRAM)
    run = str(folder / "run")
    host = ["--backend", "host"]
    evolve = ["--workloads", WORKLOAD, "--candidates", "1", "--jobs", "1", "--seed", "3"]
    products.product_kernel().save(folder / "product")
    table = products.table(
        folder / "points.json", [(m, 4096, 64 * m) for m in range(1, 7)], lambda *x: sum(x)
    )
    points = ["--points", str(table), "--kernels", str(folder / "product"), "--candidates", "50"]
    bench = ["--any-correct", "-p", "8", "-g", "4", "-n", "1"]
    asked = {
        "check": ["check", "gqa_decode", "--workload", WORKLOAD, *host],
        "evolve": ["evolve", *host, *evolve, "--out", run],
        "evolve heuristic": ["evolve", "--proposer", "heuristic", *points, "--out", f"{run}-tiles"],
        "report": ["report", run],
        "bench": ["bench", "--model", str(model), *host, *bench],
        "bench --kernel": ["bench", "--kernel", "gqa_decode", "--suite", WORKLOAD, *host],
        "list": ["list"],
        "show WORKLOAD": ["show", WORKLOAD],
        "show KERNEL": ["show", "gqa_decode"],
        "status": ["status"],
        "import": ["import", str(folder / "program.py"), "--out", str(folder / "imported")],
        "export": ["export", "--device", "nvidia-h100-80gb-hbm3", str(folder / "chip.json")],
        "import FILE": ["import", str(folder / "chip.json")],
        "clear": ["clear"],
        "unknown kernel": ["check", "nonsense"],
        "unknown workload": ["evolve", "--workloads", "nonsense", *host],
        "no run": ["report", str(folder / "nothing")],
        "no program": ["import", str(folder / "nothing.py"), "--out", str(folder / "out")],
        "no kernel folder": ["check", str(folder)],
        "no device": ["clear", "--device", "nonsense"],
        "no task": ["bench", *host, *bench],
    }
    found = {}
    for name, argv in asked.items():
        code = main([*argv, "--json"])
        found[name] = {"exit": code, "json": json.loads(say.readouterr().out.splitlines()[-1])}
    return found


def _same_everywhere(value: Any) -> Any:
    """Keys that are names of kernels, files, workloads and the like, as one."""
    if isinstance(value, list):
        return [_same_everywhere(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if key in (
            "params",
            "sources",
            "also",
            "variables",
            "counters",
            "meta",
            "details",
            "kinds",
        ):
            found[key] = "object"
        elif key in ("routes", "workloads", "best", "averages", "samples", "verdicts", "direct"):
            inner = list(item.values())[:1] if isinstance(item, dict) else item
            found[key] = {"<name>": _same_everywhere(inner)}
        else:
            found[key] = _same_everywhere(item)
    return found


def info() -> Any:
    """The keys of get_optimization_info(), off and on, with a workload in it."""
    import mlx.core as mx
    from mlx_lm.models import base
    from mlx_lm.models.cache import KVCache

    off = mlx_lm_openevolve.get_optimization_info()
    with mlx_lm_openevolve.optimizations(backend="host"):
        x = mx.ones((1, 2, 1, 64), mx.bfloat16)
        base.scaled_dot_product_attention(x, x, x, KVCache(), 1.0, None)
        on = mlx_lm_openevolve.get_optimization_info()
    return {"off": shape(off), "on": _same_everywhere(shape(on))}


def expected(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def held(name: str, found: Any) -> None:
    found = json.loads(json.dumps(found))
    if "--golden" in sys.argv:
        (GOLDEN / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == expected(name)


def test_the_public_functions_and_errors() -> None:
    held("api", api())


def test_every_command_and_its_options() -> None:
    held("options", options())


def test_the_keys_of_get_optimization_info() -> None:
    # In a process of its own: what other tests hold of mlx-lm would stand in `unreached`.
    done = subprocess.run(
        [sys.executable, __file__, "info"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    held("info", json.loads(done.stdout))


@pytest.mark.usefixtures("at_hand")
def test_exit_codes_and_json_of_the_commands(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not metalhost.compiler_available()[0]:
        pytest.skip("no clang for the host backend")
    import documentation

    found = outputs(tmp_path, tiny_folder, capsys)
    documented = documentation.documented()
    for name, row in found.items():
        if name in documented:
            assert documentation.differs(name, row["json"]) == "", name
    report = {key: value for key, value in found["report"]["json"].items() if key != "files"}
    assert documentation.differs("evolve", report) == ""
    for row in found.values():
        row["json"] = _same_everywhere(shape(row["json"]))
    held("outputs", found)


if __name__ == "__main__" and sys.argv[1:] == ["info"]:
    print(json.dumps(info()))
elif __name__ == "__main__":
    sys.argv = [sys.argv[0], "--golden"]
    sys.exit(pytest.main([__file__, "-p", "no:xdist", "-q"], plugins=[]))
