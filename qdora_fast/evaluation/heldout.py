"""Base and tuned model on the held-out rows: the same loaded model, asked twice.

With its adapter switched off the trained model is its own base, at the same quantisation, so the difference is the
tuning alone. Answers are greedy and rendered with the training template. What counts as right is a metric's business
(`metrics.py`), whether a difference means anything is `statistics.py`'s; here models are asked and losses taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.loss import labelled, token_losses
from qdora_fast.data.tokenize.chat_text import render_chat
from qdora_fast.evaluation.logits import logits_at
from qdora_fast.models.out_of_memory import Batches

OnAnswer = Callable[[int], None]
"""Told how many more answers are finished."""


@dataclass(frozen=True)
class Question:
    """One held-out row as a prompt and the answer it should get."""

    prompt: str
    """Rendered with the chat template, ready to be continued."""
    shown: str
    """The last user message, for people."""
    reference: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a model said: its text, how many tokens it took, and whether it came to an end by itself."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Loss:
    """Summed negative log-likelihood, in nats, of `tokens` trained tokens of one row."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class Both:
    """One thing of the base, and the same of the tuned model."""

    base: Any
    tuned: Any


def of_both(model: Any, measure: Callable[[], Any]) -> Both:
    """Run `measure` with the adapter of a PEFT model switched off, then as it is."""
    with model.disable_adapter():
        base = measure()
    return Both(base, measure())


def choose_rows(rows: Sequence[Mapping[str, Any]], most: int) -> list[int]:
    """Numbers of the rows to ask about, ascending: all, or `most` of them by their content's hash, so that neither the
    order of the file nor rows added later decide."""
    if len(rows) <= most:
        return list(range(len(rows)))
    ranked = sorted(range(len(rows)), key=lambda number: str(rows[number]["meta"]["hash"]))
    return sorted(ranked[:most])


def make_questions(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    max_length: int,
    date: str | None = None,
    on_refused: Callable[[str], None] = lambda why: None,
) -> list[Question]:
    """Turn held-out rows into questions: everything before the last assistant turn is the prompt.

    Rows without an earlier turn (plain text) and prompts longer than `max_length` tokens are passed over.

    Args:
        date: see `render_chat`.
        on_refused: told of each row that the chat template renders with its answer and not without; it is passed over.
    """
    questions: list[Question] = []
    for row in rows:
        *before, last = row.get("messages") or [{}]
        if not before:
            continue
        tools = row.get("tools") or None
        try:
            prompt = render_chat(tokenizer, before, tools, add_generation_prompt=True, date=date)
        except RejectedRow as error:
            on_refused(f"{row['meta']['source']}: {error.detail}")
            continue
        whole = "" if last.get("content") else render_chat(tokenizer, row["messages"], tools, date=date)
        reference = last.get("content") or _rendered_answer(whole, prompt, tokenizer)
        if len(tokenizer(prompt, add_special_tokens=False).input_ids) < max_length:
            users = [message["content"] for message in before if message["role"] == "user"]
            shown = users[-1] if users else before[-1]["content"]
            questions.append(Question(prompt, shown, reference.strip(), row))
    return questions


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    stop_ids: frozenset[int],
    on_answer: OnAnswer | None = None,
    batches: Batches | None = None,
) -> list[Reply]:
    """Greedy answers in the prompts' order; batches are of similar length, padded on the left, and smaller where memory
    runs out.

    Raises:
        OutOfMemory: a single prompt and its answer do not fit.
    """
    import torch

    def answer(chosen: Sequence[int]) -> list[Reply]:
        texts = [prompts[i] for i in chosen]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.inference_mode():
            out = model.generate(  # [batch, prompt + new]
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(stop_ids),
                pad_token_id=tokenizer.pad_token_id,
            )
        return [_reply(tokens, tokenizer, stop_ids) for tokens in out[:, batch["input_ids"].shape[1] :].tolist()]

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies = [Reply("", 0, False)] * len(prompts)
    with _left_padding(tokenizer):
        for chosen, answered in (batches or Batches(model)).run(order, batch_size, answer, "questions were answered"):
            for i, reply in zip(chosen, answered, strict=True):
                replies[i] = reply
            if on_answer:
                on_answer(len(chosen))
    return replies


def row_losses(
    model: Any, examples: Sequence[Mapping[str, Sequence[int]]], batches: Batches | None = None
) -> list[Loss]:
    """The loss of each tokenised row over its trained tokens. Logits are made for some of these at a time.

    Raises:
        OutOfMemory: a row does not fit.
    """
    rows = (batches or Batches(model)).run(examples, 1, lambda row: _row_loss(model, row[0]), "a held-out row was read")
    return [loss for _, loss in rows]


def _row_loss(model: Any, example: Mapping[str, Sequence[int]]) -> Loss:
    import torch

    ids = torch.tensor([list(example["input_ids"])], device=model.device)  # [1, T]
    positions, tokens = labelled(example["labels"])
    total, seen = 0.0, 0
    for part, logits in logits_at(model, ids, positions.to(model.device)):  # consecutive parts
        total += float(token_losses(logits, tokens[seen : seen + len(part)]).sum())
        seen += len(part)
    return Loss(total, len(tokens))


def mean_loss(losses: Sequence[Loss]) -> float:
    """Mean cross-entropy over all trained tokens, in nats; NaN without rows."""
    tokens = sum(loss.tokens for loss in losses)
    return sum(loss.total for loss in losses) / tokens if tokens else float("nan")


@contextmanager
def _left_padding(tokenizer: Any) -> Iterator[None]:
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def _reply(tokens: list[int], tokenizer: Any, stop_ids: frozenset[int]) -> Reply:
    answered = _until_stop(tokens, stop_ids)
    return Reply(
        tokenizer.decode(answered, skip_special_tokens=True).strip(), len(answered), len(answered) < len(tokens)
    )


def _until_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]


def _rendered_answer(whole: str, prompt: str, tokenizer: Any) -> str:
    """A last turn that is a tool call has no content: take what the template writes for it."""
    answer = whole[len(prompt) :] if whole.startswith(prompt) else whole
    for token in tokenizer.all_special_tokens:
        answer = answer.replace(token, "")
    return answer
