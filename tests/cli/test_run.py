"""`run`: mlx-lm's own commands in processes of their own, patched; a tiny model on the host."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documentation
import mlx_lm
import pytest
from samples import shipped_in_metal, store_correct

from mlx_lm_openevolve import errors
from mlx_lm_openevolve.cli import run
from mlx_lm_openevolve.cli.main import main
from mlx_lm_openevolve.decode.structure import slug, structure
from mlx_lm_openevolve.device import detect, fingerprint
from mlx_lm_openevolve.kernels.registry import Registry
from mlx_lm_openevolve.kernels.verdict import ALL, STEP, Verdict, gate_version
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.runtime import families, session

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-m", "mlx_lm_openevolve", "run"]
HOST = ["--backend", "host", "--any-correct", "--gate", "stored"]
LINE = "mlx-lm-openevolve: "


@pytest.fixture
def model(tiny_folder: Path) -> Path:
    return tiny_folder


@pytest.fixture
def proven(home: Path) -> None:
    """Verdicts "correct" on the host for the model's decode, alone and in batches."""
    buckets = [
        Workload(batch, 4, 2, 1, kv_len, 64, 64, "bfloat16", mask)
        for batch in (1, 2, 4, 8)
        for kv_len in (1, 2, 4, 8, 16, 32, 64)
        for mask in ("none", "bool")
    ]
    for kernel in shipped_in_metal():
        store_correct(home, kernel, [bucket for bucket in buckets if kernel.applies_to(bucket)])


