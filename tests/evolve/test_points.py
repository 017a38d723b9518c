"""Tables of measured points."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from products import FACTS, product_kernel, slug, table

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import points
from mlx_lm_openevolve.evolve.points import Shape
from mlx_lm_openevolve.kernels.expressions import Expression
from mlx_lm_openevolve.kernels.lookup import named

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
KERNEL = product_kernel()


def point(us: float | None, rows: int = 7, tiles: int = 1, **changes: Any) -> dict[str, Any]:
    found = {"workload": slug(rows, 4096, 4096), "id": KERNEL.id}
    found |= {"params": {"tiles": tiles, "warps": 8}, **changes}
    return found if us is None else {**found, "us": us}


def written(path: Path, *rows: dict[str, Any], **changes: Any) -> Path:
    path.write_text(json.dumps({"device": "Chip 9", "facts": FACTS, "points": rows} | changes))
    return path


def test_a_shape_has_the_median_of_each_setting_and_what_its_bucket_says(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", point(10), point(12), point(30), point(20, tiles=2))
    again = written(tmp_path / "b.json", point(14), point(None, tiles=4), point(9, rows=1))
    (shape,) = points.read([first, again], KERNEL, KERNEL.id)
    assert shape.workload == slug(7, 4096, 4096)
    assert shape.us == {(1, 8): 13, (2, 8): 20, (4, 8): math.inf}
    assert shape.ran == {(1, 8): 13, (2, 8): 20}
    assert (shape.values["rows"], shape.values["device_cores"]) == (8, 10)


def test_shares_are_of_the_best_and_what_was_not_measured_counts_as_the_slowest() -> None:
    shape = Shape("Chip 9", "any", {}, {(1, 8): 10, (2, 8): 40, (4, 8): math.inf})
    assert shape.best() == (1, 8)
    shares = {setting: shape.share(setting) for setting in ((1, 8), (2, 8), (1, 16), (4, 8))}
    assert shares == {(1, 8): 1.0, (2, 8): 0.25, (1, 16): 0.25, (4, 8): 0.0}
    assert points.score([1.0, 0.25]) == pytest.approx(0.5)
    assert points.score([1.0, 0.0]) == 0.0


@pytest.mark.parametrize(
    ("tiles", "share"),
    [
        ("1 if n > k else 2", 0.5),
        ("device_cores // 10", 1.0),
        ("0 * device_cores", 1.0),  # the nearest of its values, as at run time
        ("3", 0.0),
        ("n // 0", 0.0),
    ],
)
def test_a_default_that_chooses_nothing_has_no_share(tiles: str, share: float) -> None:
    values = {"n": 1, "k": 2, "device_cores": 10}
    shape = Shape("Chip 9", "any", values, {(1, 8): 10, (2, 8): 20})
    defaults = [Expression(text, frozenset(values), "test") for text in (tiles, "8")]
    assert points.share(KERNEL, defaults, shape) == share


def test_a_third_of_the_workloads_is_sealed_whatever_was_measured() -> None:
    def shapes(us: float, devices: tuple[str, ...] = ("A", "B")) -> list[Shape]:
        slugs = [slug(1, n, 4096) for n in range(64, 64 * 11, 64)]
        return [Shape(d, s, {}, {(1, 8): us, (2, 8): 9.0}) for d in devices for s in slugs]

    seen, sealed = points.split(shapes(1.0))
    assert (len(seen), len(sealed)) == (12, 8)
    assert not {s.workload for s in seen} & {s.workload for s in sealed}
    again = points.split(shapes(100.0, ("A",)))
    assert {s.workload for s in again[1]} == {s.workload for s in sealed}
    with pytest.raises(UsageError, match="2 workloads with several settings measured; 3 are"):
        points.split(shapes(1.0)[:2])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "no table of points"),
        ("{}", "no table of points"),
        ('{"device": "x", "points": [1]}', "no table of points"),
        ('{"device": "x", "points": [{"id": "x", "workload": "nonsense"}]}', "not a workload"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "points.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=word) as caught:
        points.kernels_of([path])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_points_that_the_kernel_cannot_have_and_two_chips_of_one_name_are_refused(
    tmp_path: Path,
) -> None:
    odd = written(tmp_path / "odd.json", point(1, params={"tiles": 3, "warps": 8}))
    with pytest.raises(UsageError, match="tiles is 3"):
        points.read([odd], KERNEL, KERNEL.id)
    with pytest.raises(UsageError, match="0 us"):
        points.read([written(tmp_path / "zero.json", point(0))], KERNEL, KERNEL.id)
    one = written(tmp_path / "one.json", point(1))
    two = written(tmp_path / "two.json", point(1), facts={**FACTS, "device_cores": 11})
    with pytest.raises(UsageError, match="other facts of Chip 9"):
        points.read([one, two], KERNEL, KERNEL.id)


def test_points_of_others_are_left_out(tmp_path: Path) -> None:
    others = [{"workload": "x", "backend": "cudnn", "us": 1}, point(1, id="", kernel="older")]
    path = written(tmp_path / "points.json", *others, point(1), point(2, tiles=2))
    assert points.kernels_of([path]) == sorted([KERNEL.id, "older"])
    assert len(points.read([path], KERNEL, KERNEL.id)) == 1
    assert table(tmp_path / "t.json", [(1, 64, 64)], lambda *_: 1.0).exists()


@pytest.mark.parametrize(
    ("file", "which", "name", "shapes", "least"),
    [
        ("h100-product-points.json", "ee0862974918", "quantized_rows_mma", 46, 17),
        ("h100-tiles-points.json", "131dda7e38f1", "quantized_tiles_mma", 24, 16),
        ("h100-param-points.json", "gqa_decode_mma", "gqa_decode_mma", 30, 6),
    ],
)
def test_what_was_measured_on_an_h100_is_read(
    file: str, which: str, name: str, shapes: int, least: int
) -> None:
    found = points.read([RESULTS / file], named(name), which)
    assert len(found) == shapes
    assert min(len(shape.ran) for shape in found) >= least
