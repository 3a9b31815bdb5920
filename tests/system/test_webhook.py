"""One message to an address: its form by service, its limits, and what is never told of an address."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from receivers import Receiver, receiving

from qdora_fast.system import webhook
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.offline import offline
from qdora_fast.system.webhook import Address, addresses, send

KEY = "T0PSECRETpath"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def body(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    taken: dict[str, Any] = {}

    def post(url: str, **how: Any) -> Any:
        taken.update(how)
        return httpx.Response(200)

    monkeypatch.setattr(httpx, "post", post)
    assert send(addresses([url]), "demo <!channel> & more", {"event": "finished"}) == []
    return taken


def test_any_receiver_gets_one_object(receiver: Receiver) -> None:
    assert send(addresses([receiver.url]), "demo has finished", {"event": "finished", "exit_code": 0}) == []
    assert [json.loads(each) for each in receiver.bodies] == [
        {"text": "demo has finished", "event": "finished", "exit_code": 0}
    ]


def test_services_get_bodies_of_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    slack = body("https://hooks.slack.com/services/T0/B0/x", monkeypatch)["json"]
    assert slack == {"text": "demo &lt;!channel&gt; &amp; more"}
    discord = body("https://discord.com/api/webhooks/1/x", monkeypatch)["json"]
    assert discord == {"content": "demo <!channel> & more", "allowed_mentions": {"parse": []}}
    for url in ("https://ntfy.sh/topic", "https://ntfy.example.org/topic"):
        assert body(url, monkeypatch)["content"] == b"demo <!channel> & more"
    for url in ("https://chat.example.org/hooks/x", "https://discord.com.evil.example/x"):
        assert body(url, monkeypatch)["json"] == {"text": "demo <!channel> & more", "event": "finished"}


def test_secrets_are_taken_out_and_long_texts_cut(receiver: Receiver) -> None:
    token = "hf_" + "a1" * 20
    send(addresses([receiver.url]), f"{token} {'x' * 5000}", {"message": token})
    sent = json.loads(receiver.bodies[0])
    assert token not in json.dumps(sent) and len(sent["text"]) <= 1000


def test_what_does_not_arrive_is_said_without_the_address(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    receiver.status = 403
    with caplog.at_level(logging.INFO):
        problems = send(addresses([f"{receiver.url}{KEY}", f"http://127.0.0.1:{nobody}/{KEY}"]), "text", {})
    assert len(problems) == 2 and "HTTP 403" in problems[0] and "ConnectError" in problems[1]
    assert KEY not in " ".join(problems) + caplog.text
    assert "127.0.0.1" in problems[0]


def test_one_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        problems = send(addresses([f"http://127.0.0.1:{silent.getsockname()[1]}/{KEY}"]), "text", {})
    assert len(problems) == 1 and KEY not in problems[0]


def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 0.2)
    monkeypatch.setattr(webhook, "_post", lambda *_: time.sleep(3))
    assert send([Address("https://a.example/x", "a.example")], "text", {}) == [
        "the message to a.example was not delivered (no answer within 0 s)"
    ]


def test_an_address_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", f" https://a.example/{KEY}\n")
    assert addresses(["env:HOOK"])[0].url == f"https://a.example/{KEY}"
    assert KEY not in repr(addresses(["env:HOOK", f"https://b.example/{KEY}"]))
    for value, message in (("", "HOOK is not set"), (KEY, "HOOK holds no URL")):
        monkeypatch.setenv("HOOK", value)
        with pytest.raises(ConfigError, match=message) as error:
            addresses(["env:HOOK"])
        assert KEY not in str(error.value)


def test_offline_allows_this_machine_only() -> None:
    with offline():
        assert addresses(["http://localhost:9/x", "http://127.0.0.1:9/x", "http://[::1]:9/x"])
        with pytest.raises(ConfigError, match="a.example is another machine, and --offline"):
            addresses([f"https://a.example/{KEY}"])
    assert addresses(["https://a.example/x"])


def test_other_services_are_apprises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="tgram:// is sent by apprise, which is not installed"):
        addresses([f"tgram://{KEY}/1"])

    class Apprise:  # a stand-in: apprise is no part of the tested environment
        def __init__(self) -> None:
            self.known: list[str] = []

        def add(self, url: str) -> None:
            self.known += [url] if url.startswith("tgram") else []

        def __bool__(self) -> bool:
            return bool(self.known)

        def notify(self, body: str, title: str) -> bool:
            sent.append(body)
            return len(sent) == 1

    sent: list[str] = []
    monkeypatch.setitem(sys.modules, "apprise", SimpleNamespace(Apprise=Apprise))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    to = addresses([f"tgram://{KEY}/1"])
    assert send(to, "text", {}) == [] and sent == ["text"]
    assert "the service refused it" in send(to, "text", {})[0]
    with pytest.raises(ConfigError, match="knows no address of this form"):
        addresses([f"nonsense://{KEY}"])
