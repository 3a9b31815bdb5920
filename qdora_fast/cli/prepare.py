"""The commands before training: `doctor`, `presets`, `init`, `plan`, `data`. No weights are read, but by data.quality.

As in training.py a command only checks what was typed and calls one function, which it imports when it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qdora_fast.cli.options import CARD, FILE, OFFLINE, SET, json_option, out_option, runs_code
from qdora_fast.system import console

if TYPE_CHECKING:
    from qdora_fast.planning.cards import Card


@click.command()
@click.option("--offline", is_flag=True, help="Make no connection to the hub.")
@click.option("--limits", is_flag=True, help="Print how much a file or request may ask for, and check nothing.")
@json_option("and no page")
def doctor(offline: bool, limits: bool, as_json: bool) -> None:
    """Check this machine: GPU, packages, disks, the hub.

    The kernels and the engine are tried, too. Exit code 0: ready.
    """
    if limits:
        from qdora_fast.recipes.doctor.limits import show_limits

        show_limits(as_json=as_json)
        return
    from qdora_fast.recipes.doctor.examine import examine

    sys.exit(examine(as_json=as_json, offline=offline))


@click.command()
@click.option("--show", metavar="NAME", help="Print one, to be saved and edited.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a config file, for editors.")
def presets(show: str | None, schema: bool) -> None:
    """List the shipped configs and this machine's choice."""
    if show is not None:
        from qdora_fast.config import presets as shipped

        click.echo(shipped.find_config(show).read_text(encoding="utf-8"), nl=False)
        return
    from qdora_fast.recipes import messages

    messages.presets(schema=schema)


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path), metavar="[OUT.yaml]", required=False)
@click.option("--data", metavar="FILE|FOLDER|HUB-ID", help="Your rows.")
@CARD
@click.option("--model", metavar="BASE", help="A base instead of the one that suits the card.")
@click.option("--from", "source", type=FILE, help="Take over a config of Axolotl or LLaMA-Factory.")
@SET
@click.option("--overwrite", is_flag=True, help="Replace OUT.yaml.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Instead: write a page that asks.")
def init(
    out: Path | None,
    data: str | None,
    card: Card | None,
    model: str | None,
    source: Path | None,
    overrides: tuple[str, ...],
    overwrite: bool,
    html: Path | None,
) -> None:
    """Write a config to edit, for your rows and card.

    Nothing is downloaded. Another trainer's config is taken over with --from: what has no counterpart is named.
    """
    if html is not None:
        from qdora_fast.recipes.init_page import write_page

        write_page(html)
        return
    if out is None:
        raise click.UsageError("name the config to write, for instance my.yaml; or --html FILE for a page that asks")
    if data is None and source is None:
        raise click.UsageError("name your rows with --data, or another trainer's config with --from")
    from qdora_fast.recipes.init import init as write

    write(out, data=data, card=card, model=model, source=source, overrides=overrides, overwrite=overwrite)


@click.command()
@click.argument("config", required=False)
@SET
@CARD
@click.option("--presets", "all_presets", is_flag=True, help="All shipped presets as a table.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan as a page, too.")
@OFFLINE
@json_option("and nothing else")
def plan(
    config: str | None,
    overrides: tuple[str, ...],
    card: Card | None,
    all_presets: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Tell whether a CONFIG fits a card, and how long it takes.

    Also its disk space, and which method suits it. Reads no weights. Exit code 10: it does not fit.
    """
    from qdora_fast.recipes import plan as recipe

    if all_presets:
        recipe.show_preset_plans(card=card, as_json=as_json, say=click.echo)
    else:
        recipe.show_plan(config, overrides, card=card, html=html, as_json=as_json, say=click.echo)


@click.command()
@click.argument("target", metavar="CONFIG|RUN")
@SET
@out_option("runs/NAME-data")
@click.option("--reviewed", type=FILE, help="Record a person's marks on the sample, saved from review.html.")
@runs_code
@json_option()
def data(target: str, overrides: tuple[str, ...], out: Path | None, reviewed: Path | None, as_json: bool) -> None:
    """Prepare the rows of a CONFIG, and report on them.

    Rows are filtered, deduplicated and split. No model is loaded, unless data.quality is switched on. With a RUN and
    --reviewed, record a review of its rows.
    """
    from qdora_fast.config import presets
    from qdora_fast.config.loader import load_config
    from qdora_fast.recipes import data as recipe
    from qdora_fast.system.run_folder import RunFolder

    if reviewed and (Path(target) / "config.yaml").is_file():
        report = recipe.review_run(RunFolder.open(target), reviewed)
    else:
        path = presets.find_config(target)
        settings = load_config(path, overrides)
        report = recipe.run_data(settings, name=path.stem, out=out, reviewed=reviewed)
    if as_json:
        click.echo(console.json_line(report))
