"""What stands before the server: who may ask, and how much a request may take.

A page in the user's browser can reach a server on this machine: by a name of its own that leads here (Host), or from
another site (Origin). Both are refused unless they name this machine, the address that is listened on, or a host that
the user allows. Behind a password everything but `/health` wants it. A body is read whole, up to a size and within a
time, before anything works on it, so that no half request holds the model; and only so many requests wait at once.

What this does not do: encrypt, or limit how often somebody asks. Slow headers are not timed; they cost a connection.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qdora_fast.system.limits import BODY_BYTES, BODY_SECONDS, REQUESTS_AT_ONCE

LOCAL = ("localhost", "127.0.0.1", "::1")
OPEN = "/health"
"""The route that wants no password."""


@dataclass
class Gate:
    """An ASGI application that asks `app` what may be asked.

    Args:
        hosts: names by which the server may be called, beside `LOCAL` and plain addresses.
        password: the API key that clients must send; None: none.
        most_bytes: of a body.
    """

    app: Any
    hosts: Collection[str] = ()
    password: str | None = None
    most_bytes: int = BODY_BYTES
    _asked: int = field(default=0, init=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, or the server's start and end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers, scope["path"])
        if refusal is None:
            body = await self._body(headers, receive)
            refusal = body if isinstance(body, _Refusal) else None
        if refusal is None and self._asked >= REQUESTS_AT_ONCE:
            refusal = _Refusal(503, f"{REQUESTS_AT_ONCE} requests are waiting already; try again later")
        if refusal is not None:
            await _refuse(send, refusal)
            return
        self._asked += 1
        try:
            await self.app(scope, _replayed(body, receive), send)
        finally:
            self._asked -= 1

    def _refusal(self, headers: dict[str, str], path: str) -> _Refusal | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_called(host, self.hosts):
            name = _name(f"//{host}")[:80]
            return _Refusal(
                421, f"the server is not called {name!r}; start it with --allowed-host {name} to allow this"
            )
        if not may_ask(origin, self.hosts):
            return _Refusal(
                403, f"pages of {str(origin)[:80]!r} may not ask; start it with --allowed-host to allow them"
            )
        given = headers.get("authorization", "").partition(" ")[2]
        if self.password is not None and path != OPEN and not hmac.compare_digest(_bytes(given), _bytes(self.password)):
            return _Refusal(401, "the API key is missing or wrong")
        return None

    async def _body(self, headers: dict[str, str], receive: Any) -> bytes | _Refusal:
        too_long = _Refusal(413, f"a request may have {self.most_bytes:,} bytes")
        said = headers.get("content-length", "0")
        if said.isdigit() and (len(said) > 15 or int(said) > self.most_bytes):
            return too_long
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.most_bytes:
                        return too_long
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return _Refusal(408, f"the request did not arrive within {BODY_SECONDS} s")


def is_called(host: str, hosts: Collection[str] = ()) -> bool:
    """Whether the Host of a request is this machine, one of `hosts`, or a plain address."""
    name = _name(f"//{host}")
    return _is_ours(name, hosts) or _is_address(name)


def may_ask(origin: str | None, hosts: Collection[str] = ()) -> bool:
    """Whether pages of an Origin may ask: there is none, or it is this machine or one of `hosts`."""
    return origin is None or _is_ours(_name(origin), hosts)


def _is_ours(name: str, hosts: Collection[str]) -> bool:
    return name in LOCAL or name in {each.lower() for each in hosts}


@dataclass(frozen=True)
class _Refusal:
    status: int
    reason: str


async def _refuse(send: Any, refusal: _Refusal) -> None:
    """In the form in which OpenAI's clients look for a reason; the connection ends, since a body may be under way."""
    content = json.dumps({"error": {"message": refusal.reason, "type": "invalid_request_error"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _replayed(body: Any, receive: Any) -> Any:
    """A `receive` that gives a body that was read already, and then what comes: that the client has gone."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


def _name(url: str) -> str:
    """The host in a URL, in small letters; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """Whether a host is a plain address: no name leads to it, so that no other site can be behind it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
