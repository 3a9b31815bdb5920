"""The command line: what a user types, and nothing else. Each command calls one function.

Imports are inside the commands, so that `--help` and a wrong config answer in milliseconds. The first sentence of a
command's docstring is its summary in `--help`, where it must fit on one line of 80 columns. A user's mistake ends in
one message and the exit code of its kind (errors.py); `--debug` before the command shows the traceback.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

import qdora_fast
from qdora_fast.cli.chat import chat, serve
from qdora_fast.cli.export import export, import_adapter, verify
from qdora_fast.cli.options import CARD, FILE, OFFLINE, RUN, SET, json_option, out_option, runs_code
from qdora_fast.system import console
from qdora_fast.system.redact import guard_output

if TYPE_CHECKING:
    from qdora_fast.planning.cards import Card


SECTIONS = {
    "Before training": ("doctor", "presets", "plan", "data"),
    "Training and evaluation": ("train", "evaluate", "review", "report", "log", "compare"),
    "The trained model": ("chat", "serve", "export", "verify", "import-adapter"),
}
"""Commands in the order in which a user meets them, under the headings of `--help`."""


class Commands(click.Group):
    """A group whose help lists its commands under the headings of SECTIONS."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with the first sentence of their help."""
        width = max(map(len, self.commands))
        for heading, names in SECTIONS.items():
            with formatter.section(heading):
                room = formatter.width - width - 6
                rows = [(f"{name:<{width}}", self.commands[name].get_short_help_str(room)) for name in names]
                formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(qdora_fast.__version__, prog_name="qdora-fast")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """QDoRA fine-tuning on one 24 GB card, with an export proven to be the model that was trained."""


@cli.command()
@click.argument("config", required=False)
@SET
@click.option("--resume", is_flag=True, help="Continue from the newest complete checkpoint of this run.")
@click.option("--auto-resume", is_flag=True, help="Resume if the newest run of this name was stopped; else start.")
@click.option("--dry-run", is_flag=True, help="Check settings, rows, masks and targets; read no weights.")
@click.option("--reviewed", type=FILE, help="A person's marks on the sample of these rows, for the evaluation log.")
@runs_code
def train(
    config: str | None,
    overrides: tuple[str, ...],
    resume: bool,
    auto_resume: bool,
    dry_run: bool,
    reviewed: Path | None,
) -> None:
    """Fine-tune, compare with the base, export and prove.

    CONFIG is a YAML file or the name of a preset; without it the hardware decides.
    """
    from qdora_fast.config import presets
    from qdora_fast.config.loader import load_config
    from qdora_fast.recipes import messages
    from qdora_fast.system import hardware

    path, why = (presets.find_config(config), None) if config else presets.choose_preset(hardware.gpus())
    settings = load_config(path, overrides)
    messages.chosen(path, why)
    from qdora_fast.recipes import train as recipe

    if dry_run:
        recipe.dry_run(settings)
    else:
        how: bool | Literal["auto"] = True if resume else "auto" if auto_resume else False
        recipe.run_recipe(settings, name=path.stem, resume=how, reviewed=reviewed)


@cli.command()
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


@cli.command()
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


@cli.command()
@RUN
@SET
@click.option("--mmlu", is_flag=True, help="Also ask MMLU, whatever the run's settings say.")
@click.option("--allow-regression", is_flag=True, help="Report a fallen MMLU instead of failing.")
@runs_code
@json_option()
def evaluate(run: str, overrides: tuple[str, ...], mmlu: bool, allow_regression: bool, as_json: bool) -> None:
    """Compare a RUN with its base on held-out rows.

    Also writes completions to read, asks MMLU if that is switched on, and adds to the run's evaluation log.
    """
    from qdora_fast.recipes import evaluate as recipe

    changed = [*overrides, *(["evaluation.mmlu.enabled=true"] if mmlu else [])]
    evaluation = recipe.evaluate(run, overrides=changed, allow_regression=allow_regression)
    if as_json:
        click.echo(console.json_line(evaluation))


