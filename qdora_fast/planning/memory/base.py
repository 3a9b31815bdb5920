"""The base's config.json: from its folder, from the hub's cache, from our table of well-known bases, or from the hub.

In this order, so that a preset is planned in a second and without a network. Nothing else of the base is read, and
the source of the values is returned with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from qdora_fast.data.demo.base import DEMO, demo_base
from qdora_fast.models.backend import open_backend
from qdora_fast.models.base_files import require_sound
from qdora_fast.models.few_bits import refuse_few_bits
from qdora_fast.models.model_config import read_model_config
from qdora_fast.planning.memory.architecture import CannotEstimate, Sizes, table_sizes
from qdora_fast.planning.memory.known import known_config, known_names, known_source
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.paths import local_path
from qdora_fast.system.remote_code import foreign_files, remote_code_allowed

PATIENCE = 5
"""Seconds to wait for the hub."""


class BaseConfig(NamedTuple):
    """The values of a config.json, and where they are from."""

    values: dict[str, Any]
    source: str
    name: str | None
    """The folder or hub id whose file that is; None: the values are of our table."""


def sizes_of(values: Mapping[str, Any], name: str | None = None, revision: str | None = None) -> Sizes:
    """The sizes of a base: by our table of architectures, else of the model that Transformers builds from its config.

    Args:
        values: of its config.json.
        name: of the base whose file that is, a folder or a hub id; None: of none, the values are of our table.

    Raises:
        CannotEstimate: config.json has a value that no model can have, or names no architecture.
        ConfigError: Transformers builds no model from it; see `built_sizes`.
        RefusedError: it needs code of its own, which may not run.
    """
    sizes = table_sizes(values)
    if sizes is not None:
        return sizes
    if not values.get("model_type") and not values.get("auto_map"):
        raise CannotEstimate("cannot estimate: the base's config.json names no `model_type`")
    return _built(json.dumps(values, sort_keys=True), name, revision, remote_code_allowed())


@lru_cache(maxsize=32)
def _built(described: str, name: str | None, revision: str | None, own_code: bool) -> Sizes:
    """Once for the same values: a run asks several times, and a list of presets has several of one base."""
    open_backend()  # a run that follows in this process needs it before transformers
    from transformers import AutoConfig

    from qdora_fast.planning.memory.built import built_sizes

    values = json.loads(described)
    with foreign_files("config", name or str(values["model_type"]), revision):
        if name is None:
            model_config = AutoConfig.for_model(**values)
        else:
            model_config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=own_code)
    return built_sizes(model_config, values)


def base_config(name: str, revision: str | None = None) -> BaseConfig:
    """The config.json of `model.name`.

    Raises:
        IntegrityError: a damaged file beside it, or itself.
        ConfigError: a folder without one, or a hub id that can neither be read nor is in our table.
    """
    if name == DEMO:
        return BaseConfig(_read(demo_base() / "config.json"), "the embedded demo", str(demo_base()))
    folder = local_path(name)
    weights = folder.is_dir() and any(folder.glob("*.safetensors*"))  # config.json alone can be planned, too
    require_sound(str(folder) if folder.is_dir() else name, revision, weights=weights)
    if folder.is_dir():
        return BaseConfig(_read(folder / "config.json"), str(folder), str(folder))
    cached = _from_cache(name, revision)
    if cached is not None:
        return BaseConfig(_read(cached), "its config.json in the hub's cache", name)
    known = known_config(name)
    if known is not None:
        return BaseConfig(known, known_source(name), None)
    try:
        values = _read(_from_hub(name, revision))
    except OSError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.name: cannot read the config.json of `{name}`: {reason}\n  Check the spelling; for gated models "
            f"run `hf auth login`; without a network give a local folder, or one of: {', '.join(known_names())}"
        ) from None
    refuse_few_bits(name, values, setting="model.name: ")
    return BaseConfig(values, "its config.json on the hub", name)


def _from_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # not a hub id at all; the hub's own answer says so better
        return None
    return Path(path) if isinstance(path, str) else None


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, etag_timeout=PATIENCE))
    except ValueError as error:  # not a hub id at all
        raise OSError(str(error)) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"model.name: {path.parent} holds no config.json; it is not a model's folder")
    return read_model_config(path)
