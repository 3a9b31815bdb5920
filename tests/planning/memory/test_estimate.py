"""Parts that add up, phases in order, and the card that a run fits on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config.loader import make_config
from qdora_fast.planning.cards import Card
from qdora_fast.planning.memory.base import sizes_of
from qdora_fast.planning.memory.estimate import estimate, evaluation_bytes, in_words
from qdora_fast.planning.memory.fit import best_fit, fits, longest_length, margin, most_answers
from qdora_fast.planning.memory.job import Job, job_of
from qdora_fast.planning.memory.known import known_config
from qdora_fast.recipes.auto import job_settings

GIB = 2**30
CARD = Card.of_gib(24)


def _job(base: str = "llama-3.1-8b", *, on_gpu: bool = True, **sections: dict[str, Any]) -> Job:
    values = known_config(base)
    assert values is not None
    settings = {"model": {"name": "base"}, "data": {"path": "rows.jsonl"}, **sections}
    config = make_config(settings)
    return job_of(job_settings(config), sizes_of(values), length=config.model.length, on_gpu=on_gpu)


@given(
    st.sampled_from(["llama-3.1-8b", "qwen3-0.6b", "gemma-2-9b", "phi-3-mini-4k"]),
    st.sampled_from(["qdora", "qlora", "dora", "lora"]),
    st.integers(1, 16),
    st.integers(64, 20_000),
    st.floats(4, 200),
)
def test_the_parts_add_up_to_the_step_and_no_phase_is_above_the_peak(
    base: str, method: str, batch: int, length: int, gib: float
) -> None:
    job = _job(base, adapter={"method": method}, train={"batch_size": batch}, model={"name": "b", "max_length": length})
    found = estimate(job, Card.of_gib(gib))
    assert sum(part.bytes for part in found.parts) == found.phases["step"]
    assert found.peak_bytes == max(found.phases.values()) == found.phases[found.peak_phase]
    assert all(part.bytes > 0 for part in found.parts)
    assert len({part.name for part in found.parts}) == len(found.parts)


def test_8b_at_2_x_2048_fits_a_24_gib_card_and_not_an_8_gib_one() -> None:
    found = estimate(_job(), CARD)
    assert fits(found, CARD)
    assert 7 * GIB < found.phases["step"] < 11 * GIB
    small = Card.of_gib(8)
    assert not fits(estimate(_job(), small), small)


def test_the_base_dominates_and_a_dense_one_takes_nearly_four_times_as_much() -> None:
    parts = {part.name: part.bytes for part in estimate(_job(), CARD).parts}
    dense = {part.name: part.bytes for part in estimate(_job(adapter={"method": "dora"}), CARD).parts}
    assert parts["base weights"] == max(parts.values())
    assert 3.8 < dense["base weights"] / parts["base weights"] < 4


def test_the_margin_is_five_percent_and_three_tenths_of_a_gib() -> None:
    assert margin(CARD) == int(0.05 * 24 * GIB) + int(0.3 * GIB)
    found = estimate(_job(), CARD)
    exactly = Card("just enough", int((found.peak_bytes + int(0.3 * GIB)) / 0.95) + 2)
    assert fits(found, exactly)
    assert not fits(found, dataclasses.replace(exactly, memory=exactly.memory - 2**20))


def test_a_fixed_amount_of_merged_weights_counts_and_auto_does_not() -> None:
    auto, fixed = _job(), _job(engine={"resident": 2.0})
    assert estimate(fixed, CARD).phases["step"] - estimate(auto, CARD).phases["step"] == pytest.approx(2 * GIB, rel=0.2)


def test_on_the_cpu_the_process_counts_and_a_context_does_not() -> None:
    names = {part.name for part in estimate(_job("smollm2-135m", on_gpu=False), None).parts}
    assert "process" in names
    assert not names & {"CUDA context", "gaps"}


def test_without_export_nothing_is_merged_and_disk_holds_no_second_model() -> None:
    found = estimate(_job(export={"at_end": "none"}), CARD)
    assert "merge" not in found.phases
    assert {part.name for part in found.disk} == {"base", "checkpoints", "adapter"}
    assert len(found.disk) == len(estimate(_job(), CARD).disk) - 1


def test_the_proof_is_the_hosts_business_only_where_the_card_cannot_hold_the_merged_model() -> None:
    large, small = ({part.name for part in estimate(_job(), Card.of_gib(gib)).host} for gib in (24, 16))
    assert "proof" in small
    assert "proof" not in large


def test_a_base_that_exists_in_4_bits_is_a_smaller_download() -> None:
    values = known_config("llama-3.1-8b")
    assert values is not None
    packed = dataclasses.replace(_job(), sizes=sizes_of({**values, "quantization_config": {"load_in_4bit": True}}))
    sizes = [{part.name: part.bytes for part in estimate(job, CARD).disk} for job in (_job(), packed)]
    assert sizes[1]["base"] < 0.5 * sizes[0]["base"]
    assert sizes[1]["merged_16bit"] == sizes[0]["merged_16bit"]


def test_without_held_out_rows_there_is_no_evaluation() -> None:
    assert "evaluation" not in estimate(_job(data={"path": "r", "held_out": 0}), CARD).phases


@pytest.mark.parametrize("gib", [10, 16, 24])
def test_the_longest_rows_fit_and_one_step_longer_does_not(gib: float) -> None:
    card, job = Card.of_gib(gib), dataclasses.replace(_job(), batch_size=1, answer_batch=1)
    longest = longest_length(job, card)
    assert longest > 0
    assert longest % 64 == 0
    assert fits(estimate(dataclasses.replace(job, length=longest), card), card)
    assert not fits(estimate(dataclasses.replace(job, length=longest + 64), card), card)


def test_rows_are_never_longer_than_the_model_was_made_for() -> None:
    assert longest_length(_job("phi-3-mini-4k"), Card.of_gib(80)) == 4096
    assert longest_length(_job(), Card.of_gib(4)) == 0


def test_the_best_pair_keeps_the_effective_batch_and_fits() -> None:
    for gib in (9, 12, 24, 80):
        card = Card.of_gib(gib)
        found = best_fit(_job(), card)
        assert found is not None
        assert found.batch_size * found.gradient_accumulation == 16
        assert found.length == 2048
        assert fits(found.estimate, card)
    assert best_fit(_job(), Card.of_gib(5)) is None


def test_a_larger_card_never_gets_a_smaller_batch_or_fewer_answers() -> None:
    found = [fit for gib in (9, 10, 12, 16, 24, 80) if (fit := best_fit(_job(), Card.of_gib(gib)))]
    assert len(found) == 6
    assert [fit.batch_size for fit in found] == sorted(fit.batch_size for fit in found)
    assert found[0].answers < found[-1].answers == 8


def test_rows_that_do_not_fit_even_alone_are_shortened() -> None:
    card, job = Card.of_gib(10), _job(model={"name": "base", "max_length": 32768})
    found = best_fit(job, card)
    assert found is not None
    assert (found.batch_size, found.gradient_accumulation) == (1, 16)
    assert found.length == longest_length(job, card) < 32768
    assert fits(found.estimate, card)


def test_how_many_answers_at_a_time_follows_what_is_free_and_decides_nothing_else() -> None:
    one, many = (_job(evaluation={"batch_size": size}) for size in (1, 64))
    assert estimate(one, CARD).phases == estimate(many, CARD).phases
    found = [most_answers(many, Card.of_gib(gib)) for gib in (7, 8, 10, 12, 16, 24, 48)]
    assert found == sorted(found)
    assert 0 < found[1] < found[-1] == 64
    answers, card = found[2], Card.of_gib(10)
    assert (
        evaluation_bytes(many, answers) + margin(card)
        <= card.memory
        < evaluation_bytes(many, answers + 1) + margin(card)
    )
    assert most_answers(one, CARD) == 1


def test_a_card_says_what_pytorch_can_use_of_it() -> None:
    assert Card.of_gib(24).usable == 23.5 * GIB
    assert Card.of_gib(24).name == "a 24 GiB card"


@pytest.mark.parametrize(
    ("number", "words"), [(8_030_261_248, "8.03 billion"), (2_100_000, "2.1 million"), (640, "640")]
)
def test_large_counts_are_said_in_words(number: int, words: str) -> None:
    assert in_words(number) == words
