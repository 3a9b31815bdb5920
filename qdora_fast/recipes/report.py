"""A run's folder and its settings, read for its page and its model cards, and the settings of its base and adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.config.recorded import read_config
from qdora_fast.evaluation.report.run_parts import Changed, ResolvedSettings, RunParts, read_run
from qdora_fast.models.run_info import read_run_info
from qdora_fast.models.trained import TrainedModel
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder


def read_parts(folder: RunFolder) -> RunParts:
    """All that lies in a run's folder. Never fails for what is missing or broken."""
    try:
        config = read_config(folder)
    except ConfigError:
        return read_run(folder, None)
    settings = ResolvedSettings(
        model=config.model,
        adapter=config.adapter,
        data=config.data,
        every=config.model_dump(mode="json"),
        changed=changed_settings(config),
    )
    return read_run(folder, settings)


def trained_model(folder: RunFolder, config: Config) -> TrainedModel:
    """What a finished run trained, to be loaded.

    Raises:
        ConfigError, IntegrityError: see `read_run_info`.
    """
    base = read_run_info(folder).base
    return TrainedModel(base, folder.adapter, config.model, config.adapter, config.train, config.engine)


def changed_settings(config: Config) -> list[Changed]:
    """Every setting that differs from the default, in the order of the config; where files go is left out."""
    given = config.model_dump(mode="json")
    least = make_config({"model": {"name": config.model.name}, "data": {"path": "demo"}}).model_dump(mode="json")
    of_the_user = {"model.name", "data.path"}
    before = dict(_leaves(least))
    return [
        Changed(key, value, None if key in of_the_user else before.get(key))
        for key, value in _leaves(given)
        if not key.startswith("run.") and (value if key in of_the_user else value != before.get(key))
    ]


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
