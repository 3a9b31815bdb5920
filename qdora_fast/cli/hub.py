"""The commands about the hub: `push` sends a run, or what it made, and `pull` takes such a thing from there."""

from __future__ import annotations

from pathlib import Path

import click

from qdora_fast.cli.options import OFFLINE, RUN, json_option, out_option
from qdora_fast.system import console


@click.command()
@RUN
@click.option("--to", "to", required=True, metavar="ORG/NAME", help="The repository; made if it is not there.")
@click.option(
    "--what",
    default="adapter",
    show_default=True,
    help="adapter, an export of the run (merged_16bit, gguf, ...), or run, to resume elsewhere.",
)
@click.option("--public", is_flag=True, help="Everybody may read it. Default: private.")
@click.option("--licence", "--license", "licence", metavar="ID", help="Licence on the card, such as apache-2.0.")
@click.option("--with-data", is_flag=True, help="Rows of the data may be sent; a run holds some.")
@click.option("--revision", metavar="BRANCH", help="Default: main.")
@click.option("--dry-run", is_flag=True, help="List what would be sent; nobody is asked.")
@OFFLINE
@json_option()
def push(
    run: str,
    to: str,
    what: str,
    public: bool,
    licence: str | None,
    with_data: bool,
    revision: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send a RUN's adapter or export to the Hugging Face hub.

    One commit of exactly the files of its manifest and the model card, private unless you say --public. Log in by
    `hf auth login` or HF_TOKEN. What was not proven, holds a secret or has no licence is not sent.
    """
    from qdora_fast.recipes.push import push as send

    report = send(
        run,
        to=to,
        what=what,
        public=public,
        with_data=with_data,
        licence=licence,
        revision=revision,
        dry_run=dry_run,
    )
    if as_json:
        click.echo(console.json_line(report))


@click.command()
@click.argument("repository", metavar="ORG/NAME")
@click.option("--revision", metavar="REV", help="Branch, tag or commit. Default: main.")
@out_option("runs/NAME for a run, else NAME")
@OFFLINE
@json_option()
def pull(repository: str, revision: str | None, out: Path | None, as_json: bool) -> None:
    """Take a run, adapter or export from the hub, and check it.

    Every file is compared with the manifest that `push` sent along; of a foreign repository an adapter is taken.
    """
    from qdora_fast.recipes.pull import pull as take

    report = take(repository, out=out, revision=revision)
    if as_json:
        click.echo(console.json_line(report))
