"""Which method, rank, rate and length of training suit a run: the field's rules of thumb, each with its reason.

A pure function of settings and a few facts. Nothing here is applied: it is printed, and the user decides. Rules of
thumb are no law; the held-out comparison of a finished run (`evaluate`, `compare`) is better evidence than any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qdora_fast.config import AdapterSettings, DataSettings, ModelSettings, TrainSettings

FEW_ROWS = 500
MANY_ROWS = 20_000
TIME_BOUND_ROWS = 50_000
FEW_STEPS = 30
LARGE_MODEL = 30e9
"""Parameters from which on lower learning rates are the custom."""


@dataclass(frozen=True)
class Facts:
    """What is known about a run before it starts; None: unknown."""

    rows: int | None = None
    """Training rows."""
    steps: int | None = None
    """Optimizer steps of the whole run."""
    too_long: float | None = None
    """Share of rows longer than `model.max_length`."""
    fits: bool | None = None
    dense_fits: bool | None = None
    """A 16-bit base would fit as well."""
    smaller: tuple[int, int] | None = None
    """Batch size and accumulation that fit, where the configured ones do not."""
    longest: int | None = None
    """Tokens of the longest rows that fit at batch size 1."""
    parameters: int | None = None
    """Of the base."""


@dataclass(frozen=True)
class Advice:
    """One suggestion."""

    change: str
    """What to pass to `--set`; empty: nothing to change, or no single setting."""
    why: str
    saves_memory: bool = False
    """Makes a run fit that does not."""

    def __str__(self) -> str:
        return f"--set {self.change}  {self.why}" if self.change else self.why


def advise(
    facts: Facts, model: ModelSettings, adapter: AdapterSettings, data: DataSettings, train: TrainSettings
) -> list[Advice]:
    """What to consider, the most important first; nothing for the demo, which is set as it is on purpose."""
    if model.name == "demo":
        return []
    return [
        *_memory(facts, model.length, adapter, data, train),
        *_method(facts, adapter, train),
        *_size(facts, adapter),
        *_pace(facts, data, train),
    ]


def _memory(
    facts: Facts, length: int, adapter: AdapterSettings, data: DataSettings, train: TrainSettings
) -> Iterator[Advice]:
    """Memory is short: quantise first, then smaller batches, then shorter rows, then another base."""
    if facts.fits is False:
        savings = _savings(facts, length, adapter, train)
        steps = [Advice(change, why, saves_memory=True) for change, why in savings]
        yield from steps or [Advice("", "nothing here saves enough: take a smaller base, or a larger card")]
    if facts.too_long is not None and facts.too_long >= 0.01:
        fate = "dropped" if data.on_long == "drop" else "cut"
        yield Advice(
            "",
            f"about {facts.too_long:.0%} of the rows are longer than model.max_length {length} and would be {fate}",
        )


def _savings(facts: Facts, length: int, adapter: AdapterSettings, train: TrainSettings) -> Iterator[tuple[str, str]]:
    if not adapter.quantized:
        method = "qdora" if adapter.decomposed else "qlora"
        yield f"adapter.method={method}", "memory is short, and a 4-bit base takes a quarter of a 16-bit one"
    if train.gradient_checkpointing in ("off", "torch"):
        yield "train.gradient_checkpointing=unsloth", "keeps one input per block, and that on the host"
    if facts.smaller:
        batch, accumulation = facts.smaller
        change = f"train.batch_size={batch} --set train.gradient_accumulation={accumulation}"
        yield change, "the same effective batch in smaller pieces, and it fits"
    elif facts.longest and facts.longest < length:
        change = f"model.max_length={facts.longest} --set train.batch_size=1"
        yield change, "the longest rows that fit at batch size 1"


def _method(facts: Facts, adapter: AdapterSettings, train: TrainSettings) -> Iterator[Advice]:
    """Quality short: decompose. Both: QDoRA. Time short and rows plenty: plain LoRA at a higher rank."""
    if facts.rows is not None and facts.rows > TIME_BOUND_ROWS and adapter.decomposed:
        plain = "qlora" if adapter.quantized else "lora"
        yield Advice(
            f"adapter.method={plain} --set adapter.r={max(32, 2 * adapter.r)}",
            f"with over {TIME_BOUND_ROWS:,} rows, if time is what is short: more rank makes up for the decomposition",
        )
    elif not adapter.decomposed:
        better = "qdora" if adapter.quantized else "dora"
        yield Advice(
            f"adapter.method={better}", "if quality is what is short: DoRA learns direction and length of rows apart"
        )
    if adapter.quantized and facts.dense_fits:
        dense = "dora" if adapter.decomposed else "lora"
        yield Advice(f"adapter.method={dense}", "a 16-bit base fits here too, and has no quantisation error")
    if train.loraplus_ratio is None:
        yield Advice(
            "train.loraplus_ratio=16", "if speed is what is short: LoRA+ often needs fewer steps to the same loss"
        )


def _size(facts: Facts, adapter: AdapterSettings) -> Iterator[Advice]:
    """Rank and dropout by the number of rows."""
    rows = facts.rows
    if rows is None:
        return
    if rows < FEW_ROWS and adapter.r > 8:
        yield Advice("adapter.r=8", f"under {FEW_ROWS} rows a larger rank learns them by heart")
    elif FEW_ROWS <= rows < MANY_ROWS and adapter.r < 16:
        yield Advice("adapter.r=16", f"{rows:,} rows hold more than rank {adapter.r} can take")
    elif rows >= MANY_ROWS and adapter.r < 32:
        yield Advice("adapter.r=32", f"{rows:,} rows, if they are diverse, can use a larger rank")
    if rows < FEW_ROWS and adapter.dropout == 0:
        yield Advice("adapter.dropout=0.05", f"0.05 to 0.1 holds back learning {rows:,} rows by heart; a little slower")
    if rows >= 10 * FEW_ROWS and adapter.dropout > 0:
        yield Advice("adapter.dropout=0", f"{rows:,} rows need no dropout, and the fastest form of the engine needs 0")


def _pace(facts: Facts, data: DataSettings, train: TrainSettings) -> Iterator[Advice]:
    """Epochs, learning rate and number of steps."""
    rows = facts.rows
    if train.max_steps is None and rows is not None:
        if rows < FEW_ROWS and train.epochs < 3:
            yield Advice("train.epochs=3", "few rows need to be seen more often; watch the held-out loss")
        elif rows > TIME_BOUND_ROWS and train.epochs > 1:
            yield Advice("train.epochs=1", f"{rows:,} rows seldom gain from a second pass")
    few = rows is not None and rows < FEW_ROWS
    if few and not train.early_stopping and data.held_out > 0:
        yield Advice("train.early_stopping=2", "small sets overfit early; keeps the best checkpoint")
    large = facts.parameters is not None and facts.parameters >= LARGE_MODEL
    if (few or large) and train.learning_rate > 1e-4:
        yield Advice("train.learning_rate=1e-4", "small sets and large models do better with half the usual 2e-4")
    if facts.steps is None or facts.steps >= FEW_STEPS:
        return
    alone = (
        None if rows is None or not train.packing else rows * train.epochs / (train.micro_batch * train.accumulation)
    )
    if alone is not None and alone >= 2 * facts.steps:
        yield Advice(
            "train.packing=false",
            f"packed, the rows make {facts.steps} optimizer steps, which are few; one row a place makes {alone:.0f}",
        )
    elif train.accumulation > 1:
        fewer = max(1, train.accumulation // 4)
        counted = train.gradient_accumulation is None
        yield Advice(
            f"train.effective_batch={fewer * train.micro_batch}" if counted else f"train.gradient_accumulation={fewer}",
            f"{facts.steps} optimizer steps are few; a smaller effective batch makes more of the same rows",
        )
