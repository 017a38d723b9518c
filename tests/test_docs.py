"""Every command of the pages runs, or parses where it cannot; what they name and promise is so."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import documentation
import pytest
import yaml
from documentation import PAGES, ROOT, Block, blocks, differs
from programs import PROGRAM
from samples import OLDEST, shipped_in_metal, store_correct

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.cli import run
from mlx_lm_openevolve.cli.main import main, parser
from mlx_lm_openevolve.device import FACTS
from mlx_lm_openevolve.kernels import expressions, kernel, spec
from mlx_lm_openevolve.ops import base
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.runtime import api

DECODE = Workload(1, 8, 2, 1, 128, 64, 64, "bfloat16")
OURS = "mlx-lm-openevolve"
WORKFLOWS = sorted(path.stem for path in (ROOT / ".github" / "workflows").iterdir())


def consoles(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "console"]


@pytest.fixture
def desk(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in as a reader does: this repository's folders, our command on the path,
    and MODEL, which stands for a model of the reader's."""
    work, programs = tmp_path / "work", tmp_path / "bin"
    work.mkdir()
    programs.mkdir()
    for name in ("tuned", "benchmarks", "examples"):
        (work / name).symlink_to(ROOT / name)
    (programs / OURS).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlx_lm_openevolve "$@"\n')
    (programs / OURS).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MODEL", str(tiny_folder))
    return work


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, desk: Path) -> None:
    documentation.write_files(page, desk)
    for block in consoles(page):
        if "needs" in block.says:
            continue
        if "after" in block.says:
            documentation.write_files(page.parent / block.says["after"], desk)
        allowed = [int(code) for code in block.says.get("exit", "0").split(" or ")]
        for command in block.commands:
            done = subprocess.run(
                ["bash", "-c", command.text],
                cwd=desk,
                env={**os.environ, **block.stand_in},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            where = f"{page.name}:{block.line}: {command.text}\n{done.stdout}"
            codes = allowed if command.text.startswith(OURS) else [0]
            assert done.returncode in codes, where
            assert documentation.agrees(command.shown, done.stdout), where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, desk: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            (desk / "program.py").write_text(f"import mlx_lm_openevolve\n{block.text}")
            done = subprocess.run(
                [sys.executable, "program.py"],
                cwd=desk,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{page.name}:{block.line}\n{done.stdout}"


def test_the_readme_is_short_and_its_one_screen_comes_first() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    first = "\n".join(lines[:55])
    for typed in ("pip install", f"{OURS} tune", f"{OURS} run", "enable_optimizations()"):
        assert typed in first


def test_the_readme_says_for_which_machine_each_line_of_its_installation_is() -> None:
    """They are alternatives: on Linux the first line alone brings no MLX."""
    (block,) = (b for b in consoles(ROOT / "README.md") if b.says.get("needs") == "install")
    lines = [command.text.partition("#") for command in block.commands]
    assert all(machine for _, _, machine in lines)
    for command, _, machine in lines[:3]:
        assert ("Linux" in machine) == ("cuda" in command or "cpu" in command)
    assert "**one** of these lines" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page: Path) -> None:
    """Those that need a GPU, a Mac, a model of the Hub or an installation, and the others too."""
    for block in consoles(page):
        assert block.commands, f"{page.name}:{block.line}: a console block without a command"
        for command in block.commands:
            where = f"{page.name}:{block.line}: {command.text}"
            text = command.text
            for name, value in block.stand_in.items():
                text = text.replace(f"${name}", value)
            words = shlex.split(text, comments=True)
            while "=" in words[0] and words[0].split("=")[0].isupper():
                words = words[1:]
            problem = parse_problem(words[0].removeprefix(".venv/bin/"), words[1:])
            assert not problem, f"{where}: {problem}"


def parse_problem(program: str, words: list[str]) -> str:
    """What is wrong with a command's words, "" where nothing is."""
    if program == OURS:
        options = parser().parse_args(words)  # exits where they do not parse
        if getattr(options, "wrapped", None):
            run.command_line(options.wrapped, options.arguments)
    elif program == "uv":
        where = words[words.index("--from") + 1]
        return parse_problem("pip", [where]) or parse_problem(OURS, words[words.index(OURS) + 1 :])
    elif program == "pip":
        text = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
        known = set(re.findall(r"^(\w+) = \[", text.split("\n[")[0], re.M))
        asked = re.search(r"\.\[([\w,]+)\]", " ".join(words))
        return ", ".join(set(asked[1].split(",")) - known if asked else [])
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        asked = {word for word in words if not re.fullmatch(r"[A-Z]+=\w+", word)}
        return "" if asked <= set(targets) else f"targets are {targets}"
    elif program == "python":
        if words[:2] == ["-m", "pytest"]:
            files = [word for word in words[2:] if word.startswith("tests")]
            return ", ".join(file for file in files if not (ROOT / file).exists())
        if words[:2] == ["-m", "pip"]:
            return parse_problem("pip", words[2:])
        if words[:2] == ["-m", "build"]:
            return ""
        if words[0] == "-m":
            words = [f"{words[1].replace('.', '/')}.py", *words[2:]]
        text = (ROOT / words[0]).read_text()
        missing = [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in text]
        return f"unknown {missing}" if missing else ""
    elif program not in ("cp", "sed", "git", "cd", "pre-commit", "dask"):
        return "a program that this test does not know"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_within_a_sentence_parses(page: Path) -> None:
    for text in re.findall(rf"`((?:{OURS}|python|make|pip) [^`]+)`", page.read_text()):
        words = shlex.split(text)
        assert not parse_problem(words[0], words[1:]), text


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def test_every_command_of_the_workflows_parses() -> None:
    jobs = workflow("test")["jobs"]
    assert {"linux", "oldest", "nvrtc", "macos"} <= jobs.keys()
    tried = 0
    for job in [*jobs.values(), *workflow("release")["jobs"].values()]:
        for line in [line for step in job["steps"] for line in step.get("run", "").splitlines()]:
            words = shlex.split(line)
            program = words[0].removeprefix(".venv/bin/") if words else ""
            if program in ("make", "python", "uv", OURS) and words[1] != "-c":
                assert not parse_problem(program, words[1:]), line
                tried += 1
    assert tried > 15


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_refers_to_is_there(name: str) -> None:
    jobs = workflow(name)["jobs"]
    for job in jobs.values():
        if "needs" in job:
            assert job["needs"] in jobs
        strategy = job.get("strategy", {}).get("matrix", {})
        text = json.dumps(job)
        for context, key in re.findall(r"\$\{\{ (\w+)\.(\w+)", text):
            assert context in ("runner", "github", "matrix"), text
            assert context != "matrix" or key in strategy, key
        for step in job["steps"]:
            assert len(step.keys() & {"run", "uses"}) == 1, step
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
            if "run" in step:
                done = subprocess.run(["bash", "-n"], input=step["run"], text=True, check=False)
                assert done.returncode == 0, step


def test_a_mac_s_report_is_kept_and_a_disagreement_fails() -> None:
    steps = workflow("test")["jobs"]["macos"]["steps"]
    assert not any("continue-on-error" in step for step in steps)
    runs = [step.get("run", "") for step in steps]
    for asked in ("make test", "make demo", "-k apple", "tests/backends/test_metal.py", "--report"):
        assert any(asked in run for run in runs), asked
    kept = next(step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()"
    folder = kept["with"]["path"]
    assert sum(f" {folder}" in run for run in runs) == 3  # two corpora, one report


def test_the_versions_that_the_pages_promise_are_tried() -> None:
    text = (ROOT / "README.md").read_text()
    jobs = workflow("test")["jobs"]
    pythons = jobs["linux"]["strategy"]["matrix"]["python"]
    assert f"| Python | {pythons[0]} | {pythons[-1]} |" in text
    said = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'Python :: (3\.\d+)"', said) == pythons
    assert f'requires-python = ">={pythons[0]}"' in said
    oldest = " ".join(step.get("run", "") for step in jobs["oldest"]["steps"])
    for package, version in OLDEST.items():
        assert f"{package}=={version}'" in oldest.replace("[cpu]", "")
        assert api.SUPPORTED[package] == tuple(map(int, version.split(".")[:2]))


def test_nothing_is_published_without_a_tag_nor_before_it_was_installed() -> None:
    release = workflow("release")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as a bool
    jobs = release["jobs"]
    assert [jobs[name]["needs"] for name in ("install", "pypi", "github")] == [
        "build", "install", "pypi"
    ]  # fmt: skip
    trusted = {name for name, job in jobs.items() if job.get("permissions")}
    assert trusted == {"pypi", "github"}
    assert release["permissions"] == {"contents": "read"}


def test_the_hooks_run_what_make_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin").replace("$(SOURCES)", "")
    lines = [line.strip() for line in lint.splitlines()]
    for hook in local["hooks"]:
        assert hook["entry"].removesuffix(" --force-exclude") in lines, hook


def test_every_command_that_an_issue_form_asks_for_parses() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        labels = [part["attributes"]["label"] for part in form["body"]]
        commands = [text for label in labels for text in re.findall(rf"`{OURS} ([^`]+)`", label)]
        assert commands, path.name
        for command in commands:
            assert not parse_problem(OURS, shlex.split(command)), command


def test_a_wrong_command_or_output_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        parse_problem(OURS, ["bench", "--no-such-option"])
    assert parse_problem("make", ["nonsense"])
    assert parse_problem("pip", ["install", ".[nonsense]"])
    assert parse_problem("python", ["benchmarks/overhead.py", "--nonsense"])
    assert parse_problem("python", ["-m", "pytest", "tests/nonsense.py"])
    assert documentation.agrees(("a 1", "...", "b ... c 2.5"), "a 7\nx\ny\nb z c 9.25\n")
    assert not documentation.agrees(("a 1", "b"), "a 1\nx\nb\n")
    assert not documentation.agrees(("...", "rejected: ..."), "accepted: x\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_console_blocks_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    hidden = re.findall(rf"^ {{4}}(?:{OURS}|make|pip|python) .*$", text, re.M)
    assert hidden == [], "an indented block is not run by these tests"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), target


# What a reader makes by the commands of a page, or has: no file of the repository.
READERS = {"batch/events.jsonl", "script.py"}
OTHER_PAGES = [ROOT / "mlx_lm_openevolve" / "metalhost" / "README.md"]
OTHER_PAGES += [*(ROOT / ".github").rglob("*.md")]


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES], ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = set(documentation.paths(page.read_text())) - READERS
    missing = [path for path in sorted(named) if not documentation.exists(path, page)]
    assert missing == []


