"""`auto` in a config: its settings are handed to planning/auto, and the numbers are put in its place.

The only file that changes a config because of a plan.
"""

from __future__ import annotations

from qdora_fast.config import Config
from qdora_fast.config.evaluation import MOST_TOKENS
from qdora_fast.data.demo.base import DEMO, demo_base
from qdora_fast.models.base_files import folder_of, require_sound
from qdora_fast.models.model_config import position_limit, read_model_config
from qdora_fast.planning.auto.choice import LONGEST, asked_for, measuring_length, resolve_auto
from qdora_fast.planning.auto.kinds import Resolved, RowLengths
from qdora_fast.planning.cards import Machine
from qdora_fast.planning.memory.architecture import Sizes
from qdora_fast.planning.memory.job import JobSettings
from qdora_fast.system.paths import local_path


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


def limit_exceeded(config: Config, base_name: str) -> int | None:
    """Tokens that the base was made for, where `model.max_length` is a larger number; else None.

    Raises:
        ConfigError, IntegrityError: see `base_files.require_sound`.
    """
    asked, folder = config.model.max_length, folder_of(base_name, config.model.revision)
    if asked == "auto" or folder is None:
        return None
    require_sound(base_name, config.model.revision, weights=False)
    limit = position_limit(read_model_config(folder / "config.json"))
    return limit if limit is not None and limit < asked else None


def with_length(config: Config, length: int) -> Config:
    """The config with this `model.max_length`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"max_length": length})})


def without_length_limit(config: Config) -> Config:
    """The config under which every row is tokenised in full."""
    filters = config.data.filters.model_copy(update={"max_fraction": 1.0})
    data = config.data.model_copy(update={"on_long": "drop", "filters": filters})
    return with_length(config.model_copy(update={"data": data}), LONGEST)


def adopt(config: Config, earlier: Config) -> Config:
    """The config with the numbers of an earlier run of the same effective batch in place of `auto` and of a length that
    the base was not made for, so that the run can be resumed; with the date that it took where none is named, with its
    thinking, and with the metric by which it was to be judged."""
    model, train, evaluation = config.model, config.train, config.evaluation
    if model.max_length == "auto" or limit_exceeded(config, _folder_or_id(model.name)) == earlier.model.max_length:
        model = model.model_copy(update={"max_length": earlier.model.max_length})
    if train.batch_size == "auto" and train.rows_per_step == earlier.train.rows_per_step:
        names = ("batch_size", "gradient_accumulation", "effective_batch")
        train = train.model_copy(update={name: getattr(earlier.train, name) for name in names})
    as_before = {
        name: value
        for name in ("metric", "max_new_tokens")
        if getattr(evaluation, name) == "auto" != (value := getattr(earlier.evaluation, name))
    }
    sections = {
        "model": model,
        "train": train,
        "data": config.data.model_copy(
            update={
                "date": config.data.date or earlier.data.date,
                "thinking": earlier.data.thinking if config.data.thinking == "auto" else config.data.thinking,
            }
        ),
        "evaluation": evaluation.model_copy(update=as_before),
    }
    return config.model_copy(update=sections)


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


def _folder_or_id(name: str) -> str:
    return str(demo_base()) if name == DEMO else str(local_path(name)) if local_path(name).is_dir() else name


def _with_numbers(config: Config, *, batch_size: int, length: int) -> Config:
    """The config with this length, and with this batch size if that was `auto`; the effective batch stays."""
    model = config.model.model_copy(update={"max_length": length})
    train = config.train.in_pieces_of(batch_size) if config.train.batch_size == "auto" else config.train
    return config.model_copy(update={"model": model, "train": train})
