"""A trained model behind OpenAI's API, for trying it from other programs on this machine.

The server is the one of `transformers serve`. Given a path it would load the model itself, which it cannot do for a
DoRA run on a 4-bit base, and list what lies in the hub's cache as its models; so it is handed the model that `chat`
opens. What it gets has passed gate.py (who may ask) and request.py (what may be asked), and is rendered as in `chat`.
Two more things are corrected on the way: `temperature` is followed (there it does nothing unless the model's own
settings draw already), and a conversation that does not fit the model or its template is refused with a reason (there
it runs past the model's length). Without a temperature answers are greedy, as in `chat`.

What this is not: a server for production. One request is answered after the other, and nothing is encrypted.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import ipaddress
import logging
import os
import signal
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from qdora_fast.data.tokenize.replies import ReplyReader
from qdora_fast.inference import screen
from qdora_fast.inference.gate import Gate
from qdora_fast.inference.listening import listener
from qdora_fast.inference.loading import ChatModel, Source, load_source
from qdora_fast.inference.request import read_request
from qdora_fast.system import console
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.install import how_to_install

ROUTES = ("/v1/chat/completions", "/v1/models", "/health")
PASSWORD = "QDORA_FAST_API_KEY"
"""The environment variable that holds the password; its name says that it is a secret."""
MOST_TOKENS = 1024
"""Of an answer, where a request does not say."""
PATIENCE = 3
"""Seconds for answers in hand when the server is stopped."""


def serve(
    source: Source,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    password: str | None = None,
    no_password: bool = False,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; the second of these ends the process at once.

    Args:
        source: what answers.
        port: 0 takes any free one.
        password: the API key that clients must send.
        no_password: other machines may ask without one.
        allowed_hosts: names by which browsers may call the server, beside this machine's own.

    Raises:
        ConfigError: the port is taken, other machines could ask without a password, or see `load_source`.
    """
    with listener(host, port) as waiting:  # before weights are read: a taken port is said at once
        local = ipaddress.ip_address(waiting.getsockname()[0]).is_loopback
        if not (local or password or no_password):
            raise ConfigError(
                f"{host} can be reached from other machines: set a password in the environment variable {PASSWORD} "
                "(clients send it as their API key), or say --no-password"
            )
        with screen.loading(source):
            app = make_app(load_source(source), hosts=(host, *allowed_hosts), password=password)
        import uvicorn

        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE)
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        logging.getLogger("uvicorn.error").addFilter(_not_cut_short)
        address, taken = waiting.getsockname()[:2]
        screen.serving(source, address, taken, open_to_all=not local and password is None)
        with _signals_end_quietly():
            _server(settings).run(sockets=[waiting])
    console.aside("the server has stopped")


def make_app(chat_model: ChatModel, *, hosts: Collection[str] = (), password: str | None = None) -> Any:
    """The ASGI application that answers for one loaded model; the options as for `Gate`."""
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
    return Gate(app, hosts, password)


def _server(settings: Any) -> Any:
    """uvicorn's server, which a second signal ends whatever it is doing."""
    import uvicorn

    class Server(uvicorn.Server):
        """Ends at once when it is asked again."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:
                os._exit(128 + sig)
            super().handle_exit(sig, frame)

    return Server(settings)


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


def _rendered(tokenizer: Any, ids: list[int]) -> Any:
    """The tokenizer, which has rendered its conversation already: to these tokens."""
    import torch
    from transformers import BatchEncoding

    tokens = torch.tensor([ids])
    made = BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    other = copy.copy(tokenizer)
    other.apply_chat_template = lambda *_, **__: made
    return other


def _handler(source: Source, manager: Any, state: Any) -> Any:
    """The server's handler of chats: what it gets has been read by request.py and rendered as `chat` does."""
    from fastapi import HTTPException
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.utils import Modality

    reader = ReplyReader(source.vocabulary.tokenizer)
    prompt: ContextVar[list[int]] = ContextVar("prompt")
    told: set[str] = set()

    class Handler(ChatCompletionHandler):
        """Refuses what does not fit."""

        def _build_completion(self, request_id: str, content: str, *args: Any, **options: Any) -> Any:
            if not options.get("reasoning_content"):
                read = reader.split(content)
                content, options["reasoning_content"] = read.answer, read.thought or None
            return super()._build_completion(request_id, content, *args, **options)

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            try:
                taken, idle = read_request(body)
                messages = self.get_processor_inputs_from_messages(taken["messages"], Modality.LLM)
                ids = await asyncio.to_thread(source.prompt, messages, taken.get("tools"))
            except ConfigError as error:
                raise HTTPException(400, str(error)) from None
            if len(ids) >= source.max_length:
                raise HTTPException(400, f"{len(ids):,} tokens to read, and the model takes {source.max_length:,}")
            for name in set(idle) - told:
                told.add(name)
                console.note(f"the field `{name}` of requests has no effect here")
            asked = taken.pop("max_completion_tokens", None) or taken.get("max_tokens") or MOST_TOKENS
            taken["max_tokens"] = min(asked, source.max_length - len(ids))
            prompt.set(ids)
            return await super().handle_request(taken, request_id)

        def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
            name, model, tokenizer = super()._resolve_model(body)
            return name, model, _rendered(tokenizer, prompt.get())

        def _build_generation_config(self, body: dict[str, Any], *args: Any, **options: Any) -> Any:
            made = super()._build_generation_config({**body, "logit_bias": None}, *args, **options)
            drawn = body.get("temperature") if body.get("temperature") is not None else body.get("top_p")
            made.do_sample = bool(drawn)
            known = len(source.vocabulary.tokenizer)
            biases = body.get("logit_bias") or {}
            made.sequence_bias = {(int(each),): bias for each, bias in biases.items() if int(each) < known} or None
            return made

    return Handler(manager, state)


def _not_cut_short(record: logging.LogRecord) -> bool:
    """False for the traceback of an answer that the end of the server cuts short; uvicorn says it in a line, too."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def require_server() -> None:
    """Raise ConfigError unless the `serve` extra is installed."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}; install with\n  {how_to_install('serve')}")


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn raises Ctrl-C and SIGTERM once more when it has shut down; for a server they are the way to end."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
