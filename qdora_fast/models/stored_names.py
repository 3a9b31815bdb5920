"""A checkpoint's tensors by the names that the opened model gives them.

Transformers renames many checkpoints while it loads them: the files of Gemma 3, Mistral 3 or LLaVA say
`language_model.model.layers...` where the model's module is `model.language_model.layers...`. Adapters, records of a
run and proofs speak of modules, files keep the names they have. So whoever opens a base says which modules' tensors it
will ask for, and where one is not in the files, Transformers' own renaming is asked. A checkpoint whose names fit costs
nothing: no import of Transformers, no model.

Tensors that the model does not open, or that it makes of several, stay as they are called in the files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from qdora_fast.models.base_files import folder_of, shard_names
from qdora_fast.models.model_class import config_in, empty_model
from qdora_fast.models.weights import WeightFolder
from qdora_fast.system.errors import ConfigError, QdoraError, RefusedError


def open_weights(folder: Path, needed: Iterable[str]) -> WeightFolder:
    """The tensors of a checkpoint by the model's names where the files' are others, else by the files'.

    Args:
        needed: names, as the model has them, of tensors that will be asked for.

    Raises:
        ConfigError, IntegrityError: see `WeightFolder`.
    """
    files = WeightFolder(folder)
    if all(name in files.infos for name in needed):
        return files
    return WeightFolder(folder, names=_names_in_model(folder, files.infos.keys()))


def require_stored(name: str, revision: str | None, modules: Iterable[str]) -> None:
    """Refuse layers that no export could hold: Transformers makes their weights of other tensors while it loads.

    Nothing is asked of a hub's model that is not downloaded yet.

    Raises:
        RefusedError: the weight of one of `modules` is no tensor of its own.
    """
    folder = folder_of(name, revision)
    if folder is None or not all((folder / each).is_file() for each in _shards(folder)):
        return
    needed = [f"{module}.weight" for module in modules]
    found = open_weights(folder, needed).infos
    if missing := [each for each in needed if each not in found]:
        raise RefusedError(
            f"`{name}`: {len(missing)} of the layers to adapt (first {missing[0].removesuffix('.weight')}) are no "
            "tensors of their own in its files, so that no export could hold what is trained. Leave them out of "
            "adapter.target_modules, or take a checkpoint that stores them"
        )


def _shards(folder: Path) -> list[str]:
    try:
        return shard_names(folder)
    except QdoraError:
        return ["not there"]


def _names_in_model(folder: Path, stored: Collection[str]) -> dict[str, str]:
    """Name in the files -> name in the model, where the two differ; {} where no model can be built of config.json."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    try:
        model = empty_model(config_in(folder))
    except (OSError, ValueError, KeyError, ConfigError):
        return {}
    changes = get_model_conversion_mapping(model)
    renamings = [each for each in changes if isinstance(each, WeightRenaming)]
    converters = [each for each in changes if isinstance(each, WeightConverter)]
    places = model.state_dict()
    names: dict[str, str] = {}
    for name in sorted(stored, key=dot_natural_key):  # the order of the loader, on which some renamings depend
        renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, places)
        if converter is None and renamed in places and renamed not in names.values():
            names[name] = renamed
    for name in stored - names.keys():
        owner = _owner(name, names)  # of the parts of a weight in 4 bits: its scales, its state
        names[name] = names[owner] + name.removeprefix(owner) if owner else name
    return {name: renamed for name, renamed in names.items() if name != renamed}


def _owner(name: str, known: Collection[str]) -> str:
    """`x.weight` of `x.weight.absmax`, if it is known; else ''."""
    while name := name.rpartition(".")[0]:
        if name in known:
            return name
    return ""
