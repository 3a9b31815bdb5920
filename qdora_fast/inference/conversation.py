"""Turns that fit, and answers as they are written.

Greedy unless a temperature is given. A conversation that outgrows the model's length loses its oldest turns, never its
system message; how many is part of the answer, as is what ended it. An answer can be stopped after the token in hand:
the model is left as it was found, and what was said stays in the conversation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal

from qdora_fast.data.tokenize.replies import ReplyReader
from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.inference.loading import ChatModel, Message, Source
from qdora_fast.models.out_of_memory import OutOfMemoryEvent, attempt, give_back
from qdora_fast.system.errors import ConfigError, OutOfMemory

OnText = Callable[[str], None]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and how many at most."""

    max_new_tokens: int = 256
    """Tokens of an answer, at most."""
    temperature: float = 0.0
    """0: greedy."""
    top_p: float | None = None
    """Draw from the likeliest tokens that make up this share; None: the model's own setting."""
    seed: int | None = None
    """Of each answer, so that the same question gets the same answer again; None: a new one each time."""

    def __post_init__(self) -> None:
        if self.temperature == 0 and (self.top_p is not None or self.seed is not None):
            raise ConfigError("--top-p and --seed do nothing to greedy answers: set --temperature, too")


@dataclass(frozen=True)
class Answer:
    """What was said."""

    text: str
    """Without the reasoning before it."""
    tokens: int
    """Without the stop token."""
    seconds: float
    """From the question to the end."""
    end: Literal["finished", "limit", "full", "stopped"]
    """By itself, at `max_new_tokens`, at the model's length, or because it was asked to stop."""
    dropped: int = 0
    """Oldest messages that no longer fitted and were left out before sampling."""
    thought: str = ""
    """Its reasoning."""
    in_thought: bool = False
    """Whether it ended within its reasoning."""


@dataclass
class Conversation:
    """Turns with one model, or with its base."""

    chat_model: ChatModel
    base: bool = False
    """Ask with the adapter switched off."""
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def say(
        self, text: str, sampling: SamplingParams, *, on_text: OnText | None = None, stop: threading.Event | None = None
    ) -> Answer:
        """Ask, and keep question and answer; after an error neither is kept.

        Raises:
            ConfigError: the message is empty, the template refuses it, or it alone is too long.
        """
        if not text.strip():
            raise ConfigError("the message is empty")
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        asked: list[Message] = [*self.turns, {"role": "user", "content": text}]
        kept = _that_fit(self.chat_model.source, head, asked, sampling.max_new_tokens)
        reply = answer(self.chat_model, [*head, *kept], sampling, base=self.base, on_text=on_text, stop=stop)
        thought = {"reasoning_content": reply.thought} if reply.thought else {}
        self.turns = [*kept, {"role": "assistant", "content": reply.text, **thought}]
        return replace(reply, dropped=len(asked) - len(kept))


def answer(
    chat_model: ChatModel,
    messages: Sequence[Message],
    sampling: SamplingParams | None = None,
    *,
    base: bool = False,
    on_text: OnText | None = None,
    stop: threading.Event | None = None,
) -> Answer:
    """The reply to a conversation that ends with a user's message.

    Args:
        base: of the base, with the adapter switched off.
        on_text: told each piece of the answer's text as it comes.
        stop: ends the answer after the token in hand once it is set.

    Raises:
        ConfigError: the template refuses the conversation, or it leaves no room for an answer.
        OutOfMemory: the model is small enough for the device, and the conversation is not.
    """
    import torch

    sampling, model, vocabulary = sampling or SamplingParams(), chat_model.model, chat_model.source.vocabulary
    prompt = chat_model.source.prompt(messages)
    room = chat_model.source.max_length - len(prompt)
    if room < 1:
        raise ConfigError(
            f"{len(prompt):,} tokens to read, and the model takes {chat_model.source.max_length:,}: shorten it"
        )
    ids = torch.tensor([prompt], device=model.device)  # [1, T]
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    started = time.monotonic()
    with model.disable_adapter() if base else nullcontext(), torch.inference_mode():
        out = _write(chat_model, ids, min(sampling.max_new_tokens, room), sampling, on_text, stop)
    if isinstance(out, OutOfMemoryEvent):
        raise OutOfMemory(f"{len(prompt):,} tokens and their answer do not fit into memory: /new starts over")
    written = out[0, len(prompt) :].tolist()
    answer_ids = list(takewhile(lambda token: token not in vocabulary.stop_ids, written))
    read = ReplyReader(vocabulary.tokenizer)(answer_ids, prompt)
    end: Literal["finished", "limit", "full", "stopped"] = "finished"
    if len(answer_ids) == len(written):
        end = "stopped" if stop and stop.is_set() else "limit" if len(answer_ids) == sampling.max_new_tokens else "full"
    seconds = time.monotonic() - started
    return Answer(read.answer, len(answer_ids), seconds, end, thought=read.thought, in_thought=read.unfinished)


def _write(
    chat_model: ChatModel,
    ids: Any,
    most: int,
    sampling: SamplingParams,
    on_text: OnText | None,
    stop: threading.Event | None,
) -> Any:
    """Tokens [1, prompt + answer], or OutOfMemoryEvent. Where memory runs out before the first word, cached weights are
    freed and it is tried again."""
    import torch

    given: list[str] = []

    def pass_on(text: str) -> None:
        given.append(text)
        if on_text:
            on_text(text)

    def write() -> Any:
        return chat_model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            streamer=_streamer(chat_model.source.vocabulary, pass_on) if on_text else None,
            stopping_criteria=[lambda *_, **__: stop.is_set()] if stop else None,
            **generation_options(sampling),
        )

    out = attempt(write)
    if isinstance(out, OutOfMemoryEvent) and give_back(chat_model.model) and not given:
        out = attempt(write)
    return out


def _that_fit(source: Source, head: Sequence[Message], turns: list[Message], most: int) -> list[Message]:
    """The newest turns that leave a quarter of the model's length, or what was asked for, to the answer."""
    reserved = min(most, source.max_length // 4)
    while len(turns) > 1 and len(source.prompt([*head, *turns])) + reserved > source.max_length:
        turns = turns[2:]  # a question and its answer
    return turns


def generation_options(sampling: SamplingParams) -> dict[str, Any]:
    """What `generate` is told of how tokens are drawn."""
    if not sampling.temperature:
        return {"do_sample": False}
    top_p = {} if sampling.top_p is None else {"top_p": sampling.top_p}
    return {"do_sample": True, "temperature": sampling.temperature, **top_p}


def _streamer(vocabulary: Vocabulary, on_text: OnText) -> Any:
    """What `generate` puts its tokens into, passing on the text of `Answer`: whole characters, no blank ends."""
    from tokenizers.decoders import DecodeStream
    from transformers.generation.streamers import BaseStreamer

    class Pieces(BaseStreamer):
        """Text by text."""

        def __init__(self) -> None:
            self.decoder = DecodeStream(skip_special_tokens=True)
            self.prompt_seen, self.begun, self.blank = False, False, ""

        def put(self, value: Any) -> None:
            for token in value.tolist() if self.prompt_seen else ():
                if token not in vocabulary.stop_ids:
                    self.pass_on(self.decoder.step(vocabulary.tokenizer.backend_tokenizer, token) or "")
            self.prompt_seen = True

        def pass_on(self, text: str) -> None:
            text = self.blank + text if self.begun else text.lstrip()
            self.begun = self.begun or bool(text)
            shown = text.rstrip()
            self.blank = text[len(shown) :]
            if shown:
                on_text(shown)

        def end(self) -> None: ...

    return Pieces()
