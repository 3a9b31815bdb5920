"""A base checked and loaded as a recipe does it, from a whole config."""

from __future__ import annotations

from qdora_fast.config import Config
from qdora_fast.models.loading import Base, check_base, load_base
from qdora_fast.models.targets import Targets


def checked_base(config: Config, name: str | None = None) -> Targets:
    """The layers of a base that get an adapter; `name`: of a base that is not the config's."""
    return check_base(name or config.model.name, config.model, config.adapter, merge_base=config.export.merge_base)


def loaded_base(config: Config, name: str | None = None, *, precision: str = "fp32") -> Base:
    """A base with its weights; `name`: of a base that is not the config's."""
    name = name or config.model.name
    targets = checked_base(config, name)
    return load_base(name, config.model, config.adapter, config.train, targets=targets, precision=precision)
