"""What `train.batch_size: auto` and `model.max_length: auto` become: the pair that should train fastest and fits.

The length comes from the rows, the batch size from the memory that is left; the effective batch stays. Both are
decided before a weight is read, by the estimate of memory/. On a GPU the longest real batch is tried afterwards
(probe.py), for an estimate is not a promise.

Length. Long enough for every row, unless the longest hundredth of them would more than double it. Packed rows share a
sequence, so that shorter ones than usual would only make steps smaller: then at least 2,048. Rows that are left out are
counted and reported (sentences.py); where memory would leave out more than a tenth, nothing is chosen at all.

Settings are not changed here: whoever asks puts the numbers into them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from qdora_fast.config import DataSettings, ModelSettings, TrainSettings
from qdora_fast.planning.auto.kinds import Resolved, RowLengths
from qdora_fast.planning.auto.sentences import batch_reasons, length_reasons, refusal
from qdora_fast.planning.cards import Machine
from qdora_fast.planning.memory.architecture import Sizes
from qdora_fast.planning.memory.estimate import estimate
from qdora_fast.planning.memory.fit import STEP, best_fit, longest_length, most_answers
from qdora_fast.planning.memory.job import Job, JobSettings, job_of
from qdora_fast.system import distributed

USUAL, SHORT = 2048, 512
"""Least lengths of packed sequences, and of rows on their own: below 512 Unsloth changes its checkpointing."""
LONGEST = 2**20
"""Tokens of a row where the model does not say what it was made for."""


def asked_for(model: ModelSettings, train: TrainSettings) -> tuple[str, ...]:
    """Names of the settings that are `auto`."""
    length = ("model.max_length",) if model.max_length == "auto" else ()
    return length + (("train.batch_size",) if train.batch_size == "auto" else ())


def measuring_length(model: ModelSettings, sizes: Sizes) -> int:
    """Tokens up to which rows are tokenised to see how long they are: as many as the model can take, unless a length
    is given."""
    return _most(sizes) if model.max_length == "auto" else model.max_length


def resolve_auto(
    model: ModelSettings,
    data: DataSettings,
    settings: JobSettings,
    sizes: Sizes,
    machine: Machine,
    rows: RowLengths | None,
) -> Resolved:
    """The numbers that `auto` becomes.

    Args:
        rows: None where they cannot be measured; the usual length is then taken for theirs.

    Raises:
        ConfigError: a target or block that the model does not have.
    """
    train, card = settings.train, machine.card
    asked = asked_for(model, train)
    packed = train.packing and machine.on_gpu
    share = data.filters.max_fraction if data.on_long == "drop" else 1.0  # of the length, what a row may fill
    wanted, keeps_all = _wanted_length(model, sizes, rows, packed=packed, share=share)
    job = _job(settings, sizes, machine, 1 if train.batch_size == "auto" else train.micro_batch, wanted)
    if "model.max_length" in asked:
        length = min(wanted, longest_length(job, card, job.batch_size)) or wanted
        job = _job(settings, sizes, machine, job.batch_size, length)  # checkpointing follows the length
    if "train.batch_size" in asked:
        usual = None if packed or rows is None else float(rows.tokens.mean())
        own = replace(job, gradient_accumulation=max(1, train.rows_per_step // distributed.world_size()))
        best = best_fit(own, card, usual=usual)
        job = _job(settings, sizes, machine, best.batch_size if best and best.length == job.length else 1, job.length)
    answers = most_answers(job, card)
    if asked and 0 < answers < job.answer_batch:  # so many at a time give the same answers
        job = replace(job, answer_batch=answers)
    resolved = Resolved(asked, machine, estimate(job, card))
    left_out = 0 if rows is None else rows.beyond + int((rows.tokens > int(share * job.length)).sum())
    return replace(
        resolved,
        reasons=(
            *length_reasons(resolved, data, rows, left_out, keeps_all),
            *batch_reasons(resolved, settings.answer_batch),
        ),
        refusal=refusal(resolved, model.name, rows, left_out if job.length < wanted else 0),
    )


def _wanted_length(
    model: ModelSettings, sizes: Sizes, rows: RowLengths | None, *, packed: bool, share: float
) -> tuple[int, int]:
    """The length to ask for, and the one that keeps every row."""
    if model.max_length != "auto":
        return model.max_length, model.max_length
    most = _most(sizes)
    least = USUAL if packed or rows is None else SHORT
    if rows is None or not len(rows.tokens):
        return min(least, most), min(least, most)
    every = _length_for(rows.longest, share)
    common = _length_for(rows.common, share)
    wanted = every if every <= 2 * common else common
    return min(max(wanted, least), most), min(max(every, least), most)


def _length_for(tokens: int, share: float) -> int:
    """The least length, a multiple of 64, of which `share` holds so many tokens."""
    length = STEP * math.ceil(tokens / share / STEP)
    return length if int(share * length) >= tokens else length + STEP


def _most(sizes: Sizes) -> int:
    return min(sizes.longest or LONGEST, LONGEST)


def _job(settings: JobSettings, sizes: Sizes, machine: Machine, size: int, length: int) -> Job:
    """The run with this batch size, if that is `auto`, and this length."""
    if settings.train.batch_size == "auto":
        settings = replace(settings, train=settings.train.in_pieces_of(size))
    return job_of(settings, sizes, length=length, on_gpu=machine.on_gpu)
