"""Speed counts steps alone; a run that is slow is told so once, with what explains it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.system import hardware
from qdora_fast.training import throughput
from qdora_fast.training.throughput import (
    Circumstances,
    Expected,
    ProcessorTime,
    Throughput,
    causes,
    observe,
)

STEPS_PER_EPOCH = 1000


class Clocked:
    """A training whose every step has 100 tokens."""

    def __init__(self, expected: Expected | None = None) -> None:
        self.now, self.step = 0.0, 0
        self.meter = Throughput(100 * STEPS_PER_EPOCH, expected)
        self.meter.begin(0.0, 0.0)
        self.warnings: list[tuple[int, throughput.Slow]] = []

    def steps(self, count: int, seconds: float, *, waiting: float = 0.0) -> None:
        for _ in range(count):
            self.now += waiting
            self.meter.step_begins(self.now)
            self.now += seconds
            self.step += 1
            self.meter.step_ends(self.step / STEPS_PER_EPOCH, self.now)
            if found := self.meter.slow():
                self.warnings.append((self.step, found))

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.meter.between_ends(self.now)


def test_speed_is_tokens_over_the_time_of_steps_and_of_the_wait_for_their_rows() -> None:
    run = Clocked()
    assert run.meter.tokens_per_second() is None
    run.steps(3, 1.0, waiting=1.0)
    assert run.meter.tokens_per_second() == pytest.approx(50)
    assert run.meter.tokens_per_second() is None  # no step since
    run.pause(1000)  # an evaluation
    run.steps(2, 4.0)
    assert run.meter.tokens_per_second() == pytest.approx(25)


def test_a_run_that_is_gone_on_with_counts_from_where_it_is() -> None:
    meter = Throughput(1000)
    meter.begin(1.5, 100.0)
    meter.step_begins(100.0)
    meter.step_ends(1.6, 102.0)
    assert meter.tokens_per_second() == pytest.approx(50)


def test_what_is_left_lies_between_steps_alone_and_all_that_was_between_them() -> None:
    run = Clocked()
    run.steps(1, 60.0)  # compiling
    run.steps(3, 1.0)
    assert run.meter.left(100) is None
    run.steps(6, 1.0)
    run.pause(20.0)
    early, late = run.meter.left(100) or (0, 0)
    assert early == pytest.approx(100)
    assert late == pytest.approx(300)


@given(st.lists(st.floats(0.01, 100), min_size=6, max_size=30), st.integers(0, 1000))
def test_the_span_of_what_is_left_is_never_upside_down(seconds: list[float], steps: int) -> None:
    run = Clocked()
    for each in seconds:
        run.steps(1, each)
    early, late = run.meter.left(steps) or (0, 0)
    assert 0 <= early <= late


def test_a_run_slower_than_an_earlier_one_is_told_so_once() -> None:
    run = Clocked(Expected(100.0, "demo-2"))
    run.steps(400, 2.0)
    ((step, found),) = run.warnings
    assert step == 10 + 2 * 20
    said = found.message(["rows are waited for"])
    assert said == "slow: 50 tokens/s, 50% of the 100 that demo-2 made; likely because rows are waited for"
    assert "no cause was found" in found.message([])


def test_a_run_as_fast_as_an_earlier_one_is_told_nothing() -> None:
    run = Clocked(Expected(100.0, "demo-2"))
    run.steps(400, 1.4)
    assert not run.warnings


def test_a_run_that_becomes_slow_is_measured_by_itself() -> None:
    run = Clocked()
    run.steps(10 + 100, 1.0)
    assert not run.warnings
    run.steps(40, 1.6)
    ((step, found),) = run.warnings
    assert step == 150
    assert found.expected == Expected(pytest.approx(100), "earlier steps of this run")


@pytest.mark.parametrize("hiccup", [1, 5, 9])
def test_the_first_steps_and_a_few_slow_ones_are_no_reason(hiccup: int) -> None:
    run = Clocked(Expected(100.0, "demo-2"))
    run.steps(10, 50.0)
    for _ in range(6):
        run.steps(hiccup, 30.0)
        run.steps(20 - hiccup, 1.0)
        run.pause(500)
    assert not run.warnings


def test_one_slow_stretch_alone_is_no_reason() -> None:
    run = Clocked(Expected(100.0, "demo-2"))
    run.steps(10, 1.0)
    for _ in range(5):
        run.steps(20, 3.0)
        run.steps(20, 1.0)
    assert not run.warnings


def test_the_wait_for_rows_is_found() -> None:
    run = Clocked(Expected(100.0, "demo-2"))
    run.steps(60, 1.0, waiting=1.0)
    (found,) = [slow for _, slow in run.warnings]
    assert found.waiting == pytest.approx(0.5)
    assert causes(Circumstances(waiting=found.waiting))[0].startswith("50% of the time rows are waited for")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Circumstances(padding=0.6), "padding is 60% of a batch"),
        (Circumstances(attention="eager"), "without a fused kernel"),
        (Circumstances(left_to_peft={"merged": 3, "several adapters": 40}), "40 calls .* (several adapters)"),
        (Circumstances(given_up="memory ran out"), "released its cached weights (memory ran out)"),
        (Circumstances(brakes=("heat (driver)",)), "held down by heat (driver)"),
        (Circumstances(spilled=True), "spilled from the card"),
        (Circumstances(others=0.8), "other programs use 80% of the processor"),
    ],
)
def test_each_circumstance_explains_a_slow_run(found: Circumstances, said: str) -> None:
    (only,) = causes(found)
    first, _, second = said.partition(" .* ")
    assert first in only
    assert second in only


def test_what_is_as_it_should_be_explains_nothing() -> None:
    assert causes(Circumstances(waiting=0.05, padding=0.1, attention="sdpa", others=0.1)) == []


def test_padding_and_attention_are_looked_at(demo_like: object) -> None:
    lengths, since = np.array([10, 1000] * 50), ProcessorTime.now()
    found = observe(demo_like, lengths, batch_size=10, packed=False, waiting=0.2, since=since)
    assert found.padding == pytest.approx(0.5, abs=0.05)
    assert found.attention == "sdpa"
    assert (found.waiting, found.brakes, found.spilled) == (0.2, (), False)
    assert 0 <= found.others <= 1
    packed = observe(demo_like, lengths, batch_size=10, packed=True, waiting=0, since=since)
    assert packed.padding == 0


def test_what_others_use_of_the_processor_is_what_is_busy_and_not_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_count", lambda: 10**6)
    begun = ProcessorTime(own=10, busy=100, total=1000)
    assert begun.others(ProcessorTime(own=20, busy=180, total=1100)) == pytest.approx(0.7)
    assert begun.others(ProcessorTime(own=20, busy=110, total=1100)) == 0
    assert begun.others(begun) == 0
    monkeypatch.setattr(hardware, "cpu_count", lambda: 0)  # a container that has only some of the cores
    assert begun.others(ProcessorTime(own=20, busy=180, total=1100)) == 0


@pytest.fixture
def demo_like() -> object:
    import torch

    model = torch.nn.Linear(2, 2)
    model.config = type("Config", (), {"_attn_implementation": "sdpa"})()
    return model