def test_a_path_that_does_not_exist_would_be_noticed() -> None:
    text = (
        "`gate/judge.py`, `python benchmarks/nothing.py --x`, `RUN/a.json`, `a.b`, `x / y`, `ops/`"
    )
    page = ROOT / "README.md"
    assert documentation.paths(text) == ["gate/judge.py", "benchmarks/nothing.py", "ops/"]
    assert documentation.exists("gate/judge.py", page)
    assert documentation.exists("judge.py", page)
    assert documentation.exists("ops/", page)
    for wrong in ("benchmarks/nothing.py", "nothing.py", "gate/judge.py/", "docs/judge.py"):
        assert not documentation.exists(wrong, page), wrong


def test_the_readme_leads_to_every_page_and_every_picture_is_shown() -> None:
    text = (ROOT / "README.md").read_text()
    for path in PAGES[1:]:
        assert f"]({path.relative_to(ROOT)})" in text, path.name
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown == {path for path in (ROOT / "docs").iterdir() if path.suffix != ".md"}


def test_the_architecture_names_every_part_of_the_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in (ROOT / "mlx_lm_openevolve").iterdir():
        if path.name.startswith("_") or path.suffix not in ("", ".py"):
            continue
        assert f"`{path.name}/`" in text or f"`{path.name}`" in text, path.name


