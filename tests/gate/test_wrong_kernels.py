"""The corpus of wrong kernels under the gate's questions: each is refused, for the right reason."""

from __future__ import annotations

import functools
import math

import pytest
from wrong_kernels import RIGHT, WRONG, Variant

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.gate.correctness import passes
from mlx_lm_openevolve.gate.source_mutants import NOT_RUN
from mlx_lm_openevolve.ops.attention import OP

pytestmark = pytest.mark.skipif(
    bool(backends.get("host").unavailable()), reason="no clang on this machine"
)
AXES = (
    *("lengths", "query lengths", "batches", "rows and heads", "layouts", "masks", "ranges"),
    *("light keys", "precision", "state", "exam detection"),
)


def reason(variant: Variant, seed: int) -> str:
    """Why the gate's questions refuse a kernel, "" where they do not."""
    kernel = variant.kernel()
    build = functools.partial(
        backends.get("host").build, kernel, variant.chosen(kernel), sanitize=variant.sanitize
    )
    return passes(build, (case() for case in OP.questions.cases(variant.on, seed))).reason


def lower_bound(hits: int, of: int) -> float:
    """The lower end of Wilson's 95% interval of a rate."""
    z, rate = 1.96, hits / of
    spread = z * math.sqrt(rate * (1 - rate) / of + z * z / (4 * of * of))
    return (rate + z * z / (2 * of) - spread) / (1 + z * z / of)


def test_the_corpus_has_every_axis_and_every_edit_fits():
    assert len(WRONG) >= 80
    assert len({variant.name for variant in WRONG}) == len(WRONG)
    assert {variant.axis for variant in WRONG} == set(AXES)
    for variant in (*WRONG, *RIGHT):
        kernel = variant.kernel()
        assert kernel.applies_to(variant.on), variant.name
        assert variant.edits or variant.params or "as shipped" in variant.name


# A few kernels that cost little to build, one of an axis and more where a slip is easily missed.
SAMPLE = (
    "a length of 2 modulo 4",
    "an odd q_len in tiles",
    "a q_len of 4 modulo 16",
    "6 sequences",
    "the second KV head of the second sequence",
    "elements of a value adjacent",
    "values by the keys' head stride",
    "rows of biases by the scales' stride",
    "keys of a mask adjacent in tiles",
    "rows always at 16 bytes",
    "a scale without its sign",
    "logits of at least -100",
    "weights below 2^-10",
    "a float32 scale in half",
    "the running sum is not rescaled",
    "zeros where no logit is larger than 0.1",
    "length 101 of 128",
    "bfloat16 keys through half",
    "the mean of V under a sink",
    "the mean of all keys under a bias",
    "a hidden row counts one more, bool, bfloat16",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_wrong_kernel_is_refused(name):
    variant = next(variant for variant in WRONG if variant.name == name)
    found = reason(variant, 5)
    assert found
    assert not NOT_RUN.search(found)
    assert "kv_len=" in found


@pytest.mark.parametrize("name", ["keys from the last to the first", "base 2", "tiles as shipped"])
def test_a_right_variant_passes(name):
    assert reason(next(variant for variant in RIGHT if variant.name == name), 5) == ""


@pytest.mark.slow
@pytest.mark.parametrize("variant", RIGHT, ids=lambda variant: variant.name)
def test_right_variants_pass_at_20_seeds(variant):
    for seed in range(20):
        assert reason(variant, seed) == "", seed


@pytest.mark.slow
def test_the_corpus_is_refused_at_20_seeds():
    passed = []
    seeds = range(20)
    for variant in WRONG:
        for seed in seeds:
            found = reason(variant, seed)
            assert not NOT_RUN.search(found), f"{variant.name}: {found}"
            if not found:
                passed.append((variant.name, seed))
    asked = len(WRONG) * len(seeds)
    assert lower_bound(asked - len(passed), asked) >= 0.99, passed
