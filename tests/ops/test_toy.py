"""A second family costs one folder and one line: a toy goes through the whole house.

The package is copied, the folder tests/support/toy is put beside its families, and one line names
it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from samples import needs_clang

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "support" / "toy"

pytestmark = needs_clang

SERVED = """
import json
import mlx.core as mx
import mlx_lm_openevolve
from mlx_lm_openevolve.ops.toy import target

held = [target.affine]
x, scale, shift = mx.random.normal((5, 64)), mx.random.normal((64,)), mx.random.normal((64,))
want = held[0](x, scale, shift)
with mlx_lm_openevolve.optimizations(backend="host", require_faster=False):
    assert target.affine is not held[0]
    for _ in range(3):
        assert mx.allclose(target.affine(x, scale, shift), want, atol=1e-5).item()
    odd = target.affine(x[None], scale, shift)
    assert odd.shape == (1, 5, 64)
    info = mlx_lm_openevolve.get_optimization_info()

    class Special(target.Affine):
        pass

    def hits(layer):
        rows = lambda: mlx_lm_openevolve.get_optimization_info()["workloads"].values()
        before = sum(row["hits"] for row in rows())
        assert mx.allclose(layer(x), want, atol=1e-5).item()
        return sum(row["hits"] for row in rows()) - before

    layer = target.Affine(scale, shift)
    assert (hits(layer.eval()), hits(layer.train())) == (1, 0)
    assert hits(Special(scale, shift).eval()) == 0
assert target.affine is held[0]
print(json.dumps(info))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with one more family."""
    root = tmp_path_factory.mktemp("house")
    ignored = shutil.ignore_patterns("__pycache__", "evolve", "tuned", "runs")
    shutil.copytree(ROOT / "mlx_lm_openevolve", root / "mlx_lm_openevolve", ignore=ignored)
    evolve = shutil.ignore_patterns("__pycache__", "runs")
    shutil.copytree(ROOT / "evolve", root / "mlx_lm_openevolve" / "evolve", ignore=evolve)
    shutil.copytree(ROOT / "tuned" / "v2" / "kernels", root / "mlx_lm_openevolve/tuned/v2/kernels")
    shutil.copytree(TOY, root / "mlx_lm_openevolve" / "ops" / "toy")
    families = root / "mlx_lm_openevolve" / "ops" / "__init__.py"
    text = families.read_text()
    line = 'FAMILIES = {"attention": 1, "linear": 1}'
    assert text.count(line) == 1
    families.write_text(text.replace(line, 'FAMILIES = {"attention": 1, "linear": 1, "toy": 1}'))
    return root


def run(house: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(house), "MLX_LM_OPENEVOLVE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=house, env=environment, capture_output=True, text=True
    )


# The exit code of each command behind what it prints.
COMMANDS = """
import json, sys
from mlx_lm_openevolve.cli.main import main

for words in json.loads(sys.argv[1]):
    print(main([*words, "--json"]))
"""


def commands(house: Path, home: Path, *asked: list[str]) -> list[tuple[int, dict[str, object]]]:
    """The exit code and the JSON of some commands, run in one process."""
    done = run(house, home, "-c", COMMANDS, json.dumps(asked))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * len(asked), done.stderr
    return list(zip(lines[1::2], lines[::2], strict=True))


def test_a_call_is_gated_served_and_counted(house: Path, home: Path) -> None:
    kernel = str(house / "mlx_lm_openevolve" / "ops" / "toy" / "kernel")
    done = run(house, home, "-c", SERVED.replace('backend="host"', f'{kernel!r}, backend="host"'))
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout.splitlines()[-1])
    row = info["workloads"]["toy-r8-w64-float32"]
    assert (row["name"], row["hits"], row["fallbacks"]) == ("toy_affine", 3, 0)
    assert row["verdict"]["mutants"] == {
        **row["verdict"]["mutants"], "killed": 5, "of": 5, "survivors": []
    }  # fmt: skip
    assert info["fallbacks"] == {"not rows with a scale and a shift": 1}
    # The gate's baseline is the replaced function: nothing waited for itself, nothing else ran.
    assert not info["workloads"].keys() - {"toy-r8-w64-float32"}
    told = ["list"], ["show", "toy-r8-w64-float32"], ["status"]
    found = commands(house, home, *told, ["bench", "--kernel", kernel, "--backend", "host"])
    assert [code for code, _ in found] == [0, 0, 0, 0]
    listed, *_, benched = (result for _, result in found)
    assert [v["workload"] for v in listed["verdicts"]] == ["toy-r8-w64-float32"]
    assert len(benched["verdicts"]) == 2


def test_check_tells_right_from_wrong(house: Path, home: Path, tmp_path: Path) -> None:
    right = house / "mlx_lm_openevolve" / "ops" / "toy" / "kernel"
    faults = ("scale[column]", "scale[row]"), ("T(fma(", "T(0 * fma("), ("x_strides[1]", "0")
    folders = [right, *(tmp_path / f"wrong{i}" for i in range(len(faults)))]
    for folder, (old, new) in zip(folders[1:], faults, strict=True):
        shutil.copytree(right, folder)
        source = folder / "affine.metal"
        source.write_text(source.read_text().replace(old, new))
    checked = [["check", str(folder), "--backend", "host"] for folder in folders]
    for words in checked[1:]:  # of the wrong ones one workload tells
        words += ["--workload", "toy-r8-w64-float32"]
    (code, result), *wrong = commands(house, home, *checked)
    assert code == 0, result
    assert len(result["verdicts"]) == 2
    assert [code for code, _ in wrong] == [1, 1, 1], wrong


def test_evolve_searches_it_without_a_gpu(house: Path, home: Path, tmp_path: Path) -> None:
    kernel = str(house / "mlx_lm_openevolve" / "ops" / "toy" / "kernel")
    asked = ["--kernels", kernel, "--candidates", "4", "--all"]
    out = str(tmp_path / "run")
    asked += ["--backend", "host", "--jobs", "1", "--out", out]
    (code, result), (reported, _) = commands(house, home, ["evolve", *asked], ["report", out])
    assert "error" not in result, result
    assert code in (0, 1)
    assert result["candidates"] == 4
    assert result["valid"] == 1.0
    assert set(result["best"]) == {"toy-r8-w64-float32", "toy-r16-w64-float32"}
    assert result["ratio"] is None, "nothing is timed"
    for best in result["best"].values():
        assert best["moved_bytes"] >= best["least_bytes"] > 0
    assert reported == 0
