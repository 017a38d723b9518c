"""`list`, `show`, `status` and `clear`: what a person and a program are told."""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from odd import ODD, changed
from rich.console import Console
from samples import judged, named, shipped_in_metal, store_correct, timed

from mlx_lm_openevolve.cli import inspect as inspection
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.device import Device, detect, fingerprint
from mlx_lm_openevolve.kernels import records
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.lookup import registries
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import STEP, UNTIMED, Verdict, gate_version
from mlx_lm_openevolve.ops.attention.workload import Bucket
from mlx_lm_openevolve.ops.linear.workload import Bucket as Product
from mlx_lm_openevolve.runtime.families import NO_VERDICT, NOT_NAMED
from mlx_lm_openevolve.runtime.planner import UNNAMED, Planner

DECODE = Bucket(1, 8, 2, 1, 128, 64, 64, "bfloat16")


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def kernel() -> Kernel:
    return next(k for k in shipped_in_metal() if k.applies_to(DECODE))


def verdict(kernel: Kernel, **changes: Any) -> Verdict:
    timing = {
        "ratio": 1.31,
        "low": 1.25,
        "high": 1.4,
        "on": DECODE.slug,
        "baseline": {"mean": 2e-5},
        "candidate": {"mean": 1.5e-5, "trials": 20},
        "sealed": {"ratio": 1.2, "low": 1.15},
    }
    accepted = {"faster": True, "reason": "accepted", "timing": timing}
    return judged(kernel, DECODE, **{**accepted, **changes})


