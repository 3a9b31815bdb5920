"""`--offline`: no attempt to connect, in any command or its child processes; what a library tries is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qdora_fast.system.offline import VARIABLES, offline

# Imported by every Python process below: notes each attempt, and makes none.
NOTES = """
import os, socket

def noted(*given, **more):
    with open(os.environ["NOTED"], "a") as file:
        file.write(repr(given) + "\\n")
    raise OSError("no network in this test")

def connect(self, address, real=socket.socket.connect):
    return real(self, address) if self.family == socket.AF_UNIX else noted(address)

socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = socket.gethostbyname = noted
"""
COMMANDS = """
import json, os, shutil, socket, sys
from qdora_fast.cli.main import cli

assert socket.getaddrinfo.__name__ == "noted"

settings, run = json.loads(sys.argv[1]), "runs/demo"
changes = [f"--set={key}={value}" for key, value in settings.items()]
for command in (
    ["plan", "demo", *changes], ["train", "demo", *changes], ["train", "demo", *changes, "--resume"], ["export", run],
    ["chat", run, "--once", "hello"], ["report", run], ["data", "demo", *changes],
):
    if "--resume" in command:
        shutil.rmtree(f"{run}/checkpoints/checkpoint-2")
        os.remove(f"{run}/finished.json")
    offline = ["--offline"] if command[0] != "report" else []
    cli.main([*command, *offline], standalone_mode=False)
    print("done", command[0], file=sys.__stdout__, flush=True)
"""


@pytest.mark.exhaustive
def test_no_command_tries_to_connect(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTES)
    settings = {
        "model.name": str(tiny_base),
        "model.max_length": 128,
        "data.max_rows": 60,
        "train.max_steps": 2,
        "train.save_steps": 1,
        "evaluation.max_rows": 2,
        "evaluation.max_new_tokens": 2,
        "export.at_end": "none",
        "export.proof_rows": 2,
    }
    noted = tmp_path / "noted"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"NOTED": str(noted), "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-c", COMMANDS, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done ") == 7
    assert not noted.exists(), noted.read_text()


@pytest.mark.parametrize("place", ["example.org", "192.0.2.1", "2001:db8::1"])
def test_an_attempt_is_refused_while_it_holds(place: str) -> None:
    with offline():
        assert os.environ["WANDB_MODE"] == "offline"
        with pytest.raises(ConnectionError, match=f"--offline: no connection to {place}"):
            socket.create_connection((place, 80), timeout=1)
    assert "WANDB_MODE" not in os.environ


def test_this_machine_can_be_reached_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, offline():
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
