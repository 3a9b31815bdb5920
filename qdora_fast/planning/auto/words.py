"""What `auto` became, or why nothing fits, in sentences for the user."""

from __future__ import annotations

from dataclasses import replace

from qdora_fast.config import Config
from qdora_fast.planning.auto.kinds import ANYWHERE, COMMON, RowLengths, Settled
from qdora_fast.planning.memory import Sizes, estimate, fits, in_gib, job_of, longest_length, margin
from qdora_fast.planning.memory.fit import STEP

MOST_LEFT_OUT = 0.1
"""Share of the rows that may be too long for what fits."""


def length_words(settled: Settled, rows: RowLengths | None, left_out: int, keeps_all: int) -> list[str]:
    """How long rows may be, and what becomes of longer ones."""
    if "model.max_length" not in settled.asked:
        return []
    config, length = settled.config, settled.config.model.length
    if rows is None or not len(rows.tokens):
        return [f"rows of up to {length:,} tokens, as usual: how long these are is not known here"]
    longest, common = rows.longest, rows.common
    how = f" (guessed from {len(rows.tokens):,} of them, template not counted)" if rows.sampled else ""
    said = [
        f"rows of up to {length:,} tokens: the longest has {longest:,}, {COMMON} % have {common:,} or fewer{how}",
    ]
    if settled.place is ANYWHERE:
        said.append("`train` takes shorter ones where that does not fit")
    if left_out:
        fate = "dropped" if config.data.on_long == "drop" else "cut"
        spared = "all" if not rows.beyond else f"all but {rows.beyond:,}, which the model cannot take"
        keep = (
            f"model.max_length: {keeps_all} keeps {spared}" if length < keeps_all else "the model takes no longer ones"
        )
        share = f"{left_out / rows.total:.1%}"
        them = f"about {share} of the rows" if rows.sampled else f"{left_out:,} of {rows.total:,} rows ({share})"
        said.append(f"{them} are longer and are {fate}; {keep}")
    return said


def batch_words(settled: Settled, before: Config) -> list[str]:
    """How many rows at a time, in training and in answering."""
    train, said = settled.config.train, []
    if settled.place is ANYWHERE:
        return []
    if "train.batch_size" in settled.asked:
        said.append(
            f"batch size {train.micro_batch}, accumulated {train.accumulation} x: an effective batch of "
            f"{train.rows_per_step}"
        )
    answers, asked = settled.config.evaluation.batch_size, before.evaluation.batch_size
    if answers != asked:
        said.append(f"held-out rows are answered {answers} at a time instead of {asked}, which would not fit")
    return said


def refusal(settled: Settled, sizes: Sizes, rows: RowLengths | None, squeezed_out: int) -> str:
    """Why the settings do not fit; "" if they do.

    Args:
        squeezed_out: rows that are too long only because longer ones do not fit.
    """
    config, card = settled.config, settled.place.card
    length, size = config.model.length, config.train.micro_batch
    if fits(settled.estimate, card):
        if rows is None or squeezed_out <= MOST_LEFT_OUT * rows.total:
            return ""
        return (
            f"model.max_length: auto: {squeezed_out:,} of {rows.total:,} rows are too long for "
            f"the {length:,} tokens that fit on {card.name}; --set model.max_length={length} trains without them, "
            "a smaller base or a larger card with them"
        )
    job = job_of(config, sizes, on_gpu=settled.place.on_gpu)
    alone = longest_length(job, card)
    counted = settled.estimate if alone else estimate(replace(job, batch_size=1, length=STEP, answer_batch=0), card)
    needed = f"{in_gib(counted.peak_bytes + margin(card))} are needed, of {in_gib(card.memory)}"
    if alone == 0:
        small = "" if config.adapter.quantized else ", a 4-bit method (qdora, qlora)"
        return (
            f"{config.model.name} does not fit on {card.name}, not even with one row of {STEP} tokens ({needed}); "
            f"take a smaller base{small} or a larger card"
        )
    if size > 1:
        return f"batch size {size} x {length:,} tokens do not fit on {card.name} ({needed}); set train.batch_size: auto"
    return (
        f"rows of {length:,} tokens do not fit on {card.name}, not even one at a time ({needed}); the longest that fit "
        f"are {alone:,}: --set model.max_length={alone}"
    )
