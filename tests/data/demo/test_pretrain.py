"""Making a base of the demo's kind: reproducible, loadable, and with a manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from qdora_fast.data.demo.pretrain import Recipe, main, pretrain
from qdora_fast.system.manifest import problems

MINIATURE = Recipe(hidden_size=64, intermediate_size=64, layers=1, heads=2, kv_heads=1, batch_size=2, steps=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature") / "base"
    pretrain(folder, MINIATURE)
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_one_seed_gives_one_set_of_files_whatever_the_caller_did_before(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    try:
        pretrain(tmp_path / "again", MINIATURE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert _hashes(tmp_path / "again") == _hashes(base)


def test_another_seed_gives_other_weights(base: Path, tmp_path: Path) -> None:
    pretrain(tmp_path / "other", dataclasses.replace(MINIATURE, seed=1))
    assert _hashes(tmp_path / "other")["model.safetensors"] != _hashes(base)["model.safetensors"]


def test_the_tokenizer_is_a_base_models(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.is_fast
    assert tokenizer.chat_template is None
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer("Peru").input_ids == tokenizer("Peru", add_special_tokens=False).input_ids
    for text in ("తెలుగు \u200d 漢字 🙂", " a\tb\r\n  c", "x" * 50, "The capital of Peru is Lima."):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("The capital of Peru is Lima.").input_ids) == 7


def test_progress_and_report(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    report = pretrain(tmp_path / "base", MINIATURE, lambda step, total, loss: seen.append((step, total, loss)))
    assert [(step, total) for step, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1][2] == pytest.approx(report.last_loss, abs=1e-3)
    assert report.tokens == 3 * 2 * MINIATURE.context
    origin = json.loads((tmp_path / "base" / "recipe.json").read_text())
    assert origin["recipe"] == dataclasses.asdict(MINIATURE)
    assert origin["result"] == dataclasses.asdict(report)


def test_longer_training_lowers_the_loss(tmp_path: Path) -> None:
    report = pretrain(tmp_path / "base", dataclasses.replace(MINIATURE, steps=40, batch_size=4))
    assert report.last_loss < report.first_loss - 1.0


def test_the_command_makes_a_whole_base_and_says_what_it_is_not(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main([str(tmp_path / "made"), "--steps", "3"])
    assert problems(tmp_path / "made") == []
    said = capsys.readouterr().out
    assert "step 3 of 3" in said
    assert "other bits" in said
