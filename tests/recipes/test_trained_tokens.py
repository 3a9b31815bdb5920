"""A run that trains tokens of its own, from the config to the export, to a chat and to another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qdora_fast.models.adapter import TokenRows, read_adapter
from qdora_fast.recipes.chat import load as open_for_chat
from qdora_fast.recipes.export import export
from qdora_fast.recipes.import_adapter import import_adapter
from qdora_fast.recipes.train import train
from qdora_fast.system.errors import ConfigError, ProofError

TOKENS = ["<|im_start|>", "<|im_end|>", 5]
PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer("<|im_start|>", add_special_tokens=False).input_ids
print(ids, model(tokenizer("a<|im_end|>", return_tensors="pt").input_ids).logits.shape[-1], len(tokenizer))
"""


def _config(tiny_config: Any, **sections: Any) -> Any:
    adapter = {"trainable_tokens": TOKENS, **sections.pop("adapter", {})}
    data = {"template": "chatml"}
    return tiny_config(**{"adapter": adapter, "data": data, "train": {"max_steps": 4, "save_steps": 2}, **sections})


def test_from_the_config_to_the_export_and_elsewhere(tiny_config: Any, tiny_base: Path, tmp_path: Path, capsys) -> None:
    run = train(_config(tiny_config))
    said = capsys.readouterr().err
    assert "rows of tokens 192" in said and "tokens 0.01 (not decayed)" in said and "14 of 14 layers fused" in said
    assert (
        "new to the tokenizer, added as special tokens, from the mean of all rows on: '<|im_start|>', '<|im_end|>'"
        in said
    )
    assert "evaluation failed" not in said
    base = load_file(tiny_base / "model.safetensors")["model.embed_tokens.weight"].float()
    ((name, tokens),) = read_adapter(run.adapter).tokens.items()
    first = len(base)
    assert (name, tokens.ids) == ("model.embed_tokens.weight", (first, first + 1, 5))
    started = torch.stack([base.mean(dim=0), base.mean(dim=0), base[5]])
    moved = (tokens.rows - started).abs().amax(dim=1)
    assert bool((moved > 1e-3).all() and (moved < 0.1).all())

    report = export(run)
    assert report["proof"]["passed"] and report["proof"]["weights"]["tokens"] == 3
    merged = Path(report["path"])
    stored = load_file(merged / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored[list(tokens.ids)], tokens.rows.to(stored.dtype)) and len(stored) == first + 2
    opened = subprocess.run([sys.executable, "-c", PLAIN, str(merged)], capture_output=True, text=True, check=True)
    assert opened.stdout.split("\n")[-2] == f"[{first}] {first + 2} {first + 2}"

    words = open_for_chat(run.path).source.vocabulary
    assert words.encode("<|im_start|>").ids == [first]

    again = import_adapter(run.adapter, overrides=[f"run.dir={tmp_path / 'imported'}"])
    assert again["trained_tokens"][1:] == TOKENS[:2] and len(again["trained_tokens"]) == 3  # by id, 5 first
    imported = export(Path(again["path"]))
    assert imported["proof"]["passed"]
    assert torch.equal(load_file(Path(imported["path"]) / "model.safetensors")["model.embed_tokens.weight"], stored)


@pytest.mark.exhaustive
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tiny_config: Any) -> None:
    run = train(_config(tiny_config))
    before = (run.adapter / "adapter_model.safetensors").read_bytes()
    newest = run.checkpoints()[-1] / "training_state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = train(_config(tiny_config), resume=True)
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match=r"trained tokens: \[5, \d+, \d+\] there, \[\] here"):
        train(tiny_config(adapter={"init_adapter": str(run.path)}))
    still = train(_config(tiny_config, adapter={"init_adapter": str(run.path)}, train={"learning_rate": 1e-12}))
    for ours, theirs in zip(*(read_adapter(each.adapter).tokens.values() for each in (run, still)), strict=True):
        torch.testing.assert_close(ours.rows, theirs.rows, atol=1e-6, rtol=0)


def test_an_export_that_forgot_the_tokens_fails_its_proof(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(_config(tiny_config, adapter={"trainable_tokens": [5, 6], "method": "qlora"}))
    assert export(run, to="merged_4bit_forced")["proof"]["weights"]["tokens"] == 2
    monkeypatch.setattr(TokenRows, "put", lambda self, held, start: held)  # here, not in the process of the proof
    with pytest.raises(ProofError, match=r"rows of 2 of 2 trained tokens \(first id 5\) are not PEFT's") as caught:
        export(run)
    assert "computes PEFT's merge" in str(caught.value)  # the outputs give it away, too


@pytest.mark.parametrize("tokens", [["two words"], [999_999]])
def test_what_is_no_token_is_refused_before_rows_are_prepared(tokens: list[Any], tiny_config: Any, capsys) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.trainable_tokens"):
        train(_config(tiny_config, adapter={"trainable_tokens": tokens}))
    assert "rows in" not in capsys.readouterr().err