@cli.command()
@RUN
@click.argument("file", required=False, type=FILE)
@click.option("--reviewer", metavar="NAME", help="Who has read the completions.")
@click.option("--verdict", type=click.Choice(["pass", "fail", "needs-work"]))
@click.option("--note", default="", help="Why.")
def review(run: str, file: Path | None, reviewer: str | None, verdict: str | None, note: str) -> None:
    """Record what a person thinks of a RUN's completions.

    Give the FILE saved from completions.html, or --reviewer and --verdict.
    """
    from qdora_fast.recipes import review as recipe

    recipe.review(run, file=file, reviewer=reviewer, verdict=verdict, note=note)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@json_option("as the last line, and no table")
def log(runs: tuple[str, ...], as_json: bool) -> None:
    """List the evaluations of RUNS side by side.

    RUNS are run folders, or folders of runs.
    """
    from qdora_fast.recipes import messages
    from qdora_fast.recipes import review as recipe

    evaluations = recipe.list_evaluations(runs)
    if as_json:
        click.echo(console.json_line({"evaluations": evaluations}))
    else:
        messages.evaluations(evaluations)


@cli.command()
@RUN
def report(run: str) -> None:
    """Write a RUN's report.html and model cards again."""
    from qdora_fast.recipes import evaluate as recipe
    from qdora_fast.system.run_folder import RunFolder

    click.echo(recipe.write_report(RunFolder.open(run)))


@cli.command()
@click.argument("config")
@SET
@click.option(
    "--methods",
    default="lora,qlora,dora,qdora",
    show_default=True,
    metavar="A,B",
    help="What to compare; also full, full fine-tuning.",
)
@click.option("--loraplus", default="1,16", show_default=True, metavar="A,B", help="LoRA+ ratios; 1 is off.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Trainings of each arm.")
@click.option("--learning-rates", default="", metavar="A,B", help="Take the best for each arm. Default: the config's.")
@click.option("--full-lr", default="", metavar="A,B", help="The same for full. Default: a tenth of the others.")
@click.option("--target", type=float, help="Held-out loss to reach. Default: where the first arm's median run ends.")
@out_option("runs/NAME-compare")
@runs_code
@json_option()
def compare(
    config: str,
    overrides: tuple[str, ...],
    methods: str,
    loraplus: str,
    seeds: int,
    learning_rates: str,
    full_lr: str,
    target: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare methods: train a CONFIG with each, several seeds.

    All of them train on the same rows. Continues where an earlier comparison stopped.
    """
    from qdora_fast.config import presets
    from qdora_fast.config.loader import load_config
    from qdora_fast.recipes.compare import compare as recipe
    from qdora_fast.recipes.compare.arms import numbers, split

    path = presets.find_config(config)
    record = recipe.compare(
        load_config(path, overrides),
        methods=split(methods),
        ratios=numbers("--loraplus", loraplus),
        seeds=seeds,
        learning_rates=numbers("--learning-rates", learning_rates),
        full_learning_rates=numbers("--full-lr", full_lr),
        target=target,
        name=path.stem,
        out=out,
    )
    if as_json:
        click.echo(console.json_line(record))


@cli.command()
@click.option("--offline", is_flag=True, help="Make no connection to the hub.")
@json_option("and no page")
def doctor(offline: bool, as_json: bool) -> None:
    """Check this machine: GPU, packages, disks, the hub.

    The kernels and the engine are tried, too. Exit code 0: ready.
    """
    from qdora_fast.recipes.doctor.examine import examine

    sys.exit(examine(as_json=as_json, offline=offline))


@cli.command()
@click.option("--schema", is_flag=True, help="Print the JSON schema of a config file, for editors.")
def presets(schema: bool) -> None:
    """List the shipped configs and this machine's choice."""
    from qdora_fast.recipes import messages

    messages.presets(schema=schema)


for command in (export, import_adapter, verify, chat, serve):
    cli.add_command(command)


def main() -> None:
    """Entry point: run the command, turn foreseen errors into one message and an exit code."""
    from qdora_fast.system import distributed
    from qdora_fast.system.child import protect_children
    from qdora_fast.system.errors import ConfigError, QdoraError

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
