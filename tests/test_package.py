"""The package as a whole: what imports what, what a wheel contains, how it behaves installed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mlx_lm_openevolve

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_lm_openevolve"

# A module may import those before it; a later layer never reaches back. metalhost stands beside.
LAYERS = [
    ["errors", "device", "workload", "expressions", "budget", "callers"],
    ["kernel", "quantized"],
    ["registry", "metalhost"],
    ["backends", "importer", "symbols"],
    ["reference", "mutants", "timing"],
    ["exam"],
    ["race", "source_mutants"],
    ["gate"],
    ["plan"],
    ["dispatch"],
    ["patch"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FREE = {"__init__", "__main__", "cli", "inspection", "hub", "run", "sitecustom"}
FREE |= {"bench", "bench_worker", "bench_kernel", "shapes"}


def imported(path: Path) -> set[str]:
    """First-level modules of the package that a file imports, at any depth of its code."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            base = [part for part in base if part]
            found |= {base[0]} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            rest = (node.module or "").split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name, _, rest = alias.name.partition(".")
                found |= {rest.split(".")[0]} if name == PACKAGE.name and rest else set()
    return found - {"__version__"}


def core_files() -> list[Path]:
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("backends/*.py"), *PACKAGE.glob("metalhost/*.py")]
    return sorted(files)


@pytest.mark.parametrize("path", core_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own in FREE:
        return
    for name in imported(path) - {own}:
        assert name != "evolve", "the core never imports evolve"
        assert name in RANK, f"{own} imports {name}, which has no place in the layers"
        known = RANK.get(own.removesuffix("_worker"))
        assert known is not None, f"{own} has no place in the layers"
        assert RANK[name] <= known, f"{own} imports {name}, which stands above it"


def tracked() -> set[str]:
    """Files that belong into a wheel, under the names they have there."""
    listed = subprocess.run(
        ["git", "ls-files", "mlx_lm_openevolve", "evolve", "tuned"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    found = set()
    for name in listed:
        if (ROOT / name).is_symlink():
            continue
        top = name.split("/")[0]
        found.add(name if top == "mlx_lm_openevolve" else f"mlx_lm_openevolve/{name}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    copy = tmp_path_factory.mktemp("source")
    # From a clone's content: what is not tracked must not be needed, nor leak into the wheel.
    archive = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(
        ["tar", "-c", "--null", "-T", "-", "-f", str(out / "source.tar")],
        cwd=ROOT,
        input=archive,
        check=True,
    )
    subprocess.run(["tar", "-xf", str(out / "source.tar")], cwd=copy, check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(copy)],
        capture_output=True,
        check=True,
    )
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_contains_every_tracked_file(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == tracked()


def test_the_wheel_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    extra = "" if sys.platform == "darwin" else "[cpu]"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}{extra}"],
        check=True,
        capture_output=True,
    )
    tool = tmp_path / "venv" / "bin" / "mlx-lm-openevolve"
    done = subprocess.run(
        [tool, "status", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    status = json.loads(done.stdout.splitlines()[-1])
    assert status["version"] == mlx_lm_openevolve.__version__
    shipped = next(row for row in status["registries"] if not row["writable"])
    assert shipped["kernels"] > 0
    # No compiler was asked for: the reason is one line that says how to get one.
    assert "[host]" in status["backends"]["host"] or status["backends"]["host"] == "available"
    refused = subprocess.run(
        [tool, "show", "nonsense"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_importing_the_package_is_light() -> None:
    heavy = ("mlx_lm", "transformers", "openai", "rich", "numpy")
    code = f"import sys, mlx_lm_openevolve; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_told_once() -> None:
    assert f'version = "{mlx_lm_openevolve.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_public_names_exist() -> None:
    for name in mlx_lm_openevolve.__all__:
        assert hasattr(mlx_lm_openevolve, name)
