"""What `train.batch_size: auto` and `model.max_length: auto` become: the pair that should train fastest and fits.

The length comes from the rows, the batch size from the memory that is left; the effective batch stays. Both are
decided before a weight is read, by the estimate of memory/. On a GPU the longest real batch is tried afterwards
(probe.py), for an estimate is not a promise.

Length. Long enough for every row, unless the longest hundredth of them would more than double it. Packed rows share a
sequence, so that shorter ones than usual would only make steps smaller: then at least 2,048. Rows that are left out are
counted and said (words.py); where memory would leave out more than a tenth, nothing is chosen at all.
"""

from __future__ import annotations

import math
from dataclasses import replace

from qdora_fast.config import Config
from qdora_fast.planning.auto.kinds import Place, RowLengths, Settled
from qdora_fast.planning.auto.words import batch_words, length_words
from qdora_fast.planning.auto.words import refusal as refused
from qdora_fast.planning.memory import Card, Job, Sizes, best_fit, estimate, job_of, longest_length, most_answers
from qdora_fast.planning.memory.fit import STEP
from qdora_fast.system import distributed, hardware

USUAL, SHORT = 2048, 512
"""Least lengths of packed sequences, and of rows on their own: below 512 Unsloth changes its checkpointing."""


def asked_for(config: Config) -> tuple[str, ...]:
    """The settings that are `auto`."""
    length = ("model.max_length",) if config.model.max_length == "auto" else ()
    return length + (("train.batch_size",) if config.train.batch_size == "auto" else ())


def this_machine(config: Config) -> Place:
    """Where training would happen here: the GPU, within `train.vram`; else the host's free memory."""
    found = hardware.gpus()
    if not found:
        import psutil

        free = int(psutil.virtual_memory().available) // distributed.world_size()
        return Place(Card("this machine's free memory", free), False, "no GPU here")
    cap = config.train.vram
    if cap is not None and cap < found[0].memory_gib:
        return Place(Card.of_gib(cap, found[0].name), True, "capped by train.vram")
    return Place(Card.of_gib(found[0].memory_gib, found[0].name), True, "this machine's")


def settle(config: Config, sizes: Sizes, place: Place, rows: RowLengths | None) -> Settled:
    """Replace `auto` by numbers.

    Args:
        rows: None where they cannot be measured; the usual length is then taken for theirs.

    Raises:
        ConfigError: a target or block that the model does not have.
    """
    asked = asked_for(config)
    wanted, keeps_all = _needed(config, sizes, place, rows)
    job = _job(config, sizes, place, 1 if config.train.batch_size == "auto" else config.train.micro_batch, wanted)
    if "model.max_length" in asked:
        length = min(wanted, longest_length(job, place.card, job.batch_size)) or wanted
        job = _job(config, sizes, place, job.batch_size, length)
    if "train.batch_size" in asked:
        usual = None if _packed(config, place) or rows is None else float(rows.tokens.mean())
        own = replace(job, gradient_accumulation=max(1, config.train.rows_per_step // distributed.world_size()))
        found = best_fit(own, place.card, usual=usual)
        job = _job(config, sizes, place, found.batch_size if found and found.length == job.length else 1, job.length)
    chosen = _with_numbers(config, job.batch_size, job.length)
    answers = most_answers(job, place.card)
    if asked and 0 < answers < job.answer_batch:  # so many at a time give the same answers
        job = replace(job, answer_batch=answers)
        chosen = chosen.model_copy(update={"evaluation": chosen.evaluation.model_copy(update={"batch_size": answers})})
    settled = Settled(chosen, asked, place, estimate(job, place.card), ())
    left_out = _left_out(chosen, rows)
    said = [*length_words(settled, rows, left_out, keeps_all), *batch_words(settled, config)]
    refusal = refused(settled, sizes, rows, left_out if job.length < wanted else 0)
    return replace(settled, said=tuple(said), refusal=refusal)


def adopt(config: Config, earlier: Config) -> Config:
    """Fill `auto` with what an earlier run of the same effective batch has chosen, so that it can be gone on with."""
    model, train = config.model, config.train
    if model.max_length == "auto":
        model = model.model_copy(update={"max_length": earlier.model.max_length})
    if train.batch_size == "auto" and train.rows_per_step == earlier.train.rows_per_step:
        names = ("batch_size", "gradient_accumulation", "effective_batch")
        train = train.model_copy(update={name: getattr(earlier.train, name) for name in names})
    return config.model_copy(update={"model": model, "train": train})


def measuring(config: Config, sizes: Sizes) -> Config:
    """The config under which rows are tokenised to see how long they are: as long as the model can take, unless a
    length is given."""
    given = config.model.max_length
    return _with_numbers(config, 1, min(sizes.longest or 2**20, 2**20) if given == "auto" else given)


def _needed(config: Config, sizes: Sizes, place: Place, rows: RowLengths | None) -> tuple[int, int]:
    """The length to ask for, and the one that keeps every row."""
    if config.model.max_length != "auto":
        return config.model.max_length, config.model.max_length
    most = min(sizes.longest or 2**20, 2**20)
    least = USUAL if _packed(config, place) or rows is None else SHORT
    if rows is None or not len(rows.tokens):
        return min(least, most), min(least, most)
    share = _share(config)
    every = _room(rows.longest, share)
    common = _room(rows.common, share)
    wanted = every if every <= 2 * common else common
    return min(max(wanted, least), most), min(max(every, least), most)


def _room(tokens: int, share: float) -> int:
    """The least length, a multiple of 64, of which `share` holds so many tokens."""
    length = STEP * math.ceil(tokens / share / STEP)
    return length if int(share * length) >= tokens else length + STEP


def _share(config: Config) -> float:
    """Of the length, what a row may fill."""
    return config.data.filters.max_fraction if config.data.on_long == "drop" else 1.0


def _left_out(config: Config, rows: RowLengths | None) -> int:
    """Rows that are too long."""
    if rows is None:
        return 0
    return rows.beyond + int((rows.tokens > int(_share(config) * config.model.length)).sum())


def _packed(config: Config, place: Place) -> bool:
    return config.train.packing and place.on_gpu


def _job(config: Config, sizes: Sizes, place: Place, size: int, length: int) -> Job:
    return job_of(_with_numbers(config, size, length), sizes, on_gpu=place.on_gpu)


def _with_numbers(config: Config, size: int, length: int) -> Config:
    model = config.model.model_copy(update={"max_length": length})
    train = config.train.in_pieces_of(size) if config.train.batch_size == "auto" else config.train
    return config.model_copy(update={"model": model, "train": train})
