"""A model behind `serve`'s application, in a thread of the tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qdora_fast.inference import ChatModel
from qdora_fast.inference.serve import make_app


@contextmanager
def served(chat_model: ChatModel, **options: Any) -> Iterator[str]:
    """The address of a server, `/v1` included; `options` as for `make_app`."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(make_app(chat_model, **options), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
