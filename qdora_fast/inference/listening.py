"""A socket that waits for connections, for the servers on this machine."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from qdora_fast.system.errors import ConfigError


@contextmanager
def listener(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens until the block ends.

    Args:
        port: 0 takes any free one.

    Raises:
        ConfigError: no such address, or a taken port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family)
    except OSError as error:
        why, _, _ = str(error.strerror).partition(" (")  # Python repeats the address there
        hint = "; take another, or --port 0 for any free one" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {host}, port {port}: {why}{hint}") from None
    with made:
        yield made
