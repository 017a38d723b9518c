"""Source mutants: what they change, and the kill matrix that travels with the package."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from samples import NAIVE, naive, named

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.gate.source_mutants import change, kill, main, matrix
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import gate_version
from mlx_lm_openevolve.ops.attention import OP
from mlx_lm_openevolve.ops.attention.mutants.source import SOURCE_MUTANTS
from mlx_lm_openevolve.ops.attention.workload import DTYPES, MASKS, Workload
from mlx_lm_openevolve.ops.linear import OP as LINEAR
from mlx_lm_openevolve.ops.linear.source_mutants import SOURCE_MUTANTS as PRODUCT_MUTANTS
from mlx_lm_openevolve.ops.source_mutants import SourceMutant

WORKLOAD = Workload(2, 8, 2, 8, 128, 64, 64, "bfloat16", "bool")
# One sequence of it, where the answer of a kernel that is right is waited for too: it is slow.
SMALL = replace(WORKLOAD, batch=1, q_heads=4, q_len=4)
BY_NAME = {mutant.name: mutant for mutant in SOURCE_MUTANTS}

needs_compiler = pytest.mark.skipif(
    bool(backends.get("host").unavailable()), reason="no clang on this machine"
)


def changed(name: str, workload: Workload = WORKLOAD) -> str:
    broken = change(BY_NAME[name], naive(), {}, workload)
    assert broken is not None
    return broken.sources["naive.metal"]


def test_names_differ_and_say_what_they_break():
    assert len(BY_NAME) == len(SOURCE_MUTANTS) >= 36
    assert all(mutant.breaks for mutant in SOURCE_MUTANTS)


def test_the_contract_s_names_are_rewritten():
    assert "kv_len = (keys_shape[2] - 1);" in changed("length-one-less")
    assert "score *= (scale[0] * scale[0]);" in changed("scale-twice")
    source = changed("keys-head-stride-zero")
    assert source.startswith("const int64_t keys_steps[4]")
    assert "keys_steps[4] = {keys_strides[0], 0, keys_strides[2], keys_strides[3]}" in source
    assert "head / GROUP * keys_steps[1]" in source
    assert "exp2(0.5f * (score - next))" in changed("exponents-halved")
    assert "+ d) & ~1] = T(" in changed("half-written")
    pairs = naive("device T* to = out + row * DV +\n    column;\nout += 1;")
    broken = change(BY_NAME["half-written"], pairs, {}, WORKLOAD)
    assert broken is not None
    text = broken.sources["naive.metal"]
    assert "= out + (( row * DV +\n    column) & ~2);" in text
    assert "out += 1;" in text


def test_grids_and_templates_are_rewritten():
    broken = change(BY_NAME["grid-z-halved"], naive(), {}, WORKLOAD)
    assert broken.launches(WORKLOAD, {})[0].grid == (64, 8, 8)
    assert change(BY_NAME["grid-y-halved"], naive(), {}, WORKLOAD).launches(WORKLOAD, {})[
        0
    ].grid == (64, 4, 16)
    blind = change(BY_NAME["mask-not-asked-for"], naive(), {}, WORKLOAD)
    assert dict(blind.launches(WORKLOAD, {})[0].template)["KIND"] == 0


def test_what_the_text_does_not_name_is_no_mutant():
    assert "simd_sum" not in NAIVE
    assert change(BY_NAME["sums-lost"], naive(), {}, WORKLOAD) is None
    commented = naive(NAIVE + "// simd_sum(x) and a comment that goes\n")
    assert change(BY_NAME["sums-lost"], commented, {}, WORKLOAD) is None


@needs_compiler
def test_mutants_of_a_right_kernel_are_killed_and_harmless_changes_are_not():
    kernel = naive()
    names = ("length-one-less", "keys-contiguous")
    found = kill(kernel, {}, OP.questions.proxy(SMALL), [BY_NAME[name] for name in names])
    assert set(found) == set(names)
    assert all(reason != "survived" for reason in found.values()), found
    assert not any(reason.startswith("not run") for reason in found.values()), found
    harmless = type(BY_NAME["scale-twice"])(
        "harmless", "nothing", lambda w: True, lambda source: source + "\n;"
    )
    unfit = type(harmless)("unfit", "syntax", lambda w: True, lambda source: source + "\n}}")
    found = kill(kernel, {}, OP.questions.proxy(SMALL), [harmless, unfit])
    assert found["harmless"] == "survived"
    assert found["unfit"].startswith("not run")


@pytest.mark.slow
@needs_compiler
def test_every_source_mutant_of_a_right_kernel_is_killed():
    found = kill(naive(), {}, OP.questions.proxy(WORKLOAD), SOURCE_MUTANTS)
    assert len(found) >= 24
    assert [n for n, r in found.items() if r == "survived" or r.startswith("not run")] == []


@pytest.mark.parametrize("variant", ["float", "quantized", "latent"])
@pytest.mark.parametrize(("dtype", "mask"), list(itertools.product(DTYPES, MASKS)))
def test_the_kill_matrix_is_whole(variant, dtype, mask):
    entry = matrix("attention")[f"{variant}/{dtype}/{mask}"]
    assert entry["gate"] == gate_version("attention")
    assert entry["survivors"] == {}
    # A latent cache has one head, and its values are its keys: nothing shows of their strides.
    assert len(entry["killed"]) >= (23 if variant == "latent" else 30)
    shown = {"length-one-less", "barriers-lost", "keys-batch-stride-zero"}
    assert shown | ({"keys-head-stride-zero"} if variant != "latent" else set()) <= set(
        entry["killed"]
    )


@pytest.mark.parametrize("key", [key for key, _, _ in LINEAR.questions.matrix()])
def test_the_kill_matrix_of_products_is_whole(key):
    entry = matrix("linear")[key]
    assert entry["gate"] == gate_version("linear")
    assert entry["survivors"] == {}
    assert len(entry["killed"]) >= (25 if key.startswith("affine") else 18)
    assert {"sums-lost", "words-swapped", "length-fixed", "grid-x-halved"} <= set(entry["killed"])
    assert ("next-expert" in entry["killed"]) == ("_experts" in key)
    # What ships is what was broken.
    kernel = Registry(tuned_root(), writable=False).kernel(entry["kernel"])
    assert kernel is not None
    assert key.partition("/")[0] in kernel.variants


@needs_compiler
def test_mutants_of_products_are_killed_and_what_changes_nothing_is_not():
    _, small, _ = next(row for row in LINEAR.questions.matrix() if row[0] == "affine/float32")
    kernel = named("quantized_rows")
    names = ("scales-swapped", "length-fixed", "k-fixed", "half-written")
    chosen = [mutant for mutant in PRODUCT_MUTANTS if mutant.name in names]
    harmless = SourceMutant("harmless", "nothing", lambda w: True, lambda source: source + "\n;")
    found = kill(kernel, kernel.default_params(small), small, [*chosen, harmless])
    assert found.pop("harmless") == "survived"
    assert set(found) == set(names)
    assert not any(r == "survived" or r.startswith("not run") for r in found.values()), found


def test_the_command_keeps_what_is_known(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "mlx_lm_openevolve.gate.source_mutants.matrix_entry",
        lambda kernel, bucket, longer: pytest.fail("a known entry was run again"),
    )
    known = {f"float/{d}/{m}": e for (d, m), e in _entries().items()}
    products = matrix("linear")
    monkeypatch.setattr(
        "mlx_lm_openevolve.gate.source_mutants.matrix",
        lambda op: known if op == "attention" else products,
    )
    floats = [row for row in OP.questions.matrix() if row[1].variant == "float"]
    monkeypatch.setattr(type(OP.questions), "matrix", lambda questions: iter(floats))
    naive().save(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "float/float32/causal: 1 of 1 killed" in capsys.readouterr().err


def _entries() -> dict[tuple[str, str], dict[str, object]]:
    version = gate_version("attention")
    entry = {"gate": version, "kernel": naive().id, "killed": ["a"], "survivors": {}}
    return dict.fromkeys(itertools.product(DTYPES, MASKS), entry)
