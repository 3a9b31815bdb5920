"""Rows that the base cannot take: longer than it was made for, or with tokens that it has no embeddings for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdora_fast.config import Config
from qdora_fast.planning.text import lines
from qdora_fast.recipes.auto import adopt
from qdora_fast.recipes.data import Ready, find_base, ready_data
from qdora_fast.recipes.plan import make_plan
from qdora_fast.system.errors import ConfigError, RefusedError

LONG = " ".join(f"{i} and {i * 7919 % 83}" for i in range(20, 50))


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the base whose config.json has other values."""

    def make(**values: Any) -> Path:
        folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def config_for(tiny_config: Any, tmp_path: Path) -> Callable[..., Config]:
    """A config on a base, with rows of these answers."""

    def make(folder: Path, *answers: str, **sections: Any) -> Config:
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {i}?"},
                    {"role": "assistant", "content": f"{i} {text}"},
                ]
            }
            for i, text in enumerate(answers)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"path": str(tmp_path / "rows.jsonl"), "max_rows": None, "held_out": 0.0, "cache": False}
        data |= {"filters": {"min_tokens": 0}} | sections.pop("data", {})
        return tiny_config(model={"name": str(folder), "max_length": 512} | sections.pop("model", {}), data=data)

    return make


def _ready(config: Config) -> Ready:
    return ready_data(config, find_base(config), trains=False)


def test_rows_longer_than_the_base_was_made_for_are_refused_with_their_number(base: Any, config_for: Any) -> None:
    config = config_for(base(max_position_embeddings=64), "a number", LONG, "another number")
    with pytest.raises(RefusedError, match=r"512 is more than the 64 tokens .* 1 of 3 rows"):
        _ready(config)
    text = " ".join(" ".join(lines(make_plan(config, "x"))).split())
    assert "64 tokens that the model was made for" in text and "33% of the rows are longer" in text


def test_a_number_that_no_row_needs_is_lowered_with_a_note(
    base: Any, config_for: Any, capsys: pytest.CaptureFixture
) -> None:
    config = config_for(base(max_position_embeddings=64), "a number", "another number")
    ready = _ready(config)
    assert (ready.config.model.max_length, len(ready.prepared.train)) == (64, 2)
    assert "64 tokens, which the base was made for, instead of 512" in capsys.readouterr().err
    assert "no row seems to be longer" in " ".join(" ".join(lines(make_plan(config, "x"))).split())
    assert adopt(config, ready.config).model.max_length == 64  # so that the run can be resumed


@pytest.mark.parametrize(
    "values",
    [
        {"max_position_embeddings": 512},
        {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"max_position_embeddings": 512, "sliding_window": 64},
    ],
)
def test_what_the_base_can_take_is_taken_in_silence(
    base: Any, config_for: Any, capsys: pytest.CaptureFixture, values: Any
) -> None:
    config = config_for(base(**values), "a number", LONG)
    assert len(_ready(config).prepared.train) == 2
    assert "made for" not in capsys.readouterr().err
    assert not make_plan(config, "x").limited


def test_a_limit_of_ones_own_below_the_bases_drops_longer_rows_as_asked(base: Any, config_for: Any) -> None:
    config = config_for(base(max_position_embeddings=64), "a number", LONG, model={"max_length": 64})
    report = _ready(config).prepared.report
    assert (report.train, report.dropped_for("too_long")) == (1, 1)


@pytest.mark.parametrize("used", [True, False])
def test_a_token_without_an_embedding_is_refused_where_a_row_uses_it(base: Any, config_for: Any, used: bool) -> None:
    from transformers import AutoTokenizer

    folder = base()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embeddings = json.loads((folder / "config.json").read_text())["vocab_size"]
    spare = [f"<|spare {i}|>" for i in range(embeddings - len(tokenizer))]
    tokenizer.add_special_tokens({"additional_special_tokens": [*spare, "<|turn|>"]})
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    tokenizer.chat_template = f"{'<|turn|>' * used}{turns}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
    tokenizer.save_pretrained(folder)
    config = config_for(folder, "a number", "another number")
    if not used:
        assert len(_ready(config).prepared.train) == 2
        return
    with pytest.raises(ConfigError, match=rf"2 rows use token {embeddings} \(<\|turn\|>\).*rows\.jsonl:1") as caught:
        _ready(config)
    assert f"(0-{embeddings - 1})" in str(caught.value) and "resize" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("generation_config.json", {"eos_token_id": [1, 90_000]}),
        ("tokenizer_config.json", {"pad_token": "<|strange|>"}),
        ("tokenizer_config.json", {"eos_token": "<|strange|>"}),
    ],
)
def test_special_tokens_need_an_embedding(base: Any, config_for: Any, file: str, values: Any) -> None:
    folder = base()
    content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(content | values))
    with pytest.raises(ConfigError, match=r"is token .* and the model has embeddings for"):
        _ready(config_for(folder, "a number"))


def test_a_folder_that_is_no_base_is_refused_before_anything_else(base: Any, config_for: Any) -> None:
    folder = base()
    (folder / "config.json").rename(folder / "adapter_config.json")
    for look in (_ready, lambda config: make_plan(config, "x")):
        with pytest.raises(ConfigError, match="is an adapter, not a base"):
            look(config_for(folder, "a number"))