def start(*arguments: str | Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    changes = {"capture_output": True, "text": True, "check": False, "cwd": ROOT} | changes
    return subprocess.run([*RUN, *map(str, arguments)], **changes)


def generate(model: Path, *more: str) -> list[str]:
    words = ["mlx_lm.generate", "--model", str(model), "--prompt", "def main", "--max-tokens", "6"]
    return [*words, "--temp", "0", *more]


def without_rates(text: str) -> list[str]:
    return [line for line in text.splitlines() if "tokens-per-sec" not in line]


def test_generate_prints_what_it_always_prints_and_one_line_more(model: Path, proven: None) -> None:
    command = generate(model)
    script = Path(sys.executable).parent / command[0]
    stock = subprocess.run([script, *command[1:]], capture_output=True, text=True, check=True)
    ours = start(*HOST, *command)
    assert ours.returncode == 0, ours.stderr
    assert without_rates(ours.stdout) == without_rates(stock.stdout)
    assert len(ours.stderr.splitlines()) == len(stock.stderr.splitlines()) + 1
    line = ours.stderr.splitlines()[-1]
    hits = int(line.removeprefix(LINE).split()[0])
    assert hits > 0
    assert hits % 2 == 0, "two layers"
    assert "gqa_decode" in line
    assert "on SDPA (no stored verdict" in line, "the prompt's chunk has none here"


def test_the_line_tells_of_compiled_layers_when_the_model_is_gone(
    model: Path, proven: None, home: Path
) -> None:
    name = slug(structure(mlx_lm.load(str(model))[0]), 1)
    stamp = fingerprint(detect("host"), gate_version(STEP))
    verdict = Verdict("compiled", {}, name, True, None, "correct", stamp, kind=STEP)
    Registry(home).publish("host", verdict)
    words = ["mlx_lm.generate", "--model", str(model), "--prompt", "def", "--max-tokens", "4"]
    done = start(*HOST, *words)
    assert done.returncode == 0, done.stderr
    assert ", 2 layers compiled, linear off (" in done.stderr.splitlines()[-1]


def test_without_a_gpu_and_without_wishes_it_says_why_nothing_is_served(model: Path) -> None:
    done = start("--backend", "host", *generate(model))
    assert done.returncode == 0
    assert "0 attention calls on kernels" in done.stderr
    assert "on the CPU no kernel is faster" in done.stderr


SCRIPT = """
import importlib.util, os, subprocess, sys
import mlx.core as mx
if sys.argv[1] == "child":  # who merely looks is patched once it loads
    assert importlib.util.find_spec("mlx_lm.models.base")
    assert importlib.util.find_spec("mlx_lm.models.base")
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache

q, k = mx.ones((1, 4, 1, 64), mx.bfloat16), mx.ones((1, 2, 20, 64), mx.bfloat16)
attended = base.scaled_dot_product_attention(q, k, k, cache=KVCache(), scale=1.0, mask=None)
print(sys.argv[1:], attended.sum().item(), any("sitecustom" in entry for entry in sys.path))
if sys.argv[1] == "parent":
    subprocess.run([sys.executable, __file__, "child"], check=True)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("check=True", "check=False"))
    return path


def test_a_script_keeps_its_exit_code_and_its_children_are_patched(
    script: Path, proven: None, tmp_path: Path
) -> None:
    """Also the child, which looks for the module first and loads it later; JSON is the last line
    of standard output, and nothing is left in the temporary folder."""
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = start("--json", *HOST, script, "parent", "--verbose", env=env)
    assert done.returncode == 7
    *printed, last = done.stdout.splitlines()
    assert sorted(printed) == ["['child'] 256.0 False", "['parent', '--verbose'] 256.0 False"]
    found = json.loads(last)
    assert documentation.differs("run", found) == ""
    assert (found["processes"], found["hits"], found["problems"]) == (2, 2, [])
    assert sum(found["kernels"].values()) == 2
    assert done.stderr.count(LINE) == 1
    assert "2 processes" in done.stderr
    assert list((tmp_path / "tmp").glob("mlx-lm-openevolve-run-*")) == []


def test_without_a_temporary_folder_children_are_patched_and_not_counted(
    script: Path, proven: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    def become(path: str, argv: list[str], env: dict[str, str]) -> None:
        settings = json.loads(env[run.VARIABLE]) | {"pid": 0}
        done = subprocess.run(argv, env={**env, run.VARIABLE: json.dumps(settings)}, check=False)
        raise SystemExit(done.returncode)

    asks = "print(hasattr(base.scaled_dot_product_attention, '__wrapped__'))"
    script.write_text(script.read_text().replace("sys.exit(7)", f"{asks}\nsys.exit(7)"))
    monkeypatch.setattr(run.tempfile, "mkdtemp", full)
    monkeypatch.setattr(run.os, "execve", become)
    with pytest.raises(SystemExit, match="7"):
        main(["run", *HOST, str(script), "alone"])
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "True"
    assert "Traceback" not in said.err
    assert LINE not in said.err


def test_the_kill_switch_wins(script: Path, proven: None) -> None:
    done = start(*HOST, script, "alone", env={**os.environ, "MLX_LM_OPENEVOLVE": "0"})
    assert done.returncode == 7
    assert done.stderr == f"{LINE}mlx-lm stays as it is: MLX_LM_OPENEVOLVE=0\n"


def test_a_broken_setting_does_not_stop_the_command(script: Path) -> None:
    settings = {"path": "/nowhere", "backend": "host", "gate": "auto", "require_faster": True}
    settings |= {"json": False, "verbose": False, "pid": 0, "folder": "/nowhere"}
    done = subprocess.run(
        [sys.executable, script, "alone"],
        env=run.environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "['alone'] 256.0 False\n")
    assert "Traceback" not in done.stderr


def test_the_shadowed_sitecustomize_runs_and_ours_does_nothing_without_its_variable(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.shadowed = __name__, __file__")
    code = (
        "import sys, sitecustomize; print(sys.shadowed[0], sitecustomize.__file__);"
        "import mlx_lm.models.base; print('mlx_lm_openevolve' in sys.modules)"
    )
    for active in (True, False):
        if not active:  # another of that name, which loads in no time
            (tmp_path / "mlx_lm" / "models").mkdir(parents=True)
            (tmp_path / "mlx_lm" / "models" / "base.py").touch()
            (tmp_path / "mlx_lm" / "__init__.py").touch()
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(tmp_path)
        try:
            settings = {"path": None, "backend": "host", "gate": "stored", "require_faster": True}
            settings |= {"json": False, "verbose": False, "pid": 0, "folder": "/nowhere"}
            env = run.environment(settings)
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
        assert env["PYTHONPATH"].split(os.pathsep) == [str(run.SITE), str(tmp_path)]
        if not active:
            del env[run.VARIABLE]
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        first, second = done.stdout.splitlines()
        assert first == f"sitecustomize {tmp_path / 'sitecustomize.py'}"
        assert second == str(active)


SLEEPER = """
import time
from mlx_lm.models import base
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_end_the_command_as_ever(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "sleeper.py"
    path.write_text(SLEEPER)
    process = subprocess.Popen(
        [*RUN, *HOST, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -number
    assert (LINE in err) == (number != signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mlx_lm.batch_generate"], "mlx_lm.benchmark --batch-size N"),
        (["mlx_lm.nonsense"], "choose from mlx_lm, "),
        (["nowhere.py"], "no such file"),
        (["./nowhere"], "no such file"),
        ([str(ROOT)], "a folder without __main__.py"),
        ([], "Name a command of mlx-lm, a script, or -m MODULE"),
        (["mlx_lm.generate", "--model", "/no/such/model"], "no such folder"),
        (["mlx_lm.generate", "--model=./no-such-model"], "no such folder"),
        (["mlx_lm.generate", "--draft-model", "a/b/c"], "no such folder"),
        (["mlx_lm.generate", "--model", str(ROOT)], "no config.json"),
        (["--kernel", "/nowhere", "mlx_lm.generate"], "kernel.json"),
    ],
)
def test_wrong_usage_is_one_line_before_anything_starts(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    err = capfd.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_the_model_that_a_command_takes_by_itself_is_checked_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlx_lm.generate import DEFAULT_MODEL

    monkeypatch.setattr("mlx_lm_openevolve.hub.problem", lambda name: f"no {name}")
    assert main(["run", "mlx_lm.generate", "--prompt", "x"]) == 2
    line = f"{LINE}--model, by default {DEFAULT_MODEL}: no {DEFAULT_MODEL}\n"
    assert capfd.readouterr().err == line
    started: list[Any] = []
    monkeypatch.setattr(run.os, "execve", lambda *arguments: started.append(arguments))
    # mlx-lm has something else to say of the last one.
    others = ["--help"], ["--modle", "x"]
    for words in (*(["mlx_lm.generate", *more] for more in others), ["mlx_lm.server"]):
        main(["run", *words])
    assert len(started) == 3


@pytest.mark.parametrize(
    ("arguments", "checked"),
    [
        (["--prompt", "x"], True),
        (["--prompt-cache-file", "F", "--prompt", "x"], False),
        (["--prompt-cache", "F", "--prompt", "x"], False),  # mlx-lm takes abbreviations
        (["--prompt-c=F"], False),
        (["--mod", "org/model"], False),
        (["--max-tokens", "3"], True),
        (["--model", "org/first", "--model", "."], True),
        (["--he"], False),
    ],
)
def test_what_may_name_a_model_is_left_to_mlx_lm(
    arguments: list[str], checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    started: list[list[str]] = []
    monkeypatch.setattr("mlx_lm_openevolve.hub.problem", lambda name: asked.append(name) or "")
    monkeypatch.setattr(run.os, "execve", lambda path, argv, env: started.append(argv))
    main(["run", "mlx_lm.generate", *arguments])
    assert started[0][2:] == arguments
    assert bool(asked) == checked
    assert "org/first" not in asked, "the last one counts"


@pytest.mark.parametrize(
    ("words", "ours", "theirs"),
    [
        ("run cmd --ver 3 --j -m x -- y", "run cmd", "--ver 3 --j -m x -- y"),
        ("run -m pkg.mod --json -h", "run -m pkg.mod", "--json -h"),
        ("run -mpkg.mod -- -h", "run -mpkg.mod", "-- -h"),
        ("--json run --kernel k --ba=host --gate auto cmd --kernel x",
         "--json run --kernel k --ba=host --gate auto cmd", "--kernel x"),
        ("run --any-correct -- cmd --help", "run --any-correct -- cmd", "--help"),
        ("run --help", "run --help", ""),
        ("run --kernel", "run --kernel", ""),
        ("run", "run", ""),
        ("list --device run", "list --device run", ""),
        ("show run -x", "show run -x", ""),
    ],
)  # fmt: skip
def test_what_stands_behind_the_command_is_not_ours_to_parse(
    words: str, ours: str, theirs: str
) -> None:
    assert run.split(words.split()) == (ours.split(), theirs.split())


def test_a_saved_prompt_cache_brings_its_model(model: Path, proven: None, tmp_path: Path) -> None:
    file = tmp_path / "cache.safetensors"
    words = ["mlx_lm.cache_prompt", "--model", str(model), "--prompt", "def main"]
    made = start(*HOST, *words, "--prompt-cache-file", file)
    assert made.returncode == 0, made.stderr
    words = ["mlx_lm.generate", "--prompt", "x", "--max-tokens", "4", "--verb", "True"]
    done = start(*HOST, *words, "--prompt-cache-file", file)
    assert done.returncode == 0, done.stderr
    line = done.stderr.splitlines()[-1]
    assert int(line.removeprefix(LINE).split()[0]) > 0, line


# Nothing of mlx-lm, which takes two seconds to load; whether it would be patched.
LIGHT = """
import sys
print(sys.argv[1:], "Finder" in {type(finder).__name__ for finder in sys.meta_path})
sys.exit(7)
"""


@pytest.mark.parametrize("form", ["module", "folder", "no suffix", "a dash"])
def test_what_python_runs_is_run(form: str, script: Path, proven: None, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    if form != "module":
        script.write_text(LIGHT)
    words: list[str | Path] = [tmp_path / "package"]
    if form == "module":
        (tmp_path / "package" / "module.py").write_text(script.read_text())
        words = ["-m", "package.module"]
    elif form == "folder":
        (tmp_path / "package" / "__main__.py").write_text(script.read_text())
    else:
        name = "script" if form == "no suffix" else "-script.py"
        words = [tmp_path / name] if form == "no suffix" else ["--", name]
        script.rename(tmp_path / name)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    env = {**os.environ, "PYTHONPATH": path}
    done = start(*HOST, *words, "alone", "--json", "--ver", env=env, cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    if form == "module":
        assert done.stdout == "['alone', '--json', '--ver'] 256.0 False\n"
        assert done.stderr.startswith(f"{LINE}1 attention calls on kernels")
    else:
        assert (done.stdout, done.stderr) == ("['alone', '--json', '--ver'] True\n", "")


def test_a_command_without_a_script_file_runs_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run.sysconfig, "get_path", lambda name: "/nowhere")
    argv = run.command_line("mlx_lm.generate", ["--help"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: mlx_lm.generate")
    with pytest.raises(errors.UsageError):
        run.command_line("generate", [])


def row(hits: int, fallbacks: int, reason: str = "accepted") -> dict[str, Any]:
    return {
        "kernel": "0123456789ab" if hits else None,
        "name": "k" if hits else None,
        "reason": reason,
        "hits": hits,
        "fallbacks": fallbacks,
    }


def report(workloads: dict[str, Any], **fallbacks: dict[str, int]) -> dict[str, Any]:
    families = {name: {"fallbacks": found, "unreached": []} for name, found in fallbacks.items()}
    return {"problem": "", "ops": families, "workloads": workloads}


def test_reports_add_up() -> None:
    w, v = "attention-w", "attention-v"
    a = report({w: row(5, 1), v: row(0, 2, "x")}, attention={"odd": 1})
    b = report({w: row(3, 0)}, attention={"odd": 2})
    b["ops"]["attention"]["unreached"] = ["__main__.stock"]
    found = session.totals([a, b])
    assert (found["processes"], found["hits"]) == (2, 8)
    assert found["kernels"] == {"k 0123456789ab": 8}
    assert found["fallbacks"] == {"odd": 3, "x": 2, "the kernel stepped aside": 1}
    assert found["workloads"][w]["hits"] == 8
    assert found["ops"]["attention"]["unreached"] == ["__main__.stock"]
    assert session.summary(found) == (
        "8 attention calls on kernels (k 0123456789ab: 8), 6 attention calls on SDPA"
        " (odd: 3; x: 2; the kernel stepped aside: 1), 2 processes"
    )
    assert session.summary(session.totals([report({}, attention={})])) == (
        "no attention call was seen"
    )


def test_what_one_process_could_not_hides_nothing_of_another() -> None:
    served = report({"attention-w": row(5, 0)}, attention={})
    failed = {**report({}), "problem": "odd"}
    assert session.summary(session.totals([failed])) == "mlx-lm stays as it is: odd"
    line = session.summary(session.totals([served, failed]))
    assert line == (
        "5 attention calls on kernels (k 0123456789ab: 5), 0 attention calls on SDPA, 2 processes,"
        " in other processes mlx-lm stays as it is: odd"
    )


def test_the_line_speaks_by_family(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm_openevolve import ops
    from mlx_lm_openevolve.ops.attention import OP

    class Other:
        stock = "quantized_matmul"

    monkeypatch.setattr(ops, "get", {"attention": OP, "linear": Other}.__getitem__)
    workloads = {"attention-w": row(5, 0), "linear-v": row(0, 2, "x")}
    found = session.totals([report(workloads, attention={}, linear={"odd": 1})])
    assert session.summary(found) == (
        "5 attention calls on kernels (k 0123456789ab: 5), 0 attention calls on SDPA,"
        " 0 linear calls on kernels, 3 linear calls on quantized_matmul (x: 2; odd: 1)"
    )
    one = session.totals([report({"linear-v": row(4, 0)}, attention={}, linear={})])
    assert session.summary(one).startswith("4 linear calls on kernels")
    assert "attention" not in session.summary(one)


def test_the_line_says_which_families_are_off_and_why() -> None:
    none = {"linear": families.NO_VERDICT, "step": families.NO_VERDICT}
    a = {**report({}, attention={}), "off": none}
    found = session.totals([a])
    assert found["off"] == none
    assert session.summary(found) == (
        "no attention call was seen, linear and step off"
        " (no accepted verdict on this chip; `tune` judges what a model has)"
    )
    # On in another process, and named by a person: no more to be said.
    b = {**report({}, attention={}, linear={}), "off": {"step": families.NOT_NAMED}}
    found = session.totals([a, b])
    assert found["off"] == {"step": families.NOT_NAMED}
    assert session.summary(found) == "no attention or linear call was seen"
    # In some process steps were on.
    c = {**report({}), "off": {"attention": families.NOT_NAMED}, "enabled": True}
    assert "step" not in session.totals([c, a])["off"]
    assert session.totals([a, {**report({}), "off": {}}])["off"] == none, "one was not patched"
    # Steps are on, and this model's are not among those accepted.
    model = {"compiled": 0, "reason": "no verdict", "model": "Model"}
    found = session.totals(
        [{**report({"attention-w": row(5, 0)}, attention={}), "models": {"": model}}]
    )
    assert session.summary(found).endswith("on SDPA, no layer compiled (no verdict)")
    alone = {**report({}), "off": dict.fromkeys(("attention", "linear"), families.NOT_NAMED)}
    assert session.summary(session.totals([alone])) == "no step call was seen"
    found = session.totals([{**alone, "models": {"": model}}])
    assert session.summary(found) == "no layer compiled (no verdict)"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("attention", "1 attention calls on kernels"),
        ("nonsense", "MLX_LM_OPENEVOLVE_OPS: 'nonsense' is none of attention"),
    ],
)
def test_the_variable_switches_families(script: Path, proven: None, value: str, says: str) -> None:
    done = start(*HOST, script, "alone", env={**os.environ, "MLX_LM_OPENEVOLVE_OPS": value})
    assert done.returncode == 7
    assert says in done.stderr.splitlines()[-1]


@pytest.fixture
def server(model: Path, proven: None, tmp_path: Path) -> Iterator[tuple[int, Any, Path]]:
    """mlx_lm.server on the loopback: its port, its process, and its standard error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["mlx_lm.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    err = tmp_path / "err"
    with err.open("w") as file:
        process = subprocess.Popen([*RUN, "--json", *HOST, *words], cwd=ROOT, stderr=file,
                                   stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, err.read_text()
                time.sleep(0.1)
        yield port, process, err
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def compiling(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Verdicts "correct" on the host for the model's whole steps, which are switched on alone."""
    loaded, device = mlx_lm.load(str(model))[0], detect("host")
    stamp = fingerprint(device, gate_version(STEP))
    for batch in (1, 2, 4, 8):
        name = slug(structure(loaded), batch)
        verdict = Verdict(ALL, {}, name, True, None, "correct", stamp, kind=STEP)
        Registry(home).publish(device.slug, verdict)
    monkeypatch.setenv("MLX_LM_OPENEVOLVE_OPS", STEP)
    return loaded


def ask(port: int, i: int) -> dict[str, Any]:
    body = {"prompt": "def main" + " x" * i, "max_tokens": 5 + i, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def asked_by_four(server: tuple[int, Any, Path]) -> tuple[list[Any], dict[str, Any], str]:
    """What a server answered clients that came together, what it says of its session then, and
    what it wrote."""
    port, process, err = server
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: ask(port, i % 4), range(8)))
    assert [a["usage"]["completion_tokens"] for a in answers] == [5 + i % 4 for i in range(8)]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    text = err.read_text()
    assert "Traceback" not in text, text
    return answers, json.loads(out.splitlines()[-1]), text


def test_the_server_answers_clients_that_come_together(server: tuple[int, Any, Path]) -> None:
    _, found, _ = asked_by_four(server)
    batched = [s for s, r in found["workloads"].items() if "-b1-" not in s and r["hits"]]
    assert batched, "requests that come together are decoded together, on a kernel"


@pytest.mark.slow
def test_the_server_decodes_with_compiled_layers(
    compiling: Any, model: Path, server: tuple[int, Any, Path]
) -> None:
    answers, session, text = asked_by_four(server)
    found = session["models"][structure(compiling)]
    assert (found["compiled"], found["separate"]) == (len(compiling.layers), {})
    assert f"{found['compiled']} layers compiled" in text
    tokenizer = mlx_lm.load(str(model))[1]
    for i, answer in enumerate(answers):
        prompt = "def main" + " x" * (i % 4)
        want = mlx_lm.generate(compiling, tokenizer, prompt, max_tokens=5 + i % 4)
        assert answer["choices"][0]["text"] == want
