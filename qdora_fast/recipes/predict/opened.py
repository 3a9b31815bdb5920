"""What MODEL is, before its weights are read: a run, an adapter, a model's folder, a base by its name, a server.

Everything on this machine is opened as `chat` opens it. Beyond that a base may be named as in a config: `demo`, a
preset (its base is meant), or a hub name; and an address is a server with OpenAI's API. A model that lies in a run, or
was exported into one, knows its run: the shape of its rows, and which rows were trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdora_fast.config.loader import load_config
from qdora_fast.config.presets import list_presets
from qdora_fast.data.demo.base import DEMO, demo_base
from qdora_fast.data.read.sources import HUB_ID
from qdora_fast.data.tokenize.chat_text import asks_for_clock, templates_of
from qdora_fast.inference import screen
from qdora_fast.inference.conversation import SamplingParams
from qdora_fast.inference.endpoint import is_url, open_endpoint
from qdora_fast.inference.loading import ChatModel, Source, load_source, merged_source
from qdora_fast.inference.many import Answerer, ManyAnswers
from qdora_fast.models.backend import open_backend
from qdora_fast.recipes import chat
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError, first_line
from qdora_fast.system.manifest import sha256_of
from qdora_fast.system.paths import local_path
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.training.resume import base_fingerprint

WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
"""Files of a base on the hub that are read."""


@dataclass(frozen=True)
class Opened:
    """A model that is described and not loaded yet."""

    name: str
    about: str
    identity: dict[str, Any]
    """What tells its answers from another model's."""
    load: Callable[[], Answerer]
    source: Source | None = None
    """None: a server."""
    run: RunFolder | None = None
    """The run that it belongs to."""

    @property
    def has_base(self) -> bool:
        """Whether its base can be asked beside it."""
        return self.source is not None and self.source.trained is not None


def open_model(
    model: str | Path | RunFolder | ChatModel,
    sampling: SamplingParams,
    *,
    server_model: str | None = None,
    batch_size: int = 8,
    date: str | None = None,
) -> Opened:
    """Find out what a model is; no weights are read.

    Args:
        model: a path, a name, an address, or a loaded model.
        server_model: the model of a server that is asked.
        batch_size: rows that are answered at once.
        date: the day that a chat template is told which asks for the clock; None: the time now.

    Raises:
        ConfigError: there is no such model; see `chat.find` and `endpoint.open_endpoint`.
    """
    if is_url(model):
        server = open_endpoint(str(model), server_model, sampling, batch_size=batch_size)
        return Opened(
            server.model, f"served at {server.url}", {"server": server.url, "model": server.model}, lambda: server
        )
    if server_model is not None:
        raise ConfigError("--model names a model of a server: MODEL must be its address, http://...")
    loaded = model if isinstance(model, ChatModel) else None
    if loaded:
        source, run = loaded.source, run_of(loaded.source.folder)
    else:
        path = model.path if isinstance(model, RunFolder) else local_path(str(model))
        source, run = find_source(str(model), path), run_of(path)
    if date and asks_for_clock(source.vocabulary.tokenizer):
        source = _on_day(source, date)

    def load() -> Answerer:
        if loaded:
            return ManyAnswers(loaded, sampling, batch_size, console.note)
        with screen.loading(source):
            return ManyAnswers(load_source(source), sampling, batch_size, console.note)

    return Opened(source.name, source.about, identity_of(source), load, source, run)


def find_source(name: str, path: Path) -> Source:
    """What lies at a path, or the base of that name.

    Raises:
        ConfigError: neither.
    """
    if (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        open_backend()
        return merged_source(path, trainable=True)
    if path.exists():
        return chat.find(path)
    presets = {preset.name: preset.path for preset in list_presets()}
    base = load_config(presets[name]).model.name if name in presets else name
    if base == DEMO:
        return _base(demo_base(), DEMO)
    is_id = "/" in base and HUB_ID.fullmatch(base) is not None
    if name in presets or (is_id and not path.parent.is_dir()):  # below a folder that is there it is a typing error
        return _base(_on_hub(base), base)
    if path.suffix or path.is_absolute() or path.parent.is_dir():
        return chat.find(path)  # which says what is missing
    raise ConfigError(
        f"{name}: no run, adapter or model's folder here, no preset (`qdora-fast presets`), no hub name (org/name) and "
        "no address of a server (http://...)"
    )


def run_of(path: Path) -> RunFolder | None:
    """The run at a path, or the one in which an adapter or an export lies; None: there is none."""
    for folder in (path, path.resolve().parent):
        if (folder / "model.json").is_file() and (folder / "config.yaml").is_file():
            return RunFolder(folder)
    return None


def identity_of(source: Source) -> dict[str, Any]:
    """What tells a model on this machine from another one: its weights, its template, where it stops."""
    vocabulary = source.vocabulary
    asked = {
        "templates": templates_of(vocabulary.tokenizer),
        "stop_ids": sorted(vocabulary.stop_ids),
        "switches": dict(vocabulary.render_mode.switches or {}),
        "tokenizer": vocabulary.tokenizer.backend_tokenizer.to_str(),
    }
    rendering = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    if source.trained is None:
        return {"weights": base_fingerprint(str(source.folder), None), "rendering": rendering[:16]}
    adapter = sha256_of(source.folder / "adapter_model.safetensors")
    base = base_fingerprint(source.trained.base, source.trained.model.revision)
    return {"weights": f"adapter {adapter[:16]} on {base}", "rendering": rendering[:16]}


def _on_day(source: Source, date: str) -> Source:
    vocabulary = source.vocabulary.in_mode(source.vocabulary.render_mode.mode)
    vocabulary.date = date
    return replace(source, vocabulary=vocabulary)


def _base(folder: Path, name: str) -> Source:
    open_backend()
    source = merged_source(folder, trainable=True)
    return replace(source, name=name, about=source.about.replace("merged model", "base, not trained here"))


def _on_hub(name: str) -> Path:
    """The folder of a base of the hub in its cache, downloaded if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if (folder := local_path(name)).is_dir():
        return folder
    try:
        with console.status(f"looking for {name} on the hub"):
            return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=["original/*"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{name}: no run or model's folder here, and it cannot be read from the hub ({first_line(error)}); correct "
            "the path, or download it and name its folder"
        ) from None
