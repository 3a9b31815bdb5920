from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.config import QualitySettings
from qdora_fast.data.clean import reference
from qdora_fast.data.clean.reference import Score, load_scores, save_scores, score
from qdora_fast.data.store import Example
from qdora_fast.system.errors import ConfigError, DataError

VOCABULARY = 61
EOS, BOS = 1, 2
WITH_EOS = SimpleNamespace(bos_token_id=None, eos_token_id=EOS)
WITH_BOS = SimpleNamespace(bos_token_id=BOS, eos_token_id=EOS)
ALL = QualitySettings(min_answer_tokens=1)

Part = tuple[bool, list[int]]
"""Whether it is learned, and its tokens."""


@pytest.fixture(scope="module")
def model() -> Any:
    """One block of random weights large enough that losses differ, in fp32 and with dropout of the attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            initializer_range=0.5,
            attention_dropout=0.5,
        )
        return LlamaForCausalLM(config).train()


def example(*parts: Part) -> Example:
    ids = [token for _, tokens in parts for token in tokens]
    return {
        "input_ids": ids,
        "labels": [token if learned else -100 for learned, tokens in parts for token in tokens],
    }


def some_tokens(count: int, start: int = 3) -> list[int]:
    return [3 + (start * 7 + i * i) % (VOCABULARY - 3) for i in range(count)]


def row(question: int, answer: int, start: int = 3) -> Example:
    return example((False, some_tokens(question, start)), (True, some_tokens(answer, start + 1)))


def by_the_definition(model: Any, parts: list[Part], opener: int) -> tuple[float, float]:
    """The two losses one token and one answer at a time."""

    def losses(before: list[int], answer: list[int]) -> Iterator[float]:
        ids = torch.tensor([before + answer])
        with torch.no_grad():
            said = model.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
        for at, token in enumerate(answer, len(before)):
            yield -float(said[at - 1, token])

    after, alone, before = [], [], list[int]()
    for learned, tokens in parts:
        if learned:
            after += losses(before, tokens)
            alone += losses([opener], tokens)
        before = before + tokens
    return sum(after) / len(after), sum(alone) / len(alone)


tokens = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=30)
conversations = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=3).map(
    lambda turns: [part for question, answer in turns for part in ((False, question), (True, answer))]
)


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(conversations, min_size=1, max_size=9), st.integers(64, 2000), st.sampled_from([WITH_BOS, WITH_EOS]))
def test_scores_are_those_of_one_row_at_a_time_whatever_the_batches(
    model: Any, rows: list[list[Part]], batch_tokens: int, tokenizer: Any
) -> None:
    sizes = QualitySettings(min_answer_tokens=1, batch_tokens=batch_tokens)
    opener = EOS if tokenizer is WITH_EOS else BOS
    scores = score(model, tokenizer, [example(*parts) for parts in rows], sizes)
    for parts, each in zip(rows, scores, strict=True):
        assert each is not None
        conditional, alone = by_the_definition(model, parts, opener)
        assert each.conditional == pytest.approx(conditional, abs=1e-4)
        assert each.alone == pytest.approx(alone, abs=1e-4)
        assert each.answer_tokens == sum(len(tokens) for learned, tokens in parts if learned)
        assert each.ifd == pytest.approx(math.exp(conditional - alone), rel=1e-3)


def test_what_follows_the_last_answer_does_not_count(model: Any) -> None:
    asked, answered = some_tokens(5), some_tokens(12, 9)
    plain, longer = score(
        model,
        WITH_EOS,
        [example((False, asked), (True, answered)), example((False, asked), (True, answered), (False, [7, 8]))],
        ALL,
    )
    assert plain and longer
    assert longer.conditional == pytest.approx(plain.conditional, abs=1e-5)
    assert longer.alone == pytest.approx(plain.alone, abs=1e-5)


def test_short_answers_and_rows_without_a_question_are_not_scored(model: Any) -> None:
    rows = [
        row(5, 9),
        row(5, 10),
        example((False, [5]), (True, some_tokens(5)), (False, [6]), (True, some_tokens(5))),
        example((True, some_tokens(40))),
        example((False, [BOS]), (True, some_tokens(40))),
        example((False, some_tokens(40))),
    ]
    scores = score(model, WITH_BOS, rows, QualitySettings())
    assert [each is not None for each in scores] == [False, True, True, False, False, False]


def test_no_rows_give_no_scores(model: Any) -> None:
    assert score(model, WITH_EOS, [], ALL) == []
    assert score(model, WITH_EOS, [row(5, 9)], QualitySettings()) == [None]


def test_a_forward_pass_holds_no_more_than_batch_tokens_unless_one_row_is_longer(model: Any) -> None:
    shapes: list[tuple[int, int]] = []
    watch = model.register_forward_pre_hook(
        lambda _module, _args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    rows = [row(question, 12) for question in (100, 3, 40, 5, 20, 7, 60, 9)]
    score(model, WITH_EOS, rows, QualitySettings(batch_tokens=90))
    watch.remove()
    assert shapes[0] == (1, 112)
    assert all(count * length <= 90 for count, length in shapes[1:])
    assert sum(count for count, _ in shapes) == 16
    assert len(shapes) < 16


def test_large_vocabularies_are_taken_in_pieces(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(5, 40), row(9, 23)]
    at_once = score(model, WITH_EOS, rows, ALL)
    monkeypatch.setattr(reference, "_LOGIT_BYTES", 4 * VOCABULARY * 7)
    assert score(model, WITH_EOS, rows, ALL) == at_once


def test_progress_counts_every_row_once(model: Any) -> None:
    done: list[int] = []
    rows = [
        row(5, 3),
        *(row(5 + i, 12) for i in range(7)),
        example((False, [4]), (True, [5] * 9), (False, [6]), (True, [7] * 9)),
    ]
    score(model, WITH_EOS, rows, QualitySettings(batch_tokens=64), on_rows=done.append)
    assert sum(done) == len(rows)
    assert done[0] == 1  # the row that is not scored
    assert len(done) > 3


def test_the_model_is_left_as_it_was_found(model: Any) -> None:
    model.train()
    model.model.norm.eval()
    before = {name: module.training for name, module in model.named_modules()}
    score(model, WITH_EOS, [row(5, 12)], ALL)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {True, False}
    assert torch.is_grad_enabled()


def test_a_loss_that_is_no_number_names_the_row_and_leaves_the_model_as_it_was(model: Any) -> None:
    model.train()
    embedding = model.get_input_embeddings().weight
    kept = embedding[50].clone()
    with torch.no_grad():
        embedding[50] = math.nan
    rows = [row(5, 12), example((False, [50]), (True, [4] * 12))]
    with pytest.raises(DataError, match=r"training row 2 a loss of nan: .* data.quality.model"):
        score(model, WITH_EOS, rows, QualitySettings(batch_tokens=64))
    with torch.no_grad():
        embedding[50] = kept
    assert model.training


def test_a_tokenizer_that_cannot_open_a_text_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="needs a tokenizer with BOS or EOS"):
        score(model, SimpleNamespace(bos_token_id=None, eos_token_id=None), [row(5, 12)], ALL)


losses = st.floats(-1e300, 1e300)
stored = st.lists(st.none() | st.builds(Score, losses, losses, st.integers(1, 2**40)), max_size=20)


@given(stored)
def test_scores_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, scores: list[Score | None]) -> None:
    folder = tmp_path_factory.mktemp("scores")
    save_scores(folder / "scores.bin", scores)
    assert load_scores(folder / "scores.bin") == scores
    assert [path.name for path in folder.iterdir()] == ["scores.bin"]


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_the_ratio_of_any_losses_is_a_finite_number(conditional: float, alone: float) -> None:
    assert 0 <= Score(conditional, alone, 10).ifd < math.inf


def test_a_file_that_is_not_ours_or_damaged_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    assert load_scores(path) is None
    save_scores(path, [Score(1.0, 2.0, 12), None])
    whole = path.read_bytes()
    for content in (b"", b"\x93NUMPY", b"not an array", whole[:-5]):
        path.write_bytes(content)
        assert load_scores(path) is None
    for array in (np.zeros((2, 2)), np.zeros((2, 3), np.float32), np.array([[1.0, np.nan, 12.0]]), np.zeros(3)):
        np.save(path, array)
        assert load_scores(path) is None
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert load_scores(path) is None
