"""What `auto` became, or why nothing fits, in sentences for the user."""

from __future__ import annotations

from dataclasses import replace

from qdora_fast.config import DataSettings
from qdora_fast.planning.auto.kinds import COMMON, Resolved, RowLengths
from qdora_fast.planning.cards import ANY_MACHINE
from qdora_fast.planning.memory.estimate import estimate, in_gib
from qdora_fast.planning.memory.fit import STEP, fits, longest_length, margin

MOST_LEFT_OUT = 0.1
"""Share of the rows that may be too long for what fits."""


def length_reasons(
    resolved: Resolved, data: DataSettings, rows: RowLengths | None, left_out: int, keeps_all: int
) -> list[str]:
    """How long rows may be, and what becomes of longer ones.

    Args:
        left_out: rows that are too long.
        keeps_all: the length that would keep every row.
    """
    if "model.max_length" not in resolved.asked:
        return []
    length = resolved.job.length
    if rows is None or not len(rows.tokens):
        return [f"rows of up to {length:,} tokens, as usual: how long these are is not known here"]
    longest, common = rows.longest, rows.common
    how = f" (guessed from {len(rows.tokens):,} of them, template not counted)" if rows.sampled else ""
    reasons = [
        f"rows of up to {length:,} tokens: the longest has {longest:,}, {COMMON} % have {common:,} or fewer{how}",
    ]
    if resolved.machine is ANY_MACHINE:
        reasons.append("`train` takes shorter ones where that does not fit")
    if left_out:
        fate = "dropped" if data.on_long == "drop" else "cut"
        spared = "all" if not rows.beyond else f"all but {rows.beyond:,}, which the model cannot take"
        keep = (
            f"model.max_length: {keeps_all} keeps {spared}" if length < keeps_all else "the model takes no longer ones"
        )
        share = f"{left_out / rows.total:.1%}"
        them = f"about {share} of the rows" if rows.sampled else f"{left_out:,} of {rows.total:,} rows ({share})"
        reasons.append(f"{them} are longer and are {fate}; {keep}")
    return reasons


def batch_reasons(resolved: Resolved, answers_asked: int) -> list[str]:
    """How many rows at a time, in training and in answering.

    Args:
        answers_asked: held-out rows that the settings would answer at a time.
    """
    if resolved.machine is ANY_MACHINE:
        return []
    job, reasons = resolved.job, []
    if "train.batch_size" in resolved.asked:
        reasons.append(
            f"batch size {job.batch_size}, accumulated {job.gradient_accumulation} x: an effective batch of "
            f"{job.effective_batch}"
        )
    if job.answer_batch != answers_asked:
        reasons.append(
            f"held-out rows are answered {job.answer_batch} at a time instead of {answers_asked}, which would not fit"
        )
    return reasons


def refusal(resolved: Resolved, base: str, rows: RowLengths | None, squeezed_out: int) -> str:
    """Why the settings do not fit; "" if they do.

    Args:
        base: its name.
        squeezed_out: rows that are too long only because longer ones do not fit.
    """
    job, card = resolved.job, resolved.machine.card
    length, size = job.length, job.batch_size
    if fits(resolved.estimate, card):
        if rows is None or squeezed_out <= MOST_LEFT_OUT * rows.total:
            return ""
        return (
            f"model.max_length: auto: {squeezed_out:,} of {rows.total:,} rows are too long for "
            f"the {length:,} tokens that fit on {card.name}; --set model.max_length={length} trains without them, "
            "a smaller base or a larger card with them"
        )
    alone = longest_length(job, card)
    need = resolved.estimate if alone else estimate(replace(job, batch_size=1, length=STEP, answer_batch=0), card)
    needed = f"{in_gib(need.peak_bytes + margin(card))} are needed, of {in_gib(card.memory)}"
    if alone == 0:
        small = "" if job.quantized else ", a 4-bit method (qdora, qlora)"
        return (
            f"{base} does not fit on {card.name}, not even with one row of {STEP} tokens ({needed}); "
            f"take a smaller base{small} or a larger card"
        )
    if size > 1:
        return f"batch size {size} x {length:,} tokens do not fit on {card.name} ({needed}); set train.batch_size: auto"
    return (
        f"rows of {length:,} tokens do not fit on {card.name}, not even one at a time ({needed}); the longest that fit "
        f"are {alone:,}: --set model.max_length={alone}"
    )
