"""PEFT adapters on disk: read them, check that they are complete, write them.

An `Adapter` is what a merge needs and nothing more: for each adapted layer of the base A, B, the
magnitude and the scale, in fp32, the rows of trained tokens, and the modules that were trained in
full. Reading is strict: an `Adapter` that exists is complete. Everything PEFT can put into an adapter
and that we do not merge (biases, weight-changing initialisations, pickles, ...) is refused by name
instead of being read past. What this does not do: know the base; `merged_model.py` looks for the
layers there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdora_fast.models.adapter_guard import complete_in_memory, module_problems, raise_broken, saved_state
from qdora_fast.models.adapter_patterns import require_bounded
from qdora_fast.models.weights import WeightFolder, read_rows
from qdora_fast.system.atomic import staged_folder
from qdora_fast.system.errors import ConfigError, IntegrityError
from qdora_fast.system.json_files import read_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TOKENS = ".token_adapter.trainable_tokens_delta"
_LORA_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")

_PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_qalora": (False,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None,),
    "megatron_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""Settings of a PEFT config that change what the weights mean, and the values we can merge. The missing
initialisations (pissa, olora, corda, loftq, lora_ga) change the base's own weights when training starts."""


@dataclass(frozen=True)
class AdapterModule:
    """The update of one linear layer with weight W [out, in]: W + scaling · B·A, then rows scaled to `magnitude`."""

    lora_a: Tensor
    """[r, in], fp32."""
    lora_b: Tensor
    """[out, r], fp32."""
    magnitude: Tensor | None
    """[out], fp32; None for plain LoRA."""
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of a matrix [vocabulary, hidden] that were trained: they stand in the place of the base's."""

    ids: tuple[int, ...]
    rows: Tensor
    """[tokens, hidden], fp32, in the order of `ids`."""

    def put(self, held: Tensor, start: int) -> Tensor:
        """Rows [start, start + n) of a matrix with these in them, in the type of `held` [n, hidden]."""
        inside = [place for place, number in enumerate(self.ids) if start <= number < start + len(held)]
        if not inside:
            return held
        place_of = torch.tensor([self.ids[place] - start for place in inside])
        return held.index_copy(0, place_of, self.rows[inside].to(held.dtype))


@dataclass(frozen=True)
class Adapter:
    """A complete adapter."""

    folder: Path
    config: dict[str, Any]
    """adapter_config.json."""
    modules: dict[str, AdapterModule]
    """By the layer's name in the base: `model.layers.0.self_attn.q_proj`."""
    saved_modules: dict[str, tuple[int, ...]]
    """Tensors trained in full (`modules_to_save`): name in the base -> shape. Read with `saved_rows`."""
    tokens: dict[str, TokenRows]
    """Trained rows of the embeddings, and of a head of its own (`trainable_token_indices`), by the tensor's name."""

    @property
    def use_dora(self) -> bool:
        """True when the layers have magnitudes."""
        return bool(self.config.get("use_dora"))

    @property
    def r(self) -> int:
        """Rank, where no `rank_pattern` says otherwise."""
        return int(self.config["r"])

    @property
    def alpha(self) -> float:
        """Numerator of the scale, where no `alpha_pattern` says otherwise."""
        return float(self.config["lora_alpha"])

    @property
    def tensors(self) -> set[str]:
        """Names in the base of the tensors that it changes."""
        return {*(f"{name}.weight" for name in self.modules), *self.saved_modules, *self.tokens}

    @property
    def vocabulary(self) -> int:
        """Rows that the embeddings have at least: one more than the highest trained id; 0 without trained tokens."""
        return max((number + 1 for tokens in self.tokens.values() for number in tokens.ids), default=0)

    def saved_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor trained in full, in its stored dtype."""
        return read_rows(self.folder / WEIGHTS_NAME, _PREFIX + name, start, stop)


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT LoRA or DoRA adapter into fp32 tensors on the CPU.

    Raises:
        ConfigError: no adapter there, pickled weights, or a kind of adapter that we cannot merge.
        IntegrityError: tensors missing, misshapen, not finite, or magnitudes not positive.
    """
    _require_files(folder)
    config = read_object(folder / CONFIG_NAME)
    _refuse_unmergeable(folder, config)
    parts, saved, rows = _split_keys(folder)
    require_bounded(config, str(folder / CONFIG_NAME))
    decomposed = bool(config.get("use_dora"))
    problems: list[str] = []
    for name, tensors in parts.items():
        problems += module_problems(name, *_triple(tensors), decomposed=decomposed)
    if not parts:
        problems.append("no layer carries an adapter")
    tokens, wrong = _token_rows(config.get("trainable_token_indices"), rows)
    problems += wrong
    raise_broken(str(folder), problems, fix="use the last good checkpoint or train again")
    modules = {name: _module(folder, name, tensors, config) for name, tensors in parts.items()}
    return Adapter(folder, config, modules, saved, tokens)


