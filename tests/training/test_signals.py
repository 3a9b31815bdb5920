"""The first signal asks, the second orders; handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from qdora_fast.system.errors import Stopped
from qdora_fast.training.signals import Requests, listening, signal_callback


def _control() -> SimpleNamespace:
    return SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_first_signal_saves_stops_and_has_its_own_exit_code(number: int, code: int) -> None:
    said: list[str] = []
    with listening(said.append) as requests:
        callback, control = signal_callback(requests), _control()
        callback.on_step_end(SimpleNamespace(load_best_model_at_end=False), None, control)
        assert not control.should_save
        os.kill(os.getpid(), number)
        callback.on_step_end(SimpleNamespace(load_best_model_at_end=False), None, control)
    assert (control.should_save, control.should_training_stop, control.should_evaluate) == (True, True, False)
    assert said == [
        f"{signal.Signals(number).name}: saving a checkpoint after this step; send it once more to end at once"
    ]
    with pytest.raises(Stopped, match=r"checkpoint-3 was saved.*--resume") as stopped:
        requests.raise_if_stopped("checkpoint-3")
    assert stopped.value.exit_code == code


def test_with_early_stopping_the_evaluation_of_that_step_is_kept() -> None:
    control = _control()
    signal_callback(Requests(stop=signal.SIGTERM)).on_step_end(
        SimpleNamespace(load_best_model_at_end=True), None, control
    )
    assert control.should_evaluate
    assert control.should_training_stop


def test_a_signal_during_an_evaluation_is_obeyed_right_after_it() -> None:
    control = _control()
    signal_callback(Requests(stop=signal.SIGTERM)).on_evaluate(None, None, control)
    assert (control.should_save, control.should_training_stop) == (True, True)


def test_usr1_saves_once_and_goes_on() -> None:
    with listening(lambda _: None) as requests:
        os.kill(os.getpid(), signal.SIGUSR1)
        callback, first, second = signal_callback(requests), _control(), _control()
        for control in (first, second):
            callback.on_step_end(SimpleNamespace(load_best_model_at_end=False), None, control)
    assert (first.should_save, first.should_training_stop, second.should_save) == (True, False, False)
    requests.raise_if_stopped("nothing")


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(ZeroDivisionError), listening(print):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_the_process_at_once(number: int, code: int) -> None:
    script = (
        "import os, sys, time; from qdora_fast.training.signals import listening\n"
        "with listening(lambda said: None):\n"
        f"    os.kill(os.getpid(), {int(number)}); os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == code
