"""A request is a conversation and how to answer it: the rest is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdora_fast.inference.request import WITHOUT_EFFECT, read_request
from qdora_fast.system.errors import ConfigError

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ 1 }}"),
        ("chat_template_kwargs", {"chat_template": "x"}),
        ("generation_config", '{"num_beams": 300}'),
        ("num_beams", 300),
        ("model_kwargs", {}),
        ("functions", [{"name": "f"}]),
        ("messages", []),
        ("messages", [1]),
        ("messages", "Hello"),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "root", "content": "x"}]),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        ),
        ("messages", [{"role": "user", "content": "x", "chat_template": "y"}]),
        ("messages", [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}]),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "many"),
        ("max_tokens", 2.5),
        ("max_completion_tokens", True),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", 2.1),
        ("top_p", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ""),
        ("stop", ["x"] * 17),
        ("stop", [5]),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("tools", "x"),
        ("tools", [1]),
        ("tools", [{}]),
        ("tools", [{"function": 1}]),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", "required"),
        ("n", 2),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", -1),
        ("stream", "yes"),
    ],
)
def test_what_is_not_possible_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}"):
        read_request({**ASK, field: value})


def test_deep_requests_are_refused() -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"x": deep}
    with pytest.raises(ConfigError, match="levels"):
        read_request({**ASK, "tools": [{"function": {"name": "f", "parameters": deep}}]})


def test_an_ordinary_request_goes_on_as_it_is() -> None:
    """As OpenAI's client and Open WebUI send them, answers of earlier turns with their empty fields included."""
    earlier = {
        **{"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "audio": None},
        **{"function_call": None, "tool_calls": None},
    }
    body = {
        **{"model": "m", "stream": True, "temperature": 0.7, "max_tokens": 9, "stop": None, "seed": 3, "n": 1},
        **{"stream_options": {"include_usage": True}, "user": "me", "response_format": {"type": "text"}},
        **{"messages": [{"role": "system", "content": "Be brief."}, *ASK["messages"], earlier, *ASK["messages"]]},
        **{"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "auto"},
    }
    taken, idle = read_request(body)
    assert (
        taken["messages"]
        == [body["messages"][0], ASK["messages"][0], {"role": "assistant", "content": "Hi"}] + (ASK["messages"])
    )
    assert {name: taken[name] for name in ("model", "stream", "temperature", "max_tokens", "seed")} == {
        name: body[name] for name in ("model", "stream", "temperature", "max_tokens", "seed")
    }
    assert "tools" not in taken and set(idle) == {"stream_options", "user", "presence_penalty"}


def test_tools_and_their_calls_are_taken() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "7"}]},
    ]
    taken, _ = read_request({"messages": messages, "tools": tools})
    assert taken["tools"] == tools
    assert taken["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert taken["messages"][2]["content"] == [{"type": "text", "text": "7"}]
    assert "tools" not in read_request({"messages": messages, "tools": tools, "tool_choice": "none"})[0]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
_FIELDS = ("messages", "model", "max_tokens", "temperature", "stop", "tools", "logit_bias", "seed", *WITHOUT_EFFECT[:2])


@given(st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), _JSON, max_size=5))
def test_any_body_is_taken_or_refused(body: dict[str, Any]) -> None:
    try:
        taken, _ = read_request(body)
    except ConfigError:
        return
    assert taken["messages"]