def assert_complete(folder: Path, *, decomposed: bool, expected_modules: Collection[str] | None = None) -> Adapter:
    """Check that `folder` holds the complete adapter that was trained; every tensor is read.

    Args:
        folder: of a PEFT adapter.
        decomposed: True: it must be DoRA, with a positive, finite magnitude for every layer. False: plain LoRA.
        expected_modules: names in the base of the layers that were trained; None: whichever are there.

    Returns:
        The adapter.

    Raises:
        ConfigError: see `read_adapter`.
        IntegrityError: the first few tensors that are wrong, or layers missing or extra.
    """
    adapter = read_adapter(folder)
    problems = []
    if adapter.use_dora != decomposed:
        problems.append(f"{CONFIG_NAME}: use_dora is {adapter.use_dora}, but {decomposed} was trained")
    if expected_modules is not None:
        trained, saved = {*expected_modules}, {*adapter.modules}
        problems += [f"{name}: was trained but is not in the file" for name in sorted(trained - saved)]
        problems += [f"{name}: in the file but was not trained" for name in sorted(saved - trained)]
    raise_broken(str(folder), problems, fix="use the last good checkpoint or train again")
    return adapter


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter of a live PEFT model: checked before, in fp32, checked after, all or nothing.

    Args:
        model: the PEFT model, with one adapter.
        folder: appears only when complete; an adapter that is already there is replaced.

    Raises:
        IntegrityError: the live model or what was written is incomplete.
        ConfigError: `folder` holds something else than an adapter, or the model has several adapters.
    """
    with staged_folder(folder, overwrite=(folder / CONFIG_NAME).is_file()) as staging:
        write_adapter(model, staging)


def write_adapter(model: Any, folder: Path) -> None:
    """Write the adapter of a live PEFT model into a folder that is being built, and read it back.

    Raises:
        IntegrityError, ConfigError: see `save_adapter`.
    """
    if len(model.peft_config) != 1:
        raise ConfigError(f"{folder}: the model has {len(model.peft_config)} adapters; save a model with exactly one")
    complete_in_memory(model)
    model.save_pretrained(str(folder), state_dict=saved_state(model), save_embedding_layers=False)
    read_adapter(folder)


def load_into(model: Any, folder: Path) -> None:
    """Put the values of a saved adapter into the trained parameters of a live PEFT model, in place.

    Raises:
        IntegrityError: the two do not hold the same tensors.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        result = set_peft_model_state_dict(model, load_file(str(folder / WEIGHTS_NAME)))
    except KeyError as missing:  # PEFT's way of saying it for a module trained in full
        raise IntegrityError(f"{folder}: {WEIGHTS_NAME} has no tensor {missing}, which the model trains") from None
    if lost := sorted({*result.unexpected_keys, *trained.intersection(result.missing_keys)}):
        raise IntegrityError(f"{folder}: {len(lost)} trained tensors do not match the model's, first {lost[0]}")


def _require_files(folder: Path) -> None:
    """Raise ConfigError unless the folder holds a safetensors adapter."""
    if not (folder / CONFIG_NAME).is_file():
        raise ConfigError(f"{folder}: no {CONFIG_NAME}; name the folder of a PEFT adapter")
    if not (folder / WEIGHTS_NAME).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ConfigError(
                f"{folder}: its weights are a pickle, which can run code when read; save them with PEFT as safetensors "
                "(`save_pretrained(..., safe_serialization=True)`)"
            )
        raise IntegrityError(f"{folder}: {WEIGHTS_NAME} is missing; use the last good checkpoint or train again")


