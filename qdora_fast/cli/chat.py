"""The commands that talk to a trained model: `chat` in a terminal, `serve` for programs.

Both take a run, an adapter or a merged model. As in training.py a command only checks what was typed and calls one
function, which it imports when it is called.
"""

from __future__ import annotations

import click

from qdora_fast.cli.options import RUN, loads_base


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