def defined(path: Path) -> set[str]:
    """What a module defines, methods and attributes of its classes included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in ast.walk(target)]
            found |= {name.id for name in names if isinstance(name, ast.Name)}
    return found


def test_what_the_architecture_says_to_be_in_a_file_is_there() -> None:
    tried = 0
    for names, file in re.findall(
        r"((?:`[\w.]+`(?:, | and )?)+) (?:and what follows it )?in `([\w/]+\.py)`",
        (ROOT / "ARCHITECTURE.md").read_text(),
    ):
        for name in re.findall(r"`([\w.]+)`", names):
            assert name.split(".")[-1] in defined(ROOT / "mlx_lm_openevolve" / file), (name, file)
            tried += 1
    assert tried > 10


def test_the_tests_mirror_the_packages() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    packages = {path.name for path in (ROOT / "mlx_lm_openevolve").iterdir()}
    assert folders - {"__pycache__", "benchmarks", "golden", "support"} <= packages


def test_the_architecture_lists_the_folders_in_the_order_of_their_imports() -> None:
    tree = ast.parse((ROOT / "tests" / "test_package.py").read_text())
    (floors,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    )
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    last = -1
    for floor in floors:
        at = [
            next(i for i, row in enumerate(rows) if f"`{name}/`" in row or f"`{name}.py`" in row)
            for name in floor
            if not name.startswith("_")
        ]
        assert min(at, default=last + 1) > last, floor
        last = max(at, default=last)


def test_contributing_names_all_that_a_family_must_and_may_say() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for part in (ops.Op, base.Question, base.Questions, base.SearchSpace, base.TimingInputs):
        methods = {name for name in vars(part) if not name.startswith("_")}
        asked = part in (ops.Op, base.Questions, base.SearchSpace)
        for name in methods | (part.__annotations__.keys() if asked else set()):
            assert f"`{name}`" in text, f"{part.__name__}.{name}"


def test_the_format_names_every_input_field_and_function() -> None:
    text = (ROOT / "docs" / "kernel-format.md").read_text()
    attention = ops.get("attention")
    for variant in attention.variants:
        assert f"`{variant}`" in text, variant
        for name in attention.inputs(variant):
            assert f"`{name}`" in text, name
    for name in attention.fields | spec.LAUNCH_KEYS | kernel._KEYS | FACTS:
        assert f"`{name}`" in text, name
    assert f"| `format` | {kernel.FORMAT} |" in text
    for name in expressions._FUNCTIONS:
        assert name in text, name


# JSON; that of commands which judge or measure is held beside its surface (test_surface.py)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    capsys.readouterr()
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    assert code in (0, 1), err
    return json.loads(out.splitlines()[-1])


def test_json_of_what_is_stored(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    kernel = next(k for k in shipped_in_metal() if k.applies_to(DECODE))
    store_correct(home, kernel, [DECODE])
    for name, argv in (
        ("list", ["list"]),
        ("show WORKLOAD", ["show", DECODE.slug]),
        ("show KERNEL", ["show", kernel.id]),
        ("status", ["status"]),
        ("clear", ["clear", "--device", "host"]),
    ):
        assert differs(name, said(capsys, *argv)) == "", name


def test_json_of_import(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(PROGRAM)
    got = said(capsys, "import", str(tmp_path / "p.py"), "--out", str(tmp_path / "k"))
    assert differs("import", got) == ""


def test_json_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nonsense", "--json"]) == 2
    assert list(json.loads(capsys.readouterr().out)) == ["error"]


def test_an_object_that_is_not_as_documented_would_be_noticed() -> None:
    good = {"removed": 1, "bytes": 2, "registry": "/x"}
    assert differs("clear", good) == ""
    assert "not documented ['more']" in differs("clear", {**good, "more": 1})
    assert "missing ['bytes']" in differs("clear", {"removed": 1, "registry": "/x"})
    assert "is documented" in differs("clear", {**good, "bytes": "2"})
