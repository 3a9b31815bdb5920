"""The served page: of running, stopped and finished runs, foreign text in it, and who may ask."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from made_runs import finished_run

from qdora_fast.cli.main import cli
from qdora_fast.recipes import watch as recipe
from qdora_fast.recipes.watch import served, state_of
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import FINISHED, RunFolder
from qdora_fast.system.run_lock import locked

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = finished_run(tmp_path / "run")
    (made.path / FINISHED).unlink(missing_ok=True)
    return made


@pytest.fixture
def every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "EVERY", 0.0)
    monkeypatch.setattr(recipe, "SHARE", 0)


def log(folder: RunFolder, *lines: dict[str, Any]) -> None:
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def get(url: str, path: str = "", **headers: str) -> httpx.Response:
    return httpx.get(url + path, headers=headers, trust_env=False, timeout=60)


def test_a_running_run_is_drawn_anew_and_refreshes(folder: RunFolder, every_time: None) -> None:
    log(folder, {"step": 1, "loss": 2.5})
    with locked(folder.path), served(folder) as url:
        first = get(url).text
        log(folder, {"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25, "epoch": 0.5})
        with folder.metrics_file.open("a") as file:
            file.write('{"step": 3, "lo')  # it is being written
        second = get(url).text
    assert "running: " in first and "step 1, loss 2.5" in first
    assert "step 2, epoch 0.50, loss 1.25" in second
    assert '<meta http-equiv="refresh"' in second and "<script" not in second


def test_the_page_is_not_drawn_for_each_request(folder: RunFolder) -> None:
    log(folder, {"step": 1, "loss": 2.5})
    with served(folder) as url:
        first = get(url).text
        log(folder, {"step": 9, "loss": 2.5})
        assert get(url).text == first


def test_a_stopped_run_says_how_to_go_on_and_a_finished_one_stands_still(folder: RunFolder, every_time: None) -> None:
    with served(folder) as url:
        stopped = get(url).text
        folder.write_json(FINISHED, {"at": "now"})
        finished = get(url).text
    assert "stopped before its end" in stopped and "--auto-resume" in stopped and 'http-equiv="refresh' in stopped
    assert "finished: " in finished and 'http-equiv="refresh' not in finished


def test_foreign_text_stays_text_and_no_script_may_run(folder: RunFolder) -> None:
    answers = [{"question": EVIL, "reference": EVIL, "base": EVIL, "tuned": EVIL, "base_loss": 1, "tuned_loss": 2}]
    folder.write_rows("evaluation/held_out_answers.jsonl", answers)
    log(folder, {"step": 1, "event": EVIL, "said": EVIL})
    (folder.path / "data").mkdir(exist_ok=True)
    (folder.path / "data" / "report.html").write_text(EVIL)
    with served(folder) as url:
        page, theirs, settings = get(url), get(url, "data/report.html"), get(url, "config.yaml")
    assert "<script" not in page.text and "<img" not in page.text
    for answer in (page, theirs, settings):
        assert "script-src" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert settings.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "localhost.evil.example:80"}, {"Origin": "https://evil.example"}, {"Host": ""}],
)
def test_only_this_machine_may_ask(folder: RunFolder, headers: dict[str, str]) -> None:
    with served(folder) as url:
        assert get(url, **headers).status_code == 421
        assert get(url, Host="localhost:1234").status_code == 200


@pytest.mark.parametrize(
    "path", ["evaluation/completions.html", "metrics.jsonl", "../secret", "..%2fsecret", "/etc/passwd", "data/"]
)
def test_nothing_else_of_the_folder_is_served(folder: RunFolder, path: str) -> None:
    (folder.path.parent / "secret").write_text("secret")
    with served(folder) as url, socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
        raw.sendall(f"GET /{path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b" 404 " in raw.recv(200)


def test_a_link_out_of_the_run_is_not_followed(folder: RunFolder) -> None:
    (folder.path.parent / "secret").write_text("secret")
    with served(folder) as url:
        folder.config_file.unlink()
        folder.config_file.symlink_to(folder.path.parent / "secret")
        assert get(url, "config.yaml").status_code == 404


def test_an_idle_connection_holds_nobody_up(folder: RunFolder) -> None:
    with served(folder) as url, socket.create_connection(("127.0.0.1", httpx.URL(url).port)):
        assert get(url).status_code == 200


def test_broken_files_have_a_page_as_well(folder: RunFolder) -> None:
    folder.config_file.write_text("model: [")
    folder.metrics_file.write_bytes(b"\xff\x00nothing")
    with served(folder) as url:
        assert "cannot be read by this version" in get(url).text


def test_a_taken_port_and_no_run_are_said(folder: RunFolder, tmp_path: Path) -> None:
    with served(folder) as url, pytest.raises(ConfigError, match="Address already in use; take another"):
        recipe.watch(folder.path, port=httpx.URL(url).port or 0)
    with pytest.raises(ConfigError, match="is not a run"):
        recipe.watch(tmp_path / "nothing")


def test_once_prints_one_line(folder: RunFolder) -> None:
    log(folder, {"step": 7, "loss": 1.5})
    shown = CliRunner().invoke(cli, ["watch", str(folder.path), "--once"]).output
    assert shown.startswith("stopped before its end: step 7, loss 1.5")
    assert shown.count("\n") == 1


HOLD = """
import sys, time
from pathlib import Path
from qdora_fast.system.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process has the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_seen_and_so_is_its_death(folder: RunFolder, held: subprocess.Popen[str]) -> None:
    assert state_of(folder.path).startswith("running")
    held.kill()
    held.wait()
    assert state_of(folder.path).startswith("stopped")
    with locked(folder.path):
        pass
