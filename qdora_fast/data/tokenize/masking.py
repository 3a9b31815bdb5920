"""Token ids of a conversation, and which of them are learned: the method of rendered spans.

The usual ways to find the answers in a tokenised chat fail without a word: marker tokens merge with their
neighbours, `{% generation %}` is missing from most templates, a prompt need not be a prefix of its conversation.
So the text itself is measured. Render the conversation once; render it again with every answer replaced by a
sentinel; where the sentinels stand, the answers are. Then tokenise once, with character offsets.

    start   where inference hands over: the end of the generation prompt, as far as the text agrees with it
    end     the token that must stop generation: the first stop token after the answer

Per row it is made sure that each trained answer is inside its own segment and nothing anybody else said is;
a row for which that cannot be shown is rejected with a reason, never trained on a guess.

A row is rendered in its own mode of thinking (`thinking.py`). Templates that take reasoning out of earlier answers
are followed, and such an answer is not learned: it stands there as if it had been given without a thought, which is
what the model would learn. Rows with one answer each are the way to learn it; `data.thinking: as_is` learns what is
left of it.

Offsets need a fast tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.read.messages import Message
from qdora_fast.data.tokenize.modes import asks_to_think, has_reasoning, in_fields
from qdora_fast.data.tokenize.spans import RenderedChat, split_thinking
from qdora_fast.data.tokenize.vocabulary import Encoding, Vocabulary

IGNORED = -100

Flag = Literal[
    "eos_appended",
    "no_stop_token",
    "double_bos",
    "no_bos",
    "words_elsewhere",
    "reasoned",
    "earlier_unlearned",
    "leaves_prompt",
    "reasoning_removed",
]
Ending = Literal["stop", "special", "open"]


@dataclass
class Masked:
    """One row as tokens. `labels` equals `input_ids` where trained and -100 elsewhere; same length."""

    input_ids: list[int]
    labels: list[int] = field(default_factory=list)
    segments: list[tuple[int, int]] = field(default_factory=list)
    """Trained token ranges, in order, end exclusive."""
    flags: set[Flag] = field(default_factory=set)
    """eos_appended: the template leaves the last answer open. no_stop_token: the last answer ends with a token that
    does not stop generation, or an earlier one with none at all. double_bos: the template printed two, one was
    removed. no_bos: this tokenizer starts texts with BOS, the template does not. words_elsewhere: words beside a tool
    call are printed outside of that turn (Gemma 4: behind the result), and so not learned. reasoned: the last answer
    has reasoning that is printed. earlier_unlearned: earlier answers lost their reasoning and are not learned.
    leaves_prompt: the last answer does not follow the generation prompt. reasoning_removed: by `data.thinking: off`.
    The last four only where the template knows of reasoning."""


def tokenize_with_spans(
    messages: Sequence[Message],
    vocabulary: Vocabulary,
    *,
    tools: list[dict[str, Any]] | None = None,
    train_on: Literal["responses", "all"] = "responses",
) -> Masked:
    """Tokenise a conversation as its chat template renders it, and label the answers.

    The ids are those of `apply_chat_template(messages, tools, tokenize=True)`, with EOS appended when the
    template leaves the last answer open, and without a second BOS.

    Raises:
        RejectedRow: template_error, special_token_in_text, answer_not_located or no_trained_tokens.
    """
    given = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    spoken, vocabulary = vocabulary.of(given, tools)
    _refuse_special_tokens(spoken, vocabulary)
    chat = RenderedChat(spoken, tools, vocabulary)
    encoding = vocabulary.encode(chat.text)
    turns = _locate_turns(chat, encoding)
    if not turns:
        raise RejectedRow("no_trained_tokens")

    row = Masked(list(encoding.ids))
    if any(_words_elsewhere(chat, encoding, turn) for turn in turns):
        row.flags.add("words_elsewhere")
    _close_last_turn(row, turns[-1], vocabulary)
    if any(turn.ending == "open" for turn in turns) or turns[-1].ending != "stop":
        row.flags.add("no_stop_token")
    stripped = _stripped(chat, encoding, turns)
    row.flags |= _flags_of_thinking(chat, given, turns[-1])
    if train_on == "all":
        row.segments = [(0, len(row.input_ids))]
    else:
        trained = [turn for turn in turns if messages[turn.index].get("train", True)]
        row.segments = [(turn.start, turn.end) for turn in trained if turn.index not in stripped]
        if any(turn.index in stripped for turn in trained):
            row.flags.add("earlier_unlearned")
    _finish(row, vocabulary)
    return row


def tokenize_text(text: str, vocabulary: Vocabulary) -> Masked:
    """Tokenise plain text: BOS where the tokenizer adds one, every token learned, EOS at the end."""
    row = Masked(vocabulary.encode(text, special=True).ids)
    eos = vocabulary.eos_id
    if row.input_ids and row.input_ids[-1] not in vocabulary.stop_ids and eos is not None:
        row.input_ids.append(eos)
    row.segments = [(0, len(row.input_ids))]
    _finish(row, vocabulary)
    return row


@dataclass
class _Turn:
    """The trained tokens [start, end) of message `index`; `ending` says what kind of token the last is."""

    index: int
    start: int
    end: int
    ending: Ending


def _locate_turns(chat: RenderedChat, encoding: Encoding) -> list[_Turn]:
    turns: list[_Turn] = []
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant":
            continue
        turn = _locate_calls(chat, encoding, index) if "tool_calls" in message else _locate(chat, encoding, index)
        if turns and turn.start < turns[-1].end:
            raise RejectedRow("answer_not_located", f"message {index + 1} overlaps the answer before it")
        turns.append(turn)
    return turns


def _locate(chat: RenderedChat, encoding: Encoding, index: int) -> _Turn:
    """An answer in words: from the hand-over, or else its first character, to its stop token."""
    if index in chat.spans:
        begin, finish = chat.spans[index]
        hand_over = chat.hand_over(index, begin)
        start = hand_over if hand_over is not None and hand_over < finish else begin
        end, ending = _ending(chat, encoding, index, finish)
        return _Turn(index, encoding.token_at(start), end, ending)

    hand_over = chat.hand_over(index, None)
    if hand_over is None:
        raise RejectedRow("answer_not_located", f"message {index + 1}")
    visible = split_thinking(chat.messages[index]["content"])[1].strip()
    begin = chat.text.find(visible, hand_over) if visible else -1
    while begin >= 0:  # the words may also occur in the reasoning printed before them
        finish = begin + len(visible)
        end, ending = _ending(chat, encoding, index, finish)
        closed = ending != "open" or not chat.text[finish:].strip()
        if closed and encoding.text_of(encoding.token_at(hand_over), end) in chat.up_to(index):
            return _Turn(index, encoding.token_at(hand_over), end, ending)
        begin = chat.text.find(visible, begin + 1)
    printed = "" if visible in chat.text else ": the template does not print it"
    raise RejectedRow("answer_not_located", f"message {index + 1}{printed}")


def _locate_calls(chat: RenderedChat, encoding: Encoding, index: int) -> _Turn:
    """An answer with tool calls, whose form is the template's own: from the hand-over to the first stop token.

    That token may also be the one right behind the turn, for models which stop on the mark of the next speaker.
    """
    hand_over = chat.hand_over(index, None)
    if hand_over is None:
        raise RejectedRow("answer_not_located", f"tool calls of message {index + 1}")
    alone = chat.up_to(index)
    unchanged = chat.text.startswith(alone)
    start, last = encoding.token_at(hand_over), len(encoding.ids)
    bound = encoding.token_at(len(alone)) if unchanged else last
    stop = next((k for k in range(start, min(bound + 1, last)) if encoding.ids[k] in chat.vocabulary.stop_ids), None)
    learned = encoding.text_of(start, bound if stop is None else min(stop, bound)).strip()
    names = [call["function"]["name"] for call in chat.messages[index]["tool_calls"]]
    if learned not in alone or not all(name in learned for name in names) or (stop is None and not unchanged):
        printed = "" if all(name in alone for name in names) else ": the template does not print them"
        raise RejectedRow("answer_not_located", f"tool calls of message {index + 1}{printed}")
    return _Turn(index, start, bound, "open") if stop is None else _Turn(index, start, stop + 1, "stop")


def _words_elsewhere(chat: RenderedChat, encoding: Encoding, turn: _Turn) -> bool:
    """Whether the words beside a turn's tool calls are printed, and not in the turn."""
    message = chat.messages[turn.index]
    words = message["content"].strip() if "tool_calls" in message else ""
    return bool(words) and words not in encoding.text_of(turn.start, turn.end) and words in chat.text


