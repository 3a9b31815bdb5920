"""A web server on this machine for tests: objects by path, with ETags, whose answers can be cut, refused or counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Web:
    """What is served, and what was asked."""

    objects: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    status: int = 200
    cut: int = 0
    """Bytes that are left out at the end of what is sent."""
    etags: bool = True
    asked: list[str] = field(default_factory=list)
    """Method and path of each request, with its parameters."""
    logins: list[str | None] = field(default_factory=list)


@contextmanager
def web_server() -> Iterator[Web]:
    """Serve until the block ends."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            web.asked.append(f"{self.command} {self.path}")
            web.logins.append(self.headers.get("Authorization"))
            content = web.objects.get(self.path.partition("?")[0])
            if web.status != 200 or content is None:
                self.send_error(web.status if web.status != 200 else 404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            if web.etags:
                self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.end_headers()
            if send:
                self.wfile.write(content[: len(content) - web.cut])
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
