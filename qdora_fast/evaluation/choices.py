"""Which of a few given answers a model finds likeliest: the metric `choice`, which generates nothing.

Each option is read after each prompt, and the option whose tokens have the highest log-likelihood in sum is chosen.
Prompt and option are tokenised as one text, since a tokenizer may join the end of one with the start of the other;
what is scored is everything behind the tokens that the prompt shares with all of its options, so that all options are
judged over the same text. Only the logits from there on are computed, and only those of scored tokens become float32.

What this gives up: an option that another one starts with ("Paris", "Paris, Texas") is always the likelier one in
sum. A mean per token would favour long options instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.data.tokenize.spans import shared_length
from qdora_fast.models.out_of_memory import Batches
from qdora_fast.system.errors import ConfigError, DataError


@dataclass(frozen=True)
class _Reading:
    """One option after one prompt."""

    prompt: int
    option: int
    tokens: tuple[int, ...]
    start: int
    """Index of the first scored token, at least 1; the same for all options of a prompt."""


def choose(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    options: Sequence[str],
    *,
    batch_size: int,
    batches: Batches | None = None,
) -> list[int]:
    """Index of the likeliest option after each prompt, in the prompts' order; the first one of equals.

    Args:
        model: a causal language model in evaluation mode.
        prompts: rendered with the chat template, ready to be continued.
        options: what may follow.
        batch_size: sequences read at once, fewer where memory runs out. Options that differ in their last token only
            are one sequence.

    Raises:
        ConfigError: an option is blank, or there is none.
        DataError: a prompt without a token that stays the same before all options.
        OutOfMemory: a single sequence does not fit.
    """
    blank = [number for number, option in enumerate(options, 1) if not option.strip()]
    if blank or not options:
        what = f"option {blank[0]} is blank" if blank else "there is nothing to choose from"
        raise ConfigError(f"evaluation.choices: {what}; list the answers, each with a text")
    best = [(float("-inf"), 0)] * len(prompts)
    readings = _readings(tokenizer, prompts, options)
    for reading, total in _log_likelihoods(model, tokenizer, readings, batch_size, batches or Batches(model)):
        # The larger value, then the earlier option: batches come in an order of their own.
        best[reading.prompt] = max(best[reading.prompt], (total, -reading.option))
    return [-option for _, option in best]


def options_of(rows: Sequence[Mapping[str, Any]], *, most: int = 20) -> list[str]:
    """The different last answers of the rows, the most frequent first (then the first seen).

    Rows without messages (plain text) and answers without content (tool calls) are passed over.

    Raises:
        ConfigError: fewer than two answers, or more than `most`.
    """
    answers = Counter(
        answer for row in rows if row.get("messages") and (answer := (row["messages"][-1].get("content") or "").strip())
    )
    if len(answers) < 2:
        raise ConfigError(
            f"evaluation.choices: the training rows have {len(answers)} different answer(s), and a choice "
            "needs two; list them in evaluation.choices, or choose another evaluation.metric"
        )
    if len(answers) > most:
        raise ConfigError(
            f"evaluation.choices: the training rows have {len(answers):,} different answers, and {most} are the most "
            "that are taken by themselves; list those to choose from, or choose another evaluation.metric, such as "
            "normalized_match"
        )
    return [answer for answer, _ in answers.most_common()]


def _readings(tokenizer: Any, prompts: Sequence[str], options: Sequence[str]) -> list[_Reading]:
    readings: list[_Reading] = []
    for number, prompt in enumerate(prompts):
        alone = tokenizer(prompt, add_special_tokens=False).input_ids
        whole = tokenizer([prompt + option for option in options], add_special_tokens=False).input_ids
        start = min(shared_length(alone, tokens) for tokens in whole)
        if start == 0:
            raise DataError(
                f"evaluation.metric choice: prompt {number + 1} ({prompt[:40]!r}) is too short to score after"
            )
        readings += [_Reading(number, option, tuple(tokens), start) for option, tokens in enumerate(whole)]
    return readings


def _log_likelihoods(
    model: Any, tokenizer: Any, readings: Sequence[_Reading], batch_size: int, batches: Batches
) -> list[tuple[_Reading, float]]:
    """Each reading with the sum of the log-likelihoods of its scored tokens, in nats; shortest first.

    The last token is predicted and never read, so that readings that differ in it alone share a sequence.
    """
    of_sequence: defaultdict[tuple[int, ...], list[_Reading]] = defaultdict(list)
    for reading in readings:
        of_sequence[reading.tokens[:-1]].append(reading)
    padding = tokenizer.pad_token_id or 0

    def read(sequences: Sequence[tuple[int, ...]]) -> list[tuple[_Reading, float]]:
        return _read(model, [(each, of_sequence[each]) for each in sequences], padding)

    order = sorted(of_sequence, key=len)
    parts = batches.run(order, batch_size, read, "options were read")
    return [one for _, found in parts for one in found]


def _read(
    model: Any, batch: Sequence[tuple[tuple[int, ...], list[_Reading]]], padding: int
) -> list[tuple[_Reading, float]]:
    """The same for the readings of some sequences, the longest last, in one pass. Padding stands on the right, where no
    causal model looks."""
    import torch

    found: list[tuple[_Reading, float]] = []
    longest = len(batch[-1][0])
    ids = torch.tensor(
        [[*each, *[padding] * (longest - len(each))] for each, _ in batch], device=model.device
    )  # [B, T]
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each, _ in batch], device=model.device)
    first = min(reading.start for _, own in batch for reading in own) - 1
    with torch.inference_mode():
        # A number of positions from the end: the only form of this argument that Unsloth's models honour too.
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=longest - first)
        logits = out.logits[:, first - longest :]  # [B, T - first, V]
        for row, (each, own) in enumerate(batch):
            start = min(reading.start for reading in own)
            likelihoods = logits[row, start - 1 - first : len(each) - first].float().log_softmax(-1)  # [scored, V]
            for reading in own:
                wanted = torch.tensor(reading.tokens[reading.start :], device=likelihoods.device)[:, None]
                found.append((reading, float(likelihoods[reading.start - start :].gather(1, wanted).sum())))
    return found
