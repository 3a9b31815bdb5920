"""The likeliest option is the one a plain loop finds, whatever the batches and wherever tokens join."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loaded_models import loaded_base

from qdora_fast.evaluation.choices import choose, options_of
from qdora_fast.models.loading import attach
from qdora_fast.system.errors import ConfigError, DataError

PROMPTS = [
    "### Response:\n",
    "Which city is it, then? It is ",
    "Answer: A",
    "In which country is Delhi?\n### Response:\n",
]
OPTIONS = ["Paris", "New Delhi, India", "no", "yes, of course it is", "nope"]


@pytest.fixture
def loaded(tiny_config: Any) -> Any:
    config = tiny_config()
    base = loaded_base(config)
    return attach(base, config.adapter, config.train).eval(), base.tokenizer


def plainly(model: Any, tokenizer: Any, prompt: str, options: list[str]) -> list[float]:
    """One option at a time, all logits, float64: what the fast way must agree with."""
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    whole = [encode(prompt + option) for option in options]
    start = min(
        next(i for i in range(len(tokens) + 1) if i == len(tokens) or tokens[: i + 1] != encode(prompt)[: i + 1])
        for tokens in whole
    )
    values = []
    for tokens in whole:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens], device=model.device)).logits[0].double().log_softmax(-1)
        each = [float(logits[i - 1, tokens[i]]) for i in range(start, len(tokens))]
        values.append(sum(each))
    return values


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_choice_is_that_of_a_plain_loop(loaded: Any, batch_size: int) -> None:
    model, tokenizer = loaded
    chosen = choose(model, tokenizer, PROMPTS, OPTIONS, batch_size=batch_size)
    for prompt, option in zip(PROMPTS, chosen, strict=True):
        values = plainly(model, tokenizer, prompt, OPTIONS)
        assert values[option] == pytest.approx(max(values), abs=1e-4)


class Letters:
    """A tokenizer of letters, except that "ab" is one token."""

    pad_token_id = 0

    def __call__(self, text: str | list[str], add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        if isinstance(text, list):
            return SimpleNamespace(input_ids=[self(each, False).input_ids for each in text])
        return SimpleNamespace(input_ids=[ord(letter) for letter in text.replace("ab", "\x01")])


class Table:
    """A model whose next token depends on the token before it alone; `asked` holds the shapes it was given."""

    device = torch.device("cpu")

    def __init__(self, likelihood: Callable[[int, int], float]) -> None:
        table = torch.tensor([[likelihood(before, after) for after in range(128)] for before in range(128)])
        self.logits, self.asked = table.log(), []

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int, **_: Any) -> SimpleNamespace:
        self.asked.append((*input_ids.shape, logits_to_keep))
        return SimpleNamespace(logits=self.logits[input_ids][:, -logits_to_keep:])


def likelihood(before: int, after: int) -> float:
    return {"xa": 0.5, "ac": 0.2, "xy": 0.3, "x\x01": 0.4, "cd": 0.9}.get(chr(before) + chr(after), 0.001)


def test_options_are_scored_over_the_same_text_where_tokens_join() -> None:
    # "xa" + "b" is x, ab: 0.4. "xa" + "c" is x, a, c: 0.5 x 0.2. Without the shared "a" it would be 0.2 against 0.4.
    model = Table(likelihood)
    assert choose(model, Letters(), ["xa"], ["b", "c"], batch_size=8) == [0]
    assert choose(model, Letters(), ["xa"], ["q", "c", "b"], batch_size=1) == [2]


def test_every_token_counts() -> None:
    assert choose(Table(likelihood), Letters(), ["zx"], ["y", "acd"], batch_size=8) == [0]


def test_the_first_of_equal_options_is_chosen() -> None:
    model = Table(likelihood)
    assert choose(model, Letters(), ["zx"] * 3, ["a", "y", "a"], batch_size=2) == [0, 0, 0]
    assert choose(model, Letters(), ["zx"], ["y", "a", "a"], batch_size=1) == [1]


def test_only_the_logits_of_options_are_asked_for_and_one_token_options_share_a_sequence() -> None:
    model = Table(likelihood)
    choose(model, Letters(), ["p" * 50 + "x"], ["a", "y", "q"], batch_size=8)
    assert model.asked == [(1, 51, 1)]
    model.asked.clear()
    choose(model, Letters(), ["p" * 50, "p" * 60], ["acd"], batch_size=8)
    assert model.asked == [(2, 62, 13)]


def test_no_prompts_are_no_choices() -> None:
    assert choose(Table(likelihood), Letters(), [], ["a", "b"], batch_size=2) == []


@pytest.mark.parametrize(("options", "told"), [([], "nothing to choose"), (["a", " "], "option 2 is blank")])
def test_options_without_text_are_refused(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.choices: .*{told}"):
        choose(Table(likelihood), Letters(), ["x"], options, batch_size=2)


@pytest.mark.parametrize("prompt", ["", "a"])
def test_a_prompt_without_a_token_of_its_own_is_refused(prompt: str) -> None:
    with pytest.raises(DataError, match="prompt 2 .* is too short"):
        choose(Table(likelihood), Letters(), ["x", prompt], ["b"], batch_size=2)


def row(answer: str | None) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}


def test_options_come_from_the_answers_most_frequent_first() -> None:
    rows = [row("no"), row("maybe"), row(" yes\n"), row("yes"), row(""), row(None), {"messages": [], "text": "plain"}]
    assert options_of(rows) == ["yes", "no", "maybe"]


def test_too_many_or_too_few_answers_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="1 different answer.*list them in evaluation.choices"):
        options_of([row("yes"), row("yes")])
    assert len(options_of([row(f"{i}") for i in range(20)])) == 20
    with pytest.raises(ConfigError, match="21 different answers, and 20 are the most.*normalized_match"):
        options_of([row(f"{i}") for i in range(21)])
    assert options_of([row("a"), row("b"), row("c")], most=3) == ["a", "b", "c"]
