"""A sample of the field by default, all of it with the slow tests; `make parity` prints a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import parity
import pytest
from samples import judged, of_mlx_lm_032

from mlx_lm_openevolve.cli.architectures import callers
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.ops.attention.workload import Workload

# Few KV heads, as many as query heads; sinks, sliding windows, chunks; MLA; hybrids; caches that
# layers share; infinite logits. Experts are among those with packed weights below, the plainest is
# tried in half precision.
SAMPLE = {
    "deepseek_v3",
    "gemma3n",
    "gpt_oss",
    "llama4",
    "qwen3_next",
}


slow = [pytest.mark.slow]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One registry for all: each workload is gated once."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One registry for those whose kernels are taken for correct."""
    return tmp_path_factory.mktemp("trusted")


def marks(architecture: str) -> list[pytest.MarkDecorator]:
    return [of_mlx_lm_032] if architecture == "llama4" else []


@pytest.mark.parametrize(
    ("architecture", "judged"),
    [
        *(pytest.param(a, True, marks=slow) for a in parity.covered()),
        *(pytest.param(a, False, marks=marks(a)) for a in sorted(SAMPLE)),
    ],
)
def test_patched_logits_agree_with_stock(
    architecture: str, judged: bool, root: Path, trusted: Path
) -> None:
    """In CI the kernels are taken for correct: that the gate's own verdicts serve a model is seen
    in tune/test_command.py."""
    found = parity.check(architecture, root if judged else trusted, judged=judged)
    assert found[0].kind == "own"
    for each in found:
        assert each.hits or each.on_sdpa or each.refused, "served, or the reason named"


@pytest.mark.parametrize(
    ("architecture", "judged"),
    [
        *(pytest.param(a, True, marks=slow) for a in architectures.OWN_CODE),
        pytest.param("own:star", False),  # the other ways: runtime/test_reach.py
        *(pytest.param(f"own:{how}", False, marks=slow) for how in ("closure", "class attribute")),
    ],
)
def test_models_with_own_code_agree_with_stock(
    architecture: str, judged: bool, root: Path, trusted: Path
) -> None:
    """Loaded by mlx-lm before the patch is put on: another way to the function each."""
    ours = parity.check(architecture, root if judged else trusted, judged=judged)
    found = {each.kind: each for each in ours}
    assert all(found[kind].hits for kind in ("own", "rotating", "quantized", "batch"))


@pytest.mark.parametrize(
    ("architecture", "dtype", "judged"),
    [
        ("llama", mx.bfloat16, False),
        pytest.param("llama", mx.bfloat16, True, marks=slow),
        pytest.param("cohere2", mx.bfloat16, True, marks=slow),
        pytest.param("minicpm3", mx.float16, True, marks=slow),
    ],
    ids=str,
)
def test_they_agree_in_half_precision(
    architecture: str, dtype: mx.Dtype, judged: bool, root: Path, trusted: Path
) -> None:
    found = parity.check(architecture, root if judged else trusted, dtype, judged)
    assert found[0].hits > 0


# As many heads as layers; tied embeddings; biases; experts, without biases and with them; a latent
# cache's and other subclasses of the layer.
PACKED = {"deepseek_v3", "qwen3", "qwen2", "qwen3_moe"}


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a in PACKED else slow) for a in parity.covered()],
)
def test_with_packed_weights_patched_logits_agree_with_stock(architecture: str, root: Path) -> None:
    found = parity.check_packed(architecture, root)
    assert [each.kind for each in found] == ["own", "batch"]
    for each in found:
        assert each.hits or each.refused or set(each.on_sdpa) != {"more than 32 rows"}


def test_a_wrong_product_would_be_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parity._patched

    def wrong(model: Any, kind: str, *rest: Any) -> Any:
        def lost(layer: Any, x: mx.array) -> mx.array:
            out = parity.product_in_float64(layer, x)
            return out if x.shape[-2] > 1 else out * (mx.arange(out.shape[-1]) != 7)

        with parity.replaced(lambda _: lost, "linear"):
            answers, _ = parity.logits(model, kind)
        return answers, *right(model, kind, *rest)[1:]

    monkeypatch.setattr(parity, "_patched", wrong)
    with pytest.raises(parity.Disparity, match="from float64"):
        parity.check_packed("qwen3", root)


@of_mlx_lm_032
def test_the_field_is_covered() -> None:
    patched = set(callers().patched)
    covered = set(parity.covered())
    assert covered >= SAMPLE | PACKED
    assert len(covered) >= parity.LEAST
    assert patched == covered | set(architectures.LEFT_OUT)
    assert patched >= set(architectures.SPECIAL), "an entry of no architecture"


@of_mlx_lm_032
@pytest.mark.skipif(mx.metal.is_available(), reason="with Metal they would run")
@pytest.mark.parametrize("architecture", sorted(architectures.LEFT_OUT))
def test_what_is_left_out_cannot_run_here(architecture: str) -> None:
    assert architectures.LEFT_OUT[architecture] in parity.cannot_run(architecture)


def test_only_refusals_that_are_known_are_taken() -> None:
    error = NotImplementedError("RotatingKVCache Quantization NYI")
    assert architectures.refusal("llama", "quantized", error)
    assert not architectures.refusal("llama", "batch", error)
    error = AttributeError("'ChunkedKVCache' object has no attribute 'merge'")
    assert architectures.refusal("llama4", "batch", error)
    assert not architectures.refusal("llama", "batch", error)


def short(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Attention that drops the last key in decoding."""

    def attention(q: mx.array, k: mx.array, v: mx.array, *rest: Any, **named: Any) -> mx.array:
        if q.shape[2] > 1:
            return original(q, k, v, *rest, **named)
        return original(q, k[:, :, :-1], v[:, :, :-1], *rest, **named)

    return attention


def test_a_wrong_kernel_would_be_seen(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parity._patched

    def wrong(model: Any, kind: str, *rest: Any) -> Any:
        with parity.replaced(short):
            answers, _ = parity.logits(model, kind)
        return answers, *right(model, kind, *rest)[1:]

    monkeypatch.setattr(parity, "_patched", wrong)
    with pytest.raises(parity.Disparity, match="from float64"):
        parity.check("qwen3", trusted, judged=False)


def test_a_kernel_that_does_not_serve_would_be_seen(tmp_path: Path) -> None:
    bucket = Workload(1, 4, 2, 1, 64, 64, 64, "float32")
    for kernel in parity.shipped():
        if not kernel.applies_to(bucket):
            continue
        verdict = judged(kernel, bucket, correct=False, reason="rejected by a test")
        Registry(tmp_path).publish("host", verdict)
    with pytest.raises(parity.Disparity, match=f"{bucket.slug} ran on SDPA: .*by a test"):
        parity.check("qwen3", tmp_path)


def test_attention_past_the_patch_would_be_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is not routed at all is no agreement."""
    monkeypatch.setenv("MLX_LM_OPENEVOLVE", "0")
    with pytest.raises(parity.Disparity, match="never called"):
        parity.check("qwen3", root)


def test_the_command_tells_what_failed(capfd: pytest.CaptureFixture[str]) -> None:
    assert parity.main(["--packed", "--jobs", "1", "qwen3", "nonsense"]) == 1
    told = capfd.readouterr().out
    assert "No module named 'mlx_lm.models.nonsense'" in told
    assert "\n1 of 2 agree" in told
