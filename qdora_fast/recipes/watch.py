"""A run's report page, served on this machine and drawn anew while the run goes on.

The page is the one that `report` writes, made of whatever lies in the run's folder. While the run is unfinished the
browser is told to ask again (`<meta http-equiv="refresh">`), so no script is needed, and the page has none. It is
drawn when somebody asks, at most every `EVERY` seconds and for a small share of the time, so that `train --watch`,
which serves it from a thread beside the training, is not held up by it. Only this machine is listened on, and a
request must name it (inference/gate.py): no other site's page can read this one.

What this does not do: serve the pages that a person marks, which have a script (open them from the folder), or write
anything.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qdora_fast.evaluation.report.pages import Live, run_page
from qdora_fast.evaluation.report.run_parts import RunParts
from qdora_fast.inference.gate import is_called, may_ask
from qdora_fast.inference.listening import listener
from qdora_fast.recipes.report import read_parts
from qdora_fast.system import console
from qdora_fast.system.pages import is_number
from qdora_fast.system.run_folder import RunFolder
from qdora_fast.system.run_lock import is_held

HOST = "127.0.0.1"
EVERY = 10.0
"""Seconds for which a page is good, and after which a browser asks again."""
SHARE = 20
"""A page that takes long is drawn after so many times as long, at the earliest."""
PATIENCE = 10
"""Seconds for a request to arrive."""
FILES = {"data/report.html": "text/html; charset=utf-8", "config.yaml": "text/plain; charset=utf-8"}
"""Files that the page links to and that need no script."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def watch(run: str | Path, *, port: int = 0, browser: bool = True) -> None:
    """Serve the page of a run until Ctrl-C.

    Args:
        run: its folder; it may be running, stopped or finished.
        port: 0 takes any free one.
        browser: open the page in a browser, where there is a screen.

    Raises:
        ConfigError: not a run, or the port is taken.
    """
    folder = RunFolder.open(run)
    try:
        with served(folder, port) as url:
            _announce(url)
            if browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                webbrowser.open(url)
            threading.Event().wait()
    except KeyboardInterrupt:
        console.aside("the page is no longer served")


def state_of(run: str | Path) -> str:
    """One line: whether a run is running, stopped or finished, and how far it is.

    Raises:
        ConfigError: not a run.
    """
    folder = RunFolder.open(run)
    return _state(folder, read_parts(folder))[0]


@contextmanager
def served(folder: RunFolder, port: int = 0) -> Iterator[str]:
    """The page of a run at the address that this gives, from a thread, until the block ends.

    Raises:
        ConfigError: the port is taken.
    """
    with listener(HOST, port) as waiting:
        server = _Server((HOST, port), _handler(_Page(folder)), bind_and_activate=False)
        server.socket.close()
        server.socket = waiting
        threading.Thread(target=server.serve_forever, daemon=True, name="watch").start()
        try:
            yield f"http://{HOST}:{waiting.getsockname()[1]}/"
        finally:
            server.shutdown()


@contextmanager
def beside_training(folder: RunFolder) -> Iterator[None]:
    """`served` while a run trains, with its address said."""
    with served(folder) as url:
        _announce(url)
        yield


def _announce(url: str) -> None:
    console.line("watch", f"{url} shows this run and refreshes by itself")
    if os.environ.get("SSH_CONNECTION"):
        port = urlsplit(url).port
        console.line("", f"from your own machine: ssh -N -L {port}:{HOST}:{port} THIS_MACHINE, then the same address")


@dataclass
class _Page:
    """The page of a run, as it was drawn last."""

    folder: RunFolder
    html: bytes = b""
    good_until: float = float("-inf")

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def now(self) -> bytes:
        """The page, drawn anew if it is old."""
        with self._lock:
            began = time.monotonic()
            if began >= self.good_until:
                self.html = self._draw().encode()
                ended = time.monotonic()
                self.good_until = ended + max(EVERY, SHARE * (ended - began))
            return self.html

    def _draw(self) -> str:
        parts = read_parts(self.folder)
        words, goes_on = _state(self.folder, parts)
        live = Live(words, round(EVERY) if goes_on else None)
        return run_page(replace(parts, files=parts.files & FILES.keys()), live)


def _state(folder: RunFolder, parts: RunParts) -> tuple[str, bool]:
    """How far a run is, in words; whether the page can still change."""
    steps = [line["step"] for line in parts.metrics if is_number(line.get("step"))]
    epochs = [line["epoch"] for line in parts.metrics if is_number(line.get("epoch"))]
    losses = [line["loss"] for line in parts.metrics if is_number(line.get("loss"))]
    at = f"step {max(steps):,}" if steps else "no step yet"
    at += f", epoch {max(epochs):.2f}" if epochs else ""
    at += f", loss {losses[-1]:.4g}" if losses else ""
    if folder.finished:
        return f"finished: {at}", False
    if not is_held(folder.path):
        return f"stopped before its end: {at}; the same command with --auto-resume continues", True
    if folder.adapter.is_dir():
        return f"running: trained ({at}), now compared and exported", True
    return f"running: {at}", True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""
        logging.getLogger(__name__).info("a request for the page failed", exc_info=True)


def _handler(page: _Page) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET for the page and the files that it links to."""

        timeout = PATIENCE
        server_version, sys_version = "qdora-fast", ""

        def do_GET(self) -> None:
            """The page, or a file of the run."""
            if not is_called(self.headers.get("Host", "")) or not may_ask(self.headers.get("Origin")):
                self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"not for you\n")
                return
            path = urlsplit(self.path).path.removeprefix("/")
            if path == "":
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page.now())
                return
            content = _file(page.folder.path, path)
            if content is None:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")
            else:
                self._answer(HTTPStatus.OK, FILES[path], content)

        def _answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
            self.send_response(status)
            for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing: the console is the training's."""

    return Handler


def _file(folder: Path, name: str) -> bytes | None:
    """A file of FILES; None where it is not there, or a link leads out of the run."""
    path = (folder / name).resolve()
    inside = name in FILES and path.is_relative_to(folder.resolve()) and path.is_file()
    return path.read_bytes() if inside else None
