"""The command line: what a user types, and nothing else. Each command calls one function.

Imports are inside the commands, so that `--help` and a wrong config answer in milliseconds.
A user's mistake ends in one message and the exit code of its kind (errors.py); `--debug`
before the command shows the traceback.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

import qdora_fast

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_SET = click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change one setting; repeatable.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(qdora_fast.__version__, prog_name="qdora-fast")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """QDoRA fine-tuning on one 24 GB card, with an export proven to be the model that was trained."""


@cli.command()
@click.argument("config", required=False)
@_SET
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@click.option("--dry-run", is_flag=True, help="Check settings, rows, masks and targets; read no weights.")
@click.option("--reviewed", type=_FILE, help="A person's marks on the sample of these rows, for the evaluation log.")
def train(config: str | None, overrides: tuple[str, ...], resume: bool, dry_run: bool, reviewed: Path | None) -> None:
    """Fine-tune, compare with the base, export and prove.

    CONFIG is a YAML file or the name of a preset; without it the hardware decides.
    """
    from qdora_fast import hardware, presets, show
    from qdora_fast.config_file import load_config

    path, why = (presets.find_config(config), None) if config else presets.choose_preset(hardware.gpus())
    settings = load_config(path, overrides)
    console = show.new_console()
    show.chosen(console, path, why)
    from qdora_fast import run

    if dry_run:
        run.dry_run(settings, console=console)
    else:
        run.run_recipe(settings, name=path.stem, resume=resume, console=console, reviewed=reviewed)


@cli.command()
@click.argument("target", metavar="CONFIG|RUN")
@_SET
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; default: runs/NAME-data.")
@click.option("--reviewed", type=_FILE, help="Record a person's marks on the sample, saved from review.html.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def data(target: str, overrides: tuple[str, ...], out: Path | None, reviewed: Path | None, as_json: bool) -> None:
    """Prepare the rows of a CONFIG: filter, deduplicate, split, report. With a RUN, record a review of its rows.

    No model is loaded, unless data.quality is switched on.
    """
    from qdora_fast import preparing, presets, show
    from qdora_fast.config_file import load_config
    from qdora_fast.run_folder import RunFolder

    console = show.new_console()
    if reviewed and (Path(target) / "config.yaml").is_file():
        report = preparing.review_run(RunFolder.open(target), reviewed, console)
    else:
        path = presets.find_config(target)
        settings = load_config(path, overrides)
        report = preparing.run_data(settings, name=path.stem, out=out, reviewed=reviewed, console=console)
    if as_json:
        click.echo(show.json_line(report))


@cli.command()
@click.argument("run")
@click.option("--to", "to", default="merged_16bit", show_default=True, metavar="FORMAT",
              help="merged_16bit, adapter, or (for runs without DoRA) lora.")  # fmt: skip
@click.option("--merge-base", type=click.Choice(["original16", "dequant4"]), help="Default: the run's own setting.")
@click.option("--out", type=click.Path(), help="Folder to write; default: RUN/FORMAT.")
@click.option("--overwrite", is_flag=True, help="Replace an existing folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def export(run: str, to: str, merge_base: str | None, out: str | None, overwrite: bool, as_json: bool) -> None:
    """Write a trained RUN for others to load, and prove it."""
    from qdora_fast import show
    from qdora_fast.export import export as export_run

    report = export_run(run, to=to, merge_base=merge_base, out=out, overwrite=overwrite, console=show.new_console())
    if as_json:
        click.echo(show.json_line(report))


@cli.command()
@click.argument("run")
@click.option("--once", metavar="TEXT", help="Answer one message and leave.")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(1))
def chat(run: str, once: str | None, max_new_tokens: int) -> None:
    """Talk to a RUN or to the folder of a merged model."""
    from qdora_fast.chat import chat as start

    start(run, once=once, max_new_tokens=max_new_tokens)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def doctor(as_json: bool) -> None:
    """Check this machine: packages, GPU, 4-bit kernels, disk."""
    from qdora_fast.doctor import examine

    sys.exit(examine(as_json=as_json))


@cli.command()
@click.option(
    "--case", type=click.Choice(["linear", "model", "all"]), help="One adapted layer, a 4-layer model, or both."
)
@click.option("--widths", multiple=True, type=click.IntRange(64), help="Width of the layer; repeatable.")
@click.option("--tokens", multiple=True, type=click.IntRange(1), help="Tokens of a micro-batch; repeatable.")
@click.option("--grad-accum", multiple=True, type=click.IntRange(1), help="Micro-batches a step; repeatable.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["fp32", "bf16", "bf16-pure"]), help="Repeatable.")
@click.option("--arm", "arms", multiple=True, help="Compare only these; repeatable.")
@click.option("--rounds", type=click.IntRange(3), help="Measured rounds.")
@click.option(
    "--impl", type=click.Choice(["auto", "triton", "torch", "reference"]), help="The engine's implementation."
)
@click.option("--full", is_flag=True, help="Every width, length and accumulation; hours.")
@click.option("--record", metavar="NAME", help="Keep the figures, for BENCHMARKS.md.")
def bench(full: bool, record: str | None, **asked: object) -> None:
    """Measure the fused layers against PEFT's on this machine: correctness first, then speed and memory."""
    from qdora_fast import show
    from qdora_fast.benchmark import Options, records, run_benchmark

    options = (Options().full() if full else Options()).changed(**asked)
    figures = run_benchmark(options, console=show.new_console(), command=sys.argv[1:])
    if record:
        records.keep(record, figures)
    click.echo(show.json_line(figures))
    sys.exit(0 if figures["gate"]["passed"] else 1)


@cli.command()
@click.option("--minutes", type=click.FloatRange(1), help="Wall clock to stay within.")
@click.option("--layers", type=click.IntRange(1), help="Decoder layers of the random Llama.")
@click.option("--steps", type=click.IntRange(3), help="Measured steps.")
@click.option("--arm", "arms", multiple=True, help="Compare only these; repeatable.")
@click.option("--cap-gib", type=click.FloatRange(1), help="Stand in for a smaller card.")
@click.option("--record", metavar="NAME", help="Keep the figures, for BENCHMARKS.md.")
def bench_gpu(record: str | None, **asked: object) -> None:
    """Train a random Llama-3.1-8B on the GPU: Unsloth's own arms beside ours, each in a fresh process."""
    from qdora_fast import show
    from qdora_fast.benchmark import GpuOptions, records, run_gpu_benchmark

    figures = run_gpu_benchmark(GpuOptions().changed(**asked), console=show.new_console(), command=sys.argv[1:])
    if record:
        records.keep(record, figures)
    click.echo(show.json_line(figures))
    sys.exit(0 if figures["gate"]["passed"] else 1)


@cli.command()
@click.option("--schema", is_flag=True, help="Print the JSON schema of a config file, for editors.")
def presets(schema: bool) -> None:
    """List the shipped configs and this machine's choice."""
    from qdora_fast import show

    show.presets(show.new_console(), schema=schema)


def main() -> None:
    """Entry point: run the command, turn foreseen errors into one message and an exit code."""
    from qdora_fast.errors import QdoraError

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
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)
