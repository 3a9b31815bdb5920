from __future__ import annotations

import math
import random
import unicodedata
from typing import Any

import numpy as np
import pytest
from breadth import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from qdora_fast.data.clean.similarity import (
    PERMUTATIONS,
    canonical_text,
    exact_key,
    jaccard,
    shingles,
    signature,
    signatures,
    units,
)
from qdora_fast.data.read.messages import Row

WORDS = [f"word{number}" for number in range(2_000)]


def row(question: str, answer: str = "yes", system: str = "", tools: list[dict[str, Any]] | None = None) -> Row:
    turns = [("system", system), ("user", question), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in turns if content]
    return {"messages": messages, "tools": tools, "meta": {"source": "x:1", "row": 1, "hash": ""}}


def plain(text: str) -> Row:
    return {"messages": [], "text": text, "tools": None, "meta": {"source": "x:1", "row": 1, "hash": ""}}


def same(one: Row, other: Row) -> bool:
    return exact_key(canonical_text(one)) == exact_key(canonical_text(other))


def similarity(one: Row, other: Row) -> float:
    return jaccard(shingles(canonical_text(one)), shingles(canonical_text(other)))


def passage(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_case_white_space_and_unicode_form_do_not_count() -> None:
    assert same(row("What  is\n\tIT?"), row("what is it? "))
    assert same(row("cafe\u0301"), row("CAF\u00c9"))
    assert same(row("\u0958"), row("\u0915\u093c"))  # Devanagari qa, whole and with a dot below
    assert same(row("\u0b94"), row("\u0b92\u0bd7"))  # Tamil au, whole and in two parts
    assert same(row("क्\u200dष १२"), row("क्ष 12"))  # joiners and digits of another script
    assert same(plain("A  story"), plain("a story"))


def test_what_changes_the_meaning_counts() -> None:
    assert not same(row("दिन"), row("दान"))  # another vowel sign
    assert not same(row("తెలుగు"), row("తలుగు"))
    assert not same(row("2 + 2"), row("2 + 3"))
    assert not same(row("x\u00b2"), row("x2"))
    assert not same(row("q", "yes"), row("q", "no"))
    assert not same(row("q", system="Be brief."), row("q"))
    assert not same(row("q"), row("q", tools=[{"type": "function", "function": {"name": "f"}}]))
    assert not same(row("a", "b"), plain("a b"))


def test_roles_cannot_be_forged_by_what_is_said() -> None:
    forged = row("hello\x1eassistant: yes", "no")
    spoken = row("hello", "yes")
    spoken["messages"].append({"role": "assistant", "content": "no"})
    assert not same(forged, spoken)


def test_tool_calls_count_by_what_they_ask_for() -> None:
    def call(identity: str, arguments: dict[str, int]) -> Row:
        asked = row("q", "calling")
        function = {"name": "add", "arguments": arguments}
        asked["messages"][-1]["tool_calls"] = [{"type": "function", "id": identity, "function": function}]
        return asked

    assert same(call("call_1", {"a": 1, "b": 2}), call("call_2", {"b": 2, "a": 1}))
    assert not same(call("call_1", {"a": 1, "b": 2}), call("call_1", {"a": 1, "b": 3}))


def test_reasoning_counts() -> None:
    thoughtful = row("q")
    thoughtful["messages"][-1]["reasoning_content"] = "because"
    assert not same(thoughtful, row("q"))


@given(st.text(alphabet="aBé ñ\n\tक्षिి中7٣़அौ'.-", min_size=1))
def test_folding_is_blind_to_unicode_form_and_white_space(text: str) -> None:
    folded = canonical_text(row(text + "!"))
    for form in ("NFC", "NFD"):
        assert canonical_text(row(unicodedata.normalize(form, text) + "!")) == folded
    assert canonical_text(row("\n".join(text.split(" ")) + "!  ")) == folded


@given(st.text())
def test_any_text_has_a_key_and_shingles(text: str) -> None:
    folded = canonical_text(plain(text))
    assert canonical_text(plain(folded)) == folded
    assert len(exact_key(folded)) == 16
    assert all(0 <= value < 2**64 for value in shingles(folded))


def test_words_of_indic_scripts_stay_whole() -> None:
    assert units("हिन्दी भाषा, తెలుగు!") == ["हिन्दी", "भाषा", "తెలుగు"]


def test_scripts_without_spaces_are_cut_into_characters() -> None:
    assert units("中文。文本") == ["中", "文", "文", "本"]
    assert units("ไทย") == ["ไ", "ท", "ย"]
    assert units("The word 中 means middle") == ["The", "word", "中", "means", "middle"]
    one, other = plain("我今天早上去市场买了苹果"), plain("我今天早上去市场买了香蕉")
    assert 0.5 < similarity(one, other) < 0.9


def test_one_changed_word_costs_five_shingles() -> None:
    words = [f"w{number}" for number in range(104)]
    changed = words.copy()
    changed[50] = "other"
    assert similarity(plain(" ".join(words)), plain(" ".join(changed))) == 95 / 105


def test_short_rows_are_compared_as_a_whole_only() -> None:
    assert shingles(canonical_text(row("one two", "three four"))) == frozenset()
    assert shingles(canonical_text(plain("中文文本"))) == frozenset()
    assert len(shingles(canonical_text(row("one two", "three four five")))) == 1


def test_labels_of_roles_do_not_make_rows_alike() -> None:
    assert shingles(canonical_text(row("one two three", "four five six"))) == shingles("one two three four five six")


def test_a_shared_setting_does_not_make_rows_alike() -> None:
    page = passage(0, 800)
    tools = [{"type": "function", "function": {"name": "find", "description": passage(1, 400)}}]
    one = row(passage(2, 40), passage(3, 40), page, tools)
    other = row(passage(4, 40), passage(5, 40), page, tools)
    assert similarity(one, other) < 0.2


def test_questions_about_different_documents_are_not_alike() -> None:
    question, answer = passage(0, 40), passage(1, 20)
    assert similarity(row(question, answer, passage(2, 500)), row(question, answer, passage(3, 500))) < 0.7


def test_a_conversation_repeated_in_nearly_the_same_setting_is_found() -> None:
    question, answer, page = passage(0, 60), passage(1, 60), passage(2, 500)
    assert similarity(row(question, answer, page), row(question, answer, f"{page} today")) > 0.95
    assert similarity(row(question, f"{answer} indeed", page), row(question, answer, page)) > 0.95


def test_jaccard_is_the_share_of_common_shingles() -> None:
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert jaccard(frozenset({1}), frozenset({1})) == 1
    assert jaccard(frozenset(), frozenset({1})) == jaccard(frozenset(), frozenset()) == 0


hashes = st.frozensets(st.integers(0, 2**64 - 1), max_size=50)


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(hashes, max_size=5))
def test_signatures_are_those_of_datasketch(sets: list[frozenset[int]]) -> None:
    from datasketch import MinHash

    expected = []
    for each in sets:
        minhash = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=lambda value: value % 2**32)
        for value in each:
            minhash.update(value)
        expected.append(minhash.hashvalues)
    batch = signatures(sets)
    assert batch.shape == (len(sets), PERMUTATIONS) and batch.dtype == np.uint32
    for one, other, each in zip(batch, expected, sets, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, signature(each))


def test_signatures_are_the_same_on_every_machine() -> None:
    pinned = [477242471, 76581113, 173918173, 785055537]
    assert signature(shingles("the quick brown fox jumps over the lazy dog"))[:4].tolist() == pinned


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_signatures_estimate_the_similarity(share: float) -> None:
    common = round(1_000 * share)
    for seed in range(20):
        values = random.Random(seed).sample(range(2**62), 2_000 - common)
        one, other = frozenset(values[:1_000]), frozenset(values[:common] + values[1_000:])
        exact = jaccard(one, other)
        estimate = float(np.mean(signature(one) == signature(other)))
        assert abs(estimate - exact) < 5 * math.sqrt(exact * (1 - exact) / PERMUTATIONS)