def _stripped(chat: RenderedChat, encoding: Encoding, turns: Sequence[_Turn]) -> frozenset[int]:
    """Messages whose reasoning is gone because they are not the last: up to their end, the text is another than when
    they were."""
    thinking = chat.vocabulary.render_mode.thinking
    if thinking is None:
        return frozenset()
    thought = [turn for turn in turns[:-1] if has_reasoning(chat.messages[turn.index], thinking)]
    ends = {turn.index: encoding.starts[min(turn.end, len(encoding.ids)) - 1] for turn in thought}
    return frozenset(i for i, end in ends.items() if not chat.up_to(i).startswith(chat.text[:end]))


def _flags_of_thinking(chat: RenderedChat, given: Sequence[Message], last: _Turn) -> set[Flag]:
    thinking = chat.vocabulary.render_mode.thinking
    if thinking is None:
        return set()
    flags: set[Flag] = {"leaves_prompt"} if last.index in chat.leaves_prompt else set()
    if asks_to_think(chat.messages, thinking):
        return flags | {"reasoned"}
    removed = chat.vocabulary.setting == "off" and asks_to_think(in_fields(given, thinking), thinking)
    return flags | {"reasoning_removed"} if removed else flags


def _ending(chat: RenderedChat, encoding: Encoding, index: int, finish: int) -> tuple[int, Ending]:
    """Token index after the answer's last token, for an answer whose words end at character `finish`.

    Looks for a stop token with only special tokens and whitespace in between; then, for templates that end
    answers with words, within what is printed when the answer is the last message; then settles for any special.
    """
    after = encoding.token_from(finish)
    special: int | None = None
    for k in range(after, len(encoding.ids)):
        if encoding.ids[k] in chat.vocabulary.stop_ids:
            return k + 1, "stop"
        if encoding.ids[k] in chat.vocabulary.added_ids:
            special = k if special is None else special
        elif encoding.text_of(k, k + 1).strip():
            break
    alone = chat.up_to(index)
    if chat.text.startswith(alone):
        for k in range(after, encoding.token_from(len(alone))):
            if encoding.ids[k] in chat.vocabulary.stop_ids:
                return k + 1, "stop"
    return (after, "open") if special is None else (special + 1, "special")


