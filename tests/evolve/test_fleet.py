"""A fleet: searches whose workers are other processes, reached through dask's scheduler."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import io
import itertools
import json
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import evolve_kernels
import pytest
from rich.console import Console
from samples import needs_clang

from mlx_lm_openevolve import metalhost
from mlx_lm_openevolve.cli.main import main, parser
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import MachineError
from mlx_lm_openevolve.evolve import commands, events, loop, report
from mlx_lm_openevolve.evolve.archive import Archive
from mlx_lm_openevolve.evolve.config import Budget, Config, Search
from mlx_lm_openevolve.evolve.evaluation import MACHINE
from mlx_lm_openevolve.evolve.evaluator import LocalEvaluator
from mlx_lm_openevolve.evolve.fleet import client, link, worker
from mlx_lm_openevolve.evolve.fleet.link import Facts, Link
from mlx_lm_openevolve.kernels.registry import Registry

pytest.importorskip("distributed", reason="the extra fleet is not installed")

from fleets import Cluster, Given, kernel, kill, wait_until

SLUG = evolve_kernels.DECODE.slug


def evolve(*argv: object) -> tuple[int, dict[str, Any], str]:
    out = Console(file=io.StringIO(), record=True, width=400)
    options = parser().parse_args(["evolve", *map(str, argv)])
    code, result = commands.evolve(options, out)
    return code, result, out.export_text()


@pytest.mark.slow
@needs_clang
def test_a_fleet_without_a_gpu_gives_what_one_machine_would(tmp_path: Path) -> None:
    evolve_kernels.kernel().save(tmp_path / "kernel")
    words = ("--workloads", SLUG, "--kernels", tmp_path / "kernel", "--candidates", 2)
    host = ("--backend", "host", *words, "--out")
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_worker("check", real=True)
        _, there, _ = evolve(*host, tmp_path / "there", "--scheduler", cluster.address)
    _, here, _ = evolve(*host, tmp_path / "here")
    assert there["candidates"] == here["candidates"] == 2
    assert there["best"] == here["best"]
    assert there["best"][SLUG]["moved_bytes"] > 0


def test_two_chips_give_two_columns_and_judge_for_themselves(tmp_path: Path, home: Path) -> None:
    evolve_kernels.kernel().save(tmp_path / "kernel")
    words = ("--workloads", SLUG, "--kernels", tmp_path / "kernel", "--candidates", 2)
    with Cluster(tmp_path / "cluster") as cluster:
        for chip in ("check", "chip-a", "chip-b"):
            cluster.start_worker(chip)
        fleet = ("--scheduler", cluster.address)
        wait_until(lambda: all("does chip" in cluster.said(f"chip-{c}") for c in "ab"))
        out, exported = tmp_path / "run", tmp_path / "exported"
        code, found, text = evolve(*fleet, *words, "--out", out, "--export", exported)
        # Gone on with: nothing is measured or judged again.
        before = len(cluster.measurements())
        evolve(*fleet, "--resume", out, "--kernels", tmp_path / "kernel")
        assert len(cluster.measurements()) == before == 4
    assert (code, found["candidates"]) == (0, 2)
    assert list(found["elsewhere"]) == ["chip-b"]
    assert found["elsewhere"]["chip-b"][SLUG]["low"] > 1
    archive = Archive.open(out, write=False)
    assert archive.device["slug"] == "chip-a"
    for done in archive.done.values():
        assert done.results[SLUG].ratio != done.elsewhere["chip-b"].results[SLUG].ratio
    assert "<th>chip-a</th><th>chip-b</th>" in report._page(archive, {})
    # Each chip's own gate judged what was best there. It is not believed here.
    assert sorted(e.device for e in archive.published if e.accepted) == ["chip-a", "chip-b"]
    assert Registry(exported).devices() == ["chip-a", "chip-b"]
    assert Registry(home).devices() == ["imported-chip-a", "imported-chip-b"]
    assert "published" in text


def test_nothing_is_lost_or_measured_twice_under_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small benchmarks/fleet_soak.py."""
    monkeypatch.setattr(client, "_AWAY", 1.0)
    monkeypatch.setattr(client, "_SILENT", 10.0)
    kernels = [kernel(i) for i in range(9)]
    kernels[6] = kernel(-1, "kills")
    config = Config(
        "cuda", (evolve_kernels.DECODE,), (1.0,), budget=Budget(len(kernels)),
        search=Search(batch=6, saturated=0.0),
    )  # fmt: skip
    archive = Archive.create(tmp_path / "run", config, {})
    said: list[str] = []
    with Cluster(tmp_path / "cluster") as cluster:
        checker, _ = (cluster.start_worker("check", 0.0) for _ in range(2))
        for _ in range(2):
            cluster.start_worker("chip-a", 0.2)
        cluster.start_worker("check", 0.0, versions={"mlx": "0.1"})
        with client.Fleet(cluster.link, said.append) as fleet:
            fleet.lead("cuda")
            wait_until(lambda: fleet.there() == {"check": 2, "chip-a": 2})

            def attack() -> None:
                wait_until(lambda: len(archive.done) >= 1)
                kill(checker)
                kill(cluster.scheduler)
                cluster.start_scheduler()

            attacker = threading.Thread(target=attack)
            attacker.start()
            with LocalEvaluator(archive, fleet) as evaluator:
                reason = loop.evolve(archive, Given(kernels), evaluator, lambda _: None)
            attacker.join()
        spans = cluster.measurements()
    archive.close()
    assert reason == "9 candidates are done"
    assert set(archive.done) == set(range(1, 10))
    numbers = [e.number for e in archive.journal.events if isinstance(e, events.Evaluated)]
    assert len(numbers) == 9
    # Anew only what ended with the scheduler, after its end; never the one that kills.
    assert len(spans) <= 9 + 2
    for made in kernels:
        of_it = [span for span in spans if span[3].startswith(made.id)]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(of_it))
    assert sum(kernels[6].id in what for *_, what in spans) == 1
    assert archive.failures() == {"crash": 1}
    assert "of chip-a is gone" in archive.worker_deaths[f"{kernels[6].id} {SLUG} {{'step': 1}}"]
    own = link.versions()["mlx"]
    assert sum(f"is left out: mlx 0.1, here {own}" in line for line in said) == 1
    assert f"{cluster.address} was started anew: what is open goes there" in said


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_is_no_candidates_fault(tmp_path: Path) -> None:
    config = Config("cuda", (evolve_kernels.DECODE,), (1.0,), budget=Budget(6))
    archive = Archive.create(tmp_path / "run", config, {})
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_worker("check")
        leaving, _ = (cluster.start_worker("chip-a", 1.0) for _ in range(2))
        with client.Fleet(cluster.link, lambda _: None) as fleet:
            fleet.lead("cuda")
            wait_until(lambda: fleet.there()["chip-a"] == 2)

            def leave() -> None:
                wait_until(lambda: len(cluster.measurements()) >= 2)
                leaving.send_signal(signal.SIGTERM)

            leaver = threading.Thread(target=leave)
            leaver.start()
            with LocalEvaluator(archive, fleet) as evaluator:
                proposer = Given([kernel(i) for i in range(6)])
                loop.evolve(archive, proposer, evaluator, lambda _: None)
            leaver.join()
            assert leaving.wait(10) == 0
        spans = cluster.measurements()
    archive.close()
    assert len(archive.done) == 6
    assert archive.failures() == {}
    assert len(spans) == 7  # one was begun anew, once its first process had ended
    again = [span for span in spans if [s[3] for s in spans].count(span[3]) == 2]
    assert again[0][1] <= again[1][0]


