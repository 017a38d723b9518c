"""Tables, pictures and figures in sentences are what the results say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import documentation
import pytest
import results_calls
import results_models
import results_page
import results_search
import results_source
from documentation import PAGES, ROOT, figures

RESULTS = results_source.RESULTS
# Pages that tell what was measured: each of their sentences with a figure names its file.
MEASURED = {"README.md", "results.md", "peers.md", "limits.md"}
# Counted or searched over measured points: the file of these has the date.
UNDATED = re.compile(r"metal-product-counters|h[12]00-\w+-heuristic")
DATED = [path for path in RESULTS.iterdir() if not UNDATED.match(path.name)]


@pytest.mark.parametrize("page", results_page.PAGES, ids=lambda page: page.name)
def test_the_tables_are_what_the_results_say(page: Path) -> None:
    assert page.read_text() == results_page.written(page), "run python benchmarks/results_page.py"


def test_the_pictures_are_what_the_results_say() -> None:
    for path, picture in results_page.PICTURES.items():
        assert path.read_text() == picture(), "run python benchmarks/results_page.py"


def test_every_table_stands_in_a_page_once() -> None:
    text = "".join(page.read_text() for page in results_page.PAGES)
    assert sorted(re.findall(r"<!-- table: ([\w-]+) -->", text)) == sorted(results_page.TABLES)


def test_a_table_of_products_says_of_each_how_many_bits_it_has() -> None:
    rows = results_calls.products_verdicts().rows
    judged = [workload.slug for workload in results_source.TUNED.workloads(results_source.H200)]
    for shape, bits, *cells in rows:
        n, k = shape.split(" x ")
        those = [slug for slug in judged if f"-n{n}-k{k}-" in slug]
        assert all(slug.endswith(f"-q{bits}g64") for slug in those), shape
        assert len(those) == len(cells) - cells.count("-")


def test_what_another_kernel_than_the_winner_came_to_stands_in_brackets() -> None:
    ratios = {row[0]: row[-2] for row in results_search.winners().rows}
    for run in results_search.VISITS.data["rows"]:
        (workload,) = run["workloads"]
        (winner, *_) = run["best"][workload]
        those = [visit[workload]["best"] == winner for visit in run["beside"]]
        assert [not r.startswith("(") for r in ratios[f"`{workload}`"].split(", ")] == those


def test_rows_with_an_interval_come_worst_first() -> None:
    lows = [row.found["low"] for row in results_models.decodings()]
    assert lows == sorted(lows)


def test_a_result_that_changed_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    page = results_page.PAGES[0]
    source = results_models.ON_H200[0]
    data = json.loads(source.text)
    data["cases"][0]["averages"]["patched"]["generation_tps"] += 1
    monkeypatch.setitem(source.__dict__, "data", data)
    assert page.read_text() != results_page.written(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_of_a_sentence_is_found_in_the_file_that_it_names(page: Path) -> None:
    for text in documentation.sentences(page):
        named = re.findall(r"\]\((?:\.\./)?(benchmarks/results/[\w.-]+)\)", text)
        found = figures(text)
        if not named:
            assert not found or page.name not in MEASURED, f"which file has {found}? {text}"
            continue
        values = [value for name in named for value in documentation.numbers(ROOT / name)]
        missing = [x for x in found if not any(documentation.rounds_to(v, x) for v in values)]
        assert missing == [], f"{missing} are not in {named}: {text}"


def test_a_wrong_figure_would_be_noticed() -> None:
    assert figures("It took 6.7 us of 16:8 heads (MLX 0.32.4), 12% and `x 9.5` in 3 runs") == [
        "6.7", "12"
    ]  # fmt: skip
    assert documentation.rounds_to(0.9816, "0.98")
    assert documentation.rounds_to(1.234e-5, "12.3")  # in microseconds
    assert documentation.rounds_to(0.531, "53")  # in percent
    assert documentation.rounds_to(18058, "18,058")
    assert not documentation.rounds_to(0.9816, "0.99")
    assert not documentation.rounds_to(422, "423")


def test_a_sample_is_no_figure(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    each = [[0.5, 1.25]] * 9
    rows = {"ratio": 1.21, "blocks": [1.03, 1.43], "requests": each, "rates": [7.0] * 9}
    file.write_text(json.dumps({"rows": [rows], "samples_ms": [3.5]}))
    assert sorted(documentation.numbers(file)) == [1, 1.03, 1.21, 1.43, 2, 9, 9]


def test_every_results_file_is_named_by_a_page_or_read_by_a_test() -> None:
    readers = [*PAGES, *(ROOT / "tests" / "evolve").glob("*.py")]
    text = "".join(path.read_text() for path in readers)
    globs = [name for name in re.findall(r"results/([\w*.-]+)", text) if "*" in name]
    for path in RESULTS.iterdir():
        assert path.name in text or any(path.match(name) for name in globs), path.name


@pytest.mark.parametrize("path", DATED, ids=lambda path: path.name)
def test_a_results_file_has_its_date(path: Path) -> None:
    text = path.read_text()
    found = json.loads(text).get("date", "") if path.suffix == ".json" else text.split("\n\n")[0]
    assert re.search(r"20\d\d-\d\d-\d\d", found)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_whole_and_readable_on_dark_paper(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text())
    width = float(root.attrib["viewBox"].split()[2])
    assert "prefers-color-scheme: dark" in path.read_text()
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        letters = 6.5 * len(element.text or "")
        x, mark = float(element.attrib["x"]), element.attrib.get("class", "")
        anchor = element.attrib.get("text-anchor", "")
        left = letters if "right" in mark or anchor == "end" else letters / 2 * ("middle" in mark)
        assert x - left >= 0, element.text
        assert x - left + letters <= width, element.text
