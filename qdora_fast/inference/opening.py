"""What lies at a path, and how to open it: `find` reads no weights, `load` does.

Three kinds can be talked to. A run's folder: its adapter on its base, at the precision it was trained in. An adapter's
folder from elsewhere: the same, on the base that it names. A merged model's folder: what plain Transformers makes of
it, 16 bits or 4, as any server would. Template and stop tokens are the folder's own in every case; a conversation may
grow as long as the base can read, longer than the rows it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdora_fast.config import Config
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.config.recorded import read_config
from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.models.backend import open_backend
from qdora_fast.models.model_config import read_model_config
from qdora_fast.models.run_info import read_run_info
from qdora_fast.models.tokenizer import load_tokenizer, read_tokenizer
from qdora_fast.models.weights import shard_names
from qdora_fast.system import remote_code
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import read_object
from qdora_fast.system.run_folder import RunFolder

Message = dict[str, Any]

DEFAULT_LENGTH = 2048
"""Tokens of a conversation with a model whose config names no limit."""


@dataclass(frozen=True)
class Source:
    """Something that can be talked to, before its weights are read."""

    folder: Path
    """Of the adapter, or of the merged model."""
    name: str
    """What to call it: `demo`, `demo/merged_16bit`."""
    about: str
    """What it is, in words."""
    vocabulary: Vocabulary
    """Tokenizer with the chat template, and the stop tokens."""
    max_length: int
    """Tokens of a conversation, answer included."""
    base: str | None = None
    """Folder or hub id of the base; None: merged, the base is not in it."""
    config: Config | None = None
    """How the base is to be loaded."""

    def prompt(self, messages: Sequence[Message], tools: list[Message] | None = None) -> list[int]:
        """Token ids of a conversation, ready to be continued.

        Raises:
            ConfigError: the chat template refuses it or leaves a part of it out, or it is no text.
        """
        way_out = _way_out(messages)
        try:
            text = self.vocabulary.render(messages, tools, add_generation_prompt=True)
            text.encode()  # fails on half a surrogate pair, which is how bytes that are not UTF-8 come in
        except RejectedRow as error:
            raise ConfigError(f"the chat template refuses this conversation: {error.detail}{way_out}") from None
        except UnicodeEncodeError:
            raise ConfigError("the message is not valid Unicode; is the terminal set to UTF-8?") from None
        for message in messages:
            if message["role"] in ("system", "user") and message["content"].strip() not in text:
                raise ConfigError(f"the chat template leaves out the {message['role']} message{way_out}")
        return self.vocabulary.encode(text).ids


@dataclass(frozen=True)
class Speaker:
    """A loaded model one can talk to."""

    source: Source
    model: Any


def load(path: str | Path) -> Speaker:
    """Open what lies at a path.

    Raises:
        ConfigError: see `find`; or the base cannot be read.
        IntegrityError: the adapter is not whole.
    """
    return open_source(find(Path(path)))


def find(path: Path) -> Source:
    """What lies at a path, without its weights.

    Raises:
        ConfigError: neither a finished run, nor an adapter, nor a merged model; or it has no chat template.
    """
    open_backend()
    if (path / "config.json").is_file():
        source = _merged(path)
    elif (path / "adapter_config.json").is_file():
        run = path.parent
        source = _run(RunFolder.open(run)) if (run / "model.json").is_file() else _adapter(path)
    elif path.suffix == ".gguf" or any(path.glob("*.gguf")):
        raise ConfigError(
            f"{path}: GGUF is for llama.cpp (`llama-cli -m FILE`) and Ollama; name the run it was made from"
        )
    else:
        source = _run(RunFolder.open(path))
    if not source.vocabulary.tokenizer.chat_template:
        raise ConfigError(
            f"{source.folder} has no chat template, so it is not known how to ask; put the chat_template.jinja of its "
            "training beside its tokenizer"
        )
    return source


def open_source(source: Source) -> Speaker:
    """Read the weights.

    Raises:
        ConfigError: the base cannot be read.
        IntegrityError: the adapter is not whole.
    """
    model = _open_adapted(source, source.config) if source.config else _open_merged(source)
    model.generation_config.eos_token_id = sorted(source.vocabulary.stop_ids)
    model.generation_config.pad_token_id = source.vocabulary.tokenizer.pad_token_id
    return Speaker(source, model)


def _run(run: RunFolder) -> Source:
    info, config = read_run_info(run), read_config(run)
    base = _in_place(info.base, run.path / "model.json")
    if not run.adapter.is_dir():
        raise ConfigError(f"{run.path} has no adapter yet: the run did not finish; run it again or --resume it")
    remote_code.require_allowed(info.own_code)
    longest = _longest(base, config.model.revision)
    return Source(
        folder=run.adapter,
        name=run.path.resolve().name,
        about=f"{info.method} adapter on {_short(base)}",
        vocabulary=Vocabulary(read_tokenizer(str(run.adapter)), info.stop_ids),
        max_length=longest,
        base=base,
        config=_lengthened(config, longest),
    )


def _adapter(path: Path) -> Source:
    """An adapter without its run: the config it was exported with, else method and base from PEFT's own."""
    described = read_object(path / "adapter_config.json", {"base_model_name_or_path?": str | None})
    base = _in_place(described.get("base_model_name_or_path") or "", path / "adapter_config.json")
    recorded = (path / "config.yaml").is_file()
    config = load_config(path / "config.yaml") if recorded else _likely_config(base, bool(described.get("use_dora")))
    tokenizer, stop_ids = load_tokenizer(base, None, setting="")
    if (path / "tokenizer_config.json").is_file():
        tokenizer = read_tokenizer(str(path))
    longest = _longest(base, config.model.revision)
    doubt = "" if recorded else ", in 4 bits (nothing says how it was trained)"
    return Source(
        folder=path,
        name=path.resolve().name,
        about=f"{config.adapter.method} adapter on {_short(base)}{doubt}",
        vocabulary=Vocabulary(tokenizer, stop_ids),
        max_length=longest,
        base=base,
        config=_lengthened(config, longest),
    )


