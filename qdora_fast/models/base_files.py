"""The files of a base as they lie on disk: each is what its name says, and weights and config.json are of one model.

A clone without git-lfs, a download that broke off, a login page saved under a file's name: loaders meet them after the
rows were prepared, with errors of their own, or take them in silence (a weight that is missing gets random values, a
generation_config.json that cannot be read counts as none). So whoever opens a base looks here first. Only headers of
weights are read: 70B in 30 shards take about a second.

Of a hub's model, what lies in the local cache is looked at; what has not been downloaded yet is not missing.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qdora_fast.models.few_bits import few_bits_of, refuse_few_bits, twin_of
from qdora_fast.models.model_config import read_model_config
from qdora_fast.system.errors import ConfigError, IntegrityError, QdoraError
from qdora_fast.system.json_files import NotJson, mismatch, parse_json, read_limited, read_object
from qdora_fast.system.limits import HEADER_BYTES, HEADER_TENSORS
from qdora_fast.system.paths import open_regular, plain_file_name, refuse_special_files
from qdora_fast.system.remote_code import BASE_SETTING, remote_code_allowed

logger = logging.getLogger(__name__)

INDEX_NAME = "model.safetensors.index.json"

JSON_NAMES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.json", INDEX_NAME),
)
"""Files that must hold a JSON object where they exist."""
OTHER_NAMES = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt", "chat_template.jinja")
DOWNLOAD_AGAIN = "copy or download it again"
REMOVE = "remove it, and the next run downloads it again"
PULL = "run `git lfs pull` in that folder, or download it again"
_PACKED_PART = re.compile(r"(?P<weight>.+)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)")


def require_sound(name: str, revision: str | None = None, *, weights: bool = True, setting: str = BASE_SETTING) -> None:
    """Raise unless every file of a base that is here is what its name says.

    Args:
        name: a hub id or a folder.
        weights: the weights are needed, too; else those that are here are not looked at.
        setting: that names the base.

    Raises:
        IntegrityError: files are missing, cut short, or something else under their name; all are named.
        ConfigError: the folder is of another kind: an adapter, a run, GGUF, pickles; or its config.json names no model.
        RefusedError: a pipe, a socket or a device among them.
    """
    folder = folder_of(name, revision)
    if folder is None:
        _refuse_files_and_typos(name, setting)
        return
    local = Path(name).is_dir()
    if local:
        _refuse_other_kinds(folder, setting)
        refuse_special_files(folder)
    wrong = {}
    for file in (folder / each for each in (*JSON_NAMES, *OTHER_NAMES)):
        if file.exists() or file.is_symlink():
            wrong[file] = _damage(file)
    if weights and not wrong.get(folder / INDEX_NAME):
        wrong |= {file: damage(file) for file in _weight_files(folder, local, setting) if local or file.exists()}
    _raise(folder, {file: what for file, what in wrong.items() if what}, setting, local=local)
    described = read_model_config(folder / "config.json")
    if not described.get("model_type") and not described.get("auto_map"):
        raise ConfigError(
            f"{setting}{folder / 'config.json'}: names no `model_type`, so it is not a model of Transformers; "
            "name the folder that holds the model, or download it again"
        )
    refuse_few_bits(name, described, folder, setting=setting)


def require_fitting(name: str, revision: str | None, model_config: Any, model_class: Any) -> None:
    """Raise unless the weights are those of the model that config.json describes: every tensor, of its shape.

    The loader itself is asked, with tensors that have shapes and no values. It would give random values to what is
    missing, and leave out what it has no place for. Nothing is asked of a hub's model that is not downloaded yet, and
    of one with code of its own.

    Raises:
        IntegrityError: tensors are missing, of another shape, or more than the model has.
    """
    folder = folder_of(name, revision)
    if folder is None or not (Path(name).is_dir() or _is_downloaded(folder)) or _runs_own_code(model_config):
        return
    from qdora_fast.models.weights import WeightFolder

    tensors = WeightFolder(folder).infos
    _refuse_unsaid_bits(name, folder, few_bits_of(model_config.to_dict()) is not None, tensors.values())
    packed = {match["weight"] for each in tensors if (match := _PACKED_PART.fullmatch(each))}
    try:
        missing, mismatched, unexpected = _asked_loader(model_config, model_class, tensors.values())
    except Exception as error:  # noqa: BLE001 - not a verdict on the files; loading says what is wrong
        logger.info("weights not compared with config.json: %r", error)
        return
    mismatched = [each for each in mismatched if each[0] not in packed]
    left_out = [each for each in unexpected if not _PACKED_PART.fullmatch(each) and _in_block(each, tensors)]
    if getattr(model_config.get_text_config(), "num_nextn_predict_layers", None):
        left_out = []  # blocks that predict further tokens are not loaded, by design
    problems = []
    if mismatched:
        tensor, has, wants = mismatched[0]
        shapes = f"{tensor} is {_shape(has)} and config.json makes it {_shape(wants)}"
        problems.append(f"{_count(len(mismatched), 'tensor has', 'tensors have')} another shape ({shapes})")
    if missing:
        problems.append(f"{_count(len(missing), 'tensor is', 'tensors are')} missing (first {missing[0]})")
    if left_out:
        few = _count(len(left_out), "tensor has", "tensors have")
        problems.append(f"{few} no place in the model (first {left_out[0]})")
    if problems:
        raise IntegrityError(
            f"{folder}: config.json and the weights are not of one model: {'; '.join(problems)}. "
            "Copy or download both again from one place"
        )


def folder_of(name: str, revision: str | None = None) -> Path | None:
    """Where a base lies: its folder, or its snapshot in the hub's cache; None: not here yet."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except (HFValidationError, OSError, ValueError):
        return None
    return Path(config).parent if isinstance(config, str) else None


