"""benchmarks/ablations.py: the probabilities of parents, and what is made of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import evolve_kernels
import pytest
from ablations import POLICIES, Answer, as_is, best_first, by_policy, by_rank, share, tokens, until

from mlx_lm_openevolve.evolve import events, packed
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Config, Search
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult
from mlx_lm_openevolve.evolve.propose.structural import choose_parent

SLUG = evolve_kernels.DECODE.slug
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_of(folder: Path, explore: float) -> Archive:
    """A run of a seed and six children on three islands, each in a cell of its own or not."""
    config = Config("metal", (evolve_kernels.DECODE,), (1.0,), search=Search(explore=explore))
    archive = Archive.create(folder, config, {})
    seed = evolve_kernels.kernel()
    for number, ratio in enumerate((1.0, 1.05, 1.2, 1.25, 1.4, 1.8, 0.8), 1):
        body = evolve_kernels.BODY.replace("top = -1e38f", f"top = -{number}e37f")
        kernel = evolve_kernels.kernel(body) if number > 1 else seed
        archive.registry.add(kernel)
        parent = seed.id if number > 1 else ""
        made = Candidate(number, "llm", kernel.id, (SLUG,), parent=parent, island=number % 3)
        archive.add(events.Proposed(made))
        result = WorkloadResult({}, 1e-5 / ratio, ratio, ratio, ratio)
        archive.add(events.Evaluated(number, Evaluation(results={SLUG: result})))
    return archive


@pytest.mark.parametrize("explore", [0.0, 0.4, -1.0])
def test_the_chances_are_those_of_the_search(tmp_path: Path, explore: float) -> None:
    archive, seeds = run_of(tmp_path / "run", explore), [evolve_kernels.kernel()]
    draws = 3000
    for island in range(3):
        chances = as_is(archive, island)
        assert sum(chances.values()) == pytest.approx(1)
        numbers = range(100 + (island - 100) % 3, 100 + 3 * draws, 3)
        drawn = Counter(choose_parent(archive, seeds, n)[0].id for n in numbers)
        for kernel, count in drawn.items():
            assert count / len(numbers) == pytest.approx(chances[kernel], abs=0.04)
    archive.close()


def test_an_archive_as_it_was(tmp_path: Path) -> None:
    archive = run_of(tmp_path / "run", 0.0)
    then = until(archive, 3, 0)
    assert sorted(then.done) == [1, 2, 3]
    (best,) = best_first(then, 0)
    assert best == archive.candidates[3].kernel
    assert next(iter(by_rank(then, 0))) == best
    assert len(until(archive, 7, 1).cells) == 1
    archive.close()


def test_an_answer_counts_as_often_as_a_policy_would_have_asked_for_it() -> None:
    drawn, other = list(POLICIES)[:2]
    chances = dict.fromkeys(POLICIES, 0.5)

    def answer(score: float, chance: float, repair: bool = False) -> Answer:
        return Answer(1, repair, score > 0, score, 1.0, 1.0, {**chances, other: chance})

    rows = by_policy([answer(2.0, 0.75), answer(0.0, 0.25), answer(9.0, 1.0, repair=True)])
    assert (rows[drawn]["answers"], rows[drawn]["effective"]) == (2, 2.0)
    assert (rows[drawn]["valid"], rows[other]["valid"]) == (0.5, 0.75)
    assert rows[other]["effective"] == 1.6
    assert rows[other]["gain"] == pytest.approx(0.75 * 0.6931, abs=1e-4)
    assert by_policy([answer(2.0, 0.0)])[other] == {"answers": 1, "effective": 0.0}
    assert share([True, False]) == [0.5, 0.095, 0.905]
    assert share([]) is None


def test_the_shares_of_prompts_are_those_of_the_runs_that_are_kept() -> None:
    kept = json.loads((BENCHMARKS / "results" / "ablations.json").read_text())["visits"]["tokens"]
    for name, shares in kept.items():
        with packed.unpacked(BENCHMARKS / "runs" / f"{name}.tar.xz") as run:
            assert tokens(run) == shares, name
