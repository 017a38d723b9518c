"""OpenEvolve's configuration: its models, budget and seed, and nothing else of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import openevolve_config, options
from mlx_lm_openevolve.evolve.asked import new_config
from mlx_lm_openevolve.evolve.config import LanguageModel

USUAL = """
max_iterations: 120
checkpoint_interval: 10
random_seed: 42
llm:
  api_base: "https://example.org/v1"
  temperature: 0.7
  models:
    - name: "large"
      weight: 0.8
    - name: "small"
      weight: 0.2
      temperature: 0.3
    - name: "off"
      weight: 0
database:
  num_islands: 5
"""
BEFORE = """
llm:
  primary_model: "large"
  secondary_model: "small"
"""
# Ten references to ten references and so on: 10**30 items in a kilobyte.
NESTED = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 31))


def taken(folder: Path, text: str, *argv: str) -> tuple[argparse.Namespace, str]:
    (folder / "config.yaml").write_text(text)
    parser = argparse.ArgumentParser()
    options.add_evolve_arguments(parser)
    asked = parser.parse_args(["--config", str(folder / "config.yaml"), *argv])
    return asked, openevolve_config.take(asked)


def test_models_budget_and_seed_are_taken(tmp_path: Path) -> None:
    asked, line = taken(tmp_path, USUAL, "--backend", "host")
    config = new_config(asked)
    assert config.llm.models == (LanguageModel("large", 0.8), LanguageModel("small", 0.2))
    assert (config.proposer, config.budget.candidates, config.budget.seconds) == ("llm", 120, 0)
    assert (config.seed, config.search.islands) == (42, 3)
    assert "models large, small; 120 candidates; seed 42" in line
    assert "api_base is not taken" in line
    asked, line = taken(tmp_path, BEFORE)
    assert (asked.llm, asked.candidates, asked.seed) == (["large,1", "small,0.2"], None, None)
    assert new_config(asked).seed == 0
    assert "api_base" not in line


def test_the_command_line_counts_before_the_file(tmp_path: Path) -> None:
    asked, _ = taken(tmp_path, USUAL, "--llm", "mine", "--candidates", "3", "--seed", "7")
    assert (asked.llm, asked.candidates, asked.seed) == (["mine"], 3, 7)
    assert taken(tmp_path, USUAL, "--seed", "0")[0].seed == 0
    asked, line = taken(tmp_path, USUAL, "--proposer", "params")
    assert (asked.proposer, asked.llm, asked.candidates) == ("params", [], 120)
    assert "models" not in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "no YAML: while parsing"),
        ("- 1", "it is no mapping"),
        ("llm: 7", "llm is no mapping"),
        ("llm: {models: 7}", "llm.models is no list"),
        ("llm: {models: [7]}", "a model is no mapping"),
        ("llm: {models: [{weight: 1}]}", "a model without a name"),
        ("llm: {models: [{name: x, weight: -1}]}", "x: weight -1 is no number of at least 0"),
        ("llm: {models: [{name: x, weight: .nan}]}", "x: weight nan"),
        ("max_iterations: many", "max_iterations 'many' is no whole number"),
        ("random_seed: 1.5", "random_seed 1.5"),
        (f"llm: {{models: [{{name: x, weight: 1{'0' * 400}}}]}}", "x: weight 10000"),
        ('llm: {models: [{name: "x\\ny", weight: z}]}', "a model without a name"),
        (f"max_iterations: 1{'0' * 400}", "max_iterations 10000"),
        (f"a0: &a0 [x]\n{NESTED}max_iterations: *a30", "max_iterations list is no whole number"),
        ("x: !!python/object/apply:os.system [true]", "no YAML: could not determine a constructor"),
        ("#" * (1 << 20) + "#", "longer than"),
    ],
)
def test_what_is_no_configuration_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.yaml: ") as raised:
        taken(tmp_path, text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_file_that_is_absent_is_one_line(tmp_path: Path) -> None:
    asked = argparse.Namespace(config=tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"none.yaml: No such file"):
        openevolve_config.take(asked)
