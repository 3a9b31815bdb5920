"""Options that several commands share. Those without a parameter of their own hold for the whole command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from qdora_fast.offline import offline
from qdora_fast.remote_code import FLAG, allow_remote_code

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting; repeatable.")


def _around(flag: str, enter: Callable[[], AbstractContextManager[None]], text: str) -> Callable[[Any], Any]:
    """A switch that opens a context around the command it stands on."""

    def opened(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
        if asked:
            context.with_resource(enter())

    return click.option(flag, is_flag=True, expose_value=False, callback=opened, help=text)


OFFLINE = _around("--offline", offline, "Make no connection; what is not on this machine is an error.")
_TRUST = _around(FLAG, allow_remote_code, "Run code that comes with the base; read it first.")


def loads_base(command: Any) -> Any:
    """The options of every command that loads a base or its tokenizer."""
    return OFFLINE(_TRUST(command))