def shard_names(folder: Path, *, setting: str = "") -> list[str]:
    """The names of a model's weight files, from the index if there is one; no file is opened.

    Args:
        setting: that names the folder, for messages.

    Raises:
        ConfigError: no safetensors weights there (with a word on pickled `.bin` files).
        IntegrityError: an index that leads out of the folder.
    """
    if (folder / INDEX_NAME).is_file():
        weight_map = read_object(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not all(plain_file_name(name) for name in weight_map.values()):
            raise IntegrityError(
                f"{setting}{folder / INDEX_NAME}: no `weight_map` from tensors to files; download it again"
            )
        return sorted(set(weight_map.values()))
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not folder.is_dir():
        raise ConfigError(f"{setting}{folder}: no such folder; name a folder with config.json and safetensors weights")
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
        raise ConfigError(
            f"{setting}{folder}: its weights are pickles (.bin), which can run code when read; convert them once with "
            "transformers (`from_pretrained`, then `save_pretrained`) and name that folder"
        )
    raise ConfigError(
        f"{setting}{folder}: no model.safetensors and no {INDEX_NAME}; name a folder with the model's weights"
    )


def damage(file: Path) -> str:
    """What is wrong with a safetensors file, in words; "" where nothing is. Its header is read, its size compared."""
    return _damage(file) or _header_damage(file.absolute(), _state(file))


def _state(file: Path) -> tuple[int, ...]:
    """What changes with a file. One that is as it was is not read again: a tokenizer of 10 MB takes half a second, and
    a run, its proof and its export look at the base several times."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=512)
def _header_damage(file: Path, state: tuple[int, ...]) -> str:
    size = file.stat().st_size
    with open_regular(file) as opened:
        length = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))[0]
        if length > size - 8:
            return f"cut short: {size:,} bytes, its header alone has {length:,}" if length < 2**27 else "no safetensors"
        if length > HEADER_BYTES:
            return f"its header has {length:,} bytes, and no model's has more than {HEADER_BYTES:,}"
        header = opened.read(length)
    try:
        entries = parse_json(header)
        tensors = [value for key, value in entries.items() if key != "__metadata__"]
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (NotJson, AttributeError, KeyError, TypeError, IndexError):
        return "no safetensors: its header cannot be read"
    if len(tensors) > HEADER_TENSORS:
        return f"it names {len(tensors):,} tensors, and no file of a model has more than {HEADER_TENSORS:,}"
    if size < end:
        return f"cut short: {size:,} of {end:,} bytes"
    return f"{size - end:,} bytes longer than its header says" if size > end else ""


def _damage(file: Path) -> str:
    """The same of any file, by its first bytes and, where it must be JSON, by all of them."""
    try:
        with open_regular(file) as opened:
            start = opened.read(512)
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    size = file.stat().st_size
    if start.startswith(b"version https://git-lfs"):
        return f"a git-lfs pointer, {size:,} bytes, in place of the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file"
    if not start:
        return "" if file.suffix in (".txt", ".jinja") else "empty"
    if file.suffix == ".safetensors" and start.startswith((b"GGUF", b"PK\x03\x04")):
        return "a GGUF file" if start.startswith(b"GGUF") else "a pickle of PyTorch under another name"
    if file.name not in JSON_NAMES[1:]:  # config.json has a reader of its own
        return ""
    return _json_damage(file.absolute(), _state(file))


@functools.lru_cache(maxsize=64)
def _json_damage(file: Path, state: tuple[int, ...]) -> str:
    try:
        value = parse_json(read_limited(file))
    except NotJson as problem:
        return str(problem)
    return mismatch(value, {})


def _weight_files(folder: Path, local: bool, setting: str) -> list[Path]:
    """Those that a loader would read; [] where a hub's model has none here."""
    if not local and not any((folder / each).exists() for each in (INDEX_NAME, "model.safetensors")):
        return []
    return [folder / each for each in shard_names(folder, setting=setting)]


def _raise(folder: Path, wrong: dict[Path, str], setting: str, *, local: bool) -> None:
    if not wrong:
        return
    by_kind: dict[str, list[str]] = {}
    for file, what in wrong.items():
        by_kind.setdefault("a git-lfs pointer" if "git-lfs" in what else what, []).append(file.name)
    lines = []
    for what, names in by_kind.items():
        told = wrong[folder / names[0]] if what == "a git-lfs pointer" else what
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        lines.append(f"{names[0]}{more}: {told}")
    fix = PULL if "a git-lfs pointer" in by_kind else DOWNLOAD_AGAIN if local else REMOVE
    if len(lines) == 1:
        raise IntegrityError(f"{setting}{folder / lines[0]}; {fix}")
    listed = "\n".join(f"  - {line}" for line in lines)
    raise IntegrityError(f"{setting}{folder}: {len(wrong)} files are damaged; {fix}\n{listed}")


def _refuse_files_and_typos(name: str, setting: str) -> None:
    """Raise ConfigError for what is neither a folder nor can be a hub id."""
    path = Path(name)
    if path.is_file():
        kind = "GGUF is for llama.cpp and Ollama, and cannot be trained on; " if path.suffix == ".gguf" else ""
        raise ConfigError(f"{setting}`{name}` is a file; {kind}name a folder with config.json and safetensors weights")
    if path.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"{setting}there is no folder `{name}`; check the path")