# Certificates


def authority(folder: Path) -> tuple[Path, Path, Path]:
    """Files of an authority, and of a certificate that it signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    now, keys = datetime.datetime.now(datetime.timezone.utc), []
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    for name, file in (("authority", files[0]), ("member", files[1])):
        keys.append(ec.generate_private_key(ec.SECP256R1()))
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        made = (
            x509.CertificateBuilder(issuer, subject, keys[-1].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(name == "authority", None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[2].write_bytes(keys[1].private_bytes(serialization.Encoding.PEM, kind, plain))
    return files


def test_members_trust_each_other_by_certificates_of_one_authority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    with Cluster(tmp_path / "cluster", ours) as cluster:
        cluster.start_worker("check", full=True)
        said: list[str] = []
        with client.Fleet(cluster.link, said.append) as fleet:
            assert fleet.lead("host")["backend"] == "host"
            request = {"op": "check", "workload": SLUG, "seed": 0}
            # A worker whose disk is full is left out, in one line; another one is asked.
            answer = fleet.ask("check", request, 60)
            assert answer["cause"] == MACHINE
            assert answer["finding"].endswith("does check: No space left on device")
            assert sum("is left out: No space left on device" in line for line in said) == 1
            cluster.start_worker("check")
            wait_until(lambda: fleet.there()["check"] == 1)
            assert fleet.ask("check", request, 60)["counters"]["least_bytes"] == 1024
        line = f"{cluster.address}: its certificate and ours are not of one authority"
        with pytest.raises(MachineError, match=line):
            client.Fleet(Link(cluster.address, theirs), lambda _: None)
        files = [w for n, f in zip(("ca", "cert", "key"), theirs, strict=True)
                 for w in (f"--tls-{n}", str(f))]  # fmt: skip
        for command in (["fleet", "worker", "--check"], ["evolve", "--backend", "host"]):
            assert main([*command, "--scheduler", cluster.address, *files]) == 2
            assert capsys.readouterr().err.splitlines() == [f"mlx-lm-openevolve: {line}"]
        # A wrong key is told before anybody is asked, and so is a file that is none.
        assert main(["fleet", "worker", "--scheduler", cluster.address, *files[:5], str(ours[2])])
        assert "mismatch" in capsys.readouterr().err.lower()
        absent = ["--tls-ca", "no.pem", *files[2:]]
        assert main(["fleet", "worker", "--scheduler", cluster.address, *absent]) == 2
        assert "No such file" in capsys.readouterr().err


# One line for what cannot be


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scheduler", "host:8786"], "write tls://HOST:8786"),
        (["--scheduler", "tcp://127.0.0.1:99999"], "write tls://HOST:8786"),
        (["--scheduler", "tcp://gpu.example:8786"], "is another machine: use tls://"),
        (["--scheduler", "tcp://10.0.0.7:8786"], "is another machine: use tls://"),
        (["--scheduler", "tls://10.0.0.7:8786"], "needs --tls-ca, --tls-cert and --tls-key"),
        (["--scheduler", "tcp://localhost:8786", "--tls-ca", "x"], "write tls:// in place"),
        (["--scheduler", "tcp://127.0.0.1:9"], "127.0.0.1:9: no scheduler answers"),
        (["--scheduler", "tcp://[::1]:9"], "no scheduler answers"),
    ],
)
def test_a_scheduler_that_cannot_be_is_one_line(
    argv: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "_CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(worker, "facts_here", lambda *_: worker.facts_of(detect("host")))
    monkeypatch.setattr(commands, "facts_here", lambda *_: worker.facts_of(detect("host")))
    for command in (["fleet", "worker"], ["evolve", "--backend", "host"]):
        assert main([*command, *argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "what answers is no scheduler"),
        (b"\xff" * 64, "what answers is no scheduler"),
        (b"", "no scheduler answers"),
    ],
)
def test_what_is_no_scheduler_is_one_line(
    words: bytes,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "_CONNECT_SECONDS", 2.0)
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].sendall(words)

        threading.Thread(target=speak, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert main(["evolve", "--backend", "host", "--scheduler", address]) == 2
    for connection in held:
        connection.close()
    assert capsys.readouterr().err == f"mlx-lm-openevolve: {address}: {told}\n"


def test_what_may_cross_a_network_unencrypted_was_asked_for() -> None:
    asked = {"tls_ca": None, "tls_cert": None, "tls_key": None}
    open_to_all = argparse.Namespace(scheduler="tcp://10.0.0.7:8786", insecure=True, **asked)
    assert Link.of(open_to_all).host == "10.0.0.7"
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "[::1]"):
        local = argparse.Namespace(scheduler=f"tcp://{host}:1", insecure=False, **asked)
        assert Link.of(local).security() is None


def test_a_worker_without_a_clang_or_with_a_full_disk_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fleet", "worker", "--check", "--scheduler", "tcp://127.0.0.1:9"]
    monkeypatch.setattr(metalhost, "compiler_available", lambda: (False, "no clang"))
    assert main(words) == 2
    assert capsys.readouterr().err == "mlx-lm-openevolve: nothing can be checked here: no clang\n"

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metalhost, "compiler_available", lambda: (True, ""))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    assert main(words) == 2
    where = tempfile.gettempdir()
    assert capsys.readouterr().err == f"mlx-lm-openevolve: {where}: No space left on device\n"


def test_the_extra_is_named_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["evolve", "--backend", "host", "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "pip install 'mlx-lm-openevolve[fleet]'" in capsys.readouterr().err


# What comes from another machine is checked where it arrives


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "null",
        "[" * 100_000,
        '{"cause": 7}',
        '{"cause": "", "finding": "", "seconds": "fast"}',
        '{"params": [1]}',
        '{"trials": true, "aborted": 1, "ratio": 1.5}',
        "{}",
        '{"seconds": 1e-5, "ratio": Infinity, "low": 1, "high": 2}',
        '{"seconds": 1e-5, "ratio": 1e308, "low": 1e-320, "high": 1e308}',
        '{"seconds": 1e-5, "ratio": -2, "low": 1, "high": 2}',
        '{"seconds": 1e-5}',
        '{"params": {"x": [1]}, "seconds": 1e-5, "ratio": 1.5, "low": 1, "high": 2}',
    ],
)
def test_an_answer_that_is_none_leaves_its_worker_out(text: str) -> None:
    found = client._checked(text, "measure")
    assert found["cause"] == MACHINE
    assert found["finding"].startswith("no answer to measure: ")


@pytest.mark.parametrize(
    "counters",
    ['{"moved_bytes": "x", "least_bytes": 1}', '{"moved_bytes": 1e999, "least_bytes": 1}'],
)
def test_a_check_that_could_not_be_ranked_is_none(counters: str) -> None:
    found = client._checked(f'{{"counters": {counters}}}', "check")
    assert found["cause"] == MACHINE
    assert client._checked('{"host": "no clang"}', "check") == {"host": "no clang"}


def test_an_answer_is_what_the_worker_said() -> None:
    for said in (
        {"cause": "crash", "finding": "why"},
        {"params": {"step": 1}, "seconds": 1e-5, "ratio": 1.5, "low": 1, "high": 2, "trials": 3},
    ):
        assert client._checked(json.dumps(said), "measure") == said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"role": 7}, "neither check nor a chip"),
        ({"role": "../x"}, "neither check nor a chip"),
        ({"role": "another-chip"}, "not its own"),
        ({"device": {"slug": "check", "backend": "abacus"}}, "backend is unknown"),
        ({"device": {"slug": "x", "backend": "host", "name": 7}}, "device's name is malformed"),
        ({"device": {"slug": "x\ny", "backend": "host"}}, "device's slug is malformed"),
        ({"device": {"slug": "x", "backend": "host", "cores": "2"}}, "device's cores is malformed"),
        ({"device": None}, "neither check nor a chip"),
    ],
)
def test_what_a_worker_announces_is_checked(change: dict[str, Any], words: str) -> None:
    announced = worker.facts_of(detect("host")).to_json()
    assert Facts.from_json(announced).differs() == ""
    older = {**announced, "versions": {**announced["versions"], "mlx": "0.1\n\x1b[31mX"}}
    assert Facts.from_json(older).differs().startswith("mlx 0.1 ?[31mX, here ")
    with pytest.raises(ValueError, match=words):
        Facts.from_json({**announced, **change})


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "{}",
        '{"request": {"op": "measure"}, "seconds": 1}',
        '{"request": {"op": "check"}, "seconds": 1e9}',
        '{"request": {"op": "check"}, "seconds": NaN}',
        '{"request": 7, "seconds": 1}',
    ],
)
def test_a_worker_refuses_what_is_no_request_of_its_role(text: str) -> None:
    station = worker._Station(worker.facts_of(detect("host")), "no_module")
    assert json.loads(station.answer(text))["cause"] == "error"
