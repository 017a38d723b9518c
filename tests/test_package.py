"""The package as a whole: what imports what, what a wheel contains, how it behaves installed."""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import pytest
from packaging.requirements import Requirement
from samples import OLDEST

import mlx_lm_openevolve
from mlx_lm_openevolve.cli.main import parser
from mlx_lm_openevolve.runtime import api

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_lm_openevolve"

# Folders and files at the top of the package, lowest first: each may import what stands below it.
FLOORS = [
    [
        "_version",
        "cache",
        "device",
        "directives",
        "errors",
        "files",
        "home",
        "hub",
        "intervals",
        "names",
        "processes",
        "switches",
        "units",
    ],
    ["ops"],
    ["kernels", "metalhost"],
    ["backends", "importer"],
    ["gate"],
    ["runtime", "decode", "bench", "__init__"],
    ["tune"],
    ["cli", "evolve"],
    ["__main__"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name within it."""
    found = {}
    for root, prefix in ((PACKAGE, ()), (ROOT / "evolve", ("evolve",))):
        for path in root.rglob("*.py"):
            inside = path.relative_to(root).with_suffix("").parts
            if "__pycache__" in inside or inside[0] in ("evolve", "tuned"):
                continue
            parts = [*prefix, *inside]
            found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = path
    return found


COMMANDS = next(
    sorted(action.choices)
    for action in parser()._actions
    if isinstance(action, argparse._SubParsersAction)
)


def imports(name: str, path: Path, known: set[str], lazy: bool) -> set[str]:
    """Modules of the package that a module imports: when it is loaded, with `lazy` ever."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    here = [] if name == "__init__" else here
    found: set[str] = set()

    def module(dotted: str) -> str | None:
        while dotted and dotted not in known:
            dotted = dotted.rpartition(".")[0]
        return dotted or None

    def visit(node: ast.AST) -> None:
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            base = [] if not node.level else here[: len(here) - node.level + 1]
            base += (node.module or "").split(".") if node.module else []
            if node.level == 0:
                if base[:1] != [PACKAGE.name]:
                    return
                base = base[1:]
            for alias in node.names:
                target = module(".".join([*base, alias.name])) or "__init__"
                found.add(target)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                if top == PACKAGE.name:
                    found.add(module(rest) or "__init__")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(path))
    return found - {name}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def graph(lazy: bool = True) -> dict[str, set[str]]:
    found = sources()
    return {name: imports(name, path, set(found), lazy) for name, path in found.items()}


def test_imports_run_one_way() -> None:
    for name, targets in graph().items():
        own = name.split(".")[0]
        for target in targets:
            other = target.split(".")[0]
            if own == other:
                continue
            assert FLOOR[other] <= FLOOR[own], f"{name} imports {target}, which stands above it"
            assert other != "evolve" or own == "cli", f"{name}: the core never imports evolve"


def test_what_serves_calls_loads_neither_gate_nor_search() -> None:
    """Modules of the run-time path import those only when something must be judged, and what serves
    whole steps only where these are switched on."""
    loaded = graph(lazy=False)
    reached, todo = set(), ["__init__", *(n for n in loaded if n.startswith("runtime."))]
    while todo:
        reached.add(name := todo.pop())
        todo += loaded[name] - reached
    unasked = ("gate", "evolve", "bench", "cli", "decode", "tune")
    above = {name for name in reached if name.split(".")[0] in unasked}
    asked = {name for name in reached if re.search(r"\.(questions|search|suites|mutants)$", name)}
    assert not above | asked


def test_two_classes_never_share_a_name() -> None:
    """But for a family's own Workload, Bucket and Mutant, and what serves the protocols of Op."""
    places: dict[str, list[str]] = {}
    for name, path in sources().items():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    shared = {name: where for name, where in places.items() if len(where) > 1}
    for name in ("Workload", "Bucket", "Mutant", "Route", "Router"):
        assert "ops.base" in shared.pop(name)
    assert not shared


def test_no_imports_run_in_a_circle() -> None:
    remaining = dict(graph())
    while free := [name for name, targets in remaining.items() if not targets & set(remaining)]:
        for name in free:
            del remaining[name]
    assert not remaining, f"in a circle, or above one: {sorted(remaining)}"


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
    # From a clone's content: what is not tracked must not be needed, nor leak into the wheel. The
    # wheel is made of the sdist, in which the links evolve/ and tuned/ must have become folders.
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
        [sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(copy)],
        capture_output=True,
        check=True,
    )
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_contains_every_tracked_file(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == tracked()


def test_wheel_and_sdist_are_small(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    said = re.search(r"wheel and sdist have (\d+) MB at most", (ROOT / "README.md").read_text())
    assert said is not None
    for file in (wheel, sdist):
        assert file.stat().st_size < int(said[1]) * 1e6


@pytest.fixture(scope="module")
def tool(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our command in an empty environment that has the wheel and what it asks for, no more."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    command = installed(folder, "--no-deps", str(wheel))
    (packages,) = folder.glob("lib/python*/site-packages")
    (ours,) = metadata.distributions(name="mlx-lm-openevolve", path=[str(packages)])
    needed: dict[str, metadata.Distribution] = {}
    add_needed(ours, set() if sys.platform == "darwin" else {"cpu"}, needed)
    for distribution in needed.values():
        link(distribution, packages, command.parent)
    return command


def add_needed(
    asking: metadata.Distribution, extras: set[str], found: dict[str, metadata.Distribution]
) -> None:
    """What a distribution asks for, and what that asks for in turn, as it is installed here."""
    for text in asking.requires or []:
        wanted = Requirement(text)
        marker, name = wanted.marker, f"{wanted.name} {sorted(wanted.extras)}"
        asked = marker is None or any(marker.evaluate({"extra": e}) for e in extras or {""})
        if asked and name not in found:
            found[name] = metadata.distribution(wanted.name)
            assert found[name].version in wanted.specifier, f"{asking.name}: {text}"
            add_needed(found[name], wanted.extras, found)


def link(distribution: metadata.Distribution, packages: Path, programs: Path) -> None:
    """Have an environment share a distribution's files, and their bytecode, with this one."""
    for file in distribution.files or []:
        top, here = packages / file.parts[0], Path(str(distribution.locate_file(file)))
        if file.parts[0] == "..":
            if file.parent.name == "bin" and here.exists():
                (programs / file.name).symlink_to(here.resolve())
        elif top.name != "__pycache__" and not top.exists():
            top.symlink_to(Path(str(distribution.locate_file(file.parts[0]))).resolve())


def installed(folder: Path, *wanted: str) -> Path:
    """Our command in a new environment that has what is wanted, put there by this one's pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q"]
    pip += ["--disable-pip-version-check", "--no-compile"]  # bytecode of what is imported alone
    subprocess.run([*pip, *wanted], check=True, capture_output=True)
    return folder / "bin" / "mlx-lm-openevolve"


@pytest.mark.slow
@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_a_model_runs_on_the_oldest_and_the_newest_mlx(
    age: str, wheel: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    if age == "oldest":
        wanted = [f"{package}=={version}" for package, version in OLDEST.items()]
    else:
        wanted = ["mlx", "mlx-lm", "--upgrade"]
    extra = "host" if sys.platform == "darwin" else "host,cpu"
    tool = installed(tmp_path / "venv", f"{wheel}[{extra}]", *wanted)
    words = ["run", "--backend", "host", "--any-correct", "mlx_lm.generate", "--model"]
    done = ask(
        tool, tmp_path, *words, str(tiny_folder), "--prompt", "def main", "--max-tokens", "4"
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    served = re.search(r"mlx-lm-openevolve: (\d+) attention calls on kernels", said)
    assert served is not None, said
    assert int(served[1]) > 0, said


def ask(tool: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does: nothing of this checkout is to be found."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [tool, *argv], cwd=folder, env=inherited, capture_output=True, text=True, check=False
    )


def test_the_wheel_runs_in_an_empty_environment(tool: Path, tmp_path: Path) -> None:
    done = ask(tool, tmp_path, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("version "), "what it prints without --json"
    status = json.loads(done.stdout.splitlines()[-1])
    assert status["version"] == mlx_lm_openevolve.__version__
    shipped = next(row for row in status["registries"] if not row["writable"])
    assert shipped["kernels"] > 0
    assert str(tool.parent.parent) in shipped["root"]
    # No compiler was asked for: the reason is one line that says how to get one.
    assert "[host]" in status["backends"]["host"] or status["backends"]["host"] == "available"


def test_every_command_of_the_wheel_works_or_says_why_not(
    tool: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    """Exit code and what is said, for each of the commands that a newcomer tries first beside
    `status`, which is run above."""
    run = ["run", "mlx_lm.generate", "--model", str(tiny_folder), "--prompt", "x"]
    bench = ["bench", "--shape", "qwen3-0.6b", "--preset", "short_context_quick"]
    gpu = mx.default_device() == mx.gpu
    asked: list[tuple[list[str], int, str]] = [
        ([*run, "--max-tokens", "4"], 0, "attention calls on SDPA"),
        (["list"], 0, "verdict"),
        (["show", "gqa_decode"], 0, "simdgroup"),
        (["show", "attention-b1-hq8-hkv2-lq1-lk128-d64-v64-bfloat16-none"], 0, "here"),
        (["show", "nonsense"], 2, "neither a stored kernel's id or name nor a workload"),
        (["report", "nonsense"], 2, "holds no run"),
        (["report", archive(tmp_path)], 0, "no pictures: pip install"),
        (["clear"], 0, "removed"),
        (["evolve", "--backend", "host", "--candidates", "1"], 2, "[host]"),
        (["check", "gqa_decode", "--backend", "host"], 2, "[host]"),
    ]
    if not gpu:
        asked.append((bench, 2, "MLX has no GPU here"))
    for argv, code, says in asked:
        done = ask(tool, tmp_path, *argv)
        said = done.stdout + done.stderr
        assert done.returncode == code, (argv, said)
        assert says in said, (argv, said)
        assert "Traceback" not in said, (argv, said)
        if code == 2:
            assert said.count("\n") == 1, (argv, said)


def archive(folder: Path) -> str:
    """A run that was begun, as another machine may have left it."""
    from mlx_lm_openevolve.evolve.archive import Archive
    from mlx_lm_openevolve.evolve.config import Config
    from mlx_lm_openevolve.ops.attention.workload import Workload

    workload = Workload(1, 8, 2, 1, 128, 64, 64, "bfloat16")
    run = Archive.create(folder / "begun", Config("host", (workload,), (1.0,)), {"name": "there"})
    run.close()
    return str(folder / "begun")


# What only a command that judges or measures needs.
JUDGES = ["distributed", "numpy", "mlx_lm_openevolve.gate", "mlx_lm_openevolve.metalhost"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mlx_lm_openevolve", ["mlx_lm", "transformers", "openai", "rich", "numpy"]),
        # transformers comes with mlx_lm: seconds that `run` would add to every command.
        ("mlx_lm_openevolve.cli.main", ["mlx_lm", "transformers", "openai", *JUDGES]),
        ("mlx_lm_openevolve.evolve.worker", ["mlx_lm", "transformers", "openai", "rich"]),
    ],
)
def test_importing_the_package_is_light(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["cuda", "metal"])
def test_serving_on_a_gpu_needs_no_executor_on_the_cpu(backend: str) -> None:
    code = (
        f"import sys; import mlx_lm_openevolve.backends.{backend};"
        "print([m for m in sys.modules if 'metalhost' in m or '.evolve' in m or '.gate.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("asks", "code"),
    [
        ("from mlx_lm_openevolve.__main__ import main; sys.exit(main())", 2),
        ("import mlx_lm_openevolve; mlx_lm_openevolve.enable_optimizations()", 1),
    ],
    ids=["command", "function"],
)
def test_without_mlx_one_line_says_how_to_get_it(asks: str, code: int) -> None:
    text = f"import sys; sys.modules['mlx'] = None; sys.argv = ['x', 'status']; {asks}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == code
    said = done.stderr.splitlines()
    assert said[-1].endswith(mlx_lm_openevolve.errors.NO_MLX)
    assert len(said) == 1 or code == 1


def test_help_and_version_need_nothing_but_the_command_line() -> None:
    """As after a plain `pip install` on Linux, where MLX comes with an extra."""
    words = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    text = (
        "import sys; sys.modules.update(dict.fromkeys(('mlx', 'mlx_lm', 'numpy')))\n"
        "from mlx_lm_openevolve.cli.main import main\n"
        f"for argv in {words}:\n"
        "    try: main(argv)\n"
        "    except SystemExit as ended: assert not ended.code, argv\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: mlx-lm-openevolve") == 1 + len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_without_mlx_is_one_line_that_names_installs_that_work(command: str) -> None:
    operands = {"check": ["x"], "import": ["x.json"], "export": ["x.json"], "show": ["x"]}
    operands |= {"report": ["x"], "fleet": ["worker", "--scheduler", "tcp://127.0.0.1:1"]}
    operands |= {"run": ["--backend", "host", "mlx_lm.generate"], "bench": ["--shape", "qwen3-4b"]}
    words = ["x", command, *operands.get(command, []), "--json"]
    words = ["x", "--json", *words[1:-1]] if command == "run" else words
    text = f"import sys; sys.modules['mlx'] = None; sys.argv = {words};"
    text += "from mlx_lm_openevolve.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    line = mlx_lm_openevolve.errors.NO_MLX
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"mlx-lm-openevolve: {line}\n"
    assert json.loads(done.stdout) == {"error": line}
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    for named in re.findall(r"\[(\w+)\]", line):
        assert f'{named} = ["mlx[{named}]' in extras
    assert "'.[" in line, "which works from a copy of this repository"


def test_the_version_is_told_once() -> None:
    assert f'version = "{mlx_lm_openevolve.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_pip_installs_what_the_versions_checked_allow() -> None:
    text = (ROOT / "pyproject.toml").read_text()

    def bound(versions: dict[str, tuple[int, int]], package: str) -> str:
        return ">=" + ".".join(map(str, versions[package]))

    assert f"\"mlx{bound(api.SUPPORTED, 'mlx')}; platform_system == 'Darwin'\"" in text
    assert f'"mlx-lm{bound(api.SUPPORTED, "mlx-lm")}"' in text
    for extra in ("cpu", "cuda12", "cuda13"):
        assert f'{extra} = ["mlx[{extra}]{bound(api.SUPPORTED, "mlx")}"]' in text


def test_public_names_exist() -> None:
    for name in mlx_lm_openevolve.__all__:
        assert hasattr(mlx_lm_openevolve, name)
