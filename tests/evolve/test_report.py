"""The report: what its tables hold, and how wide they are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import evolve_kernels
import pytest

from mlx_lm_openevolve.evolve import packed, report
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Config

KEPT = Path(__file__).parents[2] / "benchmarks" / "runs" / "h100-tune.tar.xz"


@pytest.fixture(scope="module")
def kept() -> Iterator[Archive]:
    with packed.unpacked(KEPT) as folder:
        yield Archive.open(folder, write=False)


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table with their tags."""
    found = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    rows = [re.findall(r"<tr>(.*?)</tr>", table) for table in found]
    return [[re.findall(r"<t[hd].*?</t[hd]>", row) for row in table] for table in rows]


def test_the_workloads_fit_a_page_a_line_each(kept: Archive) -> None:
    times, kernels = tables(report._workloads(kept))
    for table in (times, kernels):
        assert len(table) == 1 + len(kept.slugs)
        assert len({len(row) for row in table}) == 1
        # What a line of the page holds: the slug, and as many characters again.
        for row in table[1:]:
            fixed = [re.sub("<.*?>", "", cell) for cell in row if "class=w" not in cell]
            assert sum(map(len, fixed)) <= 120
    assert not any("class=w" in cell for row in times for cell in row)
    slug = kept.slugs[0]
    kernel, result, number = kept.best[slug]
    assert f"<td class=n>{result.ratio:.3f}</td>" in times[1]
    assert f"<td>[{result.low:.3f}, {result.high:.3f}]</td>" in times[1]
    assert "<th class=n>speed-up</th>" in times[0]
    # An id is no number, also where it begins with a digit.
    assert kernels[1][:3] == [f"<td>{slug}</td>", f"<td>{kernel}</td>", f"<td>#{number}</td>"]


# How far each table runs over its box, in pixels, and the lines of its highest row.
MEASURE = """<script>onload = () => { document.body.dataset.tables = JSON.stringify(
  [...document.querySelectorAll(".t")].map(box => [box.scrollWidth - box.clientWidth,
    Math.max(...[...box.querySelectorAll("td")].map(cell => { const style = getComputedStyle(cell);
      return (cell.clientHeight - 2 * parseFloat(style.paddingTop)) / (1.5 * parseFloat(
        style.fontSize)) }))])) }</script>"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no browser to render the page with")
@pytest.mark.parametrize("width", [1280, 1000, 720])
def test_a_browser_cuts_no_table_of_workloads_and_breaks_no_row_twice(
    kept: Archive, width: int, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    style = f"<!doctype html><style>{report._STYLE}</style>"
    page.write_text(f"{style}{MEASURE}<body>{report._workloads(kept)}")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run([str(BROWSER), *words], capture_output=True, text=True, check=True)
    found = re.search('data-tables="(.*?)"', shown.stdout)
    assert found is not None
    times, kernels = json.loads(found[1])
    assert times == [0, pytest.approx(1, abs=0.3)]
    assert kernels[0] == 0
    assert kernels[1] < 2.3


@pytest.mark.parametrize(("backend", "columns"), [("metal", 6), ("host", 3)])
def test_a_run_without_a_measurement_has_a_report(
    backend: str, columns: int, tmp_path: Path
) -> None:
    run = Archive.create(tmp_path / "run", Config(backend, (evolve_kernels.DECODE,), (1.0,)), {})
    run.close()
    files = report.write(Archive.open(tmp_path / "run", write=False), tmp_path / "page")
    page = files[0].read_text()
    (table, *_) = tables(page)
    assert [re.sub("<.*?>", "", cell) for cell in table[1]] == [
        evolve_kernels.DECODE.slug, "1.00", *[""] * columns
    ]  # fmt: skip
    assert "No kernel of this run was made from another" in page
    assert all(path.is_file() for path in files)


def test_text_of_a_run_is_no_markup(kept: Archive) -> None:
    table = report._table(["finding", "count"], [["<script>", 3], ["a & b", "-"]])
    assert "<script>" not in table
    assert "<td class=w>&lt;script&gt;</td><td class=n>3</td>" in table
