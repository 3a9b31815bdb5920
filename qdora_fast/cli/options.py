"""Arguments and options that several commands share, each defined once.

Some have no parameter of their own: they open a context that holds for the whole command (`--offline`). Where code that
a config or a run names wants to be run, the user is asked here, on a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qdora_fast.config import own_code
from qdora_fast.system import remote_code
from qdora_fast.system.offline import offline

if TYPE_CHECKING:
    from qdora_fast.planning.cards import Card

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
RUN = click.argument("run")
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting; repeatable.")


def json_option(but: str = "as the last line") -> Callable[[Any], Any]:
    """`--json`; the command prints one JSON object on standard output, `but` says what becomes of the rest."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print one JSON object {but}.")


def out_option(default: str) -> Callable[[Any], Any]:
    """`--out`: the folder that the command writes."""
    return click.option("--out", type=click.Path(path_type=Path), help=f"Folder to write; default: {default}.")


def _named_card(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Card | None:
    from qdora_fast.planning.cards import find_card

    return None if text is None else find_card(text)


CARD = click.option(
    "--card",
    "--vram",
    "card",
    metavar="NAME|GIB",
    callback=_named_card,
    help='A card by name ("RTX 3090", L4) or by its memory in GiB (24). Default: this machine\'s.',
)


def _around(flag: str, enter: Callable[[], AbstractContextManager[None]], text: str) -> Callable[[Any], Any]:
    """A switch that opens a context around the command it stands on."""

    def opened(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
        if asked:
            context.with_resource(enter())

    return click.option(flag, is_flag=True, expose_value=False, callback=opened, help=text)


OFFLINE = _around("--offline", offline, "Make no connection; what is not on this machine is an error.")
_TRUST = _around(remote_code.FLAG, remote_code.allow_remote_code, "Run code that comes with the base; read it first.")


def _open_door(context: click.Context, _parameter: click.Parameter, files: tuple[Path, ...]) -> None:
    context.with_resource(own_code.allow_own_code(files, ask=_ask))


def _ask(text: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(text, err=True)
    return click.confirm("Run it, now and whenever it is unchanged?", default=False, err=True)


_OWN_CODE = click.option(
    own_code.FLAG,
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    expose_value=False,
    callback=_open_door,
    help="Run this file where the config or run names it; read it first. Repeatable.",
)


def loads_base(command: Any) -> Any:
    """The options of every command that loads a base or its tokenizer."""
    return OFFLINE(_TRUST(command))


def runs_code(command: Any) -> Any:
    """The options of those among them that run code which a config or a run names."""
    return loads_base(_OWN_CODE(command))
