"""A tokenizer's answers in training against those of an exported folder, whole and tampered with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from thinking_templates import THINKING

from qdora_fast.data import choose_template
from qdora_fast.data.tokenize.render import Rendering
from qdora_fast.exports.verify.token_identity import complete_stop_ids, describe, describe_folder, differences
from qdora_fast.models.tokenizer import load_tokenizer

ROWS: list[Any] = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Which city is the capital of Peru?"},
            {"role": "assistant", "content": "It is Lima."},
        ],
        "tools": None,
        "meta": {"source": "test row 1"},
    },
    {"text": "Lima is the capital of Peru.", "meta": {"source": "test row 2"}},
]


@pytest.fixture
def trained(tiny_base: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """What a run records of its tokens, and the folder that its tokenizer is exported to."""
    tokenizer, stop_ids = load_tokenizer(str(tiny_base), None)
    rendering = Rendering(tokenizer, 128, stop_ids=stop_ids, template=choose_template(tokenizer, "auto"))
    folder = shutil.copytree(tiny_base, tmp_path / "out")
    tokenizer.save_pretrained(folder)
    recorded = json.loads(json.dumps(describe(rendering, ROWS)))
    return recorded, folder


def change(file: Path, **values: Any) -> None:
    """Replace values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_untouched_folder_gives_the_same_tokens(trained: tuple[dict[str, Any], Path]) -> None:
    recorded, folder = trained
    assert differences(recorded, describe_folder(folder, recorded)) == []
    chat, text = recorded["tokens"]
    assert chat["trained"][: len(chat["prompt"])] == chat["prompt"]
    assert chat["plain"] and text["trained"] and text["prompt"] == []


@pytest.mark.parametrize("part", ["tokens", "merges"])
def test_a_vocabulary_that_differs_where_no_row_shows_it_is_another_one(
    trained: tuple[dict[str, Any], Path], part: str
) -> None:
    recorded, folder = trained
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    used = {token for row in recorded["tokens"] for ids in row.values() for token in ids}
    if part == "tokens":
        words = content["model"]["vocab"]
        one, other = [word for word, number in words.items() if number not in used and number > 300][-2:]
        words[one], words[other] = words[other], words[one]
    else:
        content["model"]["merges"][-2:] = content["model"]["merges"][:-3:-1]
    file.write_text(json.dumps(content))
    found = describe_folder(folder, recorded)
    assert differences(recorded, found)[0] == "the tokenizer's vocabulary or merges are not those trained with"
    del recorded["vocabulary"]  # a run of an earlier version
    assert not any("vocabulary" in said for said in differences(recorded, found))


def test_another_template_is_named_and_its_tokens_too(trained: tuple[dict[str, Any], Path]) -> None:
    recorded, folder = trained
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("### Response:", "### Answer:"))
    said = differences(recorded, describe_folder(folder, recorded))
    assert said[0] == "the chat template is not the one trained with"
    assert any(line.startswith("row 1: its tokens differ from position") for line in said)
    assert any(line.startswith("row 1: the tokens of its prompt, as a server renders it, differ") for line in said)
    assert not any(line.startswith("row 2") for line in said)


def test_a_template_that_cannot_be_rendered_is_a_difference(trained: tuple[dict[str, Any], Path]) -> None:
    recorded, folder = trained
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    assert "row 1: its tokens differ from position 0 on" in differences(recorded, describe_folder(folder, recorded))


@pytest.mark.parametrize("called", ["EOS", "PAD"])
def test_another_special_token_is_named(trained: tuple[dict[str, Any], Path], called: str) -> None:
    recorded, folder = trained
    change(folder / "tokenizer_config.json", **{f"{called.lower()}_token": "a"})
    said = differences(recorded, describe_folder(folder, recorded))
    assert any(line.startswith(f"{called} is token ") for line in said)
    assert any(line.startswith("answers stop at tokens") for line in said) is (called == "EOS")


