"""What a model writes: greedy answers to many prompts, in batches that do not wait for their longest answer.

A batch takes as many steps as its longest answer, so prompts are put together by how long their answers should be, and
each is answered in two passes. The first writes about as many tokens as the references have; answers that have not come
to an end by then are gathered into new batches and continued, which reads their prompts once more. So a model that
stops where its rows stop is never held up by one that rambles, and keys and values are cached within a pass.

Greedy answers do not depend on the batch, on padding (on the left, masked) or on the passes, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qdora_fast.data.tokenize.replies import ReplyReader
from qdora_fast.models.out_of_memory import Batches

OnAnswer = Callable[[int, int], None]
"""Told how many more answers are finished, and how many more tokens are written."""

SHORTEST_PASS = 16
"""Tokens of the first pass where references are shorter."""
LONGER = 1.25
"""Times the reference that the first pass writes."""
BUCKETS = 2.0
"""Answers whose lengths lie within a factor of about 1.6 share batches."""


@dataclass(frozen=True)
class Reply:
    """What a model said: its answer, how many tokens it took, and whether it came to an end by itself."""

    text: str
    tokens: int
    finished: bool
    thought: str = ""
    """The reasoning before the answer, which is not judged."""
    in_thought: bool = False
    """Whether it ended within its reasoning, and there is no answer."""

    @property
    def shown(self) -> str:
        """For people: the answer, behind its reasoning if it has any."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.text}".rstrip() if self.thought else self.text


def encode(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of rendered prompts."""
    return [list(ids) for ids in tokenizer(list(prompts), add_special_tokens=False).input_ids] if prompts else []


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    stop_ids: frozenset[int],
    on_answer: OnAnswer | None = None,
    batches: Batches | None = None,
    expected: Sequence[int] = (),
) -> list[Reply]:
    """Greedy answers in the prompts' order; batches are smaller where memory runs out.

    Args:
        prompts: their tokens, see `encode`.
        expected: tokens of each reference; empty: one pass over prompts of similar length.

    Raises:
        OutOfMemory: a single prompt and its answer do not fit.
    """
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    runner = batches or Batches(model)

    def first_pass(index: int) -> int:
        wanted = max(SHORTEST_PASS, math.ceil(LONGER * expected[index])) if expected else max_new_tokens
        return min(wanted, max_new_tokens)

    def run(which: Sequence[int], most: Callable[[int], int]) -> None:
        def write(chosen: Sequence[int]) -> list[list[int]]:
            texts = [[*prompts[i], *written[i]] for i in chosen]
            return _write(model, texts, max(map(most, chosen)), stop_ids, tokenizer.pad_token_id or 0)

        order = sorted(which, key=lambda i: (_bucket(most(i)), len(prompts[i]) + len(written[i])))
        for chosen, answers in runner.run(order, batch_size, write, "questions were answered"):
            before = sum(len(written[i]) for i in chosen)
            for i, tokens in zip(chosen, answers, strict=True):
                allowed = tokens[: max_new_tokens - len(written[i])]
                answer = _until_stop(allowed, stop_ids)
                written[i] += answer
                ended[i] = len(answer) < len(allowed)
            if on_answer:
                done = sum(ended[i] or len(written[i]) == max_new_tokens for i in chosen)
                on_answer(done, sum(len(written[i]) for i in chosen) - before)

    run(range(len(prompts)), first_pass)
    unfinished = [i for i in range(len(prompts)) if not ended[i] and len(written[i]) < max_new_tokens]
    run(unfinished, lambda i: max_new_tokens - len(written[i]))
    read = ReplyReader(tokenizer)
    said = [read(tokens, prompt) for tokens, prompt in zip(written, prompts, strict=True)]
    return [
        Reply(each.answer, len(tokens), end, each.thought, each.unfinished)
        for each, tokens, end in zip(said, written, ended, strict=True)
    ]


def _write(
    model: Any, texts: Sequence[Sequence[int]], most: int, stop_ids: frozenset[int], padding: int
) -> list[list[int]]:
    """The tokens that follow each text, `most` at most; those behind a stop token are of no meaning."""
    import torch

    longest = max(map(len, texts))
    ids = torch.tensor([[*[padding] * (longest - len(each)), *each] for each in texts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in texts], device=model.device)
    with torch.inference_mode():
        out = model.generate(  # [batch, prompt + new]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=sorted(stop_ids),
            pad_token_id=padding,
        )
    return [list(tokens) for tokens in out[:, longest:].tolist()]


def _bucket(tokens: int) -> int:
    return round(BUCKETS * math.log(max(1, tokens)))


def _until_stop(tokens: list[int], stop_ids: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]
