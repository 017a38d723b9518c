"""What a patch of mlx-lm can meet: the rows of docs/contract.md that no other file holds."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.base as base
import mlx_lm.models.qwen3 as qwen3
import own_code
import pytest
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models import cache as caches
from samples import shipped_in_metal, store_correct
from serving import BUCKETS, attention, close, enable, hits

import mlx_lm_openevolve
from mlx_lm_openevolve import errors
from mlx_lm_openevolve.ops.attention.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "contract.md"
PROMPT = mx.arange(1, 20) % 128


@pytest.fixture
def everything(home: Path) -> None:
    """Decode and verify steps of the tiny model are proven: alone, in batches, under a mask."""
    wanted = [
        replace(BUCKETS[0], batch=batch, kv_len=kv_len, q_len=q_len, mask=mask).bucket()
        for kv_len in (16, 32, 64)
        for batch in (1, 2, 4)
        for q_len, masks in ((1, ("none", "bool")), (4, ("causal", "bool")))
        for mask in masks
    ]
    kernel = next(k for k in shipped_in_metal() if all(k.applies_to(w) for w in wanted))
    store_correct(home, kernel, wanted)


def agree(run: Callable[[], list[mx.array]]) -> int:
    """The same answers patched as unpatched; the number of calls that a kernel served."""
    want = run()
    enable()
    got = run()
    served = hits()
    mlx_lm_openevolve.disable_optimizations()
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert close(a, b, 0.02)
    return served


def decode(model: Any, cache: list[Any], *tokens: int) -> list[mx.array]:
    """Logits of the last token of each step, evaluated."""
    found = [model(mx.array([[token]]), cache=cache)[:, -1] for token in tokens]
    mx.eval(found)
    return found


def filled(model: Any, tokens: mx.array = PROMPT) -> list[Any]:
    cache: list[Any] = caches.make_prompt_cache(model)
    model(tokens[None], cache=cache)
    mx.eval([c.state for c in cache])
    return cache


def test_vmap_over_a_call_that_a_kernel_would_serve(everything: None) -> None:
    call = attention()
    queries = mx.stack([call["queries"], 2 * call["queries"]])

    def one(q: mx.array) -> mx.array:
        return base.scaled_dot_product_attention(
            q, call["keys"], call["values"], call["cache"], 0.125, None
        )

    want = mx.vmap(one)(queries)
    enable()
    one(queries[0])
    assert hits() == 1
    assert mx.array_equal(mx.vmap(one)(queries), want)


def test_tasks_of_asyncio_take_turns(everything: None, tiny_model: qwen3.Model) -> None:
    async def one(prompt: mx.array) -> list[mx.array]:
        found = []
        for _, logprobs in generate_step(prompt, tiny_model, max_tokens=4):
            found.append(logprobs)
            await asyncio.sleep(0)
        return found[:1]

    async def both() -> list[mx.array]:
        return [x for found in await asyncio.gather(one(PROMPT), one(PROMPT[3:])) for x in found]

    assert agree(lambda: asyncio.run(both())) > 0


def test_threads_route_at_the_same_time(everything: None, tiny_model: qwen3.Model) -> None:
    """Each with a stream and shapes of its own; every call is counted."""
    prompts = [PROMPT[n:] for n in range(4)]
    want = [decode(tiny_model, filled(tiny_model, p), 7, 8)[-1] for p in prompts]
    enable()
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        try:
            with mx.stream(mx.new_stream(mx.default_device())):
                got[i] = decode(tiny_model, filled(tiny_model, prompts[i]), 7, 8)[-1]
        except Exception as error:
            got[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert isinstance(got[i], mx.array), got[i]
        assert close(got[i], want[i], 0.02)
    assert hits() == 4 * 2 * 2, "threads, steps, layers"


PROCESSES = """
import multiprocessing, os
import mlx_lm_openevolve
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache

def served():
    import mlx.core as mx
    q, k = mx.ones((1, 4, 1, 64), mx.bfloat16), mx.ones((1, 2, 20, 64), mx.bfloat16)
    out = base.scaled_dot_product_attention(q, k, k, cache=KVCache(), scale=1.0, mask=None)
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"].values()
    return out.sum().item(), sum(row["hits"] for row in rows)

def enable():
    mlx_lm_openevolve.enable_optimizations(backend="host", gate="stored", require_faster=False)

