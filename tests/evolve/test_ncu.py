"""GPU profiles: what is read from ncu's table, why there may be none, and who is told of it."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evolve_kernels
import pytest
from rich.console import Console
from samples import needs_clang

from mlx_lm_openevolve.errors import UsageError
from mlx_lm_openevolve.evolve import (
    asked,
    commands,
    events,
    features,
    options,
    prompt,
    report,
)
from mlx_lm_openevolve.evolve import ncu as profile
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.candidate import Candidate
from mlx_lm_openevolve.evolve.config import Config
from mlx_lm_openevolve.evolve.evaluation import Evaluation, WorkloadResult
from mlx_lm_openevolve.evolve.ncu import ProfileError, Profiler
from mlx_lm_openevolve.evolve.propose.mailbox import Mailbox
from mlx_lm_openevolve.kernels.kernel import Kernel

SLUG = evolve_kernels.DECODE.slug
FIRST = ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream",
         "Block Size", "Grid Size", "Device", "CC")  # fmt: skip
SPLIT = "custom_kernel_split_decode_0123456789ab_0(const __nv_bfloat16 *, const int *)"
JOIN = "custom_kernel_split_decode_0123456789ab_1(const float *, __nv_bfloat16 *)"
SAID = """\
==PROF== Connected to process 4711 (/usr/bin/python3.11)
==PROF== Profiling "custom_kernel_split_decode_01..." - 0: 0%....50%....100% - 5 passes
==PROF== Disconnected from process 4711
"""
# Columns in an order of ncu's own, not in ours.
UNITS = {
    "dram__bytes_read.sum": "Mbyte",
    "dram__bytes_write.sum": "Kbyte",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "%",
    "gpu__time_duration.sum": "us",
    "l1tex__t_sector_hit_rate.pct": "%",
    "launch__registers_per_thread": "register/thread",
    "launch__shared_mem_per_block": "Kbyte/block",
    "lts__t_sector_hit_rate.pct": "%",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "%",
}
WIDE = ("16.8", "40", "80.5", "9", "12.5", "96", "18.4", "30", "45")
SMALL = ("0.2", "8", "2.5", "3", "50", "32", "1.0", "70", "5")


def table(*launches: tuple[str, tuple[str, ...]], units: dict[str, str] = UNITS) -> str:
    """What ncu --csv --page raw prints: its own words, names, units, a row a launch."""
    out = io.StringIO()
    write = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow
    write([*FIRST, *units])
    write([*[""] * len(FIRST), *units.values()])
    for i, (name, values) in enumerate(launches):
        place = (str(i), "4711", "python3.11", "127.0.0.1", name, "1", "7")
        write([*place, "(256, 1, 1)", "(8, 16, 1)", "0", "9.0", *values])
    return SAID + out.getvalue()


COLD = (SPLIT, ("99.9", "99", "1", "5,000", "1", "96", "18.4", "1", "1"))
CALL = ((SPLIT, WIDE), (JOIN, SMALL))


def test_launches_of_a_call_add_up_and_the_rest_is_weighted_by_time() -> None:
    text = table(COLD, (JOIN, SMALL), *CALL, ("sort_kernel", COLD[1]), *CALL, *CALL)
    assert profile.parse(text, 2) == {
        "launches": 2,
        "seconds": 12e-6,
        "read_bytes": 17_000_000,
        "write_bytes": 48_000,
        "occupancy": 0.35,  # (9 us * 45% + 3 us * 5%) / 12 us
        "dram": 0.61,
        "l1_hits": pytest.approx(0.2188, abs=1e-4),
        "l2_hits": 0.4,
        "registers": 80,
        "shared_bytes": 14050,
    }


@pytest.mark.parametrize(
    ("time_unit", "byte_unit", "values"),
    [
        ("nsecond", "byte", ("16,800,000", "9,000")),
        ("ns", "byte", ("16800000.000000", "9000")),
        ("usecond", "Kbyte", ("16,800.00", "9.00")),
        ("msecond", "Mbyte", ("16.8", "0.009")),
        ("s", "Gbyte", ("0.0168", "0.000009")),
        ("second", "Gbyte", ("0.0168", "9e-06")),
    ],
)
def test_units_become_seconds_and_bytes(
    time_unit: str, byte_unit: str, values: tuple[str, str]
) -> None:
    read, seconds = values
    units = {"dram__bytes_read.sum": byte_unit, "gpu__time_duration.sum": time_unit}
    found = profile.parse(table((SPLIT, (read, seconds)), units=units), 1)
    assert found == {"launches": 1, "seconds": 9e-6, "read_bytes": 16_800_000}


def test_what_a_chip_does_not_count_is_left_out() -> None:
    units = {"gpu__time_duration.sum": "us", "lts__t_sector_hit_rate.pct": "%"}
    for no_number in ("n/a", "", "nan", "(!) nan"):
        found = profile.parse(table((SPLIT, ("9", no_number)), units=units), 1)
        assert found == {"launches": 1, "seconds": 9e-6}
    assert profile.describe(found) == "9.0 us on the GPU"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "printed no table"),
        (SAID + '"ID"\n', "printed no table"),
        (table(), "saw 0 launches, a call has 2"),
        (table(COLD), "saw 1 launches, a call has 2"),
        (table(*CALL, units={**UNITS, "gpu__time_duration.sum": "moon"}), "in 'moon'"),
        (table((SPLIT, ("n/a",)), (JOIN, ("3",)), units={"gpu__time_duration.sum": "us"}),
         "no time"),
        (table(*CALL).replace("gpu__time_duration.sum", "other"), "no time"),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_one_line(text: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        profile.parse(text, 2)


# ncu itself: a script in its place


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a Python script in ncu's place; returns the file in which it leaves its arguments."""

    def put(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        told = folder / "told.json"
        head = f"#!{sys.executable}\nimport json, os, subprocess, sys, time\n"
        head += f"json.dump(sys.argv[1:], open({str(told)!r}, 'w'))\n"
        (folder / "ncu").write_text(head + body)
        (folder / "ncu").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return told

    return put


def one(text: str) -> str:
    """The script of an ncu that prints that."""
    return f"sys.stdout.write({text!r})\n"


def look(**more: Any) -> dict[str, Any]:
    kernel = evolve_kernels.kernel()
    return profile.profile(kernel, {"step": 2}, evolve_kernels.DECODE, "host", **more)


GOOD = table((SPLIT, WIDE), (SPLIT, WIDE), (SPLIT, WIDE))


def test_ncu_is_asked_for_our_kernels_alone_and_told_what_to_run(
    ncu: Callable[[str], Path],
) -> None:
    told = ncu(one(GOOD))
    found = look()
    assert (found["seconds"], found["occupancy"]) == (9e-6, 0.45)
    argv = json.loads(told.read_text())
    at = argv.index(sys.executable)
    flags = argv[:at]
    assert flags[:7] == [
        *("--csv", "--page", "raw", "--clock-control", "none", "--graph-profiling", "node")
    ]
    assert flags[flags.index("--kernel-name") + 1] == "regex:custom_kernel_"
    assert set(flags[flags.index("--metrics") + 1].split(",")) == set(profile.METRICS)
    assert argv[at + 1 : at + 4] == ["-m", "mlx_lm_openevolve.evolve.ncu", "--launch"]
    assert argv[-2:] == [SLUG, "step=2"]
    assert not Path(argv[-3]).exists()  # the kernel's folder was for the child


@needs_clang
def test_the_child_launches_the_kernel_and_its_words_are_not_ncus(
    ncu: Callable[[str], Path],
) -> None:
    child = "argv = sys.argv[sys.argv.index(sys.executable):]\n"
    child += "done = subprocess.run(argv, capture_output=True, text=True)\n"
    child += "print('==PROF== child', done.returncode, repr(done.stdout), file=sys.stderr)\n"
    ncu(child + "if done.returncode or done.stdout: sys.exit(done.stderr)\n" + one(GOOD))
    assert look()["launches"] == 1
    ncu(child + "sys.exit(done.stderr)\n")
    broken = evolve_kernels.kernel("this is no Metal;\n")
    with pytest.raises(ProfileError, match="ncu ended with status 1: "):
        profile.profile(broken, {"step": 1}, evolve_kernels.DECODE, "host")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "print('==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access "
            "NVIDIA GPU Performance Counters on the target device 0.')\nsys.exit(1)\n",
            "may not read the GPU's counters",
        ),
        (
            "print('==WARNING== No kernels were profiled.')\n",
            "status 0: ==WARNING== No kernels were profiled.",
        ),
        (
            "print('==ERROR== The application returned an error code (1).')\n"
            "sys.exit('RuntimeError: [malloc] out of memory')\n",
            r"status 1: ==ERROR== The application.*; RuntimeError: \[malloc\] out of memory",
        ),
        ("", "status 0: it printed nothing"),
        (one(GOOD.replace("custom_kernel_", "copy_")), "saw 0 launches"),
    ],
    ids=["permission", "no kernel", "the child failed", "silence", "other kernels"],
)
def test_why_there_is_no_profile_is_one_line(
    ncu: Callable[[str], Path], body: str, words: str
) -> None:
    ncu(body)
    with pytest.raises(ProfileError, match=words) as error:
        look()
    assert "\n" not in str(error.value)


