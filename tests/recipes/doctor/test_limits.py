"""`doctor --limits` shows every limit with its unit."""

from __future__ import annotations

import json

from click.testing import CliRunner

from qdora_fast.cli.main import cli
from qdora_fast.system import limits


def test_every_limit_is_in_the_table(capsys: object) -> None:
    shown = CliRunner().invoke(cli, ["doctor", "--limits"]).output
    said = json.loads(CliRunner().invoke(cli, ["doctor", "--limits", "--json"]).output)["limits"]
    constants = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert said == constants and len(constants) > 15
    for name, value in constants.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert f" {value:,}  " in line and len(line.split(f"{value:,}")[1].strip()) > 10