def test_list_tells_device_kernel_ratio_reason_and_disk(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    registry = Registry(home)
    registry.publish("host", verdict(kernel))
    slow = replace(DECODE, kv_len=256)
    registry.publish(
        "apple-m3-max-40",
        verdict(kernel, workload=slow.slug, faster=False, reason="1.00 is not above 1.02"),
    )
    rows = [row for row in found(capsys, "list")["verdicts"] if "nvidia" not in row["device"]]
    (fast, not_faster) = sorted(rows, key=lambda row: -row["faster"])
    assert (fast["device"], fast["ratio"], fast["low"], fast["stale"]) == ("host", 1.31, 1.25, "")
    assert not_faster["reason"] == "1.00 is not above 1.02"
    text = told(capsys, "list")
    assert "1.31 [1.25]" in text
    assert "correct: 1.00 is not above 1.02" in text
    assert f"KiB in {home}" in text
    assert found(capsys, "list", "--device", "host")["verdicts"] == [fast]


def test_what_is_right_and_was_not_timed_is_told_alike_everywhere(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    """On the CPU it was "rejected" in one place and "served" in the next."""
    store_correct(home, kernel, [DECODE])
    words = f"{UNTIMED}: it serves with --any-correct alone"
    (row,) = [line for line in told(capsys, "list").splitlines() if line.startswith("host ")]
    status = [line for line in told(capsys, "status").splitlines() if line.startswith("user")]
    of_kernel = told(capsys, "show", kernel.id)
    assert words in row
    assert f"verdict  {words}" in told(capsys, "show", DECODE.slug)
    assert f"0 accepted, 0 not, 1 {UNTIMED}" in of_kernel
    assert (
        f"0 of 1 workloads judged here run on one, 1 with --any-correct alone ({UNTIMED})"
        in (status[0])
    )
    for text in (row, *status, of_kernel.split("\n\n")[0]):
        assert "rejected" not in text
        assert "never faster" not in text
    # What serves it, and what does not, say the same.
    for faster, says in ((False, UNTIMED), (True, words)):
        asked = Planner(detect("host"), registries(), mode="stored", require_faster=faster)
        plan = asked.plan(DECODE)
        assert (plan.kernel is None, plan.reason) == (faster, says)


def test_a_verdict_of_another_version_is_told_to_be_stale(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    old = {**verdict(kernel).fingerprint, "gate": "0.1"}
    Registry(home).publish("host", verdict(kernel, fingerprint=old))
    (row,) = found(capsys, "list", "--device", "host")["verdicts"]
    assert row["stale"] == f"made by gate 0.1, now {gate_version('attention')}"
    assert "gated again at first use" in told(capsys, "show", DECODE.slug)


def test_a_verdict_of_another_macos_is_told_to_be_stale(
    capsys: pytest.CaptureFixture[str],
    home: Path,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chip = Device("metal", "apple-m3-max-40", "Apple M3 Max", "applegpu_g15s")
    current = fingerprint(chip, gate_version("attention"))
    Registry(home).publish(chip.slug, verdict(kernel, fingerprint={**current, "macos": "1"}))

    def stale() -> Any:
        return [row["stale"] for row in found(capsys, "list", "--device", chip.slug)["verdicts"]]

    assert stale() == [""]  # seen from another backend, which has no such version
    monkeypatch.setattr(inspection, "detect", lambda: chip)
    assert stale() == [f"made by macos 1, now {current['macos']}"]
    # A verdict of another backend is not stale for the lack of it.
    Registry(home).publish("host", verdict(kernel))
    (row,) = found(capsys, "list", "--device", "host")["verdicts"]
    assert row["stale"] == ""


def test_show_of_a_workload_says_what_it_runs_on_here_and_why(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    assert "SDPA: no GPU here" in told(capsys, "show", DECODE.slug)
    store_correct(home, kernel, [DECODE])
    shown = found(capsys, "show", DECODE.slug)
    assert shown["here"]["kernel"] is None
    assert shown["verdicts"][0]["reason"] == "stored by a test"
    Registry(home).publish("host", verdict(kernel))
    assert found(capsys, "show", DECODE.slug)["here"]["kernel"] == kernel.id
    # Any shape of the bucket is the bucket.
    inside = replace(DECODE, kv_len=100)
    assert found(capsys, "show", inside.slug)["workload"] == DECODE.slug
    assert f"bucket   of {inside.slug}: " in told(capsys, "show", inside.slug)
    assert "bucket   of" not in told(capsys, "show", DECODE.slug)


def test_show_of_a_kernel_by_id_and_by_name(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    store_correct(home, kernel, [DECODE])
    shown = found(capsys, "show", kernel.id)
    assert shown["sources"] == dict(kernel.sources)
    assert shown["verdicts"]["host"] == {"accepted": 0, "rejected": 1}
    assert found(capsys, "show", kernel.name)["kernel"] == kernel.id
    text = told(capsys, "show", kernel.id)
    assert all(source in text for source in kernel.sources.values()), "not wrapped in a pipe"


def test_a_source_is_in_colour_on_a_terminal(home: Path, kernel: Kernel) -> None:
    screen = io.StringIO()
    out = Console(file=screen, force_terminal=True, color_system="truecolor", width=120)
    inspection._show_kernel(kernel, [], out)
    text = screen.getvalue()
    assert "constexpr" in text
    assert "\x1b[38;2;" in text, "colours of a syntax"


def test_names_of_several_kernels_are_not_guessed(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    twin = Kernel.from_parts({**kernel.meta, "description": "another"}, kernel.sources)
    Registry(home).add(twin)
    assert main(["show", kernel.name]) == 2
    err = capsys.readouterr().err
    assert kernel.id in err
    assert twin.id in err


def test_status_is_one_block_without_the_home_folder(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home.parent))
    lines = told(capsys, "status").splitlines()
    words = {line[:10].strip(): line[11:] for line in lines}
    for key in ("version", "python", "os", "mlx", "mlx_lm", "device", "metal", "cuda", "host"):
        assert words[key], key
    assert words["user"].startswith("~/home: 0 kernels")
    assert str(home.parent) not in "\n".join(lines)
    assert words["set"].startswith("MLX_LM_OPENEVOLVE_HOME=~")
    registries = found(capsys, "status")["registries"]
    assert [row["writable"] for row in registries] == [True, False]
    assert registries[1]["bytes"] > 10_000


def test_status_counts_what_crashed(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    Registry(home).poison("host", "0123456789ab", "ended its worker process: SIGSEGV")
    assert "crashed    0123456789ab: ended its worker process: SIGSEGV" in told(capsys, "status")


def test_clear_takes_a_device_or_all_but_never_a_run(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel: Kernel,
) -> None:
    own = tmp_path / "own"  # with a cache of its own: the tests share theirs
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_HOME", str(own))
    for device in ("host", "apple-m1-8"):
        Registry(own).publish(device, verdict(kernel))
    (own / "runs" / "a").mkdir(parents=True)
    (own / "runs" / "a" / "events.jsonl").write_text("{}")
    (own / "cache" / "metalhost").mkdir(parents=True)
    (own / "cache" / "metalhost" / "x").write_text("x" * 2048)
    assert found(capsys, "status")["cache"]["bytes"] == 2048

    assert main(["clear", "--device", "nonsense"]) == 2
    assert "apple-m1-8, host" in capsys.readouterr().err
    assert found(capsys, "clear", "--device", "host")["removed"] >= 1
    assert Registry(own).devices() == ["apple-m1-8"]
    assert found(capsys, "clear")["bytes"] > 500
    assert Registry(own).devices() == []
    assert (own / "cache" / "metalhost" / "x").exists()
    assert f"under {own} and {own / 'cache'}" in told(capsys, "clear", "--cache")
    assert not (own / "cache").exists()
    assert (own / "runs" / "a" / "events.jsonl").exists()
    shutil.rmtree(own / "runs")
    told(capsys, "clear")
    assert not own.exists()


def test_text_of_a_file_is_printed_without_control_characters(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    """Nor does it end in a fault where it reads like markup."""
    evil = "[/red] \x1b]0;owned\x07\x1b[2J\u009b31m \ud800 [bold]"
    strange = Kernel.from_parts(
        {**kernel.meta, "origin": evil, "description": evil}, kernel.sources
    )
    registry = Registry(home)
    registry.add(strange)
    registry.publish("host", verdict(strange, reason=evil, fingerprint={"mlx": evil}))
    registry.poison("host", strange.id, evil)
    for command in (["list"], ["status"], ["show", strange.id], ["show", DECODE.slug]):
        assert main(command) == 0, capsys.readouterr().err
        text = capsys.readouterr().out
        assert all(c.isprintable() or c in "\n\t" for c in text), command
        assert "owned" in text, command
    assert main(["show", f"x\x1b[2J{evil}"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_no_record_ends_a_command(
    capsys: pytest.CaptureFixture[str],
    home: Path,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each part of a verdict in turn is of another form, under a checksum that holds."""
    registry = Registry(home)
    # What ships would be read again and again.
    monkeypatch.setattr(inspection, "registries", lambda: [Registry(home)])
    registry.add(kernel)
    registry.publish("host", verdict(kernel))
    path = home / "v2" / "devices" / "host" / f"{DECODE.layout}.json"
    (record,) = json.loads(path.read_text())["verdicts"]
    forms = [strange for odd in ODD for strange in changed(record, odd)]
    for strange in random.Random(17).sample(forms, 15):
        content = {"verdicts": [strange]}
        try:
            text = json.dumps({**content, "checksum": records.checksum(content)})
        except ValueError:  # JSON has no such number
            continue
        path.write_text(text)
        for command in (["list", "--device", "host"], ["show", kernel.id], ["show", DECODE.slug]):
            assert main(command) == 0, (strange, capsys.readouterr().err)
        capsys.readouterr()
        Planner(detect("host"), [Registry(home)], mode="stored").plan(DECODE.bucket())


def test_status_and_show_say_which_families_are_on_and_why_others_are_not(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = Device("metal", "apple-m9", "Apple M9", "applegpu_g19")
    monkeypatch.setattr(inspection, "detect", lambda backend=None: chip)
    product = Product(1, 1, 4096, 4096, "bfloat16")

    def state(name: str) -> tuple[bool, str, str]:
        facts = found(capsys, "status")
        row = facts["step"] if name == "step" else facts["ops"][name]
        lines = {line[:10].strip(): line[11:] for line in told(capsys, "status").splitlines()}
        return row["on"], row["reason"], lines[name].partition(";")[0]

    off = False, NO_VERDICT, f"off: {NO_VERDICT}".partition(";")[0]
    assert state("attention")[:2] == (True, "")
    assert state("linear") == state("step") == off
    assert f"linear is off: {NO_VERDICT}" in told(capsys, "show", product.slug)
    stamp = fingerprint(chip, gate_version("linear"))
    about = {"kernel": named("quantized_rows").id, "params": {}, "correct": True, "faster": True}
    Registry(home).publish(
        chip.slug,
        Verdict(**about, workload=product.slug, reason="x", fingerprint=stamp, timing=timed(1.5)),
    )
    assert state("linear")[:2] == (True, "")
    assert "on kernels where one is proven" in state("linear")[2]
    other = replace(product, batch=2)
    assert UNNAMED in told(capsys, "show", other.slug)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", "linear")
    assert "the gate decides at first use" in told(capsys, "show", other.slug)
    assert state("attention")[:2] == (False, NOT_NAMED)


def test_switched_off_is_told_as_such(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel
) -> None:
    Registry(home).publish("host", verdict(kernel))
    monkeypatch.setenv("MLX_LM_OPENEVOLVE", "0")
    facts = found(capsys, "status")
    rows = [*facts["ops"].values(), facts["step"]]
    assert {(row["on"], row["reason"]) for row in rows} == {(False, "MLX_LM_OPENEVOLVE=0")}
    assert "attention is off: MLX_LM_OPENEVOLVE=0" in told(capsys, "show", DECODE.slug)


def test_show_takes_a_whole_step_that_list_names(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    stamp = fingerprint(detect("host"), gate_version(STEP))
    slug = "step-b1-llama-2layers-float32-0123456789ab"
    made = Verdict("compiled", {}, slug, True, True, "faster", stamp, timing=timed(1.3), kind=STEP)
    Registry(home).publish("host", made)
    shown = found(capsys, "show", slug)
    assert (shown["workload"], shown["here"]["kernel"]) == (slug, "compiled")
    assert [v["kernel"] for v in shown["verdicts"]] == ["compiled"]
    assert "accepted: faster" in told(capsys, "show", slug)
    old = replace(made, fingerprint={**stamp, "mlx": "0.1"})
    Registry(home).clear()
    Registry(home).publish("host", old)
    assert found(capsys, "show", slug)["here"]["kernel"] is None
    assert f"now {stamp['mlx']}: `tune --backend host` judges it again" in told(
        capsys, "show", slug
    )


def test_status_counts_what_counts(
    capsys: pytest.CaptureFixture[str], home: Path, kernel: Kernel
) -> None:
    def user() -> tuple[int, int]:
        (row,) = (r for r in found(capsys, "status")["registries"] if r["writable"])
        return row["workloads_here"], row["accepted_here"]

    made = verdict(kernel)
    Registry(home).publish("host", made)
    assert user() == (1, 1)
    Registry(home).clear()
    Registry(home).publish("host", replace(made, fingerprint={**made.fingerprint, "mlx": "0.1"}))
    assert user() == (1, 0)