def test_an_ncu_that_hangs_is_killed_with_its_child(
    ncu: Callable[[str], Path], tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    ncu(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"with open({str(note)!r} + '.new', 'w') as file: file.write(str(child.pid))\n"
        f"os.replace({str(note)!r} + '.new', {str(note)!r})\ntime.sleep(600)\n"
    )
    with pytest.raises(ProfileError, match="took more than 2 s"):
        look(seconds=2)
    pid = int(note.read_text())
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not alive(pid) or (stat.exists() and stat.read_text().split()[2] == "Z"):
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child lives on")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def test_ncu_is_found_beside_cuda_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert profile.find(tmp_path) == ""
    monkeypatch.setattr(profile, "find", lambda: "")
    with pytest.raises(ProfileError, match="ncu was not found"):
        look()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    for place in ("opt/nvidia/nsight-compute/2025.1.0/ncu", "usr/local/cuda-12.8/bin/ncu"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_text("")
        assert profile.find(tmp_path) != str(path)  # not one that can be run
        path.chmod(0o755)
        assert profile.find(tmp_path) == str(path)


def test_one_kernel_is_profiled_from_the_shell(
    ncu: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evolve_kernels.kernel().save(tmp_path / "kernel")
    told = ncu(one(GOOD))
    asked = [str(tmp_path / "kernel"), SLUG, "--backend", "host"]
    profile.main([*asked, "step=4"])
    line, data = capsys.readouterr().out.splitlines()
    assert line.startswith("9.0 us on the GPU, 16.8 MB read from DRAM, 0.04 MB written to it, 80% ")
    assert json.loads(data)["read_bytes"] == 16_800_000
    assert json.loads(told.read_text())[-1] == "step=4"
    for wrong, words in (("step", "expected NAME=VALUE"), ("step=3", "step")):
        with pytest.raises(SystemExit, match=words):
            profile.main([*asked, wrong])


# In a run


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive.create(
        tmp_path / "run", Config("cuda", (evolve_kernels.DECODE,), (1.0,)), {"name": "chip"}
    )
    made.add(events.Baseline(SLUG, 4e-5, 1e-5, "memory"))
    yield made
    made.close()


def add(archive: Archive, kernel: Kernel, ratio: float, step: int = 1) -> Kernel:
    archive.registry.add(kernel)
    number = archive.next_number()
    candidate = Candidate(number, "llm", kernel.id, (SLUG,), {"step": step})
    archive.add(events.Proposed(candidate))
    result = WorkloadResult({"step": step}, 4e-5 / ratio, ratio, ratio - 0.1, ratio + 0.1)
    archive.add(events.Evaluated(number, Evaluation(results={SLUG: result})))
    return kernel


def kinds(archive: Archive) -> list[str]:
    return [event.kind for event in archive.journal.events]


def test_the_parent_and_the_best_are_profiled_once_and_a_resumed_run_knows_it(
    archive: Archive, ncu: Callable[[str], Path]
) -> None:
    ncu(one(GOOD))
    parent = add(archive, evolve_kernels.kernel(), 1.1)
    best = add(archive, evolve_kernels.kernel(evolve_kernels.BODY.replace("-1e38f", "-1e37f")), 1.5)
    text = prompt.build(archive, parent).text
    assert "GPU profile" not in text
    profiler = Profiler(lambda text: pytest.fail(text))
    profiler(archive, parent)
    profiler(archive, parent)
    assert kinds(archive).count("profile") == 2
    text = prompt.build(archive, parent).text
    assert text.count("GPU profile: 9.0 us on the GPU, 16.8 MB read from DRAM, 0.04 MB") == 2
    for part in ("80% of its peak", "occupancy 45%", "L1 hits 12%", "L2 hits 30%",
                 "96 registers a thread", "18400 B of shared memory a block"):  # fmt: skip
        assert part in text, part
    assert archive.best[SLUG][1].profile["dram"] == 0.805
    page = "\n".join([report._workloads(archive), report._about(archive)])
    assert "<th>GPU profile</th>" in page
    assert "occupancy 45%" in page
    again = Archive.open(archive.folder, write=False)
    assert (again.best, again.kernel_best) == (archive.best, archive.kernel_best)
    assert again.cells == archive.cells
    # A better setting of the same kernel has not been profiled; a profile of the old one is no
    # longer its.
    old = archive.best[SLUG][1]
    add(archive, best, 1.7, step=2)
    archive.add(events.Profiled(best.id, SLUG, old.params, old.profile))
    assert not archive.best[SLUG][1].profile
    assert "GPU profile" not in report._workloads(archive)
    profiler(archive)
    assert archive.best[SLUG][1].profile


@pytest.mark.parametrize("body", ["sys.exit('no driver')\n", one(table()), ""])
def test_what_fails_is_said_and_recorded_once_and_nothing_stops(
    archive: Archive, ncu: Callable[[str], Path], body: str
) -> None:
    ncu(body)
    parent = add(archive, evolve_kernels.kernel(), 1.1)
    add(archive, evolve_kernels.kernel(evolve_kernels.BODY.replace("-1e38f", "-1e37f")), 1.5)
    said: list[str] = []
    profiler = Profiler(said.append)
    profiler(archive, parent)
    profiler(archive, parent)
    profiler(archive)
    assert len(said) == 1
    assert said[0].startswith("no GPU profiles: ncu ")
    Profiler(said.append)(archive, parent)  # a later session tries again
    assert len(said) == 2
    assert kinds(archive).count("unprofiled") == 1
    assert "No GPU profiles: ncu " in report._about(archive)
    assert prompt.build(archive, parent).text
    assert Archive.open(archive.folder, write=False).unprofiled == archive.unprofiled


def test_the_mailbox_looks_at_the_parent_before_it_writes_a_prompt(
    archive: Archive, ncu: Callable[[str], Path]
) -> None:
    ncu(one(GOOD))
    parent = add(archive, evolve_kernels.kernel(), 1.1)
    box = Mailbox([parent], 0.01, profile=Profiler(lambda text: pytest.fail(text)))
    box.propose(archive, 1)
    (asked,) = (archive.folder / "prompts").iterdir()
    assert "GPU profile: 9.0 us" in asked.read_text()


@needs_clang
def test_a_run_ends_with_profiles_of_its_winners(
    tmp_path: Path, ncu: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ncu(one(GOOD))
    monkeypatch.setattr(commands, "_profiler", lambda *rest: Profiler(lambda text: None))
    evolve_kernels.kernel().save(tmp_path / "kernel")
    parser = argparse.ArgumentParser()
    options.add_evolve_arguments(parser)
    words = ["--backend", "host", "--workloads", SLUG, "--candidates", "1", "--no-publish"]
    words += ["--kernels", str(tmp_path / "kernel"), "--out", str(tmp_path / "run")]
    commands.evolve(parser.parse_args(words), Console(file=io.StringIO()))
    done = Archive.open(tmp_path / "run", write=False)
    assert kinds(done)[-2:] == ["end", "profile"]
    assert done.best[SLUG][1].profile["occupancy"] == 0.45
    with pytest.raises(UsageError, match="--profile"):
        commands.evolve(parser.parse_args([*words, "--profile"]), Console(file=io.StringIO()))


def test_memory_is_what_was_measured_where_it_was() -> None:
    kernel = evolve_kernels.kernel()
    counters = {"line_efficiency": 0.9}
    assert features.strategy(kernel, counters).memory == "coalesced"
    for seen, expected in (
        ({"dram": 0.8, "l2_hits": 0.9}, "streaming"),
        ({"dram": 0.3, "l1_hits": 0.1, "l2_hits": 0.7}, "cached"),
        ({"dram": 0.3, "l1_hits": 0.7}, "cached"),
        ({"dram": 0.3, "l2_hits": 0.3}, "waiting"),
    ):
        assert features.strategy(kernel, counters, seen).memory == expected
        assert features.strategy(kernel, None, seen).key.endswith(f"/{expected}/False")


def test_a_profile_moves_a_kernel_to_another_cell(archive: Archive) -> None:
    kernel = add(archive, evolve_kernels.kernel(), 1.2)
    before = archive.cell(kernel.id)
    archive.add(events.Profiled(kernel.id, SLUG, {"step": 1}, {"dram": 0.8}))
    after = archive.cell(kernel.id)
    assert "/streaming/" in after
    assert before != after
    assert all(cells == {after: kernel.id} for cells in archive.cells)


def test_profiles_are_made_for_prompts_unless_told_otherwise() -> None:
    for told, backend, default, expected in (
        (None, "cuda", True, True),
        (None, "cuda", False, False),
        (True, "cuda", False, True),
        (False, "cuda", True, False),
        (None, "metal", True, False),
        (False, "host", True, False),
    ):
        assert asked.profiles(told, backend, default) is expected
    with pytest.raises(UsageError, match="--profile: ncu is NVIDIA's"):
        asked.profiles(True, "metal", True)
