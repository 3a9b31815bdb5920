"""`--offline`: no connection is made, and the libraries know it before they are imported.

The variables below keep the Hugging Face libraries and the trackers from trying. That is their promise; ours is the
audit hook, which Python calls before each name is looked up and each socket is connected, and which refuses whatever
is not on this machine. Native code that opens sockets by itself passes it by (several cards talk to each other so).
A base in a folder needs no connection without this either.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
}

_now = SimpleNamespace(offline=False)


@contextmanager
def offline() -> Iterator[None]:
    """Inside, nothing but this machine is reached; a try is a ConnectionError."""
    _watch()
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(VARIABLES)
    _now.offline = True
    try:
        yield
    finally:
        _now.offline = False
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def is_offline() -> bool:
    """Whether no connection may be made now."""
    return _now.offline


@cache
def _watch() -> None:
    """Once a process: an audit hook cannot be taken out again."""
    sys.addaudithook(_audit)


def _audit(event: str, given: tuple[Any, ...]) -> None:
    if not _now.offline or event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    if event == "socket.connect" and given[0].family not in (socket.AF_INET, socket.AF_INET6):
        return
    address = given[1][0] if event == "socket.connect" else given[0]
    if not is_local(address):
        raise ConnectionError(f"--offline: no connection to {address}")


def is_local(address: Any) -> bool:
    """Whether an address or a name is this machine's own."""
    if isinstance(address, bytes):
        address = address.decode(errors="replace")
    if address in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
