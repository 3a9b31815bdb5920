"""The commands about a model's files: `export` writes them, `verify` checks them, `import-adapter` takes them in.

As in training.py a command only checks what was typed and calls one function, which it imports when it is called. A
format that loses something is confirmed here, where there is a person to ask.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qdora_fast.cli.options import RUN, SET, json_option, loads_base, out_option, runs_code
from qdora_fast.system import console


@click.command()
@RUN
@click.option(
    "--to",
    "to",
    default="merged_16bit",
    show_default=True,
    metavar="FORMAT",
    help="merged_16bit, merged_4bit_forced, gguf, adapter, or (for runs without DoRA) lora.",
)
@click.option(
    "--merge-base", type=click.Choice(["auto", "original16", "dequant4"]), help="Default: the run's own setting."
)
@click.option("--llama-cpp", type=click.Path(), metavar="DIR", help="For gguf: your llama.cpp checkout.")
@click.option("--gguf-type", metavar="TYPE", help="For gguf: f16, bf16, q8_0 (default), q4_k_m, ...")
@out_option("RUN/FORMAT")
@click.option("--overwrite", is_flag=True, help="Replace an existing folder.")
@click.option("--yes", is_flag=True, help="Do not ask before a format that loses something.")
@loads_base
@click.option("--require-review", is_flag=True, help="Only if a person has let the completions pass.")
@json_option()
def export(
    run: str,
    to: str,
    merge_base: str | None,
    llama_cpp: str | None,
    gguf_type: str | None,
    out: Path | None,
    overwrite: bool,
    yes: bool,
    require_review: bool,
    as_json: bool,
) -> None:
    """Write a RUN in a format for others, and prove it."""
    from qdora_fast.recipes import review
    from qdora_fast.recipes.export import export as export_run
    from qdora_fast.system.run_folder import RunFolder

    if not yes:
        _confirm(to)
    if require_review:
        review.require_review(RunFolder.open(run))
    options = {"merge_base": merge_base, "llama_cpp": llama_cpp, "gguf_type": gguf_type}
    report = export_run(run, to=to, out=out, overwrite=overwrite, **options)
    if report.get("made") is False:
        click.echo("\n".join(report["commands"]))
    if as_json:
        click.echo(console.json_line(report))


def _confirm(to: str) -> None:
    """Say once what a format gives up, and ask; where nobody can answer, `--yes` is the answer."""
    from qdora_fast.recipes.export import FORMATS
    from qdora_fast.system.errors import RefusedError

    cost = FORMATS[to].cost if to in FORMATS else None
    if cost is None:
        return
    click.echo(f"{cost}.", err=True)
    if not sys.stdin.isatty():
        raise RefusedError(f"--to {to}: add --yes if that is what you want; there is no terminal to ask on")
    if not click.confirm("Write it?", err=True):
        raise RefusedError(f"--to {to}: nothing was written")


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option()
def verify(path: Path, as_json: bool) -> None:
    """Check that the files in PATH are as they were written.

    PATH is a run, a checkpoint, an adapter or an export; its files are hashed again. Exit code 41: some have changed.
    """
    from qdora_fast.recipes import verify as recipe

    parts = []
    for part in recipe.verify(path):
        click.echo(part)
        parts.append(part)
    if as_json:
        click.echo(console.json_line(recipe.summary(parts, path)))
    recipe.require_undamaged(parts, path)


@click.command("import-adapter")
@click.argument("folder")
@click.option("--base", metavar="NAME", help="Hub id or folder of the base. Default: what the adapter names.")
@click.option("--data", metavar="FILE", help="Rows it was not trained on: for the proof of exports, and to evaluate.")
@SET
@runs_code
@json_option()
def import_adapter(folder: str, base: str | None, data: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Make a run of an adapter that was trained elsewhere.

    The adapter in FOLDER is checked first. The run can be exported, talked to and evaluated.
    """
    from qdora_fast.recipes import import_adapter as recipe

    report = recipe.import_adapter(folder, base=base, data=data, overrides=overrides)
    if as_json:
        click.echo(console.json_line(report))
