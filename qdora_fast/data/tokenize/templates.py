"""Which chat template turns messages into text, chosen once and stored on the tokenizer.

A model that brings a chat template is trained with exactly that. A base model without one gets the plain
Alpaca text, whose only special token is the EOS the base already knows: new turn tokens such as <|im_start|>
would have untrained embeddings, LoRA and DoRA do not train embeddings, and the model would never learn to stop.

The template is set as `tokenizer.chat_template`, so that every export carries it and what is served
renders exactly what was trained. The bundled texts are the .jinja files in `chat_templates/`.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qdora_fast.data.tokenize.vocabulary import adds_bos
from qdora_fast.system.errors import ConfigError

BUNDLED = ("alpaca", "chatml")
_BOS_FIRST = "{{- bos_token -}}\n"


@dataclass(frozen=True)
class TemplateChoice:
    """The template in use: `name` is model, alpaca, chatml or a file; `text` is its Jinja source."""

    name: str
    why: str
    text: str


def choose_template(tokenizer: Any, setting: str, *, is_base: bool | None = None) -> TemplateChoice:
    """Choose the chat template and set it on the tokenizer.

    Args:
        tokenizer: a Transformers tokenizer; its `chat_template` is replaced unless its own is kept.
        setting: `data.template`: auto, model, alpaca, chatml, or the path of a .jinja file.
        is_base: whether the model was never tuned to chat, where that is known. It changes only the warning.

    Raises:
        ConfigError: no such template, one that does not compile, or a tokenizer without EOS.
    """
    own = _own_template(tokenizer)
    if setting == "auto" and own is None:
        choice = _bundled(tokenizer, "alpaca", "the model has no chat template; plain Alpaca text ends with its EOS")
    elif setting in ("auto", "model"):
        choice = _models_own(tokenizer, own, is_base)
    elif setting in BUNDLED:
        choice = _bundled(tokenizer, setting, "set in data.template" + _chatml_warning(tokenizer, setting))
    else:
        choice = TemplateChoice(setting, "file set in data.template", _from_file(setting))
    if choice.name != "model":
        _check_renders(tokenizer, choice)
    if own is None or choice.text != own:
        tokenizer.chat_template = choice.text
    return choice


def bundled_name(text: str | None) -> str | None:
    """Which of the bundled templates a chat template is, with or without BOS in front; None: another."""
    return next((name for name in BUNDLED if text and text.removeprefix(_BOS_FIRST) == _bundled_text(name)), None)


def _own_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several named ones; Transformers picks between them
        template = template.get("default") or next(iter(template.values()), None)
    return template or None


def _models_own(tokenizer: Any, own: str | None, is_base: bool | None) -> TemplateChoice:
    if own is None:
        raise ConfigError(
            "data.template: model, but this model has no chat template; "
            "use auto or alpaca (plain text that ends with the model's EOS), chatml, or a .jinja file"
        )
    why = "the model's own chat template"
    if is_base:
        why += "; this is a base model, whose turn tokens may be untrained: `alpaca` is the safe choice"
    return TemplateChoice("model", why, own)


def _bundled(tokenizer: Any, name: str, why: str) -> TemplateChoice:
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the {name} template ends an answer with the tokenizer's EOS, but this tokenizer has none; "
            "set eos_token in its tokenizer_config.json"
        )
    # Rendered text is tokenised without special tokens, so the BOS that this tokenizer would add is written out.
    return TemplateChoice(name, why, (_BOS_FIRST if adds_bos(tokenizer) else "") + _bundled_text(name))


def _bundled_text(name: str) -> str:
    return (resources.files("qdora_fast.data.tokenize") / "chat_templates" / f"{name}.jinja").read_text(
        encoding="utf-8"
    )


def _chatml_warning(tokenizer: Any, setting: str) -> str:
    if setting != "chatml":
        return ""
    missing = [token for token in ("<|im_start|>", "<|im_end|>") if token not in tokenizer.get_vocab()]
    if missing:
        return (
            f"; {' and '.join(missing)} not in the vocabulary: spelled as plain text, answers stop at EOS. To train "
            f"them as tokens, set adapter.trainable_tokens: {json.dumps(missing)}"
        )
    if tokenizer.eos_token != "<|im_end|>":
        return f"; answers end with <|im_end|>{tokenizer.eos_token}, since EOS is the stop token"
    return ""


def _from_file(setting: str) -> str:
    path = Path(setting).expanduser()
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        near = difflib.get_close_matches(setting, ("auto", "model", *BUNDLED), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"data.template: {setting!r}: use auto, model, alpaca, chatml, or a .jinja file{hint}")
    if not path.is_file():
        there = sorted(entry.name for entry in path.parent.glob("*.j*inja*")) if path.parent.is_dir() else []
        hint = f"; that folder holds {', '.join(there[:3])}" if there else ""
        raise ConfigError(f"data.template: {path}: no such file{hint}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template: {path}: cannot be read as UTF-8 text ({error})") from error


def _check_renders(tokenizer: Any, choice: TemplateChoice) -> None:
    import jinja2

    probe = [{"role": "user", "content": "probe question"}, {"role": "assistant", "content": "probe answer"}]
    try:
        text = tokenizer.apply_chat_template(probe, chat_template=choice.text, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"data.template: {choice.name}:{error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError) as error:
        raise ConfigError(f"data.template: {choice.name} cannot render a question and an answer: {error}") from error
    if "probe question" not in text or "probe answer" not in text:
        raise ConfigError(f"data.template: {choice.name} does not print the `content` of each of `messages`")