def spawned(queue):
    before = served()
    enable()
    queue.put((before, served()))

if __name__ == "__main__":
    enable()
    # A fork before MLX has computed anything: afterwards MLX itself does not survive one.
    pid = os.fork()
    found = served()
    if pid == 0:
        os._exit(0 if found == (256.0, 1) else 1)
    print(found, os.waitpid(pid, 0)[1])
    # A spawned process is a fresh one: it is patched once it enables by itself.
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=spawned, args=(queue,))
    process.start()
    print(*queue.get(timeout=120))
    process.join()
"""


def test_processes(everything: None, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.stdout == "(256.0, 1) 0\n(256.0, 0) (256.0, 1)\n", done.stderr


def test_pickling_goes_by_name(tiny_model: qwen3.Model) -> None:
    stock = [base.scaled_dot_product_attention]
    enable()
    ours = [base.scaled_dot_product_attention]
    text = pickle.dumps(ours[0])
    assert pickle.loads(text) is ours[0]
    assert copy.deepcopy(ours[0]) is ours[0]
    mlx_lm_openevolve.disable_optimizations()
    assert pickle.loads(text) is stock[0]


def test_two_models_in_turns(everything: None, tiny_model: qwen3.Model, tmp_path: Path) -> None:
    other = own_code.load(own_code.CODE["name"], tmp_path)

    def run() -> list[mx.array]:
        models = [(m, filled(m, PROMPT[n:])) for n, m in enumerate((tiny_model, other))]
        return [x for token in (7, 8) for m, c in models for x in decode(m, c, token)]

    assert agree(run) == 8


def test_a_prompt_cache_saved_and_loaded(
    everything: None, tiny_model: qwen3.Model, tmp_path: Path
) -> None:
    file = str(tmp_path / "cache.safetensors")

    def run() -> list[mx.array]:
        caches.save_prompt_cache(file, filled(tiny_model))
        return decode(tiny_model, caches.load_prompt_cache(file), 7, 8)

    assert agree(run) == 4


def test_a_prompt_cache_trimmed_and_copied(everything: None, tiny_model: qwen3.Model) -> None:
    def run() -> list[mx.array]:
        cache = filled(tiny_model)
        copied = copy.deepcopy(cache)
        found = decode(tiny_model, cache, 7, 8, 9)
        caches.trim_prompt_cache(cache, 2)
        return found + decode(tiny_model, cache, 5) + decode(tiny_model, copied, 7)

    assert agree(run) == 10


def test_a_prompt_cache_extended_by_a_turn(everything: None, tiny_model: qwen3.Model) -> None:
    def run() -> list[mx.array]:
        cache = filled(tiny_model)
        found = decode(tiny_model, cache, 7)
        tiny_model(PROMPT[None, :5], cache=cache)
        return found + decode(tiny_model, cache, 8)

    assert agree(run) == 6, "both decode steps, and the turn, which is short"


def test_a_batch_that_grows_and_shrinks(everything: None, tiny_model: qwen3.Model) -> None:
    """As BatchGenerator does it: merged, extended by a newcomer, then filtered."""

    def run() -> list[mx.array]:
        batch = [
            pair[0].merge(list(pair))
            for pair in zip(filled(tiny_model), filled(tiny_model, PROMPT[4:]), strict=True)
        ]
        found = [tiny_model(mx.array([[7], [8]]), cache=batch)[:, -1]]
        for cache, newcomer in zip(batch, filled(tiny_model, PROMPT[:9]), strict=True):
            cache.extend(newcomer.merge([newcomer]))
        found.append(tiny_model(mx.array([[7], [8], [9]]), cache=batch)[:, -1])
        for cache in batch:
            cache.filter(mx.array([0, 2]))
        found.append(tiny_model(mx.array([[5], [6]]), cache=batch)[:, -1])
        mx.eval(found)
        return found

    assert agree(run) == 6


def test_speculation(everything: None, tiny_model: qwen3.Model) -> None:
    """The model drafts for itself: verify steps of several queries, and caches that are trimmed."""

    def run() -> list[mx.array]:
        steps = speculative_generate_step(
            PROMPT, tiny_model, tiny_model, num_draft_tokens=3, max_tokens=6
        )
        return [logprobs for _, logprobs, _ in steps][:1]

    assert agree(run) > 0
    enable()
    run()
    rows = mlx_lm_openevolve.get_optimization_info()["workloads"].items()
    served = {Workload.parse(slug).q_len for slug, row in rows if row["hits"]}
    assert served == {1, replace(BUCKETS[0], kv_len=32, q_len=4).bucket().q_len}


PARALLEL = """
import mlx.core as mx
import mlx_lm_openevolve
import mlx_lm.models.qwen3 as qwen3
from mlx_lm.models.cache import make_prompt_cache
from samples import TINY
from serving import close, enable, hits
from mlx.utils import tree_map

