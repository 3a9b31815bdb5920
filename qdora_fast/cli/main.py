"""The command line: all commands under their headings, and how a command ends.

Each command calls one function and imports it when it is called. The first sentence of its docstring is its summary in
`--help`, where it must fit on one line of 80 columns. A user's mistake ends in one message and the exit code of its
kind (errors.py); `--debug` before the command shows the traceback.
"""

from __future__ import annotations

import logging
import sys

import click

import qdora_fast
from qdora_fast.cli.chat import chat, predict, serve
from qdora_fast.cli.export import export, import_adapter, verify
from qdora_fast.cli.hub import pull, push
from qdora_fast.cli.prepare import data, doctor, init, plan, presets
from qdora_fast.cli.training import compare, evaluate, log, report, review, train, watch
from qdora_fast.system.redact import guard_output
from qdora_fast.system.supported import require_linux

SECTIONS = {
    "Before training": (doctor, presets, init, plan, data),
    "Training and evaluation": (train, watch, evaluate, review, report, log, compare),
    "The trained model": (chat, predict, serve, export, verify, import_adapter, push, pull),
}
"""Commands in the order in which a user meets them, under the headings of `--help`."""


class Commands(click.Group):
    """A group whose help lists its commands under the headings of SECTIONS."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with the first sentence of their help."""
        width = max(map(len, self.commands))
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                room = formatter.width - width - 6
                rows = [(f"{command.name:<{width}}", command.get_short_help_str(room)) for command in commands]
                formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(qdora_fast.__version__, prog_name="qdora-fast")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """QDoRA fine-tuning on one 24 GB card, with an export proven to be the model that was trained."""
    require_linux()


for _command in (command for commands in SECTIONS.values() for command in commands):
    cli.add_command(_command)


def main() -> None:
    """Entry point: run the command, turn foreseen errors into one message and an exit code."""
    from qdora_fast.system import distributed
    from qdora_fast.system.child import protect_children
    from qdora_fast.system.errors import ConfigError, QdoraError, is_panic
    from qdora_fast.system.visible import visible

    guard_output()
    protect_children()
    debug = "--debug" in sys.argv[1:]
    if debug:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except QdoraError as error:
        if debug:
            raise
        if distributed.is_main() or not isinstance(error, ConfigError):  # a wrong request is wrong in all of them
            rank = f"[process {distributed.rank()}] " if distributed.world_size() > 1 else ""
            click.echo(f"{rank}error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)
    except BaseException as error:
        if not is_panic(error) or debug:
            raise
        click.echo(f"error: a library broke down on a file of the base or the rows: {visible(str(error))}", err=True)
        sys.exit(2)
