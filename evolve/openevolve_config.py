"""The configuration of an OpenEvolve run (its config.yaml): what of it this search takes.

    llm.models, or primary_model and secondary_model  ->  --llm, and --proposer llm
    max_iterations                                    ->  --candidates
    random_seed                                       ->  --seed

What is named on the command line counts before the file. The endpoint is not taken from it, so that
no file decides where a key is sent; nor is what OpenEvolve's own prompts and database are told.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.files import read_regular

from .config import LanguageModel

__all__ = ["take"]

_MAX_BYTES = 1 << 20
_MAX = 1 << 53  # of a number
_SECOND = 0.2  # the weight of secondary_model, as OpenEvolve has it


def take(options: argparse.Namespace) -> str:
    """Put what the file options.config says where the command line said nothing; a line for people.
    Raises UsageError where it is no such file."""
    path = options.config
    data = _mapping(_read(path), path, "it")
    llm = _mapping(data.get("llm") or {}, path, "llm")
    models = list(_models(llm, path))
    taken = []
    if models and not options.llm and options.proposer in (None, "llm"):
        options.proposer = "llm"
        options.llm = [f"{model.name},{model.weight:g}" for model in models]
        taken.append(f"models {', '.join(model.name for model in models)}")
    if "max_iterations" in data and options.candidates is None:
        options.candidates = _integer(data["max_iterations"], path, "max_iterations")
        taken.append(f"{options.candidates} candidates")
    if data.get("random_seed") is not None and options.seed is None:
        options.seed = _integer(data["random_seed"], path, "random_seed")
        taken.append(f"seed {options.seed}")
    text = f"of {path}: {'; '.join(taken) or 'nothing'}"
    return f"{text}; its api_base is not taken: OPENAI_BASE_URL" if "api_base" in llm else text


def _models(llm: Mapping[str, Any], path: Path) -> Iterator[LanguageModel]:
    rows = llm.get("models") or []
    if not isinstance(rows, list):
        raise UsageError(f"{path}: llm.models is no list")
    named = [_mapping(row, path, "a model") for row in rows]
    for which, usual in (("primary_model", 1.0), ("secondary_model", _SECOND)):
        if llm.get(which):
            weight = llm.get(f"{which}_weight")
            named.append({"name": llm[which], "weight": usual if weight is None else weight})
    for row in named:
        name, weight = row.get("name"), row.get("weight", 1.0)
        if not isinstance(name, str) or not name.isprintable() or not name.strip() or "," in name:
            raise UsageError(f"{path}: a model without a name")
        if type(weight) not in (int, float) or not 0 <= weight <= _MAX:
            shown = f"{name[:100]}: weight {_shown(weight)}"
            raise UsageError(f"{path}: {shown} is no number of at least 0")
        if weight:
            yield LanguageModel(name, float(weight))


def _integer(value: Any, path: Path, name: str) -> int:
    if type(value) is not int or abs(value) > _MAX:
        raise UsageError(f"{path}: {name} {_shown(value)} is no whole number")
    return int(value)


def _shown(value: Any) -> str:
    """A value for a message. A list is not spelt out: by its references a short file may hold one
    of any length."""
    return repr(value)[:100] if isinstance(value, str | int | float) else type(value).__name__


def _mapping(value: Any, path: Path, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: {name} is no mapping of names")
    return value


def _read(path: Path) -> Any:
    try:
        import yaml  # comes with mlx-lm's own dependencies
    except ImportError:
        raise UsageError("--config needs a reader of YAML: pip install pyyaml") from None
    try:
        data = read_regular(path, _MAX_BYTES)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{path}: longer than {_MAX_BYTES} bytes")
        return yaml.safe_load(data.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: no YAML: {reason}") from None
