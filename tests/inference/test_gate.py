"""Who may ask the server, and how much a request may take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qdora_fast.inference import gate as gate_module
from qdora_fast.inference.gate import Gate

SAID: dict[str, str] = {"host": "127.0.0.1:8000"}


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it got."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(
    gate: Gate, headers: dict[str, str] | None = None, parts: tuple[bytes, ...] = (b"{}",), path: str = "/v1"
) -> tuple[int, bytes]:
    """Status and body of one request whose body comes in parts; without a last one it never ends."""
    said = {**SAID, **(headers or {})}
    scope = {"type": "http", "path": path, "headers": [(n.encode(), v.encode()) for n, v in said.items()]}
    waiting, sent = [*parts], []

    async def receive() -> Any:
        if not waiting:
            await asyncio.sleep(3600)
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting) or part == b"..."}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7:8000", "My.Host:1", "LOCALHOST."]
)
def test_this_machine_may_be_called_by_its_names(host: str) -> None:
    assert ask(Gate(_echo, ["my.host"]), {"host": host}) == (200, b"{}")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "127.0.0.1.nip.io", "["]
)
def test_no_other_name_leads_here(host: str) -> None:
    status, said = ask(Gate(_echo, ["my.host"]), {"host": host})
    assert status == 421 and b"--allowed-host" in said


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
        ("https://my.host", 200),
        ("http://evil.example", 403),
        ("http://192.168.1.9", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(origin: str, status: int) -> None:
    assert ask(Gate(_echo, ["my.host"]), {"origin": origin})[0] == status


@pytest.mark.parametrize(
    ("given", "path", "status"),
    [
        ("Bearer right", "/v1", 200),
        ("Bearer wrong", "/v1", 401),
        ("Bearer ", "/v1", 401),
        ("right", "/v1", 401),
        (None, "/v1", 401),
        (None, "/health", 200),
    ],
)
def test_a_password_is_wanted_for_all_but_health(given: str | None, path: str, status: int) -> None:
    headers = {"authorization": given} if given is not None else {}
    assert ask(Gate(_echo, password="right"), headers, path=path)[0] == status


def test_bodies_have_a_size_whether_they_say_it_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(_echo, most_bytes=10)
    assert ask(gate, parts=(b"12345", b"67890")) == (200, b"1234567890")
    assert ask(gate, parts=(b"12345", b"678901"))[0] == 413
    assert ask(gate, {"content-length": "11"}, parts=())[0] == 413
    assert ask(gate, {"content-length": "9" * 400}, parts=())[0] == 413


def test_half_a_request_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "BODY_SECONDS", 0.05)
    status, said = ask(Gate(_echo), parts=(b"...",))
    assert status == 408 and b"arrive" in said


def test_only_so_many_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "REQUESTS_AT_ONCE", 2)
    released = asyncio.Event()
    statuses: list[int] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await released.wait()
        await _echo(scope, receive, send)

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def all_of_them() -> None:
        gate = Gate(slow)
        scope = {"type": "http", "path": "/v1", "headers": [(b"host", b"localhost")]}
        tasks = [asyncio.create_task(gate(scope, receive, send)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert statuses == [503]
        released.set()
        await asyncio.gather(*tasks)
        await gate(scope, receive, send)

    asyncio.run(all_of_them())
    assert statuses == [503, 200, 200, 200]
