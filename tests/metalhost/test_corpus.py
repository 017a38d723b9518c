"""metalhost, and Apple's compiler on a Mac, are held to the corpora of tests/metalhost/corpus."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import corpus
import mlx.core as mx
import mlx_kernels
import pytest
from apple_gpu import on_metal
from samples import needs_clang

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.metalhost import (
    Finding,
    LaunchResult,
    metal_function,
    metal_kernel,
)

REFUSALS = {"compile", "strict", "lint", "sandbox"}  # by which pass of the compiler driver
SAMPLE = 20  # of a kind: the rest runs under `make slow`


def snippets(kind: str, sample: int = SAMPLE) -> list[object]:
    """Parameters for one kind; all but a seeded sample are marked slow."""
    found = corpus.load(kind)
    kept = random.Random(2026).sample([s.name for s in found], sample)
    return [
        pytest.param(s, id=s.name, marks=() if s.name in kept else (pytest.mark.slow,))
        for s in found
    ]


def text(findings: Iterable[Finding]) -> str:
    return "\n".join(str(f) for f in findings)


def run(snippet: corpus.Snippet) -> LaunchResult:
    options = {"time_limit": 2.0} if "time-limit" in snippet.finds else {}
    if "kernel" not in snippet.keys:
        launch: LaunchResult = corpus.run(snippet, metal_kernel, **options)
        return launch
    outputs = [mlx_kernels.Out(a.shape, a.mx_dtype) for a in snippet.outputs]
    return mlx_kernels.launch(
        snippet.header,
        snippet.keys["kernel"],
        dict(enumerate([*snippet.arrays(), *outputs])),
        groups=(1, 1, 1),
        threadgroup=snippet.threadgroup,
        constants=snippet.constants,
    )


def lines_of(finding: Finding) -> set[int]:
    """The lines that a finding names, of both sides."""
    lines = {finding.line, finding.other.line if finding.other else None}
    return {line for line in lines if line is not None}


def one_element(kernel: Any) -> LaunchResult:
    launch: LaunchResult = kernel(
        inputs=[mx.ones(8)],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
        output_shapes=[(1,)],
        output_dtypes=[mx.float32],
    )
    return launch


@pytest.mark.parametrize(("kind", "least"), [("bugs", 40), ("valid", 60), ("invalid", 60)])
def test_the_corpora_are_complete(kind: str, least: int) -> None:
    found = corpus.load(kind)
    assert len(found) >= least
    for s in found:
        assert s.title, s.name
        assert (s.header + s.body).strip(), s.name
        if kind == "valid":
            assert any(a.values is not None for a in s.outputs), f"{s.name}: nothing is expected"
        if kind == "invalid":
            assert s.keys["because"], s.name
            assert s.keys["source"], s.name
            assert s.marked or s.keys.get("line") == "none", f"{s.name}: no marked line"
        if kind == "bugs":
            assert s.finds, s.name


@needs_clang
@pytest.mark.parametrize("snippet", snippets("valid"))
def test_valid_snippets_compute_without_a_finding(snippet: corpus.Snippet) -> None:
    launch = run(snippet)
    assert launch.ok, text(launch.findings)
    assert {f.kind for f in launch.findings} == set(snippet.finds), text(launch.findings)
    assert snippet.mismatch(launch.outputs) == ""


@needs_clang
@pytest.mark.parametrize("snippet", snippets("invalid"))
def test_invalid_snippets_are_refused_at_the_right_line(snippet: corpus.Snippet) -> None:
    launch = run(snippet)
    assert launch.findings, "accepted"
    assert {f.kind for f in launch.findings} <= REFUSALS, text(launch.findings)
    assert launch.outputs == []
    if snippet.marked:
        assert launch.findings[0].line in snippet.marked, text(launch.findings)


@needs_clang
@pytest.mark.parametrize("snippet", snippets("bugs"))
def test_planted_bugs_are_found_at_the_right_line(snippet: corpus.Snippet) -> None:
    launch = run(snippet)
    found = [f for f in launch.findings if f.kind in snippet.finds]
    assert found, f"expected {snippet.finds}, found:\n{text(launch.findings)}"
    kinds = {*snippet.finds, *snippet.keys.get("also", "").split()}
    assert not launch.ok
    assert {f.kind for f in launch.findings} <= kinds, (
        f"more than planted:\n{text(launch.findings)}"
    )
    for f in found:
        assert lines_of(f) <= snippet.marked, text(found)


@needs_clang
def test_lambdas_are_there_from_metal_3_2_on() -> None:
    source = (
        "kernel void k(device float* y [[buffer(0)]]) {\n"
        "  auto next = [](float v) { return v + 1; };\n  y[0] = next(1);\n}"
    )
    assert metal_function(source, "k").compile() == ()
    [finding] = metal_function(source, "k", language="3.1").compile()
    assert (finding.kind, finding.line) == ("strict", 2), finding
    with pytest.raises(UsageError, match=r"3\.1 or 3\.2"):
        metal_function(source, "k", language="4.0")


@needs_clang
def test_ten_megabytes_of_source_are_one_finding() -> None:
    kernel = metal_kernel("long", ["x"], ["y"], "y[0] = x[0];\n" + "// padding\n" * 1_000_000)
    launch = one_element(kernel)
    assert [f.kind for f in launch.findings] == ["sandbox"], text(launch.findings)


@needs_clang
@pytest.mark.parametrize(
    "line",
    [
        '#include "{}"',
        "#include <{}>",
        '#import "{}"',
        '#if __has_include("{}")\n#error SESAME\n#endif',
        'constant uchar c[] = {{\n#embed "{}"\n}};',
        '__asm__(".incbin \\"{}\\"");',
        '#pragma GCC dependency "{}"',
        '_Pragma("include_alias(\\"metal_stdlib\\", \\"{0}\\")")\n#include "{0}"',
    ],
)
def test_no_file_of_the_host_is_read(line: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.h"
    secret.write_text("#error SESAME\nconstant int sesame = 1;\n")
    header = line.format(secret)
    launch = one_element(metal_kernel("curious", ["x"], ["y"], "y[0] = x[0];", header=header))
    assert len(launch.findings) == 1, text(launch.findings)
    assert "SESAME" not in text(launch.findings)
    launch = one_element(metal_kernel("spy", ["x"], ["y"], "y[0] = sesame;", header=header))
    assert not launch.ok
    assert launch.outputs == []


@needs_clang
@pytest.mark.parametrize("name", ["endless_loop", "endless_recursion", "wild_pointer_write"])
def test_nothing_is_left_behind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    [snippet] = [s for s in corpus.load("bugs") if s.name == name]
    launch = run(snippet)
    assert launch.outputs == []
    assert list(scratch.iterdir()) == []
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        assert children.read_text() == ""


def apple_says(snippet: corpus.Snippet) -> tuple[str, list[mx.array]]:
    """What Apple's compiler objects to ("" for nothing), and the outputs."""
    try:
        outputs: list[mx.array] = corpus.run(snippet, mx.fast.metal_kernel)
        mx.eval(outputs)
    except RuntimeError as error:
        return str(error), []
    return "", outputs


@on_metal
def test_apple_accepts_and_computes_valid_snippets() -> None:
    differences = []
    for s in corpus.load("valid"):
        if "kernel" in s.keys:  # mx.fast.metal_kernel sets no function constants
            continue
        refused, outputs = apple_says(s)
        if refused or s.mismatch(outputs):
            differences.append(f"{s.name}: {refused or s.mismatch(outputs)}")
    assert not differences, "\n".join(differences)


@on_metal
def test_apple_refuses_invalid_snippets() -> None:
    accepted = [s.name for s in corpus.load("invalid") if not apple_says(s)[0]]
    assert not accepted, accepted


@on_metal
def test_apple_compiles_planted_bugs() -> None:
    """Compiled only: a return in front keeps the GPU from running into the bug."""
    differences = []
    for s in corpus.load("bugs"):
        verdict = s.keys.get("apple", "accepted")
        if verdict == "any" or "threadgroup-size" in s.finds:  # no question for the compiler
            continue
        refused, _ = apple_says(s.returning_at_once())
        if bool(refused) != (verdict == "refused"):
            differences.append(f"{s.name}: {refused or 'accepted'}")
    assert not differences, "\n".join(differences)
