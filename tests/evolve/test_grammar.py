"""Moves on default expressions."""

from __future__ import annotations

import random
from pathlib import Path

from products import FACTS, product_kernel, table

from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.evolve import points
from mlx_lm_openevolve.evolve.grammar import Defaults, Grammar, nodes
from mlx_lm_openevolve.evolve.points import Shape
from mlx_lm_openevolve.kernels.expressions import MAX_DEFAULT, Expression

SHAPES = [(1, 4096, 4096), (4, 4096, 14336), (1, 14336, 4096)]
KERNEL = product_kernel("1 if rows <= 8 and not n == 4096 else 4", "min(8, 8 * rows)")


def shapes(folder: Path, *names: str) -> list[Shape]:
    tables = [
        table(
            folder / f"{name}.json", SHAPES, lambda *_: 1.0, device=name,
            facts={**FACTS, "device_name": name, "device_cores": 10 + i},
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    return points.read(tables, KERNEL, product_kernel().id)


def walk(rows: list[Shape], seed: int, moves: int = 1500) -> list[Defaults]:
    grammar = Grammar(KERNEL, rows, random.Random(seed))
    first: Defaults = tuple(param.default.text for param in KERNEL.params)
    found = [first]
    for _ in range(moves):
        made = grammar.move(found[-1], first)
        found.append(made if max(map(nodes, made)) < 40 else first)
    return found


def used(found: list[Defaults], rows: list[Shape]) -> set[str]:
    names = frozenset(rows[0].values)
    return {
        name
        for defaults in found
        for text in defaults
        for name in Expression(text, names, "test", MAX_DEFAULT).used
    }


def test_every_move_gives_expressions_and_no_two_of_a_kind_forever(tmp_path: Path) -> None:
    rows = shapes(tmp_path, "A")
    found = walk(rows, 1)
    assert used(found, rows) >= {"rows", "n", "k", "min"}
    assert len(set(found)) > 700
    names, whole = frozenset(rows[0].values), 0
    for defaults in found:
        parsed = [Expression(text, names, "test", MAX_DEFAULT) for text in defaults]
        try:
            whole += all(isinstance(e(row.values), int) for e in parsed for row in rows)
        except KernelError:
            continue
    assert whole > len(found) / 2


def test_the_same_seed_makes_the_same_moves(tmp_path: Path) -> None:
    rows = shapes(tmp_path, "A")
    assert walk(rows, 1, 200) == walk(rows, 1, 200)
    assert walk(rows, 1, 200) != walk(rows, 2, 200)


def test_a_fact_is_used_where_chips_differ_in_it_and_nowhere_else(tmp_path: Path) -> None:
    one, two = shapes(tmp_path, "A"), shapes(tmp_path, "A", "B")
    assert not used(walk(one, 3), one) & {*FACTS, "bits", "dtype", "batch"}
    facts = used(walk(two, 3), two) & FACTS.keys()
    assert facts == {"device_cores", "device_name"}


def test_the_size_of_an_expression_is_its_parts() -> None:
    assert [nodes(text) for text in ("1", "n", "1 if n > 2 else k")] == [1, 1, 6]
