"""Options that hold for a whole command, and for no other."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from qdora_fast.cli.main import cli
from qdora_fast.system.remote_code import remote_code_allowed


def test_the_models_own_code_is_allowed_for_the_command_that_says_so() -> None:
    seen = []

    def look(*_: Any, **__: Any) -> None:
        seen.append(remote_code_allowed())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdora_fast.recipes.chat.chat", look)
        for flags in (["--trust-remote-code"], []):
            assert CliRunner().invoke(cli, ["chat", "somewhere", *flags]).exit_code == 0
    assert seen == [True, False]
    assert not remote_code_allowed()
