"""What is said of a model that cannot be loaded; the Hub is a server of ours."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_lm_openevolve import hub


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/model", "no such folder"),
        ("./no-such-model", "no such folder"),
        ("a/b/c", "no such folder"),
        ("no such name", "neither a folder nor a name on the Hub"),
        (".", "no config.json"),
    ],
)
def test_what_no_network_is_needed_for(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in hub.problem(name)


def test_a_folder_with_a_model_is_no_problem(tiny_folder: Path) -> None:
    assert hub.problem(str(tiny_folder)) == ""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers HEAD as the Hub does, for three models."""

    def do_HEAD(self) -> None:
        codes = {"known": (200, ""), "gated": (403, "GatedRepo"), "empty": (404, "EntryNotFound")}
        code, error = codes.get(self.path.split("/")[2], (404, "RepoNotFound"))
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", "abc")
        self.send_header("Content-Length", "10")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(name: str, tmp_path: Path, **more: str) -> str:
    """`hub.problem` in a process of its own: the Hub's address is read at import."""
    code = "import sys; from mlx_lm_openevolve import hub; print(hub.problem(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **more},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_what_the_hub_says(endpoint: str, tmp_path: Path) -> None:
    for name, says in (
        ("a/known", ""),
        ("a/gated", "asked for it"),
        ("a/empty", "no config.json"),
        ("a/missing", "no such model on the Hub"),
    ):
        found = asked(name, tmp_path, HF_ENDPOINT=endpoint)
        assert says in found if says else found == "", (name, found)


def test_without_a_network(tmp_path: Path) -> None:
    found = asked("a/known", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the Hub cannot be reached" in found
    assert "\n" not in found
    assert "offline" in asked("a/known", tmp_path, HF_HUB_OFFLINE="1")
