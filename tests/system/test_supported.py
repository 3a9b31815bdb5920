"""On another system than Linux one sentence names the way that works, and no import fails before it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qdora_fast.system import child

ELSEWHERE = """
import sys, ctypes, subprocess, socket, click, pydantic, rich.console, ruamel.yaml, asyncio, filelock, sysconfig
sysconfig.get_config_vars()  # the standard library's own files are this system's
for missing in ("fcntl", "resource", "pwd", "grp", "termios", "readline", "torch", "unsloth", "triton"):
    sys.modules[missing] = None
sys.platform = {platform!r}
sys.argv = ["qdora-fast", *{arguments!r}]
"""
COMMAND = ELSEWHERE + "from qdora_fast.cli.main import main\nmain()"
FUNCTION = ELSEWHERE + "import qdora_fast\nqdora_fast.train('demo')"


def _run(script: str, platform: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = script.format(platform=platform, arguments=list(arguments))
    return subprocess.run(
        child.python("-c", text), env=child.environment(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("platform", "way"), [("win32", "WSL2"), ("cygwin", "WSL2"), ("darwin", "Docker"), ("freebsd14", "a Linux machine")]
)
def test_a_command_ends_in_one_sentence(platform: str, way: str) -> None:
    done = _run(COMMAND, platform, "train", "demo")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: qdora-fast runs on Linux: ") and way in done.stderr


def test_a_function_raises_it() -> None:
    done = _run(FUNCTION, "darwin")
    assert done.stderr.splitlines()[-1].startswith("qdora_fast.system.errors.ConfigError: qdora-fast runs on Linux: ")


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_what_it_is_can_be_asked_everywhere(option: str) -> None:
    assert _run(COMMAND, "win32", option).returncode == 0


def test_linux_is_never_refused() -> None:
    assert sys.platform == "linux"
    assert _run(COMMAND, "linux", "presets").returncode == 0
