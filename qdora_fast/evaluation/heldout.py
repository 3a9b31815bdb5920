"""Base against tuned on the held-out rows: the same loaded model, answering twice.

With its adapter switched off the trained model is its own base, at the same quantisation, so
the difference is the tuning alone. Answers are greedy, rendered with the training template,
and right when they equal the reference (white space at the ends aside). What it does not do
yet: other metrics, confidence intervals, forgetting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """One held-out row as a prompt and the answer it should get."""

    prompt: str
    """Rendered with the chat template, ready to be continued."""
    shown: str
    """The last user message, for people."""
    reference: str


@dataclass(frozen=True)
class Answer:
    """What base and tuned model said to one question."""

    question: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Comparison:
    """Held-out figures of base and tuned model."""

    answers: tuple[Answer, ...]
    base_accuracy: float | None
    """Share of answers equal to the reference; None when nothing was asked."""
    tuned_accuracy: float | None
    base_loss: float
    """Mean loss per trained token of the held-out rows, in nats."""
    tuned_loss: float

    def figures(self) -> dict[str, Any]:
        """Everything but the answers."""
        figures = {key: value for key, value in asdict(self).items() if key != "answers"}
        return {"metric": "exact_match", "n": len(self.answers), **figures}


def compare(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    rendered: Sequence[dict[str, list[int]]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop_ids: frozenset[int],
    on_answer: Callable[[int], None] | None = None,
) -> Comparison:
    """Ask base and tuned model the same questions and measure their held-out loss.

    Args:
        model: a PEFT model in evaluation mode.
        rendered: the held-out rows as `input_ids` and `labels`, for the loss.
        on_answer: told the number of answers just finished, twice len(questions) in all.
    """
    said: dict[str, list[str]] = {}
    losses: dict[str, float] = {}
    for name, mode in (("base", model.disable_adapter), ("tuned", nullcontext)):
        with mode():
            losses[name] = mean_loss(model, rendered)
            said[name] = generate(model, tokenizer, questions, max_new_tokens, batch_size, stop_ids, on_answer)
    answers = tuple(
        Answer(question.shown, question.reference, base, tuned)
        for question, base, tuned in zip(questions, said["base"], said["tuned"], strict=True)
    )
    return Comparison(
        answers,
        _accuracy((answer.base, answer.reference) for answer in answers),
        _accuracy((answer.tuned, answer.reference) for answer in answers),
        losses["base"],
        losses["tuned"],
    )


def make_questions(rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, most: int, max_length: int) -> list[Question]:
    """Turn held-out rows into questions: everything before the last assistant turn is the prompt.

    Rows without an earlier turn (plain text) and prompts longer than `max_length` tokens are passed over.
    """
    questions: list[Question] = []
    for row in rows:
        *before, last = row.get("messages") or [{}]
        if not before or len(questions) >= most:
            continue
        tools = row.get("tools") or None
        prompt = tokenizer.apply_chat_template(before, tools=tools, tokenize=False, add_generation_prompt=True)
        reference = last.get("content") or _rendered_answer(row["messages"], prompt, tokenizer, tools)
        if len(tokenizer(prompt, add_special_tokens=False).input_ids) < max_length:
            users = [message["content"] for message in before if message["role"] == "user"]
            questions.append(Question(prompt, users[-1] if users else before[-1]["content"], reference.strip()))
    return questions


def generate(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    stop_ids: frozenset[int],
    on_answer: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers in the questions' order; batches are of similar length, padded on the left."""
    import torch

    order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))
    answers = [""] * len(questions)
    with _left_padding(tokenizer), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            prompts = [questions[i].prompt for i in chosen]
            batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
            out = model.generate(  # [batch, prompt + new]
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(stop_ids),
                pad_token_id=tokenizer.pad_token_id,
            )
            for i, tokens in zip(chosen, out[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                answers[i] = tokenizer.decode(_until_stop(tokens, stop_ids), skip_special_tokens=True).strip()
            if on_answer:
                on_answer(len(chosen))
    return answers


def mean_loss(model: Any, rendered: Sequence[dict[str, list[int]]]) -> float:
    """Mean cross-entropy over all trained tokens of the rows, in nats; NaN without rows."""
    import torch
    from torch.nn import functional

    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rendered:
            ids = torch.tensor([row["input_ids"]], device=model.device)  # [1, T]
            labels = torch.tensor(row["labels"][1:], device=model.device)  # [T - 1]
            trained = labels != -100
            logits = model(input_ids=ids).logits[0, :-1][trained]  # [trained, vocabulary]
            total += float(functional.cross_entropy(logits.float(), labels[trained], reduction="sum"))
            count += int(trained.sum())
    return total / count if count else float("nan")


@contextmanager
def _left_padding(tokenizer: Any) -> Iterator[None]:
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def _until_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]


def _rendered_answer(messages: list[dict[str, Any]], prompt: str, tokenizer: Any, tools: Any) -> str:
    """A last turn that is a tool call has no content: take what the template writes for it."""
    whole: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    answer = whole[len(prompt) :] if whole.startswith(prompt) else whole
    for token in tokenizer.all_special_tokens:
        answer = answer.replace(token, "")
    return answer


def _accuracy(pairs: Iterator[tuple[str, str]]) -> float | None:
    right = [said.strip() == reference.strip() for said, reference in pairs]
    return sum(right) / len(right) if right else None