def _refuse_other_kinds(folder: Path, setting: str) -> None:
    """Raise ConfigError for a folder that is not a base."""
    if (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():
            raise ConfigError(
                f"{setting}{folder} holds an adapter_config.json beside its config.json, and Transformers would load "
                "the base that the former names; remove it if the weights are merged"
            )
        raise ConfigError(
            f"{setting}{folder} is an adapter, not a base; name the base it was trained on here and the adapter as "
            "adapter.init_adapter, or merge the two first"
        )
    if (folder / "config.json").is_file():
        return
    if (folder / "config.yaml").is_file() and any((folder / each).exists() for each in ("model.json", "checkpoints")):
        raise ConfigError(
            f"{setting}{folder} is a run; name its merged_16bit to train on what it made, or name it as "
            "adapter.init_adapter to train on from its adapter"
        )
    if any(each.suffix == ".gguf" for each in folder.iterdir()):
        raise ConfigError(
            f"{setting}{folder} holds GGUF files, which are for llama.cpp and Ollama and cannot be trained on; "
            "name the model that they were made from"
        )
    raise ConfigError(f"{setting}{folder} holds no config.json; it is not a model's folder")


def _refuse_unsaid_bits(name: str, folder: Path, said: bool, tensors: Iterable[Any]) -> None:
    """Raise ConfigError for weights in 8 bits that config.json says nothing of: loaders take them without scales."""
    packed = [each for each in tensors if each.dtype.itemsize == 1 and each.name.endswith(".weight")]
    if packed and not said:
        raise ConfigError(
            f"{folder}: {_count(len(packed), 'weight is', 'weights are')} stored in "
            f"{str(packed[0].dtype).removeprefix('torch.')} (first {packed[0].name}), and config.json has no "
            f"`quantization_config` that says how to read them; name {twin_of(name, folder)}"
        )


def _runs_own_code(model_config: Any) -> bool:
    return remote_code_allowed() and hasattr(model_config, "auto_map")


def _is_downloaded(folder: Path) -> bool:
    try:
        return all((folder / each).exists() for each in shard_names(folder))
    except QdoraError:
        return False


def _asked_loader(
    model_config: Any, model_class: Any, tensors: Iterable[Any]
) -> tuple[list[str], list[Any], list[str]]:
    """Names that are missing; (name, shape in the file, shape in the model); names without a place."""
    import torch

    plain = copy.deepcopy(model_config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    state = {each.name: torch.empty(each.shape, dtype=each.dtype, device="meta") for each in tensors}
    _, said = model_class.from_pretrained(
        None,
        config=plain,
        state_dict=state,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,  # the class is here already
    )
    return sorted(said["missing_keys"]), sorted(said["mismatched_keys"]), sorted(said["unexpected_keys"])


def _in_block(name: str, tensors: Iterable[str]) -> bool:
    """Whether a weight or bias lies in a numbered block; other tensors may be of parts that are not loaded."""
    return re.search(r"(layers|h|blocks)\.\d+\..+\.(weight|bias)$", name) is not None and "vision" not in name


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _count(number: int, one: str, many: str) -> str:
    return f"1 {one}" if number == 1 else f"{number} {many}"
