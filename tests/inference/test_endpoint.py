"""What is sent to a server is OpenAI's API, and what comes back is read as it is, whatever server it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from qdora_fast.data.read.questions import Question
from qdora_fast.inference import SamplingParams
from qdora_fast.inference.endpoint import Endpoint, open_endpoint, said_of, sent_messages
from qdora_fast.inference.many import Said
from qdora_fast.system.errors import ConfigError, QdoraError

USER = {"role": "user", "content": "Hello"}
URL = "http://server/v1"


def _completion(**message: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}


def _endpoint(handler: Callable[[httpx.Request], httpx.Response], **how: Any) -> Endpoint:
    client = httpx.Client(transport=httpx.MockTransport(handler))
    return Endpoint(URL, "m", SamplingParams(**how), 2, pauses=(0, 0), _client=client)


def _answers(endpoint: Endpoint, *texts: str) -> list[Said]:
    questions = [Question(f"x:{text}", [USER | {"content": text}]) for text in texts]
    return endpoint.answers(questions, 0, lambda count: None)


def test_only_what_a_row_says_is_sent_and_answers_keep_the_order_of_the_rows() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=_completion(content=f" {bodies[-1]['messages'][0]['content']}! "))

    said = _answers(_endpoint(handler, max_new_tokens=9, temperature=0.5, seed=3), *"abcdef")
    assert [each.text for each in said] == [f"{text}!" for text in "abcdef"]
    assert said[0] == Said("a!", "stop token", 3)
    first = next(each for each in bodies if each["messages"][0]["content"] == "b")
    assert first == {
        **{"model": "m", "messages": [{"role": "user", "content": "b"}], "max_tokens": 9, "temperature": 0.5},
        "seed": 4,
    }


def test_a_busy_server_is_asked_again_and_a_dead_one_ends_it() -> None:
    tries: list[int] = []

    def busy(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        if len(tries) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(503) if len(tries) == 2 else httpx.Response(200, json=_completion(content="x"))

    assert _answers(_endpoint(busy), "a")[0].text == "x" and len(tries) == 3
    with pytest.raises(QdoraError, match=r"3 times no answer \(503 Service Unavailable\); is the server running"):
        _answers(_endpoint(lambda request: httpx.Response(503)), *"abcd")


@pytest.mark.parametrize(
    ("reply", "error", "match"),
    [
        (httpx.Response(401, json={"error": {"message": "wrong key"}}), ConfigError, "wrong key.*QDORA_FAST_API_KEY"),
        (
            httpx.Response(404, json={"detail": "no such model"}),
            ConfigError,
            r"no such model \(404\); is this the addr",
        ),
        (httpx.Response(302, headers={"location": "http://other/v1"}), ConfigError, r"\(302\)"),
        (httpx.Response(200, text="<html>"), QdoraError, "what it sent is not valid JSON"),
        (httpx.Response(200, json=[1]), QdoraError, "no JSON object"),
        (httpx.Response(200, json={"choices": []}), QdoraError, "no answer in what it sent"),
        (httpx.Response(200, json={"choices": [{"message": None}]}), QdoraError, "no answer in what it sent"),
    ],
)
def test_what_concerns_every_row_ends_it_with_the_reason(
    reply: httpx.Response, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        _answers(_endpoint(lambda request: reply), "a")


def test_a_refused_row_says_why_and_the_others_are_answered() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if b"bad" in request.content:
            return httpx.Response(400, json={"error": {"message": "too long"}})
        return httpx.Response(200, json=_completion(content="x"))

    said = _answers(_endpoint(handler), "a", "bad", "c")
    assert [each.problem for each in said] == ["", "the server refuses it: too long", ""]


def test_answers_of_other_servers_are_read() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    assert said_of(_completion(content=None, tool_calls=[call]), URL).text == '[{"name": "f", "arguments": {"a": 1}}]'
    assert said_of(_completion(content="x", reasoning_content="why"), URL).reasoning == "why"
    assert said_of({"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}, URL) == Said("x", "length")
    assert said_of(_completion(content=""), URL).text == ""


def test_calls_and_their_results_are_joined_by_ids() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    sent = sent_messages(
        [
            USER | {"instruction": "x", "input": "y"},
            {"role": "assistant", "content": "", "tool_calls": [call, call], "train": False, "reasoning_content": "r"},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
        ]
    )
    assert sent[0] == USER and set(sent[1]) == {"role", "content", "tool_calls"}
    ids = [each["id"] for each in sent[1]["tool_calls"]]
    assert len(set(ids)) == 2 and [each["tool_call_id"] for each in sent[2:]] == ids
    assert sent[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("url", "match"),
    [("http://", "not an address"), ("http://h/v1?x=1", "not an address"), ("http://a:b@h/v1", "holds a password")],
)
def test_addresses_that_are_none_are_refused(url: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        open_endpoint(url, None, SamplingParams())


def test_the_model_is_the_only_one_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: dict[str, Any] = {"data": [{"id": "a"}, {"id": "b"}]}
    client = httpx.Client

    def made(**options: Any) -> httpx.Client:
        return client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=listed)), **options)

    monkeypatch.setattr(httpx, "Client", made)
    with pytest.raises(ConfigError, match=r"lists 2 models \(a, b\): name one with --model"):
        open_endpoint(URL, None, SamplingParams())
    with pytest.raises(ConfigError, match="no model 'c'; it has a, b"):
        open_endpoint(URL, "c", SamplingParams())
    assert open_endpoint("http://server/", "b", SamplingParams()).url == URL
    listed["data"] = [{"id": "a"}]
    assert open_endpoint("HTTP://server/v1/chat/completions/", None, SamplingParams()).model == "a"
