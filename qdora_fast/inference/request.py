"""A request to `/v1/chat/completions`: a conversation and how to answer it, and nothing else.

The server below would hand fields of a request on to the chat template and to generation, with which a client replaces
the template, or asks for 300 beams. So a request is read into the model here, and only what it holds goes on. Of
OpenAI's fields those that have no effect here are accepted, because clients send them by habit, and are named once on
the console; every other field is refused by its name, and so is a value out of its range.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qdora_fast.system.errors import ConfigError
from qdora_fast.system.json_files import is_deep
from qdora_fast.system.limits import JSON_DEPTH

WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "stream_options", "presence_penalty"),
    *("prompt_cache_key", "safety_identifier", "verbosity", "prediction", "web_search_options", "reasoning_effort"),
)
"""Fields of OpenAI's API that a client may send and that change nothing here."""

COLDEST = 1e-6
"""Temperatures below are greedy: scores divided by them would overflow."""

_Text = Annotated[str, Field(max_length=2**24)]


class _Part(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["text", "input_text", "output_text"]
    text: _Text


class _Function(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: _Text
    arguments: _Text | dict[str, Any] = Field(default_factory=dict)


class _Call(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    id: _Text | None = None
    type: Literal["function"] = "function"
    function: _Function


class _Message(BaseModel):
    """One message. Clients send an answer back as they got it, with empty fields in it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Text | list[_Part] | None = None
    name: _Text | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: _Text | None = None
    reasoning_content: _Text | None = None


class _ToolFunction(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: _Text
    description: _Text | None = None
    parameters: dict[str, Any] | None = None


class _Tool(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["function"] = "function"
    function: _ToolFunction


class Request(BaseModel):
    """What a request may hold. None: not said."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    messages: list[_Message] = Field(min_length=1)
    model: _Text | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    frequency_penalty: float | None = Field(None, ge=0, le=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Annotated[str, Field(min_length=1, max_length=1000)] | list[Annotated[str, Field(min_length=1)]] | None = None
    stream: bool = False
    tools: list[_Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    modalities: list[Literal["text"]] | None = None
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _text_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError("only {'type': 'text'} is possible here")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _of_tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not token.isascii() or not token.isdigit() or len(token) > 9 or not -100 <= bias <= 100:
                raise ValueError("it maps token ids to numbers from -100 to 100")
        return value

    @field_validator("stop")
    @classmethod
    def _a_few(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (len(value) > 16 or any(len(each) > 1000 for each in value)):
            raise ValueError("at most 16 texts of 1,000 characters")
        return value


def read_request(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of a request that are followed, without those that are null, and the names of those that are not.

    Raises:
        ConfigError: a field or value that is not possible here, by its name.
    """
    if is_deep(body):
        raise ConfigError(f"the request has more than {JSON_DEPTH} levels of lists and objects")
    given = {name: value for name, value in body.items() if value is not None}
    idle = tuple(name for name in WITHOUT_EFFECT if name in given)
    asked = {name: value for name, value in given.items() if name not in idle}
    if isinstance(asked.get("messages"), list):
        asked["messages"] = [_without_empty(each) for each in asked["messages"]]
    try:
        request = Request.model_validate(asked)
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None
    said = {"n", "logprobs", "top_logprobs", "modalities", "response_format"}  # only one value of each is possible
    taken = request.model_dump(exclude_none=True, exclude=said)
    if taken.pop("tool_choice", None) == "none" or not taken.get("tools"):  # [] would choose the template for tools
        taken.pop("tools", None)
    if taken.get("temperature", 1) < COLDEST:
        taken["temperature"] = 0.0
    for message in taken["messages"]:
        _with_objects(message)
    return taken, idle


def _without_empty(message: Any) -> Any:
    """A message without fields that say nothing."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name == "content" or value not in (None, [], {})}


def _with_objects(message: dict[str, Any]) -> None:
    """Arguments of calls as objects, which is how a client sends them back as text."""
    for call in message.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            try:
                call["function"]["arguments"] = json.loads(arguments)
            except (ValueError, RecursionError):
                raise ConfigError("messages: the arguments of a tool call are no JSON") from None


def _first_problem(error: ValidationError) -> str:
    """What is wrong with a request, beginning with the field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    place = ".".join(str(part) for part in first["loc"][:3]) or "request"
    if first["type"] == "extra_forbidden":
        return f"{place}: is not a field of a request here; leave it out"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}"
