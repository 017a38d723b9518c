"""The host backend: whole buffers with their length beside them."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from samples import NAIVE, naive, questions

from mlx_lm_openevolve import backends
from mlx_lm_openevolve.gate.correctness import passes
from mlx_lm_openevolve.gate.static_rules import static_rules
from mlx_lm_openevolve.kernels.kernel import Kernel, Launch
from mlx_lm_openevolve.ops.attention import MASKS, Bucket
from mlx_lm_openevolve.ops.attention.reference import sdpa

HOST = backends.get("host")
BUCKET = Bucket(2, 4, 2, 8, 64, 64, 64, "float32", "none")
SMALL = replace(BUCKET, batch=1, q_heads=2, kv_heads=1, q_len=4)

pytestmark = pytest.mark.skipif(bool(HOST.unavailable()), reason="no clang on this machine")


def by_length() -> Kernel:
    """The plain kernel, which takes the number of keys from an array."""
    kernel = naive(NAIVE.replace("keys_shape[2]", "length[0]"))
    (launch,) = kernel.meta["launches"]
    launch = {**launch, "inputs": [*launch["inputs"], "length"]}
    return Kernel.from_parts({**kernel.meta, "launches": [launch]}, kernel.sources)


@pytest.mark.parametrize("mask", MASKS)
def test_a_length_that_is_not_given_is_that_of_the_keys(mask: str) -> None:
    kernel = by_length()
    bucket = replace(SMALL, mask=mask)
    assert static_rules(kernel, {}, bucket) == ""
    build = lambda exact: HOST.build(kernel, {}, exact, sanitize=True)  # noqa: E731
    assert passes(build, questions(bucket, brief=True)).reason == ""


@pytest.mark.parametrize("count", [33, 64])
def test_whole_buffers_are_read_up_to_the_length(count: int) -> None:
    exact = BUCKET.exact(kv_len=count)
    keys, values = (mx.random.normal((2, 2, 64, 64)) for _ in range(2))
    behind = mx.arange(64)[:, None] >= count
    buffers = [mx.where(behind, float("nan"), x) for x in (keys, values)]
    queries, scale = mx.random.normal((2, 4, 8, 64)), mx.array([0.125])
    call = HOST.build(by_length(), {}, exact, sanitize=True)
    out = call(queries, *buffers, scale, None, None, length=mx.array([count], mx.int32))
    slices = [x[:, :, :count] for x in (keys, values)]
    want = sdpa(exact)(queries, *slices, scale, None, None)
    assert mx.allclose(out, want, atol=1e-5).item()
    # Another length through the same call: nothing was fixed when it was built.
    fewer = call(queries, *buffers, scale, None, None, length=mx.array([17], mx.int32))
    want = sdpa(exact)(queries, *(x[:, :, :17] for x in (keys, values)), scale, None, None)
    assert mx.allclose(fewer, want, atol=1e-5).item()


@pytest.mark.parametrize("mask", MASKS)
def test_a_length_that_no_launch_reads_changes_nothing(mask: str) -> None:
    bucket = replace(SMALL, mask=mask)
    question = next(q for q in questions(bucket, brief=True) if q.workload.kv_len == 64)
    call = HOST.build(naive(), {}, question.workload, sanitize=True)
    out = call(*question.arguments)
    assert mx.array_equal(call(*question.arguments, length=mx.array([64], mx.int32)), out).item()


def test_a_launch_behind_the_one_that_writes_the_result_is_left_out() -> None:
    kernel, made = naive(), list[str]()
    (launch,) = kernel.meta["launches"]
    output = {**launch["outputs"][0], "name": "spare"}
    spare = {**launch, "source": "spare.metal", "outputs": [output]}
    never = {**launch, "when": "batch >= 99"}
    sources = {"spare.metal": kernel.sources[launch["source"]].replace("out[", "spare[")}
    meta = {**kernel.meta, "launches": [{**launch, "when": "batch < 99"}, spare, never]}
    kernel = Kernel.from_parts(meta, {**kernel.sources, **sources})
    exact = BUCKET.exact()
    assert [x.spec.file for x in kernel.launches(exact, {})] == [launch["source"], "spare.metal"]

    def make(launch: Launch, name: str, inputs: list[str]) -> backends.Run:
        made.append(launch.spec.file)
        return lambda arrays: arrays

    backends.chain(kernel, {}, exact, ("metal",), make)
    assert made == [launch["source"]]