group = mx.distributed.init(strict=True)
mx.random.seed(0)
model = qwen3.Model(qwen3.ModelArgs.from_dict(TINY))
model.update(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters()))
mx.eval(model.parameters())

def logits():
    cache = make_prompt_cache(model)
    model(mx.arange(19)[None], cache=cache)
    out = model(mx.array([[7]]), cache=cache)
    mx.eval(out)
    return out

whole = logits()
model.shard(group)
want = logits()
assert close(want, whole, 0.03)
enable()
assert close(logits(), want, 0.02)
assert hits() == 2, hits()
print("rank", group.rank(), "of", group.size(), "served", flush=True)
"""


def test_tensor_parallel(home: Path, tmp_path: Path) -> None:
    """Two processes on this machine: each serves its own heads, with its own layout's verdicts."""
    halves = [replace(bucket, q_heads=2, kv_heads=1) for bucket in BUCKETS]
    kernel = next(k for k in shipped_in_metal() if all(k.applies_to(w) for w in halves))
    store_correct(home, kernel, halves)
    script = tmp_path / "parallel.py"
    script.write_text(f"#!{sys.executable}\n{PARALLEL}")
    script.chmod(0o755)  # mlx.launch of 0.32.0 runs it as it is
    launch = Path(sys.executable).parent / "mlx.launch"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [launch, "-n", "2", "--backend", "ring", "--python", sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path},
    )
    for rank in (0, 1):
        assert f"rank {rank} of 2 served" in done.stdout, done.stdout + done.stderr


def test_families_can_be_switched(everything: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = [base.scaled_dot_product_attention]
    on: dict[str, Any] = {"backend": "host", "gate": "stored", "require_faster": False}
    info = mlx_lm_openevolve.enable_optimizations(**on, ops=("attention",))
    assert set(info["ops"]) == {"attention"}
    base.scaled_dot_product_attention(**attention())
    assert hits() == 1
    for some in (iter(["attention"]), {"attention"}, ["attention"] * 2):
        assert set(mlx_lm_openevolve.enable_optimizations(**on, ops=some)["ops"]) == {"attention"}
    info = mlx_lm_openevolve.enable_optimizations(**on, ops=())
    assert (info["enabled"], info["ops"]) == (True, {})
    assert base.scaled_dot_product_attention is stock[0]
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", " attention, ")
    with mlx_lm_openevolve.optimizations(**on) as info:
        assert set(info["ops"]) == {"attention"}
    with mlx_lm_openevolve.optimizations(**on, ops=()) as info:
        assert info["ops"] == {}, "the variable narrows what a program asks for"


@pytest.mark.parametrize(
    ("wanted", "variable", "says"),
    [
        (("nonsense",), "", "ops: 'nonsense' is none of attention, linear, step"),
        ("attention", "", "ops is a tuple of names such as (\"attention\",), not 'attention'"),
        (5, "", 'ops is a tuple of names such as ("attention",), not 5'),
        (
            *(None, "attention,linaer"),
            "MLX_LM_OPENEVOLVE_OPS: 'linaer' is none of attention, linear, step",
        ),
    ],
)
def test_an_unknown_family_is_one_line(
    wanted: Any, variable: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", variable)
    with pytest.raises(errors.UsageError) as raised:
        mlx_lm_openevolve.enable_optimizations(backend="host", ops=wanted)
    assert str(raised.value) == says
    assert not mlx_lm_openevolve.get_optimization_info()["enabled"]


def test_every_test_that_the_table_names_exists() -> None:
    _, table = PAGE.read_text().split("\n| what | held by |\n|---|---|\n")
    rows = table.strip().splitlines()
    named = 0
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert tests, f"no test holds {row}"
        for file, test in tests:
            source = (ROOT / file).read_text()
            assert re.search(rf"^def {test}\(", source, re.M), f"{file} has no {test}"
            named += 1
    assert named > 20
