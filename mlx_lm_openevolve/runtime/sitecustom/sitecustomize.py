"""Found on PYTHONPATH by every Python that `mlx-lm-openevolve run` starts, children included.

It waits for mlx_lm.models.base to be imported and patches it then; without the variable
MLX_LM_OPENEVOLVE_RUN it does nothing. The sitecustomize that it shadows (Debian and Homebrew ship
one) runs in its place. Standard library only: this runs in other people's environments.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
PATCHED = "mlx_lm.models.base"


class Finder:
    """Finds mlx_lm.models.base as the other finders do, and patches it once it is loaded: whoever
    merely looks for it (importlib.util.find_spec) loads nothing."""

    asking = False  # the others, which may look for it by all finders themselves

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != PATCHED or self.asking:
            return None
        spec = None
        self.asking = True
        try:
            for finder in list(sys.meta_path):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    break
        finally:
            self.asking = False
        if spec is None or spec.loader is None:
            return spec
        loader, execute = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # the class has its own
            if self in sys.meta_path:
                sys.meta_path.remove(self)  # once is enough
            execute(module)
            activate()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def activate() -> None:
    """Patch mlx-lm. Whatever goes wrong here must not stop the command: it runs on SDPA."""
    try:
        if importlib.util.find_spec("mlx_lm_openevolve") is None:
            sys.path.append(str(HERE.parent.parent.parent))
        from mlx_lm_openevolve.runtime import session

        session.activate()
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"mlx-lm-openevolve: mlx-lm stays as it is: {line}", file=sys.stderr)


def run_shadowed() -> None:
    """Load the next sitecustomize on the path under its own name."""
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != HERE]
if os.environ.get("MLX_LM_OPENEVOLVE_RUN"):
    sys.meta_path.insert(0, Finder())
run_shadowed()
