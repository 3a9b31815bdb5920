"""Exactly one message for each end of a run, whatever ends it, and no text of a row or of an address in it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from heard import heard
from made_runs import finished_run
from receivers import Receiver, receiving

from qdora_fast.config import Config
from qdora_fast.config.loader import load_config, make_config
from qdora_fast.config.recorded import create_run
from qdora_fast.recipes.ending import Terminated, notifying
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import (
    ConfigError,
    DataError,
    DiskSpaceError,
    NonFiniteError,
    OutOfMemory,
    Stopped,
)
from qdora_fast.system.run_folder import RunFolder

LEAST: dict[str, Any] = {"model": {"name": "demo"}, "data": {"path": "demo"}}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def config_for(*urls: str, **run: Any) -> Config:
    return make_config(LEAST | {"run": {"notify": list(urls), **run}})


def the_message(receiver: Receiver) -> dict[str, Any]:
    assert len(receiver.bodies) == 1
    found: dict[str, Any] = json.loads(receiver.bodies[0])
    return found


def test_a_finished_run_sends_its_scores(receiver: Receiver, tmp_path: Path) -> None:
    with notifying(config_for(receiver.url), "demo") as ending:
        ending.folder = finished_run(tmp_path / "run")
    sent = the_message(receiver)
    assert (sent["event"], sent["run"], sent["exit_code"]) == ("finished", "run", 0)
    assert {"verdict", "base", "tuned", "held_out_loss_tuned"} <= sent.keys()
    assert sent["text"].startswith("run has finished after ")
    assert "question 1" not in receiver.bodies[0].decode()


@pytest.mark.parametrize(
    ("error", "event", "code", "text"),
    [
        (ConfigError("model.name: there is no `x`\nsecond line"), "failed", 2, "model.name: there is no `x`"),
        (NonFiniteError("losses were not finite"), "failed", 30, "losses were not finite"),
        (OutOfMemory("too small"), "failed", 31, "too small"),
        (DiskSpaceError("no room"), "failed", 11, "no room"),
        (DataError("rows.jsonl:3: SECRETROW"), "failed", 20, "the rows cannot be used"),
        (ConfigError("the answer 'it's a SECRETROW' is no number"), "failed", 2, "the answer … is no number"),
        (RuntimeError("SECRETROW"), "failed", 1, "RuntimeError"),
        (Stopped("stopped by SIGTERM; checkpoint-4 was saved"), "stopped", 75, "checkpoint-4"),
        (KeyboardInterrupt(), "stopped", 130, "Ctrl-C"),
    ],
)
def test_every_end_is_one_message(receiver: Receiver, error: BaseException, event: str, code: int, text: str) -> None:
    with pytest.raises(type(error)), notifying(config_for(receiver.url), "demo"):
        raise error
    sent = the_message(receiver)
    assert (sent["event"], sent["run"], sent["exit_code"]) == (event, "demo", code)
    assert text in sent["text"] and "second line" not in sent["text"]
    assert "SECRETROW" not in receiver.bodies[0].decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_end(receiver: Receiver, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Terminated) as ended, notifying(config_for(receiver.url), "demo"):
            os.kill(os.getpid(), number)
            signal.pause()
        assert ended.value.code == 128 + number
        sent = the_message(receiver)
        assert sent["event"] == "stopped" and number.name in sent["text"]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_nohup_stays_nohup(receiver: Receiver) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with notifying(config_for(receiver.url), "demo"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert the_message(receiver)["event"] == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_without_addresses_nothing_changes() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with notifying(make_config(LEAST), "demo"):
        assert signal.getsignal(signal.SIGTERM) is handler


def test_a_receiver_that_refuses_is_one_line_and_ends_nothing(receiver: Receiver) -> None:
    receiver.status = 500
    with heard() as out, notifying(config_for(f"{receiver.url}T0PSECRET"), "demo"):
        pass
    assert "Message   one to 127.0.0.1 when this has ended (run.notify)" in out.getvalue()
    assert out.getvalue().count("run.notify: the message to 127.0.0.1 was not delivered (HTTP 500)") == 1
    assert "T0PSECRET" not in out.getvalue()


def test_the_address_is_in_no_file_of_the_run(tmp_path: Path) -> None:
    config = config_for("https://hooks.slack.com/services/T0P/SECRET/abc", "env:HOOK", dir=str(tmp_path))
    folder = create_run(config, "demo")
    assert "SECRET" not in folder.config_file.read_text()
    assert load_config(folder.config_file).run.notify == ["env:HOOK"]
    assert "SECRET" not in repr(config) + config.model_dump_json()


@pytest.mark.parametrize("wrong", ["T0PSECRET", "env:", "env:A B", "https://a b/T0PSECRET", 7, {"a": "T0PSECRET"}])
def test_a_wrong_address_is_not_shown(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"run\.notify") as error:
        make_config(LEAST | {"run": {"notify": [wrong]}})
    assert "T0PSECRET" not in str(error.value)


def test_a_run_that_cannot_start_says_so_once(receiver: Receiver, tmp_path: Path) -> None:
    where = {"dir": str(tmp_path), "notify": receiver.url}
    with pytest.raises(ConfigError):
        train({"model": {"name": str(tmp_path / "nowhere")}, "data": {"path": "demo"}, "run": where})
    assert the_message(receiver)["exit_code"] == 2
    assert RunFolder.newest(tmp_path, "run") is None
