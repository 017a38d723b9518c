"""Which architectures of the installed mlx-lm call attention, and by which way.

mlx-lm's models import one function, which the patch replaces. A few call MLX's own function
themselves, past the patch. Both are read off the sources, so that it holds for every version of
mlx-lm; nothing of it is imported.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Callers", "callers", "models_folder"]

NAME = "scaled_dot_product_attention"
PATCHED = f"mlx_lm.models.base.{NAME}"
DIRECT = f"mlx.core.fast.{NAME}"
ALIASED = "under another name"


@dataclass(frozen=True)
class Callers:
    """Modules of mlx_lm.models by name, with the lines that use the attention function: mlx-lm's
    own (`patched`: a kernel may serve these calls) and MLX's (`direct`: none ever does). An
    architecture may be in both. `aliased`: those that hold mlx-lm's under a name of their own,
    which the patch leaves alone as it does any variable that remembers the function."""

    patched: dict[str, tuple[int, ...]]
    direct: dict[str, tuple[int, ...]]
    aliased: dict[str, tuple[int, ...]] = field(default_factory=dict)


def models_folder() -> Path | None:
    """The folder of mlx_lm.models, None where mlx-lm is not installed."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "models"


def callers(folder: Path | None = None) -> Callers:
    """Scan the models of mlx-lm, by default the installed one's. A source that does not parse is
    left out."""
    scanned = Callers({}, {})
    folder = folder or models_folder()
    if folder is None:
        return scanned
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts == ("base",):
            continue  # the function itself
        try:
            source = path.read_bytes()
            uses = _uses(source, ("mlx_lm", "models", *parts)) if NAME.encode() in source else {}
        except (OSError, SyntaxError, ValueError):
            continue
        for table, which in (
            (scanned.patched, PATCHED),
            (scanned.direct, DIRECT),
            (scanned.aliased, ALIASED),
        ):
            if uses.get(which):
                table[".".join(parts)] = uses[which]
    return scanned


@functools.lru_cache(maxsize=256)  # parsing a hundred models takes half a second
def _uses(source: bytes, module: tuple[str, ...]) -> dict[str | None, tuple[int, ...]]:
    """The lines of a module that use the attention function, by which way. Raises SyntaxError,
    ValueError."""
    nodes = list(ast.walk(ast.parse(source)))
    names = _imported(nodes, module)
    uses: dict[str | None, set[int]] = {PATCHED: set(), DIRECT: set(), ALIASED: set()}
    for node in nodes:
        if isinstance(node, ast.Attribute | ast.Name):
            found = _path(node, names)
            alias = found == PATCHED and isinstance(node, ast.Name) and node.id != NAME
            uses.get(ALIASED if alias else found, set()).add(node.lineno)
    return {way: tuple(sorted(lines)) for way, lines in uses.items()}


def _imported(nodes: Sequence[ast.AST], module: tuple[str, ...]) -> dict[str, str]:
    """What a module's imports bind, at any depth of its code: local name -> dotted path."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else ()
            prefix = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                names[alias.asname or alias.name] = f"{prefix}.{alias.name}"
    return names


def _path(node: ast.expr, names: dict[str, str]) -> str | None:
    """The dotted path that a name or an attribute stands for, None where no import tells."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _path(node.value, names)
        return f"{owner}.{node.attr}" if owner else None
    return None
