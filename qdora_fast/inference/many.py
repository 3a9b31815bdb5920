"""Answers to many conversations by one loaded model: the answers of `chat`, several at a time.

A window of rows is sorted by length and answered in batches; where memory runs out, its later batches are smaller, and
a row that does not fit alone says so and costs no other. What a window's batches are depends on its rows and on
nothing before them, so that a file that was broken off and is continued window by window gets the same answers to the
bit. Between a batch and a single question there is rounding, which can decide between two tokens of all but equal
scores; nothing else: prompts are padded on the left, masked, with their own first token, so that a penalty for
repetition sees no token that the prompt has not.

Draws (temperature above 0) are seeded by the first row of each batch, so that a question that stands twice in a file
gets two answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Protocol

from qdora_fast.data.read.questions import Question
from qdora_fast.data.tokenize.replies import ReplyReader
from qdora_fast.inference.conversation import SamplingParams, generation_options
from qdora_fast.inference.loading import ChatModel
from qdora_fast.models.out_of_memory import Batches
from qdora_fast.system.errors import ConfigError, OutOfMemory

OnRows = Callable[[int], None]
"""Told how many more rows are answered."""
STOP, LENGTH = "stop token", "length"
DOING = "rows were answered"
BATCHES = 8
"""Batches of a window."""


@dataclass(frozen=True)
class Said:
    """The answer to one row; or, in `problem`, why there is none."""

    text: str | None = None
    """Without the reasoning before it."""
    stopped_by: str | None = None
    """`STOP`, or `LENGTH` where it was cut; of a server what else it says."""
    tokens: int | None = None
    reasoning: str = ""
    problem: str = ""


class Answerer(Protocol):
    """What answers: a loaded model, or a server."""

    batch_size: int

    def answers(self, questions: Sequence[Question], first: int, on_rows: OnRows) -> list[Said]:
        """The answers in the questions' order; `first` is the number of the first one in the file, from 0."""
        ...


@dataclass
class ManyAnswers:
    """Answers of a loaded model."""

    chat_model: ChatModel
    sampling: SamplingParams
    batch_size: int = 8
    on_note: Callable[[str], None] = lambda text: None
    _noted: set[str] = field(default_factory=set)

    def answers(self, questions: Sequence[Question], first: int, on_rows: OnRows) -> list[Said]:
        """See `Answerer`."""
        said: dict[int, Said] = {}
        prompts: dict[int, list[int]] = {}
        longest = self.chat_model.source.max_length
        for number, question in enumerate(questions):
            try:
                prompt = self.chat_model.source.prompt(question.messages, question.tools, advise=False)
            except ConfigError as error:
                said[number] = Said(problem=str(error))
                continue
            if len(prompt) < longest:
                prompts[number] = prompt
            else:
                said[number] = Said(problem=f"{len(prompt):,} tokens to read, and the model takes {longest:,}")
        on_rows(len(said))
        roomy = [each for each in prompts if len(prompts[each]) + self.sampling.max_new_tokens <= longest]
        for numbers, size in ((roomy, self.batch_size), (prompts.keys() - set(roomy), 1)):
            left = sorted(numbers, key=lambda number: (len(prompts[number]), number))
            self._answer(left, prompts, size, first, said, on_rows)
        return [said[number] for number in range(len(questions))]

    def _answer(
        self,
        left: list[int],
        prompts: dict[int, list[int]],
        size: int,
        first: int,
        said: dict[int, Said],
        on_rows: OnRows,
    ) -> None:
        """Answers to the prompts of these numbers, shortest first, into `said`."""
        runner = Batches(self.chat_model.model, on_note=self._note)

        def write(chosen: Sequence[int]) -> list[Said]:
            return self._written([prompts[number] for number in chosen], first + min(chosen))

        while left:
            try:
                for chosen, replies in runner.run(left, size, write, DOING):
                    said.update(zip(chosen, replies, strict=True))
                    on_rows(len(chosen))
                return
            except OutOfMemory:  # the shortest that is left, alone
                number = next(each for each in left if each not in said)
                told = f"its {len(prompts[number]):,} tokens and an answer do not fit into memory"
                said[number] = Said(problem=told)
                on_rows(1)
                left = [each for each in left if each not in said]

    def _written(self, prompts: Sequence[Sequence[int]], number: int) -> list[Said]:
        """The answers to a batch."""
        import torch

        model, vocabulary = self.chat_model.model, self.chat_model.source.vocabulary
        longest = max(map(len, prompts))
        room = min(self.sampling.max_new_tokens, self.chat_model.source.max_length - longest)
        padded = [[*[each[0]] * (longest - len(each)), *each] for each in prompts]
        mask = [[0] * (longest - len(each)) + [1] * len(each) for each in prompts]
        if self.sampling.seed is not None:
            torch.manual_seed(self.sampling.seed * 1_000_003 + number)
        with torch.inference_mode():
            out = model.generate(  # [batch, prompt + new]
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=room,
                **generation_options(self.sampling),
            )
        read = ReplyReader(vocabulary.tokenizer)
        return [self._said(read, prompt, row) for prompt, row in zip(prompts, out[:, longest:].tolist(), strict=True)]

    def _said(self, read: ReplyReader, prompt: Sequence[int], written: Sequence[int]) -> Said:
        stop_ids = self.chat_model.source.vocabulary.stop_ids
        tokens = list(takewhile(lambda token: token not in stop_ids, written))
        reply = read(tokens, prompt)
        return Said(reply.answer, STOP if len(tokens) < len(written) else LENGTH, len(tokens), reply.thought)

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.on_note(text)


def in_windows(questions: Sequence[Question], answerer: Answerer, start: int) -> Any:
    """(numbers of the next rows, their questions) from row `start` on, which is the beginning of a window."""
    size = BATCHES * answerer.batch_size
    for begin in range(start, len(questions), size):
        yield begin, questions[begin : begin + size]
