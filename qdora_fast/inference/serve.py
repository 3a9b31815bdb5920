"""A trained model behind OpenAI's API, for trying it from other programs on this machine.

The server is the one of `transformers serve`. Given a path it would load the model itself, which it cannot do for a
DoRA run on a 4-bit base, and list what lies in the hub's cache as its models; so it is handed the model that `chat`
opens. Three things of its request handling are corrected on the way: `temperature` is followed (there it does nothing
unless the model's own settings draw already), and a conversation that does not fit the model or its template is
refused with a reason (there it runs past the model's length), and a model that learned to think, or not to, is asked
to do as it learned, unless a request has `chat_template_kwargs` of its own; its reasoning is the message's
`reasoning_content`, where the answer is not streamed. Without a temperature answers are greedy, as in `chat`.

What this is not: a server for production. One request is answered after the other, and there is no password.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import ipaddress
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qdora_fast.data.tokenize.chat_text import as_taken
from qdora_fast.data.tokenize.replies import ReplyReader
from qdora_fast.inference import screen
from qdora_fast.inference.loading import ChatModel, Source, load_source
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError

INSTALL = '.venv/bin/pip install -c constraints.txt "qdora_fast[serve]"'
ROUTES = ("/v1/chat/completions", "/v1/models", "/health")
MOST_TOKENS = 1024
"""Of an answer, where a request does not say."""
PATIENCE = 3
"""Seconds for answers in hand when the server is stopped."""


def serve(source: Source, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        source: what answers.
        port: 0 takes any free one.

    Raises:
        ConfigError: the port is taken, or see `load_source`.
    """
    with _listener(host, port) as listener:  # before weights are read: a taken port is said at once
        with screen.loading(source):
            app = make_app(load_source(source))
        import uvicorn

        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE)
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        logging.getLogger("uvicorn.error").addFilter(_not_cut_short)
        address, taken = listener.getsockname()[:2]
        screen.serving(source, address, taken, local=ipaddress.ip_address(address).is_loopback)
        with _signals_end_quietly():
            uvicorn.Server(settings).run(sockets=[listener])
    console.aside("the server has stopped")


def make_app(chat_model: ChatModel) -> Any:
    """The ASGI application that answers for one loaded model."""
    from starlette.exceptions import HTTPException
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    logging.getLogger("transformers.cli.serving.utils").setLevel(logging.WARNING)  # fields of a request it passes over
    state, manager = GenerationState(), _manager(chat_model)
    app = build_server(
        manager,
        _handler(chat_model.source, manager, state),
        completion_handler=None,
        response_handler=None,
        transcription_handler=None,
        generation_state=state,
    )
    app.router.routes[:] = [route for route in app.router.routes if route.path in ROUTES]
    app.add_exception_handler(HTTPException, _as_openai)
    return app


async def _as_openai(_: Any, error: Any) -> Any:
    """A refusal in the form in which OpenAI's clients look for its reason."""
    from fastapi.responses import JSONResponse

    reason = {"message": error.detail, "type": "invalid_request_error"}
    return JSONResponse({"error": reason}, status_code=error.status_code)


def _manager(chat_model: ChatModel) -> Any:
    """The server's keeper of models, keeping the one we have."""
    from transformers.cli.serving.model_manager import ModelManager

    class OneModel(ModelManager):
        """Loads nothing and forgets nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.force_model = chat_model.source.name

        def process_model_name(self, model_id: str) -> str:
            return model_id

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return chat_model.model, chat_model.source.vocabulary.tokenizer

        def get_gen_models(self) -> list[dict[str, Any]]:
            return [{"id": chat_model.source.name, "object": "model", "created": 0, "owned_by": "qdora_fast"}]

    return OneModel()


def _handler(source: Source, manager: Any, state: Any) -> Any:
    """The server's handler of chats, with temperature and length as they are meant."""
    from fastapi import HTTPException
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.utils import Modality

    reader = ReplyReader(source.vocabulary.tokenizer)

    class Handler(ChatCompletionHandler):
        """Refuses what does not fit."""

        @staticmethod
        def get_processor_inputs_from_messages(messages: list[Any], modality: Any) -> list[Any]:
            taken = ChatCompletionHandler.get_processor_inputs_from_messages(messages, modality)
            return as_taken(source.vocabulary.tokenizer, taken)

        def _build_completion(self, request_id: str, content: str, *args: Any, **options: Any) -> Any:
            if not options.get("reasoning_content"):
                read = reader.split(content)
                content, options["reasoning_content"] = read.answer, read.thought or None
            return super()._build_completion(request_id, content, *args, **options)

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            messages = self.get_processor_inputs_from_messages(body.get("messages") or [], Modality.LLM)
            if not body.get("tools"):  # [] would choose the template for tools
                body.pop("tools", None)
            try:
                taken = len(source.prompt(messages, body.get("tools")))
            except ConfigError as error:
                raise HTTPException(400, str(error)) from None
            if taken >= source.max_length:
                raise HTTPException(400, f"{taken:,} tokens to read, and the model takes {source.max_length:,}")
            asked = body.pop("max_completion_tokens", None) or body.get("max_tokens") or MOST_TOKENS
            body["max_tokens"] = min(asked, source.max_length - taken)
            return await super().handle_request(body, request_id)

        def _build_generation_config(self, body: dict[str, Any], *args: Any, **options: Any) -> Any:
            made = super()._build_generation_config(body, *args, **options)
            drawn = body.get("temperature") if body.get("temperature") is not None else body.get("top_p")
            made.do_sample = bool(drawn)
            return made

    return Handler(manager, state, chat_template_kwargs=dict(source.vocabulary.render_mode.switches or {}))


def _not_cut_short(record: logging.LogRecord) -> bool:
    """False for the traceback of an answer that the end of the server cuts short; uvicorn says it in a line, too."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def require_server() -> None:
    """Raise ConfigError unless the `serve` extra is installed."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}; install with\n  {INSTALL}")


@contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that waits for connections.

    Raises:
        ConfigError: no such address, or a taken port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        why, _, _ = str(error.strerror).partition(" (")  # Python repeats the address there
        hint = "; take another, or --port 0 for any free one" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {host}, port {port}: {why}{hint}") from None
    with listener:
        yield listener


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn raises Ctrl-C and SIGTERM once more when it has shut down; for a server they are the way to end."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
