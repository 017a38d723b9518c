from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import products
import pytest
from samples import COPY_FIRST, FINGERPRINT, accepted, kernel_meta, timed

from mlx_lm_openevolve.errors import RegistryError
from mlx_lm_openevolve.kernels import records
from mlx_lm_openevolve.kernels import registry as registry_module
from mlx_lm_openevolve.kernels.kernel import Kernel, kernel_id
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Verdict, describe
from mlx_lm_openevolve.ops.attention.workload import Workload

WORKLOAD = Workload(1, 8, 2, 1, 1024, 64, 64, "bfloat16")


HERE = [Path(__file__).parent, Path(__file__).parents[1] / "support"]


def verdict(kernel: str = "0123456789ab", ratio: float = 1.5, **changes: Any) -> Verdict:
    return accepted(WORKLOAD, **{"kernel": kernel, "timing": timed(ratio), **changes})


def test_verdicts_are_stored_best_first_and_read_back_whole(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    slow = verdict("00000000000a", 1.1)
    fast = verdict("00000000000b", 2.0)
    wrong = verdict("00000000000c", 9.0, correct=False, reason="wrong")
    for item in (slow, wrong, fast):
        registry.publish("host", item)
    assert Registry(tmp_path).verdicts("host", WORKLOAD) == [fast, slow, wrong]
    assert registry.workloads("host") == [WORKLOAD.bucket()]
    assert registry.devices() == ["host"]


def test_a_new_verdict_for_the_same_kernel_and_params_replaces_the_old(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish("host", verdict(ratio=1.2))
    registry.publish("host", verdict(ratio=1.4))
    registry.publish("host", verdict(ratio=1.3, params={"threads": 16}))
    assert [v.ratio for v in registry.verdicts("host", WORKLOAD)] == [1.4, 1.3]


def test_kernels_are_stored_by_content(tmp_path: Path, copy_first: Kernel) -> None:
    registry = Registry(tmp_path)
    registry.add(copy_first)
    registry.add(copy_first)
    assert Registry(tmp_path).kernels() == [copy_first]


def test_kernels_of_one_family_are_read_alone(tmp_path: Path, copy_first: Kernel) -> None:
    product = products.product_kernel()
    for kernel in (copy_first, product):
        Registry(tmp_path).add(kernel)
    for registry in (Registry(tmp_path), warm := Registry(tmp_path)):
        assert registry.kernels("attention") == [copy_first]
        assert registry.kernels("linear") == [product]
        assert registry.kernel(product.id, "attention") is None
    assert {k.id for k in warm.kernels()} == {copy_first.id, product.id}


def test_verdicts_of_one_family_are_read_without_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    step = replace(verdict("compiled"), workload="step-b1-llama", kind="step")
    for made in (verdict(), verdict(params={"threads": 16}), step):
        registry.publish("host", made)
    registry.poison("host", "0123456789ab", "ended its worker process")
    assert [v.params for v in registry.of("host", "attention")] == [
        {"threads": 32},
        {"threads": 16},
    ]
    assert [*registry.of("host", "step")] == [step]
    assert not [*registry.of("host", "linear"), *registry.of("apple", "attention")]
    (file,) = tmp_path.glob("v2/devices/host/attention-*.json")
    file.write_text(file.read_text().replace("1.5", "1.6"))
    assert not [*Registry(tmp_path).of("host", "attention")], "its checksum does not hold"


def test_a_changed_source_is_quarantined_and_named_once(
    tmp_path: Path, copy_first: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    Registry(tmp_path).add(copy_first)
    folder = tmp_path / "v2" / "kernels" / copy_first.id
    (folder / "copy.metal").write_text("out[0] = 1;")
    registry = Registry(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert registry.kernel(copy_first.id) is None
        assert registry.kernel(copy_first.id) is None
    assert len(caplog.records) == 1
    assert not folder.exists()
    assert list((tmp_path / "v2" / "quarantine").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("1.5", "9.5"),
        lambda text: text.replace('"correct": true', '"correct": false'),
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: "",
        lambda text: '{"verdicts": 5}',
        lambda text: " " * (9 << 20),
    ],
)
def test_a_damaged_record_is_moved_aside_and_yields_nothing(tmp_path: Path, damage: Any) -> None:
    registry = Registry(tmp_path)
    registry.publish("host", verdict())
    path = tmp_path / "v2" / "devices" / "host" / f"{WORKLOAD.layout}.json"
    path.write_text(damage(path.read_text()))
    assert registry.verdicts("host", WORKLOAD) == []
    assert not path.exists()
    registry.publish("host", verdict())
    assert len(registry.verdicts("host", WORKLOAD)) == 1


def test_a_read_only_registry_is_read_and_never_written(tmp_path: Path) -> None:
    Registry(tmp_path).publish("host", verdict())
    shipped = Registry(tmp_path, writable=False)
    assert shipped.verdicts("host", WORKLOAD) == [verdict()]
    with pytest.raises(RegistryError, match="read-only"):
        shipped.publish("host", verdict())
    path = tmp_path / "v2" / "devices" / "host" / f"{WORKLOAD.layout}.json"
    path.write_text("x")
    assert shipped.verdicts("host", WORKLOAD) == []
    assert path.exists()


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registry = Registry(tmp_path / "file")
    with pytest.raises(RegistryError) as error:
        registry.publish("host", verdict())
    assert "\n" not in str(error.value)
    assert registry.verdicts("host", WORKLOAD) == []
    with registry.gating("host", WORKLOAD, 0.1) as ours:
        assert ours


@pytest.mark.parametrize("device", ["..", "../x", "a/b", "", "A"])
def test_no_device_name_leaves_the_root(tmp_path: Path, device: str) -> None:
    registry = Registry(tmp_path / "root")
    with pytest.raises(RegistryError):
        registry.publish(device, verdict())
    assert registry.verdicts(device, WORKLOAD) == []
    assert registry.clear(device) == 0
    assert not list(tmp_path.glob("*.json"))


def test_gating_is_held_by_one(tmp_path: Path) -> None:
    one, two = Registry(tmp_path), Registry(tmp_path)
    with one.gating("host", WORKLOAD, 1) as first, two.gating("host", WORKLOAD, 0.05) as second:
        assert first
        assert not second
    with two.gating("host", WORKLOAD, 0.05) as second:
        assert second


def test_poison_and_host_checks(tmp_path: Path, copy_first: Kernel) -> None:
    registry = Registry(tmp_path)
    registry.poison("host", copy_first.id, "crashed")
    assert registry.poisoned("host") == {copy_first.id: "crashed"}
    with pytest.raises(RegistryError, match="no kernel"):
        registry.add_host_check(copy_first.id, {"params": {}, "workload": "w"})
    registry.add(copy_first)
    registry.add_host_check(copy_first.id, {"params": {}, "workload": "w", "findings": 1})
    registry.add_host_check(copy_first.id, {"params": {}, "workload": "w", "findings": 0})
    assert registry.host_checks(copy_first.id) == [{"params": {}, "workload": "w", "findings": 0}]
    assert Kernel.load(tmp_path / "v2" / "kernels" / copy_first.id).id == copy_first.id


def test_timeouts_are_counted_by_workload_and_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for _ in range(2):
        registry.timed_out("host", WORKLOAD, {**FINGERPRINT, "also": {"driver": "1"}})
    other = replace(WORKLOAD, kv_len=4096)
    registry.timed_out("host", other, FINGERPRINT)
    registry = Registry(tmp_path)
    assert registry.timeouts("host", WORKLOAD, FINGERPRINT) == 2
    assert registry.timeouts("host", other, FINGERPRINT) == 1
    assert registry.timeouts("host", WORKLOAD, {**FINGERPRINT, "gate": 2}) == 0
    assert registry.workloads("host") == []
    (tmp_path / "v2" / "devices" / "host" / "timeouts.json").write_text("{}")
    assert registry.timeouts("host", WORKLOAD, FINGERPRINT) == 0


def test_clear_removes_a_device_or_everything(tmp_path: Path, copy_first: Kernel) -> None:
    registry = Registry(tmp_path)
    registry.add(copy_first)
    registry.publish("host", verdict())
    registry.publish("other", verdict())
    assert registry.clear("host") >= 1
    assert registry.devices() == ["other"]
    registry.clear()
    assert registry.kernels() == []


# What format 2 has room for


def test_verdicts_of_two_versions_of_mlx_live_side_by_side(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    old, new = (verdict(fingerprint={**FINGERPRINT, "mlx": mlx}) for mlx in ("0.1", "0.2"))
    registry.publish("host", old)
    registry.publish("host", replace(new, timing=timed(1.7)))
    kept = Registry(tmp_path).verdicts("host", WORKLOAD)
    assert [v.ratio for v in kept if v.counts_for(old.fingerprint)] == [1.5]
    assert [v.ratio for v in kept if v.counts_for(new.fingerprint)] == [1.7]


def rewrite(path: Path, change: Any) -> None:
    """A record as another release may have written it: changed, under a checksum that holds."""
    record = json.loads(path.read_text())
    del record["checksum"]
    change(record)
    records.write(path, record)


def test_what_a_newer_release_wrote_is_ignored_and_kept(tmp_path: Path) -> None:
    Registry(tmp_path).publish("host", verdict())
    path = tmp_path / "v2" / "devices" / "host" / f"{WORKLOAD.bucket().layout}.json"
    foreign = {"kind": "dream", "of": "sheep"}

    def change(record: Any) -> None:
        record["epoch"] = 7
        record["verdicts"][0]["mood"] = "fair"
        record["verdicts"].append(foreign)

    rewrite(path, change)
    registry = Registry(tmp_path)
    assert registry.verdicts("host", WORKLOAD) == [verdict()]
    registry.publish("host", verdict("00000000000a"))
    record = json.loads(path.read_text())
    assert record["epoch"] == 7
    assert [item.get("mood") for item in record["verdicts"]].count("fair") == 1
    assert foreign in record["verdicts"]
    assert not (tmp_path / "v2" / "quarantine").exists()


def test_a_kernel_of_a_newer_format_is_left_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "v2" / "kernels" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"format": 3, "name": "later"}))
    registry = Registry(tmp_path)
    assert registry.kernel("0123456789ab") is None
    assert registry.kernels() == []
    assert folder.is_dir()
    assert not (tmp_path / "v2" / "quarantine").exists()


@pytest.mark.parametrize("kind", ["step", "settings"])
def test_verdicts_may_be_about_a_step_or_about_settings(tmp_path: Path, kind: str) -> None:
    made = replace(verdict("graph of layers"), kind=kind, workload="qwen3-0.6b decode", params={})
    registry = Registry(tmp_path)
    registry.publish("host", made)
    registry.publish("host", verdict())
    assert Registry(tmp_path).about("host", kind) == [made]
    assert registry.workloads("host") == [WORKLOAD.bucket()]
    assert "graph of layers" in "\n".join(describe(made))


def test_a_rewriting_stands_beside_kernels(tmp_path: Path) -> None:
    made = verdict("two products and a softmax", kind="rewriting", params={}, timing={"ratio": 9.0})
    registry = Registry(tmp_path)
    registry.publish("host", verdict())
    registry.publish("host", made)
    assert Registry(tmp_path).verdicts("host", WORKLOAD) == [made, verdict()]


def test_raw_samples_lie_beside_their_verdict_and_go_with_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, other = verdict(raw={"top": [1.0, 2.0]}), verdict("00000000000a", raw={"top": [3.0]})
    registry.publish("host", first)
    registry.publish("host", other)
    again = Registry(tmp_path)
    (stored,) = [v for v in again.verdicts("host", WORKLOAD) if v.kernel == first.kernel]
    assert stored.raw == {}
    assert again.raw("host", stored) == {"top": [1.0, 2.0]}
    registry.publish("host", replace(first, raw={}, timing=timed(1.1)))
    assert again.raw("host", first) == {}
    assert again.raw("host", other) == {"top": [3.0]}
    path = tmp_path / "v2" / "devices" / "host" / f"{WORKLOAD.bucket().layout}.raw.json.gz"
    path.write_bytes(b"no gzip")
    assert again.raw("host", other) == {}
    assert len(again.verdicts("host", WORKLOAD)) == 2


def test_a_verdict_may_be_correct_and_not_yet_timed(tmp_path: Path) -> None:
    made = verdict(faster=None, asked=3, timing={})
    registry = Registry(tmp_path)
    registry.publish("host", made)
    (stored,) = registry.verdicts("host", WORKLOAD)
    assert (stored.faster, stored.asked, stored.accepted) == (None, 3, False)


@pytest.mark.parametrize(
    "changes", [{"op": "linear"}, {"variants": ["float", "paged"]}, {"colour": "red"}]
)
def test_a_whole_kernel_that_only_another_release_reads_stays(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    meta, sources = kernel_meta(**changes), {"copy.metal": COPY_FIRST}
    folder = tmp_path / "v2" / "kernels" / kernel_id(meta, sources)
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(meta))
    (folder / "copy.metal").write_text(COPY_FIRST)
    assert Registry(tmp_path).kernels() == []
    assert (folder / "copy.metal").exists()
    assert not (tmp_path / "v2" / "quarantine").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": verdict().workload + "-paged"},
        {"reason": None},
        {"params": {"threads": "many"}},
        {"status": "undecided"},
        {"kernel": "0" * 64},
        {"kind": "fusion"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_one_verdict_that_cannot_be_read_costs_no_other(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    Registry(tmp_path).publish("host", verdict(raw={"top": [1.0]}))
    path = tmp_path / "v2" / "devices" / "host" / f"{WORKLOAD.bucket().layout}.json"
    odd = {**verdict("00000000000b").to_json(), **changes}
    rewrite(path, lambda record: record["verdicts"].append(odd))
    raw = path.with_name(path.name.replace(".json", ".raw.json.gz"))
    held = json.loads(gzip.decompress(raw.read_bytes()))
    raw.write_bytes(gzip.compress(json.dumps({**held, "of-the-odd-one": {"top": [2.0]}}).encode()))
    registry = Registry(tmp_path)
    assert registry.verdicts("host", WORKLOAD) == [verdict()]
    registry.publish("host", verdict("00000000000a"))
    assert odd in json.loads(path.read_text())["verdicts"]
    kept = json.loads(gzip.decompress(raw.read_bytes()))
    assert kept["of-the-odd-one"] == {"top": [2.0]}
    assert registry.raw("host", verdict()) == {"top": [1.0]}
    assert not (tmp_path / "v2" / "quarantine").exists()


def test_timeouts_of_two_versions_are_counted_apart(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    stamps = [{**FINGERPRINT, "mlx": mlx} for mlx in ("0.1", "0.2")]
    for stamp in stamps * 3:
        registry.timed_out("host", WORKLOAD, stamp)
    assert [registry.timeouts("host", WORKLOAD, stamp) for stamp in stamps] == [3, 3]


def test_what_is_no_list_of_verdicts_is_no_reason_to_fail(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.publish("host", verdict())
    path = tmp_path / "v2" / "devices" / "host" / f"{WORKLOAD.bucket().layout}.json"
    for _ in range(2):  # what was damaged once may be damaged again
        rewrite(path, lambda record: record.update(verdicts=5))
        assert registry.verdicts("host", WORKLOAD) == []
        registry.publish("host", verdict())
        assert registry.verdicts("host", WORKLOAD) == [verdict()]


def test_a_file_is_read_once_until_another_process_has_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry(tmp_path).publish("host", verdict())
    read: list[Path] = []
    real = records.read
    monkeypatch.setattr(records, "read", lambda path: read.append(path) or real(path))
    registry = Registry(tmp_path)
    for kv_len in (1024, 512, 2048, 1024):  # buckets of one layout
        registry.verdicts("host", replace(WORKLOAD, kv_len=kv_len))
    assert len(read) == 1
    Registry(tmp_path).publish("host", verdict("00000000000a"))
    assert len(registry.verdicts("host", WORKLOAD)) == 2


# Files that are none, roots that are everyone's, and what a killed writer leaves


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _to_itself(path: Path) -> None:
    path.symlink_to(path)


def _folder_in_its_place(path: Path) -> None:
    (path / "deeper").mkdir(parents=True)


SPECIAL = (_fifo, _socket, _endless, _to_itself, _folder_in_its_place)
_READ = """
import sys
paths, roots = sys.argv[1].split(":"), sys.argv[2:]
sys.path[:0] = paths
from mlx_lm_openevolve.errors import RegistryError
from mlx_lm_openevolve.kernels.registry import Registry
from test_registry import WORKLOAD, verdict

for root in roots:
    print(root, flush=True)
    registry = Registry(root)
    registry.kernels(), registry.workloads("host"), registry.poisoned("host")
    registry.timeouts("host", WORKLOAD, {}), registry.host_checks("0" * 12)
    registry.raw("host", verdict())
    with registry.gating("host", WORKLOAD, 0.5):
        pass
    for write in (
        lambda: registry.publish("host", verdict(raw={"samples": [1.0]})),
        lambda: registry.poison("host", "0" * 12, "hung"),
        lambda: registry.timed_out("host", WORKLOAD, {}),
    ):
        try:
            write()
        except RegistryError as error:
            assert "\\n" not in str(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="no such files elsewhere")
@pytest.mark.parametrize("make", SPECIAL, ids=lambda f: f.__name__)
def test_what_is_no_file_holds_nobody_up(tmp_path: Path, copy_first: Kernel, make: Any) -> None:
    """Each file of a registry in turn is a FIFO, a socket, a link or a folder: read and written in
    a process with a deadline, since what would fail is that it never ends."""
    root = tmp_path / "root"
    registry = Registry(root)
    registry.add(copy_first)
    registry.add_host_check(copy_first.id, {"params": {}, "workload": ""})
    registry.publish("host", verdict(raw={"samples": [1.0]}))
    registry.poison("host", "0" * 12, "hung")
    registry.timed_out("host", WORKLOAD, {})
    with registry.gating("host", WORKLOAD, 1.0):
        pass
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    files.append(Path(f"v2/devices/host/.{WORKLOAD.slug}.lock"))
    assert len(set(files)) >= 8
    copies = {name: tmp_path / f"copy{i}" for i, name in enumerate(set(files))}
    for name, copy in copies.items():
        shutil.copytree(root, copy)
        (copy / name).unlink(missing_ok=True)
        make(copy / name)
    paths = [str(Path(__file__).parents[2]), *(str(p) for p in HERE)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _READ, ":".join(paths), *map(str, copies.values())],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"held up at the last of {late.output!r}: {copies}")
    reached = done.stdout.split()
    assert done.returncode == 0, (reached[-1:], copies, done.stderr)
    assert reached == [str(copy) for copy in copies.values()]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
@pytest.mark.parametrize(
    ("folder", "mode", "refused"),
    [
        ("root", 0o777, True),
        ("root", 0o1777, True),  # another user could make v2 in it first
        ("root/v2", 0o777, True),
        (".", 0o777, True),  # the root could be renamed, and another put in its place
        (".", 0o1777, False),
        ("root", 0o775, False),
        ("root", 0o755, False),
    ],
)
def test_a_root_that_everyone_may_write_is_refused(
    tmp_path: Path, folder: str, mode: int, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    Registry(root).publish("host", verdict())
    (tmp_path / folder).chmod(mode)
    try:
        registry = Registry(root)
        assert registry.verdicts("host", WORKLOAD) == ([] if refused else [verdict()])
        shipped = Registry(root, writable=False).verdicts("host", WORKLOAD)
        assert shipped == ([] if refused and folder != "." else [verdict()])
        assert [r.getMessage().count("chmod o-w") for r in caplog.records] == [1] * refused
        if refused:
            assert not registry.devices()
            for write in (lambda: registry.publish("host", verdict()), registry.clear):
                with pytest.raises(RegistryError, match="every user"):
                    write()
        else:
            registry.publish("host", verdict(ratio=1.7))
    finally:
        (tmp_path / folder).chmod(0o755)


@pytest.fixture
def full(tmp_path: Path, copy_first: Kernel) -> Path:
    """A registry's root with something in each of its parts."""
    registry = Registry(tmp_path / "root")
    registry.add(copy_first)
    registry.add_host_check(copy_first.id, {"params": {}})
    registry.publish("host", verdict(raw={"samples": [1.0]}))
    registry.poison("host", "0123456789ab", "it hangs")
    registry.timed_out("host", WORKLOAD, STAMP)
    return registry.root


STAMP = {"gate": "1"}
KERNEL, VERDICTS, SAMPLES = "a kernel", "verdicts", "raw samples"
CHECKS, POISON, TIMEOUTS, DEVICES = "host checks", "poison", "timeouts", "devices"
DEVICE = {VERDICTS, SAMPLES, POISON, TIMEOUTS}


def seen(registry: Registry, id: str) -> set[str]:
    """What of a full registry is read."""
    found = {
        KERNEL: registry.kernel(id) is not None and registry.kernels() != [],
        CHECKS: registry.host_checks(id) != [],
        DEVICES: registry.devices() == ["host"],
        VERDICTS: registry.verdicts("host", WORKLOAD) != [] != registry.workloads("host"),
        SAMPLES: registry.raw("host", verdict()) != {},
        POISON: registry.poisoned("host") != {},
        TIMEOUTS: registry.timeouts("host", WORKLOAD, STAMP) > 0,
    }
    return {name for name, read in found.items() if read}


PARTS = [
    ("devices", DEVICE | {DEVICES}),
    ("devices/host", DEVICE),
    ("devices/host/attention-*[!w].json", {VERDICTS}),
    ("devices/host/attention-*.raw.json.gz", {SAMPLES}),
    ("devices/host/poison.json", {POISON}),
    ("devices/host/timeouts.json", {TIMEOUTS}),
    ("kernels", {KERNEL, CHECKS}),
    ("kernels/????????????", {KERNEL, CHECKS}),
    ("kernels/*/kernel.json", {KERNEL}),
    ("kernels/*/*.metal", {KERNEL}),
    ("kernels/*/host.json", {KERNEL, CHECKS}),
]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
@pytest.mark.parametrize(("part", "lost"), PARTS)
@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("fault", ["o+w", "o+wt", "g+w", "stranger"])
def test_what_others_may_write_is_left_alone_and_said_once(
    full: Path,
    part: str,
    lost: set[str],
    writable: bool,
    fault: str,
    copy_first: Kernel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    everything = seen(Registry(full, writable), copy_first.id)
    assert everything == DEVICE | {DEVICES, KERNEL, CHECKS}
    (path,) = (full / "v2").glob(part)
    if fault == "stranger":
        if os.geteuid():
            pytest.skip("only root gives a file away")
        os.chown(path, 12345, -1)
    else:
        mode = {"o+w": 0o002, "o+wt": 0o1002, "g+w": 0o020}[fault]
        path.chmod(path.stat().st_mode | mode)
    if fault == "g+w":
        lost = set()
    registry = Registry(full, writable)
    for _ in range(2):
        assert seen(registry, copy_first.id) == everything - lost
    assert len([r for r in caplog.records if f"{path} " in r.getMessage()]) == bool(lost)
    assert path.exists()  # it is not moved aside either


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_part_that_others_may_write_takes_nothing(full: Path, copy_first: Kernel) -> None:
    for part in (f"kernels/{copy_first.id}", "kernels", "devices/host", "devices"):
        path = full / "v2" / part
        path.chmod(0o777)
        write = partial(Registry(full).publish, "host", verdict())
        if part.startswith("kernels"):
            write = partial(Registry(full).add, copy_first)
        with pytest.raises(RegistryError, match=f"{path} can be written by every user"):
            write()
        path.chmod(0o755)
    Registry(full).publish("host", verdict())


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_root_of_another_user_is_refused_and_a_package_s_is_not(
    full: Path, copy_first: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.geteuid() or 12345
    for path in (full, *full.rglob("*")) if not os.geteuid() else ():
        os.chown(path, owner, -1)
    assert seen(Registry(full), copy_first.id)  # root in a container, or its own user
    monkeypatch.setattr(registry_module, "_user", lambda: owner + 1)
    refused = Registry(full)
    assert f"belongs to another user of this machine (uid {owner})" in refused.refusal
    assert not seen(refused, copy_first.id)
    assert seen(Registry(full, writable=False), copy_first.id)


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_what_is_made_is_closed_to_others_whatever_the_umask(
    tmp_path: Path, copy_first: Kernel
) -> None:
    before = os.umask(0)
    try:
        Registry(tmp_path / "a" / "root").publish("host", verdict())
        Registry(tmp_path / "a" / "root").add(copy_first)
    finally:
        os.umask(before)
    assert Registry(tmp_path / "a" / "root").verdicts("host", WORKLOAD) == [verdict()]
    assert Registry(tmp_path / "a" / "root").kernel(copy_first.id) == copy_first


def test_what_a_killed_writer_left_goes_with_the_next_write(
    tmp_path: Path, copy_first: Kernel
) -> None:
    registry = Registry(tmp_path)
    registry.add(copy_first)
    registry.publish("host", verdict())
    kernels, devices = tmp_path / "v2" / "kernels", tmp_path / "v2" / "devices" / "host"
    (kernels / ".new-1" / "deeper").mkdir(parents=True)
    left = [kernels / copy_first.id / ".new-2", devices / ".new-3", devices / ".old.lock"]
    for path in left:
        path.write_text("half")
    os.utime(left[2], (0, 0))
    young = devices / f".{WORKLOAD.slug}.lock"
    young.write_text("")
    registry.publish("host", verdict(ratio=1.7))
    registry.add_host_check(copy_first.id, {"params": {}, "workload": ""})
    assert not (kernels / ".new-1").exists()
    assert not [path for path in left if path.exists()]
    assert young.exists()
    assert Registry(tmp_path).kernels() == [copy_first]
