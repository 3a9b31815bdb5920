"""The commands that write, check or take in a trained model. As in main.py, each calls one function."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qdora_fast.cli.options import SET, loads_base, runs_code
from qdora_fast.system import console


@click.command()
@click.argument("run")
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
@click.option("--out", type=click.Path(), help="Folder to write; default: RUN/FORMAT.")
@click.option("--overwrite", is_flag=True, help="Replace an existing folder.")
@click.option("--yes", is_flag=True, help="Do not ask before a format that loses something.")
@loads_base
@click.option("--require-review", is_flag=True, help="Only if a person has let the completions pass.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def export(
    run: str,
    to: str,
    merge_base: str | None,
    llama_cpp: str | None,
    gguf_type: str | None,
    out: str | None,
    overwrite: bool,
    yes: bool,
    require_review: bool,
    as_json: bool,
) -> None:
    """Write a trained RUN for others to load, and prove it."""
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def verify(path: Path, as_json: bool) -> None:
    """Hash a run, checkpoint, adapter or export again: is every file as it was written? Exit code 41: no."""
    from qdora_fast.recipes import verify as verifying

    parts = []
    for part in verifying.verify(path):
        click.echo(part)
        parts.append(part)
    if as_json:
        whole = not any(part.problems for part in parts)
        click.echo(console.json_line({"path": str(path), "whole": whole, "parts": [part.as_dict() for part in parts]}))
    verifying.require_whole(parts, path)


@click.command("import-adapter")
@click.argument("folder")
@click.option("--base", metavar="NAME", help="Hub id or folder of the base. Default: what the adapter names.")
@click.option("--data", metavar="FILE", help="Rows it was not trained on: for the proof of exports, and to evaluate.")
@SET
@runs_code
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def import_adapter(folder: str, base: str | None, data: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check an adapter from elsewhere (FOLDER) and make a run of it, for export, chat and evaluate."""
    from qdora_fast.recipes import import_adapter as recipe

    report = recipe.import_adapter(folder, base=base, data=data, overrides=overrides)
    if as_json:
        click.echo(console.json_line(report))
