"""The registry under fire: many processes, sudden death, full disks, and 10,000 damaged records.

What must hold: no crash, no torn read, and no verdict accepted that was not published as such.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from samples import timed

from mlx_lm_openevolve.errors import RegistryError
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops.attention.workload import Workload

WORKLOAD = Workload(1, 8, 2, 1, 1024, 64, 64, "bfloat16")
DEVICE = "host"


def verdict(number: int, ratio: float = 1.5) -> Verdict:
    """A whole verdict; only kernels with an even number are ever accepted."""
    return Verdict(
        kernel=f"{number:012x}",
        params={"splits": number % 4 + 1},
        workload=WORKLOAD.slug,
        correct=True,
        faster=number % 2 == 0,
        reason="published" if number % 2 == 0 else "not faster",
        fingerprint={"device": DEVICE, "architecture": "x", "mlx": "0.32", "gate": 1},
        timing={**timed(ratio), "samples": [0.001 * i for i in range(50)]},
    )


def is_whole(found: Verdict) -> bool:
    """Whether a verdict that was read is one that `verdict` makes."""
    number = int(found.kernel, 16)
    return found == verdict(number, found.ratio)


# Where a child process finds this file, what it imports, and the package.
HERE = Path(__file__).resolve().parent
PATHS = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]

_PROCESS = """
import logging, sys, time
logging.disable(logging.CRITICAL)
sys.path[:0] = {PATHS!r}
from test_registry_fire import DEVICE, WORKLOAD, is_whole, verdict
from mlx_lm_openevolve.errors import RegistryError
from mlx_lm_openevolve.kernels.registry import Registry

registry = Registry({home!r})
me, end, rounds, busy = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0, 0
while time.monotonic() < end:
    try:
        registry.publish(DEVICE, verdict(me, 1.0 + rounds % 100))
    except RegistryError:
        busy += 1
    for found in registry.verdicts(DEVICE, WORKLOAD):
        assert is_whole(found), found
    rounds += 1
