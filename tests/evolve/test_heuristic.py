"""The search for tile heuristics over tables of points."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from products import product_kernel, slug, table
from rich.console import Console

from mlx_lm_openevolve.cli.main import main, parser
from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import heuristic, points
from mlx_lm_openevolve.evolve.points import Shape
from mlx_lm_openevolve.kernels.expressions import Expression
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import named
from mlx_lm_openevolve.kernels.registry import Registry

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
KERNEL = product_kernel()
EDIT = "NOTE: x\nEDIT kernel.json\n<<<<<<< SEARCH\n{}=======\n{}>>>>>>> REPLACE\n"
GRID = [(rows, n, k) for rows in (1, 4, 16) for n in (1024, 4096, 14336) for k in (2048, 8192)]


def us(rows: int, n: int, k: int, tiles: int, warps: int) -> float:
    """Two tiles where K is the longer side, 16 warps for few rows; one setting does not run."""
    if (tiles, warps) == (4, 16):
        return math.inf
    best = (2 if k > n else 1, 16 if rows <= 4 else 8)
    return 10.0 * (1 + 0.4 * (tiles != best[0]) + 0.3 * (warps != best[1]))


@pytest.fixture
def parts(tmp_path: Path) -> tuple[list[Shape], list[Shape]]:
    path = table(tmp_path / "points.json", GRID, us)
    return points.split(points.read([path], KERNEL, KERNEL.id))


def command(*words: str) -> tuple[int, dict[str, Any], str]:
    options = parser().parse_args(["evolve", "--proposer", "heuristic", *words])
    out = Console(file=io.StringIO(), soft_wrap=True)
    code, result = options.command(options, out)
    assert isinstance(out.file, io.StringIO)
    return code, result, out.file.getvalue()


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    KERNEL.save(tmp_path / "kernel")
    path = table(tmp_path / "points.json", GRID, us)
    return ["--points", str(path), "--kernels", str(tmp_path / "kernel"), "--out",
            str(tmp_path / "run"), "--candidates", "1000"]  # fmt: skip


def test_a_rule_is_found_from_seen_shapes_and_holds_at_sealed_ones(
    parts: tuple[list[Shape], list[Shape]],
) -> None:
    seen, sealed = parts
    best = heuristic.search(KERNEL, seen, 4000, 0)
    rows = heuristic.judge(KERNEL, best.defaults, seen, sealed)
    assert rows["evolved"] == {"seen": 1.0, "sealed": 1.0}
    for other in ("handwritten", "one setting", "random"):
        assert rows[other]["sealed"] < 0.95
    assert sum(map(heuristic.nodes, best.defaults)) < 20


def test_the_search_depends_on_the_seed_and_on_seen_shapes_alone(
    parts: tuple[list[Shape], list[Shape]],
) -> None:
    seen, _ = parts
    best = heuristic.search(KERNEL, seen, 400, 3)
    assert heuristic.search(KERNEL, seen, 400, 3) == best
    assert best.score == heuristic.scored(KERNEL, best.defaults, seen).score
    assert len({heuristic.search(KERNEL, seen, 60, seed).defaults for seed in range(6)}) > 1


@pytest.mark.parametrize(
    "tiles", ["4", "4 if n == 1024 and k == 2048 else 1", "3", "n.real", "1 +", "nothing"]
)
def test_what_does_not_run_somewhere_or_is_no_expression_never_survives(
    parts: tuple[list[Shape], list[Shape]], tiles: str
) -> None:
    seen = [*parts[0], *parts[1]]
    assert heuristic.scored(KERNEL, (tiles, "16"), seen).fitness == -math.inf
    best = heuristic.search(KERNEL, seen, 200, 0, [(tiles, "16")])
    assert best.score > 0
    assert best.defaults != (tiles, "16")


def test_length_has_a_price_and_a_bound(parts: tuple[list[Shape], list[Shape]]) -> None:
    short = heuristic.scored(KERNEL, ("1", "8"), parts[0])
    longer = heuristic.scored(KERNEL, ("1 if n > 0 else 1", "8"), parts[0])
    assert short.score == longer.score
    assert short.fitness > longer.fitness
    assert not heuristic.scored(KERNEL, (" + ".join(["0"] * 60) + " + 1", "8"), parts[0]).score


def test_a_setting_that_failed_elsewhere_is_chosen_only_where_it_wins_by_its_risk() -> None:
    def best(gain: float) -> heuristic.Scored:
        """Of four shapes: (2, 16) is faster by `gain` where n is 1 and 2, and runs at half."""
        risky = {1: 10 / gain, 2: 10 / gain, 3: math.inf, 4: math.inf}
        shapes = [
            Shape("A", str(n), {"n": n}, {(1, 16): 10.0, (2, 16): us}) for n, us in risky.items()
        ]
        return heuristic.search(KERNEL, shapes, 600, 0, [("2 if n < 3 else 1", "16")])

    assert best(1.4).score < 1  # log 1.4 is less than the risk of 0.5
    assert best(2.0).score == 1  # log 2 is more


def test_random_choice_is_the_mean_over_all_that_ran() -> None:
    shape = Shape("A", "x", {}, {(1, 8): 10, (2, 8): 40, (4, 8): math.inf})
    rows = heuristic.judge(KERNEL, ("1", "8"), [shape], [shape])
    assert rows["random"]["sealed"] == pytest.approx(0.5)
    assert rows["one setting"]["sealed"] == rows["evolved"]["sealed"] == 1.0


def test_a_run_keeps_a_kernel_its_evidence_and_the_question(
    tmp_path: Path, arguments: list[str]
) -> None:
    code, result, text = command(*arguments)
    assert code == 0
    folder = tmp_path / "run"
    evidence = json.loads((folder / "heuristic.json").read_text())
    assert {"run": str(folder), **evidence} == result
    made = Registry(folder).kernel(evidence["kernel"])
    assert made is not None
    assert made.sources == KERNEL.sources
    assert made.origin == f"heuristic from {KERNEL.id}, seed 0, points of Chip 9"
    defaults = {param.name: param.default.text for param in made.params}
    assert defaults == evidence["evolved"]
    assert all(f"{name}: {default}" in text for name, default in defaults.items())
    for row in evidence["shapes"]:
        rows, n, k = next(x for x in GRID if slug(*x) == row["workload"])
        assert row["best"]["us"] == 10.0
        assert row["evolved"]["us"] == us(rows, n, k, *row["evolved"]["params"].values())
    sealed = [row["workload"] for row in evidence["shapes"] if row["sealed"]]
    question = (folder / "prompt.md").read_text()
    assert len(sealed) == 6
    assert not any(name in question for name in sealed)
    assert all(r["workload"] in question for r in evidence["shapes"] if not r["sealed"])


def test_what_sealed_shapes_took_changes_the_verdict_and_not_the_search(
    tmp_path: Path, arguments: list[str]
) -> None:
    first = command(*arguments)[1]
    sealed = {row["workload"] for row in first["shapes"] if row["sealed"]}

    def other(rows: int, n: int, k: int, tiles: int, warps: int) -> float:
        time = us(rows, n, k, tiles, warps)
        return 100.0 / time if slug(rows, n, k) in sealed and time < math.inf else time

    table(tmp_path / "points.json", GRID, other)
    code, second, _ = command(*arguments)
    assert code == 1
    assert second["evolved"] == first["evolved"]
    assert second["scores"]["evolved"]["sealed"] < 0.95 <= first["scores"]["evolved"]["sealed"]


def test_answers_begin_the_search_and_those_that_are_none_are_named(
    tmp_path: Path, arguments: list[str]
) -> None:
    answers = tmp_path / "run" / "answers"
    answers.mkdir(parents=True)
    good = EDIT.format('   "default": "1",\n', '   "default": "2 if k > n else 1",\n')
    (answers / "good.md").write_text(good)
    (answers / "more.md").write_text(EDIT.format("    16\n", "    16,\n    32\n"))
    (answers / "empty.md").write_text("")
    arguments[-1] = "10"
    _, result, text = command(*arguments)
    assert result["answers"] == 1
    assert "answers/more.md: it changes more than defaults" in text
    assert "answers/empty.md: the answer is empty" in text
    assert result["evolved"]["tiles"] == "2 if k > n else 1"


class Endpoint:
    """What says `text` to every question, or raises it; `asked` holds the questions."""

    def __init__(self, text: str | Exception) -> None:
        self.chat = self.completions = self
        self.text, self.asked = text, list[str]()

    def create(self, **asked: Any) -> Any:
        self.asked.append(asked["messages"][-1]["content"])
        if isinstance(self.text, Exception):
            raise self.text
        message = SimpleNamespace(content=self.text)
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")])


def test_a_model_is_asked_once_about_what_may_be_seen(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1")
    endpoint = Endpoint(EDIT.format('   "default": "1",\n', '   "default": "2 if k > n else 1",\n'))
    monkeypatch.setattr(heuristic.llm, "connect", lambda settings: (endpoint, settings.models))
    arguments[-1] = "10"
    _, result, _ = command(*arguments, "--llm", "my/model")
    assert endpoint.asked == [(tmp_path / "run" / "prompt.md").read_text()]
    assert (tmp_path / "run" / "answers" / "llm-my-model.md").read_text() == endpoint.text
    assert result["evolved"]["tiles"] == "2 if k > n else 1"
    endpoint.text = ""
    assert "llm-my-model.md: the answer is empty" in command(*arguments, "--llm", "my/model")[2]
    endpoint.text = openai.OpenAIError("no such model")
    with pytest.raises(UsageError, match="my/model: no such model"):
        command(*arguments, "--llm", "my/model")


def test_a_kernel_that_got_other_defaults_may_take_the_old_one_s_points(
    tmp_path: Path, arguments: list[str]
) -> None:
    product_kernel("2").save(tmp_path / "kernel")
    _, result, _ = command(*arguments)
    assert result["parent"] == product_kernel("2").id
    assert result["points_of"] == KERNEL.id


def test_what_cannot_be_searched_is_said(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="needs --points"):
        command("--out", str(tmp_path / "run"))
    with pytest.raises(UsageError, match="--resume: --proposer heuristic"):
        command(*arguments, "--resume", "a")
    with pytest.raises(UsageError, match="one kernel"):
        command(*arguments, "--kernels", "a", "b")
    with pytest.raises(UsageError, match="neither a stored kernel"):
        command("--points", arguments[1], "--out", str(tmp_path / "run"))
    table(tmp_path / "points.json", GRID[:2], us)
    with pytest.raises(UsageError, match="3 are needed"):
        command(*arguments)
    assert not (tmp_path / "run").exists()
    words = ["evolve", "--points", arguments[1], "--candidates", "1", "--backend", "host"]
    assert main(words) == 2


@pytest.mark.parametrize(
    ("file", "which", "name"),
    [
        ("h100-product-points.json", "ee0862974918", "quantized_rows_mma"),
        ("h100-tiles-points.json", "131dda7e38f1", "quantized_tiles_mma"),
        ("h100-param-points.json", "gqa_decode_mma", "gqa_decode_mma"),
    ],
)
def test_over_what_an_h100_took_it_gets_no_worse_than_it_began(
    file: str, which: str, name: str
) -> None:
    kernel = named(name)
    seen, _ = points.split(points.read([RESULTS / file], kernel, which))
    own = heuristic.scored(kernel, heuristic.own(kernel), seen)
    assert own.score > 0
    assert heuristic.search(kernel, seen, 300, 0).fitness >= own.fitness


@pytest.mark.parametrize(
    "file", ["h100-product", "h100-tiles", "h100-decode", "h200-product", "h200-decode"]
)
def test_the_runs_that_are_kept_are_what_their_points_say(file: str) -> None:
    kept = json.loads((RESULTS / f"{file}-heuristic.json").read_text())
    kernel = named(kept["points_of"])
    paths = [RESULTS / name for name in kept["points"]]
    seen, sealed = points.split(points.read(paths, kernel, kept["points_of"]))
    assert [s.workload for s in (*seen, *sealed)] == [row["workload"] for row in kept["shapes"]]
    for part, shapes in (("seen", seen), ("sealed", sealed)):
        for row in ("evolved", "handwritten"):
            made = kernel.with_defaults(kept[row], "test")
            defaults = [param.default for param in made.params]
            found = points.score(points.share(kernel, defaults, shape) for shape in shapes)
            assert found == pytest.approx(kept["scores"][row][part])


def test_expressions_of_a_run_fit_into_kernel_json(parts: tuple[list[Shape], list[Shape]]) -> None:
    best = heuristic.search(KERNEL, parts[0], 1000, 1)
    names = [param.name for param in KERNEL.params]
    made = KERNEL.with_defaults(dict(zip(names, best.defaults, strict=True)), "test")
    assert Kernel.from_parts(made.meta, made.sources) == made
    assert [type(param.default) for param in made.params] == [Expression, Expression]
