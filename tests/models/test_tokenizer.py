from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qdora_fast.models.tokenizer import load_tokenizer, stop_token_ids
from qdora_fast.system.errors import ConfigError


def test_the_tokenizer_and_its_stop_tokens_are_those_of_the_loaded_model(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer, stop_ids = load_tokenizer(str(tiny_base), None)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert tokenizer.is_fast
    assert stop_ids == stop_token_ids(model, tokenizer)


def test_no_weight_is_needed(tiny_base: Path, tmp_path: Path) -> None:
    for path in tiny_base.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    assert load_tokenizer(str(tmp_path), None)[1] == load_tokenizer(str(tiny_base), None)[1]


def test_several_stop_tokens_count_and_the_models_config_serves_where_there_is_no_other(
    tiny_base: Path, tmp_path: Path
) -> None:
    for path in tiny_base.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    tokenizer, stop_ids = load_tokenizer(str(tmp_path), None)
    assert stop_ids == {5, 6, tokenizer.eos_token_id}
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(tmp_path), None)[1] == {7, tokenizer.eos_token_id}


def test_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.name: cannot read the tokenizer of `nobody/nothing`"):
        load_tokenizer("nobody/nothing", None)
