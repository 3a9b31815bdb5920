"""Talking to a run is talking with its template and its stop tokens, to it or to its base, as long as it fits."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qdora_fast.data.tokenize.vocabulary import Vocabulary
from qdora_fast.inference import ChatModel, Conversation, SamplingParams, Source, answer
from qdora_fast.recipes.chat import find, load
from qdora_fast.system.errors import ConfigError, OutOfMemory
from qdora_fast.system.run_folder import RunFolder

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = SamplingParams(temperature=1e6, seed=5)
"""Any word of the vocabulary, the stop token hardly ever."""


@pytest.fixture(scope="module")
def tuned(demo_run: RunFolder) -> ChatModel:
    return load(demo_run.path)


def _questions(run: RunFolder) -> list[str]:
    return [row["messages"][0]["content"] for row in run.read_rows("data/held_out.jsonl")[:6]]


def _ask(chat_model: ChatModel, question: str, **options) -> str:
    return answer(chat_model, [{"role": "user", "content": question}], SamplingParams(24), **options).text


def _with_template(source: Source, template: str) -> Source:
    tokenizer = copy.deepcopy(source.vocabulary.tokenizer)
    tokenizer.chat_template = template
    return replace(source, vocabulary=Vocabulary(tokenizer, source.vocabulary.stop_ids))


def test_run_bare_adapter_and_merged_models_give_the_same_answers(
    demo_run: RunFolder, tuned: ChatModel, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    merged, bare, four_bit = demo_run.path / "merged_16bit", tmp_path / "bare", tmp_path / "four_bit"
    shutil.copytree(demo_run.adapter, bare)
    (bare / "config.yaml").unlink(missing_ok=True)
    shutil.copytree(bare, tmp_path / "recorded")
    shutil.copy(demo_run.config_file, tmp_path / "recorded")
    shutil.copytree(merged, four_bit, ignore=shutil.ignore_patterns("*.safetensors"))
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(merged, quantization_config=nf4).save_pretrained(four_bit)

    questions = _questions(demo_run)
    expected = [_ask(tuned, question) for question in questions]
    assert all("###" not in text for text in expected)  # it stops at the end of its answer
    for path in (merged, bare, tmp_path / "recorded", four_bit):
        chat_model = load(path)
        assert chat_model.source.vocabulary.tokenizer.eos_token_id in chat_model.source.vocabulary.stop_ids
        said = [_ask(chat_model, question) for question in questions]
        assert sum(a == b for a, b in zip(said, expected, strict=True)) >= 5, path


def test_the_base_is_the_same_model_with_its_adapter_off(demo_run: RunFolder, tuned: ChatModel) -> None:
    questions = _questions(demo_run)
    before = [_ask(tuned, question) for question in questions]
    base = [_ask(tuned, question, base=True) for question in questions]
    assert all(a != b for a, b in zip(base, before, strict=True))  # it was never asked a question
    assert [_ask(tuned, question) for question in questions] == before


def test_pieces_are_the_answer_as_it_is_written(tuned: ChatModel) -> None:
    pieces: list[str] = []
    said = answer(tuned, HELLO, replace(ENDLESS, max_new_tokens=40), on_text=pieces.append)
    assert len(pieces) > 5
    assert "".join(pieces) == said.text


def test_memory_that_runs_out_is_first_sought_in_kept_weights(
    short_run: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from qdora_fast.engine.patch import residency

    chat_model, sampling = load(short_run().path), SamplingParams(8)
    kept = residency(chat_model.model)
    assert kept is not None
    expected = answer(chat_model, HELLO, sampling).text
    kept.admit(2**40)
    theirs, pieces, room = chat_model.model.generate, [], [1]

    def short_of_memory(**asked: object) -> object:
        if kept.bytes or not room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return theirs(**asked)

    monkeypatch.setattr(chat_model.model, "generate", short_of_memory)
    assert answer(chat_model, HELLO, sampling, on_text=pieces.append).text == expected == "".join(pieces).strip()
    room.clear()
    with pytest.raises(OutOfMemory, match="/new starts over"):
        answer(chat_model, HELLO, sampling)


def test_an_answer_says_how_it_ended(demo_run: RunFolder, tuned: ChatModel) -> None:
    question = [{"role": "user", "content": _questions(demo_run)[0]}]
    assert answer(tuned, question).end == "finished"
    cut = answer(tuned, question, SamplingParams(max_new_tokens=1))
    assert (cut.end, cut.tokens) == ("limit", 1)
    length = len(tuned.source.prompt(HELLO)) + 3
    full = answer(replace(tuned, source=replace(tuned.source, max_length=length)), HELLO, ENDLESS)
    assert (full.end, full.tokens) == ("full", 3)


def test_a_stopped_answer_leaves_the_model_as_it_was(demo_run: RunFolder, tuned: ChatModel) -> None:
    stop = threading.Event()
    talk = Conversation(tuned, base=True)
    said = talk.say("Hello", ENDLESS, on_text=lambda _: stop.set(), stop=stop)
    assert said.end == "stopped"
    assert 1 <= said.tokens < 20
    assert talk.turns[-1] == {"role": "assistant", "content": said.text}
    question = _questions(demo_run)[0]
    assert _ask(tuned, question) != _ask(tuned, question, base=True)


def test_answers_are_drawn_only_on_request_and_again_with_the_same_seed(tuned: ChatModel) -> None:
    drawn = [answer(tuned, HELLO, SamplingParams(12, 1e6, seed=seed)).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    likeliest = [answer(tuned, HELLO, SamplingParams(12, 5.0, top_p=1e-6, seed=seed)).text for seed in (1, 2)]
    assert likeliest == [answer(tuned, HELLO, SamplingParams(12)).text] * 2
    with pytest.raises(ConfigError, match="set --temperature"):
        SamplingParams(top_p=0.9)


def test_the_oldest_turns_go_when_the_model_is_full_and_the_system_message_stays(tuned: ChatModel) -> None:
    small = replace(tuned, source=replace(tuned.source, max_length=110))
    talk = Conversation(small, system="Answer in one word.")
    dropped = [talk.say(f"What is the capital of country {number}?", SamplingParams(8)).dropped for number in range(6)]
    assert dropped[0] == 0
    assert sum(dropped) + len(talk.turns) == 12
    assert dropped[-1] >= 2 and dropped[-1] % 2 == 0  # questions go with their answers
    assert talk.turns[-2]["content"].endswith("country 5?")
    assert len(small.source.prompt([{"role": "system", "content": talk.system}, *talk.turns])) < 110
    kept = list(talk.turns)
    with pytest.raises(ConfigError, match=r"tokens to read, and the model takes 110"):
        talk.say("word " * 200, SamplingParams(8))
    with pytest.raises(ConfigError, match="empty"):
        talk.say(" ", SamplingParams(8))
    assert talk.turns == kept


def test_templates_that_take_less_than_is_asked_are_refused(tuned: ChatModel) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"}]
    system = [{"role": "system", "content": "Be brief."}, *HELLO]
    no_system = _with_template(
        tuned.source, "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    )
    with pytest.raises(ConfigError, match=r"refuses this conversation: no system.*without a system message"):
        no_system.prompt(system)
    deaf = _with_template(tuned.source, "{{ messages[-1].content }}")
    assert deaf.prompt(HELLO)
    with pytest.raises(ConfigError, match="leaves out the system message"):
        deaf.prompt(system)
    with pytest.raises(ConfigError, match=r"leaves out the user message.*/new before each"):
        deaf.prompt(turns)
    with pytest.raises(ConfigError, match="not valid Unicode"):
        tuned.source.prompt([{"role": "user", "content": "\udcff"}])


def _is_unfinished(run: RunFolder, _: Path) -> Path:
    run.adapter.rename(run.path / "away")
    return run.path


def _has_lost_its_base(run: RunFolder, _: Path) -> Path:
    run.write_json("model.json", {**run.read_json("model.json"), "base": "/nowhere/base"})
    return run.path


def _has_no_template(run: RunFolder, folder: Path) -> Path:
    shutil.copytree(run.adapter, folder / "bare", ignore=shutil.ignore_patterns("chat_template.jinja"))
    return folder / "bare"


def _is_no_model(_: RunFolder, folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


def _holds_gguf(_: RunFolder, folder: Path) -> Path:
    (folder / "model.gguf").write_text("")
    return folder


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_is_unfinished, "has no adapter yet"),
        (_has_lost_its_base, r"/nowhere/base, is not there.*model\.json"),
        (_has_no_template, "has no chat template"),
        (_is_no_model, "names no architecture"),
        (_holds_gguf, "GGUF is for llama.cpp"),
        (lambda _, folder: folder, "is not a run"),
    ],
)
def test_what_cannot_be_talked_to_says_why(
    own_demo_run: RunFolder, tmp_path: Path, made: Callable[[RunFolder, Path], Path], said: str
) -> None:
    folder = tmp_path / "asked"
    folder.mkdir()
    with pytest.raises(ConfigError, match=said):
        find(made(own_demo_run, folder))