def _close_last_turn(row: Masked, last: _Turn, vocabulary: Vocabulary) -> None:
    """Append EOS to an open last answer, after whatever words the template prints behind it."""
    if last.ending == "open" and vocabulary.eos_id is not None:
        row.input_ids.append(vocabulary.eos_id)
        last.end, last.ending = len(row.input_ids), "stop"
        row.flags.add("eos_appended")


def _finish(row: Masked, vocabulary: Vocabulary) -> None:
    """Take out a second BOS and write the labels."""
    bos = vocabulary.bos_id
    if bos is not None and row.input_ids[:2] == [bos, bos]:
        del row.input_ids[0]
        row.segments = [(max(0, start - 1), end - 1) for start, end in row.segments]
        row.flags.add("double_bos")
    if vocabulary.adds_bos and row.input_ids[:1] != [bos]:
        row.flags.add("no_bos")
    row.labels = [IGNORED] * len(row.input_ids)
    for start, end in row.segments:
        row.labels[start:end] = row.input_ids[start:end]
    if not any(start < end for start, end in row.segments):
        raise RejectedRow("no_trained_tokens")


def _refuse_special_tokens(messages: Iterable[Message], vocabulary: Vocabulary) -> None:
    for number, message in enumerate(messages, 1):
        parts = (message["content"], message.get("reasoning_content", ""), str(message.get("tool_calls", "")))
        token = next(filter(None, map(vocabulary.special_in, parts)), None)
        if token:
            raise RejectedRow("special_token_in_text", f"message {number} holds {token}")