def _refuse_unmergeable(folder: Path, config: dict[str, Any]) -> None:
    """Raise ConfigError for settings under which W + scaling · B·A is not what was trained."""
    for field, plain in _PLAIN.items():
        if field in config and config[field] not in plain:
            raise ConfigError(
                f"{folder / CONFIG_NAME}: `{field}: {config[field]}` cannot be merged here; "
                f"train with {' or '.join(map(repr, plain))}, or merge with PEFT"
            )
    ranks = (config.get("r"), config.get("lora_alpha"))
    if not all(isinstance(value, int | float) and value > 0 for value in ranks):
        raise IntegrityError(f"{folder / CONFIG_NAME}: `r` and `lora_alpha` are not positive numbers; restore the file")


def _split_keys(
    folder: Path,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Sort the file's tensors into adapted layers (fp32 tensors), modules saved in full (shapes), and rows of tokens.

    Raises:
        ConfigError: tensors of a kind that we cannot merge.
    """
    file = WeightFolder(folder, single=WEIGHTS_NAME)
    parts: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, tuple[int, ...]] = {}
    rows: dict[str, Tensor] = {}
    for key, info in file.infos.items():
        name = key.removeprefix(_PREFIX)
        if match := _LORA_KEY.fullmatch(name):
            parts.setdefault(match["module"], {})[match["part"]] = file.tensor(key).to(torch.float32)
        elif name != key and name.endswith(_TOKENS):
            rows[name.removesuffix(_TOKENS)] = file.tensor(key).to(torch.float32)
        elif name == key or ".lora_" in name:
            raise ConfigError(
                f"{folder / WEIGHTS_NAME}: tensor {key} is not of a kind that can be merged; "
                "merge with PEFT, or train linear layers only"
            )
        else:
            saved[name] = info.shape
    return parts, saved, rows


def _token_rows(
    indices: list[int] | dict[str, list[int]] | None, rows: dict[str, Tensor]
) -> tuple[dict[str, TokenRows], list[str]]:
    """Trained rows by the tensor's name, and what is wrong with them.

    Args:
        indices: `trainable_token_indices` of the config: ids of the embeddings, or by the ends of layers' names.
        rows: by the layer's name.
    """
    named = indices if isinstance(indices, dict) else dict.fromkeys(rows, indices) if indices else {}
    tokens, problems = {}, []
    for layer, values in rows.items():
        ids = next((named[name] for name in named if f".{layer}".endswith(f".{name}")), None)
        if not ids or values.ndim != 2 or len(ids) != len(values) or len(set(ids)) != len(ids) or min(ids) < 0:
            problems.append(f"{layer}: {len(values)} rows of tokens, but {CONFIG_NAME} lists {ids}")
        elif not bool(values.isfinite().all()):
            problems.append(f"{layer}: NaN or infinity in the rows of tokens")
        else:
            tokens[f"{layer}.weight"] = TokenRows(tuple(ids), values)
    if indices and not rows:
        problems.append(f"{CONFIG_NAME} lists trained tokens, but the file holds no row of any")
    return tokens, problems


def _triple(tensors: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A, B and the magnitude, None where missing."""
    return tensors.get("lora_A.weight"), tensors.get("lora_B.weight"), tensors.get("lora_magnitude_vector")


def _module(folder: Path, name: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> AdapterModule:
    """One layer with its scale, which PEFT derives from the config's patterns."""
    rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    lora_a, lora_b, magnitude = _triple(tensors)
    assert lora_a is not None and lora_b is not None, "read_adapter has checked this"
    if lora_a.shape[0] != rank:
        raise IntegrityError(
            f"{folder}: {name} has rank {lora_a.shape[0]}, but {CONFIG_NAME} says {rank}; "
            "config and weights are of two adapters: restore both from one checkpoint"
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return AdapterModule(lora_a, lora_b, magnitude, scaling)


def _by_pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """What PEFT takes for one layer; not imported for nothing, as it takes 250 MB of memory."""
    if not patterns:
        return default
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(list(patterns), name), default)
