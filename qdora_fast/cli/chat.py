"""The commands that talk to a trained model: `chat` in a terminal, `predict` for a file of rows, `serve` for programs.

All take a run, an adapter or a merged model. As in training.py a command only checks what was typed and calls one
function, which it imports when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qdora_fast.cli.options import FILE, RUN, loads_base, runs_code


@click.command()
@RUN
@click.option("--once", metavar="TEXT", help="Answer one message and leave; - reads it from standard input.")
@click.option("--system", metavar="TEXT", help="Begin with this system message.")
@click.option("--compare", is_flag=True, help="Ask the base, too: side by side on a wide terminal.")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest tokens only.")
@click.option("--seed", type=click.IntRange(0), help="Draw the same answers again.")
@loads_base
def chat(
    run: str,
    once: str | None,
    system: str | None,
    compare: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int | None,
) -> None:
    """Talk to a RUN, an adapter or a merged model.

    Answers go to standard output, all else to standard error.
    """
    from qdora_fast.inference import SamplingParams
    from qdora_fast.recipes.chat import chat as start

    sampling = SamplingParams(max_new_tokens, temperature, top_p, seed)
    start(run, once=once, system=system, compare=compare, sampling=sampling)


@click.command()
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="The rows: a file, a folder or a hub data set.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, by its ending.")
@click.option("--system", metavar="TEXT", help="A system message for rows that have none.")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(1), help="Longest answer.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw from the likeliest tokens only.")
@click.option("--seed", type=click.IntRange(0), help="Draw the same answers again.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1), help="Rows answered at once.")
@click.option("--model", "server_model", metavar="NAME", help="Which model of a server answers.")
@click.option("--schema", type=FILE, help="A JSON Schema; says which answers are valid JSON for it.")
@click.option("--answer-column", metavar="NAME", help="Column of the answers.  [default: answer]")
@click.option("--overwrite", is_flag=True, help="Replace the file, or one that was begun otherwise.")
@click.option("--set", "overrides", multiple=True, metavar="data.B=VALUE", help="How rows are read; repeatable.")
@runs_code
def predict(model: str, data: str, out: Path, **options: Any) -> None:
    """Answer a file of rows with a MODEL: file in, file out.

    MODEL is a run, an adapter, a merged or quantised model's folder, a base (demo, a preset, a hub name), or the
    address of a server with OpenAI's API, whose key is read from the environment variable QDORA_FAST_API_KEY. Written
    are .jsonl, .json, .csv, .tsv and .parquet. The same command goes on where it was stopped.
    """
    from qdora_fast.recipes.predict.predict import predict as start

    start(model, data, out=out, **options)


@click.command()
@RUN
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; this one is local.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free one.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="A browser may call it so.")
@click.option("--no-password", is_flag=True, help="Let other machines ask without a password.")
@loads_base
def serve(run: str, host: str, port: int, allowed_hosts: tuple[str, ...], no_password: bool) -> None:
    """Serve a RUN, an adapter or a merged model over HTTP.

    Answers OpenAI's /v1/chat/completions until Ctrl-C. For trying a model, not for production. A password that clients
    send as their API key is read from the environment variable QDORA_FAST_API_KEY.
    """
    from qdora_fast.recipes.chat import serve as start

    start(run, host=host, port=port, no_password=no_password, allowed_hosts=allowed_hosts)