def _likely_config(base: str, dora: bool) -> Config:
    """For an adapter that comes with none."""
    no_rows = {"data": {"path": "none"}, "export": {"merge_base": "dequant4"}}  # neither trained nor merged here
    return make_config({"model": {"name": base}, "adapter": {"method": "qdora" if dora else "qlora"}, **no_rows})


def _merged(path: Path) -> Source:
    described = read_model_config(path / "config.json")
    if not described.get("architectures"):
        raise ConfigError(f"{path} is not a merged model: its config.json names no architecture")
    shard_names(path)
    tokenizer, stop_ids = load_tokenizer(str(path), None, setting="")
    whole = path.resolve()
    return Source(
        folder=path,
        name=f"{whole.parent.name}/{whole.name}" if (whole.parent / "model.json").is_file() else whole.name,
        about=f"merged model{', 4-bit weights' if 'quantization_config' in described else ''}",
        vocabulary=Vocabulary(tokenizer, stop_ids),
        max_length=_longest(str(path)),
    )


def _open_adapted(source: Source, config: Config) -> Any:
    from qdora_fast.models.loading import load_trained
    from qdora_fast.training.trainer import choose_precision

    assert source.base is not None
    _, model = load_trained(source.base, config, source.folder, precision=choose_precision(config.train))
    open_backend().FastLanguageModel.for_inference(model)
    return model


def _open_merged(source: Source) -> Any:
    from transformers import AutoModelForCausalLM

    with remote_code.foreign_files("safetensors weights", str(source.folder), setting=""):
        model = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype="auto",
            device_map="auto",
            use_safetensors=True,
            trust_remote_code=remote_code.remote_code_allowed(),
        )
    return model.eval()


def _in_place(base: str, record: Path) -> str:
    """The base that a file names, if it is a hub id or a folder that is still there.

    Raises:
        ConfigError: none named, or moved.
    """
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise ConfigError(
            f"the base, {base or 'not named'}, is not there; put it back, or write its place into {record}"
        )
    return base


def _longest(name: str, revision: str | None = None) -> int:
    """Tokens that a model can read, as its own config has it."""
    from transformers import AutoConfig

    with remote_code.foreign_files("config", name, revision, setting=""):
        config = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=remote_code.remote_code_allowed()
        )
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH)


def _lengthened(config: Config, longest: int) -> Config:
    """Unsloth reads no more than it was told when loading, and a conversation grows longer than the rows it learned."""
    return config.model_copy(update={"model": config.model.model_copy(update={"max_length": longest})})


def _short(base: str) -> str:
    """A hub id as it is, a folder by its name."""
    return Path(base).name if Path(base).is_absolute() else base


def _way_out(messages: Sequence[Message]) -> str:
    """What to do about a template that does not take a conversation."""
    if messages and messages[0]["role"] == "system":
        return "; ask without a system message (/system alone takes it away)"
    return "; it may take single questions only: /new before each" if len(messages) > 1 else ""
