"""Answers of a server with OpenAI's API: ours (`serve`), vLLM, llama-server, Ollama and others.

Only what a row says and how it is to be answered is sent: messages, tools, lengths, temperature, `top_p` and seed. The
server renders the conversation with its own template and ends answers at its own stop tokens. Several requests wait at
once, so that a server that can will batch them. What it refuses of one row (400, 413, 422) is that row's problem; where
it is busy or cannot be reached, the request is sent again, with longer pauses, before the command ends.

The password is read from an environment variable and sent to no other address: redirections are not followed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qdora_fast.data.read.messages import Message
from qdora_fast.data.read.questions import Question
from qdora_fast.inference.conversation import SamplingParams
from qdora_fast.inference.many import LENGTH, STOP, OnRows, Said
from qdora_fast.inference.serve import PASSWORD
from qdora_fast.system.errors import ConfigError, QdoraError, first_line
from qdora_fast.system.json_files import NotJson, parse_json

SECONDS = 600
"""For one answer."""
PAUSES = (1, 2, 4, 8, 16)
"""Seconds before a request is sent again."""
OF_THE_ROW = (400, 413, 422)
"""Answers of a server that speak of one request."""
BUSY = (408, 429, 500, 502, 503, 504)
_SENT = ("role", "content", "name", "tool_call_id")
_ENDS = {"stop": STOP, "length": LENGTH}


def is_url(model: object) -> bool:
    """Whether a model is named by the address of a server."""
    return isinstance(model, str) and model.lower().startswith(("http://", "https://"))


@dataclass
class Endpoint:
    """A model of a server."""

    url: str
    """That `/chat/completions` is appended to."""
    model: str
    sampling: SamplingParams
    batch_size: int = 8
    """Requests that wait at once."""
    pauses: Sequence[float] = PAUSES
    _client: Any = field(default=None, repr=False)

    def answers(self, questions: Sequence[Question], first: int, on_rows: OnRows) -> list[Said]:
        """See `many.Answerer`.

        Raises:
            ConfigError: the server refuses the password, or has no such model.
            QdoraError: it cannot be reached any more, or what it says is not OpenAI's API.
        """

        def answer(number: int) -> Said:
            said = self._answer(questions[number], first + number)
            on_rows(1)
            return said

        with ThreadPoolExecutor(self.batch_size) as pool:
            waiting = [pool.submit(answer, number) for number in range(len(questions))]
            try:
                return [each.result() for each in waiting]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: Question, number: int) -> Said:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": sent_messages(question.messages),
            "max_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
        }
        if question.tools:
            body["tools"] = question.tools
        if self.sampling.top_p is not None:
            body["top_p"] = self.sampling.top_p
        if self.sampling.seed is not None:
            body["seed"] = (self.sampling.seed + number) % 2**31
        reply = self._asked(lambda: self._client.post(f"{self.url}/chat/completions", json=body))
        if reply.status_code in OF_THE_ROW:
            return Said(problem=f"the server refuses it: {reason_of(reply)}")
        return said_of(content_of(reply, self.url), self.url)

    def _asked(self, send: Callable[[], Any]) -> Any:
        """What the server says, once it is not busy."""
        import httpx

        for pause in (*self.pauses, None):
            try:
                reply = send()
                why = f"{reply.status_code} {reason_of(reply)}" if reply.status_code in BUSY else ""
            except httpx.TransportError as error:
                why = f"{type(error).__name__}: {first_line(error)}"
            if not why:
                return require_answer(reply, self.url)
            if pause is None:
                raise QdoraError(f"{self.url}: {len(self.pauses) + 1} times no answer ({why}); is the server running?")
            time.sleep(pause)
        raise AssertionError


def open_endpoint(url: str, model: str | None, sampling: SamplingParams, *, batch_size: int = 8) -> Endpoint:
    """A model that a server has, once it is sure that it has it.

    Args:
        model: as the server calls it; None: its only one.

    Raises:
        ConfigError: no such address, no server there, a wrong password, no such model, or several and none named.
    """
    import httpx

    base = _base_of(url)
    key = os.environ.get(PASSWORD)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(headers=headers, timeout=SECONDS, follow_redirects=False)
    try:
        reply = client.get(f"{base}/models", timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"{base}: no server answers there ({first_line(error)}); start it, or correct the address"
        ) from None
    if reply.status_code in (404, 405) and model:  # a server that does not list its models
        return Endpoint(base, model, sampling, batch_size, _client=client)
    content = content_of(require_answer(reply, base), base)
    listed = content.get("data")
    names = (
        [each["id"] for each in listed if isinstance(each, dict) and "id" in each] if isinstance(listed, list) else []
    )
    if model is None and len(names) != 1:
        shown = ", ".join(map(str, names[:8])) or "none"
        raise ConfigError(f"{base} lists {len(names)} models ({shown}): name one with --model")
    if model is not None and names and model not in names:
        raise ConfigError(f"{base} has no model {model!r}; it has {', '.join(map(str, names[:8]))}")
    return Endpoint(base, model or str(names[0]), sampling, batch_size, _client=client)


def _base_of(url: str) -> str:
    parts = urlsplit(url.strip())
    if parts.username or parts.password:
        raise ConfigError(f"the address holds a password; put it into the environment variable {PASSWORD}")
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{url}: not an address of a server such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme.lower()}://{parts.netloc}{path or '/v1'}"


def require_answer(reply: Any, url: str) -> Any:
    """The reply, unless it concerns every request.

    Raises:
        ConfigError: a wrong password, no such address or model.
    """
    if reply.status_code in (401, 403):
        raise ConfigError(
            f"{url}: {reason_of(reply)} ({reply.status_code}); the API key is read from the environment variable "
            f"{PASSWORD}"
        )
    if reply.status_code >= 300 and reply.status_code not in OF_THE_ROW:
        raise ConfigError(
            f"{url}: {reason_of(reply)} ({reply.status_code}); is this the address of OpenAI's API (.../v1), and the "
            "name of its model right?"
        )
    return reply


def reason_of(reply: Any) -> str:
    """Why a server refuses, in its own words, shortened."""
    try:
        content = parse_json(reply.content)
    except NotJson:
        content = None
    error = content.get("error", content.get("detail")) if isinstance(content, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or reply.reason_phrase or "no reason given").split())[:300]


def content_of(reply: Any, url: str) -> Mapping[str, Any]:
    """The JSON object that a server sent.

    Raises:
        QdoraError: it is none.
    """
    try:
        content = parse_json(reply.content)
    except NotJson as error:
        raise QdoraError(f"{url}: what it sent is {error}; is this the address of OpenAI's API (.../v1)?") from None
    if not isinstance(content, dict):
        raise QdoraError(f"{url}: what it sent is no JSON object; is this the address of OpenAI's API (.../v1)?")
    return content


def said_of(content: Mapping[str, Any], url: str) -> Said:
    """The answer in a completion of OpenAI's API; calls of tools are JSON, as `json_match` reads them.

    Raises:
        QdoraError: there is none in it.
    """
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise QdoraError(f"{url}: no answer in what it sent; is this the address of OpenAI's API (.../v1)?")
    text = message.get("content")
    calls = message.get("tool_calls")
    if not text and isinstance(calls, list) and calls:
        text = json.dumps([_call(each) for each in calls], ensure_ascii=False)
    usage = content.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    end = choice.get("finish_reason")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return Said(
        text=str(text or "").strip(),
        stopped_by=_ENDS.get(str(end), str(end)) if end else None,
        tokens=tokens if isinstance(tokens, int) else None,
        reasoning=reasoning if isinstance(reasoning, str) else "",
    )


def sent_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form: arguments of calls as JSON text, and calls and results joined by ids."""
    sent: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        each = {key: message[key] for key in _SENT if key in message}
        if calls := message.get("tool_calls"):
            waiting = [str(call.get("id") or f"call_{len(sent)}_{number}") for number, call in enumerate(calls)]
            functions = [call["function"] for call in calls]
            each["tool_calls"] = [
                {
                    "id": identity,
                    "type": "function",
                    "function": {
                        "name": function["name"],
                        "arguments": json.dumps(function["arguments"], ensure_ascii=False),
                    },
                }
                for identity, function in zip(waiting, functions, strict=True)
            ]
        elif message["role"] == "tool" and "tool_call_id" not in each and waiting:
            each["tool_call_id"] = waiting.pop(0)
        sent.append(each)
    return sent


def _call(call: Any) -> Any:
    """A call as {"name", "arguments"}."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    with suppress(NotJson):
        arguments = parse_json(arguments) if isinstance(arguments, str) else arguments
    return {"name": function.get("name"), "arguments": arguments}