def test_a_bos_that_training_did_not_see_is_found(trained: tuple[dict[str, Any], Path]) -> None:
    """Rendered chats hide it, since they are tokenised without special tokens; a plain prompt does not."""
    recorded, folder = trained
    change(folder / "tokenizer_config.json", bos_token="a")
    first = {"SpecialToken": {"id": "a", "type_id": 0}}
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["a"]
    change(
        folder / "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"a": {"id": "a", "ids": [token], "tokens": ["a"]}},
        },
    )
    said = differences(recorded, describe_folder(folder, recorded))
    assert any(line.startswith("BOS is token") for line in said)
    assert "row 1: the tokens of its text without a template differ from position 0 on" in said


def test_a_generation_config_learns_the_stop_tokens_that_were_trained(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 7, "temperature": 0.5}))
    assert complete_stop_ids(tmp_path, [7]) == []
    assert complete_stop_ids(tmp_path, [3, 7]) == [3]
    assert json.loads(file.read_text()) == {"eos_token_id": [3, 7], "temperature": 0.5}
    file.unlink()
    assert complete_stop_ids(tmp_path, [7]) == [7]
    assert json.loads(file.read_text()) == {"eos_token_id": 7}


def test_the_date_in_a_template_is_that_of_the_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, stop_ids = load_tokenizer(str(tiny_base), None)
    choose_template(tokenizer, "auto")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    folder = shutil.copytree(tiny_base, tmp_path / "out")
    tokenizer.save_pretrained(folder)
    recorded = json.loads(json.dumps(describe(Rendering(tokenizer, 128, stop_ids=stop_ids, date="2026-11-30"), ROWS)))
    assert recorded["date"] == "2026-11-30"
    assert differences(recorded, describe_folder(folder, recorded)) == []
    assert differences(recorded, describe_folder(folder, recorded | {"date": "2026-12-01"}))[0].startswith("row 1: ")
    del recorded["date"]  # a run of an earlier version, exported some months later
    monkeypatch.setattr("qdora_fast.exports.verify.token_identity.today", lambda: "2027-02-03")
    assert differences(recorded, describe_folder(folder, recorded)) == []


def test_several_templates_are_compared_one_by_one(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer, stop_ids = load_tokenizer(str(tiny_base), None)
    text = choose_template(tokenizer, "auto").text
    tokenizer.chat_template = {"default": text, "tool_use": "{{ tools | tojson }}" + text}
    folder = shutil.copytree(tiny_base, tmp_path / "out")
    tokenizer.save_pretrained(folder)
    recorded = json.loads(json.dumps(describe(Rendering(tokenizer, 128, stop_ids=stop_ids), ROWS)))
    assert differences(recorded, describe_folder(folder, recorded)) == []
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(text)
    said = differences(recorded, describe_folder(folder, recorded))
    assert said == ["the chat template is not the one trained with"]


def test_a_run_that_learned_to_think_is_rendered_so_again(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    shutil.copytree(tiny_base, folder)
    tokenizer, stop_ids = load_tokenizer(str(tiny_base), None)
    tokenizer.chat_template = THINKING["hybrid"]
    answer = {"role": "assistant", "content": "Four."}
    meta = {"source": "rows:1", "row": 1, "hash": "1"}
    asked = [{"role": "user", "content": "What is 2+2?"}]
    rows = [
        {"messages": [*asked, answer | thought], "tools": None, "meta": meta}
        for thought in ({"reasoning_content": "Two and two."}, {})
    ]
    tokenizer.save_pretrained(folder)
    recorded = {}
    for setting in ("auto", "off", "as_is"):
        rendering = Rendering(tokenizer, 200, stop_ids=stop_ids, thinking=setting)
        recorded[setting] = json.loads(json.dumps(describe(rendering, rows)))
        assert differences(recorded[setting], describe_folder(folder, recorded[setting])) == []
    assert "thinking" not in recorded["as_is"]["settings"], "the record of a run from before"
    assert recorded["auto"]["tokens"][0] != recorded["off"]["tokens"][0]
    assert recorded["auto"]["tokens"][1] == recorded["off"]["tokens"][1] != recorded["as_is"]["tokens"][1]
