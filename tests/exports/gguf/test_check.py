"""What is read back from a GGUF file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdora_fast.exports.gguf.check import GgufFacts, check, expected_facts, sees
from qdora_fast.models.weights import WeightFolder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two chat templates, as llama.cpp's converter writes them."""
    gguf: Any = pytest.importorskip("gguf")
    path = tmp_path / "two.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(4)
    writer.add_file_type(gguf.LlamaFileType["MOSTLY_Q8_0"])
    writer.add_chat_template([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((3, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_each_of_several_chat_templates_must_be_there(file: Path) -> None:
    wanted = GgufFacts("q8_0", 12, 1, 4, "a", 2, False, {"tool_use": "b"})
    assert all(each["passed"] for each in check(file, wanted) or [])
    for wrong in ({"tool_use": "c"}, {}, {"tool_use": "b", "rag": "c"}):
        failed = [each for each in check(file, replace(wanted, more_templates=wrong)) or [] if not each["passed"]]
        assert [each["words"] for each in failed] == ["chat template: not the run's"]


def test_of_a_vision_model_the_language_part_is_expected(tmp_path: Path) -> None:
    from families import save_family
    from transformers import AutoTokenizer

    save_family("gemma3-vl", tmp_path)
    wanted = expected_facts(tmp_path, AutoTokenizer.from_pretrained(tmp_path), "q8_0")
    stored = WeightFolder(tmp_path).infos.values()
    language = sum(math.prod(info.shape) for info in stored if info.name.startswith("language_model."))
    assert (wanted.blocks, wanted.width, wanted.weights) == (2, 128, language)
    assert sees(tmp_path)
