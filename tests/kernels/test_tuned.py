"""What ships in tuned/: every record is whole, and every verdict stands on evidence."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from mlx_lm_openevolve.device import Device, fingerprint
from mlx_lm_openevolve.gate.speed import FASTER
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import STEP, TUNED_GATE, Verdict, gate_version
from mlx_lm_openevolve.ops import FAMILIES
from mlx_lm_openevolve.ops.attention.workload import Workload

TUNED = Registry(tuned_root(), writable=False)
VERDICTS = [
    (device, workload, verdict)
    for device in TUNED.devices()
    for workload in TUNED.workloads(device)
    for verdict in TUNED.verdicts(device, workload)
]


def test_every_record_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(tuned_root(), writable=False)
    files = list((tuned_root() / "v2" / "devices").glob("*/*-*[0-9a-z].json"))
    read = {
        workload.layout: registry.verdicts(device, workload)
        for device in registry.devices()
        for workload in registry.workloads(device)
    }
    assert set(read) == {path.stem for path in files}
    assert all(read.values())
    assert len(registry.kernels()) == len(list((tuned_root() / "v2" / "kernels").glob("*/"))) > 0
    assert not caplog.records


def test_every_kernel_says_where_it_comes_from_and_carries_its_host_checks() -> None:
    for kernel in TUNED.kernels():
        assert kernel.origin
        native = any(spec.language != "metal" for spec in kernel.specs)
        checks = TUNED.host_checks(kernel.id)
        assert native or len(checks) > 0
        assert all(check["ok"] for check in checks), [c["reason"] for c in checks]


def test_every_verdict_stands_on_evidence() -> None:
    for device, workload, verdict in VERDICTS:
        check_evidence(device, workload, verdict)


def test_every_verdict_counts_on_the_chip_and_mlx_that_it_was_made_on() -> None:
    assert VERDICTS
    for slug, _, verdict in VERDICTS:
        chip = Device("cuda", slug, slug, verdict.fingerprint["architecture"])
        stamp = fingerprint(chip, gate_version("attention"))
        assert verdict.counts_for({**stamp, "mlx": verdict.fingerprint["mlx"]}, shipped=True)


def test_samples_are_of_a_verdict_that_ships_and_give_its_ratio() -> None:
    files = (tuned_root() / "v2" / "devices").glob("*/*.raw.json.gz")
    held = sum(len(json.loads(gzip.decompress(path.read_bytes()))) for path in files)
    families = (*FAMILIES, STEP)
    judged = [
        (d, v, TUNED.raw(d, v)) for d in TUNED.devices() for f in families for v in TUNED.of(d, f)
    ]
    assert held == sum(bool(raw) for _, _, raw in judged)
    for _, verdict, raw in judged:
        # Those of a step stand alone.
        samples = raw.get("samples", {}) if verdict.kind == "kernel" else {"top": raw}
        for name, arms in samples.items():
            stock, kernel = (np.array(arms[arm]).reshape(-1, 2).sum(-1)
                             for arm in ("baseline", "candidate"))  # fmt: skip
            stated = verdict.timing.get(name, verdict.timing)  # "sealed", "beside"; else its own
            assert np.median(stock / kernel) == pytest.approx(stated["ratio"], rel=2e-3)


def check_evidence(device: str, workload: Workload, verdict: Verdict) -> None:
    kernel = TUNED.kernel(verdict.kernel)
    assert kernel is not None
    assert kernel.applies_to(workload)
    assert kernel.launches(workload, verdict.params)
    assert verdict.fingerprint["device"] == device
    assert verdict.fingerprint["gate"] in (gate_version("attention"), TUNED_GATE)
    if not verdict.accepted:
        return
    assert verdict.mutants["killed"] == verdict.mutants["of"] > 0
    assert verdict.errors["margin"] > 0
    samples = TUNED.raw(device, verdict)["samples"]
    timed = {"top": verdict.timing, "sealed": verdict.timing["sealed"]}
    for name, comparison in timed.items():
        assert comparison["low"] > FASTER
        for arm in ("baseline", "candidate"):
            found = comparison[arm]
            assert len(samples[name][arm]) == found["trials"] >= 20
            assert found["min"] <= found["mean"] <= found["max"]
