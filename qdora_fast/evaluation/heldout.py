"""Base and tuned model on the held-out rows: the same loaded model, asked twice.

With its adapter switched off the trained model is its own base, at the same quantisation, so the difference is the
tuning alone. Answers are greedy and rendered with the training template. What counts as right is a metric's business
(`metrics.py`), whether a difference means anything is `statistics.py`'s; here models are asked and losses taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qdora_fast.data.clean.rejects import RejectedRow
from qdora_fast.data.loss import labelled, token_losses
from qdora_fast.data.tokenize.modes import Setting, answer_of, in_mode_of
from qdora_fast.data.tokenize.thinking import thinks
from qdora_fast.evaluation.generation import encode
from qdora_fast.evaluation.logits import follows, logits_at
from qdora_fast.models.out_of_memory import Batches, attempt

OnRow = Callable[[int, int], None]
"""Told how many more rows are read, and how many tokens."""

BATCH_TOKENS = 1024
"""Tokens of the rows that are read at once, or those of the longest row: no batch takes more memory than that."""


@dataclass(frozen=True)
class Question:
    """One held-out row as a prompt and the answer it should get."""

    prompt: str
    """Rendered with the chat template, ready to be continued."""
    shown: str
    """The last user message, for people."""
    reference: str
    row: Mapping[str, Any] = field(default_factory=dict)
    tokens: Sequence[int] = ()
    """Of the prompt."""
    answer_tokens: int = 0
    """Of the reference as the template writes it, with what ends it."""


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


def of_both(model: Any, measure: Callable[[str], Any]) -> Both:
    """Run `measure` with the adapter of a PEFT model switched off, then as it is; it is told "base" and "tuned"."""
    with model.disable_adapter():
        base = measure("base")
    return Both(base, measure("tuned"))


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
    thinking: Setting = "as_is",
    on_refused: Callable[[str], None] = lambda why: None,
) -> list[Question]:
    """Turn held-out rows into questions: everything before the last assistant turn is the prompt.

    Rows without an earlier turn (plain text) and prompts longer than `max_length` tokens are passed over.

    Args:
        date: see `render_chat`.
        thinking: `data.thinking`, by which each row is asked in its own mode.
        on_refused: told of each row that the chat template renders with its answer and not without; it is passed over.
    """
    rendered: list[tuple[str, str, Mapping[str, Any]]] = []
    for row in rows:
        tools = row.get("tools") or None
        messages, mode = in_mode_of(tokenizer, row.get("messages") or [], tools, thinking)
        *before, _ = messages or [{}]
        if not before:
            continue
        render = partial(mode.render, tokenizer, tools=tools, date=date)
        try:
            rendered.append((render(before, add_generation_prompt=True), render(messages), row))
        except RejectedRow as error:
            on_refused(f"{row['meta']['source']}: {error.detail}")
    prompts = encode(tokenizer, [prompt for prompt, _, _ in rendered])
    answers = [_answer(prompt, whole) for prompt, whole, _ in rendered]
    lengths = [len(ids) for ids in encode(tokenizer, answers)]
    return [
        Question(prompt, _shown(row), _reference(row, answer, tokenizer), row, ids, length)
        for (prompt, _, row), answer, ids, length in zip(rendered, answers, prompts, lengths, strict=True)
        if len(ids) < max_length
    ]


def row_losses(
    model: Any,
    examples: Sequence[Mapping[str, Sequence[int]]],
    batches: Batches | None = None,
    on_row: OnRow | None = None,
) -> list[Loss]:
    """The loss of each tokenised row over its trained tokens. Rows of similar length are read together, padded on the
    right, where no causal model looks; logits are made for some of their positions at a time.

    Raises:
        OutOfMemory: a row does not fit.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
    losses = [Loss(0.0, 0)] * len(examples)
    runner = batches or Batches(model)

    def read(chosen: Sequence[int]) -> list[Loss]:
        return _losses(model, [examples[i] for i in chosen])

    for part in _parts(model, examples, order):
        for chosen, found in runner.run(part, len(part), read, "held-out rows were read"):
            for i, loss in zip(chosen, found, strict=True):
                losses[i] = loss
            if on_row:
                on_row(len(chosen), sum(len(examples[i]["input_ids"]) for i in chosen))
    return losses


def _parts(model: Any, examples: Sequence[Mapping[str, Sequence[int]]], order: Sequence[int]) -> list[list[int]]:
    """The rows of each batch, by length; one row each where the model cannot be read in batches."""
    shortest = [examples[i]["input_ids"] for i in order[:2]]
    if len(order) < 2 or attempt(lambda: follows(model, _padded(model, shortest))) is not True:  # or two do not fit
        return [[i] for i in order]
    most = max(BATCH_TOKENS, len(examples[order[-1]]["input_ids"]))
    parts: list[list[int]] = [[]]
    for i in order:
        if (len(parts[-1]) + 1) * len(examples[i]["input_ids"]) > most:
            parts.append([])
        parts[-1].append(i)
    return [part for part in parts if part]


def _padded(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Token ids [rows, longest]; each row's last token is repeated, so that no model takes it for padding."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=model.device)


def _losses(model: Any, examples: Sequence[Mapping[str, Sequence[int]]]) -> list[Loss]:
    """The losses of some rows, read in one pass."""
    import torch

    ids = _padded(model, [example["input_ids"] for example in examples])  # [B, T]
    labels = [labelled(example["labels"]) for example in examples]
    counts = [len(tokens) for _, tokens in labels]
    positions = torch.cat([at + row * ids.shape[1] for row, (at, _) in enumerate(labels)]).to(model.device)
    wanted = torch.cat([tokens for _, tokens in labels])
    parts, seen = [], 0
    for part, logits in logits_at(model, ids, positions):  # consecutive parts
        parts.append(token_losses(logits, wanted[seen : seen + len(part)]).cpu())
        seen += len(part)
    of_tokens = torch.cat(parts) if parts else torch.zeros(0)
    return [Loss(float(each.sum()), len(each)) for each in of_tokens.split(counts)]


def mean_loss(losses: Sequence[Loss]) -> float:
    """Mean cross-entropy over all trained tokens, in nats; NaN without rows."""
    tokens = sum(loss.tokens for loss in losses)
    return sum(loss.total for loss in losses) / tokens if tokens else float("nan")


def _shown(row: Mapping[str, Any]) -> str:
    *before, _ = row["messages"]
    users = [message["content"] for message in before if message["role"] == "user"]
    return str(users[-1] if users else before[-1]["content"])


def _answer(prompt: str, whole: str) -> str:
    """What the template writes for the last turn."""
    return whole[len(prompt) :] if whole.startswith(prompt) else whole


def _reference(row: Mapping[str, Any], answer: str, tokenizer: Any) -> str:
    """The last turn's content without its reasoning; of a tool call, which has none, what the template writes."""
    last = row["messages"][-1]
    text = answer_of(last, thinks(tokenizer)) if last.get("content") else ""
    if not text:
        text = answer
        for token in tokenizer.all_special_tokens:
            text = text.replace(token, "")
    return text.strip()
