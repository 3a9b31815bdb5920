"""What lies beside the weights of a merged model, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdora_fast.exports.merge.sidecars import copy_sidecars, has_tokenizer, output_config
from qdora_fast.system.remote_code import allow_remote_code

FILES = (
    "LICENSE.txt",
    "NOTICE",
    "README.md",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "modeling_own.py",
    "generation_config.json",
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base with all kinds of files, an adapter with none, and where the model is built."""
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    for folder in (base, adapter, out):
        folder.mkdir()
    for name in FILES:
        (base / name).write_text(f"base {name}")
    return base, adapter, out


def test_what_a_model_needs_goes_along_and_nothing_else(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, out = folders
    files = copy_sidecars(base, {"model_type": "llama"}, adapter, out)
    assert not files.keys() & {"README.md", "pytorch_model.bin", "modeling_own.py"}
    assert {path.name for path in out.iterdir()} == files.keys() >= {"LICENSE.txt", "NOTICE", "generation_config.json"}
    assert (out / "chat_template.jinja").read_text() == "base chat_template.jinja"
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"}
    assert has_tokenizer(out) and not has_tokenizer(adapter)


def test_further_chat_templates_go_along_in_their_folder(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, out = folders
    for folder, names in ((base, ("rag", "tool_use")), (adapter, ("tool_use",))):
        (folder / "additional_chat_templates").mkdir()
        for name in names:
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(f"{folder.name} {name}")
    files = copy_sidecars(base, {}, None, out)
    assert files["additional_chat_templates/rag.jinja"] == str(base)
    assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "base rag"
    (adapter / "tokenizer.json").write_text("trained with this one")
    again = out / "again"
    again.mkdir()
    copy_sidecars(base, {}, adapter, again)
    there = {file.name: file.read_text() for file in (again / "additional_chat_templates").iterdir()}
    assert there == {"tool_use.jinja": "adapter tool_use"}


def test_no_mixture_of_two_tokenizers(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, out = folders
    (adapter / "tokenizer.json").write_text("trained with this one")
    files = copy_sidecars(base, {}, adapter, out)
    assert (out / "tokenizer.json").read_text() == "trained with this one"
    assert files["tokenizer.json"] == str(adapter)
    assert not (out / "chat_template.jinja").exists()


def test_code_of_its_own_goes_along_where_the_config_names_it(folders: tuple[Path, Path, Path]) -> None:
    base, adapter, out = folders
    assert "modeling_own.py" in copy_sidecars(base, {"auto_map": {}}, adapter, out)


def test_code_that_did_not_run_is_not_named() -> None:
    assert output_config({"auto_map": {"AutoModel": "own.Model"}}, None, None) == {}
    with allow_remote_code():
        assert "auto_map" in output_config({"auto_map": {"AutoModel": "own.Model"}}, None, None)


def test_the_config_says_what_was_written() -> None:
    base = {"torch_dtype": "float32", "quantization_config": {"a": 1}, "text_config": {"quantization_config": {"a": 1}}}
    assert output_config(base, None, None) == {"torch_dtype": "float32", "text_config": {}}
    assert output_config(base, "bfloat16", {"b": 2}) == {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16"},
        "quantization_config": {"b": 2},
    }
