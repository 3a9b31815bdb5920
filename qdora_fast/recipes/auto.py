"""`auto` in a config: its settings are handed to planning/auto, and the numbers are put in its place.

The only file that changes a config because of a plan.
"""

from __future__ import annotations

from qdora_fast.config import Config
from qdora_fast.config.evaluation import MOST_TOKENS
from qdora_fast.planning.auto.choice import asked_for, measuring_length, resolve_auto
from qdora_fast.planning.auto.kinds import Resolved, RowLengths
from qdora_fast.planning.cards import Machine
from qdora_fast.planning.memory.architecture import Sizes
from qdora_fast.planning.memory.job import JobSettings


def has_auto(config: Config) -> bool:
    """Whether a setting is `auto` that the rows and the card decide."""
    return bool(asked_for(config.model, config.train))


def resolve(config: Config, sizes: Sizes, machine: Machine, rows: RowLengths | None) -> tuple[Config, Resolved]:
    """The config with numbers in place of `auto`, and how they came about.

    Args:
        rows: None where they cannot be measured.

    Raises:
        ConfigError: a target or block that the model does not have.
    """
    resolved = resolve_auto(config.model, config.data, job_settings(config), sizes, machine, rows)
    job = resolved.job
    config = _with_numbers(config, batch_size=job.batch_size, length=job.length)
    if 0 < job.answer_batch < config.evaluation.batch_size:
        evaluation = config.evaluation.model_copy(update={"batch_size": job.answer_batch})
        config = config.model_copy(update={"evaluation": evaluation})
    return config, resolved


def to_measure(config: Config, sizes: Sizes) -> Config:
    """The config under which rows are tokenised to see how long they are."""
    return _with_numbers(config, batch_size=1, length=measuring_length(config.model, sizes))


def adopt(config: Config, earlier: Config) -> Config:
    """The config with the numbers of an earlier run of the same effective batch in place of `auto`, so that the run
    can be resumed, and with the metric by which it was to be judged."""
    model, train, evaluation = config.model, config.train, config.evaluation
    if model.max_length == "auto":
        model = model.model_copy(update={"max_length": earlier.model.max_length})
    if train.batch_size == "auto" and train.rows_per_step == earlier.train.rows_per_step:
        names = ("batch_size", "gradient_accumulation", "effective_batch")
        train = train.model_copy(update={name: getattr(earlier.train, name) for name in names})
    as_before = {
        name: value
        for name in ("metric", "max_new_tokens")
        if getattr(evaluation, name) == "auto" != (value := getattr(earlier.evaluation, name))
    }
    evaluation = evaluation.model_copy(update=as_before)
    return config.model_copy(update={"model": model, "train": train, "evaluation": evaluation})


def job_settings(config: Config) -> JobSettings:
    """The settings that decide the memory of a run."""
    data, evaluation = config.data, config.evaluation
    return JobSettings(
        config.adapter,
        config.train,
        config.engine,
        evaluates=data.held_out > 0 or data.held_out_path is not None,
        answer_batch=evaluation.batch_size if evaluation.max_rows else 0,
        answer_tokens=MOST_TOKENS if evaluation.max_new_tokens == "auto" else evaluation.max_new_tokens,
        merges=config.export.at_end != "none",
    )


def _with_numbers(config: Config, *, batch_size: int, length: int) -> Config:
    """The config with this length, and with this batch size if that was `auto`; the effective batch stays."""
    model = config.model.model_copy(update={"max_length": length})
    train = config.train.in_pieces_of(batch_size) if config.train.batch_size == "auto" else config.train
    return config.model_copy(update={"model": model, "train": train})
