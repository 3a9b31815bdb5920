"""The server says what `chat` says, over HTTP, as OpenAI's own client reads it."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from heard import heard
from served import served

from qdora_fast.inference import ChatModel, SamplingParams, answer
from qdora_fast.recipes.chat import load, serve
from qdora_fast.system.errors import ConfigError
from qdora_fast.system.run_folder import RunFolder

MAIN = "from qdora_fast.cli.main import main; main()"


@pytest.fixture(scope="module")
def tuned(demo_run: RunFolder) -> ChatModel:
    return load(demo_run.path)


@pytest.fixture(scope="module")
def client(tuned: ChatModel) -> Iterator[Any]:
    """OpenAI's client of a server in a thread."""
    import openai

    with served(tuned) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def _messages(run: RunFolder, number: int) -> list[dict[str, Any]]:
    return list(run.read_rows("data/held_out.jsonl")[number]["messages"][:1])


def test_answers_are_those_of_chat(demo_run: RunFolder, tuned: ChatModel, client: Any) -> None:
    assert [model.id for model in client.models.list()] == [tuned.source.name]
    for number in range(3):
        messages = _messages(demo_run, number)
        done = client.chat.completions.create(model=tuned.source.name, messages=messages)
        assert done.choices[0].message.content == answer(tuned, messages).text
        assert done.choices[0].finish_reason == "stop"
        assert done.usage.prompt_tokens == len(tuned.source.prompt(messages))


def test_a_streamed_answer_comes_in_pieces(demo_run: RunFolder, tuned: ChatModel, client: Any) -> None:
    system = [{"role": "system", "content": "Be brief."}, *_messages(demo_run, 0)]
    chunks = list(client.chat.completions.create(model=tuned.source.name, messages=system, stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(pieces) > 2
    assert "".join(pieces) == answer(tuned, system).text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_temperature_and_length_are_followed(demo_run: RunFolder, tuned: ChatModel, client: Any) -> None:
    def say(**options: Any) -> Any:
        messages = _messages(demo_run, 0)
        return client.chat.completions.create(model=tuned.source.name, messages=messages, **options).choices[0]

    greedy = say(temperature=0).message.content
    assert say().message.content == greedy
    drawn = say(temperature=1.5, seed=1, max_tokens=12).message.content
    assert drawn == answer(tuned, _messages(demo_run, 0), SamplingParams(12, 1.5, seed=1)).text
    assert say(max_completion_tokens=1).finish_reason == "length"


def test_what_cannot_be_answered_is_refused_with_the_reason(tuned: ChatModel, client: Any) -> None:
    import openai

    def ask(content: str, model: str = tuned.source.name) -> None:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])

    with pytest.raises(openai.BadRequestError, match=f"the model takes {tuned.source.max_length:,}"):
        ask("word " * (tuned.source.max_length + 1))
    with pytest.raises(openai.BadRequestError, match="pinned to"):
        ask("Hello", model="another")
    with pytest.raises(openai.BadRequestError, match="messages: list should have at least 1 item"):
        client.chat.completions.create(model=tuned.source.name, messages=[])
    with pytest.raises(openai.BadRequestError, match="chat_template_kwargs: is not a field"):
        body = {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
        messages = [{"role": "user", "content": "Hello"}]
        client.chat.completions.create(model=tuned.source.name, messages=messages, extra_body=body)
    with pytest.raises(openai.NotFoundError):  # what is not tested is not there
        client.completions.create(model=tuned.source.name, prompt="Hello")


def test_what_clients_send_by_habit_is_followed_or_named_once(
    demo_run: RunFolder, tuned: ChatModel, client: Any
) -> None:
    messages = _messages(demo_run, 0)
    with heard() as out:
        for _ in range(2):
            done = client.chat.completions.create(
                model=tuned.source.name,
                messages=messages,
                stop=["\n\n\n"],
                user="me",
                presence_penalty=0,
                response_format={"type": "text"},
                logit_bias={"5": -1},
                extra_headers={"Origin": "http://localhost:3000"},
            )
            assert done.choices[0].message.content == answer(tuned, messages).text
    assert out.getvalue().count("`user`") == 1


def test_nothing_a_client_sends_ends_in_a_server_error(client: Any) -> None:
    import httpx

    user = [{"role": "user", "content": "x"}]
    bodies = [
        *(b"", b"{", b"[]", b"5", b'{"messages":' + b"[" * 50_000, b'{"max_tokens":' + b"9" * 6000 + b"}", b"\xff"),
        *(
            json.dumps({"messages": user, "max_tokens": 2, **more}).encode()
            for more in (
                *({"logit_bias": {"999999999": 1}}, {"stop": "x"}, {"seed": 2**63 - 1}, {"temperature": float("nan")}),
                *({"tools": [{}]}, {"tools": [{"function": 1}]}, {"model": "../../etc/passwd"}, {"top_p": 1e-9}),
                *({"messages": [{"role": "tool", "content": "x"}]}, {"messages": [{"role": "assistant"}]}),
                *({"messages": [{"role": "user", "content": "\ud800"}]}, {"temperature": 1e-300}),
            )
        ),
    ]
    url = str(client.base_url) + "chat/completions"
    for body in bodies:
        reply = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=120)
        assert reply.status_code in (200, 400, 422), (body[:80], reply.text[:200])


def test_other_machines_are_let_in_with_a_password_alone(demo_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDORA_FAST_API_KEY", raising=False)
    monkeypatch.delattr("qdora_fast.models.loading.load_trained")
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 can be reached .* QDORA_FAST_API_KEY .* --no-password"):
        serve(demo_run.path, host="0.0.0.0", port=0)


def test_a_real_server_answers_and_ends_on_a_signal(demo_run: RunFolder, tuned: ChatModel) -> None:
    import openai

    merged = demo_run.path / "merged_16bit"
    command = [
        sys.executable,
        "-c",
        MAIN,
        "serve",
        str(merged),
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        started = next(line for line in process.stderr if line.startswith("Server"))
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", started)
        assert url
        client = openai.OpenAI(base_url=url[0], api_key="none")
        messages, name = _messages(demo_run, 0), f"{demo_run.path.name}/merged_16bit"
        said = client.chat.completions.create(model=name, messages=messages).choices[0].message.content
        assert said == answer(load(merged), messages).text
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(timeout=300) == 0
        assert rest.splitlines()[-1] == "the server has stopped"
        assert "Traceback" not in rest and "Warning" not in started + rest
    finally:
        process.kill()


def test_a_taken_port_and_a_missing_server_are_said_before_weights_are_read(
    demo_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("qdora_fast.models.loading.load_trained")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port}: Address already in use; take another"):
            serve(demo_run.path, port=port)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    with pytest.raises(ConfigError, match=r"serve needs uvicorn; install with\n.*\[serve\]"):
        serve(demo_run.path)
