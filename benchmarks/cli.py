"""`python -m benchmarks engine|gpu|data|export|real|peft-tests`, which `make bench*` call. Each calls one function.

The last line of each is one JSON object; where a gate is red no speed is told and the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from qdora_fast.system import console
from qdora_fast.system.errors import QdoraError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Measure qdora_fast against what people could pick instead: correctness first, then speed and memory."""


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
def engine(full: bool, record: str | None, **asked: object) -> None:
    """Measure the fused layers against PEFT's on this machine: correctness first, then speed and memory."""
    from benchmarks.engine.session import run_benchmark
    from benchmarks.options import Options

    options = (Options().full() if full else Options()).changed(**asked)
    figures = run_benchmark(options, command=["python", "-m", "benchmarks", *sys.argv[1:]])
    _end(figures, record)


@cli.command()
@click.option("--minutes", type=click.FloatRange(1), help="Wall clock to stay within.")
@click.option("--layers", type=click.IntRange(1), help="Decoder layers of the random Llama.")
@click.option("--steps", type=click.IntRange(3), help="Measured steps.")
@click.option("--arm", "arms", multiple=True, help="Compare only these; repeatable.")
@click.option("--cap-gib", type=click.FloatRange(1), help="Stand in for a smaller card.")
@click.option("--record", metavar="NAME", help="Keep the figures, for BENCHMARKS.md.")
def gpu(record: str | None, **asked: object) -> None:
    """Train a random Llama-3.1-8B on the GPU: Unsloth's own arms beside ours, each in a fresh process."""
    from benchmarks.gpu.gpu import run_gpu_benchmark
    from benchmarks.options import GpuOptions

    figures = run_gpu_benchmark(GpuOptions().changed(**asked), command=["python", "-m", "benchmarks", *sys.argv[1:]])
    _end(figures, record)


@cli.command()
@click.option("--rows", type=click.IntRange(1_000), help="Lines of the planted file.")
@click.option(
    "--from",
    "seeds",
    multiple=True,
    type=click.Path(exists=True),
    help="Real rows to make it of, a file or folder; repeatable. Default: the demo's sentences.",
)
@click.option("--baseline", type=click.Choice(["datasketch", "none"]), help="What to measure beside it.")
@click.option("--memory-rows", type=click.IntRange(0), help="Rows of the smallest set for memory; 0: none.")
@click.option("--workers", type=click.IntRange(1), help="Processes that judge rows.")
@click.option("--record", metavar="NAME", help="Keep the figures, for BENCHMARKS.md.")
def data(record: str | None, **asked: object) -> None:
    """Prepare rows with planted duplicates and faults: what is found, then speed and memory."""
    from benchmarks.data.data_bench import run_data_benchmark
    from benchmarks.options import DataOptions

    figures = run_data_benchmark(DataOptions().changed(**asked), command=["python", "-m", "benchmarks", *sys.argv[1:]])
    _end(figures, record if figures["gate"]["passed"] else None)


@cli.command()
@click.option("--case", "cases", multiple=True, metavar="CASE", help="demo, light, wide or large; repeatable.")
@click.option("--shards", type=click.IntRange(2), help="Files of the large checkpoint, 0.9 GiB each.")
@click.option("--workers", multiple=True, type=click.IntRange(1), help="Shards written at a time; repeatable.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), help="Where 12 GB may lie meanwhile.")
@click.option("--record", metavar="NAME", help="Keep the figures, for BENCHMARKS.md.")
def export(record: str | None, **asked: object) -> None:
    """Export tuned runs in all merged formats: what each costs and keeps, and what must fail."""
    from benchmarks.export.export_bench import run_export_benchmark
    from benchmarks.options import ExportOptions

    options = ExportOptions().changed(**asked)
    _end(run_export_benchmark(options, command=["python", "-m", "benchmarks", *sys.argv[1:]]), record)


@cli.command()
@click.option(
    "--full", is_flag=True, help="All exports, chat, serve, methods over seeds, step time, MMLU's form; hours."
)
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder with the model.")
@click.option("--steps", type=click.IntRange(1), default=30, show_default=True, help="Optimizer steps, of 8 rows.")
@click.option("--rows", type=click.IntRange(40), default=400, show_default=True, help="Rows, those held out included.")
@click.option("--questions", type=click.IntRange(4), default=48, show_default=True, help="Held-out rows to answer.")
@click.option(
    "--llama-cpp", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A checkout, for GGUF."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/real"),
    show_default=True,
    help="Where all of it lies; a session that was stopped goes on there.",
)
@click.option("--record", metavar="NAME", help="Keep the figures, for BENCHMARKS.md.")
def real(record: str | None, folder: Path, **asked: Any) -> None:
    """Tune a real pretrained model, SmolLM2-135M-Instruct, and use what comes of it."""
    from benchmarks.real.session import run_real

    figures = run_real(folder, command=["python", "-m", "benchmarks", *sys.argv[1:]], **asked)
    _end(figures, record if figures["gate"]["passed"] else None)


@cli.command("peft-tests")
@click.option(
    "--checkout",
    required=True,
    type=click.Path(exists=True, file_okay=False),
    help="PEFT's source with its tests, of the installed version.",
)
@click.option("--folder", type=click.Path(file_okay=False), help="Keep results here; the same run goes on from them.")
@click.option("--file", "files", multiple=True, metavar="NAME", help="A test file without .py; repeatable.")
@click.option("-k", "select", metavar="EXPRESSION", help="As pytest's -k. Default: LoRA and its variants.")
@click.option("--limit", type=click.IntRange(1), help="Tests at most.")
@click.option("--record", metavar="NAME", help="Keep the counts, for BENCHMARKS.md.")
def peft_tests(checkout: str, record: str | None, **asked: object) -> None:
    """Run PEFT's own tests plain and with every model fused: counts, and tests that end otherwise.

    Get the tests with `pip download --no-binary :all: --no-deps peft==VERSION`, or clone the tag. They need pytest,
    scipy and the packages of this project; diffusers is stood in for. Nothing is fetched.
    """
    from benchmarks.options import PeftTestOptions
    from benchmarks.peft_tests.suite import run_peft_tests

    options = PeftTestOptions(checkout).changed(**asked)
    _end(run_peft_tests(options, command=["python", "-m", "benchmarks", *sys.argv[1:]]), record)


def _end(figures: dict[str, Any], record: str | None) -> NoReturn:
    """Keep the figures under the name `record`, print them, and leave with the gate's exit code."""
    from benchmarks import records

    if record:
        records.keep(record, figures)
    click.echo(console.json_line(figures))
    sys.exit(0 if figures["gate"]["passed"] else 1)


def main() -> None:
    """Entry point: a foreseen error is one message and its exit code."""
    try:
        cli()
    except QdoraError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
