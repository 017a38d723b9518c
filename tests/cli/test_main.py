from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models import base
from samples import judged, naive, shipped_in_metal, timed

from mlx_lm_openevolve.cli import check
from mlx_lm_openevolve.cli.check import _usual
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.device import detect
from mlx_lm_openevolve.errors import GateMemory, GateTimeout
from mlx_lm_openevolve.gate.host_check import carried_on_host
from mlx_lm_openevolve.kernels import lookup
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.kernels.verdict import Verdict
from mlx_lm_openevolve.ops.attention.workload import Bucket

DECODE = Bucket(1, 8, 2, 1, 128, 64, 64, "bfloat16")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Any]:
    code, out, _ = run(capsys, *argv, "--json")
    lines = out.splitlines()
    assert len(lines) == 1, "with --json nothing but the object is on standard output"
    return code, json.loads(lines[0])


@pytest.fixture
def shipped() -> Kernel:
    return next(k for k in shipped_in_metal() if k.applies_to(DECODE))


def test_status_tells_versions_backends_and_registries(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    code, status = run_json(capsys, "status")
    assert code == 0
    assert set(status["backends"]) == {"metal", "cuda", "host"}
    assert [row["root"] for row in status["registries"]] == [str(home), str(tuned_root())]
    assert str(home) in run(capsys, "status")[1]


def test_status_names_the_architectures_that_the_patch_does_not_reach(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What mlx-lm's own sources say, found here by text: a call of mx.fast and no other."""
    texts = {path.stem: path.read_text() for path in Path(base.__file__).parent.glob("*.py")}
    del texts["base"]
    wanted = {name for name, text in texts.items() if "mx.fast.scaled_dot_product_att" in text}
    architectures = run_json(capsys, "status")[1]["architectures"]
    assert set(architectures["direct"]) == wanted
    assert wanted, "mlx-lm 0.32 has three; with none left the line should go"
    for name, row in architectures["direct"].items():
        assert row["served"] is False
        assert row["patched"] == (name in architectures["patched"])
        for line in row["lines"]:
            assert "mx.fast" in texts[name].splitlines()[line - 1]
    assert len(architectures["patched"]) > 90
    (line,) = (text for text in run(capsys, "status")[1].splitlines() if "past the patch" in text)
    assert line.startswith("not served")
    assert all(name in line for name in wanted)


def test_a_right_kernel_passes_check_and_nothing_is_stored(
    capsys: pytest.CaptureFixture[str], home: Path, shipped: Kernel, tmp_path: Path
) -> None:
    shipped.save(tmp_path / "k")
    code, result = run_json(
        capsys, "check", str(tmp_path / "k"), "--workload", DECODE.slug, "--backend", "host"
    )
    assert code == 0
    (verdict,) = result["verdicts"]
    assert verdict["correct"]
    assert verdict["mutants"]["killed"] == verdict["mutants"]["of"] > 20
    assert verdict["errors"]["margin"] > 0
    assert Registry(home).workloads("host") == []


def test_check_takes_a_known_kernel_by_its_name(
    capsys: pytest.CaptureFixture[str], shipped: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        check, "judge_in_worker", lambda kernel, params, bucket, *_, **__: judged(kernel, bucket)
    )
    monkeypatch.setattr(check, "_on_host", lambda *_: {})
    for name in (shipped.id, shipped.name):
        code, result = run_json(
            capsys, "check", name, "--workload", DECODE.slug, "--backend", "host"
        )
        assert (code, result["kernel"]) == (0, shipped.id)
        assert [verdict["kernel"] for verdict in result["verdicts"]] == [shipped.id]


def test_a_wrong_kernel_fails_check_with_its_reason(
    capsys: pytest.CaptureFixture[str], copy_first_folder: Path
) -> None:
    code, out, _ = run(
        capsys, "check", str(copy_first_folder), "--workload", DECODE.slug, "--backend", "host"
    )
    assert code == 1
    assert "rejected" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["check", "/nowhere"], "kernel.json: no such file"),
        (["show", "gqa_decod"], "nor a workload; did you mean gqa_decode"),
        (["check", "tile"], "did you mean tiles"),
        (["show", "nonsense"], "neither a stored kernel's id or name nor a workload"),
        (["show", DECODE.slug.replace("hkv2", "hkv3")], "8 query heads do not divide into 3"),
        (["show", DECODE.slug.replace("lk128", "lk0")], "kv_len is 0"),
        (["show", DECODE.slug + "-kv7g64"], "no 7 bits"),
        (["show", DECODE.slug + "-kv4g48"], "do not divide into groups of 48"),
        (["show", DECODE.slug.upper()], "not a workload"),
        (["show", "x" * 5000], "File name too long"),
        (
            ["list", "--device", "nonsense"],
            "nothing is stored for 'nonsense'; devices: nvidia-h100",
        ),
        (["list", "--device", "../.."], "nothing is stored for '../..'"),
        (["import", "/nowhere.py", "--out", "/tmp/x"], "/nowhere.py"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_a_workload_that_the_kernel_does_not_serve_is_refused(
    capsys: pytest.CaptureFixture[str], copy_first_folder: Path
) -> None:
    slug = DECODE.slug.replace("lq1", "lq8")
    code, _, err = run(capsys, "check", str(copy_first_folder), "--workload", slug)
    assert code == 2
    assert "does not apply" in err


def test_a_kernel_for_another_backend_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    native = next(
        kernel
        for kernel in Registry(tuned_root(), writable=False).kernels()
        if any(stage.language == "cuda" for stage in kernel.specs)
    )
    folder = str(tuned_root() / "v2" / "kernels" / native.id)
    for command in (["check", folder], ["bench", "--kernel", folder]):
        code, out, err = run(capsys, *command, "--backend", "host")
        assert code == 2
        assert out == ""
        assert "is for cuda" in err


@pytest.mark.parametrize("before", [True, False])
def test_common_options_stand_before_the_command_or_after_it(
    capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    words = ["--json", "--verbose"]
    argv = [*words, "show", "nonsense"] if before else ["show", "nonsense", *words]
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert "neither" in json.loads(out)["error"]
    assert "Traceback" in err
    assert err.splitlines()[-1] == f"mlx-lm-openevolve: {json.loads(out)['error']}"


def turned_into_another() -> RuntimeError:
    """What Python 3.11 makes of an interrupt while a class is being made."""
    error = RuntimeError("Error calling __set_name__")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (turned_into_another(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/full"), 2, "/full: No space left on device"),
        (MemoryError("of 3 GB"), 2, "out of memory: of 3 GB"),
        (ZeroDivisionError("division by zero"), 70, "a fault of ours"),
    ],
)
def test_whatever_ends_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    says: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mlx_lm_openevolve.cli.inspect.status", fail)
    found, out, err = run(capsys, "status")
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def program(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_lm_openevolve", *argv]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.run(command, text=True, check=False, **more)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", [["clear"], ["clear", "--json"], ["show", "gqa_decode"]])
def test_a_full_disk_under_standard_output_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = program(*command, stdout=full)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = program("show", "gqa_decode", stdout=reader.stdin)
    assert reader.stdin is not None
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_standard_streams_may_be_closed(closed: str, home: Path) -> None:
    command = f'"{sys.executable}" -m mlx_lm_openevolve clear {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_commands_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nonsense"])
    assert ended.value.code == 2


def test_the_verdicts_of_the_device_at_hand_may_be_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "list", "--device", detect().slug)
    assert code == 0
    assert "no verdict is stored yet" in out


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "required: COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["list", "extra"], "unrecognized arguments: extra (mlx-lm-openevolve list --help)"),
        (["check"], "required: FOLDER|KERNEL"),
        (["check", ""], "empty (behind 'check')"),
        (["import", "x.py", "--out="], "empty (behind 'x.py --out=')"),
        (["bench", "-g", "x"], "invalid int value: 'x'"),
        (["bench", "--shape", "x"], "invalid choice: 'x'"),
        (["evolve", "--out", ""], "empty (behind '--out')"),
        (["report", "x", "--out", ""], "empty (behind '--out')"),
        (["run", "--gate", "x", "mlx_lm.generate"], "invalid choice: 'x'"),
    ],
)
def test_wrong_arguments_are_one_line_and_json_where_it_was_asked_for(
    argv: list[str], says: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--json", *argv] if where == "before" or argv[:1] == ["run"] else [*argv, "--json"])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert says in err
    assert "--help)" in err or "empty" in err
    assert err == f"mlx-lm-openevolve: {json.loads(out)['error']}\n"


@pytest.mark.parametrize("command", ["", "evolve", "run"])
def test_help_to_a_reader_that_has_seen_enough_is_no_error(command: str) -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = program(*command.split(), "--help", stdout=reader.stdin)
    assert reader.stdin is not None
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("raised", "advice"), [(GateMemory, False), (GateTimeout, True)], ids=["memory", "time"]
)
def test_more_seconds_are_no_advice_where_memory_is_short(
    raised: type[GateTimeout],
    advice: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised("needs 9 MiB")

    monkeypatch.setattr(check, "judge_in_worker", refuse)
    monkeypatch.setattr(check, "_on_host", lambda *_: {})
    bucket = Bucket(1, 4, 2, 1, 64, 64, 64, "bfloat16")
    kernel = next(k for k in shipped_in_metal() if k.applies_to(bucket))
    words = ["--backend", "host", "--workload", bucket.slug]
    assert main(["check", kernel.id, *words]) == 2
    err = capsys.readouterr().err
    assert "needs 9 MiB" in err
    assert ("allow more with --seconds" in err) == advice


def test_check_times_a_kernel_beside_what_serves_and_stores_nothing(
    home: Path, shipped: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def judge(kernel: Kernel, params: Any, bucket: Any, backend: str, **options: Any) -> Verdict:
        told.append(options["rival"])
        return judged(kernel, bucket)

    monkeypatch.setattr(check, "judge_in_worker", judge)
    monkeypatch.setattr(check, "_on_host", lambda *_: {})
    words = ["check", shipped.id, "--backend", "host", "--workload", DECODE.slug]
    assert main(words) == 0
    serves = judged(naive(), DECODE, faster=True, timing=timed(1.5))
    Registry(home).add(naive())
    Registry(home).publish("host", serves)
    assert main(words) == 0
    assert told == [None, (naive(), serves)]
    assert Registry(home).verdicts("host", DECODE) == [serves]


def test_a_negative_seed_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = str(next(iter((tuned_root() / "v2" / "kernels").iterdir())))
    assert main(["check", kernel, "--seed", "-1"]) == 2
    assert "--seed -1: it must not be negative" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "0", "-1"])
def test_check_refuses_a_time_that_is_none(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = str(next(iter((tuned_root() / "v2" / "kernels").iterdir())))
    assert main(["check", kernel, "--seconds", seconds]) == 2
    assert "--seconds" in capsys.readouterr().err


def test_check_without_a_workload_finds_some_that_the_kernel_applies_to() -> None:
    known = {kernel.name: kernel for kernel in lookup.shipped().kernels()}
    for name, kernel in known.items():
        found = _usual(kernel)
        assert 0 < len(found) <= 4, name
        assert all(kernel.applies_to(bucket) for bucket in found), name


def test_a_prompt_is_judged_on_small_shapes_on_the_host() -> None:
    """At its full size a right kernel was "rejected: an endless loop?" after 90 seconds."""
    (kernel,) = [k for k in lookup.shipped().kernels() if k.name == "tiles_quantized"]
    prompt = max(_usual(kernel), key=lambda bucket: bucket.flops())
    small = carried_on_host(kernel, prompt)
    assert kernel.applies_to(small)
    assert small.flops() < 5e8 < prompt.flops()
    assert small.kv_bits == prompt.kv_bits
    assert carried_on_host(kernel, small) == small
