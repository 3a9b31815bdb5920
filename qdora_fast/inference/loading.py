"""The three kinds of things that can be talked to, described without reading weights, and loaded.

A run's folder: its adapter on its base, at the precision it was trained in. An adapter's
folder from elsewhere: the same, on the base that it names. A merged model's folder: what plain Transformers makes of
it, 16 bits or 4, as any server would. Template and stop tokens are the folder's own in every case; a conversation may
grow as long as the base can read, longer than the rows it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.tokenize.chat_text import templates_of
from qdora_fast.data.tokenize.left_out import LOSSES, Accountant
from qdora_fast.data.tokenize.plain_marks import prompt_ids
from qdora_fast.data.tokenize.template_process import check_limits
from qdora_fast.data.tokenize.templates import choose_template
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.models.backend import open_backend
from qdora_fast.models.base_files import require_sound
from qdora_fast.models.model_class import auto_class, config_in
from qdora_fast.models.model_config import position_limit, read_model_config
from qdora_fast.models.run_info import RunInfo
from qdora_fast.models.tokenizer import load_tokenizer, read_tokenizer
from qdora_fast.models.trained import TrainedModel
from qdora_fast.system import remote_code
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder

Message = dict[str, Any]

_NEEDED = ("system", "question", "tools", "tool_result")
"""What of a conversation must reach the model, see `left_out.LOSSES`."""
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
    trained: TrainedModel | None = None
    """The base with the adapter; None: merged, the base is not in it."""

    @cached_property
    def _accountant(self) -> Accountant:
        return Accountant(self.vocabulary)

    def prompt(
        self, messages: Sequence[Message], tools: list[Message] | None = None, *, advise: bool = True
    ) -> list[int]:
        """Token ids of a conversation, ready to be continued. Special tokens that a message spells stay text.

        Args:
            advise: an error says what to type in `chat`.

        Raises:
            ConfigError: the chat template refuses it or leaves a part of it out, or it is no text.
        """
        way_out = _way_out(messages) if advise else ""
        try:
            json.dumps([messages, tools], ensure_ascii=False).encode()  # fails on half a surrogate pair: no UTF-8
            ids = prompt_ids(
                self.vocabulary,
                messages,
                lambda each: self.vocabulary.render(each, tools, add_generation_prompt=True),
            )
        except RejectedRow as error:
            raise ConfigError(f"the chat template refuses this conversation: {error.detail}{way_out}") from None
        except UnicodeEncodeError:
            raise ConfigError("the message is not valid Unicode; is the terminal set to UTF-8?") from None
        lost = self._accountant.left_out_of(messages, tools)
        for kind in _NEEDED:
            if kind in lost:
                what = LOSSES[kind][0].removeprefix("a ")
                raise ConfigError(f"the chat template leaves out the {what}{way_out}")
        return ids


@dataclass(frozen=True)
class ChatModel:
    """A loaded model one can talk to."""

    source: Source
    model: Any


def load_source(source: Source) -> ChatModel:
    """Read the weights.

    Raises:
        ConfigError: the base cannot be read.
        IntegrityError: the adapter is incomplete.
    """
    model = _load_adapted(source.trained) if source.trained else _load_merged(source)
    model.generation_config.eos_token_id = sorted(source.vocabulary.stop_ids)
    model.generation_config.pad_token_id = source.vocabulary.tokenizer.pad_token_id
    return ChatModel(source, model)


def run_source(run: RunFolder, info: RunInfo, trained: TrainedModel) -> Source:
    """A run: its adapter on its base.

    Raises:
        ConfigError: the run did not finish, its base has moved, or it has no chat template.
    """
    base = _require_there(info.base, run.path / "model.json")
    if not run.adapter.is_dir():
        raise ConfigError(f"{run.path} has no adapter yet: the run did not finish; run it again or --resume it")
    remote_code.require_allowed(info.own_code)
    longest = _longest(base, trained.model.revision)
    return _with_template(
        Source(
            folder=run.adapter,
            name=run.path.resolve().name,
            about=f"{info.method} adapter on {_short(base)}",
            vocabulary=Vocabulary(read_tokenizer(str(run.adapter)), info.stop_ids).in_mode(info.thinking),
            max_length=longest,
            trained=_lengthened(trained, longest),
        )
    )


def adapter_source(trained: TrainedModel, *, guessed: bool) -> Source:
    """An adapter without its run.

    Args:
        guessed: nothing says how it was trained.

    Raises:
        ConfigError: its base is not named or has moved, or it has no chat template.
    """
    folder, base = trained.folder, _require_there(trained.base, trained.folder / "adapter_config.json")
    tokenizer, stop_ids = load_tokenizer(base, None, setting="")
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = read_tokenizer(str(folder))
    longest = _longest(base, trained.model.revision)
    doubt = ", in 4 bits (nothing says how it was trained)" if guessed else ""
    return _with_template(
        Source(
            folder=folder,
            name=folder.resolve().name,
            about=f"{trained.adapter.method} adapter on {_short(base)}{doubt}",
            vocabulary=Vocabulary(tokenizer, stop_ids),
            max_length=longest,
            trained=_lengthened(trained, longest),
        )
    )


def merged_source(path: Path, *, trainable: bool = False) -> Source:
    """A merged model, or a base.

    Args:
        trainable: without a chat template of its own it is asked with the one that a training would give it.

    Raises:
        ConfigError: it is none, or it has no chat template.
    """
    described = read_model_config(path / "config.json")
    if not described.get("architectures"):
        raise ConfigError(f"{path} is not a merged model: its config.json names no architecture")
    require_sound(str(path), setting="")
    tokenizer, stop_ids = load_tokenizer(str(path), None, setting="")
    full = path.resolve()
    own = bool(tokenizer.chat_template)
    if trainable and not own:
        choose_template(tokenizer, "auto")
    in_run = (full.parent / "model.json").is_file()
    thinking = RunFolder(full.parent).read_json("model.json", {"thinking?": str}).get("thinking") if in_run else None
    return _with_template(
        Source(
            folder=path,
            name=f"{full.parent.name}/{full.name}" if in_run else full.name,
            about=f"merged model{', 4-bit weights' if 'quantization_config' in described else ''}"
            + ("" if own or not trainable else "; without a chat template, so it is asked in plain Alpaca text"),
            vocabulary=Vocabulary(tokenizer, stop_ids).in_mode(thinking),
            max_length=_longest(str(path)),
        )
    )


def _with_template(source: Source) -> Source:
    """The source, which must have a chat template.

    Raises:
        ConfigError: it has none, or one that computes too much.
    """
    if not source.vocabulary.tokenizer.chat_template:
        raise ConfigError(
            f"{source.folder} has no chat template, so it is not known how to ask; put the chat_template.jinja of its "
            "training beside its tokenizer"
        )
    for text in templates_of(source.vocabulary.tokenizer).values():
        check_limits(text, f"the chat template of {source.folder}")
    return source


def _load_adapted(trained: TrainedModel) -> Any:
    from qdora_fast.training.trainer import choose_precision

    _, model = trained.load(precision=choose_precision(trained.train))
    open_backend().FastLanguageModel.for_inference(model)
    return model


def _load_merged(source: Source) -> Any:
    with remote_code.foreign_files("safetensors weights", str(source.folder), setting=""):
        described = config_in(source.folder)
        model = auto_class(described).from_pretrained(
            source.folder,
            dtype="auto",
            device_map="auto",
            use_safetensors=True,
            trust_remote_code=remote_code.remote_code_allowed(),
        )
    return model.eval()


def _require_there(base: str, record: Path) -> str:
    """The base that a file names, if it is a hub id or a folder that is still there.

    Raises:
        ConfigError: none named, or moved.
    """
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise ConfigError(
            f"the base, {base or 'not named'}, is not there; put it back, or write where it lies into {record}"
        )
    return base


def _longest(name: str, revision: str | None = None) -> int:
    """Tokens that a model can read, as its own config has it."""
    from transformers import AutoConfig

    with remote_code.foreign_files("config", name, revision, setting=""):
        config = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=remote_code.remote_code_allowed()
        )
    return position_limit(config.to_dict()) or DEFAULT_LENGTH


def _lengthened(trained: TrainedModel, longest: int) -> TrainedModel:
    """Unsloth reads no more than it was told when loading, and a conversation grows longer than the rows it learned."""
    return replace(trained, model=trained.model.model_copy(update={"max_length": longest}))


def _short(base: str) -> str:
    """A hub id as it is, a folder by its name."""
    return Path(base).name if Path(base).is_absolute() else base


def _way_out(messages: Sequence[Message]) -> str:
    """What to do about a template that does not take a conversation."""
    if messages and messages[0]["role"] == "system":
        return "; ask without a system message (/system alone takes it away)"
    return "; it may take single questions only: /new before each" if len(messages) > 1 else ""
