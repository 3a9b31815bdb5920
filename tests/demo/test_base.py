"""Making the demo base: reproducible, loadable as any base, cached, and never found half done."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from qdora_fast.demo.base import Recipe, demo_base, fingerprint, pretrain
from qdora_fast.errors import ConfigError

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


def test_the_folder_loads_as_any_base_does(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.dtype == torch.bfloat16
    assert type(model.config).__name__ == "LlamaConfig"
    assert model.config.max_position_embeddings >= 1024
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["The capital of Peru is", "Peru"], return_tensors="pt", padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert model.generate(**batch, max_new_tokens=3).shape[0] == 2


def test_every_linear_layer_of_the_real_base_fits_nf4() -> None:
    usual = Recipe()
    assert usual.hidden_size % 64 == usual.intermediate_size % 64 == 0
    assert usual.hidden_size >= 128


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


def test_the_base_is_made_once(tmp_path: Path) -> None:
    calls: list[int] = []
    first = demo_base(tmp_path, recipe=MINIATURE, on_step=lambda step, *_: calls.append(step))
    assert calls == [1, 2, 3]
    before = _hashes(first)
    assert demo_base(tmp_path, recipe=MINIATURE, on_step=lambda step, *_: calls.append(step)) == first
    assert calls == [1, 2, 3]
    assert _hashes(first) == before
    assert [path.name for path in tmp_path.iterdir()] == [first.name], "no staging left behind"


def test_each_recipe_has_a_folder_of_its_own(tmp_path: Path) -> None:
    other = dataclasses.replace(MINIATURE, steps=2)
    assert fingerprint(other) != fingerprint(MINIATURE) == fingerprint(dataclasses.replace(MINIATURE))
    assert demo_base(tmp_path, recipe=other) != demo_base(tmp_path, recipe=MINIATURE)


def test_an_interrupted_training_is_not_taken_for_a_base(tmp_path: Path) -> None:
    def interrupt(step: int, total: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_base(tmp_path, recipe=MINIATURE, on_step=interrupt)
    assert list(tmp_path.iterdir()) == []
    steps: list[int] = []
    folder = demo_base(tmp_path, recipe=MINIATURE, on_step=lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3]
    assert (folder / "model.safetensors").is_file()


def test_what_a_killed_process_leaves_is_not_taken_for_a_base(tmp_path: Path) -> None:
    finished = demo_base(tmp_path, recipe=MINIATURE)
    leftover = tmp_path / f".{finished.name}-killed" / "base"
    leftover.parent.mkdir()
    finished.rename(leftover)
    (leftover / "model.safetensors").unlink()
    again = demo_base(tmp_path, recipe=MINIATURE)
    assert again == finished
    assert (again / "model.safetensors").is_file()


def test_two_processes_at_once_share_the_first_ones_base(tmp_path: Path) -> None:
    def another_finishes_first(step: int, total: int, loss: float) -> None:
        if step == total:
            demo_base(tmp_path, recipe=MINIATURE)

    folder = demo_base(tmp_path, recipe=MINIATURE, on_step=another_finishes_first)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "model.safetensors").is_file()


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDORA_FAST_CACHE", str(tmp_path / "elsewhere"))
    assert demo_base(recipe=MINIATURE).parent == tmp_path / "elsewhere"


def test_a_cache_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="QDORA_FAST_CACHE"):
        demo_base(tmp_path / "file", recipe=MINIATURE)
