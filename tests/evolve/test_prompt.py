"""The prompt: what it holds, what it cuts, and how answers become kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import evolve_kernels
import pytest

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import events, features, options, prompt, suites
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import (
    Budget,
    Config,
    LanguageModel,
    LlmConfig,
    Search,
)
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult
from mlx_lm_openevolve.evolve.propose.answers import AnswerError, apply, note_of, parent_of
from mlx_lm_openevolve.evolve.propose.structural import choose_parent
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.units import seconds_of

SLUG = evolve_kernels.DECODE.slug
COUNTERS = {
    "device_read_bytes": 4000,
    "device_write_bytes": 0,
    "compulsory_read_bytes": 1000,
    "compulsory_write_bytes": 0,
    "bank_conflicts": 7,
    "threadgroup_memory": 0,
    "barriers": 3,
    "simd_reductions": 5,
    "simd_shuffles": 0,
    "flops": 9,
    "line_efficiency": 0.5,
    "launches": 1,
}


def child(mark: str) -> Kernel:
    return evolve_kernels.kernel(evolve_kernels.BODY.replace("top = -1e38f", f"top = {mark}"))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive.create(
        tmp_path / "run", Config("metal", (evolve_kernels.DECODE,), (1.0,)), {"name": "chip"}
    )
    made.add(events.Baseline(SLUG, 4e-5, 1e-5, "memory"))
    seed = evolve_kernels.kernel()
    add(made, seed, 1.25, note="the seed")
    add(made, child("-1e37f"), 1.5, parent=seed.id, note="another top")
    made.add(
        events.Proposed(Candidate(3, "llm", "", (), note="no idea", error="x", parent=seed.id))
    )
    made.add(events.Evaluated(3, Evaluation("answer", "no EDIT in it")))
    yield made
    made.close()


def add(archive: Archive, kernel: Kernel, ratio: float, **more: str) -> None:
    archive.registry.add(kernel)
    number = archive.next_number()
    candidate = Candidate(number, "llm", kernel.id, (SLUG,), {"step": 1}, **more)  # type: ignore[arg-type]
    archive.add(events.Proposed(candidate))
    result = WorkloadResult(
        {"step": 1}, 4e-5 / ratio, ratio, ratio - 0.1, ratio + 0.1, counters=COUNTERS
    )
    archive.add(events.Evaluated(number, Evaluation(results={SLUG: result})))


def test_everything_that_is_known_is_in_the_prompt(archive: Archive) -> None:
    parent = archive.load(child("-1e37f").id)
    made = prompt.build(archive, parent)
    text = made.text
    assert made.cut == ()
    for part in (
        "40 | 10 | memory",  # SDPA and the floor, in microseconds
        "1.500x [1.400, 1.600] 26.67 us",
        "for 1.0x it needs",
        "4000 bytes asked for, 1000 compulsory (4.00x)",
        "7 bank conflicts",
        "3 barriers",
        "Change #2: another top -> 1.200x its parent's speed",
        "+float top = -1e37f;",
        "-float top = -1e38f;",
        "One of the best",
        "Failed #3 (no idea): answer",
        "no EDIT in it",
        "bfloat has no implicit conversion",
        "## History",
    ):
        assert part in text, part
    assert text.count("FILE kernel.json") == 2


def test_without_a_gpu_it_speaks_of_bytes_and_of_no_time(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "run", Config("host", (evolve_kernels.DECODE,), (1.0,)), {})
    for number, (kernel, moved) in enumerate(
        ((evolve_kernels.kernel(), 300), (child("-1e37f"), 200)), 1
    ):
        parent = evolve_kernels.kernel().id if number == 2 else ""
        archive.registry.add(kernel)
        candidate = Candidate(number, "llm", kernel.id, (SLUG,), {"step": 1}, parent, "another top")
        archive.add(events.Proposed(candidate))
        counters = {**COUNTERS, "moved_bytes": moved, "least_bytes": 100}
        result = WorkloadResult({"step": 1}, counters=counters)
        archive.add(events.Evaluated(number, Evaluation(results={SLUG: result})))
    archive.close()
    text = prompt.build(archive, archive.load(child("-1e37f").id)).text
    assert "nothing is timed" in text
    assert "best so far: 2.00x the least bytes" in text
    assert f"{SLUG} | 1.00 | 200 bytes, 2.00x the least bytes (" in text
    assert "Change #2: another top -> 1.500x fewer bytes" in text
    assert f"{SLUG} 3.00x the least bytes" in text.split("## History")[1]
    assert "microseconds" not in text


def test_it_is_cut_at_the_context_alone_and_says_what_was(archive: Archive) -> None:
    parent = archive.load(child("-1e37f").id)
    whole = prompt.build(archive, parent)
    assert prompt.build(archive, parent, context=whole.tokens + 200).cut == ()
    less = prompt.build(archive, parent, context=whole.tokens * 3 // 4)
    assert less.cut
    assert less.tokens <= whole.tokens * 3 // 4
    assert f"Cut at your context of {whole.tokens * 3 // 4} tokens: {less.cut[0]}" in less.text
    assert "You write attention kernels" in less.text


def test_a_repair_comes_with_the_exact_finding(archive: Archive) -> None:
    made = prompt.build(archive, evolve_kernels.kernel(), failed=archive.candidates[3])
    assert made.text.index("Repair this") < made.text.index("## Workloads")
    assert "no EDIT in it" in made.text


def test_parents_are_elites_unless_exploring(archive: Archive) -> None:
    seeds = [evolve_kernels.kernel()]
    archive.config = Config("metal", (evolve_kernels.DECODE,), (1.0,), search=Search(explore=0.0))
    best = child("-1e37f").id
    chosen = [choose_parent(archive, seeds, number)[0].id for number in range(0, 60, 3)]
    assert set(chosen) <= set(archive.elites(0))
    assert chosen.count(best) > 0
    assert {choose_parent(archive, seeds, number)[1] for number in range(3)} == {0, 1, 2}


EDIT = "NOTE: faster\nEDIT plain.metal\n<<<<<<< SEARCH\n{}=======\n{}>>>>>>> REPLACE\n"


def test_an_edit_and_a_whole_file_make_a_kernel() -> None:
    parent = evolve_kernels.kernel()
    made = apply(EDIT.format("float sum = 0.0f;\n", "float sum = 0.5f;\n"), parent, "run r 1")
    assert "float sum = 0.5f;" in made.sources["plain.metal"]
    assert made.origin == "run r 1"
    meta = {**parent.meta, "name": "other", "description": "x"}
    text = f"FILE kernel.json\n```json\n{json.dumps(meta)}\n```\n**FILE plain.metal**\n```metal\n"
    made = apply(text + evolve_kernels.BODY + "```\n", parent, "run r 2")
    assert made.name == "other"
    assert made.sources["plain.metal"].strip() == evolve_kernels.BODY.strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("let me think", "neither a FILE"),
        (EDIT.format("no such line\n", "x\n"), "stands 0 times"),
        (EDIT.format("}\n", "x\n"), "times in it, expected once"),
        (EDIT.replace("plain", "other").format("a\n", "b\n"), "no such file"),
        (EDIT.replace("EDIT plain.metal\n", "").format("a\n", "b\n"), "without a line EDIT"),
        ("FILE kernel.json\n```\n{\n```\n", "kernel.json"),
        ("FILE kernel.json\n```\n[]\n```\n", "expected an object"),
        (EDIT.format("float sum = 0.0f;\n", "float sum = 0.0f; // \N{MICRO SIGN}\n"), "ASCII"),
    ],
)
def test_what_is_wrong_with_an_answer_is_one_line(text: str, words: str) -> None:
    with pytest.raises(AnswerError, match=words) as error:
        apply(text, evolve_kernels.kernel(), "run r 1")
    assert "\n" not in str(error.value)


def test_notes_and_parents_are_read() -> None:
    assert note_of("bla\n**NOTE:** reads less\n") == "reads less"
    assert parent_of("NOTE: x\nPARENT 0123456789ab\n") == "0123456789ab"
    assert (note_of("x"), parent_of("x")) == ("", "")


def test_strategy_is_read_from_the_text_and_the_counters() -> None:
    plain = features.strategy(evolve_kernels.kernel(), COUNTERS)
    assert (plain.vector, plain.passes, plain.split, plain.memory) == (
        1,
        "online",
        False,
        "strided",
    )
    kernels = {k.name: k for k in Registry(tuned_root(), writable=False).kernels()}
    decode = features.strategy(kernels["gqa_decode"])
    assert (decode.vector, decode.split, decode.matrix) == (8, True, False)
    assert features.strategy(kernels["gqa_decode_mma"]).matrix


def test_suites_and_slugs_become_buckets() -> None:
    assert list(suites.suites()) == list(options.SUITES), "what the help offers"
    assert len(suites.suite(["decode", "decode"])) == len(suites.suites()["decode"])
    assert suites.suite([SLUG]) == (evolve_kernels.DECODE,)
    grid = suites.suite(["sdpa-grid"])
    assert {w.head_dim for w in grid} == {64, 80, 128}
    assert {w.mask for w in grid} == {"none", "bool", "causal"}
    assert (min(w.kv_len for w in grid), max(w.kv_len for w in grid)) == (32, 4096)
    assert len({w.group for w in grid}) >= 4
    with pytest.raises(UsageError, match=r"decode, batch, long, .*, sdpa-grid"):
        suites.suite(["decoed"])


def test_a_model_is_traced(tiny_folder: Path) -> None:
    uses = suites.traced(str(tiny_folder), prompt_tokens=40, new_tokens=8)
    assert sum(uses.values()) == pytest.approx(1)
    assert {w.q_len for w in uses} >= {1}
    assert {(w.q_heads, w.kv_heads, w.head_dim) for w in uses} == {(4, 2, 64)}


def test_a_config_reads_back() -> None:
    config = Config(
        "cuda",
        (evolve_kernels.DECODE, evolve_kernels.MASKED),
        (0.25, 0.75),
        proposer="llm",
        budget=Budget(candidates=5, money=0.5),
        search=Search(targets=((1.2, 0.8), (2.0, 0.5))),
        llm=LlmConfig(models=(LanguageModel("a", 2.0), LanguageModel.parse("b,1,0.5,2"))),
    )
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert [seconds_of(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    with pytest.raises(UsageError):
        Config("host", (), ())
    with pytest.raises(UsageError, match="none of params"):
        Config("host", (evolve_kernels.DECODE,), (1.0,), proposer="magic")
