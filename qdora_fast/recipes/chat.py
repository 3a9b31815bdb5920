"""Try what lies at a path: a conversation at the terminal (`chat`), or a server for other programs (`serve`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from qdora_fast.config import Config
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.config.recorded import read_config
from qdora_fast.inference import session
from qdora_fast.inference.conversation import SamplingParams
from qdora_fast.inference.loading import (
    ChatModel,
    Source,
    adapter_source,
    load_source,
    merged_source,
    run_source,
)
from qdora_fast.models.backend import open_backend
from qdora_fast.models.run_info import read_run_info
from qdora_fast.models.trained import TrainedModel
from qdora_fast.recipes.report import trained_model
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import read_object
from qdora_fast.system.paths import refuse_links_out
from qdora_fast.system.run_folder import RunFolder


def chat(
    path: str | Path,
    *,
    once: str | None = None,
    system: str | None = None,
    compare: bool = False,
    sampling: SamplingParams | None = None,
) -> None:
    """Hold a conversation until end of input, or answer one message; arguments as for `session.chat`.

    Args:
        path: a run, an adapter's folder, or a merged model's.
        once: the one message; `-`: standard input is.

    Raises:
        ConfigError: see `find` and `session.chat`.
    """
    message = None if once is None else session.read_once(once)
    session.chat(find(Path(path)), once=message, system=system, compare=compare, sampling=sampling)


def serve(
    path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    no_password: bool = False,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; clients must send what QDORA_FAST_API_KEY holds, where it is set.

    Args:
        path: a run, an adapter's folder, or a merged model's, as for `chat`.
        port: 0 takes any free one.
        no_password: other machines may ask without a password.
        allowed_hosts: names by which browsers may call the server.

    Raises:
        ConfigError: the server is not installed, the port is taken, other machines could ask without a password, or see
            `find`.
    """
    from qdora_fast.inference import serve as server

    server.require_server()
    password = os.environ.get(server.PASSWORD) or None
    server.serve(
        find(Path(path)),
        host=host,
        port=port,
        password=password,
        no_password=no_password,
        allowed_hosts=allowed_hosts,
    )


def load(path: str | Path) -> ChatModel:
    """The model of what lies at a path.

    Raises:
        ConfigError: see `find`; or the base cannot be read.
        IntegrityError: the adapter is incomplete.
    """
    return load_source(find(Path(path)))


def find(path: Path) -> Source:
    """What lies at a path, without its weights.

    Raises:
        ConfigError: neither a finished run, nor an adapter, nor a merged model; or it has no chat template.
    """
    merged, adapter = ((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if not (merged or adapter) and (path.suffix == ".gguf" or any(path.glob("*.gguf"))):
        raise ConfigError(
            f"{path}: GGUF is for llama.cpp (`llama-cli -m FILE`) and Ollama; name the run it was made from"
        )
    if adapter and not merged:
        refuse_links_out(path)
    in_run = adapter and (path.parent / "model.json").is_file()
    run = RunFolder.open(path.parent if in_run else path) if in_run or not (merged or adapter) else None
    open_backend()  # takes seconds, so what is no model was refused before
    if merged:
        return merged_source(path)
    return _run(run) if run else _adapter(path)


def _run(run: RunFolder) -> Source:
    return run_source(run, read_run_info(run), trained_model(run, read_config(run)))


def _adapter(path: Path) -> Source:
    """An adapter without its run: the config it was exported with, else method and base from PEFT's own."""
    described = read_object(path / "adapter_config.json", {"base_model_name_or_path?": str | None})
    base = described.get("base_model_name_or_path") or ""
    recorded = (path / "config.yaml").is_file()
    config = load_config(path / "config.yaml") if recorded else _likely_config(base, bool(described.get("use_dora")))
    trained = TrainedModel(base, path, config.model, config.adapter, config.train, config.engine)
    return adapter_source(trained, guessed=not recorded)


def _likely_config(base: str, dora: bool) -> Config:
    """For an adapter that comes with none: neither trained nor merged here."""
    method = "qdora" if dora else "qlora"
    return make_config({"model": {"name": base}, "adapter": {"method": method}, "data": {"path": "none"}})