assert rounds > 0
print(rounds, busy)
"""


def start(home: Path, number: int, seconds: float) -> subprocess.Popen[str]:
    source = _PROCESS.format(PATHS=PATHS, home=str(home))
    return subprocess.Popen(
        [sys.executable, "-c", source, str(number), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fight(home: Path, processes: int, seconds: float) -> None:
    """Processes publish and read one workload; every so often one is killed and replaced."""
    rng = random.Random(0)
    end = time.monotonic() + seconds
    running = {n: start(home, n, seconds) for n in range(processes)}
    killed = 0
    while time.monotonic() < end:
        time.sleep(0.2)
        number = rng.randrange(processes)
        if running[number].poll() is None:
            os.kill(running[number].pid, signal.SIGKILL)
            killed += 1
        running[number].communicate()
        running[number] = start(home, number, max(0.5, end - time.monotonic()))
    for process in running.values():
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert killed > 0
    registry = Registry(home)
    found = registry.verdicts(DEVICE, WORKLOAD)
    assert found
    assert all(is_whole(v) for v in found)
    assert len({v.kernel for v in found}) == len(found)
    assert not list((home / "v2").glob("quarantine/*"))
    registry.publish(DEVICE, verdict(2))  # no lock outlives its owner
    left = [p for p in home.rglob(".new-*") if p.is_file()]
    assert len(left) <= killed


def test_processes_publish_read_and_die(tmp_path):
    fight(tmp_path, 4, 2.0)


@pytest.mark.slow
def test_sixteen_processes_publish_read_and_die_for_30_seconds(tmp_path):
    fight(tmp_path, 16, 30.0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork limits")
def test_a_full_disk_keeps_the_old_record(tmp_path):
    registry = Registry(tmp_path)
    registry.publish(DEVICE, verdict(2, 1.5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(RegistryError):
            registry.publish(DEVICE, verdict(4, 1.7))
        with pytest.raises(RegistryError):
            registry.poison(DEVICE, "0" * 12, "x" * 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [v.ratio for v in registry.verdicts(DEVICE, WORKLOAD)] == [1.5]
    assert not [p for p in tmp_path.rglob(".new-*") if p.is_file()]
    registry.publish(DEVICE, verdict(4, 1.7))
    assert len(registry.verdicts(DEVICE, WORKLOAD)) == 2


@pytest.mark.parametrize("kind", ["file", "nowhere"])
def test_a_home_that_cannot_be_written_reads_as_empty(tmp_path, kind):
    # Root may write anywhere, so the home is a file, or below one: that stops root too.
    (tmp_path / "root").write_text("")
    home = tmp_path / "root" if kind == "file" else tmp_path / "root" / "deeper"
    registry = Registry(home)
    assert registry.verdicts(DEVICE, WORKLOAD) == []
    assert registry.kernels() == []
    with pytest.raises(RegistryError):
        registry.publish(DEVICE, verdict(2))
    with registry.gating(DEVICE, WORKLOAD, 1.0) as ours:
        assert ours  # with no one to share, the work is done


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind the superuser"
)
def test_a_read_only_home_is_read(tmp_path):
    home = tmp_path / "root"
    Registry(home).publish(DEVICE, verdict(2))
    folders = [p for p in [home, *home.rglob("*")] if p.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    try:
        registry = Registry(home)
        assert len(registry.verdicts(DEVICE, WORKLOAD)) == 1
        with pytest.raises(RegistryError):
            registry.publish(DEVICE, verdict(4))
    finally:
        for folder in folders:
            folder.chmod(0o755)


HUGE = [1e308, -1e308, 1 << 200, -(1 << 70), float("nan"), float("inf"), 10**400]
ODD = [None, True, [], {}, "", "x" * 10_000, 0, -1, [[[]]], "../../../etc/passwd", "\x00", 0.5]


def damage(rng: random.Random, data: bytes) -> bytes:
    """`data` with bits flipped, cut, spliced, or with a field of another type or size."""
    kind = rng.randrange(7)
    if kind == 0:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[: rng.randrange(len(data))]
    if kind == 2:
        at = rng.randrange(len(data))
        return data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:]
    if kind == 3:
        return rng.choice(
            [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 5000, b'{"verdicts":[]}']
        )
    record = json.loads(data)
    target = record["verdicts"][rng.randrange(len(record["verdicts"]))]
    field = rng.choice(list(target))
    if kind == 4:
        target[field] = rng.choice(ODD)
    elif kind == 5:
        target.setdefault("timing", {})["ratio"] = rng.choice(HUGE)
    else:
        target["kernel"] = rng.choice(["../../evil", "/etc/passwd", "0" * 13, "g" * 12, "..", ""])
    return json.dumps(record, default=str).encode()


def bombard(home: Path, records: int, seal: bool) -> None:
    """Damage a record in many ways. `seal` gives it a valid checksum again, as an attacker who
    can write the folder could: then only what `from_json` accepts may come back."""
    rng = random.Random(1)
    registry = Registry(home)
    for number in range(4):
        registry.publish(DEVICE, verdict(number, 1.1))
    path = home / "v2" / "devices" / DEVICE / f"{WORKLOAD.layout}.json"
    good = path.read_bytes()
    whole = {(v.kernel, v.accepted) for v in registry.verdicts(DEVICE, WORKLOAD)}
    refused = 0
    for _ in range(records):
        data = damage(rng, good)
        if seal:
            data = resealed(data)
        path.write_bytes(data)
        reader = Registry(home)
        for found in reader.verdicts(DEVICE, WORKLOAD):
            assert isinstance(found.ratio, float)
            assert 0 <= found.ratio < 1e6
            assert found.workload == WORKLOAD.slug
            if not seal:
                assert (found.kernel, found.accepted) in whole
            assert found.accepted <= (found.correct is True and found.faster is True)
            assert reader.kernel(found.kernel) is None
        refused += not path.exists()
        reader.publish(DEVICE, verdict(6))
        assert any(v.kernel == verdict(6).kernel for v in reader.verdicts(DEVICE, WORKLOAD))
    assert refused > records // 3
    assert not (home / "evil").exists()


def resealed(data: bytes) -> bytes:
    from mlx_lm_openevolve.kernels.records import checksum

    try:
        record = json.loads(data)
        record.pop("checksum", None)
        return json.dumps({**record, "checksum": checksum(record)}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data


@pytest.mark.parametrize("seal", [False, True])
def test_damaged_records_are_never_believed(tmp_path, caplog, seal):
    bombard(tmp_path, 150, seal)


@pytest.mark.slow
@pytest.mark.parametrize("seal", [False, True])
def test_ten_thousand_damaged_records_are_never_believed(tmp_path, caplog, seal):
    bombard(tmp_path, 10_000, seal)


def test_two_processes_that_gate_one_workload_do_the_work_once(tmp_path):
    source = """
import sys, time
sys.path[:0] = {PATHS!r}
from test_registry_fire import DEVICE, WORKLOAD, verdict
from mlx_lm_openevolve.kernels.registry import Registry
registry = Registry({home!r})
with registry.gating(DEVICE, WORKLOAD, 30.0) as ours:
    if ours and not registry.verdicts(DEVICE, WORKLOAD):
        time.sleep(0.5)
        registry.publish(DEVICE, verdict(2))
        print("worked")
"""
    source = source.format(PATHS=PATHS, home=str(tmp_path))
    both = [
        subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in both]
    assert sorted(said) == ["", "worked"]


def test_the_right_to_gate_ends_with_its_holder(tmp_path):
    source = f"""
import sys, time
sys.path[:0] = {PATHS!r}
from test_registry_fire import DEVICE, WORKLOAD
from mlx_lm_openevolve.kernels.registry import Registry
with Registry({str(tmp_path)!r}).gating(DEVICE, WORKLOAD, 1.0):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    registry = Registry(tmp_path)
    with registry.gating(DEVICE, WORKLOAD, 0.2) as ours:
        assert not ours
    other = replace(WORKLOAD, dtype="float16")
    with registry.gating(DEVICE, other, 0.2) as ours:
        assert ours
    holder.kill()
    holder.communicate()
    with registry.gating(DEVICE, WORKLOAD, 5.0) as ours:
        assert ours
