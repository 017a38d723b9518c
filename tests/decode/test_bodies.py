"""Recognition: by what a body does, and nothing else."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mlx_lm.models.llama as llama
import mlx_lm.models.qwen3 as qwen3
import pytest
from samples import of_mlx_lm_032

from mlx_lm_openevolve.cli.architectures import models_folder
from mlx_lm_openevolve.decode.bodies import BODIES, attributes, digest, function_of, recognise

PLAIN = """
import mlx.nn as nn
class MLP(nn.Module):
    def __call__(self, x) -> int:
        "Anything."
        y: int = self.gate_proj(x)  # a remark
        return self.down_proj(nn.silu(y) * self.up_proj(x))
"""


@functools.cache
def installed() -> list[tuple[str, str, ast.FunctionDef]]:
    """(module, class, `__call__`) of every class in the installed mlx-lm's models."""
    folder, found = models_folder(), []
    assert folder is not None
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for function in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(function, ast.FunctionDef) and function.name == "__call__":
                    found.append((path.stem, node.name, function))  # type: ignore[union-attr]
    return found


@of_mlx_lm_032
def test_how_many_classes_of_mlx_lm_are_known() -> None:
    """1 attention body is shared by 15 classes, 1 by 4, 1 MLP body by 46. Where an update of mlx-lm
    rewrites one, its models run as ever: this says that there is a body to look at."""
    counts = Counter(digest(function) for _, _, function in installed())
    known = {name: counts[name] for name in BODIES}
    attention = [known[name] for name, body in BODIES.items() if "q_proj" in body.products]
    mlp = [known[name] for name, body in BODIES.items() if "up_proj" in body.products]
    assert sorted(attention)[-2:] >= [4, 15]
    assert max(mlp) >= 46
    assert sum(attention) >= 67
    assert sum(mlp) >= 70


def test_what_is_said_of_each_body_holds() -> None:
    """Its products are taken once each, whatever else happens, of its first argument as it came;
    nothing is done to the layer, and nothing else sees it."""
    asked = 0
    for module, cls, function in installed():
        body = BODIES.get(digest(function))
        if body is None:
            continue
        asked += 1
        where = f"{module}.{cls}"
        me, x = (a.arg for a in function.args.args[:2])
        named = Counter(attributes(function))
        assert all(named[name] == 1 for name in body.products), where
        assert straight(function, me, x) >= set(body.products), where
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != me or isinstance(node.ctx, ast.Load), where
        bare = sum(isinstance(n, ast.Name) and n.id == me for n in ast.walk(function))
        assert bare == named.total(), where
        for name in filter(None, (*body.norms, body.rope, body.scale)):
            assert named[name], where
        if body.rope:
            text = ast.unparse(function)
            assert f"queries = self.{body.rope}(queries, offset=cache.offset)" in text, where
            assert f"scale=self.{body.scale}" in text, where
    assert asked >= len(BODIES)


def straight(function: ast.FunctionDef, me: str, x: str) -> set[str]:
    """The layers that are called with exactly `x` on the way that every call takes, before `x` is
    anything else."""
    found = set()
    for statement in function.body:
        nodes = list(ast.walk(statement))
        if not isinstance(statement, ast.If | ast.For | ast.While | ast.With | ast.Try):
            calls = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]
            match = (re.fullmatch(rf"{me}\.(\w+)\({x}\)", call) for call in calls)
            found |= {m[1] for m in match if m}
        names = (node for node in nodes if isinstance(node, ast.Name) and node.id == x)
        if any(isinstance(name.ctx, ast.Store) for name in names):
            break
    return found


def test_a_digest_sees_what_a_body_does_and_no_more() -> None:
    one = digest(function_of("def f(self, x: int, y=None) -> int:\n    'Says.'\n    z: int = x\n"))
    assert one == digest(function_of("def f(self, x, y=None):\n    # says\n    z = x\n"))
    for other in (
        "def f(self, x, y=0):\n    z = x\n",
        "def f(self, x, y=None):\n    z = y\n",
        "def f(self, x, y=None):\n    z = self.x\n",
        "def f(self, x, y=None):\n    z = x\n    return z\n",
        "def f(self, x, *, y=None):\n    z = x\n",
    ):
        assert digest(function_of(other)) != one
    with pytest.raises(ValueError, match="no plain function"):
        function_of("@cached\ndef f(x):\n    pass\n")


def module(name: str, text: str, folder: Path) -> Any:
    """A module of that text, imported from a file."""
    (folder / f"{name}.py").write_text(text)
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_exactly_the_class_whose_body_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(text: str, name: str = "MLP") -> bool:
        known.count = getattr(known, "count", 0) + 1  # type: ignore[attr-defined]
        made = module(f"written_{known.count}", text, folder)  # type: ignore[attr-defined]
        return recognise(getattr(made, name)) is not None

    body = digest(function_of("def __call__(self, x):" + PLAIN.split("-> int:")[1]))
    monkeypatch.setitem(BODIES, body, BODIES[next(iter(BODIES))])
    assert known(PLAIN)
    assert known(PLAIN.replace("MLP", "Another"), "Another")
    assert not known(PLAIN.replace("nn.silu(y)", "nn.gelu(y)"))
    assert not known(PLAIN + "class Sub(MLP):\n    pass\n", "Sub")
    assert not known(PLAIN + "    def gate_proj(self, x):\n        self.last = x\n")
    wrapped = "MLP.__call__ = functools.wraps(MLP.__call__)(lambda self, x: 0)\n"
    assert not known("import functools\n" + PLAIN + wrapped)
    assert not known(PLAIN + "MLP.__call__ = lambda self, x: 0\n")


def test_without_the_source_that_runs_nothing_is_known(folder: Path) -> None:
    path = Path(qwen3.__file__)
    copy = module("copied", path.read_text().replace("from .", "from mlx_lm.models."), folder)
    assert recognise(copy.Attention) == recognise(qwen3.Attention) is not None
    # Another text than the one that was imported, with a body that we know in its place.
    text = Path(copy.__file__).read_text()
    changed = text.replace("scale=self.scale", "scale=2 * self.scale")
    other = module("changing", changed, folder)
    Path(other.__file__).write_text(text)
    assert recognise(other.Attention) is None
    space: dict[str, Any] = {"__name__": copy.__name__}
    exec(text, space)
    assert recognise(space["Attention"]) is None


def test_what_is_known_of_the_two_that_most_models_share() -> None:
    plain, normed = recognise(llama.Attention), recognise(qwen3.Attention)
    assert plain
    assert normed
    assert plain.products == normed.products == ("q_proj", "k_proj", "v_proj")
    assert (plain.norms, normed.norms) == ((), ("q_norm", "k_norm"))
    assert {plain.rope, normed.rope} == {"rope"}
    assert {plain.scale, normed.scale} == {"scale"}
