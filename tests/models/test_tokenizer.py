from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qdora_fast.models.tokenizer import load_tokenizer, read_tokenizer, stop_token_ids
from qdora_fast.system.errors import ConfigError, RefusedError


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


@pytest.mark.parametrize(
    "named",
    [
        {"tokenizer_class": "BertTokenizer", "vocab": "PRIVATE"},
        {"tokenizer_class": "GPT2Tokenizer", "vocab": "PRIVATE", "merges": "PRIVATE"},
        {"tokenizer_class": "LukeTokenizer", "entity_vocab": "PRIVATE"},
        {"gguf_file": "PRIVATE"},
    ],
    ids=lambda named: "-".join(named),
)
def test_a_tokenizer_that_names_a_file_of_its_own_choice_is_refused(
    named: dict[str, str], tiny_base: Path, tmp_path: Path
) -> None:
    """With `vocab` each line of that file would be a token, and be saved into the run."""
    private = tmp_path / "private.txt"
    private.write_text("[UNK]\n[PAD]\nsomebody's password\n")
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "tokenizer.json").unlink()
    (base / "vocab.txt").write_text("[UNK]\n")
    said = json.loads((base / "tokenizer_config.json").read_text())
    said |= {key: value.replace("PRIVATE", str(private)) for key, value in named.items()}
    (base / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(RefusedError, match="from its own files alone"):
        read_tokenizer(str(base))


def test_names_that_earlier_versions_left_in_a_tokenizers_config_are_no_reason(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    file = tmp_path / "base" / "tokenizer_config.json"
    left = {"special_tokens_map_file": "/root/x.json", "tokenizer_file": "/root/y.json", "vocab_file": None}
    file.write_text(json.dumps(json.loads(file.read_text()) | left))
    assert len(read_tokenizer(str(tmp_path / "base"))) == len(read_tokenizer(str(tiny_base)))
