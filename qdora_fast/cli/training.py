"""The commands around a training: `train`, `evaluate`, `review`, `report`, `log`, `compare`.

A command only checks what was typed and calls one function, which it imports when it is called: `--help` and a wrong
config then answer in milliseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from qdora_fast.cli.options import FILE, RUN, SET, json_option, out_option, runs_code
from qdora_fast.system import console


@click.command()
@click.argument("config", required=False)
@SET
@click.option("--resume", is_flag=True, help="Continue from the newest complete checkpoint of this run.")
@click.option("--auto-resume", is_flag=True, help="Resume if the newest run of this name was stopped; else start.")
@click.option("--dry-run", is_flag=True, help="Check settings, rows, masks and targets; read no weights.")
@click.option("--watch", "page", is_flag=True, help="Serve the run's page on this machine while it trains.")
@click.option("--reviewed", type=FILE, help="A person's marks on the sample of these rows, for the evaluation log.")
@runs_code
def train(
    config: str | None,
    overrides: tuple[str, ...],
    resume: bool,
    auto_resume: bool,
    dry_run: bool,
    page: bool,
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
        recipe.run_recipe(settings, name=path.stem, resume=how, reviewed=reviewed, watch=page)


@click.command()
@RUN
@SET
@click.option("--mmlu", is_flag=True, help="Also ask MMLU, whatever the run's settings say.")
@click.option("--tasks", metavar="A,B", help="Also ask these benchmarks of the harness, such as gsm8k,hellaswag.")
@click.option("--allow-regression", is_flag=True, help="Report a fallen MMLU instead of failing.")
@click.option("--data", metavar="FILE", help="Score these rows instead, with any model that `predict` takes.")
@click.option("--out", type=click.Path(path_type=Path), help="With --data: a file for the answers, by its ending.")
@click.option("--model", "server_model", metavar="NAME", help="With --data: which model of a server answers.")
@click.option("--overwrite", is_flag=True, help="With --out: replace the file.")
@runs_code
@json_option()
def evaluate(
    run: str,
    overrides: tuple[str, ...],
    mmlu: bool,
    tasks: str | None,
    allow_regression: bool,
    data: str | None,
    as_json: bool,
    **of_file: Any,
) -> None:
    """Compare a RUN with its base on held-out rows.

    Also writes completions to read, asks MMLU if that is switched on, and adds to the run's evaluation log. With
    --data, RUN may be any model or server that `predict` takes, the rows are those of the file, and no run is written.
    """
    evaluation: dict[str, Any]
    if data is None:
        from qdora_fast.recipes import evaluate as recipe

        if any(of_file.values()):
            raise click.UsageError("--out, --model and --overwrite go with --data FILE")
        changed = [*overrides, *(["evaluation.mmlu.enabled=true"] if mmlu else [])]
        if tasks is not None:
            changed.append(f"evaluation.benchmarks={list(filter(None, map(str.strip, tasks.split(','))))}")
        evaluation = recipe.evaluate(run, overrides=changed, allow_regression=allow_regression)
    else:
        from qdora_fast.recipes.score.score import evaluate_file

        if mmlu or tasks is not None or allow_regression:
            raise click.UsageError("--mmlu, --tasks and --allow-regression do not go with --data FILE")
        evaluation = evaluate_file(run, data, overrides=overrides, **of_file)
    if as_json:
        click.echo(console.json_line(evaluation))


@click.command()
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


@click.command()
@RUN
def report(run: str) -> None:
    """Write a RUN's report.html and model cards again."""
    from qdora_fast.recipes import evaluate as recipe
    from qdora_fast.system.run_folder import RunFolder

    click.echo(recipe.write_report(RunFolder.open(run)))


@click.command()
@RUN
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free one.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--once", is_flag=True, help="Print in one line how far the run is, and serve nothing.")
def watch(run: str, port: int, no_browser: bool, once: bool) -> None:
    """Show a RUN in a browser while it trains.

    Serves its report page on this machine until Ctrl-C, drawn anew from the run's files as long as it is unfinished.
    """
    from qdora_fast.recipes import watch as recipe

    if once:
        click.echo(recipe.state_of(run))
    else:
        recipe.watch(run, port=port, browser=not no_browser)


@click.command()
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


@click.command()
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
