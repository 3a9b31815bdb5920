"""What `auto` becomes: as long as the rows need, as many at a time as fit, the effective batch unchanged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.config import Config
from qdora_fast.config.loader import make_config
from qdora_fast.planning.auto.kinds import Resolved, RowLengths
from qdora_fast.planning.cards import Card, Machine, this_machine
from qdora_fast.planning.memory.architecture import Sizes
from qdora_fast.planning.memory.base import sizes_of
from qdora_fast.planning.memory.fit import fits
from qdora_fast.planning.memory.known import known_config
from qdora_fast.recipes.auto import adopt, has_auto, resolve, to_measure
from qdora_fast.system import hardware
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.hardware import Gpu
from qdora_fast.training.memory_cap import cap_memory

AUTO: dict[str, dict[str, Any]] = {"model": {"max_length": "auto"}, "train": {"batch_size": "auto"}}


def _config(**sections: dict[str, Any]) -> Config:
    settings: dict[str, dict[str, Any]] = {"model": {"name": "base"}, "data": {"path": "rows.jsonl"}}
    for name in {*settings, *AUTO, *sections}:
        settings[name] = {**settings.get(name, {}), **AUTO.get(name, {}), **sections.get(name, {})}
    return make_config(settings)


def _sizes(base: str = "llama-3.1-8b") -> Sizes:
    values = known_config(base)
    assert values is not None
    return sizes_of(values)


def _machine(gib: float = 24) -> Machine:
    return Machine(Card.of_gib(gib), True, "for a test")


def _rows(*tokens: int, beyond: int = 0) -> RowLengths:
    return RowLengths(np.array(tokens), beyond=beyond)


@dataclass(frozen=True)
class Outcome:
    """A config without `auto`, and the report on it."""

    config: Config
    report: Resolved

    @property
    def said(self) -> str:
        """All reasons."""
        return " ".join(self.report.reasons)


def _resolve(config: Config, rows: RowLengths | None = None, *, gib: float = 24, base: str = "llama-3.1-8b") -> Outcome:
    return Outcome(*resolve(config, _sizes(base), _machine(gib), rows))


def _limit(outcome: Outcome) -> int:
    return int(outcome.config.data.filters.max_fraction * outcome.config.model.length)


def test_numbers_stay_as_they_are() -> None:
    config = _config(model={"max_length": 1000}, train={"batch_size": 3, "gradient_accumulation": 5})
    found = _resolve(config, _rows(10, 20))
    assert found.report.asked == found.report.reasons == ()
    assert not has_auto(config)
    assert found.config == config
    assert not found.report.refusal


@given(
    st.lists(st.integers(1, 8_000), min_size=1, max_size=60),
    st.sampled_from([1, 6, 16, 48]),
    st.floats(8, 80),
    st.booleans(),
)
def test_what_is_chosen_fits_and_keeps_the_effective_batch(
    tokens: list[int], effective: int, gib: float, packing: bool
) -> None:
    config = _config(train={"effective_batch": effective, "packing": packing})
    found = _resolve(config, _rows(*tokens), gib=gib)
    train = found.config.train
    assert train.micro_batch * train.accumulation == train.rows_per_step == effective
    if not found.report.refusal:
        assert fits(found.report.estimate, _machine(gib).card)
        assert sum(length > _limit(found) for length in tokens) <= 0.1 * len(tokens)
    assert not has_auto(found.config)


def test_every_row_is_kept_unless_a_few_are_far_longer_than_all_others() -> None:
    config = _config(train={"packing": False})
    even = _resolve(config, _rows(*range(100, 1100)))
    assert _limit(even) >= 1099 > _limit(even) - 128
    assert "longer" not in even.said
    odd = _resolve(config, _rows(*[500] * 999, 4000))
    assert 500 <= _limit(odd) < 4000
    said = odd.said
    assert "1 of 1,000 rows (0.1%) are longer and are dropped" in said
    kept = _resolve(_config(model={"max_length": 4480}), _rows(*[500] * 999, 4000))
    assert "model.max_length: 4480 keeps all" in said
    assert _limit(kept) >= 4000


def test_rows_that_may_be_cut_fill_the_whole_length_and_are_said_to_be_cut() -> None:
    config = _config(data={"path": "r", "on_long": "truncate"}, train={"packing": False})
    assert _resolve(config, _rows(*[640] * 10)).config.model.length == 640
    assert "are cut" in _resolve(config, _rows(*[640] * 999, 9000)).said


def test_short_rows_are_packed_into_sequences_of_the_usual_length() -> None:
    short = _rows(*[60] * 50)
    assert _resolve(_config(), short).config.model.length == 2048
    assert _resolve(_config(train={"packing": False}), short).config.model.length == 512
    assert _resolve(_config(), short, base="gemma-2-9b").config.model.length == 2048
    assert _resolve(_config(), None).config.model.length == 2048


def test_no_row_is_longer_than_the_model_was_made_for() -> None:
    found = _resolve(_config(), _rows(*[3680] * 90, beyond=4), base="phi-3-mini-4k")
    assert found.config.model.length == 4096
    assert "4 of 94 rows (4.3%) are longer and are dropped; the model takes no longer ones" in found.said
    short = _resolve(_config(), _rows(*[300] * 400, 3680, beyond=4), base="phi-3-mini-4k")
    assert "model.max_length: 4096 keeps all but 4, which the model cannot take" in short.said


def test_several_processes_share_the_effective_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    train = _resolve(_config(model={"max_length": 512}), gib=80).config.train
    assert train.rows_per_step == 16
    assert train.accumulation % 4 == 0
    assert train.micro_batch == 4


def test_short_rows_go_more_at_a_time() -> None:
    unpacked: dict[str, Any] = {"packing": False, "effective_batch": 64}
    long = _resolve(_config(train=unpacked), _rows(*[4000] * 10))
    short = _resolve(_config(train=unpacked), _rows(*[200] * 10))
    assert long.config.train.micro_batch < short.config.train.micro_batch
    assert short.config.train.micro_batch * 200 >= 8192  # enough to keep a GPU busy


def test_a_larger_card_never_gets_smaller_batches_or_shorter_rows() -> None:
    rows = _rows(*range(1000, 30_000, 100))
    found = [_resolve(_config(), rows, gib=gib).config for gib in (10, 12, 16, 24, 48, 80)]
    lengths = [config.model.length for config in found]
    assert lengths == sorted(lengths)
    fixed = [_resolve(_config(model={"max_length": 4096}), rows, gib=gib).config for gib in (10, 12, 16, 24, 48, 80)]
    sizes = [config.train.micro_batch for config in fixed]
    assert sizes == sorted(sizes)


def test_held_out_rows_are_answered_fewer_at_a_time_where_that_is_what_does_not_fit() -> None:
    found = _resolve(_config(model={"max_length": 2048}, evaluation={"batch_size": 256}))
    answers = found.config.evaluation.batch_size
    assert 1 <= answers < 256
    assert f"answered {answers} at a time instead of 256" in found.said
    asked = make_config({"model": {"name": "b"}, "data": {"path": "r"}, "evaluation": {"batch_size": 256}})
    assert _resolve(asked).config == asked  # nothing is changed that was not left to be chosen


@pytest.mark.parametrize(
    ("sections", "gib", "said"),
    [
        ({}, 6, "not even with one row of 64 tokens"),
        ({"adapter": {"method": "dora"}}, 12, r"a 4-bit method \(qdora, qlora\)"),
        ({"model": {"max_length": 100_000}}, 10, r"the longest that fit are [\d,]+: --set model.max_length=\d+"),
        ({"train": {"batch_size": 512, "packing": False}}, 10, "set train.batch_size: auto"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(sections: dict[str, Any], gib: float, said: str) -> None:
    refusal = _resolve(_config(**sections), _rows(*[300] * 20), gib=gib).report.refusal
    assert re.search(said, refusal), refusal


def test_memory_may_leave_out_a_few_rows_and_not_many() -> None:
    few = _resolve(_config(), _rows(*[300] * 95, *[60_000] * 5), gib=10)
    assert not few.report.refusal
    assert "5 of 100 rows (5.0%) are longer and are dropped" in few.said
    many = _resolve(_config(), _rows(*[300] * 50, *[60_000] * 50), gib=10)
    assert f"50 of 100 rows are too long for the {many.config.model.length:,} tokens that fit" in many.report.refusal
    assert f"--set model.max_length={many.config.model.length} trains without them" in many.report.refusal


def test_a_run_is_resumed_with_the_numbers_it_was_started_with() -> None:
    earlier = _resolve(_config(), _rows(*[300] * 20), gib=12).config
    assert adopt(_config(), earlier) == earlier
    other = adopt(_config(train={"effective_batch": 32}), earlier)
    assert other.train.batch_size == "auto"  # another effective batch is another run
    given = _config(model={"max_length": 777}, train={"batch_size": 1})
    assert adopt(given, earlier) == given


def test_a_resumed_run_keeps_the_metric_that_it_was_started_with() -> None:
    earlier = _config(evaluation={"metric": "normalized_match", "max_new_tokens": 128})
    resumed = adopt(_config(), earlier).evaluation
    assert (resumed.metric, resumed.max_new_tokens) == ("normalized_match", 128)
    assert adopt(_config(evaluation={"metric": "numeric"}), earlier).evaluation.metric == "numeric"
    assert adopt(_config(), _config()).evaluation.metric == "auto"


def test_rows_are_measured_as_long_as_the_model_can_take_them() -> None:
    assert to_measure(_config(), _sizes("phi-3-mini-4k")).model.max_length == 4096
    assert to_measure(_config(model={"max_length": 512}), _sizes()).model.max_length == 512
    assert not has_auto(to_measure(_config(), _sizes()))


def test_the_machine_is_the_card_within_its_cap_or_the_hosts_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: [Gpu("A card", 24.0, (8, 9), "1")])
    assert this_machine(None).card.memory == 24 * 2**30
    assert this_machine(12.5).card.memory == 12.5 * 2**30
    assert this_machine(48).card.memory == 24 * 2**30
    monkeypatch.setattr(hardware, "gpus", lambda: [])
    assert not this_machine(None).on_gpu


@pytest.mark.parametrize(
    ("vram", "share", "said"),
    [(12, 11.5 / 24, "at most 12 of 24.0 GiB"), (48, 1.0, "nothing is capped"), (None, 1.0, "")],
)
def test_a_cap_binds_the_allocator_and_leaves_room_for_the_context(
    vram: float | None, share: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[float] = []
    _pretend_gpu(monkeypatch, set_to)
    assert said in cap_memory(vram)
    assert set_to == pytest.approx([share])


def test_a_cap_below_the_context_is_refused_and_without_a_gpu_it_is_said_to_do_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "no GPU here" in cap_memory(8)
    assert not cap_memory(None)
    _pretend_gpu(monkeypatch, [])
    with pytest.raises(ConfigError, match="CUDA context alone"):
        cap_memory(0.25)


def _pretend_gpu(monkeypatch: pytest.MonkeyPatch, set_to: list[float]) -> None:
    card = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)


def test_the_account_holds_numbers_and_sentences() -> None:
    found = _resolve(_config(), _rows(*[300] * 20)).report.as_dict()
    assert found["asked"] == ["model.max_length", "train.batch_size"]
    assert found["batch_size"] * found["gradient_accumulation"] == 16
    assert found["estimate"]["peak_bytes"] > found["margin_bytes"] > 0
    assert all(isinstance(line, str) for line in found["said"])
