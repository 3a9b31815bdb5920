"""The commands that try a trained model: `chat`. As in cli.py, each calls one function."""

from __future__ import annotations

import click

from qdora_fast.cli_options import loads_base


@click.command()
@click.argument("run")
@click.option("--once", metavar="TEXT", help="Answer one message and leave.")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(1))
@loads_base
def chat(run: str, once: str | None, max_new_tokens: int) -> None:
    """Talk to a RUN or to the folder of a merged model."""
    from qdora_fast.chat import chat as start

    start(run, once=once, max_new_tokens=max_new_tokens)
