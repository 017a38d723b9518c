"""What a verdict on a whole model is about: its structure, and how many sequences it decodes.

Two models of one structure differ in the values of their weights alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

__all__ = ["rows_of", "slug", "structure"]


def structure(model: Any) -> str:
    """Name of a model's structure: architecture, layers, dtype or packing, and 12 hex digits of the
    classes of all layers, where they stand, their numbers, shapes and dtypes."""
    lines, packed, dtypes = [], Counter[str](), Counter[str]()
    for path, module in sorted(model.named_modules(), key=lambda item: str(item[0])):
        cls = type(module)
        numbers = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)}
        arrays = {key: a for key, a in module.items() if isinstance(a, mx.array)}
        if "scales" in arrays and "bits" in numbers:
            packed["q{bits}g{group_size}".format_map(numbers)] += arrays["weight"].size
        for array in arrays.values():
            dtypes[str(array.dtype).rpartition(".")[2]] += array.size
        held = [(key, a.shape, str(a.dtype)) for key, a in sorted(arrays.items())]
        said = [item for item in sorted(numbers.items()) if not item[0].startswith("_")]
        lines.append(repr((path, cls.__module__, cls.__qualname__, said, held)))
    name = type(model).__module__.rpartition(".")[2].lower().replace("_", "")
    weights = (packed or dtypes).most_common(1)[0][0]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return f"{name}-{len(getattr(model, 'layers', ()))}layers-{weights}-{digest}"


def slug(structure: str, batch: int) -> str:
    """Name of what one verdict is about: decoding `batch` sequences with models of a structure."""
    return f"step-b{batch}-{structure}"


def rows_of(structure: str, accepted: Mapping[str, str]) -> dict[int, str]:
    """What is accepted for how many rows of an input, of that by slug: a verdict for a batch speaks
    for all above the next lower power of two."""
    batches = {n: accepted.get(slug(structure, n)) for n in (1, 2, 4, 8, 16, 32, 64)}
    return {rows: what for n, what in batches.items() if what for rows in range(n // 2 + 1, n + 1)}
