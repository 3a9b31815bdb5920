"""The measuring commands are there, say what they can be asked, and refuse what they cannot; the rest is benchmark/."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks.cli import cli


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("engine", "--grad-accum"),
        ("gpu", "--cap-gib"),
        ("data", "--baseline"),
        ("export", "--shards"),
        ("peft-tests", "--checkout"),
    ],
)
def test_each_says_what_it_can_be_asked(command: str, option: str) -> None:
    said = CliRunner().invoke(cli, [command, "--help"])
    assert said.exit_code == 0
    assert option in said.stdout and "--record" in said.stdout


@pytest.mark.parametrize("arguments", [["engine", "--rounds", "1"], ["data", "--baseline", "nothing"]])
def test_nonsense_is_a_wrong_request(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2
